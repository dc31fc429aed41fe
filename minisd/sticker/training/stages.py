"""The stages of training the embedded model, in one table: autoencoders, text encoder, UNet, previews, CLIP.

A stage takes the networks that it needs from the runs in the folder, or from the model to start from.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from minisd._internal.atomic_folders import check_folder
from minisd.errors import InputError, MismatchError, ResumeError
from minisd.models import CLIP, VAE, PreviewDecoder, UNet
from minisd.pipeline import Defaults, StableDiffusion
from minisd.sticker.training.autoencoder import VAE_CONFIG, new_vae, normalise, train_vae
from minisd.sticker.training.contrastive import train_clip
from minisd.sticker.training.dataset import VOCABULARY, new_tokenizer
from minisd.sticker.training.grown_vae import grown_config, train_grown_vae
from minisd.sticker.training.preview import decoder_config, new_preview_decoder, train_preview
from minisd.sticker.training.samples import save_drawings, save_previews, save_reconstructions
from minisd.sticker.training.text_encoder import (
    CaptionProbe,
    FrozenReference,
    new_caption_probe,
    text_config,
    train_text_encoder,
    transfer_weights,
)
from minisd.sticker.training.unet import (
    FURTHER_LEARNING_RATE,
    LEARNING_RATE,
    SCHEDULER,
    UNET_CONFIG,
    new_unet,
    train_unet,
)
from minisd.tokenizer import Tokenizer
from minisd.training.run_files import fingerprint
from minisd.training.trainer import TrainingBudget, TrainingRun, load_average

DEFAULTS = Defaults(num_inference_steps=20, guidance_scale=3.0, words=VOCABULARY)


@dataclass(frozen=True)
class TrainingOptions:
    """The folder of the runs, and options of the UNet."""

    folder: Path
    pool: int = 24_000
    device: str = "cpu"
    compiled: bool = False


@dataclass
class Networks:
    """The networks that are trained or loaded so far."""

    tokenizer: Tokenizer
    vae: VAE | None = None
    probe: CaptionProbe | None = None
    reference: FrozenReference | None = None
    unet: UNet | None = None
    preview: PreviewDecoder | None = None
    clip: CLIP | None = None

    @property
    def model(self) -> StableDiffusion | None:
        """The pipeline, if all of its networks are there; its preview decoder may be missing."""
        if self.vae is None or self.probe is None or self.unet is None:
            return None
        sd = StableDiffusion(self.tokenizer, self.probe.text_encoder, self.vae, self.unet, SCHEDULER, DEFAULTS)
        sd.preview_decoder = self.preview
        return sd

    def probe_or_new(self) -> CaptionProbe:
        """The text encoder with its probes, untrained if there is none."""
        return new_caption_probe(text_config(len(self.tokenizer))) if self.probe is None else self.probe


# How each stage is trained and loaded. The networks that it needs are there, see `check`.


def _train_vae(done: Networks, options: TrainingOptions, run: TrainingRun) -> None:
    show = partial(save_reconstructions, path=run.path.with_suffix(".png"))
    done.vae = train_vae(run, show=show).eval()


def _train_text(done: Networks, options: TrainingOptions, run: TrainingRun) -> None:
    done.probe = train_text_encoder(done.probe_or_new(), done.tokenizer, run, reference=done.reference).eval()


def _train_unet(done: Networks, options: TrainingOptions, run: TrainingRun) -> None:
    assert done.vae is not None
    assert done.probe is not None

    def show(unet: UNet) -> None:
        model = replace(done, unet=unet).model
        assert model is not None
        save_drawings(model, run.path.with_suffix(".png"))

    unet, rate = (new_unet(), LEARNING_RATE) if done.unet is None else (done.unet, FURTHER_LEARNING_RATE)
    unet = train_unet(
        done.vae,
        done.tokenizer,
        done.probe.text_encoder,
        unet,
        run,
        options.pool,
        device=options.device,
        compiled=options.compiled,
        show=show,
        learning_rate=rate,
    )
    done.unet = unet.eval()
    for network in (done.unet, done.vae, done.probe):
        network.cpu()


def _train_vae128(done: Networks, options: TrainingOptions, run: TrainingRun) -> None:
    assert done.model is not None
    show = partial(save_reconstructions, path=run.path.with_suffix(".png"))
    done.vae = train_grown_vae(done.model, run, show=show).eval()


def _train_preview(done: Networks, options: TrainingOptions, run: TrainingRun) -> None:
    assert done.model is not None
    assert done.vae is not None
    show = partial(save_previews, done.vae, path=run.path.with_suffix(".png"))
    done.preview = train_preview(done.model, run, show=show).eval()


def _train_clip(done: Networks, options: TrainingOptions, run: TrainingRun) -> None:
    assert done.probe is not None
    done.clip = train_clip(done.probe.text_encoder, done.tokenizer, run, start=done.clip)


def _load_vae(done: Networks, path: Path) -> None:
    done.vae = load_average(new_vae(), path).eval()
    normalise(done.vae)


def _load_vae128(done: Networks, path: Path) -> None:
    done.vae = load_average(VAE(grown_config(VAE_CONFIG)), path).eval()


def _load_preview(done: Networks, path: Path) -> None:
    new = new_preview_decoder(decoder_config(grown_config(VAE_CONFIG)))
    done.preview = load_average(new, path).eval()


def _load_text(done: Networks, path: Path) -> None:
    done.probe = load_average(done.probe_or_new(), path).eval()


def _load_unet(done: Networks, path: Path) -> None:
    done.unet = load_average(new_unet(), path).eval()


@dataclass(frozen=True)
class Stage:
    """One stage: its share of the minutes if all are trained, the stages it needs, and how it is trained and loaded."""

    share: float
    needs: tuple[str, ...]
    train: Callable[[Networks, TrainingOptions, TrainingRun], None]
    load: Callable[[Networks, Path], None] | None = None  # only for parts of the model


STAGES = {
    "vae": Stage(0.2, (), _train_vae, _load_vae),
    "text": Stage(0.1, (), _train_text, _load_text),
    "unet": Stage(0.45, ("vae", "text"), _train_unet, _load_unet),
    "vae128": Stage(0.1, ("vae", "text", "unet"), _train_vae128, _load_vae128),
    "preview": Stage(0.05, ("vae", "text", "unet", "vae128"), _train_preview, _load_preview),
    "clip": Stage(0.1, ("text",), _train_clip),
}


def shares(stage: str, start: StableDiffusion | None) -> dict[str, float]:
    """The stages to train for "all" or the name of a stage, with their shares of the minutes.

    All stages of an existing model are all but "vae": its latents stay.
    """
    if stage != "all":
        return {stage: 1.0}
    chosen = {name: each.share for name, each in STAGES.items() if start is None or name != "vae"}
    return {name: share / sum(chosen.values()) for name, share in chosen.items()}


def check(stages: list[str], options: TrainingOptions, start: StableDiffusion | None) -> None:
    """Check the options before any training.

    Raises InputError for a folder that is a file, if a stage that another one depends on is missing, or if retraining
    it would invalidate an existing later stage; OutputError for a folder that cannot be; MismatchError for a model to
    start from with other sizes.
    """
    folder = options.folder
    if os.path.isfile(folder):
        raise InputError(f"{folder} is a file; name a folder for the runs.")
    check_folder(folder, overwrite=True)
    for name, stage in STAGES.items():
        for other in stage.needs:
            if other in stages and (folder / f"{name}.pt").exists() and not (folder / f"{other}.pt").exists():
                raise InputError(f"{folder}/{name}.pt was trained with another {other}; name a new folder.")
    if start is not None and "vae" in stages:
        raise InputError("the stage 'vae' makes new latents; to train a model's autoencoder further, train 'vae128'.")
    if start is not None:
        theirs, ours = start.text_encoder.config, text_config(len(new_tokenizer()))
        grown = replace(theirs, vocab_size=ours.vocab_size, layers=ours.layers)
        fits = grown == ours and theirs.layers <= ours.layers
        fits = fits and start.vae.config in (VAE_CONFIG, grown_config(VAE_CONFIG))
        fits = fits and start.unet.config == UNET_CONFIG
        if not fits:
            raise MismatchError("the model to start from has other sizes than the one to train; start from 'sticker'.")
        return
    for name in stages:
        for other in STAGES[name].needs:
            if other not in stages and not (folder / f"{other}.pt").exists():
                raise InputError(
                    f"{folder} has no {other}.pt, which the stage {name!r} needs; "
                    f"train {other!r} first, or start from 'sticker'."
                )


def train_stages(
    budgets: Mapping[str, TrainingBudget],
    options: TrainingOptions,
    start: StableDiffusion | None,
    report: Callable[[str], Callable[[str], None]],
    clip: CLIP | None = None,
) -> Networks:
    """Train the stages that have a budget, in the order of STAGES, or continue their runs; call `check` first.

    The other networks that these need come from their runs in the folder, or from `start`, whose CLIP is `clip`.
    report: gives the function for the progress of a stage.
    Raises OutputError and ResumeError for the file of any of the runs, before any training; ResumeError, too, if a
    stage would be trained further with whose result another one was trained.
    """
    done = Networks(new_tokenizer(), clip=clip)
    runs = {
        name: TrainingRun(options.folder / f"{name}.pt", budget, report(name)).of(**_origin(name, options, start, clip))
        for name, budget in budgets.items()
    }
    for run in runs.values():
        run.check()
    for name, stage in STAGES.items():
        for other in {*stage.needs} & {*runs}:
            if (options.folder / f"{name}.pt").exists() and not runs[other].is_finished():
                raise ResumeError(
                    f"{options.folder}/{name}.pt was trained with {other}.pt as it is, expected no further training of "
                    f"{other!r}; train only {name!r}, give the budget of before, or name a new folder."
                )
    if start is not None:
        done.vae, done.unet, done.probe = start.vae, start.unet, done.probe_or_new()
        done.preview = None if "vae128" in budgets else start.preview_decoder
        encoder = done.probe.text_encoder
        done.reference = transfer_weights(encoder, done.tokenizer, start.text_encoder, start.tokenizer)
    needed = {other for name in budgets for other in STAGES[name].needs} | {"vae128", "preview"}  # parts of the model
    for name, stage in STAGES.items():
        path = options.folder / f"{name}.pt"
        if name in budgets:
            stage.train(done, options, runs[name])
        elif name in needed and path.exists() and stage.load is not None:
            stage.load(done, path)
    return done


def _origin(
    stage: str, options: TrainingOptions, start: StableDiffusion | None, clip: CLIP | None
) -> dict[str, object]:
    """The stage and what it starts from, for its run."""
    networks = () if start is None else (start.unet, start.vae, start.text_encoder)
    known = (*networks, clip) if stage == "clip" and clip is not None else networks
    origin: dict[str, object] = {"stage": stage, "start_model": fingerprint(*known) if known else "none"}
    return origin | {"pool": options.pool} if stage == "unet" else origin
