"""Small models with random weights: ours, and the reference implementation's ("oracle") to compare with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minisd.configs import CLIPTextConfig, UNetConfig, VAEConfig
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.pipeline import Defaults, StableDiffusion
from minisd.schedulers import DDIM, PNDM, NoiseSchedule
from minisd.tokenizer import BOS, EOS, Tokenizer, clip_vocabulary
from weights_loader import official_configs
from weights_loader.build import build
from weights_loader.names import diffusers as diffusers_names
from weights_loader.names import expand
from weights_loader.pixel_configs import pixel_unet_config

WORDS = ("cat", "dog", "red", "blue", "circle", "square", "above", "blurry")
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"


def merges() -> list[tuple[str, str]]:
    """Merges in CLIP's format that make each of WORDS one token."""
    pairs: dict[tuple[str, str], None] = {}
    for word in WORDS:
        token = word[0]
        for i, letter in enumerate(word[1:], 1):
            last = letter + ("</w>" if i == len(word) - 1 else "")
            pairs[token, last] = None
            token += last
    return list(pairs)


def small_tokenizer(sd2: bool = False) -> Tokenizer:
    """A tokenizer of about 550 ids, padded as SD 1 (end token) or SD 2 ("!")."""
    return Tokenizer(clip_vocabulary(merges()), merges(), pad="!" if sd2 else EOS)


def write_tokenizer(folder: Path, sd2: bool = False) -> Path:
    """The same as a folder of official files, not written by the library."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(clip_vocabulary(merges())), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges()), encoding="utf-8")
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    tokens = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS}
    specials = {role: {"content": token, **flags} for role, token in tokens.items()} | {
        "pad_token": "!" if sd2 else EOS
    }
    config = {role: {"__type": "AddedToken", "content": token, **flags} for role, token in tokens.items()}
    more = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "pad_token": EOS}
    (folder / "special_tokens_map.json").write_text(json.dumps(specials))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | more))
    return folder


def randomise(network: nn.Module, seed: int = 0, gain: float = 1.0) -> nn.Module:
    """Fill a network, ours or the oracle's, with seeded weights that keep activations near scale `gain`.

    With a small gain every layer hands on numbers of tiny variance: the epsilon of every norm decides.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = tuple(n for n, m in network.named_modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            module, kind = name.rsplit(".", 1)
            if module in norms:
                parameter.copy_(0.1 * noise + (kind == "weight"))
            elif kind == "bias":
                parameter.copy_(0.1 * gain * noise)
            else:
                parameter.copy_(gain * noise / parameter[0].numel() ** 0.5)
    return network.eval()


def small_pipeline(sd2: bool = False, in_channels: int = 4, class_count: int | None = None) -> StableDiffusion:
    """Ours, two levels each, random seeded weights: SD 1 (PNDM, eps) or SD 2 (DDIM, v) in small."""
    tokenizer = small_tokenizer(sd2)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        width=64,
        layers=2,
        heads=1,
        mlp_width=96,
        activation="gelu" if sd2 else "quick_gelu",
    )
    vae = VAEConfig(channels=(32, 64), layers_per_block=1, sample_size=32)
    unet = UNetConfig(
        channels=(64, 128),
        depths=(1, 0),
        heads=(1, 2) if sd2 else (8, 8),
        layers_per_block=1,
        context_width=64,
        in_channels=in_channels,
        class_count=class_count,
        sample_size=16,
        linear_projection=sd2,
        only_cross_attention=(False, False),
    )
    return StableDiffusion(
        tokenizer,
        randomise(CLIPTextTransformer(text), 1),
        randomise(VAE(vae), 2),
        randomise(UNet(unet), 3),
        DDIM(NoiseSchedule(prediction_type="v_prediction")) if sd2 else PNDM(),
        Defaults(num_inference_steps=4),
    )


# The oracle's networks, by shape: arguments of UNet2DConditionModel, AutoencoderKL and CLIPTextConfig.


def unet_arguments(levels: str, **others: Any) -> dict[str, Any]:
    """`levels` is a letter a level: c with cross-attention, p plain; groups of 8 for small widths."""
    down = [CROSS if level == "c" else PLAIN for level in levels]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    return {"down_block_types": down, "up_block_types": up, "norm_num_groups": 8, "sample_size": 16, **others}


UNETS = {
    "sd1": unet_arguments("ccp", block_out_channels=(32, 64, 64), attention_head_dim=8, cross_attention_dim=24),
    "sd2": unet_arguments(
        "ccp",
        block_out_channels=(32, 64, 96),
        attention_head_dim=(2, 4, 6),
        cross_attention_dim=40,
        use_linear_projection=True,
        upcast_attention=True,
    ),
    "x4": unet_arguments(
        "pccc",
        block_out_channels=(16, 32, 32, 48),
        attention_head_dim=8,
        cross_attention_dim=48,
        in_channels=7,
        use_linear_projection=True,
        only_cross_attention=(True, True, True, False),
        num_class_embeds=10,
    ),
    "sdxl": unet_arguments(
        "pcc",
        block_out_channels=(32, 48, 64),
        attention_head_dim=(2, 3, 4),
        cross_attention_dim=24,
        transformer_layers_per_block=(1, 2, 3),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=68,
    ),
    "inpaint": unet_arguments(
        "cp",
        block_out_channels=(16, 32),
        attention_head_dim=8,
        cross_attention_dim=12,
        in_channels=9,
        layers_per_block=1,
    ),
}

