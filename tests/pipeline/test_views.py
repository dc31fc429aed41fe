"""Views: windows and turned copies of an image, each with its own prompt; their predictions are averaged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small import small_pipeline
from support.small_xl import oracle_xl
from torch import Tensor

import weights_loader
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion, View, view_grid
from minisd.pipeline.loss_guidance import Guide
from minisd.pipeline.noise import noise_circle
from minisd.pipeline.views import TURNS
from minisd.schedulers import DDIM, LMS, DPMSolverMultistep, Euler, Heun, Scheduler
from minisd.sticker.world.checker.check import check


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return small_pipeline()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def latents_of(sd: StableDiffusion, *args: Any, **others: Any) -> Tensor:
    return sd(*args, **{"num_inference_steps": 3, "output_type": "latent", **others}).images


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture(params=[DDIM(), LMS(), Euler(), Heun(), DPMSolverMultistep()], ids=lambda s: type(s).__name__)
def sampler(request: pytest.FixtureRequest, sd: StableDiffusion) -> Iterator[Scheduler]:
    usual, sd.scheduler = sd.scheduler, request.param
    yield request.param
    sd.scheduler = usual


def test_the_whole_image_is_one_view_bit_for_bit(sd: StableDiffusion) -> None:
    for options in ({}, {"guidance_scale": 1}, {"guidance_rescale": 0.7}, {"num_images_per_prompt": 2}):
        plain = latents_of(sd, "a red cat", seed=3, **options)
        assert torch.equal(latents_of(sd, views=[View("a red cat")], seed=3, **options), plain)


def test_the_prediction_is_the_mean_of_the_views(sd: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """One DDIM step by hand: three overlapping windows, one of them turned."""
    x = noise(2, 4, 8, 20)
    views = [View("a cat", 0, 0, 16, 16), View("a dog", 12, 0, 16, 16, turn="quarter"), View("red", 24, 0, 16, 16)]
    monkeypatch.setattr(sd, "scheduler", DDIM())
    got = latents_of(sd, views=views, latents=x, num_inference_steps=1, num_images_per_prompt=2, guidance_scale=3)
    grid = sd.scheduler.grid(1)
    total, count = torch.zeros(2, 4, 8, 20), torch.zeros(20)
    with torch.no_grad():
        empty = sd.encode_prompt([""])
        for view in views:
            left = view.left // 2
            part = x[..., left : left + 8]
            part = part.transpose(-2, -1).flip(-1) if view.turn == "quarter" else part  # clockwise
            text = sd.encode_prompt([view.prompt])
            without, with_ = (sd.unet(part, grid.timesteps[0], each.expand(2, -1, -1)) for each in (empty, text))
            mean = without + 3 * (with_ - without)
            total[..., left : left + 8] += mean.flip(-1).transpose(-2, -1) if view.turn == "quarter" else mean
            count[left : left + 8] += 1
    expected = sd.scheduler.step(grid, 0, x, total / count, None, torch.zeros)[0]
    assert_close(got, expected)


def test_windows_side_by_side_are_images_of_their_own(sd: StableDiffusion, sampler: Scheduler) -> None:
    x = noise(1, 4, 16, 16)
    prompts = ["a red cat", "a dog", "blue", "a circle"]
    got = latents_of(sd, views=view_grid(prompts, 2, 2, 16, overlap=0), latents=x)
    for k, prompt in enumerate(prompts):
        rows, columns = (slice(8 * n, 8 * n + 8) for n in divmod(k, 2))
        assert_close(got[..., rows, columns], latents_of(sd, prompt, latents=x[..., rows, columns]))


@pytest.mark.parametrize("turn", TURNS)
def test_to_turn_the_noise_and_exchange_the_views_turns_the_image(sd: StableDiffusion, turn: str) -> None:
    x = noise(1, 4, 8, 8)
    there, back = TURNS[turn]
    assert torch.equal(back(there(x)), x)
    if turn != "quarter":  # which is not its own opposite
        got = latents_of(sd, views=[View("a cat"), View("a dog", turn=turn)], latents=x)
        assert_close(there(got), latents_of(sd, views=[View("a dog"), View("a cat", turn=turn)], latents=there(x)))
    only = latents_of(sd, views=[View("a dog", turn=turn)], latents=x)
    assert_close(there(only), latents_of(sd, "a dog", latents=there(x)))


def test_each_image_has_its_own_noise(sd: StableDiffusion) -> None:
    views = view_grid(["a cat", "a dog"], 2, 1, 16)
    both = latents_of(sd, views=views, seed=5, num_images_per_prompt=2)
    assert both.shape == (2, 4, 8, 14)
    for k in range(2):
        assert_close(both[k : k + 1], latents_of(sd, views=views, seed=5 + k))


def test_a_guide_sees_the_whole_image(sd: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd, "scheduler", DDIM())
    shapes = []

    def loss(x0: Tensor, i: int) -> Tensor:
        shapes.append(tuple(x0.shape))
        return x0[..., -1].square().sum()

    views = view_grid("a cat", 2, 1, 16)
    free, steered = (latents_of(sd, views=views, seed=5, guide=guide) for guide in (None, Guide(loss, scale=0.1)))
    assert set(shapes) == {(1, 4, 8, 14)}
    assert steered[..., -1].abs().mean() < free[..., -1].abs().mean()


def test_each_view_has_its_part_of_a_depth_map() -> None:
    sd, x = small_pipeline(in_channels=5), noise(1, 4, 8, 16)
    depth = torch.rand(1, 16, 1, generator=torch.Generator().manual_seed(1))  # the same in all columns
    views = view_grid(["a cat", "a dog"], 2, 1, 16, overlap=0)
    got = latents_of(sd, views=views, latents=x, depth_map=depth.expand(1, 16, 32))
    for k, prompt in enumerate(["a cat", "a dog"]):
        half = slice(8 * k, 8 * k + 8)
        assert_close(got[..., half], latents_of(sd, prompt, latents=x[..., half], depth_map=depth.expand(1, 16, 16)))


def test_an_inpainting_model_sees_the_mask_of_each_view() -> None:
    sd, image = small_pipeline(in_channels=9), torch.rand(1, 3, 16, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(16, 32)
    mask[:, 4:24] = 1

    def drawn(*prompts: str, mask: Tensor = mask) -> Tensor:
        views = view_grid(prompts, 2, 1, 16, overlap=0)
        return latents_of(sd, views=views, image=image, mask_image=mask.numpy(), seed=2)

    got, other_text, other_mask = drawn("a cat", "a dog"), drawn("a cat", "red"), drawn("a cat", "a dog", mask=1 - mask)
    assert_close(other_text[..., :8], got[..., :8])
    assert not torch.allclose(other_text[..., 8:], got[..., 8:], atol=1e-3)
    assert not torch.allclose(other_mask[..., 8:], got[..., 8:], atol=1e-3)


def test_sdxl_gets_the_size_of_a_view(tmp_path: Path) -> None:
    oracle_xl(tmp_path).save_pretrained(tmp_path / "model")
    sd = weights_loader.load(tmp_path / "model")
    x = noise(1, 4, 8, 16)
    got = latents_of(sd, views=view_grid(["a cat", "a dog"], 2, 1, 16, overlap=0), latents=x)
    for k, prompt in enumerate(["a cat", "a dog"]):
        half = slice(8 * k, 8 * k + 8)
        assert_close(got[..., half], latents_of(sd, prompt, latents=x[..., half]))


def test_a_grid_of_views() -> None:
    views = view_grid([str(n) for n in range(15)], 5, 3, 64)
    assert [view.prompt for view in views] == [str(n) for n in range(15)]
    assert max(view.left + (view.width or 0) for view in views) == 256
    assert max(view.top + (view.height or 0) for view in views) == 160
    assert [(view.left, view.top) for view in views[:6]] == [(0, 0), (48, 0), (96, 0), (144, 0), (192, 0), (0, 48)]
    assert len({view.prompt for view in view_grid("a", 2, 2, 8)}) == 1


def test_the_noise_of_a_loop_is_a_circle() -> None:
    noises = noise_circle(12, (4, 40, 40), seed=3)
    assert noises.shape == (12, 4, 40, 40)
    assert torch.allclose(noises.std((1, 2, 3)), torch.ones(12), atol=0.05)
    assert torch.allclose(noises[0], -noises[6], atol=1e-5)
    steps = (noises - noises.roll(-1, 0)).flatten(1).norm(dim=1)
    assert steps.max() < 1.1 * steps.min()
    assert torch.equal(noise_circle(12, (4, 40, 40), seed=3), noises)
    with pytest.raises(InputError, match="frames is 1"):
        noise_circle(1, (4, 8, 8), seed=3)


@pytest.mark.parametrize(
    ("views", "others", "message"),
    [
        ([], {}, "expected a list of View"),
        (["a cat"], {}, "expected a list of View"),
        ([View("a")], {"prompt": "b"}, "each view has its own"),
        ([View("a")], {"prompt_embeds": torch.zeros(1, 77, 64)}, "each view has its own"),
        ([View("a")], {"pooled_prompt_embeds": torch.zeros(1, 3)}, "each view has its own"),
        ([View("a", 0, 0, 400_000, 400_000)], {}, "needs about"),
        ([View("a", 0, 0, 16, 16)], {"width": 32}, "uncovered"),
        ([View("a", 0, 0, 16, 16), View("b", 16, 0, 20, 16)], {}, "expected one size"),
        ([View("a", 0, 0, 15, 16)], {"width": 16}, "multiples of 2"),
        ([View("a", 0, 0, 40, 16)], {"width": 32}, "within 0 to 32"),
        ([View("a", 32)], {"width": 32, "height": 32}, "at least 4 pixels"),
        ([View("a", width=32, height=16, turn="quarter")], {}, "square"),
        ([View("a"), View("b")], {"negative_prompt": ["x", "y", "z"]}, "3 texts for 2"),
    ],
)
def test_refused(sd: StableDiffusion, views: list[View], others: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        latents_of(sd, views=views, seed=1, **others)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: View("a", turn="third"), "turn of a view is 'third', expected one of none, half"),
        (lambda: View("a", left=-1), "left of a view"),
        (lambda: View("a", width=0), "width of a view"),
        (lambda: View(3), "prompt of a view"),  # type: ignore[arg-type]
        (lambda: View(["a"]), "prompt of a view is list, expected text"),  # type: ignore[arg-type]
        (lambda: View("a", turn=["half"]), "turn of a view"),  # type: ignore[arg-type]
        (lambda: View("a", left=None), "left of a view"),  # type: ignore[arg-type]
        (lambda: noise_circle(3, "abc", 1), "shape is 'abc', expected"),
        (lambda: noise_circle(3, (4, -1, 16), 1), "a side of shape is -1"),
        (lambda: noise_circle(3, (4, (4,), 1), 1), "a side of shape"),  # type: ignore[arg-type]
        (lambda: view_grid(["a", "b"], 3, 1, 16), "2 prompts for 3 x 1 views"),
        (lambda: view_grid("a", 0, 1, 16), "columns"),
        (lambda: view_grid("a", 1, 1, 16, overlap=1), "overlap"),
    ],
)
def test_refused_views(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_the_embedded_model_draws_what_each_window_asks_for() -> None:
    sd = weights_loader.load("sticker")
    views = view_grid(["a red circle", "a blue star", "a green square"], 3, 1, 128, overlap=0)
    (pixels,) = sd(views=views, seed=4, num_inference_steps=8, output_type="pt").images
    for k, view in enumerate(views):
        assert check(pixels[..., 128 * k : 128 * k + 128], view.prompt).exact
