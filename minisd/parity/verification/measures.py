"""How to measure a loaded model: each function here gives one that takes a Subject and returns numbers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from minisd import images
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion
from minisd.schedulers import NoiseSchedule, Scheduler


class KnownPicture(NamedTuple):
    """A picture to compare with, and what it is known by: mean red, green, blue, and standard deviation."""

    name: str
    statistics: tuple[float, float, float, float]


PICTURES = {
    "golden": KnownPicture("ddsat_c9_1.png", (120.98, 93.91, 61.06, 52.52)),
    "picture": KnownPicture("ddsat_c15_0.png", (144.96, 138.45, 109.75, 78.00)),
}


class Run(NamedTuple):
    """A picture to make: guidance 7.5, the model's own size, from noise of a given shape."""

    prompt: str
    sampler: type[Scheduler]
    steps: int
    noise: Callable[[tuple[int, ...]], Tensor]


class Trace(NamedTuple):
    """What a run gave: the latents (1, C, h, w) after each call, and the picture (H, W, 3) in [0, 1]."""

    latents: list[Tensor]
    picture: NDArray[np.float32]


@dataclass
class Subject:
    """A model under examination, and the pictures to compare with; the same run is made once only.

    golden: the otter of the Deep Dive. picture: the input of its round trip through the autoencoder.
    """

    sd: StableDiffusion
    golden: Image.Image | None = None
    picture: Image.Image | None = None
    progress: bool = False
    _traces: dict[Run, Trace] = field(default_factory=dict)

    @property
    def half_weights(self) -> bool:
        """Whether the weights have gone through float16, which the facts have not."""
        sd = self.sd
        samples = (
            sd.text_encoder.final_norm,
            sd.text_encoder.token_embedding,
            sd.unet.conv_in,
            sd.vae.decoder.conv_in,
        )
        weights = [module.weight.detach().float() for module in samples]
        return all(torch.equal(weight, weight.half().float()) for weight in weights)

    def trace(self, run: Run) -> Trace:
        """Make the picture, or find it made. Raises what the pipeline raises."""
        if run not in self._traces:
            own, side = self.sd, self.sd.unet.config.sample_size
            # not from_config: the official class, handed another one's config, keeps its own spacing
            sampler = run.sampler(schedule=own.scheduler.schedule)
            sd = StableDiffusion(own.tokenizer, own.text_encoder, own.vae, own.unet, sampler)
            noise = run.noise((1, sd.vae.config.latent_channels, side, side))
            steps = sd.denoise(run.prompt, num_inference_steps=run.steps, guidance_scale=7.5, latents=noise)
            calls = len(sampler.grid(run.steps))
            latents = [s.latents for s in tqdm(steps, f"{run.sampler.__name__}", calls, disable=not self.progress)]
            self._traces[run] = Trace(latents, images.to_numpy(sd.decode(latents[-1]))[0])
        return self._traces[run]


Measure = Callable[[Subject], Sequence[float]]

ENDS = (0, 1, 2, -3, -2, -1)  # the dimensions that were printed


def size(component: str) -> Measure:
    """Parameters and tensors of a network."""

    def measure(subject: Subject) -> list[float]:
        tensors = list(getattr(subject.sd, component).parameters())
        return [sum(tensor.numel() for tensor in tensors), len(tensors)]

    return measure


def prompt_ids(prompt: str) -> Measure:
    """What the tokenizer makes of a prompt, padding and all."""
    return lambda subject: subject.sd.tokenizer(prompt)[0].tolist()


def token_row(token: int) -> Measure:
    """The ends of a row of the token embedding."""
    return lambda subject: _ends(subject.sd.text_encoder.token_embedding.weight[token])


def position_row(position: int) -> Measure:
    """The ends of a row of the position embedding."""
    return lambda subject: _ends(subject.sd.text_encoder.position_embedding.weight[position])


