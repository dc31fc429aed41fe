"""Rename rules: every official key list, in both directions; original -> ours -> original is the identity."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.small import randomise, small_pipeline
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
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.schedulers import Scheduler
from weights_loader import detect, official_configs
from weights_loader.names import TensorSource, diffusers, expand, ldm, openclip, write
from weights_loader.names.old_attention import as_stored
from weights_loader.single_file import note_leftovers, read_configs, stored_text_encoders

Manifest = dict[str, tuple[int, ...]]
MODELS = (
    "sd14",
    "sd15",
    "sd15_inpaint",
    "sd2_base",
    "sd2_768v",
    "sd21_base",
    "sd21_768v",
    "sd2_inpaint",
    "sd2_depth",
    "sd_x4_upscaler",
    "sdxl_base",
    "sdxl_inpaint",
    "sdxl_refiner",
)
CLIP_MODELS = tuple(m for m in MODELS if m != "sdxl_refiner")
SINGLE_FILES = {
    "sd14.single_file": 1145,
    "sd14.single_file.full_ema": 1831,
    "sd15.single_file.emaonly": 1145,
    "sd15.single_file.pruned_with_ema": 1831,
    "sd15_inpaint.single_file": 1145,
    "sd2_base.single_file": 1242,
    "sd2_768v.single_file": 1242,
    "sd21_base.single_file.ema": 1242,
    "sd21_base.single_file.nonema": 1240,
    "sd21_768v.single_file.ema": 1242,
    "sd21_768v.single_file.nonema": 1240,
    "sd2_inpaint.single_file": 1242,
    "sd2_depth.single_file": 1610,
    "sd_x4_upscaler.single_file": 1207,
}
# what a single file may hold beside the networks: nothing else is let pass
OPTIONAL_TEXT = ("embeddings.position_ids", "logit_scale", "text_projection")


def manifest(shared_data: Path, name: str) -> Manifest:
    shapes = json.loads((shared_data / "manifests" / f"{name}.json").read_text())
    return {key: tuple(shape) for key, shape in shapes.items()}


def read(shared_data: Path, model: str, component: str) -> Any:
    return json.loads((shared_data / "configs" / model / f"{component}.json").read_text())


def part(shapes: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in shapes.items() if name.startswith(prefix)}


def meta(network: Callable[[Any], nn.Module], config: Any) -> dict[str, Tensor]:
    with torch.device("meta"):
        return network(config).state_dict()


def unet_sources(config: UNetConfig, layout: Any = diffusers) -> tuple[dict[str, Tensor], dict[str, TensorSource]]:
    ours = meta(UNet, config)
    return ours, expand(layout.unet(config), ours)


def assert_fits(
    ours: Mapping[str, Tensor], sources: Mapping[str, TensorSource], shapes: Manifest, optional: tuple = ()
) -> None:
    """Every parameter is filled once, every key used once, shapes fit; written back it is the same file."""
    assert list(sources) == list(ours)
    stored = {name: torch.empty(shape, device="meta") for name, shape in shapes.items() if name not in optional}
    assert {source.name for source in sources.values()} == set(stored)
    pieces = [(source.name, source.third) for source in sources.values()]
    assert len(pieces) == len(set(pieces))
    by_name: dict[str, set] = {}
    for name, third in pieces:
        by_name.setdefault(name, set()).add(third)
    assert all(thirds in ({None}, {0, 1, 2}) for thirds in by_name.values())
    for name, source in sources.items():
        assert source.shape(ours[name].shape) == shapes[source.name]
        assert source.read(stored[source.name]).shape == ours[name].shape
    assert {name: tuple(tensor.shape) for name, tensor in write(sources, ours).items()} == part(
        {name: shape for name, shape in shapes.items() if name not in optional}, ""
    )


@pytest.mark.parametrize("model", MODELS)
def test_official_unet_in_diffusers_layout(shared_data: Path, model: str) -> None:
    config = official_configs.unet_config(read(shared_data, model, "unet"))
    assert_fits(*unet_sources(config), manifest(shared_data, f"{model}.unet.diffusers"))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_official_vae_in_diffusers_layout(shared_data: Path, model: str, old: bool) -> None:
    config = official_configs.vae_config(read(shared_data, model, "vae"))
    ours = meta(VAE, config)
    shapes = manifest(shared_data, f"{model}.vae.diffusers{'_oldattn' if old else ''}")
    assert_fits(ours, as_stored(expand(diffusers.vae(config), ours), shapes), shapes)


@pytest.mark.parametrize("position_ids", [False, True])
@pytest.mark.parametrize(
    ("model", "encoder"),
    [(m, "text_encoder") for m in CLIP_MODELS]
    + [(m, "text_encoder_2") for m in ("sdxl_base", "sdxl_inpaint", "sdxl_refiner")],
)
def test_official_text_encoder_in_diffusers_layout(
    shared_data: Path, model: str, encoder: str, position_ids: bool
) -> None:
    config = official_configs.text_config(read(shared_data, model, encoder))
    assert (config.projection_width is not None) is (encoder == "text_encoder_2")
    ours = meta(CLIPTextTransformer, config)
    shapes = manifest(shared_data, f"{model}.{encoder}.diffusers{'_posids' if position_ids else ''}")
    optional = ("text_model.embeddings.position_ids",)
    assert (optional[0] in shapes) is position_ids
    assert_fits(ours, expand(diffusers.text_encoder(config), ours), shapes, optional)


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_official_single_file(shared_data: Path, name: str) -> None:
    shapes = manifest(shared_data, name)
    assert len(shapes) == SINGLE_FILES[name]
    assert detect.layout(shapes, name) == "ldm"
    unet = detect.unet_config(part(shapes, ldm.UNET))
    assert_fits(*unet_sources(unet, ldm), part(shapes, ldm.UNET))
    vae = detect.vae_config(part(shapes, ldm.VAE))
    ours = meta(VAE, vae)
    assert_fits(ours, ldm.vae(vae, list(ours)), part(shapes, ldm.VAE))
    clip = part(shapes, f"{ldm.CLIP}text_model.")
    if clip:
        text = detect.clip_config(clip)
        ours = meta(CLIPTextTransformer, text)
        assert_fits(ours, expand(diffusers.text_encoder(text, prefix=""), ours), clip, OPTIONAL_TEXT)
    else:
        stored = part(shapes, ldm.OPENCLIP)
        text = detect.openclip_config(stored)
        ours = meta(CLIPTextTransformer, text)
        unused = tuple(key for key in stored if key.startswith("transformer.resblocks.23."))
        assert len(unused) == 12
        assert_fits(ours, openclip.text_encoder(list(ours)), stored, (*OPTIONAL_TEXT, *unused))
    known = (ldm.UNET, ldm.VAE, "cond_stage_model.", *detect.UNUSED_PREFIXES)
    rest = {key for key in shapes if not key.startswith(known)}
    assert rest == detect.SCHEDULE_BUFFERS


@pytest.mark.parametrize(("model", "size"), [("sdxl_base", 2515), ("sdxl_refiner", 1858)])
def test_official_sdxl_single_file(shared_data: Path, model: str, size: int) -> None:
    """The shapes show all values of the folder's configs, and every tensor is a source."""
    shapes = manifest(shared_data, f"{model}.single_file")
    assert len(shapes) == size
    assert detect.layout(shapes, model) == "ldm"
    file: Any = SimpleNamespace(shapes=shapes, metadata={}, notices=[], path=Path(f"{model}.safetensors"))
    found, texts = read_configs(file), stored_text_encoders(file)
    assert found.unet == official_configs.unet_config(read(shared_data, model, "unet"))
    assert (found.unet == SDXL_UNET) is (model == "sdxl_base")
    assert found.vae == SDXL_VAE
    assert found.vae == official_configs.vae_config(read(shared_data, model, "vae"))
    encoders = ("text_encoder", "text_encoder_2") if model == "sdxl_base" else ("text_encoder_2",)
    assert found.texts == [official_configs.text_config(read(shared_data, model, name)) for name in encoders]
    assert found.scheduler == Scheduler.from_config(read(shared_data, model, "scheduler"))
    assert found.defaults.zero_empty_prompt is (model == "sdxl_base")
    assert_fits(*unet_sources(found.unet, ldm), part(shapes, ldm.UNET))
    vae = meta(VAE, found.vae)
    assert_fits(vae, ldm.vae(found.vae, list(vae)), part(shapes, ldm.VAE))
    for text, config in zip(texts, found.texts, strict=True):
        ours = meta(CLIPTextTransformer, config)
        diffusers_sources = expand(diffusers.text_encoder(config, ""), ours)
        sources = openclip.text_encoder(list(ours)) if text.is_openclip else diffusers_sources
        optional = ("logit_scale", "embeddings.position_ids")
        assert_fits(ours, sources, part(shapes, text.prefix), optional)
    note_leftovers(file, texts)
    assert file.notices == []


