"""Imagic: change what an image shows by a prompt, and keep the rest of it (Kawar et al. 2022).

First the text states are optimised: they begin as those of the prompt, and learn to describe the image to the model as
it is. Then the UNet is tuned, until it draws exactly this image from them. At last both states are mixed: with eta = 0
the image comes back, with larger eta it follows the prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from minisd._internal import validation
from minisd.adapters import Lora, LowRank, LowRankChanges
from minisd.adapters.lora import by_layer
from minisd.errors import InputError
from minisd.models import UNet
from minisd.pipeline import Output, StableDiffusion
from minisd.pipeline.conditioning import Condition
from minisd.training.checkpointing import gradient_checkpointing
from minisd.training.denoising import check_model, denoising_losses, encode_images, freeze
from minisd.training.fine_tuning import is_small
from minisd.training.lora import attention_weight_names
from minisd.training.run_files import fingerprint
from minisd.training.trainer import Recipe, TrainingBudget, TrainingRun, train


@dataclass(frozen=True)
class Settings:
    """Steps and learning rates of both stages; the rank of the UNet's low-rank change; noises drawn at each step.

    all_layers: change all linear layers and convolutions of the UNet, not only its attention: the image is kept better,
    and every changed weight is computed anew, which needs the memory of a second UNet and of its gradients.
    gradient_checkpointing: compute activations twice, which needs less memory.
    """

    state_steps: int = 500
    state_rate: float = 1e-3
    unet_steps: int = 1000
    unet_rate: float = 1e-4
    rank: int = 8
    all_layers: bool = False
    batch: int = 1
    seed: int = 0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name, most in (("state_steps", 10**6), ("unet_steps", 10**6), ("rank", 1024), ("batch", 1024)):
            object.__setattr__(self, name, validation.whole_number(getattr(self, name), name, 1, most))
        for name in ("state_rate", "unet_rate"):
            object.__setattr__(self, name, validation.real_number(getattr(self, name), name, 1e-12, 1000))
        object.__setattr__(self, "seed", validation.seed(self.seed))


SMALL = Settings(  # of the embedded model
    state_steps=100, state_rate=1e-2, unet_steps=200, unet_rate=2e-3, rank=16, all_layers=True, batch=8
)


class Edit(NamedTuple):
    """What the two stages of training give, for one image and one prompt.

    prompt, optimised: text states (1, L, context_width). changes: of the UNet's weights, by name.
    """

    prompt: Tensor
    optimised: Tensor
    changes: dict[str, LowRank]

    def states(self, eta: float) -> Tensor:
        """The mix eta * prompt + (1 - eta) * optimised."""
        return torch.lerp(self.optimised, self.prompt, validation.real_number(eta, "eta", -10, 10))


def default_settings(sd: StableDiffusion) -> Settings:
    """Those of Imagic on Stable Diffusion, with a LoRA in place of the whole UNet, or of the embedded model."""
    return SMALL if is_small(sd) else Settings()


def train_edit(
    sd: StableDiffusion,
    pixels: Tensor,
    prompt: str,
    folder: Path,
    settings: Settings | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Edit:
    """Train both stages, as `states.pt` and `unet.pt` in the folder, continued if they exist; the weights of `sd` stay.

    pixels: (1, 3, H, W) in [-1, 1]. Raises InputError for models other than text-to-image SD 1.x and 2.x, and for more
    than one image; what `train` raises for the runs' files.
    """
    check_model(sd)
    if sd.is_xl:
        raise InputError("SDXL cannot be used for Imagic; use a text-to-image model of SD 1.x or 2.x.")
    if pixels.ndim != 4 or len(pixels) != 1:
        raise InputError(f"the image has the shape {tuple(pixels.shape)}, expected (1, 3, height, width).")
    settings = default_settings(sd) if settings is None else settings
    about = {
        "prompt": prompt,
        "image": fingerprint(pixels),
        "batch": settings.batch,
        "start model": fingerprint(sd.unet, sd.vae, sd.text_encoder),
    }
    layers = {"layers": "all"} if settings.all_layers else {}  # no entry otherwise, so that older runs continue
    runs = [
        TrainingRun(folder / f"{name}.pt", TrainingBudget(0, steps), report, about={**about, **own})
        for name, steps, own in (
            ("states", settings.state_steps, {}),
            ("unet", settings.unet_steps, {"rank": settings.rank} | layers),
        )
    ]
    for run in runs:
        run.check()
    freeze(sd.unet, sd.vae, sd.text_encoder)
    target = sd.encode_prompt([prompt]).float()
    latents = encode_images(sd, pixels).expand(settings.batch, -1, -1, -1)
    optimised = _optimise_states(sd, latents, target, runs[0], settings)
    tuning = runs[1].of(states=fingerprint(optimised))
    return Edit(target, optimised, _tune_unet(sd, latents, optimised, tuning, settings))


def _optimise_states(
    sd: StableDiffusion, latents: Tensor, target: Tensor, run: TrainingRun, settings: Settings
) -> Tensor:
    own = nn.ParameterList([target.clone()])

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        condition = Condition(own[0].expand(len(latents), -1, -1))
        with gradient_checkpointing(sd.unet, settings.gradient_checkpointing):
            return denoising_losses(sd.scheduler.schedule, sd.unet, latents, condition, generator).mean()

    return train(own, loss, _recipe(settings.state_rate, settings.seed), run)[0].detach()


def _tune_unet(
    sd: StableDiffusion, latents: Tensor, optimised: Tensor, run: TrainingRun, settings: Settings
) -> dict[str, LowRank]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        changes = LowRankChanges(sd.unet, _weight_names(sd.unet, settings.all_layers), settings.rank).to(sd.device)
    condition = Condition(optimised.expand(len(latents), -1, -1))

    def predict(x: Tensor, t: Tensor, text: Tensor, pooled: None) -> Tensor:
        return functional_call(sd.unet, changes.weights(sd.unet), (x, t, text))

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        with gradient_checkpointing(sd.unet, settings.gradient_checkpointing):
            return denoising_losses(sd.scheduler.schedule, predict, latents, condition, generator).mean()

    return train(changes, loss, _recipe(settings.unet_rate, settings.seed), run).parts


def _weight_names(unet: UNet, all_layers: bool) -> list[str]:
    if not all_layers:
        return attention_weight_names(unet)
    return [f"{name}.weight" for name, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def _recipe(rate: float, seed: int) -> Recipe:
    return Recipe(rate, warmup_steps=10, decay_fraction=0.0, weight_decay=0.0, ema_decay=0.0, seed=seed)


@torch.no_grad()
def draw_edit(sd: StableDiffusion, edit: Edit, etas: Sequence[float], seed: int = 0, **options: Any) -> Output:
    """Draw the image once for each eta, all from the same noise; options: those of a call of `sd`."""
    states = torch.cat([edit.states(eta) for eta in etas])
    lora = Lora(by_layer(sd.unet, edit.changes))
    try:
        generators = [torch.Generator().manual_seed(validation.seed(seed)) for _ in etas]
        return sd(prompt_embeds=states.to(sd.dtype), generator=generators, **options)
    finally:
        lora.remove()
