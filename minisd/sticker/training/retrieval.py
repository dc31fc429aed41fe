"""How well CLIP tells whose caption is whose: among scenes that no caption confuses, and beside untrue captions."""

from dataclasses import replace

import torch
from torch import Tensor

from minisd.models import CLIP
from minisd.sticker.training.dataset import UNSEEN, sample_lesson
from minisd.sticker.training.hard_negatives import NEGATIVES, caption_and_negatives, could_both_be_true
from minisd.sticker.world.captions import NAMED_SIZES, Expectation, describe, expectation, expectation_of
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Scene
from minisd.tokenizer import Tokenizer


def full_caption(scene: Scene, generator: torch.Generator) -> str:
    """All there are words for: shapes, colours, sizes, styles, background, the relation or the one thing's place."""
    whole = expectation_of(scene)
    things = tuple(
        replace(
            thing,
            size=thing.size if thing.size in NAMED_SIZES else None,
            position=thing.position if len(whole.things) == 1 else None,
        )
        for thing in whole.things
    )
    wanted = replace(whole, things=things)
    while True:
        text = describe(wanted, generator)
        said = expectation(text)
        if (said.relation is None) == (wanted.relation is None) and said.things[0].position == things[0].position:
            return text


def distinct_scenes(count: int, seed: int) -> tuple[list[Scene], list[str]]:
    """Scenes of the lessons with full captions, each of which is true of its own scene alone."""
    generator = torch.Generator().manual_seed(seed)
    scenes: list[Scene] = []
    captions: list[str] = []
    known: list[tuple[Expectation, Expectation]] = []  # what a scene shows, what its caption says
    while len(scenes) < count:
        scene = sample_lesson(generator)
        caption = full_caption(scene, generator)
        shown, said = expectation_of(scene), expectation(caption)
        if not any(could_both_be_true(shown, b) or could_both_be_true(a, said) for a, b in known):
            known.append((shown, said))
            scenes.append(scene)
            captions.append(caption)
    return scenes, captions


@torch.no_grad()
def retrieval(clip: CLIP, tokenizer: Tokenizer, count: int = 1000, seed: int = UNSEEN) -> dict[str, float]:
    """R@1 among `count` distinct scenes: how often the closest picture is the text's own, and the other way round."""
    scenes, captions = distinct_scenes(count, seed)
    cosines = embed_scenes(clip, scenes) @ embed_captions(clip, tokenizer, captions).T
    right = torch.arange(count, device=cosines.device)
    return {
        "text to image": (cosines.argmax(0) == right).float().mean().item(),
        "image to text": (cosines.argmax(1) == right).float().mean().item(),
    }


@torch.no_grad()
def hard_negative_accuracy(clip: CLIP, tokenizer: Tokenizer, count: int = 1000, seed: int = UNSEEN) -> float:
    """The share of pictures that are closer to their true caption than to an untrue one, of each kind by turns."""
    generator = torch.Generator().manual_seed(seed)
    scenes = [sample_lesson(generator) for _ in range(count)]
    true, untrue = [], []
    for i, scene in enumerate(scenes):
        caption, negatives = caption_and_negatives(scene, generator, NEGATIVES)
        true.append(caption)
        untrue.append(negatives[i % NEGATIVES])
    images = embed_scenes(clip, scenes)
    to_true, to_untrue = ((images * embed_captions(clip, tokenizer, texts)).sum(1) for texts in (true, untrue))
    return (to_true > to_untrue).float().mean().item()


def embed_scenes(clip: CLIP, scenes: list[Scene], chunk: int = 100) -> Tensor:
    """The unit vectors (N, P) of scenes' pictures."""
    size, device = clip.image_encoder.config.image_size, clip.logit_scale.device
    parts = [scenes[i : i + chunk] for i in range(0, len(scenes), chunk)]
    return torch.cat([clip.embed_images(render(part, size, device)) for part in parts])


def embed_captions(clip: CLIP, tokenizer: Tokenizer, captions: list[str], chunk: int = 100) -> Tensor:
    """The unit vectors (N, P) of captions."""
    ids = tokenizer.encode(captions, padding=False).ids.to(clip.logit_scale.device)
    return torch.cat([clip.embed_texts(part) for part in ids.split(chunk)])