def test_a_guessed_scaling_factor_is_a_notice(shared_data: Path) -> None:
    """A VAE with 3 levels is usually the upscaler's, but not in a model without noise levels."""
    official = manifest(shared_data, "sd15.single_file.emaonly")
    shapes = {name: shape for name, shape in official.items() if not name.startswith(ldm.VAE)}
    config = VAEConfig(channels=(128, 256, 512))
    vae = meta(VAE, config)
    stored = write(ldm.vae(config, list(vae)), vae)
    shapes |= {ldm.VAE + name: tuple(tensor.shape) for name, tensor in stored.items()}
    file: Any = SimpleNamespace(shapes=shapes, metadata={}, notices=[], path=Path("mine.safetensors"))
    assert read_configs(file).vae.scaling_factor == detect.UPSCALER_SCALING
    (notice,) = file.notices
    assert "0.08333 is assumed" in notice


# Against other people's maps: ours by way of our own names.

MAPPED = (
    "sd15",
    "sd15_inpaint",
    "sd2_base",
    "sd2_768v",
    "sd2_inpaint",
    "sd2_depth",
    "sd_x4_upscaler",
    "sdxl_base",
    "sdxl_inpaint",
    "sdxl_refiner",
)


def official_map(shared_data: Path, name: str) -> dict[str, Any]:
    return json.loads((shared_data / "manifests" / "maps" / f"{name}.json").read_text())


