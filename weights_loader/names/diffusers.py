"""Names in the diffusers layout: one folder for each network (unet, vae, text_encoder)."""

from minisd.configs import CLIPTextConfig, PreviewDecoderConfig, UNetConfig, VAEConfig

RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}
TRANSFORMER = {"norm": "norm", "proj_in": "proj_in", "proj_out": "proj_out"}
ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
FEED_FORWARD = {"expand": "net.0.proj", "contract": "net.2"}
LAYER = {
    "norm1": "layer_norm1",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "expand": "mlp.fc1",
    "contract": "mlp.fc2",
}


def under(ours: str, theirs: str, table: dict[str, str]) -> dict[str, str]:
    """The table with a prefix before the names of each side."""
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in table.items()}


def transformer_block(ours: str, theirs: str) -> dict[str, str]:
    """One block of a spatial transformer; the same in both layouts."""
    return {
        **{f"{ours}.norm{n}": f"{theirs}.norm{n}" for n in (1, 2, 3)},
        **under(f"{ours}.attention1", f"{theirs}.attn1", ATTENTION),
        **under(f"{ours}.attention2", f"{theirs}.attn2", ATTENTION),
        **under(f"{ours}.feed_forward", f"{theirs}.ff", FEED_FORWARD),
    }


def transformer(ours: str, theirs: str, depth: int) -> dict[str, str]:
    """A spatial transformer; the same in both layouts."""
    modules = under(ours, theirs, TRANSFORMER)
    for i in range(depth):
        modules |= transformer_block(f"{ours}.blocks.{i}", f"{theirs}.transformer_blocks.{i}")
    return modules


def attention_block(ours: str, theirs: str) -> dict[str, str]:
    """Self-attention without text; names.old_attention has other spellings."""
    return {f"{ours}.norm": f"{theirs}.group_norm", **under(f"{ours}.attention", theirs, ATTENTION)}


def unet(config: UNetConfig) -> dict[str, str]:
    """{our module: their module} of UNet2DConditionModel, or of UNet2DModel, which reads no text."""

    def attention_after_resnet(ours: str, theirs: str, depth: int) -> dict[str, str]:
        has_text = config.context_width > 0
        return transformer(ours, theirs, depth) if has_text else attention_block(ours, theirs)

    modules = {
        "time.linear1": "time_embedding.linear_1",
        "time.linear2": "time_embedding.linear_2",
        "guidance": "time_embedding.cond_proj",
        "class_embedding": "class_embedding",
        "pooled.linear1": "add_embedding.linear_1",
        "pooled.linear2": "add_embedding.linear_2",
        "conv_in": "conv_in",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
        **attention_after_resnet("middle.transformer", "mid_block.attentions.0", config.middle_depth),
    }
    for i in (0, 1):
        modules |= under(f"middle.resnets.{i}", f"mid_block.resnets.{i}", RESNET)
    for n, depth in enumerate(config.depths):
        m = len(config.depths) - 1 - n  # the levels of the up path are numbered from the bottom
        for way, level, blocks in (("down", n, config.layers_per_block), ("up", m, config.layers_per_block + 1)):
            for i in range(blocks):
                ours, theirs = f"{way}.{level}", f"{way}_blocks.{level}"
                modules |= under(f"{ours}.resnets.{i}", f"{theirs}.resnets.{i}", RESNET)
                if depth:
                    modules |= attention_after_resnet(f"{ours}.transformers.{i}", f"{theirs}.attentions.{i}", depth)
            modules[f"{way}.{level}.resample.conv"] = f"{way}_blocks.{level}.{way}samplers.0.conv"
    return modules


def vae(config: VAEConfig) -> dict[str, str]:
    """{our module: their module} of AutoencoderKL."""
    modules = {"to_moments": "quant_conv", "from_latents": "post_quant_conv"}
    halves = (("encoder", "down", config.layers_per_block), ("decoder", "up", config.layers_per_block + 1))
    for half, way, blocks in halves:
        modules |= {
            f"{half}.conv_in": f"{half}.conv_in",
            f"{half}.norm_out": f"{half}.conv_norm_out",
            f"{half}.conv_out": f"{half}.conv_out",
            **attention_block(f"{half}.middle.attention", f"{half}.mid_block.attentions.0"),
        }
        for i in (0, 1):
            modules |= under(f"{half}.middle.resnets.{i}", f"{half}.mid_block.resnets.{i}", RESNET)
        for level in range(len(config.channels)):
            ours, theirs = f"{half}.{way}.{level}", f"{half}.{way}_blocks.{level}"
            for i in range(blocks):
                modules |= under(f"{ours}.resnets.{i}", f"{theirs}.resnets.{i}", RESNET)
            modules[f"{ours}.resample.conv"] = f"{theirs}.{way}samplers.0.conv"
    return modules


def preview_decoder(config: PreviewDecoderConfig) -> dict[str, str]:
    """{our module: their module} of AutoencoderTiny's decoder, a list in which ReLU and enlarging have places, too."""
    modules, place = {"conv_in": "decoder.layers.0"}, 2
    for level, blocks in enumerate(config.blocks_per_level[::-1]):
        for i in range(blocks):
            for k in range(3):
                modules[f"levels.{level}.blocks.{i}.conv{k + 1}"] = f"decoder.layers.{place}.conv.{2 * k}"
            place += 1
        modules[f"levels.{level}.upsample.conv"] = f"decoder.layers.{place + 1}"
        place += 2
    modules["conv_out"] = f"decoder.layers.{place - 2}"
    return modules


def text_encoder(config: CLIPTextConfig, prefix: str = "text_model.") -> dict[str, str]:
    """{our module: their module} of CLIPTextModel; some files have no prefix."""
    modules = {
        "token_embedding": f"{prefix}embeddings.token_embedding",
        "position_embedding": f"{prefix}embeddings.position_embedding",
        "final_norm": f"{prefix}final_layer_norm",
        "text_projection": "text_projection",
    }
    for i in range(config.layers):
        modules |= under(f"layers.{i}", f"{prefix}encoder.layers.{i}", LAYER)
    return modules
