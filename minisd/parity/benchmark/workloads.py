"""What `minisd bench` times: for each workload its inputs, and its call in each of the two libraries."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from minisd.parity.benchmark.families import COMPONENTS, PIXELS_PER_LATENT, FamilyConfigs
from minisd.parity.benchmark.training import TrainingStep
from minisd.pipeline.sdxl_sizes import append_sizes
from minisd.schedulers import NoiseSchedule
from weights_loader.build import NoInitialisation

PROMPT, STEPS, GUIDANCE = "a red circle", 20, 3.0
TOLERANCE = 1e-4  # of a whole network in float32
IMAGE_TOLERANCE = 1 / 255  # of a whole image in float32


@dataclass(frozen=True)
class Workload:
    """A call that is timed, for each library, with what is loaded for its component and with the inputs.

    component: a network, "pipeline" or "training". inputs: makes them from the sizes of the family and the size of the
    image. mixed: inputs stay float32 in every dtype. compared: what must agree, from what was loaded and its output.
    parts: the rows whose operations it does, and how often, where it is no call of one network.
    """

    what: str
    component: str
    inputs: Callable[[FamilyConfigs, int], tuple[Tensor, ...]]
    diffusers: Callable[..., Tensor]
    minisd: Callable[..., Tensor]
    tolerance: float = TOLERANCE
    mixed: bool = False
    compared: Callable[[Any, Tensor], tuple[Tensor, ...]] = lambda loaded, output: (output,)
    parts: Mapping[str, int] = field(default_factory=dict)


def _token_ids(configs: FamilyConfigs, size: int) -> tuple[Tensor, ...]:
    vocabulary = configs.text_encoder.vocab_size
    length = configs.text_encoder.max_length
    ids = torch.randint(0, vocabulary - 2, (2, length), generator=_generator())
    ids[:, 0], ids[:, -1] = vocabulary - 2, vocabulary - 1
    return (ids,)


def _guided_step(configs: FamilyConfigs, size: int) -> tuple[Tensor, ...]:
    """Latents of one image; a timestep; two texts, the empty one and the prompt; what SDXL reads beside."""
    return *_latents(configs, size), torch.tensor(501), *_texts(configs, size)


def _training_batch(configs: FamilyConfigs, size: int) -> tuple[Tensor, ...]:
    """Noisy latents of two images; their noise; two timesteps; two texts; what SDXL reads beside."""
    t = torch.tensor([101, 501])
    x0, noise = torch.cat(_latents(configs, size, count=4)).chunk(2)
    return NoiseSchedule().add_noise(x0, noise, t), noise, t, *_texts(configs, size)


def _texts(configs: FamilyConfigs, size: int) -> tuple[Tensor, ...]:
    unet = configs.unet
    text = torch.randn(2, configs.text_encoder.max_length, unet.context_width, generator=_generator())
    if unet.pooled_width is None:
        return (text,)
    sizes = torch.tensor([[size, size, 0, 0, size, size]] * 2, dtype=text.dtype)
    pooled = torch.randn(2, unet.pooled_width - sizes.shape[1] * unet.size_embedding_width, generator=_generator())
    return text, pooled, sizes


def _latents(configs: FamilyConfigs, size: int, count: int = 1) -> tuple[Tensor, ...]:
    side = size // PIXELS_PER_LATENT
    return (torch.randn(count, configs.unet.in_channels, side, side, generator=_generator()),)


def _pixels(configs: FamilyConfigs, size: int) -> tuple[Tensor, ...]:
    return (2 * torch.rand(1, 3, size, size, generator=_generator()) - 1,)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _unet_of_diffusers(model: Any, latents: Tensor, t: Tensor, text: Tensor, *sdxl: Tensor) -> Tensor:
    added = dict(zip(("text_embeds", "time_ids"), sdxl, strict=False))
    return model(latents, t, text, added_cond_kwargs=added, return_dict=False)[0]


def _unet_of_minisd(model: Any, latents: Tensor, t: Tensor, text: Tensor, *sdxl: Tensor) -> Tensor:
    if not sdxl:
        return model(latents, t, text)
    pooled, sizes = sdxl
    vector = append_sizes(pooled, sizes.tolist(), model.config.size_embedding_width)
    return model(latents, t, text, pooled=vector)


def _image_of_diffusers(pipeline: Any, latents: Tensor) -> Tensor:
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "pt"}
    return pipeline(PROMPT, latents=latents.to(pipeline.unet.dtype), **settings).images


def _image_of_minisd(sd: Any, latents: Tensor) -> Tensor:
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "pt"}
    return (sd(PROMPT, latents=latents, **settings).images + 1) / 2


WORKLOADS = {
    "text": Workload(
        "text encoder, batch 2",
        "text_encoder",
        _token_ids,
        diffusers=lambda model, ids: model(ids).last_hidden_state,
        minisd=lambda model, ids: model(ids),
    ),
    "unet": Workload(
        "UNet step with guidance",
        "unet",
        _guided_step,
        diffusers=lambda model, latents, *rest: _unet_of_diffusers(model, torch.cat([latents] * 2), *rest),
        minisd=_unet_of_minisd,
    ),
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
    "preview": Workload(
        "preview decoder",
        "preview",
        _latents,
        diffusers=lambda model, latents: model.decode(latents, return_dict=False)[0],
        minisd=lambda model, latents: model(latents),
    ),
    "image": Workload(
        f"image, {STEPS} steps with guidance",
        "pipeline",
        _latents,
        _image_of_diffusers,
        _image_of_minisd,
        tolerance=IMAGE_TOLERANCE,
        mixed=True,
        parts={"text": 1, "unet": STEPS, "vae": 1},
    ),
    "train": Workload(
        "UNet training step, batch 2",
        "training",
        _training_batch,
        diffusers=lambda step, *inputs: step(_unet_of_diffusers, *inputs),
        minisd=lambda step, *inputs: step(_unet_of_minisd, *inputs),
        mixed=True,
        compared=lambda step, loss: (loss, step.gradients()),
    ),
}


def count_flops(workload: Workload, configs: FamilyConfigs, size: int) -> float:
    """The operations of minisd's call: two for each multiplication in convolutions, matrix products and attention."""
    if workload.parts:
        return sum(times * count_flops(WORKLOADS[row], configs, size) for row, times in workload.parts.items())
    name = "unet" if workload.component == "training" else workload.component
    with torch.device("meta"), NoInitialisation():
        loaded: Any = COMPONENTS[name](getattr(configs, name))
    if workload.component == "training":
        loaded = TrainingStep(loaded, nullcontext)
    inputs = [x.to("meta") for x in workload.inputs(configs, size)]
    if name == "unet" and configs.is_xl:
        inputs[-1] = workload.inputs(configs, size)[-1]  # the sizes of SDXL are read as numbers
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        workload.minisd(loaded, *inputs)
    return float(counter.get_total_flops())