@pytest.mark.parametrize("model", MAPPED)
def test_map_of_unets(shared_data: Path, model: str) -> None:
    config = official_configs.unet_config(read(shared_data, model, "unet"))
    ours, theirs = unet_sources(config)
    _, original = unet_sources(config, ldm)
    expected = official_map(shared_data, f"{model}.unet.ldm_to_diffusers")
    assert {ldm.UNET + original[name].name: theirs[name].name for name in ours} == {
        key: value if isinstance(value, str) else value[0] for key, value in expected.items()
    }


@pytest.mark.parametrize("model", MAPPED)
def test_map_of_autoencoders(shared_data: Path, model: str) -> None:
    config = official_configs.vae_config(read(shared_data, model, "vae"))
    ours = meta(VAE, config)
    theirs, original = expand(diffusers.vae(config), ours), ldm.vae(config, list(ours))
    expected = official_map(shared_data, f"{model}.vae.ldm_to_diffusers")
    assert {ldm.VAE + original[name].name: theirs[name].name for name in ours} == {
        key: value if isinstance(value, str) else value[0] for key, value in expected.items()
    }


@pytest.mark.parametrize(
    ("model", "encoder", "prefix"),
    [
        ("sd2_base", "text_encoder", "cond_stage_model.model."),
        ("sdxl_base", "text_encoder_2", "conditioner.embedders.1.model."),
        ("sdxl_refiner", "text_encoder_2", "conditioner.embedders.0.model."),
    ],
)
def test_map_of_openclip(shared_data: Path, model: str, encoder: str, prefix: str) -> None:
    config = official_configs.text_config(read(shared_data, model, encoder))
    ours = meta(CLIPTextTransformer, config)
    theirs, original = expand(diffusers.text_encoder(config), ours), openclip.text_encoder(list(ours))
    got: dict[str, list] = {}
    for name in ours:
        source = original[name]
        got.setdefault(prefix + source.name, []).append((source.third or 0, theirs[name].name))
    expected = official_map(shared_data, f"{model}.{encoder}.openclip_to_hf")
    names = {key: [name for name in value if name.startswith("text_")] for key, value in expected.items()}
    assert {key: [name for _, name in sorted(pieces)] for key, pieces in got.items()} == {
        key: value for key, value in names.items() if value
    }
    dropped = {key.removeprefix(prefix) for key, value in names.items() if not value}
    last = {key for key in dropped if key.startswith("transformer.resblocks.23.")}
    assert dropped - last <= {"logit_scale", "text_projection"}
    assert len(last) == (12 if encoder == "text_encoder" else 0)


