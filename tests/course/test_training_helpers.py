"""What the training notebooks import beside models: learning rates, and parts that minisd does without."""

import warnings
from typing import Any

import pytest
import torch
from diffusers import optimization

from minisd.errors import InputError


def rates(make: Any, steps: int = 20) -> list[float]:
    """The learning rate of each step of a training loop."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*found, schedule.get_last_lr()[0]]


@pytest.mark.parametrize("warmup", [0, 1, 5, 12])
@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "linear", "cosine"])
def test_learning_rates(ours: Any, name: str, warmup: int) -> None:
    options = {"num_warmup_steps": warmup, "num_training_steps": 20}
    mine, expected = (
        rates(lambda optimizer, lib=lib: lib.get_scheduler(name, optimizer=optimizer, **options))
        for lib in (ours, optimization)
    )
    assert mine == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert max(expected) == pytest.approx(0.3)


@pytest.mark.parametrize("warmup", [0, 4])
def test_cosine_by_its_own_name(ours: Any, warmup: int) -> None:
    options = {"num_warmup_steps": warmup, "num_training_steps": 20}
    mine, expected = (
        rates(lambda optimizer, lib=lib: lib.get_cosine_schedule_with_warmup(optimizer=optimizer, **options))
        for lib in (ours, optimization)
    )
    assert mine == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert mine[-1] == pytest.approx(0, abs=1e-9)


def test_constant_needs_no_numbers(ours: Any) -> None:
    assert set(rates(lambda optimizer: ours.get_scheduler("constant", optimizer))) == {0.3}


def test_wrong_learning_rates(ours: Any) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    with pytest.raises(InputError, match=r"schedule is 'polynomial', expected one of constant, .*cosine"):
        ours.get_scheduler("polynomial", optimizer)
    for name in ("linear", "cosine"):
        with pytest.raises(InputError, match=f"num_training_steps is None, expected .*'{name}' ends"):
            ours.get_scheduler(name, optimizer, num_warmup_steps=3)


def test_parts_that_minisd_does_without(ours: Any, model: str) -> None:
    """The imports of the textual-inversion notebooks: a pipeline accepts what they load."""
    checker = ours.StableDiffusionSafetyChecker.from_pretrained("CompVis/stable-diffusion-safety-checker")
    extractor = ours.CLIPFeatureExtractor.from_pretrained("openai/clip-vit-base-patch32", subfolder="x")
    assert checker is extractor is None
    pipe = ours.StableDiffusionPipeline.from_pretrained(model, safety_checker=checker, feature_extractor=extractor)
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    ours.StableDiffusionPipeline(**parts, safety_checker=checker, feature_extractor=extractor)
    with pytest.raises(InputError, match="no safety checker"):
        ours.StableDiffusionPipeline(**parts, safety_checker=object())


def test_a_unet_with_checkpointing_keeps_less_for_the_same_result(ours: Any, model: str) -> None:
    unet, x, text = ours.UNet2DConditionModel.from_pretrained(model), torch.randn(1, 4, 16, 16), torch.randn(1, 77, 128)

    def kept() -> tuple[int, torch.Tensor]:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda each: sizes.append(each.numel()) or each, lambda each: each
        ):
            result = unet(x, torch.tensor([1]), text).sample
        return sum(sizes), result

    many, plain = kept()
    unet.enable_gradient_checkpointing()
    few, result = kept()
    assert few < many / 2
    assert torch.allclose(result, plain, atol=1e-5)


def test_gradient_checkpointing_changes_no_result(ours: Any, model: str) -> None:
    pipe = ours.StableDiffusionPipeline.from_pretrained(model)
    ids = torch.zeros(1, 77, dtype=torch.long)
    with torch.no_grad(), warnings.catch_warnings(action="error"):
        before = pipe.text_encoder(ids)[0]
        pipe.unet.enable_gradient_checkpointing()
        pipe.text_encoder.gradient_checkpointing_enable()
        assert torch.equal(pipe.text_encoder(ids)[0], before)
    ours.UNet2DModel(
        block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
    ).enable_gradient_checkpointing()  # fmt: skip
