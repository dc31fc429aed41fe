"""What `minisd bench` times: sizes of a model family, and for each workload its inputs and its two calls."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

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
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.pipeline.sdxl_sizes import append_sizes
from weights_loader.build import NoInitialisation

PIXELS_PER_LATENT = 8
NETWORKS: dict[str, type[nn.Module]] = {"text_encoder": CLIPTextTransformer, "unet": UNet, "vae": VAE}


@dataclass(frozen=True)
class FamilyConfigs:
    """The sizes of the networks of one model family."""

    text_encoder: CLIPTextConfig
    unet: UNetConfig
    vae: VAEConfig


FAMILIES = {
    "sd15": FamilyConfigs(SD1_TEXT, SD1_UNET, SD1_VAE),
    "sd21": FamilyConfigs(SD2_TEXT, SD2_UNET, SD1_VAE),
    "sdxl": FamilyConfigs(SD1_TEXT, SDXL_UNET, SDXL_VAE),  # with the first of its two text encoders
}


def tiny(configs: FamilyConfigs) -> FamilyConfigs:
    """The same family in sizes that take milliseconds."""
    unet: dict[str, Any] = {"depths": (1, 0)}
    if configs.unet.pooled_width is not None:
        unet = {"depths": (0, 2), "middle_depth": 2}
    unet |= {"channels": (32, 64), "heads": (2, 4), "only_cross_attention": (False, False), "layers_per_block": 1}
    return FamilyConfigs(
        replace(configs.text_encoder, vocab_size=1000, width=32, layers=2, heads=2, mlp_width=64),
        replace(configs.unet, **unet, context_width=32, norm_groups=8),
        replace(configs.vae, channels=(16, 32, 32, 32), layers_per_block=1, norm_groups=8),
    )


@dataclass(frozen=True)
class Workload:
    """A call of a component that is timed, for each library; `inputs` makes its inputs from configs and image size."""

    what: str
    component: str
    inputs: Callable[[FamilyConfigs, int], tuple[Tensor, ...]]
    diffusers: Callable[..., Tensor]
    minisd: Callable[..., Tensor]


def _token_ids(configs: FamilyConfigs, size: int) -> tuple[Tensor, ...]:
    vocabulary = configs.text_encoder.vocab_size
    length = configs.text_encoder.max_length
    ids = torch.randint(0, vocabulary - 2, (2, length), generator=_generator())
    ids[:, 0], ids[:, -1] = vocabulary - 2, vocabulary - 1
    return (ids,)


def _guided_step(configs: FamilyConfigs, size: int) -> tuple[Tensor, ...]:
    unet = configs.unet
    text = torch.randn(2, configs.text_encoder.max_length, unet.context_width, generator=_generator())
    step = *_latents(configs, size), torch.tensor(501), text  # without and with the prompt
    if unet.pooled_width is None:
        return step
    sizes = torch.tensor([[size, size, 0, 0, size, size]] * 2, dtype=text.dtype)
    pooled = torch.randn(2, unet.pooled_width - sizes.shape[1] * unet.size_embedding_width, generator=_generator())
    return *step, pooled, sizes


def _step_of_diffusers(model: nn.Module, latents: Tensor, t: Tensor, text: Tensor, *sdxl: Tensor) -> Tensor:
    added = dict(zip(("text_embeds", "time_ids"), sdxl, strict=False))
    return model(torch.cat([latents] * 2), t, text, added_cond_kwargs=added, return_dict=False)[0]


def _step_of_minisd(model: nn.Module, latents: Tensor, t: Tensor, text: Tensor, *sdxl: Tensor) -> Tensor:
    if not sdxl:
        return model(latents, t, text)
    pooled, sizes = sdxl
    vector = append_sizes(pooled, sizes.tolist(), model.config.size_embedding_width)  # type: ignore[union-attr, arg-type]
    return model(latents, t, text, pooled=vector)


def _latents(configs: FamilyConfigs, size: int) -> tuple[Tensor, ...]:
    side = size // PIXELS_PER_LATENT
    return (torch.randn(1, configs.unet.in_channels, side, side, generator=_generator()),)


def _pixels(configs: FamilyConfigs, size: int) -> tuple[Tensor, ...]:
    return (2 * torch.rand(1, 3, size, size, generator=_generator()) - 1,)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


WORKLOADS = {
    "text": Workload(
        "text encoder, batch 2",
        "text_encoder",
        _token_ids,
        diffusers=lambda model, ids: model(ids).last_hidden_state,
        minisd=lambda model, ids: model(ids),
    ),
    "unet": Workload("UNet step with guidance", "unet", _guided_step, _step_of_diffusers, _step_of_minisd),
    "vae": Workload(
        "VAE decode",
        "vae",
        _latents,
        diffusers=lambda model, latents: model.decode(latents, return_dict=False)[0],
        minisd=lambda model, latents: model.decode(latents),
    ),
    "encode": Workload(
        "VAE encode",
        "vae",
        _pixels,
        diffusers=lambda model, pixels: model.encode(pixels).latent_dist.mean,
        minisd=lambda model, pixels: model.encode(pixels).mean,
    ),
}


def count_flops(workload: Workload, configs: FamilyConfigs, size: int) -> float:
    """The operations of minisd's call: two for each multiplication in convolutions, matrix products and attention."""
    with torch.device("meta"), NoInitialisation():
        network = NETWORKS[workload.component](getattr(configs, workload.component))
    inputs = [x.to("meta") for x in workload.inputs(configs, size)]
    if workload.component == "unet" and configs.unet.pooled_width is not None:
        inputs[-1] = workload.inputs(configs, size)[-1]  # the sizes of SDXL are read as numbers
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        workload.minisd(network, *inputs)
    return float(counter.get_total_flops())
