"""A student as low-rank changes of its teacher: exact at full rank, the closest ones below, refused where unfit."""

import pytest
import torch

import weights_loader
from minisd.adapters.distilled_student import (
    StudentChanges,
    apply_student,
    student_changes,
    student_from_tensors,
)
from minisd.errors import InputError, MismatchError
from minisd.models import UNet
from minisd.pipeline import StableDiffusion
from minisd.training.guidance_distillation import guided_student

WIDTH, FULL_RANK = 32, 2**10


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return weights_loader.load("sticker")


@pytest.fixture(scope="module")
def student(sd: StableDiffusion) -> UNet:
    """Every weight of the teacher is changed, by about a twentieth."""
    unet = guided_student(sd.unet, WIDTH)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in unet.parameters():
            scale = 0.05 * weight.std() if weight.abs().max() > 0 and weight.numel() > 1 else 0.05
            weight += scale * torch.randn(weight.shape, generator=generator)
    return unet.requires_grad_(False)


def test_changes_of_full_rank_are_the_student(sd: StableDiffusion, student: UNet) -> None:
    drawn = apply_student(sd, student_changes(sd.unet, student, FULL_RANK), steps=3)
    assert drawn.preview_decoder is sd.preview_decoder
    for name, weight in student.state_dict().items():
        torch.testing.assert_close(
            drawn.unet.get_parameter(name), weight, rtol=0, atol=2e-6 * weight.abs().max().item()
        )
    expected = StableDiffusion(sd.tokenizer, sd.text_encoder, sd.vae, student, sd.scheduler, sd.defaults)
    options = {"seed": 1, "output_type": "latent", "guidance_scale": 2.0}
    got = drawn("a red circle", **options).images
    want = expected("a red circle", num_inference_steps=3, **options).images
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize("rank", [1, 8])
def test_the_distance_of_lower_ranks_is_that_of_the_other_singular_values(
    sd: StableDiffusion, student: UNet, rank: int
) -> None:
    changes = student_changes(sd.unet, student, rank)
    for name in ("conv_in.weight", "down.1.resnets.0.conv1.weight", "conv_out.weight"):
        change = student.get_parameter(name) - sd.unet.get_parameter(name)
        values = torch.linalg.svdvals(change.flatten(1))
        distance = (change - changes.parts[name].delta(change)).norm()
        torch.testing.assert_close(distance, values[rank:].norm(), rtol=1e-3, atol=1e-6)


def test_vectors_and_the_guidance_are_kept_whole(sd: StableDiffusion, student: UNet) -> None:
    weights = student_changes(sd.unet, student, rank=1).weights(sd.unet)
    for name in ("conv_in.bias", "guidance.weight"):
        torch.testing.assert_close(weights[name], student.get_parameter(name), rtol=0, atol=1e-6)


def test_the_file_and_back(sd: StableDiffusion, student: UNet) -> None:
    changes = student_changes(sd.unet, student, rank=4)
    again = student_from_tensors(sd.unet, changes.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(changes.parameters(), again.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_the_teacher_stays(sd: StableDiffusion, student: UNet) -> None:
    before = sd.unet.conv_out.weight.clone()
    apply_student(sd, student_changes(sd.unet, student, rank=2), steps=4)
    assert torch.equal(sd.unet.conv_out.weight, before)
    assert sd.unet.config.guidance_width is None


def test_what_is_no_student(sd: StableDiffusion, student: UNet) -> None:
    with pytest.raises(InputError, match="other sizes than its teacher"):
        student_changes(sd.unet, sd.unet, rank=4)
    with pytest.raises(InputError, match="other sizes than its teacher"):
        student_changes(student, student, rank=4)


def test_files_of_another_unet(sd: StableDiffusion) -> None:
    tensors = StudentChanges(sd.unet, 2, WIDTH).state_dict()
    for wrong in ({}, {**tensors, "down.1": torch.zeros(2, 5)}, {n: t for n, t in tensors.items() if n != "up.3"}):
        with pytest.raises(MismatchError, match="not the changes of a student of this UNet"):
            student_from_tensors(sd.unet, wrong)
