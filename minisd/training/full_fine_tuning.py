"""Fine-tune all weights of a UNet, and of the text encoder if wanted; with images of the class this is DreamBooth."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from minisd._internal import validation
from minisd.pipeline import StableDiffusion
from minisd.training.captioned_images import CaptionedImages
from minisd.training.denoising import freeze
from minisd.training.fine_tuning import Settings, check, fine_tune, is_small
from minisd.training.trainer import TrainingRun

LEARNING_RATE, SMALL_RATE = 5e-6, 2e-4  # of official models, as published for DreamBooth; of the embedded one
SETTINGS, DREAMBOOTH = Settings(), Settings(empty_prompts=0.0)


def train_full(
    sd: StableDiffusion,
    pictures: CaptionedImages,
    run: TrainingRun,
    settings: Settings = SETTINGS,
    prior: CaptionedImages | None = None,
    sample: Callable[[StableDiffusion], None] | None = None,
) -> StableDiffusion:
    """Train the UNet of `sd` in place, and its text encoders if the settings say so; returns `sd`.

    The words of the captions become words that the model knows, where it has a list of them.
    prior: images of the class of the subject, with their captions. sample: gets the model as it is so far, whenever the
    run is saved. Raises InputError for a model of another task or with weights other than float32, and for captions of
    the class that are captions of the subject; what `train` raises for the run's file.
    """
    run = check(sd, pictures, run, settings, prior)
    encoders = [part.encoder for part in sd.text_parts]
    freeze(sd.vae, sd.unet, *encoders)
    networks = [sd.unet, *encoders] if settings.text_encoder else [sd.unet]
    trained = nn.ModuleList(networks).requires_grad_(True)
    rate = SMALL_RATE if is_small(sd) else LEARNING_RATE

    def show(average: nn.ModuleList) -> None:
        assert sample is not None
        with exchanged(trained, average):
            sample(sd)

    shown = None if sample is None else show
    average = fine_tune(sd, trained, sd.unet, rate, pictures, run, settings, prior, show=shown)
    trained.load_state_dict(average.state_dict())
    freeze(trained)
    learned = validation.unknown_words(pictures.captions, sd.defaults.words)
    sd.defaults = replace(sd.defaults, words=" ".join([sd.defaults.words, *learned]))
    return sd


@contextmanager
def exchanged(network: nn.Module, other: nn.Module) -> Iterator[None]:
    """Within the block, the parameters of a network have the values of those of another one."""
    own = [parameter.data for parameter in network.parameters()]
    for parameter, value in zip(network.parameters(), other.parameters(), strict=True):
        parameter.data = value.data
    try:
        yield
    finally:
        for parameter, data in zip(network.parameters(), own, strict=True):
            parameter.data = data
