"""Samplers that minisd lacks, partial variants, statistics of autoencoders, marks and leftovers of single files."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support.saved_models import UNET_FILE, VAE_FILE, edit_json, refusal
from support.small import small_pipeline, small_tokenizer
from torch import Tensor

import weights_loader
from minisd.configs import VAEConfig
from minisd.errors import InputError, MismatchError
from minisd.models import VAE
from minisd.pipeline import StableDiffusion
from minisd.schedulers import DDIM, DPMSolverMultistep, EulerAncestral, Heun
from weights_loader.formats.weight_file import open_weights

EMPTY = torch.tensor([])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_loader.save(small_pipeline(), tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def model(folder: Path, tmp_path: Path) -> Path:
    """A copy to edit."""
    return weights_loader.save(weights_loader.load(folder), tmp_path / "m")


def single(path: Path, more: dict[str, Tensor] | None = None, metadata: Any = None, prefix: str = "") -> Path:
    """The small model as others publish it: one file, without the configs, with more tensors."""
    weights_loader.save(small_pipeline(), path, layout="ldm", overwrite=True)
    tensors = {**safetensors.torch.load_file(path), **(more or {})}
    safetensors.torch.save_file({prefix + name: tensor for name, tensor in tensors.items()}, path, metadata)
    return path


def load(path: Path, **arguments: Any) -> StableDiffusion:
    return weights_loader.load(path, tokenizer=small_tokenizer(), **arguments)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("DEISMultistepScheduler", DPMSolverMultistep),
        ("KDPM2DiscreteScheduler", Heun),
        ("KDPM2AncestralDiscreteScheduler", EulerAncestral),
        ("MagicScheduler", DPMSolverMultistep),
    ],
)
def test_another_sampler_takes_the_place(model: Path, name: str, kind: type) -> None:
    edit_json(model / "scheduler/scheduler_config.json", _class_name=name, solver_order=3, solver_type="logrho")
    with pytest.warns(UserWarning, match=f"minisd has no '{name}'; {kind.__name__} takes its place"):
        sd = weights_loader.load(model)
    assert type(sd.scheduler) is kind
    assert sd.scheduler.schedule == small_pipeline().scheduler.schedule


@pytest.mark.parametrize(
    ("key", "value"),
    [("solver_order", 3), ("euler_at_final", True), ("final_sigmas_type", "sigma_min"), ("algorithm_type", "deis")],
)
def test_options_that_a_sampler_lacks(model: Path, key: str, value: object) -> None:
    path = model / "scheduler/scheduler_config.json"
    edit_json(path, _class_name="DPMSolverMultistepScheduler", **{key: value})
    with pytest.warns(UserWarning, match=f"{key} .*; DPMSolverMultistep draws without"):
        weights_loader.load(model)
    edit_json(path, **{key: [value]})
    refusal(model, MismatchError, key)


def test_a_variant_of_some_parts(model: Path) -> None:
    path = model / UNET_FILE
    path.rename(path.with_suffix(".fp16.safetensors"))
    with pytest.warns(UserWarning, match="vae has no weights of variant fp16; diffusion_pytorch_model.safetensors is"):
        weights_loader.load(model, variant="fp16")
    refusal(model, MismatchError, "pass variant='fp16'")
    refusal(model, InputError, "no weights of variant 'fp61', expected fp16", variant="fp61")


def test_statistics_of_the_autoencoder_are_used_in_both_directions() -> None:
    """The formulas of the reference's SDXL pipelines: (z - mean) factor / std, and z std / factor + mean."""
    mean, std, factor = (1.5, -0.5, 0.0, 2.0), (4.0, 0.5, 1.0, 3.0), 0.5
    config = VAEConfig(channels=(32,), scaling_factor=factor, latents_mean=mean, latents_std=std)
    vae, z = VAE(config), torch.linspace(-2, 2, 2 * 4 * 9).reshape(2, 4, 3, 3)
    m, s = (torch.tensor(each).view(1, 4, 1, 1) for each in (mean, std))
    torch.testing.assert_close(vae.scaled(z), (z - m) * factor / s)
    torch.testing.assert_close(vae.raw(z), z * s / factor + m)


def test_statistics_travel_with_the_model(model: Path, tmp_path: Path) -> None:
    pixels = [weights_loader.load(model).decode(torch.zeros(1, 4, 8, 8))]
    edit_json(model / "vae/config.json", latents_mean=[1.0] * 4, latents_std=[2.0] * 4)
    sd = weights_loader.load(model)
    again = weights_loader.load(weights_loader.save(sd, tmp_path / "again"))
    assert again.vae.config == sd.vae.config
    pixels += [sd.decode(torch.zeros(1, 4, 8, 8)), again.decode(torch.zeros(1, 4, 8, 8))]
    assert (pixels[0] - pixels[1]).abs().max() > 0.01
    torch.testing.assert_close(pixels[1], pixels[2], atol=1e-5, rtol=0)  # two files: kernels may round differently
    edit_json(model / "vae/config.json", latents_std=None)
    refusal(model, MismatchError, "latents_mean")


def test_oblong_pictures(model: Path) -> None:
    edit_json(model / "unet/config.json", sample_size=[8, 16])
    sd = weights_loader.load(model)
    assert sd("a cat", num_inference_steps=1, seed=0).images[0].size == (32, 16)


