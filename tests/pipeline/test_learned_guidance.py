"""UNets that have learned guidance read its scale: as diffusers with `time_cond_proj_dim`, in one call a step."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.small import randomise, small_pipeline

import weights_loader
from minisd.errors import InputError
from minisd.models import UNet
from minisd.pipeline import StableDiffusion
from minisd.schedulers import LCM, NoiseSchedule


@pytest.fixture
def sd() -> StableDiffusion:
    pipeline = small_pipeline()
    pipeline.unet = randomise(UNet(replace(pipeline.unet.config, guidance_width=16)), 3)
    return pipeline


@pytest.mark.parametrize("scale", [1.0, 4.5, torch.tensor([1.0, 8.0])])
def test_the_unet_is_that_of_the_reference(sd: StableDiffusion, scale: float | torch.Tensor, tmp_path: Path) -> None:
    import diffusers

    weights_loader.save(sd, tmp_path / "model")
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "model", subfolder="unet")
    assert theirs.config.time_cond_proj_dim == 16
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(2, *shape, generator=generator) for shape in ((4, 16, 16), (77, 64)))
    embed = diffusers.StableDiffusionPipeline.get_guidance_scale_embedding
    waves = embed(None, torch.as_tensor(scale).reshape(-1) - 1, embedding_dim=16)
    with torch.no_grad():
        expected = theirs(x, 500, text, timestep_cond=waves).sample
        assert torch.allclose(sd.unet(x, 500, text, guidance=scale), expected, atol=1e-5)
        assert (sd.unet(x, 500, text, guidance=scale + 2) - expected).abs().max() > 1e-3
    with pytest.raises(InputError, match="this UNet reads the guidance scale; pass it"):
        sd.unet(x, 500, text)
    with pytest.raises(InputError, match="this UNet reads no guidance scale; remove it"):
        small_pipeline().unet(x, 500, text, guidance=scale)


@pytest.mark.parametrize("scale", [1.0, 3.0, 8.0])
def test_images_are_those_of_the_reference(sd: StableDiffusion, scale: float, tmp_path: Path) -> None:
    """Each step calls the UNet once, without the negative prompt."""
    import diffusers

    weights_loader.save(sd, tmp_path / "model")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    run = {"latents": latents, "guidance_scale": scale, "num_inference_steps": 4, "output_type": "pt"}
    expected = theirs(["a cat", "a dog"], height=32, width=32, **run).images
    rows = []
    hook = sd.unet.register_forward_pre_hook(lambda module, inputs: rows.append((len(inputs[0]), len(inputs[2]))))
    got = sd(["a cat", "a dog"], **run).images
    hook.remove()
    assert set(rows) == {(2, 2)}
    assert torch.allclose((got + 1) / 2, expected, atol=1e-4)
    with pytest.warns(UserWarning, match="reads no negative prompt and no guidance_rescale"):
        assert torch.equal(sd(["a cat", "a dog"], guidance_rescale=0.7, **run).images, got)
    with pytest.warns(UserWarning, match="reads no negative prompt"):
        assert torch.equal(sd(["a cat", "a dog"], negative_prompt="blurry", **run).images, got)


def test_it_is_saved_and_loaded_in_both_layouts(sd: StableDiffusion, tmp_path: Path) -> None:
    weights_loader.save(sd, tmp_path / "folder")
    weights_loader.save(sd, tmp_path / "file.safetensors", layout="ldm")
    expected = sd("cat", seed=1, output_type="pt").images
    for name in ("folder", "file.safetensors"):
        again = weights_loader.load(tmp_path / name, tokenizer=tmp_path / "folder" / "tokenizer")
        assert again.unet.config.guidance_width == 16
        assert torch.allclose(again("cat", seed=1, output_type="pt").images, expected, atol=1e-5)


def test_a_latent_consistency_model_is_that_of_the_reference(sd: StableDiffusion, tmp_path: Path) -> None:
    """The published ones read the scale, and are sampled with LCM."""
    import diffusers

    sd.scheduler = LCM(NoiseSchedule())
    weights_loader.save(sd, tmp_path / "model")
    theirs = diffusers.LatentConsistencyModelPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    run = {"latents": latents, "guidance_scale": 8.0, "num_inference_steps": 1, "output_type": "pt"}
    expected = theirs("a cat", height=32, width=32, **run).images
    assert torch.allclose((sd("a cat", **run).images + 1) / 2, expected, atol=1e-4)
