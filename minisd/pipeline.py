"""Stable Diffusion: encode the prompt, denoise step by step, decode the picture. Every task is this one loop."""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minisd import images, validation
from minisd.errors import CallbackError, InputError, NumericalError
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.noise import draw_noise, make_generators
from minisd.schedulers import DDIM, Scheduler, validate_steps
from minisd.tokenizer import Tokenizer

Callback = Callable[[int, Tensor, Tensor], Any]
OutputType = Literal["pil", "np", "pt", "latent"]


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


@dataclass(frozen=True)
class Defaults:
    """What a model is best run with; travels with the model.

    words: all that a model of a small world was taught, with spaces between; none where nobody could list them.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    words: str = ""


@dataclass(frozen=True)
class _Request:
    """A validated call: everything decided, nothing computed yet."""

    prompts: list[str]
    negative: list[str]
    shape: tuple[int, int, int, int]
    steps: int
    guidance_scale: float
    scheduler: Scheduler
    generators: list[torch.Generator]
    seeds: list[int] | None
    latents: Tensor | None


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
        defaults: Defaults = Defaults(),
    ) -> None:
        width, context = text_encoder.config.width, unet.config.context_width
        if width != context:
            raise InputError(f"the text encoder gives vectors of {width}, the UNet expects {context}.")
        if len(tokenizer) > text_encoder.config.vocab_size:
            raise InputError(
                f"the tokenizer has {len(tokenizer)} ids, the text encoder {text_encoder.config.vocab_size}; "
                "take both from one model."
            )
        self.tokenizer, self.text_encoder, self.vae, self.unet = tokenizer, text_encoder, vae, unet
        self.scheduler, self.defaults = scheduler, defaults

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
        for network in (self.text_encoder, self.vae, self.unet):
            network.to(device=device, dtype=dtype)
        return self

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        eta: float = 0.0,
        callback: Callback | None = None,
        callback_steps: int = 1,
        output_type: OutputType = "pil",
        progress: bool | None = None,
    ) -> Output:
        """Prompts -> pictures.

        height, width: pixels; by default what the model was trained at. num_inference_steps, guidance_scale: by
        default the model's. guidance_scale 1 is one UNet pass a step, anything else two (Ho & Salimans 2022).
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
        request = self._request(
            prompt, negative_prompt, height, width, num_inference_steps, guidance_scale, num_images_per_prompt,
            seed, generator, latents, eta,
        )  # fmt: skip
        total = len(request.scheduler.grid(request.steps))
        for step in tqdm(self._denoise(request), total=total, disable=not progress):
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
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        eta: float = 0.0,
    ) -> Iterator[DenoisingStep]:
        """The loop itself, as an iterator of steps: `break` stops it early, `step.x0` is the preview.

        Arguments and errors as for a call; they are checked now, the work begins with the first step.
        """
        return self._denoise(
            self._request(
                prompt, negative_prompt, height, width, num_inference_steps, guidance_scale,
                num_images_per_prompt, seed, generator, latents, eta,
            )
        )  # fmt: skip

    @torch.no_grad()
    def _denoise(self, request: _Request) -> Iterator[DenoisingStep]:
        scheduler, guidance = request.scheduler, request.guidance_scale
        grid = scheduler.grid(request.steps)
        guided = guidance != 1
        text = self.encode_prompt(request.negative + request.prompts if guided else request.prompts)

        def randn() -> Tensor:
            return draw_noise(request.shape, request.generators).to(self.device)

        x = randn() if request.latents is None else request.latents.to(self.device, torch.float32)
        x, memory = x * grid.init_noise_sigma, None
        for i, t in enumerate(grid.timesteps):
            scaled = scheduler.scale_input(grid, i, x).to(self.dtype)
            output = self.unet(scaled, t, text).float()  # with guidance twice the rows: the text has them
            if guided:
                uncond, cond = output.chunk(2)
                output = uncond + guidance * (cond - uncond)
            x, x0, memory = scheduler.step(grid, i, x, output, memory, randn)
            if not torch.isfinite(x).all():
                raise NumericalError(
                    f"the latents are not finite after step {i} (timestep {float(t):g}): {_diagnosis(self.unet)}."
                )
            yield DenoisingStep(i, t, x, x0)

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        """Texts -> the states that condition the UNet: (B, 77, context_width)."""
        ids = self.tokenizer(list(prompts))
        states = self.text_encoder(ids.to(self.text_encoder.token_embedding.weight.device))
        if not torch.isfinite(states).all():
            raise NumericalError(f"the text states are not finite: {_diagnosis(self.text_encoder)}.")
        return states.to(self.dtype)

    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w) as the UNet knows them: of about unit variance."""
        return self.vae.encode(pixels).sample(generator) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents of about unit variance (B, C, h, w) -> pixels (B, 3, H, W) in [-1, 1], one picture at a time.

        Raises NumericalError when pixels are not finite; half precision is tried once more in float32 before.
        """
        weight = self.vae.from_latents.weight
        raw = (latents / self.vae.config.scaling_factor).to(weight.device)
        vae = self.vae
        if vae.config.force_upcast and weight.dtype == torch.float16:
            vae = copy.deepcopy(vae).float()
        pixels = _decode_each(vae, raw)
        if not torch.isfinite(pixels).all() and weight.dtype != torch.float32:
            warnings.warn(f"the decoder overflowed in {weight.dtype}; decoding again in float32", stacklevel=2)
            pixels = _decode_each(copy.deepcopy(self.vae).float(), raw)
        if not torch.isfinite(pixels).all():
            raise NumericalError(f"the decoded pixels are not finite: {_diagnosis(self.vae)}.")
        return pixels.clamp(-1, 1)

    def _request(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str],
        height: int | None,
        width: int | None,
        num_inference_steps: int | None,
        guidance_scale: float | None,
        num_images_per_prompt: int,
        seed: int | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        latents: Tensor | None,
        eta: float,
    ) -> _Request:
        """Check everything that was asked for, and fill in the model's defaults."""
        config, factor = self.unet.config, self.vae.config.downscale
        if config.in_channels != self.vae.config.latent_channels:
            raise InputError(
                f"this model's UNet reads {config.in_channels} channels, so it needs more than a prompt "
                "(9: inpainting, 5: depth); text to image needs a model with 4."
            )
        prompts = validation.prompts(prompt)
        negative = validation.prompts(negative_prompt, "negative_prompt")
        if isinstance(negative_prompt, str):
            negative = negative * len(prompts)
        if len(negative) != len(prompts):
            raise InputError(f"there are {len(negative)} negative prompts for {len(prompts)} prompts; give as many.")
        per_prompt = validation.whole_number(num_images_per_prompt, "num_images_per_prompt", 1, 10_000)
        prompts, negative = ([text for text in texts for _ in range(per_prompt)] for texts in (prompts, negative))
        count = len(prompts)
        foreign = validation.foreign_words([*prompts, *negative], self.defaults.words)
        if foreign:
            warnings.warn(
                f"this model was never taught {', '.join(map(repr, foreign))}, so expect something else; "
                f"it knows: {self.defaults.words}.",
                stacklevel=3,
            )

        steps = self.defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
        steps = validate_steps(steps, self.scheduler.schedule.num_train_timesteps)
        scale = validation.guidance(self.defaults.guidance_scale if guidance_scale is None else guidance_scale)
        scheduler = self.scheduler
        if validation.real_number(eta, "eta", 0, 1) > 0:
            if not isinstance(scheduler, DDIM):
                raise InputError(f"eta is {eta!r}, but only DDIM has one; this model runs {type(scheduler).__name__}.")
            scheduler = replace(scheduler, eta=float(eta))

        smallest = 2 ** (len(config.channels) - 1)
        usual = config.sample_size
        if latents is not None:
            self._check_latents(latents, count, smallest, seed, generator, height, width)
            h, w = latents.shape[2:]
        else:
            h, w = (
                usual if side is None else validation.size(side, name, factor, factor * smallest) // factor
                for side, name in ((height, "height"), (width, "width"))
            )
        pixels = count * h * w * factor**2
        validation.memory(8 * pixels + 12 * self.vae.config.channels[0] * h * w * factor**2,
                          f"{count} picture(s) of {w * factor} x {h * factor}")  # fmt: skip
        generators, seeds = make_generators(seed, generator, count)
        shape = (count, self.vae.config.latent_channels, h, w)
        return _Request(prompts, negative, shape, steps, scale, scheduler, generators, seeds, latents)

    def _check_latents(
        self, latents: Tensor, count: int, smallest: int, seed: object, generator: object, height: object, width: object
    ) -> None:
        channels, factor = self.vae.config.latent_channels, self.vae.config.downscale
        if not isinstance(latents, Tensor) or latents.ndim != 4 or tuple(latents.shape[:2]) != (count, channels):
            got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise InputError(f"latents are {got}, expected ({count}, {channels}, height/{factor}, width/{factor}).")
        for side, name, asked in zip(latents.shape[2:], ("height", "width"), (height, width), strict=True):
            if asked is not None and asked != side * factor:
                raise InputError(f"{name} is {asked!r}, but the latents are for {side * factor}; leave it out.")
            if side < smallest:
                raise InputError(f"latents have a {name} of {side}, expected at least {smallest}.")
        if not latents.is_floating_point() or not torch.isfinite(latents).all():
            raise InputError("latents hold NaN, infinity or whole numbers, expected finite unit noise.")
        if seed is not None:
            raise InputError("latents and a seed were both given; the latents are the noise, leave out the seed.")


def _diagnosis(network: nn.Module) -> str:
    """Why a network may have given NaN: the first of its tensors that hold it, if any do."""
    bad = [name for name, tensor in network.state_dict().items() if not torch.isfinite(tensor).all()]
    if bad:
        return f"{len(bad)} of its weights hold NaN or infinity ({', '.join(bad[:3])}), fetch them again"
    return "its weights are finite, try float32 and a guidance scale below 20"


def _decode_each(vae: VAE, raw: Tensor) -> Tensor:
    dtype = vae.from_latents.weight.dtype
    return torch.cat([vae.decode(z[None].to(dtype)).float() for z in raw])
