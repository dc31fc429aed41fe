"""Watching the denoising: Film keeps x_t and the predicted x0 of some steps and shows them, as a strip or a GIF."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from minisd import images
from minisd._internal import validation
from minisd.errors import InputError
from minisd.pipeline import DenoisingStep, StableDiffusion


class Film:
    """Keeps every `every`-th step of a run, and the last one; decoded only when shown.

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
        """Pass steps through and keep some; what is shown can never change the picture."""
        self.steps = []
        last = None
        for last in steps:
            if last.i % self.every == 0:
                self.steps.append(_copy(last))
            yield last
        if last is not None and last.i % self.every:
            self.steps.append(_copy(last))

    def strip(self, picture: int = 0, labels: bool = True) -> Image.Image:
        """One column a kept step: above x_t, below the predicted x0, for one picture of the batch."""
        frames = self._frames(picture, labels)
        return images.image_grid([top for top, _ in frames] + [below for _, below in frames], len(frames), gap=2)

    def gif(self, path: str | Path, picture: int = 0, milliseconds: int = 120, overwrite: bool = False) -> Path:
        """Write an animation, x_t beside the predicted x0. Raises OutputError."""
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
