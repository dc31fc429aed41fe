"""The pipelines of the courses: text to image, image to image, inpainting, depth."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from minisd.course.component import CourseOutput
from minisd.course.pipeline import CoursePipeline, Generators
from minisd.errors import InputError
from minisd.images import Picture
from minisd.pipeline import Callback, OutputType


class StableDiffusionPipeline(CoursePipeline):
    """Text to image."""

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback: Callback | None = None,
        callback_steps: int = 1,
        **official: Any,
    ) -> CourseOutput | tuple[Any, None]:
        """Prompts -> .images; arguments and errors are those of minisd.pipeline.StableDiffusion.

        callback(i, t, latents) is called after the UNet calls 0, callback_steps, 2 callback_steps, ...; PNDM makes 51
        calls for 50 steps, so callback_steps=12 gives the five frames of the course.
        """
        return self._run(
            prompt, negative_prompt, generator, output_type, return_dict, callback, official,
            height=height, width=width, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt, eta=eta, latents=latents, callback_steps=callback_steps,
        )  # fmt: skip


class StableDiffusionImg2ImgPipeline(CoursePipeline):
    """Image to image: int(num_inference_steps * strength) steps from a noised image."""

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Picture | None = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback: Callback | None = None,
        callback_steps: int = 1,
        init_image: Picture | None = None,
        **official: Any,
    ) -> CourseOutput | tuple[Any, None]:
        """Prompts and images -> .images. init_image: the older name of image. See StableDiffusionPipeline."""
        if (image is None) == (init_image is None):
            raise InputError("expected one of image and init_image, got none or both; give image.")
        return self._run(
            prompt, negative_prompt, generator, output_type, return_dict, callback, official,
            image=init_image if image is None else image, strength=strength, num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, num_images_per_prompt=num_images_per_prompt, eta=eta,
            callback_steps=callback_steps,
        )  # fmt: skip


class StableDiffusionInpaintPipeline(CoursePipeline):
    """Inpainting: the white area of the mask is generated anew, by an inpainting model or any other model."""

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Picture | None = None,
        mask_image: Picture | None = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback: Callback | None = None,
        callback_steps: int = 1,
        **official: Any,
    ) -> CourseOutput | tuple[Any, None]:
        """Prompts, images and masks -> .images. height, width: by default those of the image."""
        if image is None or mask_image is None:
            raise InputError("inpainting needs an image and a mask_image, got one or none; give both.")
        return self._run(
            prompt, negative_prompt, generator, output_type, return_dict, callback, official,
            image=image, mask_image=mask_image, height=height, width=width, strength=strength,
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt, eta=eta, latents=latents, callback_steps=callback_steps,
        )  # fmt: skip


class StableDiffusionDepth2ImgPipeline(CoursePipeline):
    """Image to image with a depth model."""

    def __init__(self, *parts: Any, **named: Any) -> None:
        """As for every pipeline. Raises InputError for a model without depth."""
        super().__init__(*parts, **named)
        if self.core.task != "depth":
            raise InputError(
                f"this pipeline needs a depth model, this one is for {self.core.task}; load 'sticker-depth' or "
                "stabilityai/stable-diffusion-2-depth."
            )

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Picture | None = None,
        depth_map: Picture | None = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback: Callback | None = None,
        callback_steps: int = 1,
        **official: Any,
    ) -> CourseOutput | tuple[Any, None]:
        """Prompts, images, depth maps (larger is nearer) -> .images. minisd has no depth estimator: give depth_map."""
        if image is None:
            raise InputError("depth to image needs an image, got none; give image and depth_map.")
        return self._run(
            prompt, negative_prompt, generator, output_type, return_dict, callback, official,
            image=image, depth_map=depth_map, strength=strength, num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, num_images_per_prompt=num_images_per_prompt, eta=eta,
            callback_steps=callback_steps,
        )  # fmt: skip
