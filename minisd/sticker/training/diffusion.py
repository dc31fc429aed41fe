"""What the training of the UNet and of its task variants have in common: noise schedule, latents, prompts and loss."""

import torch
from torch import Tensor

from minisd.models import VAE
from minisd.schedulers import NoiseSchedule
from minisd.sticker.training.dataset import CAPTION_TOKENS
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Scene
from minisd.tokenizer import Tokenizer
from minisd.training.trainer import precision

# Zero terminal SNR: otherwise the mean of the latents, the background's colour, is visible at the last noise level.
SCHEDULE = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
EMPTY_PROMPTS = 0.1  # share of captions replaced by the empty prompt, for classifier-free guidance (Ho & Salimans 2022)
NOISIEST, NOISIEST_SHARE = 0.7, 0.4  # timesteps above 70 %, which decide the layout, get 40 % of a batch


@torch.no_grad()
def encode_scenes(vae: VAE, scenes: list[Scene], chunk: int = 64) -> Tensor:
    """Render and encode scenes: latents (N, C, h, w) of unit variance, to be used many times."""
    size, device = vae.config.sample_size, next(vae.parameters()).device
    with precision(device.type, autocast="bfloat16"):
        parts = [scenes[i : i + chunk] for i in range(0, len(scenes), chunk)]
        latents = torch.cat([vae.encode(render(part, size, device)).mean for part in parts])
    return vae.config.scaling_factor * latents.float()


def prompt_ids(tokenizer: Tokenizer, captions: list[str], dropped: Tensor, progress: float) -> Tensor:
    """Token ids of the captions, or of the empty prompt for those dropped, (B,).

    The padding, which attention sees, has its full length only in the last 30 % of the training.
    """
    ids = tokenizer(["" if drop else text for drop, text in zip(dropped.tolist(), captions, strict=True)])
    return ids[:, :CAPTION_TOKENS] if progress < 0.7 else ids


def sample_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """One timestep from each of `count` intervals: less variance than independent draws.  -> (count,), int64."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    low, high = NOISIEST * u / (1 - NOISIEST_SHARE), 1 - (1 - NOISIEST) * (1 - u) / NOISIEST_SHARE
    return (torch.where(u < 1 - NOISIEST_SHARE, low, high) * SCHEDULE.num_train_timesteps).long()


def expected_loss(t: Tensor) -> Tensor:
    """About the loss of a half-trained model at timesteps t (B,); its inverse is a good weight (Karras et al. 2024).

    Without weights, three quarters of the loss come from the noisiest third, where the layout cannot be predicted, and
    the middle, which decides the shapes, contributes little. The numbers were measured on this model after 2,000 steps.
    """
    signal = SCHEDULE.alpha_bars[t].float()
    return 0.035 + 0.32 * (1 - signal) ** 16 + 0.1 * signal**32


def velocity_loss(prediction: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The weighted mean square error of predicted velocities (B, C, h, w).  -> scalar."""
    each = (prediction.float() - SCHEDULE.velocity(x0, noise, t)).square().mean((1, 2, 3))
    return (each / expected_loss(t)).mean()
