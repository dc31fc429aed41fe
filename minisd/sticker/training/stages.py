"""The stages that make the embedded model, in their order; each stands on the earlier ones.

A stage finds what it stands on in the folder of the runs, else in the model that it starts from.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from minisd.errors import InputError, MismatchError
from minisd.models import CLIP, VAE, UNet
from minisd.pipeline import Defaults, StableDiffusion
from minisd.sticker.training import samples
from minisd.sticker.training.autoencoder import VAE_CONFIG, train_vae
from minisd.sticker.training.contrastive import train_clip
from minisd.sticker.training.dataset import TAUGHT_WORDS, new_tokenizer
from minisd.sticker.training.text_encoder import Anchor, Reader, adopt, new_reader, train_reader
from minisd.sticker.training.unet import SCHEDULER, UNET_CONFIG, new_unet, text_config, train_unet
from minisd.tokenizer import Tokenizer
from minisd.training.trainer import load_average

SHARES = {"vae": 0.25, "text": 0.1, "unet": 0.55, "clip": 0.1}  # of the minutes, when all are trained
STANDS_ON = {"vae": (), "text": (), "unet": ("vae", "text"), "clip": ("text",)}
DEFAULTS = Defaults(num_inference_steps=20, guidance_scale=3.0, words=TAUGHT_WORDS)

Report = Callable[[str], Callable[[str], None]]


@dataclass(frozen=True)
class Budget:
    """Minutes, or steps for a run that must be repeatable."""

    minutes: float
    steps: int | None = None


@dataclass(frozen=True)
class Options:
    """Where the runs are kept, whether the autoencoder keeps its latents, and how the UNet is trained."""

    folder: Path
    keep_latents: bool = False
    pool: int = 24_000
    device: str = "cpu"
    compiled: bool = False


@dataclass
class Trained:
    """What there is so far."""

    tokenizer: Tokenizer
    vae: VAE | None = None
    reader: Reader | None = None
    anchor: Anchor | None = None
    unet: UNet | None = None
    clip: CLIP | None = None

    @property
    def model(self) -> StableDiffusion | None:
        """The pipeline, once all of it is there."""
        if self.vae is None or self.reader is None or self.unet is None:
            return None
        return StableDiffusion(self.tokenizer, self.reader.text_encoder, self.vae, self.unet, SCHEDULER, DEFAULTS)


def check(stages: list[str], options: Options, start: StableDiffusion | None) -> None:
    """Look for what could go wrong before any work.

    Raises InputError for a folder that is a file, for a stage that nothing is there to stand on and for one that would
    be pulled away under another; MismatchError for a model of other sizes.
    """
    folder = options.folder
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder for the runs.")
    if options.keep_latents and (stages != ["vae"] or start is None):
        raise InputError("keep-latents trains the stage 'vae' of a model; name that stage and the model to start from.")
    for stage, grounds in STANDS_ON.items():
        for other in grounds:
            if other in stages and (folder / f"{stage}.pt").exists() and not (folder / f"{other}.pt").exists():
                raise InputError(
                    f"{folder}/{stage}.pt stands on another {other} than the one to train; name a new folder."
                )
    if start is not None:
        theirs, ours = start.text_encoder.config, text_config(len(new_tokenizer()))
        grown = replace(theirs, vocab_size=ours.vocab_size, layers=ours.layers)
        fits = grown == ours and theirs.layers <= ours.layers
        if not fits or (start.vae.config, start.unet.config) != (VAE_CONFIG, UNET_CONFIG):
            raise MismatchError("the model to start from has other sizes than the one to train; start from 'sticker'.")
        return
    for stage in stages:
        for other in STANDS_ON[stage]:
            if other not in stages and not (folder / f"{other}.pt").exists():
                raise InputError(
                    f"{folder} has no {other}.pt, which the stage {stage!r} stands on; "
                    f"train {other!r} first, or start from 'sticker'."
                )


def train_stages(
    budgets: Mapping[str, Budget],
    options: Options,
    start: StableDiffusion | None,
    report: Report,
    clip: CLIP | None = None,
) -> Trained:
    """Train the stages that have a budget, in the order of SHARES, or continue them; see `check`.

    A stage that a later one stands on is taken as it is in its run, else from `start`, whose CLIP is `clip`.
    """
    folder, done = options.folder, Trained(new_tokenizer(), clip=clip)
    folder.mkdir(parents=True, exist_ok=True)
    if start is not None:
        done.vae, done.unet = start.vae, start.unet
        done.reader = _reader(done)
        done.anchor = adopt(done.reader.text_encoder, done.tokenizer, start.text_encoder, start.tokenizer)
    needed = {other for stage in budgets for other in STANDS_ON[stage]} - set(budgets)
    for stage in SHARES:
        run = folder / f"{stage}.pt"
        if stage in budgets:
            _train(stage, budgets[stage], run, options, done, report(stage))
        elif stage in needed and run.exists():
            _load(stage, run, done)
    return done


def _reader(done: Trained) -> Reader:
    """The reader so far, or a fresh one."""
    return new_reader(text_config(len(done.tokenizer))) if done.reader is None else done.reader


def _load(stage: str, run: Path, done: Trained) -> None:
    """Take a stage as it is in its run."""
    if stage == "vae":
        done.vae = train_vae(0.0, run, lambda line: None).eval()  # for no time, and normalised
    elif stage == "text":
        done.reader = load_average(_reader(done), run).eval()
    elif stage == "unet":
        done.unet = load_average(new_unet(), run).eval()


def _train(
    stage: str, budget: Budget, run: Path, options: Options, done: Trained, report: Callable[[str], None]
) -> None:
    """Train one stage, or continue it, and put it into what is done."""
    minutes, steps, picture = budget.minutes, budget.steps, run.with_suffix(".png")
    if stage == "vae":
        run = run.with_stem("vae-again") if options.keep_latents else run  # no later stage may take it for all of it
        show = partial(samples.save_reconstructions, path=picture)
        done.vae = train_vae(
            minutes, run, report, start=done.vae, steps=steps, show=show, keep_latents=options.keep_latents
        ).eval()
    elif stage == "text":
        done.reader = train_reader(
            _reader(done), done.tokenizer, minutes, run, report, steps=steps, anchor=done.anchor
        ).eval()
    elif stage == "unet":
        assert done.vae is not None  # `check` has seen to it, and to the reader
        assert done.reader is not None
        done.unet = train_unet(
            done.vae,
            done.tokenizer,
            done.reader.text_encoder,
            new_unet() if done.unet is None else done.unet,
            minutes,
            run,
            report,
            pool=options.pool,
            steps=steps,
            device=options.device,
            compiled=options.compiled,
            show=partial(_draw, done, picture),
        ).eval()
        for network in (done.unet, done.vae, done.reader):
            network.cpu()
    elif stage == "clip":
        assert done.reader is not None  # likewise
        done.clip = train_clip(
            done.reader.text_encoder, done.tokenizer, minutes, run, report, steps=steps, start=done.clip
        )


def _draw(done: Trained, picture: Path, unet: UNet) -> None:
    """What the UNet draws so far."""
    so_far = replace(done, unet=unet)
    if so_far.model is not None:
        samples.save_drawings(so_far.model, picture)
