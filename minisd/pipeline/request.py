"""What a pipeline was asked for: checked as a whole, every default filled in, before anything is computed."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minisd import images
from minisd._internal import validation
from minisd.configs import UNetConfig, VAEConfig
from minisd.errors import InputError
from minisd.images import Picture
from minisd.pipeline import guidance
from minisd.pipeline.conditioning import MicroConditioning
from minisd.pipeline.guidance import Guide, Loss, Scale
from minisd.pipeline.noise import make_generators
from minisd.pipeline.prompts import Given, Listener, Said, Texts
from minisd.schedulers import DDIM, Grid, Scheduler, validate_steps

STRENGTH = 0.8
NOISE_LEVEL = 20


@dataclass(frozen=True)
class Defaults:
    """What a model is best run with; travels with the model.

    words: all that a model of a small world was taught, with spaces between; none where nobody could list them.
    zero_empty_prompt: whether SDXL hears zeros, not the states of "", where there is no negative prompt.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    words: str = ""
    zero_empty_prompt: bool = False


DEFAULTS = Defaults()
UPSCALER_DEFAULTS = Defaults(num_inference_steps=75, guidance_scale=9.0)
SDXL_DEFAULTS = Defaults(guidance_scale=5.0)


@dataclass(frozen=True)
class Request:
    """A validated call: everything decided, nothing computed yet.

    shape: of the latents. start: steps that the grid leaves out at the beginning, where a picture is given. stop:
    calls after which another model takes over. resumed: the latents are another model's, not unit noise.
    image: (B, 3, H, W) in [-1, 1]; mask: (B, 1, H, W), 1 where to repaint; depth: (B, 1, H, W), any units, larger is
    nearer. noise_level: of an upscaler's small picture, 0 for the others. guidance_scales: one for each call.
    """

    task: str
    prompt: Said
    negative: Said
    shape: tuple[int, int, int, int]
    guidance_scales: tuple[float, ...]
    scheduler: Scheduler
    grid: Grid
    start: int
    stop: int
    resumed: bool
    generators: list[torch.Generator]
    seeds: list[int] | None
    latents: Tensor | None
    image: Tensor | None
    mask: Tensor | None
    depth: Tensor | None
    noise_level: int
    micro: MicroConditioning
    guidance_rescale: float
    guide: Guide | None

    @property
    def guided(self) -> bool:
        """Whether some step takes two predictions."""
        return any(scale != 1 for scale in self.guidance_scales)


def task_of(unet: UNetConfig, vae: VAEConfig) -> str:
    """What a UNet was made for, told by the channels that it reads beside the latents."""
    extra = unet.in_channels - vae.latent_channels
    tasks = {0: "text", 1: "depth", 3: "upscaling", vae.latent_channels + 1: "inpainting"}
    if extra not in tasks:
        expected = ", ".join(f"{channels} ({task})" for channels, task in tasks.items())
        raise InputError(
            f"the UNet reads {unet.in_channels} channels, {extra} beside the latents; expected one of {expected}."
        )
    return tasks[extra]