VAES = {
    "two levels": {"block_out_channels": (16, 32), "layers_per_block": 1},
    "three levels": {"block_out_channels": (16, 32, 48), "layers_per_block": 2},
    "four levels": {"block_out_channels": (16, 16, 32, 32), "layers_per_block": 2, "latent_channels": 5},
}

TEXTS: dict[str, dict[str, Any]] = {
    "sd1": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96},
    "sd2": {
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "intermediate_size": 100,
        "hidden_act": "gelu",
    },
    "wide": {
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 12,
        "intermediate_size": 384,
        "layer_norm_eps": 1e-3,
    },
}


def oracle_unet(shape: str, seed: int = 0, gain: float = 1.0) -> Any:
    """UNet2DConditionModel of a shape in UNETS."""
    from diffusers import UNet2DConditionModel

    return randomise(UNet2DConditionModel(**UNETS[shape]), seed, gain)


def oracle_vae(shape: str, seed: int = 0, gain: float = 1.0) -> Any:
    """AutoencoderKL of a shape in VAES."""
    from diffusers import AutoencoderKL

    levels = len(VAES[shape]["block_out_channels"])
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    return randomise(AutoencoderKL(**VAES[shape], **blocks, norm_num_groups=8), seed, gain)


def oracle_text(shape: str, seed: int = 0, gain: float = 1.0, projection: int | None = None, **others: Any) -> Any:
    """CLIPTextModel of a shape in TEXTS, or CLIPTextModelWithProjection to width `projection`."""
    import transformers

    kind = transformers.CLIPTextModel if projection is None else transformers.CLIPTextModelWithProjection
    arguments = {
        "vocab_size": 300,
        "projection_dim": projection or 512,
        "bos_token_id": 298,
        "eos_token_id": 2,
    }
    config = transformers.CLIPTextConfig(**{**arguments, **TEXTS[shape], **others})
    return randomise(kind(config), seed, gain)


class InMemory:
    """Tensors of a state dict, in the form that `weights_loader.build` reads."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state
        self.shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    def tensor(self, name: str) -> Tensor:
        return self.state[name]

    def forget(self) -> None:
        """Nothing is mapped."""


def copy_weights(blank: Any, table: Mapping[str, str], theirs: nn.Module) -> Any:
    """Our network, from a function that makes it blank, with the oracle's weights; {our module: theirs}."""
    return build(blank, lambda names: expand(table, names), InMemory(theirs.state_dict()), "oracle")


def unet_like(oracle: Any) -> UNet:
    """Our UNet with the config and weights of the oracle's."""
    is_pixel_unet = type(oracle).__name__ == "UNet2DModel"
    config = (pixel_unet_config if is_pixel_unet else official_configs.unet_config)(dict(oracle.config))
    return copy_weights(lambda: UNet(config), diffusers_names.unet(config), oracle)


def vae_like(oracle: Any) -> VAE:
    """Our autoencoder with the config and weights of the oracle's."""
    config = official_configs.vae_config(dict(oracle.config))
    return copy_weights(lambda: VAE(config), diffusers_names.vae(config), oracle)


def text_like(oracle: Any) -> CLIPTextTransformer:
    """Our text encoder with the config and weights of the oracle's."""
    json_config = {**oracle.config.to_dict(), "architectures": [type(oracle).__name__]}
    config = official_configs.text_config(json_config)
    prefix = "text_model." if any(name.startswith("text_model.") for name in oracle.state_dict()) else ""
    return copy_weights(lambda: CLIPTextTransformer(config), diffusers_names.text_encoder(config, prefix), oracle)


def oracle_pipeline(tokenizer_folder: Path, sd2: bool = False, context: int = 64, **unet_others: Any) -> Any:
    """StableDiffusionPipeline in small: SD 1 (PNDM, eps) or SD 2 (DDIM, v), two levels each."""
    import diffusers
    import transformers

    tokenizer = transformers.CLIPTokenizer.from_pretrained(write_tokenizer(tokenizer_folder, sd2))
    unet = diffusers.UNet2DConditionModel(
        **{**unet_arguments("cp"), "norm_num_groups": 32},
        block_out_channels=(64, 128),
        attention_head_dim=(1, 2) if sd2 else 8,
        cross_attention_dim=context,
        use_linear_projection=sd2,
        layers_per_block=1,
        **unet_others,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        sample_size=32,
    )
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=context,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=context // 64,
            hidden_act="gelu" if sd2 else "quick_gelu",
            projection_dim=context,
            bos_token_id=0,
            eos_token_id=2,
        )
    )
    betas = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "set_alpha_to_one": False,
    }
    if sd2:
        scheduler = diffusers.DDIMScheduler(**betas, steps_offset=1, clip_sample=False, prediction_type="v_prediction")
    else:
        scheduler = diffusers.PNDMScheduler(**betas, steps_offset=1, skip_prk_steps=True)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=randomise(vae, 2),
        text_encoder=randomise(text, 1),
        tokenizer=tokenizer,
        unet=randomise(unet, 3),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
