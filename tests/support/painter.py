"""In place of a trained pipeline: a painter that draws exactly what its prompt says, or something else on purpose."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from minisd import images
from minisd.pipeline import Defaults, Output
from minisd.schedulers import DDIM, NoiseSchedule, Scheduler
from minisd.sticker.world.captions import expectation, expectation_of
from minisd.sticker.world.palette import COLOURS
from minisd.sticker.world.render import render
from minisd.sticker.world.sampling import sample_scene
from minisd.sticker.world.scene import LAYERS, Scene
from minisd.sticker.world.splits import held_out

Asked = SimpleNamespace  # prompt, seed, negative, steps, scale, scheduler


def as_asked(asked: Asked) -> Scene:
    """A scene that the prompt describes; what it leaves open is as in the world without what is held out."""
    wanted = expectation(asked.prompt)
    rng = torch.Generator().manual_seed(asked.seed)
    single = len(wanted.things) == 1
    crowd = not single and len(set(wanted.things)) == 1 and wanted.relation is None
    while True:
        layered = wanted.relation in LAYERS
        styled = 0.7 if any(thing.style for thing in wanted.things) else 0
        scene = sample_scene(rng, 0 if crowd or single else 1, 1 if crowd else 0, styled=styled, overlapping=layered)
        if wanted.relation == "in front of":
            wanted = replace(wanted, things=wanted.things[::-1], relation="behind")
        if len(scene.things) != len(wanted.things) or (single and wanted.things[0].colour is None and held_out(scene)):
            continue
        shown = expectation_of(scene)
        parts = zip(shown.things, wanted.things, strict=True)
        fits = all(
            getattr(want, name) in (None, getattr(there, name))
            for there, want in parts
            for name in ("shape", "size", "position", "style")
        )
        if fits and wanted.relation in (None, scene.relation):
            things = zip(scene.things, wanted.things, strict=True)
            painted = tuple(replace(thing, colour=want.colour or thing.colour) for thing, want in things)
            return Scene(painted, wanted.background or scene.background, scene.overlapping)


def in_other_colours(asked: Asked) -> Scene:
    """As asked, but each colour is the next one of the palette."""
    scene, names = as_asked(asked), list(COLOURS)
    other = {name: names[(k + 1) % len(names)] for k, name in enumerate(names)}
    return replace(scene, things=tuple(replace(thing, colour=other[thing.colour]) for thing in scene.things))


class Lossless(nn.Module):
    """An autoencoder that keeps the pixels, times `gain`."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.config = SimpleNamespace(sample_size=64)
        self.gain = nn.Parameter(torch.tensor(gain))

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(mean=pixels)

    def decode(self, latents: Tensor) -> Tensor:
        return latents * self.gain


class Painter:
    """Has what the evaluation uses of a pipeline; `calls` are the prompts and the seed of each call."""

    def __init__(self, draw: Callable[[Asked], Scene] = as_asked) -> None:
        self.draw, self.vae, self.defaults = draw, Lossless(), Defaults()
        schedule = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
        self.scheduler: Scheduler = DDIM(schedule, "trailing", steps_offset=0, set_alpha_to_one=True)
        self.calls: list[tuple[list[str], int]] = []

    def __call__(
        self,
        prompt: Sequence[str],
        negative_prompt: str = "",
        seed: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Output:
        self.calls.append((list(prompt), seed))
        how = {"negative": negative_prompt, "steps": num_inference_steps, "scale": guidance_scale}
        asked = [Asked(prompt=p, seed=seed + k, scheduler=self.scheduler, **how) for k, p in enumerate(prompt)]
        return Output(images.to_pil(render([self.draw(each) for each in asked])), None)
