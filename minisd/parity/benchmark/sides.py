"""The two sides of `minisd bench`: the same weights, inputs and calls for diffusers and for minisd.

The only module that imports diffusers and transformers, and only inside of functions.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minisd.configs import (
    SD1_TEXT,
    SD1_UNET,
    SD1_VAE,
    SD2_TEXT,
    SD2_UNET,
    SDXL_UNET,
    SDXL_VAE,
    CLIPTextConfig,
    UNetConfig,
    VAEConfig,
)
from minisd.errors import InputError, OutputError
from minisd.pipeline.conditioning import with_sizes
from weights_loader import folder as minisd_folder
from weights_loader.official_configs import text_json, unet_json, vae_json

SIDES = ("diffusers", "minisd")
COMPONENTS = ("text_encoder", "unet", "vae")
PIXELS_PER_LATENT = 8
NORM_SPREAD = 0.1  # fresh norms are 1 and 0, which would hide a mix-up

Loader = Callable[[Path, torch.device, torch.dtype], nn.Module]


@dataclass(frozen=True)
class Configs:
    """The sizes of one model family."""

    text_encoder: CLIPTextConfig
    unet: UNetConfig
    vae: VAEConfig


FAMILIES = {
    "sd15": Configs(SD1_TEXT, SD1_UNET, SD1_VAE),
    "sd21": Configs(SD2_TEXT, SD2_UNET, SD1_VAE),
    "sdxl": Configs(SD1_TEXT, SDXL_UNET, SDXL_VAE),  # of its two text encoders the first
}


def tiny(configs: Configs) -> Configs:
    """The same family in a size that takes milliseconds."""
    shape: dict[str, Any] = {
        "channels": (32, 64),
        "depths": (1, 0),
        "heads": (2, 4),
        "only_cross_attention": (False, False),
    }
    if configs.unet.pooled_width is not None:
        shape |= {"depths": (0, 2), "middle_depth": 2}
    return Configs(
        replace(configs.text_encoder, vocab_size=1000, width=32, layers=2, heads=2, mlp_width=64),
        replace(configs.unet, **shape, layers_per_block=1, context_width=32, norm_groups=8),
        replace(configs.vae, channels=(16, 32, 32, 32), layers_per_block=1, norm_groups=8),
    )


@dataclass(frozen=True)
class Scene:
    """A call of a component to time, in its two spellings, with inputs made for (configs, pixels a side)."""

    what: str
    component: str
    inputs: Callable[[Configs, int], tuple[Tensor, ...]]
    diffusers: Callable[..., Tensor]
    minisd: Callable[..., Tensor]


def _token_ids(configs: Configs, size: int) -> tuple[Tensor, ...]:
    vocabulary = configs.text_encoder.vocab_size
    length = configs.text_encoder.max_length
    ids = torch.randint(0, vocabulary - 2, (2, length), generator=_generator())
    ids[:, 0], ids[:, -1] = vocabulary - 2, vocabulary - 1
    return (ids,)


def _guided_step(configs: Configs, size: int) -> tuple[Tensor, ...]:
    unet = configs.unet
    text = torch.randn(2, configs.text_encoder.max_length, unet.context_width, generator=_generator())
    step = *_latents(configs, size), torch.tensor(501), text  # without and with the prompt
    if unet.pooled_width is None:
        return step
    sizes = torch.tensor([[size, size, 0, 0, size, size]] * 2, dtype=text.dtype)
    pooled = torch.randn(2, unet.pooled_width - sizes.shape[1] * unet.size_embedding_width, generator=_generator())
    return *step, pooled, sizes


def _guided_oracle(model: nn.Module, latents: Tensor, t: Tensor, text: Tensor, *added: Tensor) -> Tensor:
    more = dict(zip(("text_embeds", "time_ids"), added, strict=False))
    return model(torch.cat([latents] * 2), t, text, added_cond_kwargs=more, return_dict=False)[0]


def _guided_minisd(model: nn.Module, latents: Tensor, t: Tensor, text: Tensor, *added: Tensor) -> Tensor:
    if not added:
        return model(latents, t, text)
    pooled, sizes = added
    vector = with_sizes(pooled, sizes.tolist(), model.config.size_embedding_width)  # type: ignore[union-attr, arg-type]
    return model(latents, t, text, pooled=vector)


def _latents(configs: Configs, size: int) -> tuple[Tensor, ...]:
    side = size // PIXELS_PER_LATENT
    return (torch.randn(1, configs.unet.in_channels, side, side, generator=_generator()),)


def _pixels(configs: Configs, size: int) -> tuple[Tensor, ...]:
    return (2 * torch.rand(1, 3, size, size, generator=_generator()) - 1,)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


SCENES = {
    "text": Scene(
        "text encoder, batch 2",
        "text_encoder",
        _token_ids,
        diffusers=lambda model, ids: model(ids).last_hidden_state,
        minisd=lambda model, ids: model(ids),
    ),
    "unet": Scene(
        "UNet step with guidance",
        "unet",
        _guided_step,
        diffusers=_guided_oracle,
        minisd=_guided_minisd,
    ),
    "vae": Scene(
        "VAE decode",
        "vae",
        _latents,
        diffusers=lambda model, latents: model.decode(latents, return_dict=False)[0],
        minisd=lambda model, latents: model.decode(latents),
    ),
    "encode": Scene(
        "VAE encode",
        "vae",
        _pixels,
        diffusers=lambda model, pixels: model.encode(pixels).latent_dist.mean,
        minisd=lambda model, pixels: model.encode(pixels).mean,
    ),
}


def require_oracle() -> dict[str, str]:
    """The versions of diffusers and transformers; InputError where they are not installed."""
    try:
        import diffusers
        import transformers

        versions = {name: version(name) for name in ("diffusers", "transformers", "accelerate")}
    except ImportError as error:
        raise InputError(
            f"`minisd bench` compares with {error.name}, which is not installed: pip install 'minisd[oracle]'"
        ) from error
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    return versions


def make_weights(component: str, configs: Configs, folder: Path) -> None:
    """Random weights of sane scale, float32, in `folder`/`component`, named and stored as official ones.

    What is there already is kept. The folder appears whole or not at all. Raises OutputError.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig as OracleTextConfig
    from transformers import CLIPTextModel

    final, partial = folder / component, folder / f"{component}.partial"
    if final.is_dir():
        return
    shutil.rmtree(partial, ignore_errors=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if component == "text_encoder":
            model = CLIPTextModel(OracleTextConfig(**text_json(configs.text_encoder)))
        elif component == "unet":
            model = UNet2DConditionModel.from_config(unet_json(configs.unet))
        else:
            model = AutoencoderKL.from_config(vae_json(configs.vae))
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 1:
                    weight.add_(NORM_SPREAD * torch.randn(weight.shape))
    needed = sum(weight.nbytes for weight in model.parameters())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"the weights of the {component} need {needed:,} bytes, {free:,} are free in {folder}; "
            "make room, or name another folder with --keep."
        )
    model.save_pretrained(partial)
    partial.rename(final)


def loader(side: str, component: str) -> Loader:
    """What loads a component of a model folder on one side; all that it needs is imported by now."""
    if side == "minisd":
        loads: dict[str, Callable[..., nn.Module]] = {
            "text_encoder": minisd_folder.load_text_encoder,
            "unet": minisd_folder.load_unet,
            "vae": minisd_folder.load_vae,
        }
        return lambda folder, device, dtype: loads[component](folder, None, device, dtype)

    require_oracle()
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    def load_oracle(folder: Path, device: torch.device, dtype: torch.dtype) -> nn.Module:
        path = folder / component
        if component == "text_encoder":
            return CLIPTextModel.from_pretrained(path, dtype=dtype, local_files_only=True).eval().to(device)
        kind = UNet2DConditionModel if component == "unet" else AutoencoderKL
        return kind.from_pretrained(path, torch_dtype=dtype, local_files_only=True).eval().to(device)

    return load_oracle
