"""The layout and the sizes of a weight file, from the names and shapes of its tensors alone."""

import re
from collections.abc import Mapping
from typing import Literal

from minisd._internal.messages import listed
from minisd.configs import SD2_TEXT, CLIPTextConfig, UNetConfig, VAEConfig
from minisd.errors import MismatchError
from weights_loader.names import ldm
from weights_loader.official_configs import make_config

Shapes = Mapping[str, tuple[int, ...]]
Layout = Literal["ldm", "unet", "vae", "text_encoder"]

SCHEDULE_BUFFERS = {
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
}
UNUSED_PREFIXES = (
    ldm.EMA,
    "depth_model.",
    "low_scale_model.",
    "control_model.",
    "embedding_manager.",
    "denoiser.sigmas",
)
# The networks of an original file, by the beginnings of their tensors' names.
PARTS: dict[str, str | tuple[str, ...]] = {
    "a UNet": ldm.UNET,
    "a VAE": ldm.VAE,
    "a text encoder": ("cond_stage_model.", "conditioner.embedders."),
}
FROM_SHAPES = "of this file, by the shapes of its tensors,"
UPSCALER_SCALING = 0.08333  # of the latents of the x4 upscaler's VAE, which has 3 levels
# The family by the width of the text states that its UNet reads: the sum of the widths of its text encoders.
FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "the SDXL refiner"}

# Files that are not models of minisd: a pattern that matches one of their tensor names, what they are, what to do.
FOREIGN_FORMATS = (
    (r"(^|\.)joint_blocks\.", "an SD 3 checkpoint", "minisd runs SD 1.x, 2.x and SDXL"),
    (r"(^|\.)double_blocks\.", "a Flux checkpoint", "minisd runs SD 1.x, 2.x and SDXL"),
    (
        r"lora_(up|down|A|B)|[._]lora\.|_lora\.|lora_unet|lora_te|lora_linear_layer|^(unet|text_encoder):\d+:",
        "a LoRA",
        "load the model that it was made for, then add it with weights_loader.load_lora or --lora",
    ),
    (
        r"^(string_to_param|emb_params$|clip_[lg]$|<.+>$)",
        "a textual-inversion embedding",
        "load the model that it was made for, then add it with weights_loader.load_embedding or --embedding",
    ),
    (r"^(control_model\.|controlnet_)", "a ControlNet", "minisd does not run ControlNets; load a whole model"),
    (
        r"^decoder\.layers\.|^encoder\.layers\.\d+\.conv",
        "a TAESD autoencoder",
        "load the model that it was made for, then give its folder to weights_loader.load_preview_decoder or "
        "--preview-decoder",
    ),
)


def layout(shapes: Shapes, path: object) -> Layout:
    """The layout of a file: an original single file ("ldm"), or one network in diffusers layout.

    Raises MismatchError, which names the format of any other file.
    """
    parts = [what for what, prefixes in PARTS.items() if any(name.startswith(prefixes) for name in shapes)]
    if "a UNet" in parts and "a text encoder" in parts:
        return "ldm"
    if (found := foreign_format(shapes)) is not None:
        what, advice = found
        raise MismatchError(f"{path} is {what}, expected a Stable Diffusion model; {advice}.")
    if parts:
        lacks = " and no ".join(what.removeprefix("a ") for what in PARTS if what not in parts)
        raise MismatchError(
            f"{path} holds {' and '.join(parts)} in the original layout but no {lacks}; load a file of a whole model, "
            "which has model.diffusion_model.*, first_stage_model.* and cond_stage_model.* or conditioner.*."
        )
    if "time_embedding.linear_1.weight" in shapes and "conv_in.weight" in shapes:
        return "unet"
    if "encoder.conv_in.weight" in shapes and "decoder.conv_in.weight" in shapes:
        return "vae"
    if any(name.endswith("embeddings.token_embedding.weight") for name in shapes):
        return "text_encoder"
    first = listed(sorted(shapes), 3) or "no tensors at all"
    raise MismatchError(f"{path} holds {first}, expected a Stable Diffusion model; minisd does not know this format.")


