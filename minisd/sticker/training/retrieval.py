"""Measure CLIP: retrieval among scenes with distinct captions, and preference of true over untrue captions."""

from dataclasses import replace

import torch
from torch import Tensor

from minisd.models import CLIP
from minisd.sticker.training.clip_image import clip_pixels
from minisd.sticker.training.dataset import FIRST_TEST_SEED, sample_training_scene
from minisd.sticker.training.hard_negatives import NEGATIVES_PER_IMAGE, caption_and_negatives, compatible
from minisd.sticker.world.captions import Expectation, expectation_of, parse_caption, write_caption
from minisd.sticker.world.scene import Scene
from minisd.tokenizer import Tokenizer


def full_caption(scene: Scene, generator: torch.Generator) -> str:
    """A caption with all attributes that have words: also the relation, or the position of a single object."""
    whole = expectation_of(scene)
    objects = tuple(obj.nameable() for obj in whole.objects)
    if len(objects) > 1:
        objects = tuple(replace(obj, position=None) for obj in objects)
    content = replace(whole, objects=objects)
    while True:
        text = write_caption(content, generator)
        stated = parse_caption(text)
        complete = (stated.relation is None) == (content.relation is None)
        if complete and stated.objects[0].position == objects[0].position:
            return text


def distinct_scenes(count: int, seed: int) -> tuple[list[Scene], list[str]]:
    """Scenes drawn like those of the training, with full captions, each of which is true of its own scene alone."""
    generator = torch.Generator().manual_seed(seed)
    scenes: list[Scene] = []
    captions: list[str] = []
    known: list[tuple[Expectation, Expectation]] = []  # of the scene, and of its caption
    while len(scenes) < count:
        scene = sample_training_scene(generator)
        caption = full_caption(scene, generator)
        shown, stated = expectation_of(scene), parse_caption(caption)
        if not any(compatible(shown, b) or compatible(a, stated) for a, b in known):
            known.append((shown, stated))
            scenes.append(scene)
            captions.append(caption)
    return scenes, captions


@torch.no_grad()
def retrieval_accuracy(
    clip: CLIP, tokenizer: Tokenizer, count: int = 1000, seed: int = FIRST_TEST_SEED
) -> dict[str, float]:
    """Recall@1 among `count` distinct scenes: the share of texts whose own image is the closest, and of images."""
    scenes, captions = distinct_scenes(count, seed)
    cosines = embed_scenes(clip, scenes) @ embed_captions(clip, tokenizer, captions).T
    right = torch.arange(count, device=cosines.device)
    return {
        "text to image": (cosines.argmax(0) == right).float().mean().item(),
        "image to text": (cosines.argmax(1) == right).float().mean().item(),
    }


@torch.no_grad()
def hard_negative_accuracy(clip: CLIP, tokenizer: Tokenizer, count: int = 1000, seed: int = FIRST_TEST_SEED) -> float:
    """The share of images that are closer to their true caption than to an untrue one."""
    generator = torch.Generator().manual_seed(seed)
    scenes = [sample_training_scene(generator) for _ in range(count)]
    true, untrue = [], []
    for i, scene in enumerate(scenes):
        caption, negatives = caption_and_negatives(scene, generator)
        true.append(caption)
        untrue.append(negatives[i % NEGATIVES_PER_IMAGE])  # each kind in turn
    images = embed_scenes(clip, scenes)
    to_true, to_untrue = ((images * embed_captions(clip, tokenizer, texts)).sum(1) for texts in (true, untrue))
    return (to_true > to_untrue).float().mean().item()


def embed_scenes(clip: CLIP, scenes: list[Scene], chunk: int = 100) -> Tensor:
    """The unit vectors (N, P) of the scenes' images."""
    size, device = clip.image_encoder.config.image_size, clip.logit_scale.device
    parts = [scenes[i : i + chunk] for i in range(0, len(scenes), chunk)]
    return torch.cat([clip.embed_images(clip_pixels(part, size, device)) for part in parts])


def embed_captions(clip: CLIP, tokenizer: Tokenizer, captions: list[str], chunk: int = 100) -> Tensor:
    """The unit vectors (N, P) of captions."""
    ids = tokenizer.encode(captions, padding=False).ids.to(clip.logit_scale.device)
    return torch.cat([clip.embed_texts(part) for part in ids.split(chunk)])
