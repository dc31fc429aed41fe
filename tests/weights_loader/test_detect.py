"""What a file is and how large its networks are, from names and shapes; the official configs, both ways."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small import TEXTS, UNETS, VAES, oracle_text, oracle_unet, oracle_vae, small_pipeline

from minisd.configs import (
    SD1_TEXT,
    SD1_UNET,
    SD1_VAE,
    SD2_TEXT,
    SD2_UNET,
    CLIPTextConfig,
    UNetConfig,
    VAEConfig,
)
from minisd.errors import MismatchError
from minisd.models import VAE, CLIPTextTransformer, UNet
from weights_loader import detect, official_configs
from weights_loader.names import diffusers, expand, ldm, openclip, write

SINGLE_FILES = {
    "sd14.single_file": "sd14",
    "sd14.single_file.full_ema": "sd14",
    "sd15.single_file.emaonly": "sd15",
    "sd15.single_file.pruned_with_ema": "sd15",
    "sd15_inpaint.single_file": "sd15_inpaint",
    "sd2_base.single_file": "sd2_base",
    "sd2_768v.single_file": "sd2_768v",
    "sd21_base.single_file.ema": "sd21_base",
    "sd21_768v.single_file.nonema": "sd21_768v",
    "sd2_inpaint.single_file": "sd2_inpaint",
    "sd2_depth.single_file": "sd2_depth",
    "sd_x4_upscaler.single_file": "sd_x4_upscaler",
}
MODELS = (*dict.fromkeys(SINGLE_FILES.values()), "sdxl_base", "sdxl_inpaint", "sdxl_refiner")
# What shapes do not show; for single files it comes from the file's name, or is unknown.
UNSEEN_IN_UNETS = ("sample_size", "upcast_attention")
UNSEEN_IN_AUTOENCODERS = ("sample_size",)


def manifest(shared_data: Path, name: str) -> dict[str, tuple[int, ...]]:
    shapes = json.loads((shared_data / "manifests" / f"{name}.json").read_text())
    return {key: tuple(shape) for key, shape in shapes.items()}


def read(shared_data: Path, model: str, component: str) -> Any:
    return json.loads((shared_data / "configs" / model / f"{component}.json").read_text())


def part(shapes: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): value for name, value in shapes.items() if name.startswith(prefix)}


@pytest.mark.parametrize(("name", "model"), SINGLE_FILES.items())
def test_shapes_of_a_single_file_tell_its_config(shared_data: Path, name: str, model: str) -> None:
    shapes = manifest(shared_data, name)
    unet = detect.unet_config(part(shapes, ldm.UNET))
    official = official_configs.unet_config(read(shared_data, model, "unet"))
    only_cross = tuple(
        only and depth > 0 for only, depth in zip(official.only_cross_attention, official.depths, strict=True)
    )  # the upscaler's config sets it for the first level, too, which has no attention
    official = replace(official, only_cross_attention=only_cross)
    assert unet == replace(official, **{key: getattr(unet, key) for key in UNSEEN_IN_UNETS})
    vae = detect.vae_config(part(shapes, ldm.VAE))
    official_vae = official_configs.vae_config(read(shared_data, model, "vae"))
    assert vae == replace(official_vae, **{key: getattr(vae, key) for key in UNSEEN_IN_AUTOENCODERS})
    clip, stacked = part(shapes, f"{ldm.CLIP}text_model."), part(shapes, ldm.OPENCLIP)
    text = detect.clip_config(clip) if clip else detect.openclip_config(stacked)
    assert text == official_configs.text_config(read(shared_data, model, "text_encoder"))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("sd14", "SD 1.x"),
        ("sd15", "SD 1.x"),
        ("sd15_inpaint", "SD 1.x inpainting"),
        ("sd2_base", "SD 2.x"),
        ("sd21_768v", "SD 2.x"),
        ("sd2_inpaint", "SD 2.x inpainting"),
        ("sd2_depth", "SD 2.x depth"),
        ("sd_x4_upscaler", "x4 upscaler"),
        ("sdxl_base", "SDXL"),
        ("sdxl_refiner", "SDXL refiner"),
    ],
)
def test_family(shared_data: Path, name: str, family: str) -> None:
    assert official_configs.unet_config(read(shared_data, name, "unet")).family == family


def test_families_without_the_official_files() -> None:
    assert SD1_UNET.family == "SD 1.x"
    assert replace(SD1_UNET, in_channels=9).family == "SD 1.x inpainting"
    assert replace(SD2_UNET, in_channels=5).family == "SD 2.x depth"
    assert small_pipeline().unet.config.family == "own"


def meta_shapes(network: Any, places: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in write(places, network.state_dict()).items()}


UPSCALER = UNetConfig(
    (256, 512, 512, 1024),
    (0, 1, 1, 1),
    context_width=1024,
    in_channels=7,
    sample_size=128,
    linear_projection=True,
    only_cross_attention=(False, True, True, False),
    class_count=1000,
)


@pytest.mark.parametrize("config", [SD1_UNET, SD2_UNET, replace(SD1_UNET, in_channels=9), UPSCALER])
def test_unet_from_its_own_shapes(config: UNetConfig) -> None:
    """Standing alone: official sizes on the meta device, written in the original layout, recognised."""
    with torch.device("meta"):
        unet = UNet(config)
    assert detect.unet_config(meta_shapes(unet, expand(ldm.unet(config), unet.state_dict()))) == config


@pytest.mark.parametrize("config", [SD1_VAE, VAEConfig(channels=(128, 256, 512), scaling_factor=0.08333)])
def test_vae_from_its_own_shapes(config: VAEConfig) -> None:
    with torch.device("meta"):
        vae = VAE(config)
    assert detect.vae_config(meta_shapes(vae, ldm.vae(config, list(vae.state_dict())))) == config


def test_text_encoders_from_their_own_shapes() -> None:
    with torch.device("meta"):
        clip, whole = CLIPTextTransformer(SD1_TEXT), CLIPTextTransformer(replace(SD2_TEXT, layers=24))
    shapes = meta_shapes(clip, expand(diffusers.text_encoder(SD1_TEXT, prefix=""), clip.state_dict()))
    assert detect.clip_config(shapes) == SD1_TEXT
    shapes = meta_shapes(whole, openclip.text_encoder(list(whole.state_dict())))
    assert detect.openclip_config({**shapes, "text_projection": (1024, 1024), "logit_scale": ()}) == SD2_TEXT
    assert detect.openclip_config(shapes) == SD2_TEXT  # the last layer is not used, with and without a projection
    cut = {name: shape for name, shape in shapes.items() if ".resblocks.23." not in name}
    assert detect.openclip_config(cut) == SD2_TEXT


# Layouts, and what is none.


def test_layouts() -> None:
    single = {f"{ldm.UNET}input_blocks.0.0.weight": (4,), "cond_stage_model.model.x": (1,)}
    assert detect.layout(single, "x") == "ldm"
    assert detect.layout({"time_embedding.linear_1.weight": (1,), "conv_in.weight": (1,)}, "x") == "unet"
    assert detect.layout({"encoder.conv_in.weight": (1,), "decoder.conv_in.weight": (1,)}, "x") == "vae"
    assert detect.layout({"text_model.embeddings.token_embedding.weight": (1,)}, "x") == "text_encoder"


FOREIGN_FORMATS = {
    "model.diffusion_model.joint_blocks.0.x": "SD 3",
    "double_blocks.0.img_attn.qkv.weight": "Flux",
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": "LoRA",
    "unet.down_blocks.0.attentions.0.to_q.lora_A.weight": "LoRA",
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight": "LoRA",
    "<birb-style>": "textual-inversion",
    "emb_params": "textual-inversion",
    "string_to_param.*": "textual-inversion",
    "control_model.input_blocks.0.0.weight": "ControlNet",
    "controlnet_cond_embedding.conv_in.weight": "ControlNet",
    "decoder.layers.0.weight": "TAESD",
}


@pytest.mark.parametrize(("name", "what"), FOREIGN_FORMATS.items())
def test_foreign_formats_are_named(name: str, what: str) -> None:
    with pytest.raises(MismatchError, match=what):
        detect.layout({name: (4, 4)}, "file.safetensors")


def test_anything_else_is_shown() -> None:
    with pytest.raises(MismatchError, match=r"file\.pt .* 'bert\.a', 'bert\.b'"):
        detect.layout({"bert.a": (1,), "bert.b": (1,)}, "file.pt")
    with pytest.raises(MismatchError, match="no tensors at all"):
        detect.layout({}, "file.pt")
    with pytest.raises(MismatchError, match="no text encoder"):
        detect.layout({f"{ldm.UNET}input_blocks.0.0.weight": (4,)}, "file.pt")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("adapters/kohya_sd15_rank4", "LoRA"),
        ("adapters/kohya_sdxl_rank4", "LoRA"),
        ("adapters/kohya_sd15_locon_rank4", "LoRA"),
        ("adapters/diffusers_peft_sd15_attn_rank4", "LoRA"),
        ("adapters/diffusers_old_procattn_sd15_rank4", "LoRA"),
        ("adapters/lcm_lora_sd15_rank64", "LoRA"),
        ("controlnet_sd15.diffusers", "ControlNet"),
        ("controlnet_sd15.ldm", "ControlNet"),
        ("taesd.vae.diffusers", "TAESD"),
    ],
)
def test_official_foreign_formats_are_named(shared_data: Path, name: str, what: str) -> None:
    with pytest.raises(MismatchError, match=what):
        detect.layout(manifest(shared_data, name), name)


@pytest.mark.parametrize(("name", "kind"), [("unet", "unet"), ("vae", "vae"), ("text_encoder", "text_encoder")])
def test_official_lone_components(shared_data: Path, name: str, kind: str) -> None:
    for model in ("sd15", "sd21_base"):
        assert detect.layout(manifest(shared_data, f"{model}.{name}.diffusers"), name) == kind


# The configs as published.


@pytest.mark.parametrize("model", MODELS)
def test_official_configs_and_back(shared_data: Path, model: str) -> None:
    unet = official_configs.unet_config(read(shared_data, model, "unet"))
    vae = official_configs.vae_config(read(shared_data, model, "vae"))
    assert official_configs.unet_config(json.loads(json.dumps(official_configs.unet_json(unet)))) == unet
    assert official_configs.vae_config(json.loads(json.dumps(official_configs.vae_json(vae)))) == vae
    for name in ("text_encoder", "text_encoder_2"):
        if (shared_data / "configs" / model / f"{name}.json").is_file():
            text = official_configs.text_config(read(shared_data, model, name))
            assert official_configs.text_config(json.loads(json.dumps(official_configs.text_json(text)))) == text


def test_presets_are_the_published_configs(shared_data: Path) -> None:
    for model, unet, text in (("sd15", SD1_UNET, SD1_TEXT), ("sd21_base", SD2_UNET, SD2_TEXT)):
        assert official_configs.unet_config(read(shared_data, model, "unet")) == unet
        assert official_configs.text_config(read(shared_data, model, "text_encoder")) == text
    assert official_configs.vae_config(read(shared_data, "sd15", "vae")) == SD1_VAE
    v_model = official_configs.unet_config(read(shared_data, "sd21_768v", "unet"))
    assert v_model == replace(SD2_UNET, sample_size=96, upcast_attention=True)


def test_published_scaling_factors(shared_data: Path) -> None:
    factors = {m: official_configs.vae_config(read(shared_data, m, "vae")).scaling_factor for m in MODELS}
    expected = {m: 0.13025 if m.startswith("sdxl") else 0.08333 if "x4" in m else 0.18215 for m in MODELS}
    assert factors == expected


@pytest.mark.parametrize(
    "config", [SD1_UNET, SD2_UNET, replace(SD2_UNET, upcast_attention=True, norm_groups=8), UPSCALER]
)
def test_unet_config_to_json_and_back(config: UNetConfig) -> None:
    assert official_configs.unet_config(official_configs.unet_json(config)) == config


@pytest.mark.parametrize("shape", UNETS)
def test_unet_json_builds_the_same_network_in_the_reference(shape: str) -> None:
    oracle = oracle_unet(shape)
    config = official_configs.unet_config(dict(oracle.config))
    again = type(oracle).from_config(official_configs.unet_json(config))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in oracle.state_dict().items()}
    assert official_configs.unet_config(dict(again.config)) == config


@pytest.mark.parametrize("shape", VAES)
def test_vae_json_builds_the_same_network_in_the_reference(shape: str) -> None:
    oracle = oracle_vae(shape)
    config = official_configs.vae_config(dict(oracle.config))
    again = type(oracle).from_config(official_configs.vae_json(config))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in oracle.state_dict().items()}
    assert again.config.scaling_factor == config.scaling_factor


@pytest.mark.parametrize("projection", [None, 40])
@pytest.mark.parametrize("shape", TEXTS)
def test_text_json_builds_the_same_network_in_the_reference(shape: str, projection: int | None) -> None:
    oracle = oracle_text(shape, projection=projection)
    config = official_configs.text_config({**oracle.config.to_dict(), "architectures": [type(oracle).__name__]})
    assert config.projection_width == projection
    again = type(oracle)(type(oracle.config)(**official_configs.text_json(config)))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in oracle.state_dict().items()}
    assert (again.config.hidden_act, again.config.layer_norm_eps) == (config.activation, config.norm_eps)
    assert official_configs.text_config(official_configs.text_json(config)) == config


WRONG_UNETS: dict[str, Any] = {
    "act_fn": "gelu",
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "time_embedding_type": "fourier",
    "resnet_time_scale_shift": "scale_shift",
    "dual_cross_attention": True,
    "downsample_padding": 0,
    "encoder_hid_dim": 1024,
    "conv_in_kernel": 1,
    "center_input_sample": True,
    "class_embed_type": "timestep",
    "addition_embed_type": "image",
    "block_out_channels": 320,
    "layers_per_block": [2, 2, 2, 2],
    "attention_head_dim": [8, 8],
    "down_block_types": ["AttnDownBlock2D"] * 4,
    "up_block_types": ["UpBlock2D"] * 4,
}
WRONG_AUTOENCODERS: dict[str, Any] = {
    "act_fn": "relu",
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": False,
    "shift_factor": 0.1,
    "down_block_types": ["AttnDownEncoderBlock2D"] * 4,
    "block_out_channels": [],
}


@pytest.mark.parametrize(("key", "value"), WRONG_UNETS.items())
def test_another_unet_is_refused(key: str, value: Any) -> None:
    with pytest.raises(MismatchError, match=r"unet|levels|UNet"):
        official_configs.unet_config({**official_configs.unet_json(SD1_UNET), key: value})


@pytest.mark.parametrize(("key", "value"), WRONG_AUTOENCODERS.items())
def test_another_autoencoder_is_refused(key: str, value: Any) -> None:
    with pytest.raises(MismatchError, match="vae"):
        official_configs.vae_config({**official_configs.vae_json(SD1_VAE), key: value})


def test_another_activation_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"hidden_act 'gelu_new'"):
        official_configs.text_config({"hidden_act": "gelu_new"})


def test_special_token_ids_of_the_official_files_are_ignored() -> None:
    json_config = {
        **official_configs.text_json(SD1_TEXT),
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    assert official_configs.text_config(json_config) == SD1_TEXT
    assert CLIPTextConfig() == SD1_TEXT
