"""Image to image, inpainting, depth and upscaling: whole runs against the reference, and what is refused."""

import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from support.small import oracle_pipeline, small_pipeline, small_tokenizer, text_like, unet_like, vae_like
from torch import Tensor

from minisd import images
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion
from minisd.schedulers import LCM, PNDM, Heun, Scheduler, UniPC

CALL: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 3.0, "output_type": "pt"}
CLOSE = 1e-4


def both(tmp_path: Path, kind: str, sampler: str = "DDIMScheduler", **unet: Any) -> tuple[StableDiffusion, Any]:
    """Ours and the reference's pipeline of a kind, with the same random weights."""
    text_to_image = oracle_pipeline(tmp_path, sd2=True, **unet)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    config = {**betas, "prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": False}
    scheduler = getattr(diffusers, sampler).from_config(config)
    parts = {**text_to_image.components, "scheduler": scheduler}
    del parts["image_encoder"]
    if kind == "StableDiffusionDepth2ImgPipeline":
        parts = {name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
        parts |= {"depth_estimator": None, "feature_extractor": None}
    if kind == "StableDiffusionUpscalePipeline":
        parts["low_res_scheduler"] = diffusers.DDPMScheduler(1000, 0.0001, 0.02, "scaled_linear")
    else:
        parts.pop("low_res_scheduler", None)
    if kind == "StableDiffusionInpaintPipeline":
        parts["requires_safety_checker"] = False
    theirs = getattr(diffusers, kind)(**parts)
    theirs.set_progress_bar_config(disable=True)
    ours = StableDiffusion(
        small_tokenizer(sd2=True),
        text_like(theirs.text_encoder),
        vae_like(theirs.vae),
        unet_like(theirs.unet),
        Scheduler.from_config({**dict(scheduler.config), "_class_name": sampler}),
    )
    return ours, theirs


def picture(height: int = 24, width: int = 32, seed: int = 0) -> PIL.Image.Image:
    rng = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return coarse.resize((width, height), PIL.Image.Resampling.BICUBIC)


def half(height: int = 24, width: int = 32) -> PIL.Image.Image:
    """A mask: the right third is to be painted anew."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[3:, -width // 3 :] = 255
    return PIL.Image.fromarray(mask)


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_alike(ours: Tensor, theirs: Tensor) -> None:
    expected = theirs * 2 - 1
    assert ours.shape == expected.shape
    assert expected.std() > 0.05
    assert (ours - expected).abs().max() < CLOSE * expected.abs().max()


SAMPLERS = ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
def test_image_to_image(tmp_path: Path, sampler: str, strength: float) -> None:
    ours, theirs = both(tmp_path, "StableDiffusionImg2ImgPipeline", sampler)
    arguments = {**CALL, "prompt": "a red cat", "negative_prompt": "blurry", "strength": strength}
    got = ours(image=picture(), generator=seeded(), **arguments).images
    assert_alike(got, theirs(image=picture(), generator=seeded(), **arguments).images)


@pytest.mark.parametrize("sampler", ["DDIMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting(tmp_path: Path, sampler: str, strength: float, channels: int) -> None:
    """By an inpainting model, and by one that knows no masks."""
    ours, theirs = both(tmp_path, "StableDiffusionInpaintPipeline", sampler, in_channels=channels)
    arguments = {**CALL, "prompt": "a red cat", "strength": strength, "mask_image": half()}
    got = ours(image=picture(), generator=seeded(), **arguments).images
    expected = theirs(image=picture(), generator=seeded(), height=24, width=32, **arguments).images
    assert_alike(got, expected)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_depth(tmp_path: Path, strength: float) -> None:
    ours, theirs = both(tmp_path, "StableDiffusionDepth2ImgPipeline", in_channels=5)
    depth = torch.rand(1, 10, 14, generator=seeded(1)) * 7 + 2
    arguments = {**CALL, "prompt": "a red cat", "strength": strength, "depth_map": depth}
    got = ours(image=picture(), generator=seeded(), **arguments).images
    assert_alike(got, theirs(image=picture(), generator=seeded(), **arguments).images)
    free = ours("a red cat", depth_map=depth, seed=1, height=24, width=32, **CALL).images  # without a picture
    assert free.shape == got.shape


@pytest.mark.parametrize("noise_level", [0, 20, 350])
def test_upscaling(tmp_path: Path, noise_level: int) -> None:
    ours, theirs = both(tmp_path, "StableDiffusionUpscalePipeline", in_channels=7, num_class_embeds=400)
    small = picture(12, 16)
    arguments = {**CALL, "prompt": "a red cat", "noise_level": noise_level}
    got = ours(image=small, generator=seeded(), **arguments).images
    assert got.shape == (1, 3, 24, 32)
    assert_alike(got, theirs(image=small, generator=seeded(), **arguments).images)


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return small_pipeline()


@pytest.mark.parametrize("scheduler", [PNDM(), Heun(), UniPC()], ids=lambda s: type(s).__name__)
def test_what_is_not_masked_stays(sd: StableDiffusion, scheduler: Scheduler) -> None:
    """Latents outside of the mask are those of the picture, at the end, whatever the sampler."""
    sd = StableDiffusion(sd.tokenizer, sd.text_encoder, sd.vae, sd.unet, scheduler)
    got = sd("a cat", image=picture(), mask_image=half(), seed=3, num_inference_steps=4, output_type="latent").images
    kept = sd.encode(images.from_pil(picture()), seeded(3))
    left = got[..., :10] - kept[..., :10]
    assert left.abs().max() < 1e-5 * kept.abs().max()
    assert (got[..., -8:] - kept[..., -8:]).abs().max() > 0.1


def test_a_picture_for_each_prompt(sd: StableDiffusion) -> None:
    pictures = [picture(seed=1), picture(seed=2)]
    call = {"strength": 0.5, "num_inference_steps": 4, "output_type": "pt"}
    batch = sd(["a cat", "a dog"], image=pictures, num_images_per_prompt=2, seed=7, **call).images
    for k, (prompt, image) in enumerate(zip(("a cat", "a cat", "a dog", "a dog"), (0, 0, 1, 1), strict=True)):
        single = sd(prompt, image=pictures[image], seed=7 + k, **call).images
        assert (batch[k] - single[0]).abs().max() < CLOSE


def test_kinds_of_pictures_are_one(sd: StableDiffusion) -> None:
    array = np.asarray(picture(), dtype=np.float32) / 255
    tensor = torch.from_numpy(2 * array - 1).permute(2, 0, 1)[None]
    call = {"strength": 0.5, "num_inference_steps": 4, "seed": 1, "output_type": "pt"}
    first, *others = (sd("a cat", image=each, **call).images for each in (picture(), array, tensor, [picture()]))
    assert all((first - other).abs().max() < CLOSE for other in others)
    resized = sd("a cat", image=picture(48, 64), height=24, width=32, **call).images
    assert resized.shape == first.shape
    cut = sd("a cat", image=picture(25, 33), **call).images  # down to whole latent cells
    assert cut.shape == first.shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_image": half()}, "without an image"),
        ({"strength": 0.5}, "give an image"),
        ({"image": picture(), "strength": 1.5}, "strength is 1.5"),
        ({"image": picture(), "strength": float("nan")}, "strength is nan"),
        ({"image": picture(), "strength": 0.0}, "leaves no step to do"),
        ({"image": picture(), "strength": 0.1}, "strength 0.1 of 4 steps leaves no step to do"),
        ({"image": "cat.png"}, "image is str, expected a PIL image"),
        ({"image": torch.zeros(1, 4, 24, 32)}, r"\(1, 4, 24, 32\)"),
        ({"image": torch.full((1, 3, 24, 32), 7.0)}, "outside of its range"),
        ({"image": torch.full((1, 3, 24, 32), float("nan"))}, "outside of its range"),
        ({"image": torch.zeros(1, 3, 24, 32), "height": 48, "width": 64}, "image is 32 x 24, expected 64 x 48"),
        ({"image": picture(2, 1)}, "at least"),
        ({"image": [picture(), picture(), picture()]}, "3 images for 1"),
        ({"image": [picture(), picture(12, 16)]}, "2 sizes"),
        ({"image": picture(), "mask_image": torch.zeros(10, 10)}, "mask_image is 10 x 10, expected 32 x 24"),
        ({"image": picture(), "mask_image": torch.zeros(3, 1, 24, 32, 1)}, "mask_image has the shape"),
        ({"depth_map": torch.zeros(24, 32)}, "model is for text; load 'sticker-depth', .* or an SD 2 depth checkpoint"),
        ({"noise_level": 3}, "upscaler"),
    ],
)  # fmt: skip
def test_refused_before_any_work(sd: StableDiffusion, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sd.denoise("a cat", num_inference_steps=4, **arguments)


@pytest.mark.parametrize("steps", [1, 3, 7, 15, 29, 50, 90, 300])
def test_the_strength_that_is_advised_is_enough(sd: StableDiffusion, steps: int) -> None:
    with pytest.raises(InputError, match="leaves no step to do") as caught:
        sd.denoise("a cat", image=picture(), strength=0.5 / steps, num_inference_steps=steps)
    advised = float(str(caught.value).rsplit(" ", 1)[1].rstrip("."))
    sd.denoise("a cat", image=picture(), strength=advised, num_inference_steps=steps)


def test_an_lcm_s_steps_are_checked_when_asked(sd: StableDiffusion) -> None:
    sd = StableDiffusion(sd.tokenizer, sd.text_encoder, sd.vae, sd.unet, LCM())
    with pytest.raises(InputError, match="50 steps"):
        sd.denoise("a cat", num_inference_steps=51)


def test_models_of_other_tasks_say_what_they_need() -> None:
    with pytest.raises(InputError, match="give depth_map"):
        small_pipeline(in_channels=5).denoise("a cat", image=picture())
    upscaler = small_pipeline(in_channels=7, class_count=10)
    with pytest.raises(InputError, match="the small image"):
        upscaler.denoise("a cat")
    for noise_level in (None, 10, -1, 2.0):  # None: 20, as the official one has
        with pytest.raises(InputError, match=r"noise_level is .* 0\.\.9"):
            upscaler.denoise("a cat", image=picture(), noise_level=noise_level)
    with pytest.raises(InputError, match="strength"):
        upscaler.denoise("a cat", image=picture(), noise_level=5, strength=0.5)
    with pytest.raises(InputError, match="remove height and width"):
        upscaler.denoise("a cat", image=picture(), noise_level=5, height=64)
    with pytest.raises(InputError, match="has no noise levels"):
        small_pipeline(in_channels=7).denoise("a cat", image=picture())
    with pytest.raises(InputError, match="6 channels, 2 beside"):
        small_pipeline(in_channels=6).denoise("a cat")


def test_a_picture_far_larger_than_those_of_training_is_warned_of() -> None:
    """It would take long and come out as many small ones; where a size is asked for, that is what counts."""
    sd = small_pipeline()
    large = PIL.Image.new("RGB", (64, 32), "red")
    with pytest.warns(UserWarning, match="image is 64 x 32, the model was trained at 32 x 32"):
        assert sd("a cat", image=large, strength=0.3).images[0].size == (64, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sd("a cat", image=PIL.Image.new("RGB", (56, 32)), strength=0.3)
        sd("a cat", image=PIL.Image.new("RGB", (64, 64)), width=32, height=32, strength=0.3)
