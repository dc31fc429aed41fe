"""The pipelines of the courses: text to image, image to image, inpainting, depth."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from minisd.course.output import Output
from minisd.course.pipeline import Generators, Pipeline
from minisd.errors import InputError
from minisd.images import Picture
from minisd.pipeline import Callback, OutputType


class StableDiffusionPipeline(Pipeline):
    """Text to image."""

    def __call__(
        self,
        prompt: str | Sequence[str],
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
    ) -> Output | tuple[Any, None]:
        """Prompts -> .images; arguments and errors: minisd.pipeline.StableDiffusion.

        callback(i, t, latents) fires at calls 0, callback_steps, 2 callback_steps, ...; PNDM makes 51 calls
        for 50 steps, so that callback_steps=12 gives the lesson's five frames.
        """
        return self._run(
            prompt, negative_prompt, generator, output_type, return_dict, callback,
            height=height, width=width, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt, eta=eta, latents=latents, callback_steps=callback_steps,
        )  # fmt: skip


class StableDiffusionImg2ImgPipeline(Pipeline):
    """Image to image: int(num_inference_steps * strength) steps from a noised picture."""

    def __call__(
        self,
        prompt: str | Sequence[str],
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
    ) -> Output | tuple[Any, None]:
        """Prompts and pictures -> .images. init_image: the older name of image. See StableDiffusionPipeline."""
        if (image is None) == (init_image is None):
            raise InputError("image to image got no picture, or two; give image (init_image is its older name).")
        return self._run(
            prompt, negative_prompt, generator, output_type, return_dict, callback,
            image=init_image if image is None else image, strength=strength, num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, num_images_per_prompt=num_images_per_prompt, eta=eta,
            callback_steps=callback_steps,
        )  # fmt: skip


class StableDiffusionInpaintPipeline(Pipeline):
    """Inpainting: what is white in the mask is drawn anew, by a model that reads the mask or by one that does not."""

    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Picture,
        mask_image: Picture,
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
    ) -> Output | tuple[Any, None]:
        """Prompts, pictures and masks -> .images. height, width: the picture's unless given."""
        return self._run(
            prompt, negative_prompt, generator, output_type, return_dict, callback,
            image=image, mask_image=mask_image, height=height, width=width, strength=strength,
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt, eta=eta, latents=latents, callback_steps=callback_steps,
        )  # fmt: skip


class StableDiffusionDepth2ImgPipeline(Pipeline):
    """Image to image by a model that reads a depth map."""

    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Picture,
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
    ) -> Output | tuple[Any, None]:
        """Prompts, pictures and depth maps (larger is nearer) -> .images. There is no estimator: give depth_map."""
        return self._run(
            prompt, negative_prompt, generator, output_type, return_dict, callback,
            image=image, depth_map=depth_map, strength=strength, num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, num_images_per_prompt=num_images_per_prompt, eta=eta,
            callback_steps=callback_steps,
        )  # fmt: skip
