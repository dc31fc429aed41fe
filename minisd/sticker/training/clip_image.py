"""Linear probes for CLIP's image encoder, with the same questions as for the text encoder; see `text_encoder`."""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.interpret.clip_ranking import resize_and_crop
from minisd.models import CLIP
from minisd.sticker.training.autoencoder import VAE_CONFIG
from minisd.sticker.training.grown_vae import grown_config
from minisd.sticker.training.text_encoder import (
    CAPTION_QUESTIONS,
    OBJECT_QUESTIONS,
    answer_losses,
    caption_answers,
    object_answers,
    probe_layer,
)
from minisd.sticker.world.captions import expectation_of
from minisd.sticker.world.render import masks, render
from minisd.sticker.world.scene import Scene


class ImageProbeBatch(NamedTuple):
    """The right answers about scenes, all int64.

    answers (B, caption questions); for each of N objects its row and patch (N, 2), and the answers (N, object
    questions). The patch is the one that shows most of the object; patches are numbered like image states, in which the
    class token has the number 0.
    """

    answers: Tensor
    patches: Tensor
    object_answers: Tensor


class ImageProbe(nn.Module):
    """CLIP with linear layers that answer questions from its image states.

    The caption questions are answered from the class token, the object questions from the patch that shows most of the
    object.
    """

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip
        width = clip.image_encoder.config.width
        self.image_layer = probe_layer(width, CAPTION_QUESTIONS)
        self.patch_layer = probe_layer(width, OBJECT_QUESTIONS)

    def loss(self, states: Tensor, batch: ImageProbeBatch) -> Tensor:
        """Cross-entropy, summed over the questions: image states (B, 1 + N, width) -> ()."""
        whole = self.image_layer(self.clip.image_encoder.post_norm(states[:, 0]))
        objects = self.patch_layer(states[batch.patches[:, 0], batch.patches[:, 1]])
        of_images = answer_losses(whole, CAPTION_QUESTIONS, batch.answers)
        return torch.cat([of_images, answer_losses(objects, OBJECT_QUESTIONS, batch.object_answers)]).sum()


def clip_pixels(scenes: list[Scene], size: int, device: torch.device | str = "cpu") -> Tensor:
    """The images of scenes as CLIP sees those of the model: rendered at the model's size, resized to CLIP's.

    -> (B, 3, size, size)
    """
    return resize_and_crop(render(scenes, grown_config(VAE_CONFIG).sample_size, device), size)


def image_probe_batch(scenes: list[Scene], side: int) -> ImageProbeBatch:
    """The right answers about scenes, in side x side patches; a size or style without a word counts as None."""
    answers, patches, attributes = [], [], []
    clearest = F.avg_pool2d(masks(scenes, 8 * side), 8).flatten(2).argmax(2).tolist()
    for row, scene in enumerate(scenes):
        whole = expectation_of(scene)
        named = tuple(obj.nameable() for obj in whole.objects)
        answers.append(caption_answers(replace(whole, objects=named)))
        patches += [(row, 1 + patch) for patch in clearest[row][: len(scene.objects)]]
        attributes += [object_answers(obj) for obj in named]
    return ImageProbeBatch(torch.tensor(answers), torch.tensor(patches), torch.tensor(attributes))
