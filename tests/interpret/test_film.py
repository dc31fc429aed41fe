"""Film: which steps it keeps, what it shows, and that it does not change the steps."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from support.small import small_pipeline

from minisd.errors import InputError
from minisd.interpret.film import Film


def test_it_keeps_every_kth_step_and_the_last() -> None:
    sd = small_pipeline()
    film = Film(sd, every=3)
    steps = list(film.watch(sd.denoise("a", num_inference_steps=7, seed=0)))
    last = steps[-1].i
    expected = [i for i in range(last + 1) if i % 3 == 0 or i == last]
    assert [step.i for step in film.steps] == expected


def test_watch_keeps_copies_and_changes_nothing() -> None:
    sd = small_pipeline()
    plain = [step.latents.clone() for step in sd.denoise("a", num_inference_steps=4, seed=0)]
    film = Film(sd)
    for step in film.watch(sd.denoise("a", num_inference_steps=4, seed=0)):
        film.strip()
        kept = film.steps[-1].latents.clone()
        step.x0.zero_()
        assert torch.equal(film.steps[-1].latents, kept)
    assert all(torch.equal(a, b.latents) for a, b in zip(plain, film.steps, strict=True))
    assert film.steps[-1].x0.abs().max() > 0


def test_strip_and_gif(tmp_path: Path) -> None:
    sd = small_pipeline()
    film = Film(sd, every=2)
    for _ in film.watch(sd.denoise(["a", "b"], num_inference_steps=5, seed=0)):
        pass
    side = sd.unet.config.sample_size * sd.vae.config.downscale
    strip = film.strip(picture=1)
    assert strip.size == (len(film.steps) * (side + 2) - 2, 2 * side + 2)
    path = film.gif(tmp_path / "film.gif")
    with Image.open(path) as gif:
        assert gif.n_frames == len(film.steps)
    # the last column of the strip: x_t and x0 of the last step, decoded
    final = film.strip(picture=0, labels=False).crop((strip.width - side, 0, strip.width, side))
    direct = sd(["a", "b"], num_inference_steps=5, seed=0).images[0]
    assert final.tobytes() == direct.tobytes()


def test_an_empty_film_is_an_error() -> None:
    film = Film(small_pipeline())
    with pytest.raises(InputError, match="empty"):
        film.strip()
    with pytest.raises(InputError, match="every"):
        Film(small_pipeline(), every=0)
