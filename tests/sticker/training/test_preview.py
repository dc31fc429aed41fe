"""What the preview decoder learns from: the exact decoder's pixels, of predictions and of noised latents."""

import pytest
import torch
from support.runs import steps_of

import weights_loader
from minisd.pipeline import StableDiffusion
from minisd.sticker.training.preview import (
    ANY_TIMESTEP,
    decoder_config,
    latents_and_pixels,
    new_preview_decoder,
    train_preview,
)
from minisd.training.run_files import fingerprint


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return weights_loader.load("sticker")


def test_the_embedded_one_has_these_sizes_and_few_bytes(sd: StableDiffusion) -> None:
    assert sd.preview_decoder is not None
    assert sd.preview_decoder.config == decoder_config(sd.vae.config)
    folder = weights_loader.resolve("sticker") / "preview"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 100_000
    assert weights_loader.load("sticker-depth").preview_decoder is not None


def test_pixels_are_those_of_the_exact_decoder(sd: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    forward = sd.unet.forward
    monkeypatch.setattr(sd.unet, "forward", lambda x, t, text: (asked.extend(t.tolist()), forward(x, t, text))[1])
    latents, pixels = latents_and_pixels(sd, 11, torch.Generator().manual_seed(3))  # a whole chunk and a part of one
    assert latents.shape == (11, 4, 16, 16)
    torch.testing.assert_close(pixels, sd.decode(latents), rtol=0, atol=1e-4)
    assert len(asked) == 2 * (4 + 2)  # half of the latents are predictions, each from two calls
    assert ANY_TIMESTEP[0] <= min(asked) < 400 < max(asked) < ANY_TIMESTEP[1]
    again, _ = latents_and_pixels(sd, 11, torch.Generator().manual_seed(3))
    assert torch.equal(again, latents)


def test_a_new_one_is_the_same_each_time_and_leaves_the_global_generator(sd: StableDiffusion) -> None:
    state = torch.random.get_rng_state()
    first, second = (new_preview_decoder(decoder_config(sd.vae.config)) for _ in range(2))
    assert fingerprint(first) == fingerprint(second)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_training_comes_nearer_to_the_exact_decoder(
    sd: StableDiffusion, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = steps_of(tmp_path_factory.mktemp("run") / "preview.pt", 60)
    trained, new = train_preview(sd, run, pool=4), new_preview_decoder(decoder_config(sd.vae.config))
    latents, pixels = latents_and_pixels(sd, 4, torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, after = ((decoder(latents) - pixels).abs().mean() for decoder in (new, trained))
    assert after < before / 2