def test_marks_of_v_prediction(tmp_path: Path) -> None:
    sd = load(single(tmp_path / "a.safetensors", {"v_pred": EMPTY, "ztsnr": EMPTY}))
    assert (type(sd.scheduler), sd.scheduler.timestep_spacing) == (DDIM, "trailing")
    assert sd.scheduler.schedule.prediction_type == "v_prediction"
    assert sd.scheduler.schedule.rescale_betas_zero_snr
    path = single(tmp_path / "b.safetensors", metadata={"modelspec.prediction_type": "v"})
    assert load(path).scheduler.schedule.prediction_type == "v_prediction"
    assert load(path, prediction_type="epsilon").scheduler.schedule.prediction_type == "epsilon"
    refusal(single(tmp_path / "c.safetensors", {"edm_mean": EMPTY}), MismatchError, "edm_mean: .* levels of EDM")
    for more, said in (({}, "banana"), ({"v_pred": EMPTY}, "epsilon")):
        path = single(tmp_path / "d.safetensors", more, {"modelspec.prediction_type": said})
        refusal(path, MismatchError, f"modelspec.prediction_type '{said}'")


def test_leftovers_are_counted(tmp_path: Path) -> None:
    names = ("logvar", "mystery.weight", "safety_checker.concept_embeds", "optimizer.0")
    names += ("cond_stage_model.transformer.text_projection.weight",)
    unused = ("first_stage_model.loss.logvar",)  # every file has such tensors of the autoencoder's training
    path = single(tmp_path / "m.safetensors", {name: torch.zeros(2, 2) for name in (*names, *unused)})
    with pytest.warns(
        UserWarning, match="5 tensors that no network reads were not loaded: .*'logvar', 'mystery.weight'"
    ):
        load(path)


@pytest.mark.parametrize("prefix", ["state_dict.", "foo.bar."])
def test_any_prefix_of_a_whole_model(tmp_path: Path, prefix: str) -> None:
    with pytest.warns(UserWarning, match=f"The prefix '{prefix}' was removed"):
        load(single(tmp_path / "m.safetensors", prefix=prefix))


@pytest.mark.parametrize("keys", [("model",), ("state_dict", "state_dict"), ("module", "model", "state_dict")])
def test_wrappers_in_checkpoints(tmp_path: Path, keys: tuple[str, ...]) -> None:
    value: Any = safetensors.torch.load_file(single(tmp_path / "m.safetensors"))
    names = set(value)
    for key in reversed(keys):
        value = {key: value, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}, "epoch": 3}
    torch.save(value, tmp_path / "m.ckpt")
    assert set(open_weights(tmp_path / "m.ckpt").shapes) == names


SPELLINGS = {"q": "to_q", "k": "key", "v": "v", "proj_out": "to_out.0", "norm": "group_norm"}


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_spellings_of_the_autoencoders_attention(tmp_path: Path, layout: str) -> None:
    """Names of three times and matrices or 1x1 convolutions, in one file."""
    target = tmp_path / ("m.safetensors" if layout == "ldm" else "m")
    weights_loader.save(small_pipeline(), target, layout=layout)
    path, block = (target, ".attn_1.") if layout == "ldm" else (target / VAE_FILE, ".attentions.0.")
    old = {"to_q": "q", "to_k": "key", "to_v": "to_v", "to_out.0": "proj_attn", "group_norm": "norm"}
    tensors, changed = safetensors.torch.load_file(path), {}
    for name, tensor in tensors.items():
        stem, found, rest = name.partition(block)
        layer, _, kind = rest.rpartition(".")
        if found:
            name = f"{stem}{block}{(SPELLINGS if layout == 'ldm' else old)[layer]}.{kind}"
            if kind == "weight" and tensor.ndim > 1 and "q" in layer:
                tensor = tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor[:, :, None, None]
        changed[name] = tensor.contiguous()
    assert changed.keys() != tensors.keys()
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(changed, path, metadata)
    latents = torch.linspace(-1, 1, 4 * 64).reshape(1, 4, 8, 8)
    assert torch.equal(load(target).decode(latents), small_pipeline().decode(latents))


def test_widths_that_the_norms_do_not_divide(tmp_path: Path) -> None:
    """Sizes from shapes are checked like those of a config."""
    path = single(tmp_path / "m.safetensors")
    tensors = safetensors.torch.load_file(path)
    tensors["first_stage_model.encoder.down.0.block.0.conv1.weight"] = torch.zeros(24, 24, 3, 3)
    safetensors.torch.save_file(tensors, path)
    refusal(path, MismatchError, r"the VAE of this file.* has norm_groups 32, expected .* \(24, 64\)")
    del tensors["model.diffusion_model.out.2.weight"]
    safetensors.torch.save_file(tensors, path)
    refusal(path, MismatchError, r"no tensor out\.2\.weight")


def test_all_parts_that_do_not_fit_are_named(model: Path) -> None:
    edit_json(model / "unet/config.json", cross_attention_dim=48)
    edit_json(model / "vae/config.json", latent_channels=5)
    refusal(model, MismatchError, "vae does not fit.*unet does not fit")


def test_more_layers_than_the_file_can_hold(model: Path) -> None:
    edit_json(model / "unet/config.json", layers_per_block=200)
    refusal(model, MismatchError, r"the config describes 1,[\d,]+ blocks of layers and the file holds")
    assert json.loads((model / "unet/config.json").read_text())["layers_per_block"] == 200
