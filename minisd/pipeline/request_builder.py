"""From the arguments of a call to a request: all arguments are checked together, all defaults are filled in."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd import images
from minisd._internal import memory, validation
from minisd._internal.messages import shown
from minisd.configs import UNetConfig, VAEConfig
from minisd.errors import InputError
from minisd.images import Picture
from minisd.pipeline import guidance
from minisd.pipeline.arguments import Arguments, Defaults
from minisd.pipeline.feature_reuse import check_reuse
from minisd.pipeline.initial_latents import steps_to_skip
from minisd.pipeline.loss_guidance import Guide
from minisd.pipeline.memory_estimate import run_bytes
from minisd.pipeline.noise import make_generators
from minisd.pipeline.prompts import PromptArguments, PromptBatch, PromptReader
from minisd.pipeline.request import Request, task_of
from minisd.pipeline.sdxl_sizes import MicroConditioning
from minisd.pipeline.views import View, canvas_of, check_views, place_views, whole
from minisd.schedulers import DDIM, Scheduler, validate_steps

STRENGTH = 0.8
NOISE_LEVEL = 20


class RequestBuilder:
    """Turns arguments into requests for one pipeline: its sizes, its sampler, its defaults."""

    def __init__(
        self,
        unet: UNetConfig,
        vae: VAEConfig,
        scheduler: Scheduler,
        defaults: Defaults,
        reader: PromptReader,
        device: torch.device = torch.device("cpu"),  # noqa: B008
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """device, dtype: where and in what the networks compute, to estimate the memory."""
        self.device = device
        self.itemsize = 4 if device.type == "cpu" else dtype.itemsize  # CPU kernels convert half precision
        self.unet, self.vae, self.scheduler, self.defaults, self.reader = unet, vae, scheduler, defaults, reader
        self.task = task_of(unet, vae)
        self.factor = vae.downscale  # pixels per latent cell
        self.smallest = 2 ** (len(unet.channels) - 1)  # latent cells along a side

    def build(self, given: Arguments) -> Request:
        """The request for the arguments of a call; raises InputError, and OutOfMemory where it will not fit."""
        per_prompt = validation.whole_number(given.num_images_per_prompt, "num_images_per_prompt", 1, 10_000)
        views = None if given.views is None else check_views(given.views)
        prompt, negative = self._prompts(given, views, per_prompt)
        count = per_prompt if views else len(prompt.texts)
        steps = given.num_inference_steps
        steps = self.defaults.num_inference_steps if steps is None else steps
        steps = validate_steps(steps, self.scheduler.schedule.num_train_timesteps)

        noise_level = self._check_task(given)
        if given.micro is not None and self.unet.pooled_width is None:
            raise InputError("micro is SDXL size conditioning; this model does not support it. Remove the argument.")
        start = self._start(steps, given)
        if given.latents is not None:
            self._check_latents(given.latents, count, given)
        h, w = self._cells(given, views)
        placed = whole((h, w)) if views is None else place_views(views, (h, w), self.factor, self.smallest)
        width, height = w * self.factor, h * self.factor
        scheduler = self._sampler(given.eta)
        grid = scheduler.grid(steps, start)
        stop = self._stop(steps, start, len(grid), given)
        scale = self.defaults.guidance_scale if given.guidance_scale is None else given.guidance_scale
        scales = guidance.scales(scale, len(grid))
        learned = None
        if self.unet.guidance_width is not None:
            learned, scales = scales, (1.0,) * len(scales)
        shape = (count, self.vae.latent_channels, h, w)
        guided = any(each != 1 for each in scales)
        needed = run_bytes(self.unet, self.vae, shape, placed, guided, self.itemsize)
        memory.check(needed, f"{count} image{'s' * (count > 1)} of {width} x {height}", self.device)
        generators, seeds = make_generators(given.seed, given.generator, count)
        rescale = validation.real_number(given.guidance_rescale, "guidance_rescale", 0, 1)
        if guided:
            self.reader.check_lengths(prompt, negative)

        def rows(values: Tensor | None, name: str) -> Tensor | None:
            validation.broadcast_rows(values, name, "images", count, per_prompt)  # repeated once they are encoded
            return values

        size = (w, h) if self.task == "upscaling" else (width, height)
        image = None if given.image is None else images.to_pixels(given.image, "image", size)
        mask = None if given.mask_image is None else images.to_mask(given.mask_image, "mask_image", size)
        depth = None if given.depth_map is None else images.to_map(given.depth_map, "depth_map")
        return Request(
            task=self.task,
            prompt=prompt,
            negative=negative,
            shape=shape,
            views=placed,
            guidance_scales=scales,
            learned_scales=learned,
            guidance_rescale=rescale,
            guide=given.guide if given.guide is None or isinstance(given.guide, Guide) else Guide(given.guide),
            reuse_features=check_reuse(given.reuse_features, given.guide),
            scheduler=scheduler,
            grid=grid,
            start=start,
            stop=stop,
            resumed=given.denoising_start is not None,
            generators=generators,
            seeds=seeds,
            latents=given.latents,
            image=rows(image, "image"),
            mask=rows(None if mask is None else (mask >= 0.5).float(), "mask_image"),
            depth=rows(depth, "depth_map"),
            noise_level=noise_level,
            micro=(given.micro or MicroConditioning()).resolved_for(*(side * self.factor for side in placed.cells)),
            notices=[*self._notices(given, prompt, negative), *_mask_notices(mask, (h, w))],
        )

    def _prompts(self, given: Arguments, views: list[View] | None, per_prompt: int) -> tuple[PromptBatch, PromptBatch]:
        prompt = PromptArguments("", given.prompt, given.prompt_2, given.prompt_embeds, given.pooled_prompt_embeds)
        if views is not None:
            texts = given.prompt, given.prompt_2, given.prompt_embeds, given.pooled_prompt_embeds
            if any(each is not None for each in texts):
                raise InputError("a prompt and views were both given, but each view has its own; remove the prompt.")
            prompt = PromptArguments("", [view.prompt for view in views], None, None, None)
        negative = PromptArguments(
            "negative_",
            given.negative_prompt,
            given.negative_prompt_2,
            given.negative_prompt_embeds,
            given.negative_pooled_prompt_embeds,
        )
        return self.reader.read(prompt, negative, per_prompt)

    def _check_task(self, given: Arguments) -> int:
        """Check that the inputs fit the model's task; returns the noise level, which only upscalers have."""
        image, mask, depth = given.image, given.mask_image, given.depth_map
        if mask is not None and image is None:
            raise InputError("a mask_image was given without an image; give the image that it belongs to.")
        if self.task == "inpainting" and mask is None:
            raise InputError(
                "this is an inpainting model, its UNet reads an image and a mask: give image and mask_image, or "
                "load a model with 4 channels for text to image."
            )
        if self.task == "depth" and depth is None:
            raise InputError("this is a depth model: give depth_map, or load a model with 4 channels.")
        if self.task == "upscaling" and (image is None or mask is not None):
            raise InputError("this is an upscaler: give image, the small image, and no mask_image.")
        if depth is not None and self.task != "depth":
            raise InputError(
                f"depth_map needs a depth model, this model is for {self.task}; load 'sticker-depth', the embedded "
                "model, or an SD 2 depth checkpoint."
            )
        if self.task != "upscaling":
            if given.noise_level is not None:
                raise InputError(f"noise_level needs an upscaler, this model is for {self.task}; remove the argument.")
            return 0
        if self.unet.class_count is None:
            raise InputError("the UNet reads 7 channels as an upscaler does, but has no noise levels; load another.")
        level = NOISE_LEVEL if given.noise_level is None else given.noise_level
        return validation.whole_number(level, "noise_level", 0, self.unet.class_count - 1)

    def _start(self, steps: int, given: Arguments) -> int:
        """How many steps to skip: those that a given image, or another model, stands in for."""
        strength, has_image = given.strength, given.image is not None
        if strength is not None and (not has_image or self.task == "upscaling"):
            raise InputError("strength is how much of an image to change; give an image, or remove strength.")
        start = 0
        if has_image and self.task != "upscaling":
            usual = STRENGTH if given.mask_image is None else 1.0
            strength = validation.real_number(usual if strength is None else strength, "strength", 0, 1)
            start = steps_to_skip(steps, strength)
            if start == steps:
                raise InputError(
                    f"strength {strength:g} of {steps} steps leaves no step to do; raise one of them, "
                    f"for instance to strength {math.ceil(100 / steps) / 100:g}."
                )
        if given.denoising_start is None:
            return start
        if given.latents is None or has_image:
            raise InputError("denoising_start continues another model's latents; give latents and no image.")
        return self._first_step(steps, given.denoising_start, "denoising_start")

    def _stop(self, steps: int, start: int, calls: int, given: Arguments) -> int:
        """The number of calls to make: all of them, or those before another model takes over."""
        if given.denoising_end is None:
            return calls
        last = self._first_step(steps, given.denoising_end, "denoising_end")
        if last <= start:
            raise InputError(f"denoising_end {given.denoising_end:g} of {steps} steps leaves no step to do; raise it.")
        return self.scheduler.calls_before(steps, last) - self.scheduler.calls_before(steps, start)

    def _first_step(self, steps: int, share: float, name: str) -> int:
        """The first step whose timestep is below the given share of the noise levels."""
        total = self.scheduler.schedule.num_train_timesteps
        cutoff = round(total * (1 - validation.real_number(share, name, 0, 1)))
        for step in range(steps):
            if self.scheduler.grid(steps, step).timesteps[0] < cutoff:
                return step
        raise InputError(f"{name} {share:g} of {steps} steps leaves no step to the other model; lower it.")

    def _sampler(self, eta: float) -> Scheduler:
        eta = validation.real_number(eta, "eta", 0, 1)
        if eta == 0:
            return self.scheduler
        if not isinstance(self.scheduler, DDIM):
            raise InputError(f"eta is {eta:g}, but only DDIM has one; this model uses {type(self.scheduler).__name__}.")
        return replace(self.scheduler, eta=eta)

    def _cells(self, given: Arguments, views: list[View] | None) -> tuple[int, int]:
        """Height and width in latent cells: of the given latents, as requested, of the given image, or as trained."""
        if self.task == "upscaling" and given.image is not None:
            if given.height is not None or given.width is not None:
                raise InputError("an upscaled image has the size of image times the factor; remove height and width.")
            h, w = images.size_of(given.image, "image")
            if min(h, w) < self.smallest:
                raise InputError(f"image is {w} x {h}, expected at least {self.smallest} pixels a side.")
            if given.latents is not None and tuple(given.latents.shape[2:]) != (h, w):
                got = f"{given.latents.shape[3]} x {given.latents.shape[2]}"
                raise InputError(f"the latents are {got} and image is {w} x {h}, expected one size for both.")
            return h, w
        if given.latents is not None:
            return given.latents.shape[2], given.latents.shape[3]
        own, least = self._usual_size(given.image), self.factor * self.smallest
        if views is not None:
            own = canvas_of(views, own)
        if given.height is None and given.width is None and min(own) < least:
            raise InputError(f"image is {own[1]} x {own[0]}, expected at least {least} pixels a side.")
        cells = []
        for asked, usual, name in ((given.height, own[0], "height"), (given.width, own[1], "width")):
            side = usual - usual % self.factor if asked is None else asked  # images are cropped to whole cells
            cells.append(validation.size(side, name, self.factor, least) // self.factor)
        return cells[0], cells[1]

    def _usual_size(self, image: Picture | None) -> tuple[int, int]:
        """Height and width in pixels where none is requested: the given image's, or the trained size."""
        height, width = (side * self.factor for side in self.unet.cells)
        return (height, width) if image is None else images.size_of(image, "image")

    def _check_latents(self, latents: Tensor, count: int, given: Arguments) -> None:
        channels, factor = self.vae.latent_channels, self.factor
        if isinstance(latents, Tensor):
            validation.plain_tensor(latents, "latents")
        if not isinstance(latents, Tensor) or latents.ndim != 4 or tuple(latents.shape[:2]) != (count, channels):
            got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise InputError(f"latents are {got}, expected ({count}, {channels}, height/{factor}, width/{factor}).")
        asked = ("height", given.height), ("width", given.width)
        for side, (name, pixels) in zip(latents.shape[2:], asked, strict=True):
            if pixels is not None and pixels != side * factor:
                raise InputError(f"{name} is {shown(pixels)}, but the latents are for {side * factor}; remove {name}.")
            if side < self.smallest:
                raise InputError(f"latents have a {name} of {side}, expected at least {self.smallest}.")
        if not latents.is_floating_point() or not torch.isfinite(latents).all():
            raise InputError("latents hold NaN, infinity or whole numbers, expected finite unit noise.")
        if given.seed is not None:
            raise InputError("latents and a seed were both given; the latents are the noise, remove the seed.")

    def _notices(self, given: Arguments, prompt: PromptBatch, negative: PromptBatch) -> Iterator[str]:
        """Warnings: unknown words; an unread prompt; an image so large that the model repeats its objects."""
        if (unknown := self.reader.unknown_words(prompt, negative)) is not None:
            yield unknown
        unread = any(negative.texts) or negative.embeds is not None or given.guidance_rescale != 0
        if self.unet.guidance_width is not None and unread:
            yield "this model has learned guidance and reads no negative prompt and no guidance_rescale; remove them."
        sized_by_image = given.latents is None and given.height is None and given.width is None
        if given.image is None or not sized_by_image:
            return
        height, width = images.size_of(given.image, "image")
        trained = max(self.unet.cells) * (1 if self.task == "upscaling" else self.factor)
        if max(height, width) >= 2 * trained:
            yield (
                f"image is {width} x {height}, the model was trained at {trained} x {trained}: expect repetitions; "
                "give a smaller image, or height and width."
            )


def _mask_notices(mask: Tensor | None, cells: tuple[int, int]) -> Iterator[str]:
    """Warnings about a mask (n, 1, H, W) in [0, 1] whose marks are lost in the latent cells that are looked at."""
    if mask is None:
        return
    repainted = F.interpolate((mask >= 0.5).float(), size=cells)
    for values, small in zip(mask, repainted, strict=True):
        if values.any() and not small.any():
            yield (
                "mask_image leaves no part of the image to repaint, although it is not black: its marks are too dark "
                "or too thin; white marks what is repainted."
            )
        elif not bool((values == 1).all()) and bool(small.all()):
            yield (
                "mask_image leaves no part of the image as it is, although it is not white: its marks are too bright "
                "or too thin; black marks what stays."
            )
