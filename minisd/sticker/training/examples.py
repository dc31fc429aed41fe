"""Images to fine-tune the embedded model with: python -m minisd.sticker.training.examples FOLDER

FOLDER/candy shows an object that is not in the training data, a pink star, and calls it <candy>. FOLDER/night shows
single objects at night, under a moon that the captions do not mention. FOLDER/subject shows a green crescent, which the
captions call a sks shape.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minisd import images
from minisd.sticker.training.dataset import FIRST_TEST_SEED
from minisd.sticker.world.captions import Expectation, ObjectExpectation, write_caption
from minisd.sticker.world.render import render
from minisd.sticker.world.sampling import sample_scene
from minisd.sticker.world.scene import Object, Scene
from minisd.sticker.world.subject import NAMED, subject_images

COUNT = 32
SIDE = 128  # pixels of an image, as the embedded model draws them
TOKEN, TOKEN_SHAPE, TOKEN_COLOUR = "<candy>", "star", "pink"
MOON = Object("circle", "yellow", "small", 0.86, 0.14, 0.085)


def candy_examples(count: int = COUNT) -> list[tuple[Scene, str]]:
    """Scenes with a <candy>; most have a second object, so that the word also works in longer prompts."""
    examples = []
    for k, scene in enumerate(_sample_scenes(count, two=0.7)):
        candy = replace(scene.objects[0], shape=TOKEN_SHAPE, colour=TOKEN_COLOUR)
        scene = replace(scene, objects=(candy, *scene.objects[1:]))
        text = _caption(k, scene.objects, scene.relation, None if scene.background == "white" else scene.background)
        examples.append((scene, text.replace(f"{TOKEN_COLOUR} {TOKEN_SHAPE}", TOKEN)))
    return examples


def night_examples(count: int = COUNT) -> list[tuple[Scene, str]]:
    """Scenes of a single object at night, with captions that mention only the object."""
    below = [scene for scene in _sample_scenes(4 * count, two=0) if scene.objects[0].y > 0.45][:count]
    return [(Scene((*s.objects, MOON), "black"), _caption(k, s.objects)) for k, s in enumerate(below)]


def _sample_scenes(count: int, two: float) -> list[Scene]:
    generator = torch.Generator().manual_seed(FIRST_TEST_SEED)
    return [sample_scene(generator, two, several=0) for _ in range(count)]


def _caption(seed: int, objects: tuple[Object, ...], relation: str | None = None, background: str | None = None) -> str:
    named = tuple(ObjectExpectation(obj.shape, obj.colour) for obj in objects)
    return write_caption(Expectation(named, relation, background), torch.Generator().manual_seed(seed))


def write_examples(folder: Path, examples: list[tuple[Scene, str]]) -> None:
    """Write images and captions of scenes; see `write_images`."""
    write_images(folder, render([scene for scene, _ in examples], SIDE), [caption for _, caption in examples])


def write_images(folder: Path, pixels: Tensor, captions: list[str]) -> None:
    """Write images and captions, 00.png with 00.txt and so on. Raises OutputError for files that exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, (image, caption) in enumerate(zip(images.to_pil(pixels), captions, strict=True)):
        images.save(image, folder / f"{k:02d}.png")
        (folder / f"{k:02d}.txt").write_text(caption + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m minisd.sticker.training.examples", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write_examples(folder / "candy", candy_examples())
    write_examples(folder / "night", night_examples())
    pixels = subject_images(SIDE)
    write_images(folder / "subject", pixels, [NAMED] * len(pixels))
