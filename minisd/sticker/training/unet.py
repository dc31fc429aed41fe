"""Train the UNet on captioned latents of Sticker World, with a frozen text encoder (Rombach et al. 2022, eq. 3).

The text encoder must stay frozen: if its states kept changing, the UNet would no longer understand them.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minisd.configs import UNetConfig
from minisd.interpret.attention_maps import attention_weights
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.schedulers import DDIM
from minisd.sticker.training.dataset import scenes_fingerprint, training_scenes, write_training_caption
from minisd.sticker.training.diffusion import (
    EMPTY_PROMPTS,
    SCHEDULE,
    encode_scenes,
    prompt_ids,
    sample_timesteps,
    velocity_loss,
)
from minisd.sticker.training.grounding import grounding_loss, object_masks, token_masks
from minisd.sticker.training.text_encoder import TEXT_WIDTH
from minisd.sticker.world.captions import noun_indices, select_content
from minisd.tokenizer import Tokenizer
from minisd.training.trainer import Recipe, TrainingLoss, TrainingRun, precision, train

UNET_CONFIG = UNetConfig(
    channels=(32, 64, 128),
    depths=(0, 1, 1),
    heads=(2, 4, 8),
    layers_per_block=1,
    context_width=TEXT_WIDTH,
    sample_size=16,
    norm_groups=8,
    only_cross_attention=(False, False, False),
)
SCHEDULER = DDIM(SCHEDULE, timestep_spacing="trailing", steps_offset=0, set_alpha_to_one=True)
GROUNDING_WEIGHT = 0.1
LEARNING_RATE, FURTHER_LEARNING_RATE = 1e-3, 5e-4  # of a new UNet, of one that is trained already
MAX_GRADIENT_ERROR = 0.1  # torch 2.13, compiled for the CPU in bfloat16, loses the gradients of the text attention


def new_unet(seed: int = 0) -> UNet:
    """An untrained UNet, whose first prediction is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet(UNET_CONFIG)
    nn.init.zeros_(unet.conv_out.weight)
    return unet


def train_unet(
    vae: VAE,
    tokenizer: Tokenizer,
    text_encoder: CLIPTextTransformer,
    unet: UNet,
    run: TrainingRun,
    pool: int = 24_000,
    batch: int = 24,
    device: str = "cpu",
    compiled: bool = False,
    show: Callable[[UNet], None] | None = None,
    grounding: float = GROUNDING_WEIGHT,
    learning_rate: float = LEARNING_RATE,
) -> UNet:
    """Train a UNet in place.

    Every process draws its own `pool` of scenes. grounding: the weight of the loss on the attention. Returns the moving
    average, which `show` also gets at each save.
    """
    run = run.of(pool=pool, batch=batch, scenes=scenes_fingerprint())
    run = run if grounding == GROUNDING_WEIGHT else run.of(grounding=grounding)
    run.check()
    unet.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    vae, text_encoder = vae.to(device), text_encoder.to(device)
    predict: Callable[..., Tensor] = unet
    scenes = training_scenes(pool, seed=1 + (dist.get_rank() if dist.is_initialized() else 0))
    latents = encode_scenes(vae, scenes)
    objects = object_masks(scenes, vae.config.sample_size, latents.shape[-1] // 2).to(device)
    run.report(f"{pool} scenes encoded; the latents have mean {latents.mean():.3f} and deviation {latents.std():.3f}")

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        rows = torch.randint(pool, (batch,), generator=generator)
        x0 = latents[rows.to(device)]
        contents = [select_content(scenes[row], generator) for row in rows.tolist()]
        captions = [write_training_caption(content, generator) for content in contents]
        dropped = torch.rand(batch, generator=generator) < EMPTY_PROMPTS
        ids = prompt_ids(tokenizer, captions, dropped, progress)
        tokens = token_masks([noun_indices(*pair) for pair in zip(captions, contents, strict=True)], ids.shape[1])
        tokens = (tokens * ~dropped[:, None, None]).to(device)
        with torch.no_grad():
            text = text_encoder(ids.to(device))
        t = sample_timesteps(batch, generator).to(device)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        xt = SCHEDULE.add_noise(x0, noise, t)
        if grounding == 0:
            return velocity_loss(predict(xt, t, text), x0, noise, t)
        attention: list[Tensor] = []
        with attention_weights(unet, lambda level, part, weights: attention.append(weights)):
            prediction = predict(xt, t, text)
        visibility = SCHEDULE.alpha_bars.to(device)[t].float().sqrt()
        missed = grounding_loss(attention, objects[rows.to(device)], tokens, visibility)
        return velocity_loss(prediction, x0, noise, t) + grounding * missed

    recipe = Recipe(learning_rate=learning_rate, warmup_steps=100, autocast="bfloat16")
    if compiled:
        expected = _first_gradients(unet, loss, recipe)
        predict = torch.compile(unet)
        error = (_first_gradients(unet, loss, recipe) - expected).norm() / expected.norm()
        if not error < MAX_GRADIENT_ERROR:
            run.report(f"the compiled UNet's gradients are wrong by {error:.0%}, so the UNet is trained uncompiled")
            predict = unet
    return train(unet, loss, recipe, run, show)


def _first_gradients(unet: UNet, loss: TrainingLoss, recipe: Recipe) -> Tensor:
    """All gradients of a fixed batch in one vector, with random weights in the last layer, which is zero at first."""
    unet.zero_grad(set_to_none=True)
    last = unet.conv_out.weight.detach().clone()
    nn.init.normal_(unet.conv_out.weight, std=0.1, generator=torch.Generator(last.device).manual_seed(0))
    with precision(next(unet.parameters()).device.type, recipe.autocast):
        value = loss(torch.Generator().manual_seed(0), 0.0)
    value.backward()
    gradients = torch.cat([p.grad.flatten() for p in unet.parameters() if p.grad is not None])
    unet.zero_grad(set_to_none=True)
    unet.conv_out.weight.data.copy_(last)
    return gradients
