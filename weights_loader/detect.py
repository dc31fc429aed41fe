"""The layout and the sizes of a weight file, from the names and shapes of its tensors alone."""

import re
from collections.abc import Mapping
from typing import Literal

from minisd.configs import CLIPTextConfig, UNetConfig, VAEConfig
from minisd.errors import MismatchError
from weights_loader.names import ldm

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
    (r"^decoder\.layers\.|^encoder\.layers\.\d+\.conv", "a TAESD autoencoder", "load a whole model"),
)


def layout(shapes: Shapes, path: object) -> Layout:
    """The layout of a file: an original single file ("ldm"), or one network in diffusers layout.

    Raises MismatchError, which names the format of any other file.
    """
    has_unet = f"{ldm.UNET}input_blocks.0.0.weight" in shapes
    if has_unet and any(name.startswith(("cond_stage_model.", "conditioner.embedders.")) for name in shapes):
        return "ldm"
    if (found := foreign_format(shapes)) is not None:
        what, advice = found
        raise MismatchError(f"{path} is {what}, expected a Stable Diffusion model; {advice}.")
    if has_unet:
        raise MismatchError(
            f"{path} holds a UNet but no text encoder (cond_stage_model.* or conditioner.*); "
            "load a file of a whole model."
        )
    if "time_embedding.linear_1.weight" in shapes and "conv_in.weight" in shapes:
        return "unet"
    if "encoder.conv_in.weight" in shapes and "decoder.conv_in.weight" in shapes:
        return "vae"
    if any(name.endswith("embeddings.token_embedding.weight") for name in shapes):
        return "text_encoder"
    first = ", ".join(sorted(shapes)[:3]) or "no tensors at all"
    raise MismatchError(f"{path} holds {first}, expected a Stable Diffusion model; minisd does not know this format.")


def foreign_format(shapes: Shapes) -> tuple[str, str] | None:
    """The known format of a file that is not a model of minisd, and what to do with it; None for unknown formats."""
    for pattern, what, advice in FOREIGN_FORMATS:
        if any(re.search(pattern, name) for name in shapes):
            return what, advice
    return None


def unet_config(shapes: Shapes) -> UNetConfig:
    """The config of the UNet in an original file, from the shapes under its prefix.

    The shapes do not show the heads: SD 1.x and the upscaler have 8 on every level, the others have 64 channels a head.
    """
    downsamples = [int(m[1]) for n in shapes if (m := re.fullmatch(r"input_blocks\.(\d+)\.0\.op\.weight", n))]
    if not downsamples:
        raise MismatchError("the UNet of this file has no downsampling; it is not a UNet of Stable Diffusion.")
    stride = min(downsamples)  # blocks on a level, its downsampling included
    firsts = [1 + stride * level for level in range(len(downsamples) + 1)]
    channels = tuple(shapes[f"input_blocks.{n}.0.out_layers.3.weight"][0] for n in firsts)
    depths = tuple(_depth(shapes, f"input_blocks.{n}.1") for n in firsts)
    linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
    context = shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1]
    classes = shapes.get("label_emb.weight")
    pooled = shapes.get("label_emb.0.0.weight")
    eight_heads = not linear or classes is not None
    return UNetConfig(
        channels=channels,
        depths=depths,
        middle_depth=_depth(shapes, "middle_block.1"),
        heads=tuple(8 if eight_heads else width // 64 for width in channels),
        layers_per_block=stride - 1,
        context_width=context,
        in_channels=shapes["input_blocks.0.0.weight"][1],
        out_channels=shapes["out.2.weight"][0],
        sample_size=128 if pooled or classes else 64,
        linear_projection=linear,
        only_cross_attention=tuple(
            # if both widths are equal, shapes do not show it; the last level of the upscaler has self-attention
            bool(depth) and width != context and _first_attention_width(shapes, n) == context
            for n, width, depth in zip(firsts, channels, depths, strict=True)
        ),
        class_count=None if classes is None else classes[0],
        pooled_width=None if pooled is None else pooled[1],
    )


def vae_config(shapes: Shapes) -> VAEConfig:
    """The config of the VAE in an original file, from the shapes under its prefix.

    The shapes do not show the scaling factor: it is the upscaler's for 3 levels, else that of SD 1.x and 2.x.
    """
    levels = sorted({int(m[1]) for n in shapes if (m := re.match(r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight", n))})
    blocks = sum(f"encoder.down.0.block.{i}.conv1.weight" in shapes for i in range(10))
    if not levels:
        raise MismatchError("the file has no VAE (first_stage_model.*); load a file of a whole model.")
    channels = tuple(shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in levels)
    return VAEConfig(
        channels=channels,
        layers_per_block=blocks,
        latent_channels=shapes["post_quant_conv.weight"][0],
        scaling_factor=UPSCALER_SCALING if len(levels) == 3 else VAEConfig.scaling_factor,
    )


def clip_config(shapes: Shapes) -> CLIPTextConfig:
    """The config of the CLIP text encoder in a file, from the shapes under `text_model.`: 64 channels a head."""
    vocab_size, width = shapes["embeddings.token_embedding.weight"]
    return CLIPTextConfig(
        vocab_size=vocab_size,
        max_length=shapes["embeddings.position_embedding.weight"][0],
        width=width,
        layers=sum(f"encoder.layers.{i}.layer_norm1.weight" in shapes for i in range(100)),
        heads=max(width // 64, 1),
        mlp_width=shapes["encoder.layers.0.mlp.fc1.weight"][0],
    )


def openclip_config(shapes: Shapes, whole: bool = False) -> CLIPTextConfig:
    """The config of the OpenCLIP text encoder in a file; `whole`: with last layer and projection, as SDXL uses it."""
    vocab_size, width = shapes["token_embedding.weight"]
    layers = sum(f"transformer.resblocks.{i}.ln_1.weight" in shapes for i in range(100))
    return CLIPTextConfig(
        vocab_size=vocab_size,
        max_length=shapes["positional_embedding"][0],
        width=width,
        layers=layers - 1 if "text_projection" in shapes and not whole else layers,
        heads=max(width // 64, 1),
        mlp_width=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        activation="gelu",
        projection_width=shapes["text_projection"][1] if whole else None,
    )


def _depth(shapes: Shapes, prefix: str) -> int:
    return sum(f"{prefix}.transformer_blocks.{i}.norm1.weight" in shapes for i in range(100))


def _first_attention_width(shapes: Shapes, n: int) -> int:
    return shapes[f"input_blocks.{n}.1.transformer_blocks.0.attn1.to_k.weight"][1]
