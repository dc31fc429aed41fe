"""Film: keep x_t and the predicted x0 of some denoising steps and show them as a strip or a GIF."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from minisd import images
from minisd._internal import validation
from minisd.errors import InputError
from minisd.pipeline import DenoisingStep, StableDiffusion


class Film:
    """Keeps every `every`-th step of a run and the last one; latents are decoded when they are shown.

    film = Film(sd, every=5)
    for step in film.watch(sd.denoise("a red circle")):
        ...
    film.strip().save("film.png")
    """

    def __init__(self, sd: StableDiffusion, every: int = 1) -> None:
        self.sd = sd
        self.every = validation.whole_number(every, "every", 1, 10**6)
        self.steps: list[DenoisingStep] = []

    def watch(self, steps: Iterable[DenoisingStep]) -> Iterator[DenoisingStep]:
        """Yield the steps unchanged and keep copies of some; showing them cannot change the image."""
        self.steps = []
        last = None
        for last in steps:
            if last.i % self.every == 0:
                self.steps.append(_copy(last))
            yield last
        if last is not None and last.i % self.every:
            self.steps.append(_copy(last))

    def strip(self, picture: int = 0, labels: bool = True) -> Image.Image:
        """One column for each kept step, x_t above and the predicted x0 below, of one image of the batch."""
        frames = self._frames(picture, labels)
        return images.image_grid([top for top, _ in frames] + [below for _, below in frames], len(frames), gap=2)

    def gif(self, path: str | Path, picture: int = 0, milliseconds: int = 120, overwrite: bool = False) -> Path:
        """Write an animation with x_t on the left and the predicted x0 on the right. Raises OutputError."""
        frames = [images.image_grid(list(pair), 2, gap=2) for pair in self._frames(picture, labels=False)]
        return images.save(frames[0], path, overwrite=overwrite, frames=frames[1:], milliseconds=milliseconds)

    def _frames(self, picture: int, labels: bool) -> list[tuple[Image.Image, Image.Image]]:
        if not self.steps:
            raise InputError("the film is empty; loop over film.watch(sd.denoise(...)) first.")
        validation.whole_number(picture, "picture", 0, len(self.steps[0].latents) - 1)
        pairs = []
        for step in self.steps:
            both = torch.stack([step.latents[picture], step.x0[picture]])
            noisy, clean = images.to_pil(self.sd.decode(both))
            if labels:
                pen = ImageDraw.Draw(noisy)
                pen.text((2, 1), f"t={float(step.t):.0f}", fill="white", stroke_width=1, stroke_fill="black")
            pairs.append((noisy, clean))
        return pairs


def _copy(step: DenoisingStep) -> DenoisingStep:
    return step._replace(latents=step.latents.clone(), x0=step.x0.clone())