class Asker:
    """Makes requests for one pipeline: its sizes, its sampler, its defaults."""

    def __init__(
        self, unet: UNetConfig, vae: VAEConfig, scheduler: Scheduler, defaults: Defaults, listener: Listener
    ) -> None:
        self.unet, self.vae, self.scheduler, self.defaults = unet, vae, scheduler, defaults
        self.listener = listener
        self.task = task_of(unet, vae)
        self.factor = vae.downscale  # pixels per latent cell
        self.smallest = 2 ** (len(unet.channels) - 1)  # latent cells along a side

    def request(
        self,
        prompt: Texts | None,
        negative_prompt: Texts,
        height: int | None,
        width: int | None,
        num_inference_steps: int | None,
        guidance_scale: Scale | None,
        num_images_per_prompt: int,
        seed: int | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        latents: Tensor | None,
        eta: float,
        image: Picture | None,
        strength: float | None,
        mask_image: Picture | None,
        depth_map: Picture | None,
        noise_level: int | None,
        denoising_start: float | None,
        denoising_end: float | None,
        micro: MicroConditioning | None,
        guidance_rescale: float,
        prompt_2: Texts | None,
        negative_prompt_2: Texts | None,
        prompt_embeds: Tensor | None,
        negative_prompt_embeds: Tensor | None,
        pooled_prompt_embeds: Tensor | None,
        negative_pooled_prompt_embeds: Tensor | None,
        guide: Guide | Loss | None,
    ) -> Request:
        """The request for the arguments of a pipeline's call; raises InputError."""
        per_prompt = validation.whole_number(num_images_per_prompt, "num_images_per_prompt", 1, 10_000)
        said, unsaid = self.listener.hear(
            Given("", prompt, prompt_2, prompt_embeds, pooled_prompt_embeds),
            Given(
                "negative_", negative_prompt, negative_prompt_2, negative_prompt_embeds, negative_pooled_prompt_embeds
            ),
            per_prompt,
        )
        count = len(said.texts)
        steps = self.defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
        steps = validate_steps(steps, self.scheduler.schedule.num_train_timesteps)

        level = self._check_task(image, mask_image, depth_map, noise_level)
        if micro is not None and self.unet.pooled_width is None:
            raise InputError("micro tells SDXL about sizes, and this model does not listen; leave it out.")
        start = self._start(steps, strength, image, mask_image)
        if denoising_start is not None:
            if latents is None or image is not None:
                raise InputError("denoising_start goes on from another model's latents; give latents and no image.")
            start = self._first_step(steps, denoising_start, "denoising_start")
        if latents is not None:
            self._check_latents(latents, count, seed, height, width)
        h, w = self._cells(height, width, latents, image)
        size = (w, h) if self.task == "upscaling" else (w * self.factor, h * self.factor)
        validation.memory(
            (8 + 12 * self.vae.channels[0]) * count * h * w * self.factor**2,
            f"{count} picture(s) of {w * self.factor} x {h * self.factor}",
        )
        generators, seeds = make_generators(seed, generator, count)
        scheduler = self._sampler(eta)
        grid = scheduler.grid(steps, start)
        stop = len(grid)
        if denoising_end is not None:
            last = self._first_step(steps, denoising_end, "denoising_end")
            if last <= start:
                raise InputError(f"denoising_end {denoising_end:g} of {steps} steps leaves none to do; raise it.")
            stop = scheduler.calls_before(steps, last) - scheduler.calls_before(steps, start)
        scales = guidance.scales(self.defaults.guidance_scale if guidance_scale is None else guidance_scale, len(grid))
        rescale = validation.real_number(guidance_rescale, "guidance_rescale", 0, 1)
        if any(each != 1 for each in scales):
            self.listener.check_lengths(said, unsaid)

        def one_each(values: Tensor | None, name: str) -> Tensor | None:
            return validation.one_each(values, name, "pictures", count, per_prompt)

        pixels = one_each(None if image is None else images.to_pixels(image, "image", size), "image")
        mask = one_each(None if mask_image is None else images.to_map(mask_image, "mask_image", size), "mask_image")
        depth = one_each(None if depth_map is None else images.to_map(depth_map, "depth_map"), "depth_map")
        return Request(
            self.task, said, unsaid, (count, self.vae.latent_channels, h, w), scales, scheduler, grid, start,
            stop, denoising_start is not None, generators, seeds, latents, pixels,
            None if mask is None else (mask >= 0.5).float(), depth, level,
            (micro or MicroConditioning()).of(h * self.factor, w * self.factor),
            rescale, guide if guide is None or isinstance(guide, Guide) else Guide(guide),
        )  # fmt: skip

    def _check_task(self, image: object, mask: object, depth: object, noise_level: object) -> int:
        """What was given against what the model reads; the noise level, of which only upscalers have one."""
        if mask is not None and image is None:
            raise InputError("a mask_image was given without an image; give the picture that it belongs to.")
        if self.task == "inpainting" and mask is None:
            raise InputError(
                "this is an inpainting model, its UNet reads a picture and a mask too: give image and mask_image, or "
                "load a model with 4 channels for text to image."
            )
        if self.task == "depth" and depth is None:
            raise InputError("this is a depth model: give depth_map, or load a model with 4 channels.")
        if self.task == "upscaling" and (image is None or mask is not None):
            raise InputError("this is an upscaler: give image, the small picture, and no mask_image.")
        if depth is not None and self.task != "depth":
            raise InputError(f"depth_map needs a depth model, this is one for {self.task}; load SD 2 depth.")
        if self.task != "upscaling":
            if noise_level is not None:
                raise InputError(f"noise_level needs an upscaler, this is a model for {self.task}; leave it out.")
            return 0
        if self.unet.class_count is None:
            raise InputError("the UNet reads 7 channels as an upscaler does, but knows no noise levels; load another.")
        level = NOISE_LEVEL if noise_level is None else noise_level
        return validation.whole_number(level, "noise_level", 0, self.unet.class_count - 1)

    def _start(self, steps: int, strength: float | None, image: object, mask: object) -> int:
        """How many steps the given picture stands for; without one, and in upscaling, none."""
        if strength is not None and (image is None or self.task == "upscaling"):
            raise InputError("strength says how much of a picture to change; give an image, or leave strength out.")
        if image is None or self.task == "upscaling":
            return 0
        usual = STRENGTH if mask is None else 1.0
        strength = validation.real_number(usual if strength is None else strength, "strength", 0, 1)
        kept = int(steps * strength)
        if kept == 0:
            raise InputError(
                f"strength {strength:g} of {steps} steps leaves none to do; raise one of them, "
                f"for instance to strength {math.ceil(100 / steps) / 100:g}."
            )
        return steps - kept

    def _first_step(self, steps: int, share: float, name: str) -> int:
        """The first of the steps whose timestep lies in what is left after a share of the noise levels."""
        total = self.scheduler.schedule.num_train_timesteps
        cutoff = round(total * (1 - validation.real_number(share, name, 0, 1)))
        for step in range(steps):
            if self.scheduler.grid(steps, step).timesteps[0] < cutoff:
                return step
        raise InputError(f"{name} {share:g} of {steps} steps leaves none to the other model; lower it.")

    def _cells(
        self, height: int | None, width: int | None, latents: Tensor | None, image: Picture | None
    ) -> tuple[int, int]:
        """Height and width in latent cells: as the latents, as asked, as the picture given, or as trained."""
        if self.task == "upscaling" and image is not None:
            if height is not None or width is not None:
                raise InputError("an upscaler's picture has the size of image times its factor; leave the size out.")
            h, w = images.size_of(image, "image")
            if min(h, w) < self.smallest:
                raise InputError(f"image is {w} x {h}, expected at least {self.smallest} pixels a side.")
            self._warn_of_size(h, w, self.unet.sample_size)
            return h, w
        if latents is not None:
            return latents.shape[2], latents.shape[3]
        trained = self.unet.sample_size * self.factor
        usual = (trained, trained) if image is None else images.size_of(image, "image")
        if height is None and width is None:
            self._warn_of_size(*usual, trained)
        cells = []
        for asked, own, name in ((height, usual[0], "height"), (width, usual[1], "width")):
            side = own - own % self.factor if asked is None else asked  # pictures are cut down to whole cells
            cells.append(validation.size(side, name, self.factor, self.factor * self.smallest) // self.factor)
        return cells[0], cells[1]

    @staticmethod
    def _warn_of_size(height: int, width: int, trained: int) -> None:
        """Large pictures take long, and come out as many small ones."""
        if max(height, width) >= 2 * trained:
            warnings.warn(
                f"image is {width} x {height}, the model was trained at {trained} x {trained}: expect repetitions; "
                "a smaller picture, or height and width, would suit it.",
                stacklevel=6,
            )

    def _sampler(self, eta: float) -> Scheduler:
        if validation.real_number(eta, "eta", 0, 1) == 0:
            return self.scheduler
        if not isinstance(self.scheduler, DDIM):
            raise InputError(f"eta is {eta!r}, but only DDIM has one; this model runs {type(self.scheduler).__name__}.")
        return replace(self.scheduler, eta=float(eta))

    def _check_latents(self, latents: Tensor, count: int, seed: object, height: object, width: object) -> None:
        channels, factor = self.vae.latent_channels, self.factor
        if not isinstance(latents, Tensor) or latents.ndim != 4 or tuple(latents.shape[:2]) != (count, channels):
            got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise InputError(f"latents are {got}, expected ({count}, {channels}, height/{factor}, width/{factor}).")
        for side, name, asked in zip(latents.shape[2:], ("height", "width"), (height, width), strict=True):
            if asked is not None and asked != side * factor:
                raise InputError(f"{name} is {asked!r}, but the latents are for {side * factor}; leave it out.")
            if side < self.smallest:
                raise InputError(f"latents have a {name} of {side}, expected at least {self.smallest}.")
        if not latents.is_floating_point() or not torch.isfinite(latents).all():
            raise InputError("latents hold NaN, infinity or whole numbers, expected finite unit noise.")
        if seed is not None:
            raise InputError("latents and a seed were both given; the latents are the noise, leave out the seed.")
