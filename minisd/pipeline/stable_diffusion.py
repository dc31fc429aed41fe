"""Stable Diffusion: encode the prompt, denoise step by step, decode the picture. Every task is this one loop."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor
from tqdm import tqdm

from minisd import images
from minisd._internal import validation
from minisd._internal.nonfinite import diagnosis
from minisd.errors import CallbackError, InputError, NumericalError
from minisd.images import Picture
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.pipeline import guidance
from minisd.pipeline.conditioning import (
    Condition,
    MicroConditioning,
    TextPart,
    check_widths,
    condition,
    encode,
    pooled_width,
)
from minisd.pipeline.guidance import Guide, Loss, Scale
from minisd.pipeline.initial_latents import Start, begin
from minisd.pipeline.latents import decode_latents, encode_pixels
from minisd.pipeline.noise import draw_noise
from minisd.pipeline.prompts import Listener, Texts
from minisd.pipeline.request import DEFAULTS, Asker, Defaults, Request, task_of
from minisd.schedulers import Grid, NoiseSchedule, Scheduler
from minisd.schedulers.base import Memory
from minisd.tokenizer import Tokenizer

Callback = Callable[[int, Tensor, Tensor], Any]
OutputType = Literal["pil", "np", "pt", "latent"]
LOW_RES = NoiseSchedule(beta_start=0.0001, beta_end=0.02)  # how the x4 upscaler's small picture is noised


class DenoisingStep(NamedTuple):
    """Call i of the loop, made at timestep t: the latents after it, and the clean latents as predicted in it."""

    i: int
    t: Tensor
    latents: Tensor
    x0: Tensor


class Output(NamedTuple):
    """`images`: PIL images, an array (B, H, W, 3) in [0, 1], or a tensor; `seeds`: one for each, None if not seeded."""

    images: Any
    seeds: list[int] | None


class StableDiffusion:
    """A text-to-image pipeline made of components, each usable alone.

    Call it to get pictures, or loop over `denoise` to see every step.
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
        """The second tokenizer and text encoder are SDXL's; its refiner has the second alone, as its only one.

        Raises InputError where widths do not fit.
        """
        self.tokenizer, self.text_encoder, self.vae, self.unet = tokenizer, text_encoder, vae, unet
        self.tokenizer_2, self.text_encoder_2 = tokenizer_2, text_encoder_2
        self.scheduler, self.defaults, self.low_res = scheduler, defaults, low_res
        check_widths(self.text_parts, unet.config)

    @property
    def task(self) -> str:
        """What the UNet was made for: "text", "inpainting", "depth" or "upscaling"."""
        return task_of(self.unet.config, self.vae.config)

    @property
    def is_xl(self) -> bool:
        """Whether it is of the SDXL family: base, inpainting or refiner."""
        return self.unet.config.pooled_width is not None

    @property
    def text_parts(self) -> list[TextPart]:
        """The text encoders with their tokenizers: one, or SDXL's two."""
        first = TextPart(self.tokenizer, self.text_encoder)
        if self.tokenizer_2 is None or self.text_encoder_2 is None:
            return [first]
        return [first, TextPart(self.tokenizer_2, self.text_encoder_2)]

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the UNet computes in; the latents between the steps are float32."""
        return self.unet.conv_in.weight.dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move all networks to a device and dtype."""
        for network in (*(part.encoder for part in self.text_parts), self.vae, self.unet):
            network.to(device=device, dtype=dtype)
        return self

    @torch.no_grad()
    def __call__(
        self,
        prompt: Texts | None = None,
        negative_prompt: Texts = "",
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
        callback: Callback | None = None,
        callback_steps: int = 1,
        output_type: OutputType = "pil",
        progress: bool | None = None,
    ) -> Output:
        """Prompts -> pictures.

        height, width: pixels; by default what the model was trained at. num_inference_steps, guidance_scale: by
        default the model's. guidance_scale 1 is one UNet pass a step, anything else two (Ho & Salimans 2022); a
        sequence or a function of i gives each call its own. guidance_rescale, 0 to 1: see guidance.combine.
        prompt_2, negative_prompt_2: other texts for SDXL's second text encoder. prompt_embeds, negative_prompt_embeds:
        text states (B, L, context_width) in place of the texts, as `encode_prompt` or interpret.text_vectors make them;
        SDXL wants pooled_prompt_embeds, negative_pooled_prompt_embeds with them, as `encode_pooled` makes them.
        guide: a function (x0, i) -> loss, or a Guide with its settings, see there.
        image: a picture to begin with (PIL, array in [0, 1], tensor in [-1, 1]; one, or one for each prompt), of which
        strength, 0 to 1, says how much is to change: 0.8 unless given, 1 with a mask. mask_image: white where to
        repaint. depth_map: for depth models, larger is nearer. noise_level: for upscalers, how much noise hides the
        artefacts of the small picture, 20 unless given. denoising_end: the share of the noise levels, 0 to 1, after
        which this model hands over its latents; denoising_start: after which it goes on with another's, as SDXL's
        refiner with the base's. micro: what SDXL is told about sizes, those of the picture unless given.
        seed: picture k is drawn from seed + k, so it does not depend on how many are made; without a seed, one is
        drawn and returned. generator: one for all pictures, or a list, instead of a seed. latents: (B, 4, h, w) unit
        noise to start from, instead of either. eta: DDIM only.
        callback(i, t, latents) sees every `callback_steps`-th call: its index, timestep and a copy of the latents.
        output_type: "pil", "np" (B, H, W, 3) in [0, 1], "pt" (B, 3, H, W) in [-1, 1], "latent".

        Raises InputError, before any work; NumericalError instead of black pictures; CallbackError.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise InputError(f"output_type is {output_type!r}, expected 'pil', 'np', 'pt' or 'latent'.")
        if callback is not None and not callable(callback):
            raise InputError(f"callback is {callback!r}, expected a function of (i, t, latents).")
        callback_steps = validation.whole_number(callback_steps, "callback_steps", 1, 10**6)
        request = self._asker().request(
            prompt, negative_prompt, height, width, num_inference_steps, guidance_scale, num_images_per_prompt,
            seed, generator, latents, eta, image, strength, mask_image, depth_map, noise_level,
            denoising_start, denoising_end, micro, guidance_rescale, prompt_2, negative_prompt_2, prompt_embeds,
            negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds, guide,
        )  # fmt: skip
        for step in tqdm(self._denoise(request), total=request.stop, disable=not progress):
            final = step.latents
            if callback is not None and step.i % callback_steps == 0:
                try:
                    callback(step.i, step.t, step.latents.clone())
                except Exception as error:
                    raise CallbackError(f"the callback failed at step {step.i}: {error!r}") from error
        if output_type == "latent":
            return Output(final, request.seeds)
        pixels = self.decode(final)
        pictures = {"pil": images.to_pil, "np": images.to_numpy, "pt": lambda x: x}[output_type](pixels)
        return Output(pictures, request.seeds)

    def denoise(
        self,
        prompt: Texts | None = None,
        negative_prompt: Texts = "",
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
    ) -> Iterator[DenoisingStep]:
        """The loop itself, as an iterator of steps: `break` stops it early, `step.x0` is the preview.

        Arguments and errors as for a call; they are checked now, the work begins with the first step.
        """
        return self._denoise(
            self._asker().request(
                prompt, negative_prompt, height, width, num_inference_steps, guidance_scale, num_images_per_prompt,
                seed, generator, latents, eta, image, strength, mask_image, depth_map, noise_level,
                denoising_start, denoising_end, micro, guidance_rescale, prompt_2, negative_prompt_2, prompt_embeds,
                negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds, guide,
            )
        )  # fmt: skip

    def _asker(self) -> Asker:
        unet, parts = self.unet.config, self.text_parts
        listener = Listener(
            len(parts),
            unet.context_width,
            pooled_width(parts) if self.is_xl else None,
            self.tokenizer.max_length,
            self.defaults.words,
        )
        return Asker(unet, self.vae.config, self.scheduler, self.defaults, listener)

    @torch.no_grad()
    def _denoise(self, request: Request) -> Iterator[DenoisingStep]:
        scheduler, grid, guide = request.scheduler, request.grid, request.guide
        told = self._condition(request)

        def randn(shape: Sequence[int] = request.shape) -> Tensor:
            return draw_noise(shape, request.generators).to(self.device)

        start = begin(request, self.vae, self.low_res, self.device, randn)
        x, memory = start.x, None
        for i, t in enumerate(grid.timesteps[: request.stop]):
            if guide is None or i % guide.every:
                output = self._predict(request, start, told, i, x)
            else:
                x, output = guide.move(
                    i,
                    x,
                    float(scheduler.add_noise(grid, i, torch.zeros(1, 1), torch.ones(1, 1))),
                    partial(self._predict, request, start, told, i),
                    partial(_x0, scheduler, grid, i, memory),
                )
            x, x0, memory = scheduler.step(grid, i, x, output, memory, randn)
            if start.picture is not None and start.kept is not None:  # inpainting by a model that knows no masks
                x = torch.lerp(scheduler.add_noise(grid, i + 1, start.picture, start.noise), x, start.kept)
            if not torch.isfinite(x).all():
                raise NumericalError(
                    f"the latents are not finite after step {i} (timestep {float(t):g}): {diagnosis(self.unet)}."
                )
            yield DenoisingStep(i, t, x, x0)

    def _predict(self, request: Request, start: Start, told: Condition, i: int, x: Tensor) -> Tensor:
        """The model's output at call i for x (B, C, h, w), guided unless this call's scale is 1."""
        scale = request.guidance_scales[i]
        if scale == 1:  # the rows of the prompts alone, which come last
            told = Condition(told.text[-len(x) :], None if told.vector is None else told.vector[-len(x) :])
        scaled = request.scheduler.scale_input(request.grid, i, x)
        seen = torch.cat([scaled, *start.beside], dim=1).to(self.dtype)
        # with guidance twice the rows: the text has them
        output = self.unet(seen, request.grid.timesteps[i], told.text, start.noise_level, told.vector).float()
        if scale == 1:
            return output
        uncond, cond = output.chunk(2)
        return guidance.combine(uncond, cond, scale, request.guidance_rescale)

    def _condition(self, request: Request) -> Condition:
        """What the UNet is told; with guidance, the negative prompts' rows come first."""
        negative = request.negative if request.guided else None
        zero_empty = self.defaults.zero_empty_prompt
        told = condition(self.text_parts, self.unet.config, negative, request.prompt, request.micro, zero_empty)
        return Condition(told.text.to(self.dtype), None if told.vector is None else told.vector.to(self.dtype))

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str], prompts_2: Sequence[str] | None = None) -> Tensor:
        """Texts -> the states that condition the UNet: (B, 77, context_width).

        prompts_2: other texts for SDXL's second encoder. Raises InputError, NumericalError.
        """
        return self._encode_texts(prompts, prompts_2)[0].to(self.dtype)

    @torch.no_grad()
    def encode_pooled(self, prompts: Sequence[str]) -> Tensor:
        """Texts -> the pooled text (B, P) that SDXL hears beside the states. Raises InputError, NumericalError."""
        if not self.is_xl:
            raise InputError("only models of the SDXL family hear pooled text; this one needs encode_prompt alone.")
        pooled = self._encode_texts(prompts, None)[1]
        assert pooled is not None
        return pooled.to(self.dtype)

    def _encode_texts(self, prompts: Sequence[str], prompts_2: Sequence[str] | None) -> tuple[Tensor, Tensor | None]:
        parts = self.text_parts
        texts = [validation.prompts(prompts, "prompts")]
        if len(parts) == 2:
            texts.append(texts[0] if prompts_2 is None else validation.prompts(prompts_2, "prompts_2"))
        elif prompts_2 is not None:
            raise InputError("prompts_2 is for SDXL's second text encoder; this model has one.")
        if len(texts[0]) != len(texts[-1]):
            raise InputError(f"prompts_2 holds {len(texts[-1])} texts for {len(texts[0])} prompts; give as many.")
        return encode(parts, texts, self.is_xl)

    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w) as the UNet knows them: of about unit variance."""
        return encode_pixels(self.vae, pixels, lambda shape: torch.randn(shape, generator=generator))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents of about unit variance (B, C, h, w) -> pixels (B, 3, H, W) in [-1, 1], one picture at a time.

        Raises NumericalError when pixels are not finite; half precision is tried once more in float32 before.
        """
        return decode_latents(self.vae, latents)


def _x0(scheduler: Scheduler, grid: Grid, i: int, memory: Memory | None, x: Tensor, output: Tensor) -> Tensor:
    """The clean picture as call i predicts it: of a step whose noise, if any, does not count."""
    return scheduler.step(grid, i, x, output, memory, partial(torch.zeros_like, x)).x0
