"""Measurements of a loaded model: each function returns a Measure, which maps a ModelUnderTest to numbers."""

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
from minisd._internal import image_quality
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion
from minisd.schedulers import NoiseSchedule, Scheduler


class ReferenceImage(NamedTuple):
    """An image to compare with, identified by its mean red, green and blue and its standard deviation."""

    name: str
    statistics: tuple[float, float, float, float]


REFERENCE_IMAGES = {
    "golden": ReferenceImage("ddsat_c9_1.png", (120.98, 93.91, 61.06, 52.52)),
    "picture": ReferenceImage("ddsat_c15_0.png", (144.96, 138.45, 109.75, 78.00)),
}


class Run(NamedTuple):
    """An image to generate, with guidance 7.5 and the model's own size; `noise` maps a shape to the initial noise."""

    prompt: str
    sampler: type[Scheduler]
    steps: int
    noise: Callable[[tuple[int, ...]], Tensor]


class Trace(NamedTuple):
    """The results of a run: the latents (1, C, h, w) after each UNet call, and the image (H, W, 3) in [0, 1]."""

    latents: list[Tensor]
    image: NDArray[np.float32]


@dataclass
class ModelUnderTest:
    """A model, and the images to compare with; each run is computed once.

    golden: the otter of the Deep Dive. picture: the image that the Deep Dive encodes and decodes.
    """

    sd: StableDiffusion
    golden: Image.Image | None = None
    picture: Image.Image | None = None
    progress: bool = False
    has_vocabulary: bool = True  # False: of a single file without one; sd.tokenizer is that of another model
    _traces: dict[Run, Trace] = field(default_factory=dict)

    @property
    def half_weights(self) -> bool:
        """Whether the weights were stored in float16; the facts are for float32 weights."""
        sd = self.sd
        text, unet, vae = sd.text_encoder, sd.unet, sd.vae
        samples = (text.final_norm, text.token_embedding, unet.conv_in, vae.decoder.conv_in)
        weights = [module.weight.detach().float() for module in samples]
        return all(torch.equal(weight, weight.half().float()) for weight in weights)

    def trace(self, run: Run) -> Trace:
        """The results of a run, computed at the first call. Raises what the pipeline raises."""
        if run not in self._traces:
            own = self.sd
            # with the class's own spacing, which diffusers also uses when it gets the config of another sampler
            sampler = run.sampler(schedule=own.scheduler.schedule)
            sd = StableDiffusion(own.tokenizer, own.text_encoder, own.vae, own.unet, sampler)
            noise = run.noise((1, sd.vae.config.latent_channels, *own.unet.config.cells))
            steps = sd.denoise(run.prompt, num_inference_steps=run.steps, guidance_scale=7.5, latents=noise)
            calls = len(sampler.grid(run.steps))
            latents = [s.latents for s in tqdm(steps, f"{run.sampler.__name__}", calls, disable=not self.progress)]
            self._traces[run] = Trace(latents, images.to_numpy(sd.decode(latents[-1]))[0])
        return self._traces[run]


Measure = Callable[[ModelUnderTest], Sequence[float]]

ENDS = (0, 1, 2, -3, -2, -1)  # the published dimensions of a vector


def size(component: str) -> Measure:
    """Parameters and tensors of a network."""

    def measure(tested: ModelUnderTest) -> list[float]:
        tensors = list(getattr(tested.sd, component).parameters())
        return [sum(tensor.numel() for tensor in tensors), len(tensors)]

    return measure


def prompt_ids(prompt: str) -> Measure:
    """The token ids of a prompt, with padding."""
    return lambda tested: tested.sd.tokenizer(prompt)[0].tolist()


def token_row(token: int) -> Measure:
    """The ends of a row of the token embedding table."""
    return lambda tested: _ends(tested.sd.text_encoder.token_embedding.weight[token])


def position_row(position: int) -> Measure:
    """The ends of a row of the position embedding table."""
    return lambda tested: _ends(tested.sd.text_encoder.position_embedding.weight[position])


