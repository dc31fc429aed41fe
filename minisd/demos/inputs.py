"""What several demos begin with: settings that are checked, a scene to change, its mask and its depth."""

import re

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from minisd import images
from minisd._internal import validation
from minisd.errors import InputError
from minisd.images import Picture
from minisd.pipeline import StableDiffusion
from minisd.pipeline.noise import draw_noise
from minisd.sticker.world.render import depth, render
from minisd.sticker.world.scene import Object, Scene

PROMPT = "a red circle above a blue square"
CIRCLE = Object("circle", "red", "large", 0.32, 0.36, 0.19)
SCENE = Scene((CIRCLE, Object("square", "blue", "small", 0.76, 0.74, 0.09)), "beige")
SCENE_PROMPT = "a large red circle above a small blue square on a beige background"
MARGIN = 0.06  # of the mask around the circle, in parts of the image


def check_task(sd: StableDiffusion, *tasks: str) -> None:
    """Raises InputError for a model of another task."""
    if sd.task not in tasks:
        raise InputError(
            f"this demo needs a model for {' or '.join(tasks)}, but {sd.source or 'this model'} is for {sd.task}."
        )


def steps_of(sd: StableDiffusion, num_inference_steps: int | None, usual: int | None = None) -> int:
    """The number of steps that is asked for, else `usual`, else the model's. Raises InputError."""
    steps = usual or sd.defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
    return validation.whole_number(steps, "num_inference_steps", 1, sd.scheduler.schedule.num_train_timesteps)


def moments(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 to count - 1, evenly spaced, the first and the last among them."""
    most = min(count, most)
    return [round(k * (count - 1) / max(most - 1, 1)) for k in range(most)]


def words_of(prompt: str) -> list[str]:
    """The words of a prompt, each once."""
    return list(dict.fromkeys(re.findall(r"\w+", prompt)))


def image_size(sd: StableDiffusion) -> tuple[int, int]:
    """Height and width in pixels of the images that the model was trained with."""
    height, width = (cells * sd.vae.config.downscale for cells in sd.unet.config.cells)
    return height, width


def noise_of(sd: StableDiffusion, seed: int) -> Tensor:
    """The noise (1, C, h, w) that a run of the pipeline with this seed begins with. Raises InputError."""
    generator = torch.Generator().manual_seed(validation.seed(seed))
    return draw_noise((1, sd.vae.config.latent_channels, *sd.unet.config.cells), [generator])


def pixels_of(sd: StableDiffusion, image: Picture | None) -> Tensor:
    """One image, cut to the model's size, as pixels (1, 3, H, W) in [-1, 1]; without one, a scene of Sticker World."""
    height, width = image_size(sd)
    if image is None:
        return _at_size(render([SCENE], max(height, width)), (height, width))
    if isinstance(image, Image.Image):
        return images.from_pil(ImageOps.fit(image, (width, height)))
    return images.to_pixels(image, "image", (width, height))[:1]


def mask_of(sd: StableDiffusion, mask_image: Picture | None, own_scene: bool) -> Tensor:
    """A mask (1, 1, H, W), 1 where it marks; without one, a box around the scene's circle, or in the middle."""
    height, width = image_size(sd)
    if mask_image is not None:
        return (images.to_mask(mask_image, "mask_image", (width, height))[:1] >= 0.5).float()
    half = CIRCLE.radius + MARGIN if own_scene else 0.25
    x, y = (CIRCLE.x, CIRCLE.y) if own_scene else (0.5, 0.5)
    mask = torch.zeros(1, 1, height, width)
    rows, columns = (
        slice(max(0, round((at - half) * side)), round((at + half) * side)) for at, side in ((y, height), (x, width))
    )
    mask[:, :, rows, columns] = 1
    return mask


def depth_of(sd: StableDiffusion, depth_map: Picture | None) -> Tensor:
    """A depth map (1, 1, H, W), larger is nearer; without one, that of the scene."""
    height, width = image_size(sd)
    if depth_map is None:
        return _at_size(depth([SCENE], max(height, width)), (height, width))
    return images.to_map(depth_map, "depth_map", (width, height))[:1]


def _at_size(values: Tensor, size: tuple[int, int]) -> Tensor:
    return values if tuple(values.shape[2:]) == size else F.interpolate(values, size=size, mode="area")