# Standing alone: the official sizes, and values through both directions.


@pytest.mark.parametrize("layout", [diffusers, ldm])
@pytest.mark.parametrize(
    ("config", "tensors", "parameters"),
    [
        (SD1_UNET, 686, 859_520_964),
        (replace(SD1_UNET, in_channels=9), 686, 859_535_364),
        (SD2_UNET, 686, 865_910_724),
        (
            UNetConfig(
                (320, 640, 1280),
                (0, 2, 10),
                10,
                (5, 10, 20),
                context_width=2048,
                linear_projection=True,
                only_cross_attention=(False,) * 3,
                pooled_width=2816,
            ),
            1680,
            2_567_463_684,
        ),
        (
            UNetConfig(
                (256, 512, 512, 1024),
                (0, 1, 1, 1),
                context_width=1024,
                in_channels=7,
                linear_projection=True,
                only_cross_attention=(True, True, True, False),
                class_count=1000,
            ),
            687,
            473_398_020,
        ),
    ],
    ids=["sd1", "inpainting", "sd2", "sdxl", "x4"],
)
def test_unets_of_official_size(config: UNetConfig, tensors: int, parameters: int, layout: Any) -> None:
    ours, sources = unet_sources(config, layout)
    stored = write(sources, ours)
    assert len(stored) == len({source.name for source in sources.values()}) == len(ours) == tensors
    assert sum(tensor.numel() for tensor in stored.values()) == parameters


def test_names_where_the_numbering_is_easy_to_get_wrong() -> None:
    names = ldm.unet(SD1_UNET)
    assert names["down.0.resample.conv"] == "input_blocks.3.0.op"
    assert names["down.3.resnets.1.conv1"] == "input_blocks.11.0.in_layers.2"
    assert names["up.0.resample.conv"] == "output_blocks.2.1.conv"  # no attention in front of it
    assert names["up.1.resample.conv"] == "output_blocks.5.2.conv"
    assert names["up.2.transformers.2.proj_in"] == "output_blocks.8.1.proj_in"
    vae = expand_vae(SD1_VAE)
    assert vae["decoder.up.0.resnets.0.conv1.weight"] == "decoder.up.3.block.0.conv1.weight"
    assert vae["encoder.down.0.resnets.0.conv1.weight"] == "encoder.down.0.block.0.conv1.weight"
    assert vae["encoder.down.1.resnets.0.skip.weight"] == "encoder.down.1.block.0.nin_shortcut.weight"


def expand_vae(config: VAEConfig) -> dict[str, str]:
    return {name: source.name for name, source in ldm.vae(config, list(meta(VAE, config))).items()}


