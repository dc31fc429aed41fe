"""Stable Diffusion: encode the prompt, denoise step by step, decode the image."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor
from tqdm import tqdm

from minisd import images
from minisd._internal import memory, validation
from minisd._internal.devices import check_move
from minisd._internal.messages import shown
from minisd.errors import CallbackError, InputError
from minisd.images import Picture
from minisd.models import VAE, CLIPTextTransformer, PreviewDecoder, UNet
from minisd.pipeline.arguments import DEFAULTS, Arguments, Defaults
from minisd.pipeline.conditioning import (
    Condition,
    TokenizerAndEncoder,
    check_widths,
    encode_texts,
    make_condition,
    pooled_width,
)
from minisd.pipeline.denoising import DenoisingStep, denoising_loop
from minisd.pipeline.guidance import Scale
from minisd.pipeline.latents import decode_finite, encode_pixels
from minisd.pipeline.loss_guidance import Guide, Loss
from minisd.pipeline.preview import fitting_decoder, preview_pixels
from minisd.pipeline.prompts import PromptReader, Texts, texts_for
from minisd.pipeline.request import Request, task_of
from minisd.pipeline.request_builder import RequestBuilder
from minisd.pipeline.sdxl_sizes import MicroConditioning
from minisd.pipeline.views import View
from minisd.schedulers import NoiseSchedule, Scheduler
from minisd.tokenizer import Tokenizer

Callback = Callable[[int, Tensor, Tensor], Any]
OutputType = Literal["pil", "np", "pt", "latent"]
LOW_RES = NoiseSchedule(beta_start=0.0001, beta_end=0.02)  # noises the small image of the x4 upscaler


class Output(NamedTuple):
    """`images`: PIL images, an array (B, H, W, 3) in [0, 1], or a tensor; `seeds`: one for each, None if not seeded."""

    images: Any
    seeds: list[int] | None


class StableDiffusion:
    """A text-to-image pipeline made of components, each usable alone.

    Call it to get images, or loop over `denoise` to see every step.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_encoder: CLIPTextTransformer,
        vae: VAE,
        unet: UNet,
        scheduler: Scheduler,
        defaults: Defaults = DEFAULTS,
        low_res: NoiseSchedule = LOW_RES,
        tokenizer_2: Tokenizer | None = None,
        text_encoder_2: CLIPTextTransformer | None = None,
    ) -> None:
        """The second tokenizer and text encoder are SDXL's; its refiner passes the second one as its only one.

        Raises InputError where widths do not fit.
        """
        self.tokenizer, self.text_encoder, self.vae, self.unet = tokenizer, text_encoder, vae, unet
        self.tokenizer_2, self.text_encoder_2 = tokenizer_2, text_encoder_2
        self.scheduler, self.defaults, self.low_res = scheduler, defaults, low_res
        self.preview_decoder: PreviewDecoder | None = None  # of `preview`
        self.source: str | None = None  # set by weights_loader
        check_widths(self.text_parts, unet.config)

    def __repr__(self) -> str:
        """Family, task, parts with their parameters, sampler, dtype and device, source: six lines."""
        parts = [*(("text encoder", part.encoder) for part in self.text_parts), ("UNet", self.unet), ("VAE", self.vae)]
        sizes = (f"{name} {sum(p.numel() for p in network.parameters()):,}" for name, network in parts)
        lines = (
            f"StableDiffusion, family {self.unet.config.family}",
            f"task     {self.task}",
            f"parts    {', '.join(sizes)} parameters",
            f"sampler  {type(self.scheduler).__name__}, {self.scheduler.schedule.prediction_type}",
            f"runs in  {str(self.dtype).removeprefix('torch.')} on {self.device}",
            f"source   {self.source or 'built from components'}",
        )
        return "\n  ".join(lines)

    @property
    def task(self) -> str:
        """The task that the UNet was trained for: "text", "inpainting", "depth" or "upscaling"."""
        return task_of(self.unet.config, self.vae.config)

    @property
    def is_xl(self) -> bool:
        """Whether the model is of the SDXL family: base, inpainting or refiner."""
        return self.unet.config.pooled_width is not None

    @property
    def text_parts(self) -> list[TokenizerAndEncoder]:
        """The text encoders with their tokenizers: one, or SDXL's two."""
        first = TokenizerAndEncoder(self.tokenizer, self.text_encoder)
        if self.tokenizer_2 is None or self.text_encoder_2 is None:
            return [first]
        return [first, TokenizerAndEncoder(self.tokenizer_2, self.text_encoder_2)]

    @property
    def device(self) -> torch.device:
        """The device of the UNet."""
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the UNet computes; the latents between the steps are float32."""
        return self.unet.conv_in.weight.dtype

    @memory.translated("moving the networks")
    def to(self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move all networks to a device, a dtype, or both. Raises DeviceError, InputError, OutOfMemory."""
        device, dtype = check_move(device, dtype)
        preview = [] if self.preview_decoder is None else [self.preview_decoder]
        for network in (*(part.encoder for part in self.text_parts), self.vae, self.unet, *preview):
            network.to(device=device, dtype=dtype)
        return self

    @memory.translated("the run")
    @torch.no_grad()
    def __call__(
        self,
        prompt: Texts | None = None,
        negative_prompt: Texts | None = "",
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: Scale | None = None,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        eta: float = 0.0,
        image: Picture | None = None,
        strength: float | None = None,
        mask_image: Picture | None = None,
        depth_map: Picture | None = None,
        noise_level: int | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        micro: MicroConditioning | None = None,
        guidance_rescale: float = 0.0,
        prompt_2: Texts | None = None,
        negative_prompt_2: Texts | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        guide: Guide | Loss | None = None,
        views: Sequence[View] | None = None,
        reuse_features: int = 1,
        callback: Callback | None = None,
        callback_steps: int | None = 1,
        output_type: OutputType = "pil",
        progress: bool | None = None,
    ) -> Output:
        """Prompts -> images.

        height, width: pixels; by default those of the training, of image or of views. num_inference_steps,
        guidance_scale: by default the model's own. A guidance_scale of 1 needs one UNet pass a step, any other two (Ho
        & Salimans 2022); a sequence, or a function of i, gives each call its own. guidance_rescale, 0 to 1: see
        guidance.combine. prompt_2, negative_prompt_2: texts for SDXL's second text encoder, where they differ.
        prompt_embeds, negative_prompt_embeds: text states (B, L, context_width) in place of the texts, as
        `encode_prompt` or interpret.text_vectors make them; SDXL needs pooled_prompt_embeds and
        negative_pooled_prompt_embeds as well, as `encode_pooled` makes them. guide: a function (x0, i) -> loss, or a
        Guide with its settings. views: parts or turned copies of the image with a prompt each. reuse_features: of so
        many UNet calls one is whole: faster, approximate. See pipeline.views and pipeline.feature_reuse. image: the
        image to start from (PIL, array in [0, 1], tensor in [-1, 1]; one, or one for each prompt). strength, 0 to 1:
        how much of it changes, by default 0.8, with a mask 1. mask_image: white where to repaint. depth_map: for depth
        models, larger is nearer. noise_level: for upscalers, how much noise hides the artefacts of the small image, by
        default 20. denoising_end: the share of the noise levels, 0 to 1, after which another model takes over;
        denoising_start: the share after which this model continues another one's latents (SDXL base and refiner).
        micro: SDXL's size conditioning, by default the size of the image. seed: image k is drawn from seed + k,
        whatever their number; without a seed, one is chosen and returned. generator: one for all images, or a list,
        instead of a seed. latents: (B, 4, h, w) unit noise to start from, instead of either. eta: DDIM only.
        callback(i, t, latents) runs at every `callback_steps`-th call with its index, its timestep and a copy of the
        latents. output_type: "pil", "np" (B, H, W, 3) in [0, 1], "pt" (B, 3, H, W) in [-1, 1], "latent".

        Raises InputError, before any work; NumericalError instead of black images; CallbackError; OutOfMemory.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise InputError(f"output_type is {shown(output_type)}, expected 'pil', 'np', 'pt' or 'latent'.")
        if callback is not None and not callable(callback):
            raise InputError(f"callback is {shown(callback)}, expected a function of (i, t, latents).")
        every = 1 if callback_steps is None else validation.whole_number(callback_steps, "callback_steps", 1, 10**6)
        request = self._request(Arguments(
            prompt=prompt, negative_prompt=negative_prompt, height=height, width=width,
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt, seed=seed, generator=generator, latents=latents, eta=eta,
            image=image, strength=strength, mask_image=mask_image, depth_map=depth_map, noise_level=noise_level,
            denoising_start=denoising_start, denoising_end=denoising_end, micro=micro,
            guidance_rescale=guidance_rescale, prompt_2=prompt_2, negative_prompt_2=negative_prompt_2,
            prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds, negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            guide=guide, views=views, reuse_features=reuse_features,
        ))  # fmt: skip
        for notice in request.notices:
            warnings.warn(notice, stacklevel=4)
        for step in tqdm(self._denoise(request), total=request.stop, disable=not progress):
            if callback is not None and step.i % every == 0:
                try:
                    callback(step.i, step.t, step.latents.clone())
                except Exception as error:
                    raise CallbackError(f"the callback failed at step {step.i}: {error!r}") from error
        if output_type == "latent":
            return Output(step.latents, request.seeds)
        convert = {"pil": images.to_pil, "np": images.to_numpy, "pt": lambda x: x}[output_type]
        return Output(convert(self.decode(step.latents)), request.seeds)

    def denoise(
        self, prompt: Texts | None = None, negative_prompt: Texts | None = "", **arguments: Any
    ) -> Iterator[DenoisingStep]:
        """The loop itself, as an iterator of steps: `break` stops it early, `step.x0` is the preview.

        Arguments and errors are those of a call, from height to views; they are checked now, the work begins with the
        first step.
        """
        request = self._request(Arguments(prompt=prompt, negative_prompt=negative_prompt, **arguments))
        for notice in request.notices:
            warnings.warn(notice, stacklevel=2)
        return self._denoise(request)

    def _request(self, arguments: Arguments) -> Request:
        unet, text = self.unet.config, self.text_parts
        pooled = pooled_width(text) if self.is_xl else None
        reader = PromptReader(len(text), unet.context_width, pooled, self.tokenizer.max_length, self.defaults.words)
        parts = unet, self.vae.config, self.scheduler, self.defaults, reader, self.device, self.dtype
        return RequestBuilder(*parts).build(arguments)

    def _denoise(self, request: Request) -> Iterator[DenoisingStep]:
        with torch.no_grad():
            condition = self._condition(request)
        with memory.translated("denoising"):
            yield from denoising_loop(self.unet, self.vae, self.low_res, request, condition)

    @memory.translated("the text encoder")
    def _condition(self, request: Request) -> Condition:
        """The condition of the UNet, encoded once for all steps."""
        negative = request.negative if request.guided else None
        condition = make_condition(
            self.text_parts, self.unet.config, negative, request.prompt, request.micro, self.defaults.zero_empty_prompt
        )
        return condition.to(self.dtype)

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str], prompts_2: Sequence[str] | None = None) -> Tensor:
        """Texts -> the states that condition the UNet: (B, 77, context_width).

        prompts_2: other texts for SDXL's second encoder. Raises InputError, NumericalError.
        """
        return self._encode_texts(prompts, prompts_2)[0].to(self.dtype)

    @torch.no_grad()
    def encode_pooled(self, prompts: Sequence[str]) -> Tensor:
        """Texts -> the pooled text (B, P) that SDXL reads beside the states. Raises InputError, NumericalError."""
        if not self.is_xl:
            raise InputError("encode_pooled() is only available for SDXL models; use encode_prompt().")
        pooled = self._encode_texts(prompts, None)[1]
        assert pooled is not None
        return pooled.to(self.dtype)

    @memory.translated("the text encoder")
    def _encode_texts(self, prompts: Sequence[str], prompts_2: Sequence[str] | None) -> tuple[Tensor, Tensor | None]:
        parts = self.text_parts
        return encode_texts(parts, texts_for(len(parts), prompts, prompts_2), self.is_xl)

    @memory.translated("the encoder")
    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w) of about unit variance, the UNet's scale."""
        return encode_pixels(self.vae, pixels, lambda shape: torch.randn(shape, generator=generator))

    @memory.translated("the decoder")
    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents of about unit variance (B, C, h, w) -> pixels (B, 3, H, W) in [-1, 1], one image at a time.

        Decodes once more in float32 where half precision overflows, with a warning. Raises NumericalError.
        """
        return decode_finite(self.vae, latents)

    @memory.translated("the preview decoder")
    @torch.no_grad()
    def preview(self, latents: Tensor) -> Tensor:
        """What `decode` gives, approximately and faster, by `preview_decoder`. Raises InputError, NumericalError."""
        return preview_pixels(fitting_decoder(self.preview_decoder, self.vae), latents)
