"""Train CLIP's image encoder against the trained text encoder: InfoNCE (Radford et al. 2021, figure 3).

The text encoder is frozen, except for its projection, the reverse of LiT (Zhai et al. 2022), which freezes a trained
image encoder. Each image also has untrue captions of its own, see `hard_negatives`. And linear probes answer from the
image states the questions that the text encoder was trained on: this is learned faster than by contrast alone.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.configs import CLIPImageConfig
from minisd.errors import MismatchError
from minisd.models import CLIP, CLIPTextTransformer
from minisd.sticker.training.clip_image import ImageProbe, ImageProbeBatch, clip_pixels, image_probe_batch
from minisd.sticker.training.dataset import sample_training_scene, scenes_fingerprint, write_training_caption
from minisd.sticker.training.hard_negatives import NEGATIVES_PER_IMAGE, caption_and_negatives, compatible
from minisd.sticker.training.retrieval import hard_negative_accuracy
from minisd.sticker.world.captions import expectation_of, parse_caption
from minisd.sticker.world.scene import Scene
from minisd.tokenizer import Tokenizer
from minisd.training.trainer import Recipe, TrainingRun, train

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
PATCHES = IMAGE_CONFIG.image_size // IMAGE_CONFIG.patch_size  # along one side
PROBE_WEIGHT = 0.3  # of the probes' loss, which is summed over the questions
MIN_FREQUENCY = 1 / 8  # position embeddings start as waves of 1 down to this many radians a patch
AMPLITUDE = 0.7  # of these waves, about that of the patch embeddings
MAX_SCALE = math.log(100)  # Radford et al. 2021, section 2.5


def new_clip(text_encoder: CLIPTextTransformer, seed: int = 0, start: CLIP | None = None) -> CLIP:
    """CLIP with a frozen copy of a trained text encoder, and an untrained image encoder and projections.

    start: another CLIP, of an earlier text encoder, whose image encoder and projections are copied instead. Raises
    MismatchError if they have other sizes.
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
        positions[1:] = plane_waves(PATCHES, IMAGE_CONFIG.width)
    if start is not None:
        if start.image_encoder.config != IMAGE_CONFIG:
            raise MismatchError("the CLIP to start from has other sizes than the one to train; start from 'sticker'.")
        clip.image_encoder.load_state_dict(start.image_encoder.state_dict())
        clip.text_encoder.text_projection.load_state_dict(start.text_encoder.text_projection.state_dict())
        clip.logit_scale.data.copy_(start.logit_scale)
    return clip


def plane_waves(side: int, width: int) -> Tensor:
    """The position of each patch of a grid, as sines and cosines along y and along x: (side * side, width).

    Adjacent patches start with similar embeddings, so that attention can use neighbours from the first step on. Random
    embeddings must learn this before any shape is recognised, which had not happened after 1,000 steps.
    """
    waves = torch.exp(torch.linspace(0, math.log(MIN_FREQUENCY), width // 4))
    angles = torch.arange(side)[:, None] * waves
    along = torch.cat([angles.sin(), angles.cos()], 1) * AMPLITUDE
    y, x = along[:, None].expand(-1, side, -1), along[None].expand(side, -1, -1)
    return torch.cat([y, x], 2).flatten(0, 1)


def contrastive_loss(clip: CLIP, images: Tensor, ids: Tensor, also_true: Tensor) -> Tensor:
    """Symmetric InfoNCE: classify the text of each image, and the image of each text.  -> ()

    images (B, P): unit vectors; ids (B + B * NEGATIVES_PER_IMAGE, L): each image's caption, then the untrue captions of
    each image; also_true (B, B): captions that are also true of another image and do not count as negatives there.
    """
    images, texts = images.float(), clip.embed_texts(ids).float()
    captions, untrue = texts[: len(images)], texts[len(images) :].unflatten(0, (len(images), NEGATIVES_PER_IMAGE))
    right = torch.arange(len(images), device=images.device)
    with torch.autocast(images.device.type, enabled=False):  # the scale amplifies errors of the cosines
        scale = clip.logit_scale.exp()
        logits = (scale * images @ captions.T).masked_fill(also_true, -math.inf)
        hard = scale * (untrue @ images[:, :, None])[:, :, 0]  # (B, NEGATIVES_PER_IMAGE)
        of_texts, of_images = F.cross_entropy(torch.cat([logits, hard], 1), right), F.cross_entropy(logits.T, right)
    return (of_texts + of_images) / 2


def sample_batch(tokenizer: Tokenizer, count: int, generator: torch.Generator) -> tuple[list[Scene], Tensor, Tensor]:
    """Training scenes, with the ids and the mask that `contrastive_loss` takes."""
    scenes = [sample_training_scene(generator) for _ in range(count)]
    pairs = (caption_and_negatives(scene, generator, words=write_training_caption) for scene in scenes)
    captions, negatives = zip(*pairs, strict=True)
    ids = tokenizer.encode([*captions, *(text for texts in negatives for text in texts)], padding=False).ids
    shown, contents = map(expectation_of, scenes), [parse_caption(caption) for caption in captions]
    also_true = torch.tensor([[compatible(scene, content) for content in contents] for scene in shown])
    return scenes, ids, also_true.fill_diagonal_(False)


def train_clip(
    text_encoder: CLIPTextTransformer,
    tokenizer: Tokenizer,
    run: TrainingRun,
    batch: int = 64,
    device: str = "cpu",
    start: CLIP | None = None,
) -> CLIP:
    """Train CLIP's image encoder and projections; start: see `new_clip`. Returns the moving average."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        probe = ImageProbe(new_clip(text_encoder, start=start)).to(device)
    clip = probe.clip

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        with torch.no_grad():
            clip.logit_scale.clamp_(max=MAX_SCALE)
        scenes, ids, also_true = sample_batch(tokenizer, batch, generator)
        states = clip.image_encoder(clip_pixels(scenes, IMAGE_CONFIG.image_size, device))
        images = F.normalize(clip.image_encoder.pool(states), dim=-1)
        answers = ImageProbeBatch(*(each.to(device) for each in image_probe_batch(scenes, PATCHES)))
        probe_loss = probe.loss(states, answers)
        return contrastive_loss(clip, images, ids.to(device), also_true.to(device)) + PROBE_WEIGHT * probe_loss

    recipe = Recipe(learning_rate=1e-3, warmup_steps=50, autocast="bfloat16")
    run = run.of(batch=batch, scenes=scenes_fingerprint())
    average = train(probe, loss, recipe, run).clip.eval()
    average.logit_scale.clamp_(max=MAX_SCALE)
    accuracy = hard_negative_accuracy(average, tokenizer, count=200)
    run.report(f"CLIP prefers the true caption to an untrue one in {accuracy:.1%} of images (chance: 50 %)")
    return average
