"""Diffusion models of pixels without text, which the first units of the Hugging Face course train and sample."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn
from tqdm import tqdm

import weights_loader
from minisd import images
from minisd._internal import validation
from minisd._internal.atomic_files import write_json
from minisd._internal.atomic_folders import replace_files
from minisd.configs import UNetConfig
from minisd.course.component import CourseOutput, load_scheduler
from minisd.course.scheduler import CourseScheduler
from minisd.course.schedulers import DDIMScheduler, wrap_scheduler
from minisd.errors import InputError
from minisd.models import UNet
from minisd.schedulers import DDIM, Scheduler
from weights_loader.loading import load_network
from weights_loader.model_folder import MODEL_INDEX, SCHEDULER_CONFIG
from weights_loader.names import diffusers as names
from weights_loader.pixel_configs import PIXEL_PIPELINE, PIXEL_UNET_MUST_BE, pixel_unet_config, pixel_unet_json
from weights_loader.saving import MODEL_FILES, save_network

MAX_BATCH = 4096


class UNet2DModel(nn.Module):
    """A UNet without text. It is a module because the courses train it, alone or inside their own modules."""

    def __init__(self, **config: Any) -> None:
        """New weights; the arguments are the keys of UNet2DModel's config.json. Raises InputError, MismatchError."""
        super().__init__()
        known = {*pixel_unet_json(UNetConfig()), *PIXEL_UNET_MUST_BE}
        unknown = sorted(set(config) - known)
        if unknown:
            raise InputError(f"UNet2DModel has no {', '.join(unknown)}, expected {', '.join(sorted(known))}.")
        self.core = UNet(pixel_unet_config(config))

    @classmethod
    def _from_core(cls, core: UNet) -> Self:
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model.core = core
        return model

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, subfolder: str | None = None, torch_dtype: torch.dtype | None = None
    ) -> Self:
        """Load a folder of save_pretrained or, with subfolder "unet", a pipeline. Raises what loading raises."""
        core = load_network(weights_loader.resolve(source), UNet, subfolder or "", dtype=torch_dtype or torch.float32)
        if core.config.context_width:
            raise InputError(f"{source} is a UNet with text; use UNet2DConditionModel.from_pretrained.")
        return cls._from_core(core)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write a folder with weights and config.json, which replace those in it. Raises OutputError."""
        config = self.core.config
        save_network(self.core, pixel_unet_json(config), names.unet(config), Path(save_directory), overwrite=True)

    @property
    def down_blocks(self) -> list[SimpleNamespace]:
        """The levels on the way down, each with .resnets, .downsamplers and .upsamplers (None without), as modules."""
        return [_as_official(level, "downsamplers") for level in self.core.down]

    @property
    def up_blocks(self) -> list[SimpleNamespace]:
        """The levels on the way up; see down_blocks."""
        return [_as_official(level, "upsamplers") for level in self.core.up]

    @property
    def conv_in(self) -> nn.Module:
        """The first convolution."""
        return self.core.conv_in

    @property
    def conv_out(self) -> nn.Module:
        """The last convolution."""
        return self.core.conv_out

    def enable_gradient_checkpointing(self) -> None:
        """Accepted without effect; see CourseComponent."""

    @property
    def config(self) -> UNetConfig:
        """The sizes of the UNet."""
        return self.core.config

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.core.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.core.conv_in.weight.dtype

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> CourseOutput | tuple[Tensor]:
        """Pixels (B, C, H, W), timestep () or (B,), labels (B,) with num_class_embeds -> .sample (B, C, H, W)."""
        output = self.core(sample, timestep, noise_level=class_labels).contiguous()
        return CourseOutput(sample=output) if return_dict else (output,)


def _as_official(level: Any, name: str) -> SimpleNamespace:
    """A level of the UNet under the names of the reference; its resampling layer is in the list `name`."""
    resampling = None if level.resample is None else [level.resample]
    return SimpleNamespace(**{"resnets": level.resnets, "downsamplers": None, "upsamplers": None, name: resampling})


class DDPMPipeline:
    """Generates images from noise; any scheduler may be assigned."""

    def __init__(self, unet: UNet2DModel, scheduler: Scheduler | CourseScheduler) -> None:
        """Raises InputError for a component that is not minisd's."""
        if not isinstance(unet, UNet2DModel):
            raise InputError(f"DDPMPipeline got a {type(unet).__name__}, expected a UNet2DModel.")
        self.unet = unet
        self.scheduler = scheduler
        self._progress = False

    @property
    def scheduler(self) -> CourseScheduler:
        """The sampler; it can be assigned."""
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Scheduler | CourseScheduler) -> None:
        self._scheduler = wrap_scheduler(scheduler)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        use_safetensors: bool | None = None,
        low_cpu_mem_usage: bool | None = None,
    ) -> Self:
        """Load a hub id or a folder of save_pretrained, or one with the network and scheduler_config.json at its root.

        use_safetensors, low_cpu_mem_usage: ignored. Raises what loading raises.
        """
        path = weights_loader.resolve(source)
        subfolder = "unet" if (path / "unet").is_dir() else None
        unet = UNet2DModel.from_pretrained(path, subfolder=subfolder, torch_dtype=torch_dtype)
        return cls(unet, load_scheduler(path))

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write a folder in diffusers layout; a model in it is replaced, other files stay. Raises OutputError."""
        index = {
            "_class_name": PIXEL_PIPELINE,
            "_diffusers_version": "0.42.1",
            "scheduler": ["diffusers", self.scheduler.core.official_name],
            "unet": ["diffusers", "UNet2DModel"],
        }

        def write(new: Path) -> None:
            self.unet.save_pretrained(new / "unet")
            (new / "scheduler").mkdir()
            write_json(self.scheduler.core.to_config(), new / "scheduler" / SCHEDULER_CONFIG)
            write_json(index, new / MODEL_INDEX)

        replace_files(save_directory, write, MODEL_FILES, overwrite=True)

    def to(self, device: torch.device | str) -> Self:
        """Move the network. Raises DeviceError for a device that does not exist."""
        self.unet.to(weights_loader.check_device(device))
        return self

    def set_progress_bar_config(self, disable: bool = False) -> None:
        """Set whether calls show a progress bar; by default they do not."""
        self._progress = not disable

    numpy_to_pil = staticmethod(images.numpy_to_pil)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | None = None,
        num_inference_steps: int = 1000,
        output_type: str = "pil",
        return_dict: bool = True,
        **step: Any,
    ) -> CourseOutput | tuple[Any]:
        """Generate batch_size images -> .images, PIL images or, with "np", an array (B, H, W, C) in [0, 1].

        generator: for all noise; by default torch's global one. step: eta, for DDIM. Raises InputError.
        """
        count = validation.whole_number(batch_size, "batch_size", 1, MAX_BATCH)
        if output_type not in ("pil", "np"):
            raise InputError(f"output_type is {output_type!r}, expected 'pil' or 'np'.")
        config, device, dtype = self.unet.config, self.unet.device, self.unet.dtype
        shape = (count, config.in_channels, *config.cells)
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.randn(shape, generator=generator, dtype=dtype).to(device) * self.scheduler.init_noise_sigma
        for t in tqdm(self.scheduler.timesteps, disable=not self._progress):
            output = self.unet(self.scheduler.scale_model_input(x, t), t, return_dict=False)[0]
            x = self.scheduler.step(output, t, x, generator=generator, return_dict=False, **step)[0]
        array = images.to_numpy(x)
        found = images.numpy_to_pil(array) if output_type == "pil" else array
        return CourseOutput(images=found) if return_dict else (found,)


class DDIMPipeline(DDPMPipeline):
    """DDPMPipeline with DDIM in place of the given scheduler, and 50 steps."""

    def __init__(self, unet: UNet2DModel, scheduler: Scheduler | CourseScheduler) -> None:
        """Raises InputError for a component that is not minisd's."""
        config = wrap_scheduler(scheduler).config
        # what another sampler's config lacks has the official values, not those of Stable Diffusion: x0 is clipped
        lacking = {name: value for name, value in DDIM.official_defaults.items() if name not in config}
        super().__init__(unet, DDIMScheduler.from_config(config, **lacking))

    def __call__(  # type: ignore[override]  # eta is the third argument, as in the reference
        self,
        batch_size: int = 1,
        generator: torch.Generator | None = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> CourseOutput | tuple[Any]:
        """As for DDPMPipeline; eta: the share of noise that each step adds."""
        return super().__call__(batch_size, generator, num_inference_steps, output_type, return_dict, eta=eta)
