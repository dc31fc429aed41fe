"""A student beside its teacher: the error of its predictions, and the time of an image."""

from dataclasses import replace

import pytest
import torch

import weights_loader
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.students import image_seconds, prediction_error
from minisd.training.guidance_distillation import guided_prediction, guided_student


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return weights_loader.load("sticker")


def as_student(sd: StableDiffusion) -> StableDiffusion:
    unet = guided_student(sd.unet, 32).requires_grad_(False)
    return StableDiffusion(sd.tokenizer, sd.text_encoder, sd.vae, unet, sd.scheduler, sd.defaults)


def test_a_student_that_has_learned_nothing_predicts_without_guidance(sd: StableDiffusion) -> None:
    error = prediction_error(as_student(sd), sd, count=8, seed=0)
    assert 1e-4 < error < 1
    unguided = StableDiffusion(
        sd.tokenizer, sd.text_encoder, sd.vae, sd.unet, sd.scheduler, replace(sd.defaults, guidance_scale=1.0)
    )
    assert prediction_error(as_student(sd), unguided, count=8, seed=0) < 1e-8


def test_one_that_predicts_as_guided_has_no_error(sd: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    student, empty = as_student(sd), sd.encode_prompt([""])

    def predict(x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
        return guided_prediction(sd.unet, x, t, text, empty, guidance)

    monkeypatch.setattr(student.unet, "forward", predict)
    assert prediction_error(student, sd, count=5, seed=1) < 1e-8


def test_seconds_of_both(sd: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minisd.sticker.evaluation.students.REPEATS", 1)
    few = StableDiffusion(
        sd.tokenizer, sd.text_encoder, sd.vae, sd.unet, sd.scheduler, replace(sd.defaults, num_inference_steps=1)
    )
    seconds = image_seconds(few, sd, "a red circle")
    assert seconds.student > 0
    assert seconds.teacher > 0