def embedding(ids: Sequence[int], position: int) -> Measure:
    """The ends of the sum of token and position embedding of a sequence of ids, at one position."""

    def measure(tested: ModelUnderTest) -> list[float]:
        text_encoder = tested.sd.text_encoder
        row = torch.tensor([ids], device=text_encoder.token_embedding.weight.device)
        return _ends(text_encoder.embed(row)[0, position])

    return measure


def text_state(ids: Sequence[int], position: int, replace: tuple[int, int] | None = None) -> Measure:
    """The ends of the text state at a position; `replace` (old, new): tokens old get the embedding of new."""

    def measure(tested: ModelUnderTest) -> list[float]:
        text_encoder = tested.sd.text_encoder
        rows = text_encoder.token_embedding.weight
        tokens = rows[list(ids)]
        if replace is not None:
            old, new = replace
            tokens[[token == old for token in ids]] = rows[new]
        positions = text_encoder.position_embedding.weight[: len(ids)]
        return _ends(text_encoder.transform((tokens + positions)[None])[0, position])

    return measure


def of_schedule(values: Callable[[NoiseSchedule], Sequence[float]]) -> Measure:
    """Numbers computed from the model's noise schedule."""
    return lambda tested: values(tested.sd.scheduler.schedule)


def corner(run: Run) -> Measure:
    """The last channel of the last 3 x 3 pixels, in [0, 1]."""
    return lambda tested: tested.trace(run).image[-3:, -3:, -1].flatten().tolist()


def latent_corner(run: Run, i: int) -> Measure:
    """The last column of the last 3 channels and rows of the latents after UNet call i."""
    return lambda tested: tested.trace(run).latents[i][0, -3:, -3:, -1].flatten().tolist()


def statistics(run: Run) -> Measure:
    """Mean red, green and blue, and the standard deviation of all values, in 0..255."""
    return lambda tested: _statistics(_bytes(images.numpy_to_pil(tested.trace(run).image)[0]))


def psnr_to_golden(run: Run) -> Measure:
    """PSNR to the golden image, in dB."""

    def measure(tested: ModelUnderTest) -> list[float]:
        assert tested.golden is not None
        return [psnr(images.numpy_to_pil(tested.trace(run).image)[0], tested.golden)]

    return measure


def round_trip(tested: ModelUnderTest) -> list[float]:
    """Statistics and PSNR of an image after encoding, mean + std * noise (second draw of seed 32), and decoding."""
    assert tested.picture is not None
    vae, generator = tested.sd.vae, torch.Generator().manual_seed(32)
    weight = vae.from_latents.weight
    gaussian = vae.encode(images.from_pil(tested.picture).to(weight.device, weight.dtype))
    torch.randn(gaussian.mean.shape, generator=generator)
    again = images.to_pil(vae.decode(gaussian.sample(generator)))[0]
    return [*_statistics(_bytes(again)), psnr(again, tested.picture)]


def open_reference_image(path: str | Path, option: str) -> Image.Image:
    """Open the image of `--golden` or `--picture`. Raises InputError for another image, or none."""
    expected = REFERENCE_IMAGES[option]
    try:
        image = images.open_image(path).convert("RGB")
    except InputError as error:
        raise InputError(f"{error} It is for --{option}, expected {expected.name}.") from error
    got = _statistics(_bytes(image))
    if max(abs(have - want) for have, want in zip(got, expected.statistics, strict=True)) > 0.01:
        shown = ", ".join(f"{value:.2f}" for value in got)
        raise InputError(
            f"{path} is not {expected.name}: mean colour and deviation are {shown}, expected {expected.statistics}."
        )
    return image


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two 8-bit images, in dB. Raises InputError for different sizes."""
    if one.size != other.size:
        raise InputError(f"the images have the sizes {one.size} and {other.size}, expected the same size.")
    first, second = (torch.from_numpy(_bytes(image))[None] / 127.5 - 1 for image in (one, other))
    return float(image_quality.psnr(first, second))


def _bytes(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image.convert("RGB"), dtype=np.float64)


def _statistics(pixels: NDArray[np.float64]) -> list[float]:
    return [*pixels.mean(axis=(0, 1)).tolist(), float(pixels.std())]


def _ends(vector: Tensor) -> list[float]:
    return vector[list(ENDS)].tolist()
