"""What the pipelines of the courses share: how they are built, and everything except their calls."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor

import weights_loader
from minisd import images
from minisd._internal import validation
from minisd.adapters import Lora
from minisd.course.component import PREDICTION_TYPES, CourseOutput, load
from minisd.course.networks import AutoencoderKL, UNet2DConditionModel
from minisd.course.scheduler import CourseScheduler
from minisd.course.schedulers import wrap_scheduler
from minisd.course.text import CLIPTextModel
from minisd.course.tokens import CLIPTokenizer
from minisd.errors import InputError
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.pipeline import Callback, OutputType, StableDiffusion
from minisd.schedulers import Scheduler
from minisd.tokenizer import Tokenizer

Generators = torch.Generator | Sequence[torch.Generator]


class CoursePipeline:
    """A pipeline built from components: minisd's own, or those of another course pipeline."""

    def __init__(
        self,
        vae: VAE | AutoencoderKL,
        text_encoder: CLIPTextTransformer | CLIPTextModel,
        tokenizer: Tokenizer | CLIPTokenizer,
        unet: UNet | UNet2DConditionModel,
        scheduler: Scheduler | CourseScheduler,
        safety_checker: None = None,
        feature_extractor: None = None,
        requires_safety_checker: bool = False,
    ) -> None:
        """Raises InputError for a component that is not minisd's, and for a safety checker: minisd has none."""
        if safety_checker is not None or feature_extractor is not None:
            raise InputError("minisd has no safety checker; leave out safety_checker and feature_extractor.")
        self._vae, self._text_encoder = AutoencoderKL(vae), CLIPTextModel(text_encoder)
        self._tokenizer, self._unet = CLIPTokenizer(tokenizer), UNet2DConditionModel(unet)
        self._scheduler = wrap_scheduler(scheduler)
        self._check_prediction(self._scheduler)
        self._progress = False
        self.core = StableDiffusion(
            self._tokenizer.core,
            self._text_encoder.core,
            self._vae.core,
            self._unet.core,
            self._scheduler.core,
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        variant: str | None = None,
        torch_dtype: torch.dtype | None = None,
        vae: VAE | AutoencoderKL | None = None,
        text_encoder: CLIPTextTransformer | CLIPTextModel | None = None,
        tokenizer: Tokenizer | CLIPTokenizer | None = None,
        unet: UNet | UNet2DConditionModel | None = None,
        scheduler: Scheduler | CourseScheduler | None = None,
        safety_checker: None = None,
        feature_extractor: None = None,
        requires_safety_checker: bool = False,
        use_auth_token: bool | str | None = None,
        local_files_only: bool | None = None,
        use_safetensors: bool | None = None,
        low_cpu_mem_usage: bool | None = None,
    ) -> Self:
        """Load a model (a name, hub id, folder or file); parts that are given replace the model's own.

        revision, variant: see `component.load`. use_safetensors, low_cpu_mem_usage: ignored. Raises what
        weights_loader.load raises, and InputError.
        """
        sd = load(source, revision, variant, torch_dtype, use_auth_token, local_files_only)
        own = wrap_scheduler(sd.scheduler)
        return cls(
            sd.vae if vae is None else vae,
            sd.text_encoder if text_encoder is None else text_encoder,
            sd.tokenizer if tokenizer is None else tokenizer,
            sd.unet if unet is None else unet,
            own.like_reference(replace(sd.scheduler, **own.reference_values)) if scheduler is None else scheduler,
            safety_checker,
            feature_extractor,
        )

    safety_checker = feature_extractor = None
    vae = property(lambda self: self._vae)
    text_encoder = property(lambda self: self._text_encoder)
    tokenizer = property(lambda self: self._tokenizer)
    unet = property(lambda self: self._unet)
    device = property(lambda self: self.core.device)
    dtype = property(lambda self: self.core.dtype)

    @property
    def scheduler(self) -> CourseScheduler:
        """The sampler; it can be assigned."""
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Scheduler | CourseScheduler) -> None:
        self._scheduler = wrap_scheduler(scheduler)
        self._check_prediction(self._scheduler)
        self.core.scheduler = self._scheduler.core

    def _check_prediction(self, scheduler: CourseScheduler) -> None:
        """Warn of a scheduler whose prediction type is not the UNet's: it draws without an error, but no image."""
        got = scheduler.core.schedule.prediction_type
        expected = PREDICTION_TYPES.setdefault(self._unet.core, got)
        if got != expected:
            warnings.warn(
                f"the scheduler has prediction_type {got!r}, but this model predicts {expected!r}, so it draws "
                f"smears; pass prediction_type={expected!r} to {type(scheduler).__name__}, or use its from_config with "
                "the config of the model's own scheduler.",
                stacklevel=3,
            )

    @property
    def config(self) -> CourseOutput:
        """The class of each part, as in model_index.json."""
        parts = {name: (__package__, type(part).__name__) for name, part in self.components.items() if part is not None}
        return CourseOutput(_class_name=type(self).__name__, **parts, requires_safety_checker=False)

    @property
    def components(self) -> dict[str, Any]:
        """The parts, from which another pipeline can be built: Other(**pipe.components)."""
        names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
        return {name: getattr(self, name) for name in names} | {"safety_checker": None, "feature_extractor": None}

    def to(self, device: torch.device | torch.dtype | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move all networks to a device, a dtype or both. Raises DeviceError for a device that does not exist."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        self.core.to(None if device is None else weights_loader.check_device(device), dtype)
        return self

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write a folder in diffusers layout; a model in it is replaced, other files stay. Raises OutputError."""
        weights_loader.save(self.core, save_directory, overwrite=True)

    def load_textual_inversion(self, path: str | Path, token: str | None = None) -> None:
        """Add the word of an embedding's file. Raises what weights_loader.load_embedding raises."""
        weights_loader.load_embedding(self.core, path, token)

    def load_lora_weights(self, path: str | Path) -> Lora:
        """Merge a LoRA; the result sets its scale and removes it. Raises what weights_loader.load_lora raises."""
        return weights_loader.load_lora(self.core, path)

    def set_progress_bar_config(self, disable: bool = False) -> None:
        """Set whether calls show a progress bar; by default they do not."""
        self._progress = not disable

    def _no_effect(self, slice_size: str | int | None = "auto") -> None:
        """Accepted without effect: attention never stores its whole matrix, and images are decoded one by one."""

    enable_attention_slicing = disable_attention_slicing = _no_effect
    enable_vae_slicing = enable_xformers_memory_efficient_attention = _no_effect

    def decode_latents(self, latents: Tensor) -> NDArray[Any]:
        """Latents of unit variance (B, C, h, w) -> array (B, H, W, 3) in [0, 1]."""
        return images.to_numpy(self.core.decode(latents))

    def _encode_prompt(
        self,
        prompt: str | Sequence[str],
        device: torch.device | str | None,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: str | Sequence[str] | None = None,
    ) -> Tensor:
        """Text states (B, L, width); with guidance (2 B, L, width), those of the negative prompts first."""
        prompts = validation.prompts(prompt)
        negative = validation.prompts("" if negative_prompt is None else negative_prompt, "negative_prompt")
        negative = negative * len(prompts) if len(negative) == 1 else negative
        if len(negative) != len(prompts):
            raise InputError(f"got {len(negative)} negative prompts for {len(prompts)} prompts, expected 1 or as many.")
        texts = [*negative, *prompts] if do_classifier_free_guidance else prompts
        return self.core.encode_prompt(texts).repeat_interleave(num_images_per_prompt, 0).to(device)

    @torch.no_grad()
    def _encode_early(self, prompts: Sequence[str], clip_skip: int) -> Tensor:
        """Text states (B, L, width) without the last clip_skip layers, with the final norm."""
        layers = len(self._text_encoder.core.layers)
        skip = validation.whole_number(clip_skip, "clip_skip", 0, layers)
        ids = self._tokenizer.core(prompts).to(self.device)
        output = self._text_encoder(ids, output_hidden_states=True)
        assert isinstance(output, CourseOutput)
        return self._text_encoder.text_model.final_layer_norm(output.hidden_states[layers - skip])

    numpy_to_pil = staticmethod(images.numpy_to_pil)

    def _run(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None,
        generator: Generators | None,
        output_type: OutputType,
        return_dict: bool,
        callback: Callback | None,
        official: dict[str, Any],
        num_inference_steps: int,
        guidance_scale: float,
        **others: Any,
    ) -> CourseOutput | tuple[Any, None]:
        """Call minisd's pipeline with the conventions of the courses: a guidance_scale up to 1 is no guidance.

        official: other arguments of the reference. Raises InputError for those that minisd lacks.
        """
        given = {name: value for name, value in official.items() if value is not None}
        unknown = sorted(set(given) - {"prompt_embeds", "negative_prompt_embeds", "guidance_rescale", "clip_skip"})
        if unknown:
            raise InputError(f"{type(self).__name__} has no {', '.join(unknown)}; leave out what minisd lacks.")
        skipped = given.pop("clip_skip", None)
        if skipped is not None:
            if prompt is None:
                raise InputError("clip_skip needs a prompt, and prompt_embeds are encoded already; leave out one.")
            given["prompt_embeds"] = self._encode_early(validation.prompts(prompt), skipped)
            prompt = None
        self._scheduler.set_timesteps(num_inference_steps)  # so that .timesteps are those of this run

        def in_dtype(i: int, t: Tensor, x: Tensor) -> None:
            assert callback is not None
            callback(i, t, x.to(self.core.dtype))

        output = self.core(
            prompt,
            "" if negative_prompt is None else negative_prompt,
            generator=torch.default_generator if generator is None else generator,
            callback=in_dtype if callable(callback) else callback,
            output_type=output_type,
            progress=self._progress,
            num_inference_steps=num_inference_steps,
            guidance_scale=max(validation.guidance(guidance_scale), 1.0),
            **others,
            **given,
        )
        found = output.images / 2 + 0.5 if output_type == "pt" else output.images
        return CourseOutput(images=found, nsfw_content_detected=None) if return_dict else (found, None)