def embedding(ids: Sequence[int], position: int) -> Measure:
    """The ends of token plus position embedding, for a sequence of ids, at one position."""

    def measure(subject: Subject) -> list[float]:
        text_encoder = subject.sd.text_encoder
        return _ends(
            text_encoder.embed(torch.tensor([ids], device=text_encoder.token_embedding.weight.device))[0, position]
        )

    return measure


def text_state(ids: Sequence[int], position: int, replace: tuple[int, int] | None = None) -> Measure:
    """The ends of the text states at a position; `replace` (old, new) puts new's row where old's was."""

    def measure(subject: Subject) -> list[float]:
        text_encoder = subject.sd.text_encoder
        rows = text_encoder.token_embedding.weight
        tokens = rows[list(ids)]
        if replace is not None:
            old, new = replace
            tokens[[token == old for token in ids]] = rows[new]
        positions = text_encoder.position_embedding.weight[: len(ids)]
        return _ends(text_encoder.transform((tokens + positions)[None])[0, position])

    return measure


def of_schedule(values: Callable[[NoiseSchedule], Sequence[float]]) -> Measure:
    """Numbers from the model's noise schedule."""
    return lambda subject: values(subject.sd.scheduler.schedule)


def corner(run: Run) -> Measure:
    """The last channel of the last 3 x 3 pixels, in [0, 1]."""
    return lambda subject: subject.trace(run).picture[-3:, -3:, -1].flatten().tolist()


def latent_corner(run: Run, i: int) -> Measure:
    """The last column of the last 3 channels and rows of the latents after call i."""
    return lambda subject: subject.trace(run).latents[i][0, -3:, -3:, -1].flatten().tolist()


def statistics(run: Run) -> Measure:
    """Mean red, green and blue, and the standard deviation over everything, in 0..255."""
    return lambda subject: _statistics(_bytes(images.numpy_to_pil(subject.trace(run).picture)[0]))


def likeness(run: Run) -> Measure:
    """PSNR to the golden picture, in dB."""

    def measure(subject: Subject) -> list[float]:
        assert subject.golden is not None
        return [psnr(images.numpy_to_pil(subject.trace(run).picture)[0], subject.golden)]

    return measure


def round_trip(subject: Subject) -> list[float]:
    """Picture -> mean + std * noise, the second draw of seed 32 -> picture: its statistics and PSNR."""
    assert subject.picture is not None
    vae, generator = subject.sd.vae, torch.Generator().manual_seed(32)
    weight = vae.from_latents.weight
    gaussian = vae.encode(images.from_pil(subject.picture).to(weight.device, weight.dtype))
    torch.randn(gaussian.mean.shape, generator=generator)
    again = images.to_pil(vae.decode(gaussian.sample(generator)))[0]
    return [*_statistics(_bytes(again)), psnr(again, subject.picture)]


def known_picture(path: str | Path, option: str) -> Image.Image:
    """The picture that an option asks for. Raises InputError if it is another one, or none."""
    known = PICTURES[option]
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises for bad files
        raise InputError(f"{path} cannot be read as a picture ({error}); --{option} is {known.name}.") from error
    got = _statistics(_bytes(image))
    if max(abs(have - want) for have, want in zip(got, known.statistics, strict=True)) > 0.01:
        shown = ", ".join(f"{value:.2f}" for value in got)
        raise InputError(
            f"{path} is not {known.name}: mean colour and deviation are {shown}, expected {known.statistics}."
        )
    return image


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal to noise ratio of two pictures of 8 bits, in dB. Raises InputError for different sizes."""
    if one.size != other.size:
        raise InputError(f"the picture is {one.size}, the one to compare with {other.size}, expected the same size.")
    error = float(((_bytes(one) - _bytes(other)) ** 2).mean())
    return 10 * math.log10(255**2 / max(error, 1e-6))  # equal pictures have no ratio


def _bytes(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image.convert("RGB"), dtype=np.float64)


def _statistics(pixels: NDArray[np.float64]) -> list[float]:
    return [*pixels.mean(axis=(0, 1)).tolist(), float(pixels.std())]


def _ends(vector: Tensor) -> list[float]:
    return vector[list(ENDS)].tolist()
