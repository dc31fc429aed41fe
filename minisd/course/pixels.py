"""Diffusion models of pixels without words, with which the courses begin: trained from nothing, drawn from noise."""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from tqdm import tqdm

import weights_loader
from minisd import images
from minisd._internal import validation
from minisd._internal.atomic_files import write_json
from minisd.configs import UNetConfig
from minisd.course.output import Output
from minisd.course.scheduler import CourseScheduler
from minisd.errors import InputError
from minisd.models import UNet
from minisd.schedulers import Scheduler
from weights_loader import folder, official_configs
from weights_loader.hub.repo_files import MODEL_INDEX, PIXEL_PIPELINE
from weights_loader.names import diffusers as names
from weights_loader.saving import save_network

MOST = 4096  # pictures at once


class UNet2DModel(nn.Module):
    """A UNet that reads no text. A module, since the lessons train it, alone or inside of their own modules."""

    def __init__(self, **config: Any) -> None:
        """With new weights; keys of UNet2DModel's config.json. Raises InputError, MismatchError."""
        super().__init__()
        known = {*official_configs.pixel_unet_json(UNetConfig()), *official_configs.PIXEL_UNET_MUST_BE}
        unknown = sorted(set(config) - known)
        if unknown:
            raise InputError(f"UNet2DModel has no {', '.join(unknown)}, expected {', '.join(sorted(known))}.")
        self.core = UNet(official_configs.pixel_unet_config(config))

    @classmethod
    def _over(cls, core: UNet) -> Self:
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.core = core
        return made

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, subfolder: str | None = None, torch_dtype: torch.dtype | None = None
    ) -> Self:
        """A folder that save_pretrained wrote, or, with subfolder "unet", a whole model. Raises what loading raises."""
        path = weights_loader.resolve(source) if subfolder else Path(source).expanduser().resolve()
        part = subfolder or path.name
        dtype = torch.float32 if torch_dtype is None else torch_dtype
        core = folder.load_unet(path if subfolder else path.parent, None, "cpu", dtype, part)
        if core.config.context_width:
            raise InputError(f"{source} reads text; use UNet2DConditionModel.from_pretrained.")
        return cls._over(core)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write a folder with weights and config.json. Raises OutputError."""
        config = self.core.config
        save_network(self.core, official_configs.unet_json(config), names.unet(config), Path(save_directory))

    @property
    def config(self) -> UNetConfig:
        """Its sizes."""
        return self.core.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.core.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept in."""
        return self.core.conv_in.weight.dtype

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Output | tuple[Tensor]:
        """Pixels (B, C, H, W), timestep () or (B,), with `num_class_embeds` labels (B,) -> .sample (B, C, H, W)."""
        output = self.core(sample, timestep, noise_level=class_labels).contiguous()
        return Output(sample=output) if return_dict else (output,)


class DDPMPipeline:
    """Pictures out of noise, as the model was trained to draw them; any scheduler may be assigned."""

    def __init__(self, unet: UNet2DModel, scheduler: Scheduler | CourseScheduler) -> None:
        """Raises InputError for what is no component of minisd's."""
        if not isinstance(unet, UNet2DModel):
            raise InputError(f"DDPMPipeline got a {type(unet).__name__}, expected a UNet2DModel.")
        self.unet = unet
        self.scheduler = scheduler
        self._progress = False

    @property
    def scheduler(self) -> CourseScheduler:
        """The sampler; assign another one to swap it."""
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Scheduler | CourseScheduler) -> None:
        self._scheduler = CourseScheduler.of(scheduler)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, torch_dtype: torch.dtype | None = None) -> Self:
        """A hub id or a folder that save_pretrained wrote. Raises what loading raises."""
        path = weights_loader.resolve(source)
        config = folder.component_json(path, "scheduler", "scheduler_config.json")
        unet = UNet2DModel.from_pretrained(path, subfolder="unet", torch_dtype=torch_dtype)
        return cls(unet, Scheduler.from_config(config))

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write a folder in diffusers layout. Raises OutputError."""
        path = Path(save_directory)
        self.unet.save_pretrained(path / "unet")
        (path / "scheduler").mkdir(exist_ok=True)
        write_json(self.scheduler.core.to_config(), path / "scheduler" / "scheduler_config.json")
        index = {
            "_class_name": PIXEL_PIPELINE,
            "_diffusers_version": "0.42.1",
            "scheduler": ["diffusers", self.scheduler.core.official_name],
            "unet": ["diffusers", "UNet2DModel"],
        }
        write_json(index, path / MODEL_INDEX)

    def to(self, device: torch.device | str) -> Self:
        """Move the network. Raises DeviceError for a device that is not there."""
        self.unet.to(weights_loader.check_device(device))
        return self

    def set_progress_bar_config(self, disable: bool = False) -> None:
        """Whether calls show a bar; they do not before this is called."""
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
    ) -> Output | tuple[Any]:
        """Draw batch_size pictures -> .images, a list of PIL images or, with "np", an array (B, H, W, C) in [0, 1].

        generator: one, which all noise comes from, or torch's global one. Raises InputError.
        """
        count = validation.whole_number(batch_size, "batch_size", 1, MOST)
        if output_type not in ("pil", "np"):
            raise InputError(f"output_type is {output_type!r}, expected 'pil' or 'np'.")
        config, device, dtype = self.unet.config, self.unet.device, self.unet.dtype
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.randn(shape, generator=generator, dtype=dtype).to(device) * self.scheduler.init_noise_sigma
        for t in tqdm(self.scheduler.timesteps, disable=not self._progress):
            output = self.unet(self.scheduler.scale_model_input(x, t), t, return_dict=False)[0]
            x = self.scheduler.step(output, t, x, generator=generator, return_dict=False)[0]
        array = images.to_numpy(x)
        pictures = images.numpy_to_pil(array) if output_type == "pil" else array
        return Output(images=pictures) if return_dict else (pictures,)
