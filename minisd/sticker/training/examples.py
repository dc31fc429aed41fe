"""Images to fine-tune the embedded model with: python -m minisd.sticker.training.examples FOLDER

FOLDER/candy shows an object that is not in the training data, a pink star, and calls it <candy>. FOLDER/night shows
single objects at night, under a moon that the captions do not mention. FOLDER/subject shows a green crescent, which the
captions call a sks shape, alone and beside other objects; FOLDER/class shows shapes that the model knows.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minisd import images
from minisd.sticker.training.dataset import FIRST_TEST_SEED, training_scenes, write_training_caption
from minisd.sticker.world.captions import Expectation, ObjectExpectation, select_content, write_caption
from minisd.sticker.world.render import render
from minisd.sticker.world.sampling import sample_scene
from minisd.sticker.world.scene import Object, Scene
from minisd.sticker.world.subject import NAMED, Subject, draw_subject

COUNT = 32
SIDE = 128  # pixels of an image, as the embedded model draws them
TOKEN, TOKEN_SHAPE, TOKEN_COLOUR = "<candy>", "star", "pink"
MOON = Object("circle", "yellow", "small", 0.86, 0.14, 0.085)
CLASS_COUNT = 1000
SUBJECT_EXAMPLES = (  # the subject in front of a scene, and the caption; none is a context of the evaluation
    (Scene(()), Subject(0.45, 0.5, 0.2), f"a large {NAMED.removeprefix('a ')}"),
    (
        Scene((Object("star", "orange", "medium", 0.72, 0.5, 0.14),)),
        Subject(0.27, 0.48, 0.14),
        f"{NAMED} left of an orange star",
    ),
    (
        Scene((Object("square", "purple", "medium", 0.5, 0.75, 0.13),)),
        Subject(0.52, 0.27, 0.15),
        f"{NAMED} above a purple square",
    ),
    (
        Scene((Object("triangle", "red", "medium", 0.45, 0.25, 0.14),)),
        Subject(0.48, 0.72, 0.14),
        f"a red triangle above {NAMED}",
    ),
    (
        Scene((), "black"),
        Subject(0.62, 0.28, 0.1),
        f"a small {NAMED.removeprefix('a ')} at the top on a black background",
    ),
    (
        Scene((Object("circle", "cyan", "medium", 0.25, 0.5, 0.13),), "gray"),
        Subject(0.7, 0.52, 0.15),
        f"{NAMED} right of a cyan circle on a gray background",
    ),
)


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


def subject_examples(size: int = SIDE) -> tuple[Tensor, list[str]]:
    """Six images (6, 3, size, size) in [-1, 1] of the subject, and their captions."""
    pixels = [draw_subject(scene, subject, size) for scene, subject, _ in SUBJECT_EXAMPLES]
    return torch.stack(pixels), [caption for *_, caption in SUBJECT_EXAMPLES]


def class_examples(count: int = CLASS_COUNT) -> list[tuple[Scene, str]]:
    """Scenes of the training with their captions: what the model shall still draw when it knows the subject.

    Every second caption calls an object by the word of the class, a shape, or by a synonym.
    """
    generator = torch.Generator().manual_seed(FIRST_TEST_SEED)
    examples = []
    for k, scene in enumerate(training_scenes(count, FIRST_TEST_SEED)):
        content = select_content(scene, generator)
        if k % 2:
            first, *others = content.objects
            unnamed = replace(first, shape=None)
            content = replace(content, objects=tuple(unnamed if each == first else each for each in (first, *others)))
        examples.append((scene, write_training_caption(content, generator)))
    return examples


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
    write_images(folder / "subject", *subject_examples())
    write_examples(folder / "class", class_examples())
