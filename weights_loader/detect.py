"""What a weight file is: its layout, family and sizes, read off names and shapes alone."""

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
EXTRAS = (ldm.EMA, "depth_model.", "low_scale_model.", "control_model.", "embedding_manager.", "denoiser.sigmas")

# What else people point a loader at: a pattern that some tensor name matches, what that is, what to do with it.
STRANGERS = (
    (r"(^|\.)joint_blocks\.", "an SD 3 checkpoint", "minisd runs SD 1.x, 2.x and SDXL"),
    (r"(^|\.)double_blocks\.", "a Flux checkpoint", "minisd runs SD 1.x, 2.x and SDXL"),
    (
        r"lora_(up|down|A|B)|[._]lora\.|_lora\.|lora_unet|lora_te|lora_linear_layer|^(unet|text_encoder):\d+:",
        "a LoRA",
        "load the model that it adapts, then add it with weights_loader.load_lora or --lora",
    ),
    (
        r"^(string_to_param|emb_params$|clip_[lg]$|<.+>$)",
        "a textual-inversion embedding",
        "load the model that it belongs to, then add it with weights_loader.load_embedding or --embedding",
    ),
    (r"^(control_model\.|controlnet_)", "a ControlNet", "load the model that it steers"),
    (r"^decoder\.layers\.|^encoder\.layers\.\d+\.conv", "a TAESD autoencoder", "load a whole model"),
)


def layout(shapes: Shapes, path: object) -> Layout:
    """Which layout a file has: an original single file, or one component in diffusers layout.

    Raises MismatchError that says what else the file is.
    """
    has_unet = f"{ldm.UNET}input_blocks.0.0.weight" in shapes
    if has_unet and any(name.startswith(("cond_stage_model.", "conditioner.embedders.")) for name in shapes):
        return "ldm"
    if (found := stranger(shapes)) is not None:
        raise MismatchError(f"{path} is {found[0]}, expected a Stable Diffusion model; {found[1]}.")
    if has_unet:
        raise MismatchError(
            f"{path} holds a UNet but no text encoder (cond_stage_model.* or conditioner.*); load a whole model."
        )
    if "time_embedding.linear_1.weight" in shapes and "conv_in.weight" in shapes:
        return "unet"
    if "encoder.conv_in.weight" in shapes and "decoder.conv_in.weight" in shapes:
        return "vae"
    if any(name.endswith("embeddings.token_embedding.weight") for name in shapes):
        return "text_encoder"
    first = ", ".join(sorted(shapes)[:3]) or "no tensors at all"
    raise MismatchError(f"{path} is no Stable Diffusion model that minisd knows: it holds {first}.")


def stranger(shapes: Shapes) -> tuple[str, str] | None:
    """What a file is that is no model, and what to do with it; None where nothing tells."""
    for pattern, what, advice in STRANGERS:
        if any(re.search(pattern, name) for name in shapes):
            return what, advice
    return None


def unet_config(shapes: Shapes) -> UNetConfig:
    """The UNet of an original file, from the shapes under its prefix.

    Heads cannot be seen: SD 1.x and the upscaler have 8 at every level, the others 64 channels a head.
    """
    downsamples = [int(m[1]) for n in shapes if (m := re.fullmatch(r"input_blocks\.(\d+)\.0\.op\.weight", n))]
    if not downsamples:
        raise MismatchError("the UNet of this file has no downsampling; it is no Stable Diffusion UNet.")
    stride = min(downsamples)  # blocks a level, its downsampling included
    firsts = [1 + stride * level for level in range(len(downsamples) + 1)]
    channels = tuple(shapes[f"input_blocks.{n}.0.out_layers.3.weight"][0] for n in firsts)
    depths = tuple(_depth(shapes, f"input_blocks.{n}.1") for n in firsts)
    linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
    context = shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1]
    lookup = shapes.get("label_emb.weight")
    pooled = shapes.get("label_emb.0.0.weight")
    eight_heads = not linear or lookup is not None
    return UNetConfig(
        channels=channels,
        depths=depths,
        middle_depth=_depth(shapes, "middle_block.1"),
        heads=tuple(8 if eight_heads else width // 64 for width in channels),
        layers_per_block=stride - 1,
        context_width=context,
        in_channels=shapes["input_blocks.0.0.weight"][1],
        out_channels=shapes["out.2.weight"][0],
        sample_size=128 if pooled or lookup else 64,
        linear_projection=linear,
        only_cross_attention=tuple(
            # where the width equals the context's, shapes cannot tell: the upscaler's last level attends to itself
            bool(depth) and width != context and _first_attention_width(shapes, n) == context
            for n, width, depth in zip(firsts, channels, depths, strict=True)
        ),
        class_count=None if lookup is None else lookup[0],
        pooled_width=None if pooled is None else pooled[1],
    )


def vae_config(shapes: Shapes) -> VAEConfig:
    """The autoencoder of an original file, from the shapes under its prefix."""
    levels = sorted({int(m[1]) for n in shapes if (m := re.match(r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight", n))})
    blocks = sum(f"encoder.down.0.block.{i}.conv1.weight" in shapes for i in range(10))
    if not levels:
        raise MismatchError("the file has no autoencoder (first_stage_model.*); it is not a whole model.")
    channels = tuple(shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in levels)
    upscaler = len(levels) == 3
    return VAEConfig(
        channels=channels,
        layers_per_block=blocks,
        latent_channels=shapes["post_quant_conv.weight"][0],
        scaling_factor=0.08333 if upscaler else 0.18215,
    )


def clip_config(shapes: Shapes) -> CLIPTextConfig:
    """The CLIP text encoder of an SD 1.x file, from the shapes under `text_model.`: 64 channels a head."""
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
    """The OpenCLIP text encoder of a file: `whole` for SDXL; SD 2.x leaves out the last layer and the projection."""
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


def family(unet: UNetConfig) -> str:
    """What a UNet is called: by its text width, its extra channels and its embeddings."""
    if unet.pooled_width is not None:
        if unet.context_width == 1280:
            return "SDXL refiner"
        return "SDXL" + {4: "", 9: " inpainting"}.get(unet.in_channels, f" ({unet.in_channels} channels)")
    if unet.class_count is not None:
        return "x4 upscaler"
    base = {768: "SD 1.x", 1024: "SD 2.x"}.get(unet.context_width, "own")
    if unet.channels != (320, 640, 1280, 1280):
        base = "own"
    return base + {4: "", 9: " inpainting", 5: " depth"}.get(unet.in_channels, f" ({unet.in_channels} channels)")


def _depth(shapes: Shapes, prefix: str) -> int:
    return sum(f"{prefix}.transformer_blocks.{i}.norm1.weight" in shapes for i in range(100))


def _first_attention_width(shapes: Shapes, n: int) -> int:
    return shapes[f"input_blocks.{n}.1.transformer_blocks.0.attn1.to_k.weight"][1]
