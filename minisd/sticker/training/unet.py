"""Train the UNet on captioned latents of Sticker World, the text encoder frozen (Rombach et al. 2022, eq. 3).

A text encoder that goes on learning to read meanwhile leaves a UNet behind that no longer understands it.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minisd.configs import CLIPTextConfig, UNetConfig
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.schedulers import DDIM, NoiseSchedule
from minisd.sticker.training.dataset import SHORT, lessons
from minisd.sticker.training.grounding import grounding_loss, thing_masks, watched, word_masks
from minisd.sticker.world.captions import describe, mention, noun_places
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Scene
from minisd.tokenizer import Tokenizer
from minisd.training.trainer import Loss, Recipe, precision, train

UNET_CONFIG = UNetConfig(
    channels=(32, 64, 128),
    depths=(0, 1, 1),
    heads=(2, 4, 8),
    layers_per_block=1,
    context_width=128,
    sample_size=16,
    norm_groups=8,
    only_cross_attention=(False, False, False),
)
# Zero terminal SNR: otherwise the background's colour, the mean of the latents, shows through the last noise level.
SCHEDULE = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
SCHEDULER = DDIM(SCHEDULE, timestep_spacing="trailing", steps_offset=0, set_alpha_to_one=True)
GROUNDING = 0.1  # weight of where attention looks
NO_CAPTION = 0.1  # share of empty captions: what classifier-free guidance needs (Ho & Salimans 2022)
WRONG_GRADIENT = 0.1  # torch 2.13 compiled for the CPU in bfloat16 loses those of the text attention altogether
NOISIEST, ITS_SHARE = 0.7, 0.4  # timesteps above 70 %, which decide what goes where, get 40 % of a batch


def text_config(vocab_size: int) -> CLIPTextConfig:
    """The sizes of the text encoder."""
    return CLIPTextConfig(vocab_size, width=UNET_CONFIG.context_width, layers=4, heads=4, mlp_width=4 * 128)


def new_unet(seed: int = 0) -> UNet:
    """A fresh UNet, whose first prediction is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet(UNET_CONFIG)
    nn.init.zeros_(unet.conv_out.weight)
    return unet


@torch.no_grad()
def latent_pool(vae: VAE, scenes: list[Scene], chunk: int = 64) -> Tensor:
    """Scenes -> latents (N, C, h, w), scaled to unit variance: encoded once, seen many times."""
    size, device = vae.config.sample_size, next(vae.parameters()).device
    with torch.autocast(device.type, torch.bfloat16):
        parts = [scenes[i : i + chunk] for i in range(0, len(scenes), chunk)]
        latents = torch.cat([vae.encode(render(part, size, device)).mean for part in parts])
    return vae.config.scaling_factor * latents.float()


def sample_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """One timestep of each of `count` stretches: less variance than drawing them independently.  -> (count,), int64."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    low, high = NOISIEST * u / (1 - ITS_SHARE), 1 - (1 - NOISIEST) * (1 - u) / ITS_SHARE
    return (torch.where(u < 1 - ITS_SHARE, low, high) * SCHEDULE.num_train_timesteps).long()


def expected_loss(t: Tensor) -> Tensor:
    """About what a half-trained model's loss is at timesteps t (B,): its inverse is a good weight (Karras et al. 2024).

    Unweighted, three quarters of the loss come from the noisiest third, where nobody can know what goes where, and the
    middle, where shapes are decided, is hardly heard. The numbers were read from this model after 2,000 steps.
    """
    signal = SCHEDULE.alpha_bars[t].float()
    return 0.035 + 0.32 * (1 - signal) ** 16 + 0.1 * signal**32


def _gradients(unet: UNet, loss: Loss, recipe: Recipe) -> Tensor:
    """The gradients of one batch in one row, the same batch each time; as if the last layer were not zero any more."""
    unet.zero_grad(set_to_none=True)
    last = unet.conv_out.weight.detach().clone()
    nn.init.normal_(unet.conv_out.weight, std=0.1, generator=torch.Generator(last.device).manual_seed(0))
    with precision(next(unet.parameters()).device.type, recipe.bfloat16):
        value = loss(torch.Generator().manual_seed(0), 0.0)
    value.backward()
    gradients = torch.cat([p.grad.flatten() for p in unet.parameters() if p.grad is not None])
    unet.zero_grad(set_to_none=True)
    unet.conv_out.weight.data.copy_(last)
    return gradients


def train_unet(
    vae: VAE,
    tokenizer: Tokenizer,
    text_encoder: CLIPTextTransformer,
    unet: UNet,
    minutes: float,
    path: Path,
    report: Callable[[str], None],
    pool: int = 24_000,
    batch: int = 24,
    steps: int | None = None,
    device: str = "cpu",
    compiled: bool = False,
    show: Callable[[UNet], None] | None = None,
) -> UNet:
    """Train a UNet in place, or continue the run at `path`, for `minutes` or `steps` in all.

    Every process draws a pool of scenes of its own. `show` gets the moving average at each save, as the caller at the
    end.
    """
    unet.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    vae, text_encoder = vae.to(device), text_encoder.to(device)
    predict: Callable[..., Tensor] = unet
    scenes = lessons(pool, seed=1 + (dist.get_rank() if dist.is_initialized() else 0))
    latents = latent_pool(vae, scenes)
    things = thing_masks(scenes, vae.config.sample_size, latents.shape[-1] // 2).to(device)
    report(f"{pool} scenes encoded, latents mean {latents.mean():.3f} deviation {latents.std():.3f}")

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        rows = torch.randint(pool, (batch,), generator=generator)
        x0 = latents[rows.to(device)]
        said = [mention(scenes[row], generator) for row in rows.tolist()]
        captions = [describe(wanted, generator) for wanted in said]
        dropped = torch.rand(batch, generator=generator) < NO_CAPTION
        ids = tokenizer(["" if drop else text for drop, text in zip(dropped.tolist(), captions, strict=True)])
        ids = ids[:, :SHORT] if progress < 0.7 else ids  # a prompt comes with its padding, which attention sees
        words = word_masks([noun_places(*pair) for pair in zip(captions, said, strict=True)], ids.shape[1])
        words = (words * ~dropped[:, None, None]).to(device)
        with torch.no_grad():
            text = text_encoder(ids.to(device))
        t = sample_timesteps(batch, generator).to(device)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        with watched(unet) as attention:
            prediction = predict(SCHEDULE.add_noise(x0, noise, t), t, text)
        each = (prediction.float() - SCHEDULE.velocity(x0, noise, t)).square().mean((1, 2, 3))
        clarity = SCHEDULE.alpha_bars.to(device)[t].float().sqrt()
        grounding = grounding_loss(attention, things[rows.to(device)], words, clarity)
        return (each / expected_loss(t)).mean() + GROUNDING * grounding

    recipe = Recipe(minutes, steps, learning_rate=1e-3, warmup_steps=100, bfloat16=True)
    if compiled:
        expected = _gradients(unet, loss, recipe)
        predict = torch.compile(unet)
        error = (_gradients(unet, loss, recipe) - expected).norm() / expected.norm()
        if not error < WRONG_GRADIENT:
            report(f"the compiled UNet's gradients are wrong by {error:.0%}, so it is trained uncompiled")
            predict = unet
    return train(unet, loss, recipe, path, report, show)
