"""LoRA in every format against the reference's networks with the same change beside each layer; exact merging."""

import copy
import gc
import itertools
import json
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from support.lora_files import (
    Change,
    Changes,
    apply,
    draw,
    is_any,
    is_attention,
    is_cloneofsimo,
    is_matrix,
    save,
    write_cloneofsimo,
    write_comfyui,
    write_diffusers,
    write_kohya,
    write_list,
    write_named_adapter,
    write_oldest,
    write_peft,
    write_peft_folder,
    write_processors,
)
from support.saved_models import Saved, noise, picture_of_oracle, picture_of_ours
from support.small import oracle_text, oracle_unet, small_pipeline, text_like, unet_like
from support.small_xl import oracle_xl
from torch import Tensor, nn

import weights_loader
from minisd.adapters import Lora, LowRank
from minisd.errors import FileFormatError, InputError, MinisdError, MismatchError, NumericalError
from minisd.models import CLIPTextTransformer, UNet
from minisd.pipeline import StableDiffusion
from minisd.pipeline.conditioning import TokenizerAndEncoder
from weights_loader import official_configs
from weights_loader.adapters.lora_file import plan
from weights_loader.adapters.lora_names import cloneofsimo_unet, networks, spellings
from weights_loader.names import diffusers as diffusers_names
from weights_loader.names import ldm as ldm_names

diffusers = pytest.importorskip("diffusers")

CLOSE = 1e-5  # of the output's scale
SCALE = 0.7


def thirds(rank: int) -> float:
    return 1 + rank / 3


def oracles(saved: Saved) -> dict[str, nn.Module]:
    return {"unet": saved.oracle.unet, "text_encoder": saved.oracle.text_encoder}


def ids() -> Tensor:
    numbers = torch.randint(0, 500, (2, 77), generator=torch.Generator().manual_seed(5))
    numbers[:, 20:] = 300
    return numbers


@torch.no_grad()
def outputs(networks: dict[str, Any]) -> dict[str, Tensor]:
    """The output of each network, ours or the reference's, for the same input."""
    out = {}
    for name, network in networks.items():
        if name != "unet":
            states = network(ids() % network.config.vocab_size)
            out[name] = states if isinstance(states, Tensor) else states.last_hidden_state
        elif isinstance(network, UNet):
            pooled = network.config.pooled_width
            text = noise(2, 77, network.config.context_width, seed=1)
            vector = None
            if pooled is not None:
                from minisd.models.unet import sinusoids

                width = network.config.size_embedding_width
                numbers = sinusoids(torch.arange(12.0), width).reshape(2, 6 * width)
                vector = torch.cat([noise(2, pooled - 6 * width, seed=2), numbers], dim=1)
            out[name] = network(noise(2, 4, 8, 12), torch.tensor(301), text, pooled=vector)
        else:
            more = {}
            if network.config.addition_embed_type:
                width = network.config.projection_class_embeddings_input_dim
                vector = noise(2, width - 6 * network.config.addition_time_embed_dim, seed=2)
                more = {"text_embeds": vector, "time_ids": torch.arange(12.0).reshape(2, 6)}
            text = noise(2, 77, network.config.cross_attention_dim, seed=1)
            out[name] = network(noise(2, 4, 8, 12), torch.tensor(301), text, added_cond_kwargs=more).sample
    return out


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        assert (got[name] - expected[name]).abs().max() <= CLOSE * expected[name].abs().max(), name


def bits(sd: Any) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": tensor.clone()
        for name, network in networks(sd).items()
        for key, tensor in network.state_dict().items()
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def assert_as_oracle(sd: Any, oracle: dict[str, nn.Module], changes: Changes, path: Path) -> None:
    """Loaded at one scale, rescaled, removed: equal to the reference, and at the end the original bits."""
    before, plain = bits(sd), outputs(oracle)
    lora = weights_loader.load_lora(sd, path, SCALE)
    assert lora.layers == sum(map(len, changes.values()))
    for scale in (SCALE, -0.3):
        lora.scale = scale
        hooks = apply(oracle, changes, scale)
        expected = outputs(oracle)
        for hook in hooks:
            hook.remove()
        assert_close(outputs(networks(sd)), expected)
        for name in changes:
            assert (expected[name] - plain[name]).abs().max() > 0.05 * plain[name].abs().max(), name
    lora.remove()
    assert same(bits(sd), before)
    assert_close(outputs(networks(sd)), plain)


