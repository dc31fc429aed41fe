"""What is taught: the scenes of Sticker World that are not held out, and the words for them."""

import torch

from minisd.sticker.training.vocabulary import learn_vocabulary
from minisd.sticker.world.captions import WORDS
from minisd.sticker.world.sampling import sample_scene
from minisd.sticker.world.scene import Scene
from minisd.sticker.world.splits import held_out
from minisd.tokenizer import Tokenizer

UNSEEN = 1_000_000  # seeds of scenes from here on are not those of training
TAUGHT_WORDS = " ".join(WORDS)
STYLED = 0.3  # see `sample_scene`: a fifth of the scenes show another style than flat then
SHORT = 26  # tokens of a text in training: every caption is shorter, and padding costs as much as words


def new_tokenizer() -> Tokenizer:
    """The vocabulary of Sticker World."""
    return learn_vocabulary(WORDS)


def sample_lesson(generator: torch.Generator) -> Scene:
    """Draw a scene that is not held out: two things in half of them, half of which overlap, or several alike."""
    chances = {"two": 0.52, "several": 0.34, "white": 0.65, "styled": STYLED, "overlapping": 0.5}
    while held_out(scene := sample_scene(generator, **chances)):
        pass
    return scene


def lessons(count: int, seed: int) -> list[Scene]:
    """The first `count` scenes of a seed that may be taught."""
    generator = torch.Generator().manual_seed(seed)
    return [sample_lesson(generator) for _ in range(count)]
