"""What every fine-tuning has in common: encoded images and captions, and the loss of predicting their noise."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from minisd._internal.large_tensors import gathered
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion
from minisd.pipeline.conditioning import Condition, make_condition
from minisd.pipeline.prompts import PromptBatch
from minisd.pipeline.sdxl_sizes import MicroConditioning
from minisd.schedulers import NoiseSchedule

Predict = Callable[..., Tensor]  # like UNet.forward: x (B, C, h, w), timesteps (B,), text, pooled=... -> (B, C, h, w)
ENCODED_AT_ONCE = 8
CAPTIONS_AT_ONCE = 32


def check_model(sd: StableDiffusion, may_read_scale: bool = False) -> None:
    """Refuse UNets that read more than text, and weights that are not float32. Raises InputError."""
    if sd.task != "text":
        raise InputError(f"a model for {sd.task} cannot be fine-tuned; use a text-to-image model.")
    if sd.unet.config.guidance_width is not None and not may_read_scale:
        raise InputError("a model that has learned guidance cannot be fine-tuned; use the model that was its teacher.")
    if sd.dtype != torch.float32:
        name = str(sd.dtype).removeprefix("torch.")
        raise InputError(f"the weights of the model are {name}, expected float32; load it with dtype=torch.float32.")


def training_side(sd: StableDiffusion) -> int:
    """The side of the square images that a model is trained with, in pixels: that of the UNet, not of the VAE."""
    return min(sd.unet.config.cells) * sd.vae.config.downscale


@torch.no_grad()
def encode_images(sd: StableDiffusion, pixels: Tensor) -> Tensor:
    """Pixels (N, 3, H, W) -> scaled latents (N, C, h, w), the means of the posterior."""
    weight = next(sd.vae.parameters())
    parts = (sd.vae.scaled(sd.vae.encode(each.to(weight)).mean.float()) for each in pixels.split(ENCODED_AT_ONCE))
    return gathered(parts, len(pixels))


def encode_captions(sd: StableDiffusion, captions: Sequence[str], size: tuple[int, int]) -> Condition:
    """The condition for each caption, of images of (height, width) pixels. Gradients reach the text encoders."""
    return joined(list(_conditions(sd, captions, size)))


@torch.no_grad()
def encode_captions_once(sd: StableDiffusion, captions: Sequence[str], size: tuple[int, int]) -> Condition:
    """`encode_captions` without gradients, for many captions."""
    pooled = []

    def texts() -> Iterator[Tensor]:
        for each in _conditions(sd, captions, size):
            if each.pooled_and_sizes is not None:
                pooled.append(each.pooled_and_sizes)
            yield each.text

    text = gathered(texts(), len(captions))
    return Condition(text, torch.cat(pooled) if pooled else None)


def _conditions(sd: StableDiffusion, captions: Sequence[str], size: tuple[int, int]) -> Iterator[Condition]:
    micro = MicroConditioning().resolved_for(*size)
    for begin in range(0, len(captions), CAPTIONS_AT_ONCE):
        some = list(captions[begin : begin + CAPTIONS_AT_ONCE])
        yield make_condition(sd.text_parts, sd.unet.config, None, PromptBatch(some, some), micro, zero_empty=False)


def joined(conditions: Sequence[Condition]) -> Condition:
    """The rows of all conditions in one."""
    pooled = [each.pooled_and_sizes for each in conditions if each.pooled_and_sizes is not None]
    return Condition(torch.cat([each.text for each in conditions]), torch.cat(pooled) if pooled else None)


def denoising_losses(
    schedule: NoiseSchedule,
    predict: Predict,
    x0: Tensor,
    condition: Condition,
    generator: torch.Generator,
    min_snr: float | None = None,
) -> Tensor:
    """The square error for each image, with uniformly drawn timesteps (Ho et al. 2020, eq. 14).  -> (B,).

    x0 (B, C, h, w). min_snr: the limit of the weight of little-noised images, in place of equal weights (Hang et al.
    2023).
    """
    t = torch.randint(schedule.num_train_timesteps, (len(x0),), generator=generator)
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    x = schedule.add_noise(x0, noise, t)
    prediction = predict(x, t.to(x0.device), condition.text, pooled=condition.pooled_and_sizes)
    losses = mse_loss(prediction.float(), schedule.target(x0, noise, t), reduction="none").mean((1, 2, 3))
    return losses if min_snr is None else losses * min_snr_weight(schedule, t, min_snr).to(losses)


def min_snr_weight(schedule: NoiseSchedule, t: Tensor, limit: float) -> Tensor:
    """min(SNR, limit), the weight of an error of x0, as a weight of the error that is measured.  t (B,) -> (B,).

    An error of epsilon is SNR times one of x0, an error of v SNR + 1 times (Hang et al. 2023, section 3.4).
    """
    signal = schedule.alpha_bars[t]
    snr = signal / (1 - signal)
    weight = snr.clamp(max=limit)
    kind = schedule.prediction_type
    return weight if kind == "sample" else weight / (snr + 1 if kind == "v_prediction" else snr)


def freeze(*networks: nn.Module) -> None:
    """Exclude networks from training."""
    for network in networks:
        network.requires_grad_(False)
