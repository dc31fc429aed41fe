"""Train a LoRA: low-rank changes of the attention layers, for a style or a subject (Hu et al. 2021).

Those of the UNet are trained and, if wanted, those of the text encoders. The model stays frozen, and the file is small.
With images of the class of a subject this is DreamBooth as a LoRA.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from minisd.adapters import Lora, LowRank, LowRankChanges
from minisd.adapters.lora import Layer, by_layer
from minisd.models.layers import Attention
from minisd.pipeline import StableDiffusion
from minisd.pipeline.conditioning import Condition
from minisd.training.captioned_images import CaptionedImages
from minisd.training.denoising import encode_captions, freeze
from minisd.training.fine_tuning import Settings, check, fine_tune, is_small
from minisd.training.trainer import TrainingRun

LEARNING_RATE, SMALL_RATE = 1e-4, 2e-3  # of official models, as usual for LoRAs; of the embedded one
SETTINGS = Settings(batch=8, decay_fraction=0.35, ema_decay=0.98)


class LoraChanges(LowRankChanges):
    """Trainable changes of the UNet's attention layers; `encoders` has those of each text encoder, if wanted."""

    def __init__(self, sd: StableDiffusion, rank: int, text_encoder: bool = False) -> None:
        super().__init__(sd.unet, attention_weight_names(sd.unet), rank)
        encoders = [part.encoder for part in sd.text_parts] if text_encoder else []
        self.encoders = nn.ModuleList(LowRankChanges(each, attention_weight_names(each), rank) for each in encoders)

    @property
    def of_encoders(self) -> list[LowRankChanges]:
        """The changes of each text encoder; empty if they are not trained."""
        return [each for each in self.encoders if isinstance(each, LowRankChanges)]

    def by_layer(self, sd: StableDiffusion) -> dict[Layer, LowRank]:
        """All changes by the layers of the model, as `Lora` takes them."""
        layers = by_layer(sd.unet, self.parts)
        for part, changes in zip(sd.text_parts, self.of_encoders, strict=False):
            layers |= by_layer(part.encoder, changes.parts)
        return layers


class _Captions(nn.Module):
    """`encode_captions` as a module that holds the text encoders, so that it can be called with other weights."""

    def __init__(self, sd: StableDiffusion) -> None:
        super().__init__()
        self.sd, self.encoders = sd, nn.ModuleList(part.encoder for part in sd.text_parts)

    def forward(self, captions: Sequence[str], size: tuple[int, int]) -> Condition:
        return encode_captions(self.sd, captions, size)


def train_lora(
    sd: StableDiffusion,
    pictures: CaptionedImages,
    run: TrainingRun,
    rank: int = 4,
    settings: Settings = SETTINGS,
    prior: CaptionedImages | None = None,
    sample: Callable[[StableDiffusion], None] | None = None,
) -> LoraChanges:
    """Train low-rank changes of the attention layers, so that the model generates images like the given ones.

    Those of the UNet and, with `settings.text_encoder`, of the text encoders. prior: images of the class of a subject,
    with their captions. sample: gets the model with the changes so far, whenever the run is saved. Raises InputError
    for a model of another task or with weights other than float32, and for captions of the class that are captions of
    the subject; what `train` raises for the run's file.
    """
    run = check(sd, pictures, run.of(rank=rank), settings, prior)
    freeze(sd.unet, *(part.encoder for part in sd.text_parts))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        changes = LoraChanges(sd, rank, settings.text_encoder).to(sd.device)
    captions_module = _Captions(sd)

    def predict(x: Tensor, t: Tensor, text: Tensor, pooled: Tensor | None) -> Tensor:
        return functional_call(sd.unet, changes.weights(sd.unet), (x, t, text), {"pooled": pooled})

    def encode(captions: Sequence[str], size: tuple[int, int]) -> Condition:
        weights = {
            f"encoders.{i}.{name}": weight
            for i, (part, each) in enumerate(zip(sd.text_parts, changes.of_encoders, strict=True))
            for name, weight in each.weights(part.encoder).items()
        }
        condition: Condition = functional_call(captions_module, weights, (captions, size))
        return condition

    def show(average: LoraChanges) -> None:
        assert sample is not None
        merged = Lora(average.by_layer(sd))
        try:
            sample(sd)
        finally:
            merged.remove()

    rate, shown = SMALL_RATE if is_small(sd) else LEARNING_RATE, None if sample is None else show
    return fine_tune(
        sd, changes, predict, rate, pictures, run, settings, prior, weight_decay=0.0, show=shown, encode=encode
    )


def attention_weight_names(network: nn.Module) -> list[str]:
    """The names of the weights that a LoRA changes: queries, keys, values and outputs of each attention layer."""
    blocks = [name for name, module in network.named_modules() if isinstance(module, Attention)]
    return [f"{name}.{part}.weight" for name in blocks for part in ("q", "k", "v", "out")]
