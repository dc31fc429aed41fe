"""Fine-tuning on captioned images: its settings, and the loop that full fine-tuning and LoRA share.

With images of the class beside those of a subject, this is DreamBooth. It teaches a rare word the subject: "a photo of
sks dog". Images of "a photo of a dog", drawn by the model as it was, are trained beside it, so that other dogs stay as
they are: prior preservation (Ruiz et al. 2022).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from minisd._internal import validation
from minisd._internal.messages import shown
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion
from minisd.pipeline.conditioning import Condition
from minisd.training.captioned_images import CaptionedImages
from minisd.training.checkpointing import gradient_checkpointing
from minisd.training.denoising import (
    Predict,
    check_model,
    denoising_losses,
    encode_captions,
    encode_captions_once,
    encode_images,
    joined,
)
from minisd.training.run_files import fingerprint
from minisd.training.trainer import AUTOCAST, Recipe, TrainingRun, train

Network = TypeVar("Network", bound=nn.Module)
SMALL = 100_000_000  # parameters of a UNet; below it a model is trained like the embedded one


@dataclass(frozen=True)
class Settings:
    """How a model is fine-tuned.

    learning_rate: None for the usual one of the method and the size of the model. batch: images a step, and as many of
    the class. accumulation: batches a step. empty_prompts: the share of captions that are replaced by the empty prompt,
    so that guidance keeps its meaning. min_snr: see `denoising_losses`; the published value is 5. prior_weight: of the
    loss on the images of the class. ema_decay: of the moving average of the weights, 0 for none. text_encoder: train
    it, too. gradient_checkpointing: compute activations twice, which needs less memory. autocast: "bfloat16" or
    "float16" over float32 weights, where it is fast.
    """

    learning_rate: float | None = None
    warmup_steps: int = 20
    decay_fraction: float = 0.0
    batch: int = 4
    accumulation: int = 1
    empty_prompts: float = 0.1
    min_snr: float | None = None
    prior_weight: float = 1.0
    ema_decay: float = 0.0
    text_encoder: bool = False
    gradient_checkpointing: bool = False
    autocast: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("warmup_steps", 0), ("batch", 1), ("accumulation", 1), ("seed", 0)):
            self._keep(name, validation.whole_number(getattr(self, name), name, least, 2**63))
        for name, most in (("decay_fraction", 1), ("empty_prompts", 1), ("prior_weight", 1000), ("ema_decay", 0.99999)):
            self._keep(name, validation.real_number(getattr(self, name), name, 0, most))
        for name in ("learning_rate", "min_snr"):
            if getattr(self, name) is not None:
                self._keep(name, validation.real_number(getattr(self, name), name, 1e-12, 1000))
        for name in ("text_encoder", "gradient_checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {shown(getattr(self, name))}, expected True or False.")
        if self.autocast is not None and self.autocast not in AUTOCAST:
            raise InputError(f"autocast is {shown(self.autocast)}, expected one of {', '.join(AUTOCAST)}, or None.")

    def _keep(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)


def is_small(sd: StableDiffusion) -> bool:
    """Whether a model is about as small as the embedded one, which needs higher learning rates than official models."""
    return sum(p.numel() for p in sd.unet.parameters()) < SMALL


def fine_tune(
    sd: StableDiffusion,
    trained: Network,
    predict: Predict,
    learning_rate: float,
    pictures: CaptionedImages,
    run: TrainingRun,
    settings: Settings,
    prior: CaptionedImages | None,
    weight_decay: float = 0.01,
    show: Callable[[Network], None] | None = None,
    encode: Callable[[Sequence[str], tuple[int, int]], Condition] | None = None,
) -> Network:
    """Train the network `trained`, on which `predict` depends; returns the moving average of its weights.

    prior: images of the class of the subject. show: gets the average whenever the run is saved. encode: gives the
    condition for captions and the size of the images where the text encoders are trained; None: the encoders of `sd`.
    Raises what `check` and `train` raise.
    """
    encode = partial(encode_captions, sd) if encode is None else encode
    sets = [_EncodedSet(sd, each, settings, encode) for each in ([pictures] if prior is None else [pictures, prior])]
    weights = torch.tensor([1.0, settings.prior_weight][: len(sets)])

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        parts = [each.batch(generator) for each in sets]
        x0 = torch.cat([latents for latents, _ in parts])
        condition = joined([condition for _, condition in parts])
        with gradient_checkpointing(sd.unet, settings.gradient_checkpointing):
            losses = denoising_losses(sd.scheduler.schedule, predict, x0, condition, generator, settings.min_snr)
        return (losses.view(len(sets), -1).mean(1) * weights.to(losses)).sum()

    recipe = Recipe(
        learning_rate=learning_rate if settings.learning_rate is None else settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        decay_fraction=settings.decay_fraction,
        weight_decay=weight_decay,
        ema_decay=settings.ema_decay,
        autocast=settings.autocast,
        accumulation=settings.accumulation,
        seed=settings.seed,
    )
    return train(trained, loss, recipe, run, show)


def check(
    sd: StableDiffusion, pictures: CaptionedImages, run: TrainingRun, settings: Settings, prior: CaptionedImages | None
) -> TrainingRun:
    """Check everything before any work; returns the run with the facts that it is a run of.

    Raises InputError for a model of another task and for captions of the class that are captions of the subject, and
    what `TrainingRun.check` raises.
    """
    check_model(sd)
    check_class_captions(pictures, [] if prior is None else prior.captions)
    facts = asdict(settings)
    del facts["gradient_checkpointing"]  # gives the same gradients
    run = run.of(
        start_model=fingerprint(sd.unet, sd.vae, *(part.encoder for part in sd.text_parts)),
        pictures_and_captions=fingerprint(pictures.pixels, *pictures.captions),
        **facts,
    )
    if prior is not None:
        run = run.of(class_images=fingerprint(prior.pixels, *prior.captions))
    run.check()
    return run


def check_class_captions(pictures: CaptionedImages, captions: Sequence[str]) -> None:
    """Raise InputError if an image of the class has a caption of the subject: the word would mean both."""
    if both := {*pictures.captions} & {*captions}:
        raise InputError(
            f"the class is called {shown(both.pop())} like the subject, expected another prompt for the class; leave "
            "out the rare word."
        )


class _EncodedSet:
    """Images and captions, encoded once; the captions at each step if the text encoders are trained."""

    def __init__(
        self,
        sd: StableDiffusion,
        pictures: CaptionedImages,
        settings: Settings,
        encode: Callable[[Sequence[str], tuple[int, int]], Condition],
    ) -> None:
        self.sd, self.settings, self.encode = sd, settings, encode
        self.captions = list(dict.fromkeys(["", *pictures.captions]))
        place_of = {text: place for place, text in enumerate(self.captions)}
        self.caption_of = torch.tensor([place_of[text] for text in pictures.captions])
        height, width = pictures.pixels.shape[2:]
        self.size = (height, width)
        self.latents = encode_images(sd, pictures.pixels)
        self.known = None if settings.text_encoder else encode_captions_once(sd, self.captions, self.size)

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Condition]:
        """Latents and conditions of images drawn at random; some captions are left out."""
        count = self.settings.batch
        rows = torch.randint(len(self.latents), (count,), generator=generator)
        dropped = torch.rand(count, generator=generator) < self.settings.empty_prompts
        texts = self.caption_of[rows].masked_fill(dropped, 0)
        latents = self.latents[rows].to(self.sd.device)
        if self.known is not None:
            return latents, self.known.rows(texts).to(self.sd.device)
        return latents, self.encode([self.captions[i] for i in texts.tolist()], self.size)
