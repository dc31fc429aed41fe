"""Grow the autoencoder from 64 to 128 pixels, the official factor of 8; its latents stay those that the UNet knows.

The encoder gets a new outer level that begins by halving the image, the decoder one that begins by interpolating it.
From exact latents alone the decoder learns to draw the contact of two objects as a gradient as soon as the latents are
a prediction of the UNet, which is never exact. So half of its latents are such predictions, with a loss that does not
reward the mean of what is possible.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from minisd.configs import VAEConfig
from minisd.models import VAE
from minisd.models.layers import ResBlock
from minisd.pipeline import StableDiffusion
from minisd.pipeline.guidance import combine
from minisd.sticker.training.autoencoder import VAE_CONFIG, object_weights, reconstruction_loss
from minisd.sticker.training.dataset import write_training_caption
from minisd.sticker.training.diffusion import SCHEDULE
from minisd.sticker.world.captions import select_content
from minisd.sticker.world.render import render
from minisd.sticker.world.sampling import sample_scene
from minisd.sticker.world.scene import Scene
from minisd.training.trainer import Recipe, TrainingRun, train

SCENE_PROBABILITIES = {"two": 0.5, "styled": 0.3, "overlapping": 0.8}  # contacts of two objects are most difficult
MAX_NOISE = 0.2  # deviation of the noise on exact latents, whose own is 1
TIMESTEPS = (20, 400)  # range of the noise that the UNet's predictions remove
ENCODED = 4  # a step encodes one image of so many: the encoder has little to learn
LATENT_WEIGHT = 2.0  # of the distance between its latents and the known ones
SMALL_ERROR = 0.3  # distance in RGB of [-1, 1]; `decisive_loss` hardly distinguishes errors far beyond it
LARGE_ERRORS = 0.2  # weight of the absolute difference in it, which does


def grown_config(config: VAEConfig) -> VAEConfig:
    """The sizes with one more level, for images of twice the size."""
    channels = (config.channels[0], *config.channels)
    return replace(config, channels=channels, sample_size=2 * config.sample_size)


def grown_vae(start: VAE) -> VAE:
    """The larger autoencoder, which begins with about the latents and images of `start`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = VAE(grown_config(start.config))
    vae.to_moments.load_state_dict(start.to_moments.state_dict())
    vae.from_latents.load_state_dict(start.from_latents.state_dict())
    for grown, known in ((vae.encoder, start.encoder), (vae.decoder, start.decoder)):
        for part in ("conv_in", "middle", "norm_out", "conv_out"):
            getattr(grown, part).load_state_dict(getattr(known, part).state_dict())
    for level, known_level in zip(vae.encoder.down[1:], start.encoder.down, strict=True):
        level.load_state_dict(known_level.state_dict())
    for level, known_level in zip(vae.decoder.up, start.decoder.up, strict=False):
        level.load_state_dict(level.state_dict() | known_level.state_dict())
    outer: Any = vae.encoder.down[0]
    below: Any = vae.decoder.up[-2]
    for block in (*outer.resnets, *vae.decoder.up[-1].resnets):  # type: ignore[misc]
        _silence(block)
    _halve(vae.encoder.conv_in, outer.resample.conv, start.encoder.conv_in)
    _interpolate(below.resample.conv)
    return vae


@torch.no_grad()
def _silence(block: ResBlock) -> None:
    """Let a residual block change nothing."""
    for parameter in block.conv2.parameters():
        nn.init.zeros_(parameter)


@torch.no_grad()
def _interpolate(conv: nn.Conv2d) -> None:
    """Let a convolution after nearest-neighbour enlargement make it bilinear."""
    row = torch.tensor([0.25, 0.5, 0.25])
    nn.init.dirac_(conv.weight)
    conv.weight.copy_(conv.weight[:, :, 1:2, 1:2] * torch.outer(row, row))
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)


