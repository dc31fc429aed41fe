"""Teach CLIP's image half to see what the text half already reads: InfoNCE (Radford et al. 2021, figure 3).

The text half was trained before, by `reading`, and is locked, but for its projection; Zhai et al. 2022 (LiT) lock the
image half, which is the one that is trained before there. One may not only contrast captions of different pictures:
see `negatives`. And the image half answers the questions that the text half learned to read by: what is in a picture
is said faster than found out by comparing.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.configs import CLIPImageConfig
from minisd.errors import MismatchError
from minisd.models import CLIP, CLIPTextTransformer
from minisd.sticker.training.clip_image import Seen, Seer, seen
from minisd.sticker.training.dataset import sample_lesson
from minisd.sticker.training.hard_negatives import NEGATIVES, caption_and_negatives, could_both_be_true
from minisd.sticker.training.retrieval import hard_negative_accuracy
from minisd.sticker.world.captions import expectation, expectation_of
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Scene
from minisd.tokenizer import Tokenizer
from minisd.training.trainer import Recipe, train

IMAGE_CONFIG = CLIPImageConfig(
    image_size=64,
    patch_size=8,
    width=128,
    layers=4,
    heads=4,
    mlp_width=4 * 128,
    projection_width=128,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
SIDE = IMAGE_CONFIG.image_size // IMAGE_CONFIG.patch_size  # patches along it
SEEING = 0.3  # weight of the answers, which are summed over the questions
SLOWEST = 1 / 8  # positions begin as waves of 1 radian a patch down to this many ...
AMPLITUDE = 0.7  # ... about as large as what a patch shows
MAX_SCALE = math.log(100)  # Radford et al. 2021, section 2.5


def new_clip(text_encoder: CLIPTextTransformer, seed: int = 0, start: CLIP | None = None) -> CLIP:
    """CLIP with a copy of a trained text encoder, which is locked, and a fresh image half and projections.

    start: another CLIP, of an earlier text encoder, whose image half and projections are taken instead. Raises
    MismatchError when these have other sizes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = CLIP(replace(text_encoder.config, projection_width=IMAGE_CONFIG.projection_width), IMAGE_CONFIG)
    projection = {"text_projection.weight": clip.text_encoder.text_projection.weight}
    clip.text_encoder.load_state_dict(text_encoder.state_dict() | projection)
    clip.text_encoder.requires_grad_(False).text_projection.requires_grad_(True)
    with torch.no_grad():
        positions = clip.image_encoder.position_embedding.weight
        positions[0] = 0
        positions[1:] = plane_waves(SIDE, IMAGE_CONFIG.width)
    if start is not None:
        if start.image_encoder.config != IMAGE_CONFIG:
            raise MismatchError("the CLIP to start from has other sizes than the one to train.")
        clip.image_encoder.load_state_dict(start.image_encoder.state_dict())
        clip.text_encoder.text_projection.load_state_dict(start.text_encoder.text_projection.state_dict())
        clip.logit_scale.data.copy_(start.logit_scale)
    return clip


def plane_waves(side: int, width: int) -> Tensor:
    """Where each patch of a grid is, as sines and cosines along y and along x: (side * side, width).

    Neighbours begin alike, so attention can look around from the first step on; positions drawn at random have to
    learn it before any shape can be seen (1,000 steps later it still was not).
    """
    waves = torch.exp(torch.linspace(0, math.log(SLOWEST), width // 4))
    angles = torch.arange(side)[:, None] * waves
    along = torch.cat([angles.sin(), angles.cos()], 1) * AMPLITUDE
    y, x = along[:, None].expand(-1, side, -1), along[None].expand(side, -1, -1)
    return torch.cat([y, x], 2).flatten(0, 1)


def contrast(clip: CLIP, images: Tensor, ids: Tensor, also_true: Tensor) -> Tensor:
    """Symmetric InfoNCE: which of the texts belongs to a picture, which of the pictures to a text?  -> ()

    images (B, P), pictures as unit vectors; ids (B + B * NEGATIVES, L): each picture's caption, then each one's untrue
    captions; also_true (B, B): the captions that happen to be true of another picture and may not be held against it.
    """
    images, texts = images.float(), clip.embed_texts(ids).float()
    captions, untrue = texts[: len(images)], texts[len(images) :].unflatten(0, (len(images), NEGATIVES))
    right = torch.arange(len(images), device=images.device)
    with torch.autocast(images.device.type, enabled=False):  # the scale makes much of a cosine's third digit
        scale = clip.logit_scale.exp()
        logits = (scale * images @ captions.T).masked_fill(also_true, -math.inf)
        hard = scale * (untrue @ images[:, :, None])[:, :, 0]  # (B, NEGATIVES)
        of_texts, of_pictures = F.cross_entropy(torch.cat([logits, hard], 1), right), F.cross_entropy(logits.T, right)
    return (of_texts + of_pictures) / 2


def draw_batch(tokenizer: Tokenizer, count: int, generator: torch.Generator) -> tuple[list[Scene], Tensor, Tensor]:
    """Scenes of the lessons, with the ids and the mask that `contrast` takes."""
    scenes = [sample_lesson(generator) for _ in range(count)]
    captions, negatives = zip(*(caption_and_negatives(scene, generator, NEGATIVES) for scene in scenes), strict=True)
    ids = tokenizer.encode([*captions, *(text for texts in negatives for text in texts)], padding=False).ids
    shown, said = map(expectation_of, scenes), [expectation(caption) for caption in captions]
    also_true = torch.tensor([[could_both_be_true(picture, caption) for caption in said] for picture in shown])
    return scenes, ids, also_true.fill_diagonal_(False)


def train_clip(
    text_encoder: CLIPTextTransformer,
    tokenizer: Tokenizer,
    minutes: float,
    path: Path,
    report: Callable[[str], None],
    batch: int = 64,
    steps: int | None = None,
    device: str = "cpu",
    start: CLIP | None = None,
) -> CLIP:
    """Train CLIP's image half and projections, or continue the run at `path`, for `minutes` or `steps` in all.

    Fresh, or from those of `start`, see `new_clip`. Returns the moving average.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        seer = Seer(new_clip(text_encoder, start=start)).to(device)
    clip = seer.clip

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        with torch.no_grad():
            clip.logit_scale.clamp_(max=MAX_SCALE)
        scenes, ids, also_true = draw_batch(tokenizer, batch, generator)
        pixels = render(scenes, IMAGE_CONFIG.image_size, device)
        states = clip.image_encoder(pixels)
        images = F.normalize(clip.image_encoder.pool(states), dim=-1)
        seeing = seer.loss(states, Seen(*(each.to(device) for each in seen(scenes, SIDE))))
        return contrast(clip, images, ids.to(device), also_true.to(device)) + SEEING * seeing

    recipe = Recipe(minutes, steps, learning_rate=1e-3, warmup_steps=50, bfloat16=True)
    average = train(seer, loss, recipe, path, report).clip.eval()
    average.logit_scale.clamp_(max=MAX_SCALE)
    hard = hard_negative_accuracy(average, tokenizer, count=200)
    report(f"sees what captions say: {hard:.1%} of untrue ones told from the true one (chance: 50 %)")
    return average
