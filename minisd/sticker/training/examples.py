"""Pictures to fine-tune the embedded model with: python -m minisd.sticker.training.examples FOLDER

FOLDER/candy shows a thing that training never did, a pink star, and calls it <candy>. FOLDER/night shows single things
at night, under a moon that no caption speaks of.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from minisd import images
from minisd.sticker.training.dataset import UNSEEN
from minisd.sticker.world.captions import Expectation, ThingExpectation, describe
from minisd.sticker.world.render import render
from minisd.sticker.world.sampling import sample_scene
from minisd.sticker.world.scene import Scene, Thing

COUNT = 32
WORD, CANDY = "<candy>", ("star", "pink")
MOON = Thing("circle", "yellow", "small", 0.86, 0.14, 0.085)


def candy(count: int = COUNT) -> list[tuple[Scene, str]]:
    """Scenes with a <candy>, most beside another thing, or the word would not learn to share a prompt."""
    shape, colour = CANDY
    lessons = []
    for k, scene in enumerate(_scenes(count, two=0.7)):
        scene = replace(scene, things=(replace(scene.things[0], shape=shape, colour=colour), *scene.things[1:]))
        text = _described(k, scene.things, scene.relation, None if scene.background == "white" else scene.background)
        lessons.append((scene, text.replace(f"{colour} {shape}", WORD)))
    return lessons


def night(count: int = COUNT) -> list[tuple[Scene, str]]:
    """Scenes of a single thing at night, with captions that say nothing of the night."""
    below = [scene for scene in _scenes(4 * count, two=0) if scene.things[0].y > 0.45][:count]
    return [(Scene((*s.things, MOON), "black"), _described(k, s.things)) for k, s in enumerate(below)]


def _scenes(count: int, two: float) -> list[Scene]:
    generator = torch.Generator().manual_seed(UNSEEN)
    return [sample_scene(generator, two, several=0) for _ in range(count)]


def _described(seed: int, things: tuple[Thing, ...], relation: str | None = None, background: str | None = None) -> str:
    said = tuple(ThingExpectation(thing.shape, thing.colour) for thing in things)
    return describe(Expectation(said, relation, background), torch.Generator().manual_seed(seed))


def write(folder: Path, lessons: list[tuple[Scene, str]]) -> None:
    """Write pictures and captions, 00.png beside 00.txt. Raises OutputError for files that exist."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = images.to_pil(render([scene for scene, _ in lessons]))
    for k, (picture, (_, caption)) in enumerate(zip(pictures, lessons, strict=True)):
        images.save(picture, folder / f"{k:02d}.png")
        (folder / f"{k:02d}.txt").write_text(caption + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m minisd.sticker.training.examples", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write(folder / "candy", candy())
    write(folder / "night", night())
