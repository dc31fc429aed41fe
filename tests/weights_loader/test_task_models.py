"""Models for inpainting, depth and upscaling, in both layouts, in and out."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from support.saved_models import same_weights
from support.small import oracle_pipeline, small_tokenizer

import weights_loader
from minisd.pipeline import LOW_RES, StableDiffusion
from minisd.schedulers import DDIM

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "inpainting": ("StableDiffusionInpaintPipeline", {"in_channels": 9}),
    "depth": ("StableDiffusionDepth2ImgPipeline", {"in_channels": 5}),
    "upscaling": ("StableDiffusionUpscalePipeline", {"in_channels": 7, "num_class_embeds": 400}),
}


def save_oracle(folder: Path, task: str) -> Path:
    """A folder as the reference saves it."""
    name, unet = KINDS[task]
    components = oracle_pipeline(folder / "vocabulary", sd2=True, **unet).components
    parts = {key: components[key] for key in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    if task == "depth":
        parts |= {"depth_estimator": None, "feature_extractor": None}
    if task == "upscaling":
        parts["low_res_scheduler"] = diffusers.DDPMScheduler(1000, 0.0002, 0.03, "scaled_linear")
    if task == "inpainting":
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    getattr(diffusers, name)(**parts).save_pretrained(folder / "model")
    return folder / "model"


def draw(sd: StableDiffusion) -> torch.Tensor:
    """An image by a model of any task."""
    given: dict[str, Any] = {"image": torch.linspace(-1, 1, 3 * 24 * 32).reshape(1, 3, 24, 32), "seed": 1}
    if sd.task == "inpainting":
        given["mask_image"] = torch.ones(24, 32)
    if sd.task == "depth":
        given["depth_map"] = torch.rand(24, 32, generator=torch.Generator().manual_seed(0))
    return sd("a cat", num_inference_steps=2, output_type="pt", **given).images


@pytest.mark.parametrize("task", KINDS)
def test_in_and_out(tmp_path: Path, task: str) -> None:
    folder = save_oracle(tmp_path, task)
    sd = weights_loader.load(folder)
    assert sd.task == task
    if task == "upscaling":
        assert (sd.low_res.beta_start, sd.low_res.beta_end) == (0.0002, 0.03)
        assert (sd.defaults.num_inference_steps, sd.defaults.guidance_scale) == (75, 9.0)
    expected = draw(sd)

    weights_loader.save(sd, tmp_path / "again")
    again = weights_loader.load(tmp_path / "again")
    assert same_weights(sd, again)
    assert again.low_res == sd.low_res
    torch.testing.assert_close(draw(again), expected, atol=1e-5, rtol=1e-5)
    none = {"depth_estimator": None, "feature_extractor": None} if task == "depth" else {}
    theirs = getattr(diffusers, KINDS[task][0]).from_pretrained(tmp_path / "again", **none)
    assert torch.equal(theirs.unet.state_dict()["conv_in.weight"], sd.unet.state_dict()["conv_in.weight"])

    weights_loader.save(sd, tmp_path / "m.safetensors", layout="ldm")
    single = weights_loader.load(tmp_path / "m.safetensors", tokenizer=small_tokenizer(sd2=True))
    assert same_weights(sd, single)
    assert single.low_res == sd.low_res
    assert (draw(single) - expected).abs().max() < 1e-4


def test_the_official_upscaler_by_its_shapes(tmp_path: Path) -> None:
    """No metadata: what an original file does not say is as in the official repository."""
    from safetensors.torch import load_file, save_file

    sd = weights_loader.load(save_oracle(tmp_path, "upscaling"))
    weights_loader.save(sd, tmp_path / "a.safetensors", layout="ldm")
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "x4.safetensors")
    found = weights_loader.load(tmp_path / "x4.safetensors", tokenizer=small_tokenizer(sd2=True))
    assert isinstance(found.scheduler, DDIM)
    assert found.scheduler.schedule.prediction_type == "v_prediction"
    assert found.scheduler.schedule.beta_end == LOW_RES.beta_end == 0.02
    assert found.unet.config.sample_size == 128
    assert found.defaults.guidance_scale == 9.0
