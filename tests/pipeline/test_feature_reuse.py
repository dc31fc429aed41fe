"""Feature reuse: the calls between whole ones compute what the whole UNet would from the kept features."""

from typing import Any

import pytest
import torch
from support.small import UNETS, oracle_unet, small_pipeline, unet_like
from torch import Tensor

import weights_loader
from minisd.errors import InputError
from minisd.models import UNet
from minisd.pipeline import StableDiffusion, View
from minisd.pipeline.feature_reuse import FeatureReuse


def inputs(unet: UNet, images: int, texts: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(images)
    latents = torch.randn(images, unet.config.in_channels, 16, 12, generator=generator)
    text = torch.randn(texts, 7, unet.config.context_width, generator=generator)
    pooled = None
    if unet.config.pooled_width is not None:
        pooled = torch.randn(texts, unet.config.pooled_width, generator=generator)
    return latents, torch.tensor(400), text, None, pooled  # type: ignore[return-value]


def modules_called(unet: UNet, call: Any) -> int:
    count = []
    hooks = [m.register_forward_hook(lambda *_: count.append(0)) for m in unet.modules() if not list(m.children())]
    call()
    for hook in hooks:
        hook.remove()
    return len(count)


@pytest.mark.parametrize("shape", UNETS)
@pytest.mark.parametrize(("images", "texts"), [(1, 1), (2, 4)])
@torch.no_grad()
def test_a_call_with_the_same_input_gives_the_same_output(shape: str, images: int, texts: int) -> None:
    """Then the kept features are right, so a short call must agree with a whole one."""
    unet = unet_like(oracle_unet(shape))
    if unet.config.class_count is not None:
        pytest.skip("upscalers read a noise level")
    given = inputs(unet, images, texts)
    called = FeatureReuse(unet, 3)
    whole, expected = called(*given), unet(*given)
    assert torch.equal(whole, expected)
    for _ in range(2):
        torch.testing.assert_close(called(*given), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    moved = (given[0] + 0.5, *given[1:])
    assert torch.equal(called(*moved), unet(*moved))  # the fourth call is whole again
    assert not torch.equal(called(*given), expected)  # with the features of the moved input


@torch.no_grad()
def test_only_every_nth_call_is_whole_and_those_for_another_number_of_texts() -> None:
    unet = small_pipeline().unet
    called = FeatureReuse(unet, 3)
    guided, unguided = inputs(unet, 1, 2), inputs(unet, 1, 1)
    run = [guided] * 4 + [unguided] * 2 + [guided] * 2
    counts = [modules_called(unet, lambda given=given: called(*given)) for given in run]
    assert [count == max(counts) for count in counts] == [True, False, False, True, True, False, True, False]
    assert max(counts) > 3 * min(counts)


def test_every_call_leaves_no_hook() -> None:
    sd = small_pipeline()
    sd("a cat", num_inference_steps=4, reuse_features=2, seed=0)
    assert not any(module._forward_pre_hooks for module in sd.unet.modules())


def test_images_change_little_and_those_of_reuse_1_not_at_all() -> None:
    sd = weights_loader.load("sticker")
    run = {"seed": 3, "num_inference_steps": 10, "output_type": "pt"}
    images = [sd("a red circle above a blue square", **run, reuse_features=n).images for n in (None, 1, 2)]  # type: ignore[arg-type]
    assert torch.equal(images[0], images[1])
    assert 0 < float((images[0] - images[2]).abs().mean()) < 0.02


@pytest.mark.parametrize(
    "others",
    [{"guidance_scale": [3, 3, 1, 1, 3, 3]}, {"guidance_scale": 1}, {"num_images_per_prompt": 2}],
)
def test_it_runs_with(others: dict[str, Any]) -> None:
    sd = small_pipeline()
    run = {"seed": 0, "num_inference_steps": 5, "output_type": "pt"} | others
    exact, reused = (sd("a cat", **run, reuse_features=n).images for n in (1, 2))
    assert exact.shape == reused.shape
    assert not torch.equal(exact, reused)


def test_it_runs_with_views() -> None:
    sd = small_pipeline()
    views = [View("a cat", 0, 0, 32, 32), View("a dog", 16, 0, 32, 32)]
    assert sd(views=views, seed=0, num_inference_steps=3, reuse_features=2).images[0].size == (48, 32)


@pytest.fixture
def small() -> StableDiffusion:
    return small_pipeline()


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "2", 1001])
def test_bad_numbers_are_refused(small: StableDiffusion, bad: Any) -> None:
    with pytest.raises(InputError, match="reuse_features is"):
        small.denoise("a cat", reuse_features=bad)


def test_a_guide_is_refused_beside_it(small: StableDiffusion) -> None:
    with pytest.raises(InputError, match="a guide and reuse_features were both given"):
        small.denoise("a cat", reuse_features=2, guide=lambda x0, i: x0.mean())