@torch.no_grad()
def _halve(conv_in: nn.Conv2d, down: nn.Conv2d, known: nn.Conv2d) -> None:
    """Let two convolutions, the second with stride 2, do about what `known` does on the image of half the size.

    The first one keeps each colour twice along each axis: the pixel before, and the mean of the pixel and the next one.
    The second one reads the first of these in place of the mean of the two pixels before, of which it sees only one.
    """
    before, mean = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.5, 0.5])
    taps = [(0, before), (0, mean), (2, mean)]  # offset in `down`, and row in `conv_in`, of each row of `known`
    rows = [before, mean]
    assert conv_in.bias is not None
    assert down.bias is not None
    assert known.bias is not None
    nn.init.zeros_(conv_in.bias)
    down.weight.zero_()
    for i, vertical in enumerate(rows):
        for j, horizontal in enumerate(rows):
            for colour in range(3):
                channel = (2 * i + j) * 3 + colour
                conv_in.weight[channel] = 0
                conv_in.weight[channel, colour] = torch.outer(vertical, horizontal)
    for y, (down_y, vertical) in enumerate(taps):
        for x, (down_x, horizontal) in enumerate(taps):
            first = (2 * int(vertical is mean) + int(horizontal is mean)) * 3
            down.weight[:, first : first + 3, down_y, down_x] += known.weight[:, :, y, x]
    down.bias.copy_(known.bias)


def decisive_loss(pixels: Tensor, target: Tensor) -> Tensor:
    """A loss whose best answer to several possible targets is one of them, not their mean.  (B, 3, H, W) twice -> ().

    Squared error over squared error plus a constant (Geman and McClure 1987), with a larger weight on objects.
    """
    square = (pixels - target).square().sum(1, keepdim=True)
    error = square / (square + SMALL_ERROR**2) + LARGE_ERRORS * (pixels - target).abs().mean(1, keepdim=True)
    return (object_weights(target) * error).mean()


@torch.no_grad()
def predicted_latents(
    sd: StableDiffusion,
    latents: Tensor,
    scenes: list[Scene],
    generator: torch.Generator,
    timesteps: tuple[int, int] = TIMESTEPS,
) -> Tensor:
    """Latents of scenes (B, C, h, w), noised to random timesteps -> what the UNet takes for them, with guidance."""
    captions = [write_training_caption(select_content(scene, generator), generator) for scene in scenes]
    texts = sd.text_encoder(sd.tokenizer([""] * len(captions) + captions))
    t = torch.randint(*timesteps, (len(scenes),), generator=generator)
    xt = SCHEDULE.add_noise(latents, torch.randn(latents.shape, generator=generator), t)
    uncond, cond = sd.unet(torch.cat([xt, xt]), torch.cat([t, t]), texts).chunk(2)
    v = combine(uncond, cond, sd.defaults.guidance_scale)
    return SCHEDULE.velocity(v, xt, t)  # x0 = sqrt(alpha_bar) xt - sqrt(1 - alpha_bar) v: the same mixture as that of v


def train_grown_vae(
    sd: StableDiffusion, run: TrainingRun, batch: int = 8, show: Callable[[VAE], None] | None = None
) -> VAE:
    """Train the larger autoencoder for a model, whose latents are kept, or train it further if the model has it.

    Returns the moving average.
    """
    known = deepcopy(sd.vae).requires_grad_(False)
    vae = deepcopy(sd.vae) if known.config.sample_size > VAE_CONFIG.sample_size else grown_vae(sd.vae)

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        scenes = [sample_scene(generator, **SCENE_PROBABILITIES) for _ in range(batch)]
        target = render(scenes, vae.config.sample_size)
        source = target if known.config == vae.config else render(scenes, known.config.sample_size)
        exact, half = known.scaled(known.encode(source).mean), batch // 2
        noise = torch.randn(exact[half:].shape, generator=generator)
        amount = MAX_NOISE * torch.rand((batch - half, 1, 1, 1), generator=generator)
        predicted = predicted_latents(sd, exact[:half], scenes[:half], generator)
        pixels = vae.decode(vae.raw(torch.cat([predicted, exact[half:] + amount * noise])))
        few = slice(0, batch, ENCODED)
        moved = (vae.scaled(vae.encode(target[few]).mean) - exact[few]).abs().mean()
        decoded = 2 * decisive_loss(pixels, target) + reconstruction_loss(pixels[half:], target[half:])
        return decoded / 2 + LATENT_WEIGHT * moved

    recipe = Recipe(learning_rate=1e-3, warmup_steps=50, decay_fraction=0.5, weight_decay=0.0, autocast="bfloat16")
    run = run.of(batch=batch, scenes=SCENE_PROBABILITIES)
    return train(vae, loss, recipe, run, show)