def foreign_format(shapes: Shapes) -> tuple[str, str] | None:
    """The known format of a file that is not a model of minisd, and what to do with it; None for unknown formats."""
    for pattern, what, advice in FOREIGN_FORMATS:
        if any(re.search(pattern, name) for name in shapes):
            return what, advice
    return None


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor. Raises MismatchError if it is missing or has another number of dimensions."""
    if len(shape := shapes.get(name, ())) != rank:
        raise MismatchError(
            f"the file has {name} of shape {shape}, expected {rank} dimensions; it is another kind of model."
            if name in shapes
            else f"the file has no tensor {name}; it is no whole model of Stable Diffusion."
        )
    return shape


def unet_config(shapes: Shapes) -> UNetConfig:
    """The config of the UNet in an original file, from the shapes under its prefix. Raises MismatchError.

    The shapes do not show the heads: SD 1.x and the upscaler have 8 on every level, SD 2.x and SDXL have 64 channels a
    head. In other networks the projections decide: SD 1.x has them as convolutions.
    """
    downsamples = [int(m[1]) for n in shapes if (m := re.fullmatch(r"input_blocks\.(\d{1,3})\.0\.op\.weight", n))]
    if not downsamples or min(downsamples) < 2:
        raise MismatchError("the UNet of this file has no downsampling; it is not a UNet of Stable Diffusion.")
    stride = min(downsamples)  # blocks on a level, its downsampling included
    firsts = [1 + stride * level for level in range(len(downsamples) + 1)]
    channels = tuple(_shape(shapes, f"input_blocks.{n}.0.out_layers.3.weight", 4)[0] for n in firsts)
    depths = tuple(_depth(shapes, f"input_blocks.{n}.1") for n in firsts)
    linear = len(shapes.get("middle_block.1.proj_in.weight", ())) == 2
    context = _shape(shapes, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 2)[1]
    guidance = "time_embed.cond_proj.weight"
    has_classes, has_pooled = "label_emb.weight" in shapes, "label_emb.0.0.weight" in shapes
    head_width_64 = {768: False, 1024: True, 1280: True, 2048: True}.get(context, linear) and not has_classes
    values = {
        "channels": channels,
        "depths": depths,
        "middle_depth": _depth(shapes, "middle_block.1"),
        "heads": tuple(max(width // 64, 1) if head_width_64 else 8 for width in channels),
        "layers_per_block": stride - 1,
        "context_width": context,
        "in_channels": _shape(shapes, "input_blocks.0.0.weight", 4)[1],
        "out_channels": _shape(shapes, "out.2.weight", 4)[0],
        "sample_size": 128 if has_pooled or has_classes else 64,
        "linear_projection": linear,
        "only_cross_attention": tuple(
            # if both widths are equal, shapes do not show it; the last level of the upscaler has self-attention
            bool(depth) and width != context and _first_attention_width(shapes, n) == context
            for n, width, depth in zip(firsts, channels, depths, strict=True)
        ),
        "class_count": _shape(shapes, "label_emb.weight", 2)[0] if has_classes else None,
        "pooled_width": _shape(shapes, "label_emb.0.0.weight", 2)[1] if has_pooled else None,
        "guidance_width": _shape(shapes, guidance, 2)[1] if guidance in shapes else None,
    }
    return make_config(UNetConfig, f"the UNet {FROM_SHAPES}", values, {})


def vae_config(shapes: Shapes) -> VAEConfig:
    """The config of the VAE in an original file, from the shapes under its prefix. Raises MismatchError.

    The shapes do not show the scaling factor: it is the upscaler's for 3 levels, else that of SD 1.x and 2.x.
    """
    found = (re.match(r"encoder\.down\.(\d{1,3})\.block\.0\.conv1\.weight", name) for name in shapes)
    levels = sorted({int(match[1]) for match in found if match})
    if not levels:
        raise MismatchError("the file has no VAE (first_stage_model.*); load a file of a whole model.")
    values = {
        "channels": tuple(_shape(shapes, f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in levels),
        "layers_per_block": sum(f"encoder.down.0.block.{i}.conv1.weight" in shapes for i in range(201)),
        "latent_channels": _shape(shapes, "post_quant_conv.weight", 4)[0],
        "scaling_factor": UPSCALER_SCALING if len(levels) == 3 else VAEConfig.scaling_factor,
    }
    return make_config(VAEConfig, f"the VAE {FROM_SHAPES}", values, {})


def clip_config(shapes: Shapes) -> CLIPTextConfig:
    """The config of the CLIP text encoder in a file, from the shapes under `text_model.`: 64 channels a head."""
    vocab_size, width = _shape(shapes, "embeddings.token_embedding.weight", 2)
    values = {
        "vocab_size": vocab_size,
        "max_length": _shape(shapes, "embeddings.position_embedding.weight", 2)[0],
        "width": width,
        "layers": sum(f"encoder.layers.{i}.layer_norm1.weight" in shapes for i in range(201)),
        "heads": max(width // 64, 1),
        "mlp_width": _shape(shapes, "encoder.layers.0.mlp.fc1.weight", 2)[0],
    }
    return make_config(CLIPTextConfig, f"the text encoder {FROM_SHAPES}", values, {})


def openclip_config(shapes: Shapes, whole: bool = False) -> CLIPTextConfig:
    """The config of the OpenCLIP text encoder in a file; `whole`: with last layer and projection, as SDXL uses it.

    SD 2.x does not use the last layer, which some files have and others lack: a projection, or the number of layers of
    the whole OpenCLIP ViT-H/14, shows that it is there.
    """
    vocab_size, width = _shape(shapes, "token_embedding.weight", 2)
    layers = sum(f"transformer.resblocks.{i}.ln_1.weight" in shapes for i in range(201))
    has_last = "text_projection" in shapes or (width, layers) == (SD2_TEXT.width, SD2_TEXT.layers + 1)
    values = {
        "vocab_size": vocab_size,
        "max_length": _shape(shapes, "positional_embedding", 2)[0],
        "width": width,
        "layers": layers - 1 if has_last and not whole else layers,
        "heads": max(width // 64, 1),
        "mlp_width": _shape(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "activation": "gelu",
        "projection_width": _shape(shapes, "text_projection", 2)[1] if whole else None,
    }
    return make_config(CLIPTextConfig, f"the text encoder {FROM_SHAPES}", values, {})


def _depth(shapes: Shapes, prefix: str) -> int:
    return sum(f"{prefix}.transformer_blocks.{i}.norm1.weight" in shapes for i in range(201))


def _first_attention_width(shapes: Shapes, n: int) -> int:
    return _shape(shapes, f"input_blocks.{n}.1.transformer_blocks.0.attn1.to_k.weight", 2)[1]
