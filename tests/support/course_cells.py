"""Helpers that the courses define in their notebooks, rewritten here, and comparisons of two runs of a cell."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
FULL = {"torch_dtype": torch.float32}  # current diffusers keeps the float16 of the file in some parts


def parts(lib: Any, model: str) -> SimpleNamespace:
    """The components of the course, loaded one by one, and its sampler."""
    return SimpleNamespace(
        lib=lib,
        tokenizer=lib.CLIPTokenizer.from_pretrained(model, subfolder="tokenizer"),
        text_encoder=lib.CLIPTextModel.from_pretrained(model, subfolder="text_encoder", **FULL).to("cpu"),
        vae=lib.AutoencoderKL.from_pretrained(model, subfolder="vae", **FULL).to("cpu"),
        unet=lib.UNet2DConditionModel.from_pretrained(model, subfolder="unet", **FULL).to("cpu"),
        scheduler=lib.LMSDiscreteScheduler(**SCHEDULE),
    )


def encode_texts(p: SimpleNamespace, prompts: list[str], maxlen: int | None = None) -> torch.Tensor:
    if maxlen is None:
        maxlen = p.tokenizer.model_max_length
    tokens = p.tokenizer(prompts, padding="max_length", max_length=maxlen, truncation=True, return_tensors="pt")
    return p.text_encoder(tokens.input_ids.to("cpu"))[0]


def guided_loop(p: SimpleNamespace, context: torch.Tensor, latents: torch.Tensor, g: float, start: int = 0) -> Any:
    """The loop of the courses from step `start` on, with guidance as a batch of two; returns the last latents."""
    for i, t in enumerate(p.scheduler.timesteps):
        if i < start:
            continue
        twice = p.scheduler.scale_model_input(torch.cat([latents] * 2), t)
        with torch.no_grad():
            u, c = p.unet(twice, t, encoder_hidden_states=context).sample.chunk(2)
        latents = p.scheduler.step(u + g * (c - u), t, latents).prev_sample
    return latents


def to_pil(p: SimpleNamespace, latents: torch.Tensor) -> list[Image.Image]:
    with torch.no_grad():
        image = p.vae.decode(1 / 0.18215 * latents).sample
    array = (image / 2 + 0.5).clamp(0, 1).detach().cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(each) for each in (array * 255).round().astype("uint8")]


def picture(size: int = 64) -> Image.Image:
    """An input image: a red disc on a blue gradient."""
    y, x = np.mgrid[:size, :size] / size
    disc = (x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.05
    rgb = np.stack([np.where(disc, 0.9, 0.2), np.where(disc, 0.1, 0.3 + y / 2), np.where(disc, 0.1, 0.4 + x / 2)], -1)
    return Image.fromarray((rgb * 255).astype(np.uint8))


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert one.shape == other.shape
    assert torch.isfinite(other).all()
    assert (one - other).abs().max() <= tolerance * max(other.abs().max(), 1)


def alike(ours: list[Image.Image], theirs: list[Image.Image]) -> None:
    """Equal up to rounding to 8 bits."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        a, b = (np.asarray(each, dtype=int) for each in (one, other))
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= 1
        assert b.std() > 5  # not blank
