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
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.configs import CLIPImageConfig
from minisd.models import CLIP, CLIPTextTransformer
from minisd.tokenizer import Tokenizer
from minisd.training.lessons import UNSEEN, sample_lesson
from minisd.training.negatives import caption_and_negatives, could_both_be_true
from minisd.training.reading import OF_A_NOUN, OF_A_THING, QUESTIONS, answers
from minisd.training.trainer import Recipe, train
from minisd.world.captions import NAMED_SIZES, Expectation, describe, expectation, expectation_of
from minisd.world.render import render
from minisd.world.scene import Scene

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
NEGATIVES = 3  # untrue captions of each picture's own
SEEING = 0.3  # weight of the answers, which are summed over the questions
SLOWEST = 1 / 8  # positions begin as waves of 1 radian a patch down to this many ...
AMPLITUDE = 0.7  # ... about as large as what a patch shows
MAX_SCALE = math.log(100)  # Radford et al. 2021, section 2.5


def new_clip(text_encoder: CLIPTextTransformer, seed: int = 0) -> CLIP:
    """CLIP with a copy of a trained text encoder, which is locked, and a fresh image half and projections."""
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


class Seen(NamedTuple):
    """What scenes show: answers (B, questions); for each of N things row and patch (N, 2) and attributes (N, 3).

    All int64. Patches are counted as image states are, where the class token is 0.
    """

    answers: Tensor
    at: Tensor
    attributes: Tensor


class Seer(nn.Module):
    """CLIP and the linear layers that answer, from the states of its image half, what a picture shows: all of it from
    the class token's, what a thing is from the patch in its middle. A reader for pictures, see `reading.Reader`.
    """

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip
        width = clip.image_encoder.config.width
        self.answer = nn.Linear(width, sum(map(len, QUESTIONS.values())))
        self.of_thing = nn.Linear(width, sum(len(OF_A_THING[name]) for name in OF_A_NOUN))

    def loss(self, states: Tensor, right: Seen) -> Tensor:
        """Cross-entropy, summed over the questions: image states (B, 1 + N, width) -> ()."""
        whole = self.answer(self.clip.image_encoder.post_norm(states[:, 0])).float()
        things = self.of_thing(states[right.at[:, 0], right.at[:, 1]]).float()
        asked = zip(whole.split([len(possible) for possible in QUESTIONS.values()], 1), right.answers.T, strict=True)
        more = zip(things.split([len(OF_A_THING[name]) for name in OF_A_NOUN], 1), right.attributes.T, strict=True)
        return torch.stack([F.cross_entropy(logits, answer) for logits, answer in (*asked, *more)]).sum()


def seen(scenes: list[Scene], side: int) -> Seen:
    """What scenes show, in side x side patches; a size without a name is none."""
    rows, at, attributes = [], [], []
    for row, scene in enumerate(scenes):
        whole = expectation_of(scene)
        named = tuple(replace(t, size=t.size if t.size in OF_A_THING["size"] else None) for t in whole.things)
        rows.append(answers(replace(whole, things=named)))
        at += [(row, 1 + int(thing.y * side) * side + int(thing.x * side)) for thing in scene.things]
        attributes += [[OF_A_THING[name].index(getattr(thing, name)) for name in OF_A_NOUN] for thing in named]
    return Seen(torch.tensor(rows), torch.tensor(at), torch.tensor(attributes))


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
) -> CLIP:
    """Train CLIP's image half and projections, or continue the run at `path`, for `minutes` or `steps` in all.

    Returns the moving average.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        seer = Seer(new_clip(text_encoder)).to(device)
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


def full_caption(scene: Scene, generator: torch.Generator) -> str:
    """All there are words for: shapes, colours, sizes, background, and the relation or the one thing's place."""
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
    cosines = _embed_scenes(clip, scenes) @ _embed_captions(clip, tokenizer, captions).T
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
    images = _embed_scenes(clip, scenes)
    to_true, to_untrue = ((images * _embed_captions(clip, tokenizer, texts)).sum(1) for texts in (true, untrue))
    return (to_true > to_untrue).float().mean().item()


def _embed_scenes(clip: CLIP, scenes: list[Scene], chunk: int = 100) -> Tensor:
    size, device = clip.image_encoder.config.image_size, clip.logit_scale.device
    parts = [scenes[i : i + chunk] for i in range(0, len(scenes), chunk)]
    return torch.cat([clip.embed_images(render(part, size, device)) for part in parts])


def _embed_captions(clip: CLIP, tokenizer: Tokenizer, captions: list[str], chunk: int = 100) -> Tensor:
    ids = tokenizer.encode(captions, padding=False).ids.to(clip.logit_scale.device)
    return torch.cat([clip.embed_texts(part) for part in ids.split(chunk)])
