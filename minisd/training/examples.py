"""Pictures to fine-tune the embedded model with: python -m minisd.training.examples FOLDER

FOLDER/candy shows a thing that training never did, a pink star, and calls it <candy>. FOLDER/night shows single things
at night, under a moon that no caption speaks of.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from minisd import images
from minisd.training.lessons import UNSEEN
from minisd.world.captions import Expectation, ThingExpectation, describe
from minisd.world.render import render
from minisd.world.scene import Scene, Thing, sample_scene

COUNT = 24
CANDY = ("star", "pink")
MOON = Thing("circle", "yellow", "small", 0.86, 0.14, 0.085)


def candy(count: int = COUNT) -> list[tuple[Scene, str]]:
    """Scenes of a single <candy>, with captions."""
    scenes = _single(count)
    changed = [Scene((replace(s.things[0], shape=CANDY[0], colour=CANDY[1]),), s.background) for s in scenes]
    return [(scene, f"a <candy> on a {scene.background} background") for scene in changed]


def night(count: int = COUNT) -> list[tuple[Scene, str]]:
    """Scenes of a single thing at night, with captions that say nothing of the night."""
    below = [s for s in _single(4 * count) if s.things[0].y > 0.45][:count]
    return [(Scene((*scene.things, MOON), "black"), _name(scene.things[0])) for scene in below]


def _single(count: int) -> list[Scene]:
    generator = torch.Generator().manual_seed(UNSEEN)
    return [sample_scene(generator, two=0, several=0) for _ in range(count)]


def _name(thing: Thing) -> str:
    return describe(Expectation((ThingExpectation(thing.shape, thing.colour),)), torch.Generator().manual_seed(0))


def write(folder: Path, lessons: list[tuple[Scene, str]]) -> None:
    """Write pictures and captions, 00.png beside 00.txt. Raises OutputError for files that exist."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = images.to_pil(render([scene for scene, _ in lessons]))
    for k, (picture, (_, caption)) in enumerate(zip(pictures, lessons, strict=True)):
        images.save(picture, folder / f"{k:02d}.png")
        (folder / f"{k:02d}.txt").write_text(caption + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) / "candy", candy())
    write(Path(sys.argv[1]) / "night", night())
