"""Names in the original (LDM) layout: one file, with a prefix for each network.

`input_blocks` and `output_blocks` number the blocks of all levels of the UNet consecutively. With n residual blocks a
level, level l of the down path begins at 1 + (n + 1) l, and its downsampling is the last of its n + 1 blocks.
"""

from minisd.configs import UNetConfig, VAEConfig
from weights_loader.names import TensorSource, diffusers, expand
from weights_loader.names.diffusers import transformer, under

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPENCLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
EMA = "model_ema."


def text_prefixes(i: int) -> tuple[str, str]:
    """The prefixes of SDXL's i-th text encoder: that of a CLIP and that of an OpenCLIP encoder."""
    return f"conditioner.embedders.{i}.transformer.", f"conditioner.embedders.{i}.model."


UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}
VAE_RESNET = {**diffusers.RESNET, "skip": "nin_shortcut"}
VAE_ATTENTION = {"norm": "norm", **{f"attention.{name}": name for name in "qkv"}, "attention.out": "proj_out"}


def unet(config: UNetConfig) -> dict[str, str]:
    """{our module: their module} of UNetModel, without the prefix of the file."""
    modules = {
        "time.linear1": "time_embed.0",
        "time.linear2": "time_embed.2",
        "guidance": "time_embed.cond_proj",
        "class_embedding": "label_emb",
        "pooled.linear1": "label_emb.0.0",
        "pooled.linear2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "norm_out": "out.0",
        "conv_out": "out.2",
        **under("middle.resnets.0", "middle_block.0", UNET_RESNET),
        **transformer("middle.transformer", "middle_block.1", config.middle_depth),
        **under("middle.resnets.1", "middle_block.2", UNET_RESNET),
    }
    stride = config.layers_per_block + 1
    for level, depth in enumerate(config.depths):
        for i in range(config.layers_per_block):
            theirs = f"input_blocks.{1 + stride * level + i}"
            modules |= under(f"down.{level}.resnets.{i}", f"{theirs}.0", UNET_RESNET)
            if depth:
                modules |= transformer(f"down.{level}.transformers.{i}", f"{theirs}.1", depth)
        modules[f"down.{level}.resample.conv"] = f"input_blocks.{stride * (level + 1)}.0.op"
    for level, depth in enumerate(reversed(config.depths)):
        for i in range(stride):
            theirs = f"output_blocks.{stride * level + i}"
            modules |= under(f"up.{level}.resnets.{i}", f"{theirs}.0", UNET_RESNET)
            if depth:
                modules |= transformer(f"up.{level}.transformers.{i}", f"{theirs}.1", depth)
        position = 2 if depth else 1  # after the transformer, if there is one
        modules[f"up.{level}.resample.conv"] = f"output_blocks.{stride * (level + 1) - 1}.{position}.conv"
    return modules


def vae(config: VAEConfig, parameters: list[str]) -> dict[str, TensorSource]:
    """{our parameter: its source} of AutoencoderKL: the up path counts from the top, attention is 1x1 convolutions."""
    modules = {"to_moments": "quant_conv", "from_latents": "post_quant_conv"}
    last = len(config.channels) - 1
    halves = (("encoder", "down", config.layers_per_block), ("decoder", "up", config.layers_per_block + 1))
    for half, way, blocks in halves:
        modules |= {f"{half}.{name}": f"{half}.{name}" for name in ("conv_in", "norm_out", "conv_out")}
        modules |= under(f"{half}.middle.attention", f"{half}.mid.attn_1", VAE_ATTENTION)
        for i in (0, 1):
            modules |= under(f"{half}.middle.resnets.{i}", f"{half}.mid.block_{i + 1}", VAE_RESNET)
        for level in range(last + 1):
            ours = f"{half}.{way}.{level}"
            theirs = f"{half}.{way}.{level if way == 'down' else last - level}"
            for i in range(blocks):
                modules |= under(f"{ours}.resnets.{i}", f"{theirs}.block.{i}", VAE_RESNET)
            modules[f"{ours}.resample.conv"] = f"{theirs}.{way}sample.conv"
    sources = expand(modules, parameters)
    for name, source in sources.items():
        if ".attention.attention." in name and name.endswith(".weight"):
            sources[name] = TensorSource(source.name, convolution=True)
    return sources
