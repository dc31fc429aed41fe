"""Train a LoRA: low-rank changes of a UNet's attention layers, for a style or a subject (Hu et al. 2021).

The model stays frozen, and the file is small. With images of the class of a subject this is DreamBooth as a LoRA.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from minisd.adapters import Lora, LowRankChanges
from minisd.adapters.lora import by_layer
from minisd.errors import InputError
from minisd.models.layers import Attention
from minisd.pipeline import StableDiffusion
from minisd.training.captioned_images import CaptionedImages
from minisd.training.denoising import freeze
from minisd.training.fine_tuning import Settings, check, fine_tune, is_small
from minisd.training.trainer import TrainingRun

LEARNING_RATE, SMALL_RATE = 1e-4, 2e-3  # of official models, as usual for LoRAs; of the embedded one
SETTINGS = Settings(batch=8, decay_fraction=0.35, ema_decay=0.98)


def train_lora(
    sd: StableDiffusion,
    pictures: CaptionedImages,
    run: TrainingRun,
    rank: int = 4,
    settings: Settings = SETTINGS,
    prior: CaptionedImages | None = None,
    sample: Callable[[StableDiffusion], None] | None = None,
) -> LowRankChanges:
    """Train low-rank changes of the UNet's attention layers, so that the model generates images like the given ones.

    prior: images of the class of a subject, with their captions. sample: gets the model with the changes so far,
    whenever the run is saved. Raises InputError for a model of another task or with weights other than float32, for
    settings that a LoRA cannot have, and for captions of the class that are captions of the subject; what `train`
    raises for the run's file.
    """
    if settings.text_encoder:
        raise InputError("text_encoder=True is not possible for a LoRA; remove it, or fine-tune the whole model.")
    run = check(sd, pictures, run.of(rank=rank), settings, prior)
    freeze(sd.unet)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        changes = LowRankChanges(sd.unet, attention_weight_names(sd.unet), rank).to(sd.device)

    def predict(x: Tensor, t: Tensor, text: Tensor, pooled: Tensor | None) -> Tensor:
        return functional_call(sd.unet, changes.weights(sd.unet), (x, t, text), {"pooled": pooled})

    def show(average: LowRankChanges) -> None:
        assert sample is not None
        merged = Lora(by_layer(sd.unet, average.parts))
        try:
            sample(sd)
        finally:
            merged.remove()

    rate, shown = SMALL_RATE if is_small(sd) else LEARNING_RATE, None if sample is None else show
    return fine_tune(sd, changes, predict, rate, pictures, run, settings, prior, weight_decay=0.0, show=shown)


def attention_weight_names(unet: nn.Module) -> list[str]:
    """The names of the weights that a LoRA changes: queries, keys, values and outputs of each attention layer."""
    blocks = [name for name, module in unet.named_modules() if isinstance(module, Attention)]
    return [f"{name}.{part}.weight" for name in blocks for part in ("q", "k", "v", "out")]
