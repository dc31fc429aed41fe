"""The whole of Stable Diffusion in one function: prompt, ids, text states, denoising loop, pixels.

With the steps and the guidance scale of `sd.defaults` it draws the same image as `sd(prompt, seed=seed)`, bit for bit.
It has no options and no checks.
"""

import torch
from torch import Tensor

from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.schedulers import Scheduler
from minisd.tokenizer import Tokenizer


@torch.no_grad()
def text_to_image(
    tokenizer: Tokenizer,
    text_encoder: CLIPTextTransformer,
    unet: UNet,
    vae: VAE,
    scheduler: Scheduler,
    prompt: str,
    seed: int,
    steps: int = 50,
    guidance_scale: float = 7.5,
) -> Tensor:
    """A prompt -> pixels (1, 3, H, W) in [-1, 1], for models of SD 1.x and 2.x."""
    ids = tokenizer(["", prompt])  # (2, 77): the negative prompt is empty
    text = text_encoder(ids)  # (2, 77, width)

    generator = torch.Generator().manual_seed(seed)
    shape = (1, vae.config.latent_channels, *unet.config.cells)
    grid = scheduler.grid(steps)
    latents, memory = torch.randn(shape, generator=generator) * grid.init_noise_sigma, None
    for i, t in enumerate(grid.timesteps):
        scaled = scheduler.scale_input(grid, i, latents)
        uncond, cond = unet(scaled, t, text).chunk(2)  # one row of latents, two rows of text
        prediction = uncond + guidance_scale * (cond - uncond)
        latents, _, memory = scheduler.step(
            grid, i, latents, prediction, memory, lambda: torch.randn(shape, generator=generator)
        )

    return vae.decode(vae.raw(latents)).clamp(-1, 1)