@pytest.mark.parametrize(
    ("config", "parameters", "kinds"),
    [
        (SD1_TEXT, 123_060_480, 196),
        (SD2_TEXT, 340_387_840, 372),
        (replace(SD2_TEXT, projection_width=1024), 341_436_416, 373),
    ],
)
def test_text_encoders_of_official_size(config: CLIPTextConfig, parameters: int, kinds: int) -> None:
    ours = meta(CLIPTextTransformer, config)
    theirs = write(expand(diffusers.text_encoder(config), ours), ours)
    stacked = write(openclip.text_encoder(list(ours)), ours)
    assert len(theirs) == kinds
    assert len(stacked) == kinds - 4 * config.layers  # q, k, v as one, weights and biases
    assert sum(t.numel() for t in theirs.values()) == sum(t.numel() for t in stacked.values()) == parameters


def round_trip(sources: Mapping[str, TensorSource], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Written, read, and written once more: the identity both ways."""
    stored = write(sources, ours)
    back = {name: source.read(stored[source.name]) for name, source in sources.items()}
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)
    again = write(sources, back)
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], stored[name]) for name in stored)
    return stored


@pytest.mark.parametrize("sd2", [False, True])
def test_values_survive_both_directions(sd2: bool) -> None:
    sd = small_pipeline(sd2)
    unet, vae = sd.unet.state_dict(), sd.vae.state_dict()
    stored = round_trip(expand(ldm.unet(sd.unet.config), unet), unet)
    name = "input_blocks.1.1.proj_in.weight"
    assert stored[name].shape == ((64, 64) if sd2 else (64, 64, 1, 1))
    assert torch.equal(stored[name], unet["down.0.transformers.0.proj_in.weight"])
    round_trip(expand(diffusers.unet(sd.unet.config), unet), unet)
    stored = round_trip(ldm.vae(sd.vae.config, list(vae)), vae)
    query = stored["decoder.mid.attn_1.q.weight"]  # a 1x1 convolution there
    assert torch.equal(query[:, :, 0, 0], vae["decoder.middle.attention.attention.q.weight"])
    round_trip(expand(diffusers.vae(sd.vae.config), vae), vae)
    text = sd.text_encoder.state_dict()
    round_trip(expand(diffusers.text_encoder(sd.text_encoder.config), text), text)


def test_openclip_stacks_query_key_value_and_transposes_the_projection() -> None:
    config = CLIPTextConfig(vocab_size=30, width=12, layers=2, heads=2, mlp_width=20, projection_width=12)
    text = randomise(CLIPTextTransformer(config)).state_dict()
    stored = round_trip(openclip.text_encoder(list(text)), text)
    qkv = stored["transformer.resblocks.1.attn.in_proj_weight"]
    expected = [text[f"layers.1.attention.{each}.weight"] for each in "qkv"]
    assert torch.equal(qkv, torch.cat(expected))
    assert torch.equal(stored["transformer.resblocks.0.attn.in_proj_bias"][12:24], text["layers.0.attention.k.bias"])
    assert torch.equal(stored["text_projection"], text["text_projection.weight"].T)  # square: no shape check sees it
    assert torch.equal(stored["positional_embedding"], text["position_embedding.weight"])


def test_reading_makes_views_not_copies() -> None:
    sd = small_pipeline()
    vae = sd.vae.state_dict()
    sources = ldm.vae(sd.vae.config, list(vae))
    stored = write(sources, vae)
    for name, source in sources.items():
        assert source.read(stored[source.name]).data_ptr() == stored[source.name].data_ptr(), name
    text = sd.text_encoder.state_dict()
    sources = openclip.text_encoder(list(text))
    stored = write(sources, text)
    starts = {t.untyped_storage().data_ptr() for t in stored.values()}
    assert all(p.read(stored[p.name]).untyped_storage().data_ptr() in starts for p in sources.values())
