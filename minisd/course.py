"""The names and call shapes of the public Stable Diffusion courses, so that their cells run unchanged.

    from minisd.course import StableDiffusionPipeline
    pipe = StableDiffusionPipeline.from_pretrained("sticker")
    pipe("a red circle", callback=latents_callback, callback_steps=12).images[0]

This layer only renames: `pipe.vae.core`, `pipe.unet.core`, ... are the modules themselves. Two habits of the
courses are kept that the modules do not have: without a generator, noise comes from torch's global one, so
that `torch.manual_seed` before a call counts, and a callback gets latents in the dtype of the weights.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

import weights_loader
from minisd import images
from minisd.errors import InputError
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.pipeline import Callback, OutputType, StableDiffusion
from minisd.schedulers import Scheduler
from minisd.tokenizer import Tokenizer


class Output(dict[str, Any]):
    """What calls return: fields by name, by key and by place, as out.sample, out["sample"], out[0]."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"this output has no {name!r}, only {', '.join(self)}.")
        return self[name]

    def __getitem__(self, key: str | int) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


class _Wrapper:
    """A component under the courses' names; what is not renamed (config, parameters(), ...) is its own."""

    core: Any

    def __init__(self, core: Any) -> None:
        self.core = core.core if isinstance(core, _Wrapper) else core

    def __getattr__(self, name: str) -> Any:
        if name == "core" or name.startswith("__"):  # not there yet, while it is copied
            raise AttributeError(name)
        return getattr(self.core, name)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the component."""
        self.core.to(*args, **kwargs)
        return self


class AutoencoderKL(_Wrapper):
    """The autoencoder. It speaks raw latents: 0.18215 is the caller's."""

    core: VAE

    def encode(self, pixels: Tensor) -> Output:
        """Pixels (B, 3, H, W) in [-1, 1] -> .latent_dist, with .mean, .std and .sample(generator)."""
        return Output(latent_dist=self.core.encode(pixels))

    def decode(self, latents: Tensor) -> Output:
        """Raw latents (B, C, h, w) -> .sample, pixels (B, 3, H, W)."""
        return Output(sample=self.core.decode(latents))


class UNet2DConditionModel(_Wrapper):
    """The denoiser."""

    core: UNet

    @property
    def in_channels(self) -> int:
        """Channels of the latents that it reads."""
        return self.core.config.in_channels

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        return_dict: bool = True,
    ) -> Output | tuple[Tensor]:
        """Latents (B, C, h, w), timestep () or (B,), text states (B, L, width) -> .sample (B, C, h, w)."""
        output = self.core(sample, timestep, encoder_hidden_states)
        return Output(sample=output) if return_dict else (output,)


class CLIPTextModel(_Wrapper):
    """The text encoder."""

    core: CLIPTextTransformer

    def __call__(self, input_ids: Tensor) -> Output:
        """Ids (B, L) -> .last_hidden_state (B, L, width)."""
        return Output(last_hidden_state=self.core(input_ids))


class CLIPTokenizer(_Wrapper):
    """The tokenizer."""

    core: Tokenizer

    @property
    def model_max_length(self) -> int:
        """How many ids the text encoder reads."""
        return self.core.max_length

    def __len__(self) -> int:
        return len(self.core)

    def __call__(
        self,
        text: str | Sequence[str],
        padding: str | bool = False,
        max_length: int | None = None,
        truncation: bool = False,
        return_tensors: str | None = None,
    ) -> Output:
        """Text(s) -> .input_ids, .attention_mask: tensors (B, L) with "pt", else lists, flat for a text.

        padding: "max_length" or False. Raises InputError, also for a tensor of unequal rows.
        """
        if max_length not in (None, self.model_max_length):
            raise InputError(f"max_length is {max_length!r}, expected the model's, {self.model_max_length}.")
        if padding not in ("max_length", False):
            raise InputError(f"padding is {padding!r}, expected 'max_length' or False.")
        if return_tensors not in ("pt", None):
            raise InputError(f"return_tensors is {return_tensors!r}, expected 'pt' or None.")
        texts = [text] if isinstance(text, str) else list(text)
        coded = [self.core.encode(each, padding=bool(padding), truncation=truncation) for each in texts]
        rows = {
            "input_ids": [each.ids[0] for each in coded],
            "attention_mask": [each.attention_mask[0] for each in coded],
        }
        if return_tensors is None:
            lists = {name: [row.tolist() for row in each] for name, each in rows.items()}
            return Output({name: each[0] if isinstance(text, str) else each for name, each in lists.items()})
        lengths = [len(row) for row in rows["input_ids"]]
        if len(set(lengths)) > 1:
            raise InputError(f"the texts have {lengths} tokens, expected as many each; pass padding='max_length'.")
        return Output({name: torch.stack(each) for name, each in rows.items()})


