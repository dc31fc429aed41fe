"""A painter in place of a trained pipeline: it draws exactly what the prompt describes, or is wrong on purpose."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from minisd import images
from minisd.pipeline import Defaults, Output
from minisd.schedulers import DDIM, NoiseSchedule, Scheduler
from minisd.sticker.world.captions import expectation_of, parse_caption
from minisd.sticker.world.palette import COLOURS
from minisd.sticker.world.render import render
from minisd.sticker.world.sampling import sample_scene
from minisd.sticker.world.scene import DEPTH_RELATIONS, Scene
from minisd.sticker.world.splits import held_out

Request = SimpleNamespace  # prompt, seed, negative, steps, scale, scheduler


def as_requested(request: Request) -> Scene:
    """A scene that the prompt describes; what the prompt leaves open is drawn like in the training data."""
    return _scene_for(request.prompt, request.seed)


@cache
def _scene_for(prompt: str, seed: int) -> Scene:
    expected = parse_caption(prompt)
    rng = torch.Generator().manual_seed(seed)
    single = len(expected.objects) == 1
    alike = not single and len(set(expected.objects)) == 1 and expected.relation is None
    layered = expected.relation in DEPTH_RELATIONS
    styled = 0.7 if any(obj.style for obj in expected.objects) else 0
    if expected.relation == "in front of":
        expected = replace(expected, objects=expected.objects[::-1], relation="behind")
    while True:
        scene = sample_scene(rng, 0 if alike or single else 1, 1 if alike else 0, styled=styled, overlapping=layered)
        if len(scene.objects) != len(expected.objects):
            continue
        if single and expected.objects[0].colour is None and held_out(scene):
            continue
        shown = expectation_of(scene)
        fits = all(
            getattr(wanted, name) in (None, getattr(obj, name))
            for obj, wanted in zip(shown.objects, expected.objects, strict=True)
            for name in ("shape", "size", "position", "style")
        )
        if fits and expected.relation in (None, scene.relation):
            pairs = zip(scene.objects, expected.objects, strict=True)
            painted = tuple(replace(obj, colour=wanted.colour or obj.colour) for obj, wanted in pairs)
            return Scene(painted, expected.background or scene.background, scene.overlapping)


def in_other_colours(request: Request) -> Scene:
    """As requested, but each colour is replaced by the next one of the palette."""
    scene, names = as_requested(request), list(COLOURS)
    other = {name: names[(k + 1) % len(names)] for k, name in enumerate(names)}
    return replace(scene, objects=tuple(replace(obj, colour=other[obj.colour]) for obj in scene.objects))


class Lossless(nn.Module):
    """An autoencoder whose latents are the pixels; decoding multiplies them by `gain`."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.config = SimpleNamespace(sample_size=64)
        self.gain = nn.Parameter(torch.tensor(gain))

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(mean=pixels)

    def decode(self, latents: Tensor) -> Tensor:
        return latents * self.gain


class Painter:
    """The attributes of a pipeline that the evaluation uses; `calls` are the prompts and the seed of each call,
    `reused` the values of reuse_features.
    """

    def __init__(self, draw: Callable[[Request], Scene] = as_requested) -> None:
        self.draw, self.vae, self.defaults = draw, Lossless(), Defaults()
        schedule = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
        self.scheduler: Scheduler = DDIM(schedule, "trailing", steps_offset=0, set_alpha_to_one=True)
        self.calls: list[tuple[list[str], int]] = []
        self.reused: set[int] = set()

    def __call__(
        self,
        prompt: Sequence[str],
        negative_prompt: str = "",
        seed: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        reuse_features: int = 1,
    ) -> Output:
        self.calls.append((list(prompt), seed))
        self.reused.add(reuse_features)
        how = {"negative": negative_prompt, "steps": num_inference_steps, "scale": guidance_scale}
        requests = [Request(prompt=p, seed=seed + k, scheduler=self.scheduler, **how) for k, p in enumerate(prompt)]
        return Output(images.to_pil(render([self.draw(each) for each in requests])), None)