FORMATS: dict[str, tuple[Callable[..., bool], Callable[[int], float | None], Callable[..., Path]]] = {
    "peft": (is_attention, thirds, write_peft),
    "peft, all layers": (is_any, thirds, write_peft),
    "diffusers": (is_attention, thirds, write_diffusers),
    "attention processors": (is_attention, lambda rank: None, write_processors),
    "kohya": (is_matrix, thirds, write_kohya),
    "kohya without alpha": (is_matrix, lambda rank: None, write_kohya),
    "kohya LoCon": (is_any, thirds, write_kohya),
    "cloneofsimo": (is_cloneofsimo, lambda rank: None, write_cloneofsimo),
    "adapter with a name": (is_attention, lambda rank: None, write_named_adapter),
    "adapter with a number": (
        is_any,
        lambda rank: None,
        partial(write_named_adapter, a="A_1.default_0", b="B_1.default_0"),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(saved: Saved, tmp_path: Path, name: str) -> None:
    wanted, alpha, write = FORMATS[name]
    changes = draw(oracles(saved), wanted, alpha)
    path = write(changes, tmp_path / "lora.safetensors")
    assert_as_oracle(weights_loader.load(saved.folder), oracles(saved), changes, path)


def original_names(sd: StableDiffusion) -> dict[str, str]:
    """The original name of each module of the UNet by its name in diffusers."""
    original = ldm_names.unet(sd.unet.config)
    return {theirs: original[ours] for ours, theirs in diffusers_names.unet(sd.unet.config).items() if ours in original}


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model."])
def test_original_names_with_dots(saved: Saved, tmp_path: Path, prefix: str) -> None:
    sd = weights_loader.load(saved.folder)
    changes = draw(oracles(saved), is_any, thirds)
    path = write_comfyui(changes, tmp_path / "lora.safetensors", original_names(sd), prefix)
    assert_as_oracle(sd, oracles(saved), changes, path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_low_precision_is_raised_before_it_is_merged(sd1: Saved, tmp_path: Path, dtype: torch.dtype) -> None:
    drawn = draw(oracles(sd1), is_any, lambda rank: 2.0)
    stored = {
        name: {module: Change(c.down.to(dtype), c.up.to(dtype), c.alpha) for module, c in each.items()}
        for name, each in drawn.items()
    }
    exact = {
        name: {module: Change(c.down.float(), c.up.float(), c.alpha) for module, c in each.items()}
        for name, each in stored.items()
    }
    sd = weights_loader.load(sd1.folder)
    assert_as_oracle(sd, oracles(sd1), exact, write_kohya(stored, tmp_path / "lora.safetensors"))


def test_low_precision_that_is_not_finite(ours: StableDiffusion, tmp_path: Path) -> None:
    tensors = {
        "lora_unet_conv_in.lora_down.weight": torch.ones(2, 4, 3, 3),
        "lora_unet_conv_in.lora_up.weight": torch.ones(32, 2, 1, 1),
    }
    tensors["lora_unet_conv_in.lora_up.weight"][0, 0] = float("nan")
    path = save({key: each.to(torch.float8_e4m3fn) for key, each in tensors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(NumericalError, match=r"lora_up\.weight holds NaN or infinity"):
        weights_loader.load_lora(ours, path)


def test_two_adapters_in_one_file(ours: StableDiffusion, tmp_path: Path) -> None:
    tensors = {f"unet.conv_in.lora_{part}.{name}.weight": torch.ones(2) for part in "AB" for name in ("one", "two")}
    with pytest.raises(MismatchError, match=r"holds 2 adapters \('one', 'two'\), expected one; save each"):
        weights_loader.load_lora(ours, save(tensors, tmp_path / "a.safetensors"))


def test_oldest_processors_without_the_networks_name(sd1: Saved, tmp_path: Path) -> None:
    changes = draw({"unet": sd1.oracle.unet})
    path = write_oldest(changes, tmp_path / "lora.safetensors")
    assert_as_oracle(weights_loader.load(sd1.folder), oracles(sd1), changes, path)


@pytest.mark.parametrize("network", ["unet", "text_encoder"])
def test_legacy_list_of_cloneofsimo(sd1: Saved, tmp_path: Path, network: str) -> None:
    changes = draw({network: oracles(sd1)[network]}, is_cloneofsimo)
    path = write_list(changes, tmp_path / "lora.pt")
    assert_as_oracle(weights_loader.load(sd1.folder), oracles(sd1), changes, path)


@pytest.mark.parametrize("network", ["unet", "text_encoder"])
@pytest.mark.parametrize("rs", [False, True])
def test_folder_of_peft(sd1: Saved, tmp_path: Path, network: str, rs: bool) -> None:
    drawn = draw({network: oracles(sd1)[network]}, is_matrix)
    special = ".".join(list(drawn[network])[3].split(".")[-4:])  # as in PEFT, the end of a path is enough

    def alpha(path: str, rank: int) -> float:
        value = 7.0 if path.endswith(f".{special}") else 3.0
        return value * rank**0.5 if rs else value  # rsLoRA divides by the root of the rank

    changes = {network: {p: c._replace(alpha=alpha(p, len(c.down))) for p, c in drawn[network].items()}}
    pattern = {"nobody": 9, special: 7, f"0.{special}": 8, f"1.{special}": 8}  # the first match is used
    folder = write_peft_folder(drawn, tmp_path / "f", lora_alpha=3, alpha_pattern=pattern, use_rslora=rs)
    assert_as_oracle(weights_loader.load(sd1.folder), oracles(sd1), changes, folder)


def test_folder_of_diffusers(sd1: Saved, tmp_path: Path) -> None:
    changes = draw(oracles(sd1), alpha=thirds)
    write_peft(changes, tmp_path / "pytorch_lora_weights.safetensors")
    assert_as_oracle(weights_loader.load(sd1.folder), oracles(sd1), changes, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MismatchError, match="folder without adapter_model"):
        weights_loader.load_lora(small_pipeline(), tmp_path / "empty")


def test_matrices_where_the_layer_is_a_1x1_convolution_and_the_other_way_round(
    sd1: Saved, sd2: Saved, tmp_path: Path
) -> None:
    """Trainers differ in how they write proj_in and proj_out."""
    for saved, was, dims in ((sd1, nn.Conv2d, ()), (sd2, nn.Linear, (1, 1))):
        changes = draw({"unet": saved.oracle.unet}, lambda path, m: path.endswith(("proj_in", "proj_out")))
        modules = dict(saved.oracle.unet.named_modules())
        assert all(isinstance(modules[path], was) for path in changes["unet"])
        written = {p: Change(c.down.reshape(*c.down.shape[:2], *dims), c.up.reshape(*c.up.shape[:2], *dims), 2.0)
                   for p, c in changes["unet"].items()}  # fmt: skip
        path = write_kohya({"unet": written}, tmp_path / f"{len(dims)}.safetensors")
        changes = {"unet": {p: c._replace(alpha=2.0) for p, c in changes["unet"].items()}}
        assert_as_oracle(weights_loader.load(saved.folder), oracles(saved), changes, path)


@pytest.fixture(scope="module")
def sdxl() -> tuple[dict[str, nn.Module], SimpleNamespace]:
    """The reference's three networks in small, and ours with the same weights."""
    theirs = {
        "unet": oracle_unet("sdxl"),
        "text_encoder": oracle_text("wide"),
        "text_encoder_2": oracle_text("sd2", projection=40),
    }
    texts = {name: text_like(encoder) for name, encoder in theirs.items() if name != "unet"}
    parts = [TokenizerAndEncoder(None, encoder) for encoder in texts.values()]
    return theirs, SimpleNamespace(unet=unet_like(theirs["unet"]), **texts, text_parts=parts, is_xl=True)


def sgm_names(unet: UNet) -> dict[str, str]:
    """{diffusers' path: sgm's}."""
    from weights_loader.names import ldm

    theirs = diffusers_names.unet(unet.config)
    return {theirs[ours]: sgm for ours, sgm in ldm.unet(unet.config).items()}


@pytest.mark.parametrize("names", ["sgm", "diffusers", "peft"])
def test_two_text_encoders_and_a_deep_unet(sdxl: Any, tmp_path: Path, names: str) -> None:
    theirs, ours = sdxl
    changes = draw(theirs, is_any, thirds)
    changes["unet"] = {path: change for path, change in changes["unet"].items() if "embedding" not in path}
    if names == "peft":
        path = write_peft(changes, tmp_path / "lora.safetensors")
    else:
        sgm = sgm_names(ours.unet) if names == "sgm" else None
        path = write_kohya(changes, tmp_path / "lora.safetensors", sgm)
        assert any("input_blocks" in key for key in safetensors.torch.load_file(path)) is (names == "sgm")
    del changes["text_encoder_2"]["text_projection"]  # not seen in the states: only its weight is checked
    changed = copy.deepcopy(ours)
    lora = weights_loader.load_lora(changed, path)
    assert not torch.equal(changed.text_encoder_2.text_projection.weight, ours.text_encoder_2.text_projection.weight)
    hooks = apply(theirs, changes, 1.0)
    expected = outputs(theirs)
    for hook in hooks:
        hook.remove()
    assert_close(outputs(networks(changed)), expected)
    lora.remove()
    assert same(bits(changed), bits(ours))


@pytest.mark.parametrize("write", [write_kohya, write_peft])
def test_the_refiner_has_the_second_text_encoder_alone(tmp_path: Path, write: Callable[[Changes, Path], Path]) -> None:
    """It has the name of the second in files, and a refined image equals the reference's."""
    oracle = oracle_xl(tmp_path, "refiner")
    oracle.save_pretrained(tmp_path / "model")
    sd = weights_loader.load(tmp_path / "model")
    theirs = {"unet": oracle.unet, "text_encoder_2": oracle.text_encoder_2}
    changes = draw(theirs, is_attention)
    call = {"prompt": "a cat", "strength": 0.5, "num_inference_steps": 4, "guidance_scale": 3.0}
    picture = torch.linspace(-1, 1, 3 * 24 * 32).reshape(1, 3, 24, 32)

    def draws() -> tuple[Tensor, Tensor]:
        seeded = torch.Generator().manual_seed(5)
        expected = oracle(image=(picture + 1) / 2, generator=seeded, output_type="latent", **call).images
        return sd(image=picture, seed=5, output_type="latent", **call).images, expected

    plain, _ = draws()
    before = bits(sd)
    lora = weights_loader.load_lora(sd, write(changes, tmp_path / "lora.safetensors"))
    hooks = apply(theirs, changes, 1.0)
    got, expected = draws()
    for hook in hooks:
        hook.remove()
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (got - plain).abs().max() > 0.05 * plain.abs().max()
    lora.remove()
    assert same(bits(sd), before)
    alone = save({f"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_{half}.weight": noise(768, 768)
                  for half in HALVES}, tmp_path / "alone.safetensors")  # fmt: skip
    refuse(sd, alone, MismatchError, "LoRA for SD 1.x .*768.*expected one for models with text vectors of 128")


def test_the_reference_loads_the_same(sd1: Saved, tmp_path: Path) -> None:
    """Where PEFT is installed: pictures after the reference's own loader, which knows one rank and alpha a network:

    of diffusers 0.42 with PEFT 0.21, the alphas of single layers in kohya's files are ignored with a warning.
    """
    pytest.importorskip("peft")
    for name in ("peft", "diffusers", "attention processors", "kohya", "kohya LoCon"):
        wanted, alpha, write = FORMATS[name]
        parts = {"unet": sd1.oracle.unet} if name == "peft" else oracles(sd1)  # transformers 5 renamed the text layers
        changes = draw(parts, wanted, (lambda rank: None) if name == "diffusers" else alpha, ranks=[3])
        path = write(changes, tmp_path / f"{name}.safetensors")
        oracle = copy.deepcopy(sd1.oracle)
        oracle.load_lora_weights(str(path))
        sd = weights_loader.load(sd1.folder)
        weights_loader.load_lora(sd, path)
        x = noise(1, 4, 8, 12)
        got, expected = picture_of_ours(sd, x, prompt="a cat"), picture_of_oracle(oracle, x, prompt="a cat")
        assert np.abs(got - expected).max() < 1 / 255, name
        assert np.abs(expected - picture_of_oracle(sd1.oracle, x, prompt="a cat")).max() > 0.1


# Exactness


def three_loras(saved: Saved, tmp_path: Path) -> list[Path]:
    return [
        write_kohya(draw(oracles(saved), wanted, thirds, seed), tmp_path / f"{seed}.safetensors")
        for seed, wanted in enumerate((is_matrix, is_any, is_attention))
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_several_in_any_order_leave_no_trace(sd1: Saved, tmp_path: Path, dtype: torch.dtype) -> None:
    paths = three_loras(sd1, tmp_path)
    sd = weights_loader.load(sd1.folder, dtype=dtype)
    before = bits(sd)
    alone = []
    for path in paths:
        lora = weights_loader.load_lora(sd, path, 0.5)
        alone.append(bits(sd))
        lora.remove()
        assert same(bits(sd), before)
    assert not same(alone[0], before)
    for order in itertools.permutations(range(3)):
        loras = [weights_loader.load_lora(sd, path, 0.5) for path in paths]
        together = bits(sd)
        loras[order[0]].scale = 0.25
        loras[order[0]].scale = 0.5
        assert same(bits(sd), together)
        loras[order[0]].remove()
        loras[order[1]].scale = 0
        assert same(bits(sd), alone[order[2]])
        loras[order[2]].remove()
        assert same(bits(sd), before)
        loras[order[1]].remove()
        assert same(bits(sd), before)


def test_two_are_the_same_in_either_order(sd1: Saved, tmp_path: Path) -> None:
    paths = three_loras(sd1, tmp_path)[:2]
    a, b = weights_loader.load(sd1.folder), weights_loader.load(sd1.folder)
    for sd, order in ((a, paths), (b, paths[::-1])):
        for path in order:
            weights_loader.load_lora(sd, path)
    assert same(bits(a), bits(b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_sum_is_taken_in_float32(dtype: torch.dtype) -> None:
    layer = nn.Linear(6, 5).to(dtype)
    base = layer.weight.detach().clone()
    down, up = noise(2, 6).half(), noise(5, 2, seed=1).half()
    Lora({layer: LowRank(down, up, 0.3)}, 0.5)
    exact = base.double() + 0.5 * 0.3 * up.double() @ down.double()
    assert layer.weight.dtype == dtype
    unit = torch.finfo(dtype).eps / 2
    assert ((layer.weight.double() - exact).abs() <= unit * exact.abs() * 1.01 + 2e-6).all()


def test_nothing_is_written_into_the_old_weights(sd1: Saved, tmp_path: Path) -> None:
    """They may be views of a mapped file: a merge gives the layer another tensor, removing gives the old one back."""
    sd = weights_loader.load(sd1.folder)
    layer = sd.unet.middle.transformer.blocks[0].attention2.k
    old, copied = layer.weight.data, layer.weight.data.clone()
    lora = weights_loader.load_lora(sd, three_loras(sd1, tmp_path)[0])
    assert torch.equal(old, copied)
    assert not torch.equal(layer.weight, copied)
    lora.remove()
    assert layer.weight.data_ptr() == old.data_ptr()


def test_the_file_may_change_afterwards(sd1: Saved, tmp_path: Path) -> None:
    (path, *_) = three_loras(sd1, tmp_path)
    sd = weights_loader.load(sd1.folder)
    lora = weights_loader.load_lora(sd, path)
    merged = bits(sd)
    path.write_bytes(bytes(path.stat().st_size))
    lora.scale = 0
    lora.scale = 1
    assert same(bits(sd), merged)


def test_convolutions_turned_to_channels_last_meanwhile(sd1: Saved, tmp_path: Path) -> None:
    sd = weights_loader.load(sd1.folder)
    before, path = bits(sd), three_loras(sd1, tmp_path)[1]
    for when in ("turned before", "turned between"):
        lora = weights_loader.load_lora(sd, path)
        outputs(networks(sd))
        lora.remove()
        assert same(bits(sd), before), when
        outputs(networks(sd))


def test_a_model_may_move_while_it_is_merged(sd1: Saved, tmp_path: Path) -> None:
    sd, path = weights_loader.load(sd1.folder), three_loras(sd1, tmp_path)[1]
    lora = weights_loader.load_lora(sd, path)
    sd.to(dtype=torch.float16)
    lora.scale = 0.5
    fresh = weights_loader.load(sd1.folder)
    weights_loader.load_lora(fresh, path, 0.5)
    assert same(bits(sd), bits(fresh.to(dtype=torch.float16)))  # the sum was not taken in float16
    lora.remove()
    assert same(bits(sd), bits(weights_loader.load(sd1.folder, dtype=torch.float16)))


def test_merged_in_inference_mode_the_weights_can_be_trained(sd1: Saved, tmp_path: Path) -> None:
    sd = weights_loader.load(sd1.folder)
    with torch.inference_mode():
        weights_loader.load_lora(sd, three_loras(sd1, tmp_path)[0])
    sd.text_encoder(ids()).sum().backward()
    assert sd.text_encoder.layers[0].attention.q.weight.grad is not None


def test_networks_are_freed(sd1: Saved, tmp_path: Path) -> None:
    sd = weights_loader.load(sd1.folder)
    lora = weights_loader.load_lora(sd, three_loras(sd1, tmp_path)[0])
    unet = weakref.ref(sd.unet)
    del sd, lora
    gc.collect()
    assert unet() is None


def test_a_merged_model_is_saved_as_it_is(sd1: Saved, tmp_path: Path) -> None:
    sd = weights_loader.load(sd1.folder)
    lora = weights_loader.load_lora(sd, three_loras(sd1, tmp_path)[1])
    weights_loader.save(sd, tmp_path / "merged")
    assert same(bits(weights_loader.load(tmp_path / "merged")), bits(sd))
    assert repr(lora) == f"Lora({lora.layers} layers, scale 1)"


# Names


def read_adapter(shared_data: Path, name: str) -> dict[str, tuple[int, ...]]:
    listing = json.loads((shared_data / "manifests" / "adapters" / f"{name}.json").read_text())
    if "tensors" in listing:
        return {key: tuple(shape) for key, (_, shape) in listing["tensors"].items()}
    return {key: tuple(shape) for key, shape in listing.items()}


def official(shared_data: Path, model: str) -> dict[str, nn.Module]:
    def config(part: str) -> Any:
        return json.loads((shared_data / "configs" / model / f"{part}.json").read_text())

    with torch.device("meta"):
        found: dict[str, nn.Module] = {"unet": UNet(official_configs.unet_config(config("unet")))}
        for name in ("text_encoder", "text_encoder_2"):
            if (shared_data / "configs" / model / f"{name}.json").is_file():
                found[name] = CLIPTextTransformer(official_configs.text_config(config(name)))
    return found


@pytest.mark.parametrize(
    ("name", "model", "count"),
    [
        ("diffusers_old_procattn_sd15_rank4", "sd15", 128),
        ("diffusers_peft_sd15_attn_rank4", "sd15", 128),
        ("kohya_sd15_rank4", "sd15", 264),
        ("kohya_sd15_locon_rank4", "sd15", 350),
        ("lcm_lora_sd15_rank64", "sd15", 278),
        ("real_lora_disney", "sd15", 192),
        ("kohya_sdxl_rank4", "sdxl_base", 986),
    ],
)
def test_official_key_lists(shared_data: Path, name: str, model: str, count: int) -> None:
    """Every key of a real file is used, and every shape fits its layer."""
    shapes, parts = read_adapter(shared_data, name), official(shared_data, model)
    found = plan(shapes, {}, parts, Path(name))
    assert len(found.layers) == count
    used = [key for keys in found.layers.values() for key in keys if key is not None]
    assert sorted([*used, *found.embeddings]) == sorted(shapes)
    for target, keys in found.layers.items():
        with torch.device("meta"):
            change = LowRank(torch.empty(shapes[keys.down]), torch.empty(shapes[keys.up]))
        assert change.fits(parts[target.network].get_submodule(target.module)), keys


def test_sgm_names_mean_what_the_official_map_says(shared_data: Path) -> None:
    """All shapes of a level are equal, so fitting proves little: the layers against the map of the whole checkpoint."""
    parts = official(shared_data, "sdxl_base")
    table = json.loads((shared_data / "manifests" / "maps" / "sdxl_base.unet.ldm_to_diffusers.json").read_text())
    ours = {theirs: name for name, theirs in diffusers_names.unet(parts["unet"].config).items()}
    found = plan(read_adapter(shared_data, "kohya_sdxl_rank4"), {}, parts, Path("x")).layers
    by_stem = {keys.down.removesuffix(".lora_down.weight"): target for target, keys in found.items()}
    checked = 0
    for sgm, theirs in table.items():
        stem = "lora_unet_" + sgm.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".", "_")
        if sgm.endswith(".weight") and stem in by_stem:
            assert by_stem[stem].module == ours[theirs.removesuffix(".weight")], stem
            checked += 1
    assert checked == 722


def test_order_of_cloneofsimo_is_the_official_one(shared_data: Path) -> None:
    order = json.loads((shared_data / "manifests" / "maps" / "cloneofsimo_lora_unet_index.json").read_text())
    config = official(shared_data, "sd15")["unet"].config
    theirs = diffusers_names.unet(config)
    assert [f"{theirs[name]}.weight" for name in cloneofsimo_unet(config)] == order


def test_no_spelling_means_two_layers(sdxl: Any) -> None:
    """Of all spellings of a layer none is another's: each table has as many entries as were made."""
    from weights_loader.adapters import lora_names

    _, ours = sdxl
    for name, network in networks(ours).items():
        if name == "unet":
            made = list(lora_names._of_unet(network.config))
        else:
            made = list(lora_names._of_text_encoder(name, network.config))
        assert len({spelling for spelling, _ in made}) == len(set(made))
    assert {target.network for target in spellings(networks(ours)).values()} == set(networks(ours))


# Refusals


def refuse(sd: Any, path: Path, kind: type[MinisdError], message: str, scale: Any = 1.0) -> str:
    """One sentence, and nothing is changed."""
    before = bits(sd)
    with pytest.raises(kind, match=message) as caught:
        weights_loader.load_lora(sd, path, scale)
    assert same(bits(sd), before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def ours() -> StableDiffusion:
    return small_pipeline()


BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
HALVES = ("down", "up")
STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def pair(stem: str = STEM, rank: int = 2, rows: int = 64, columns: int = 64) -> dict[str, Tensor]:
    return {f"{stem}.lora_down.weight": noise(rank, columns), f"{stem}.lora_up.weight": noise(rows, rank)}


def test_the_positive_control(ours: StableDiffusion, tmp_path: Path) -> None:
    lora = weights_loader.load_lora(ours, save(pair(), tmp_path / "a.safetensors"))
    assert lora.layers == 1
    lora.remove()
    lora.remove()
    assert "removed" in repr(lora)
    with pytest.raises(InputError, match="removed LoRA"):
        lora.scale = 0.5


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf"), "1", None, True, 1e9])
def test_scales(ours: StableDiffusion, tmp_path: Path, scale: Any) -> None:
    path = save(pair(), tmp_path / "a.safetensors")
    refuse(ours, path, InputError, "scale is .*, expected a number", scale)
    lora = weights_loader.load_lora(ours, path)
    with pytest.raises(InputError, match="scale is"):
        lora.scale = scale
    assert lora.scale == 1
    lora.remove()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"lora_unet_nobody.lora_down.weight": noise(1, 2)}, "1 keys fit no layer.*'lora_unet_nobody"),
        ({f"{STEM}.lora_down.bias": noise(2)}, "1 keys fit no layer.*lora_down.bias'"),
        ({"bundle_emb.x": noise(2)}, "1 keys fit no layer.*'bundle_emb.x'"),
        ({STEM.replace("to_q", "to_k") + ".lora_up.weight": noise(64, 2)}, "1 keys lack their counterpart: .*to_k"),
        ({STEM.replace("to_q", "to_k") + ".alpha": torch.tensor(1.0)}, "1 keys lack their counterpart: .*to_k.alpha"),
        ({f"unet.{BLOCK}.attn1.to_q.lora_A.weight": noise(2, 64)}, "1 keys repeat a layer"),
        ({f"{STEM}.hada_w1_a": noise(2, 2)}, "LoHa .*hada_w1_a.*expected a LoRA"),
        ({f"{STEM}.lokr_w1": noise(2, 2)}, "LoKr"),
        ({f"{STEM}.dora_scale": noise(2, 2)}, "DoRA"),
        ({"unet.x.lora_magnitude_vector.weight": noise(2)}, "DoRA"),
        ({f"{STEM}.lora_mid.weight": noise(2, 2, 3, 3)}, "Tucker"),
        ({f"{STEM}.oft_blocks": noise(2, 2)}, "OFT"),
        ({f"{STEM}.diff_b": noise(2)}, "full difference"),
        ({f"{STEM}.alpha": noise(2)}, r"alpha is .*, expected one number of at most 1,000,000"),
        ({f"{STEM}.alpha": torch.tensor(float("nan"))}, "alpha is nan, expected one number"),
        ({f"{STEM}.alpha": torch.tensor(1098907648)}, "alpha is 1098907648, expected one number"),  # a float32 as bits
        ({f"{STEM}.lora_up.weight": noise(64, 3)}, "1 layers have another shape.*the layer is"),
        ({f"{STEM}.lora_up.weight": noise(64)}, "expected a matrix or a kernel"),
        ({f"{STEM}.lora_up.weight": torch.ones(64, 2, dtype=torch.int32)}, "holds torch.int32"),
        ({f"{STEM}.lora_down.weight": noise(2, 65)}, "another shape"),
        ({f"{STEM}.lora_down.weight": noise(2, 64, 3, 3)}, "another shape"),
    ],
)  # fmt: skip
def test_files_that_are_no_lora_of_this_model(
    ours: StableDiffusion, tmp_path: Path, extra: dict[str, Tensor], message: str
) -> None:
    refuse(ours, save({**pair(), **extra}, tmp_path / "a.safetensors"), MismatchError, message)


def test_many_unknown_keys_are_ten_and_dots(ours: StableDiffusion, tmp_path: Path) -> None:
    tensors = pair() | {f"lora_unet_x{i}.lora_up.weight": noise(1, 1) for i in range(30)}
    text = refuse(ours, save(tensors, tmp_path / "a.safetensors"), MismatchError, "30 keys fit no layer")
    assert text.count("lora_unet_x") == 10


def test_not_finite(ours: StableDiffusion, tmp_path: Path) -> None:
    for bad in (float("nan"), float("inf")):
        tensors = {**pair(), f"{STEM}.lora_up.weight": torch.full((64, 2), bad)}
        refuse(ours, save(tensors, tmp_path / "a.safetensors"), NumericalError, "lora_up.weight holds NaN or infinity")


def test_what_overflows_changes_nothing(tmp_path: Path) -> None:
    sd = small_pipeline().to(dtype=torch.float16)
    tensors = pair(STEM.replace("to_q", "to_k")) | {name: 300 * tensor for name, tensor in pair().items()}
    path = save(tensors, tmp_path / "a.safetensors")
    refuse(sd, path, NumericalError, "not finite in torch.float16 with this LoRA at scale 1.0")
    lora = weights_loader.load_lora(sd, path, 0.01)
    merged = bits(sd)
    with pytest.raises(NumericalError):
        lora.scale = 2
    assert same(bits(sd), merged)
    assert lora.scale == 0.01


def test_other_families_are_named(ours: StableDiffusion, tmp_path: Path) -> None:
    attn2 = STEM.replace("attn1_to_q", "attn2_to_k")
    te = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    for tensors, family in (
        (pair(attn2, columns=768), r"for SD 1.x \(it reads text vectors of 768\)"),
        (pair(attn2, columns=1024), "for SD 2.x"),
        (pair(attn2, columns=2048), "for SDXL .*2048"),
        (pair(attn2, columns=1280), "for the SDXL refiner"),
        (pair(te, columns=1024), "for SD 2.x"),
        (pair(te.replace("te_", "te2_"), columns=1280), r"for SDXL \(it changes two text encoders\)"),
        ({"unet:6:down": noise(1, 768), "unet:6:up": noise(64, 1)}, "for SD 1.x"),
        ({f"unet.{BLOCK}.attn2.processor.to_v_lora.{half}.weight": noise(1, 1024) for half in HALVES}, "for SD 2.x"),
    ):  # fmt: skip
        path = save({**pair(), **tensors}, tmp_path / "a.safetensors")
        refuse(
            ours, path, MismatchError, f"is a LoRA {family}.*expected one for models with text vectors of 64.*nothing"
        )


def test_official_lists_on_another_family(shared_data: Path) -> None:
    models = {"SD 1.x": official(shared_data, "sd15"), "SD 2.x": official(shared_data, "sd2_base")}
    models["SDXL"] = official(shared_data, "sdxl_base")
    for name in ("diffusers_old_procattn_sd15_rank4", "diffusers_peft_sd15_attn_rank4", "kohya_sd15_rank4",
                 "kohya_sd15_locon_rank4", "lcm_lora_sd15_rank64", "real_lora_disney", "kohya_sdxl_rank4"):  # fmt: skip
        shapes, made_for = read_adapter(shared_data, name), "SDXL" if "sdxl" in name else "SD 1.x"
        for family, parts in models.items():
            if family != made_for:
                with pytest.raises(MismatchError, match=f"is a LoRA for {made_for} .* expected one for {family} "):
                    plan(shapes, {}, parts, Path(name))


def test_other_files(ours: StableDiffusion, tmp_path: Path) -> None:
    word = save({"<cat>": noise(64)}, tmp_path / "word.safetensors")
    refuse(ours, word, MismatchError, "textual-inversion embedding.*load_embedding or --embedding")
    model = save({"conv_in.weight": noise(2, 2)}, tmp_path / "model.safetensors")
    refuse(ours, model, MismatchError, "is in no known format, expected a LoRA; it holds 'conv_in.weight'")
    refuse(ours, tmp_path / "nothing", InputError, "no such file")


def test_settings_of_peft_that_are_refused(sd1: Saved, tmp_path: Path) -> None:
    changes = draw({"unet": sd1.oracle.unet})
    sd = weights_loader.load(sd1.folder)
    for i, (settings, message) in enumerate(
        [
            ({"use_dora": True}, "adapter_config.json describes a DoRA adapter"),
            ({"peft_type": "LOHA"}, "describes a 'LOHA' adapter"),
            ({"lora_alpha": "4"}, "alpha is '4'"),
            ({"lora_alpha": True}, "alpha is True"),
            ({"lora_alpha": 4, "alpha_pattern": {"(a+)+b": 4}}, "alpha_pattern"),
            ({"lora_alpha": 4, "alpha_pattern": [1]}, "alpha_pattern"),
        ]
    ):
        refuse(sd, write_peft_folder(changes, tmp_path / str(i), **settings), MismatchError, message)
    for header in ("{", "[1]"):
        path = save(pair(), tmp_path / "a.safetensors", {"lora_adapter_metadata": header})
        refuse(sd, path, FileFormatError, "lora_adapter_metadata")


def test_numbers_that_mean_other_layers(sd1: Saved, tmp_path: Path) -> None:
    changes = draw({"unet": sd1.oracle.unet}, is_cloneofsimo)
    path = write_cloneofsimo(changes, tmp_path / "a.safetensors")
    kinds = json.dumps(["CrossAttention", "Attention", "GEGLU", "ResnetBlock2D"])
    save(safetensors.torch.load_file(path), path, {"unet": kinds})
    refuse(weights_loader.load(sd1.folder), path, MismatchError, "numbers the layers of .*ResnetBlock2D")


def test_words_beside_a_lora_are_reported(sd1: Saved, tmp_path: Path) -> None:
    words = {"<s1>": noise(64), "<s2>": noise(64)}
    path = write_cloneofsimo(draw(oracles(sd1), is_cloneofsimo), tmp_path / "a.safetensors", words)
    sd = weights_loader.load(sd1.folder)
    with pytest.warns(UserWarning, match="also holds the words <s1>, <s2>; load_embedding adds them"):
        weights_loader.load_lora(sd, path)
    with pytest.warns(UserWarning, match="also holds a LoRA; load_lora"):
        assert weights_loader.load_embedding(sd, path) == ["<s1>", "<s2>"]


def test_words_that_are_bundled_with_a_lora(sd1: Saved, tmp_path: Path) -> None:
    path = write_kohya(draw(oracles(sd1)), tmp_path / "a.safetensors")
    words = {"bundle_emb.candy.emb_params": noise(2, 64), "bundle_emb.a.b.string_to_param.*": noise(1, 64)}
    save({**safetensors.torch.load_file(path), **words}, path)
    sd = weights_loader.load(sd1.folder)
    with pytest.warns(UserWarning, match="also holds the words a.b, candy; load_embedding adds them"):
        assert weights_loader.load_lora(sd, path).layers
    with pytest.warns(UserWarning, match="also holds a LoRA; load_lora"):
        assert weights_loader.load_embedding(sd, path) == ["a.b", "candy"]
    assert sd.tokenizer.added == ["a.b", "candy", "candy_1"]
    assert torch.equal(sd.text_encoder.token_embedding.weight[-2:], words["bundle_emb.candy.emb_params"])


@pytest.mark.parametrize("write", [write_peft, write_processors, write_kohya, write_diffusers, write_cloneofsimo])
def test_loading_one_as_a_model_names_load_lora(sd1: Saved, tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(draw(oracles(sd1), is_attention), tmp_path / "a.safetensors")
    with pytest.raises(MismatchError, match=r"is a LoRA, expected .* add it with weights_loader\.load_lora or --lora"):
        weights_loader.load(path)