class StableDiffusionPipeline:
    """Text to image, from a pretrained model or from components, native ones or those of another pipeline."""

    def __init__(
        self,
        vae: VAE | AutoencoderKL,
        text_encoder: CLIPTextTransformer | CLIPTextModel,
        tokenizer: Tokenizer | CLIPTokenizer,
        unet: UNet | UNet2DConditionModel,
        scheduler: Scheduler,
        safety_checker: None = None,
        feature_extractor: None = None,
    ) -> None:
        if safety_checker is not None or feature_extractor is not None:
            raise InputError("there is no safety checker here; leave out safety_checker and feature_extractor.")
        self._vae, self._text_encoder = AutoencoderKL(vae), CLIPTextModel(text_encoder)
        self._tokenizer, self._unet = CLIPTokenizer(tokenizer), UNet2DConditionModel(unet)
        self.core = StableDiffusion(
            self._tokenizer.core, self._text_encoder.core, self._vae.core, self._unet.core, scheduler
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        variant: str | None = None,
        torch_dtype: torch.dtype = torch.float32,
        safety_checker: None = None,
        local_files_only: bool | None = None,
    ) -> Self:
        """A model by name, hub id, folder or file. Raises what weights_loader.load raises."""
        sd = weights_loader.load(
            source, revision=revision, variant=variant, dtype=torch_dtype, offline=local_files_only
        )
        return cls(sd.vae, sd.text_encoder, sd.tokenizer, sd.unet, sd.scheduler, safety_checker)

    vae = property(lambda self: self._vae)
    text_encoder = property(lambda self: self._text_encoder)
    tokenizer = property(lambda self: self._tokenizer)
    unet = property(lambda self: self._unet)
    device = property(lambda self: self.core.device)

    @property
    def scheduler(self) -> Scheduler:
        """The sampler; assign another one to swap it."""
        return self.core.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Scheduler) -> None:
        if not isinstance(scheduler, Scheduler):
            raise InputError(f"scheduler is {scheduler!r}, expected one of minisd.schedulers, such as LMS().")
        self.core.scheduler = scheduler

    @property
    def components(self) -> dict[str, Any]:
        """What another pipeline can be made of: Other(**pipe.components)."""
        return {
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "unet": self.unet,
            "scheduler": self.scheduler,
            "safety_checker": None,
            "feature_extractor": None,
        }

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move all networks. Raises DeviceError for a device that is not there."""
        self.core.to(None if device is None else weights_loader.check_device(device), dtype)
        return self

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
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
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

        def in_dtype(i: int, t: Tensor, x: Tensor) -> None:
            assert callback is not None
            callback(i, t, x.to(self.core.dtype))

        output = self.core(
            prompt,
            "" if negative_prompt is None else negative_prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            generator=torch.default_generator if generator is None else generator,
            latents=latents,
            eta=eta,
            callback=in_dtype if callable(callback) else callback,
            callback_steps=callback_steps,
            output_type=output_type,
        )
        pictures = output.images / 2 + 0.5 if output_type == "pt" else output.images
        return Output(images=pictures, nsfw_content_detected=None) if return_dict else (pictures, None)

    numpy_to_pil = staticmethod(images.numpy_to_pil)
