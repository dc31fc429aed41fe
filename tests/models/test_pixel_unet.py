"""The UNet that reads no text against UNet2DModel: several shapes, the first networks' small differences."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.small import randomise, unet_like

from minisd.errors import MismatchError
from minisd.models import UNet
from minisd.models.unet import sinusoids
from weights_loader.loading import load_network
from weights_loader.pixel_configs import pixel_unet_config, pixel_unet_json

diffusers = pytest.importorskip("diffusers")

FIRST = {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6}
SHAPES: dict[str, dict[str, Any]] = {
    "butterflies": {"block_out_channels": (16, 32, 32), "attention": "paa", "attention_head_dim": 8},
    "digits": {"block_out_channels": (16, 24), "attention": "ap", "in_channels": 5, "out_channels": 1},
    "google": {"block_out_channels": (16, 32, 48), "attention": "pap", "attention_head_dim": None, **FIRST},
    "classes": {"block_out_channels": (32, 16), "attention": "pa", "layers_per_block": 1, "num_class_embeds": 7},
}


def oracle(shape: str, gain: float = 1.0) -> Any:
    others = dict(SHAPES[shape])
    attends = [letter == "a" for letter in others.pop("attention")]
    network = diffusers.UNet2DModel(
        sample_size=16,
        norm_num_groups=8,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        **others,
    )
    return randomise(network, gain=gain)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("gain", [1.0, 0.03])
@pytest.mark.parametrize(("scale", "size"), [(1.0, (16, 16)), (1e-3, (8, 24))])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_network(shape: str, scale: float, size: tuple[int, int], gain: float) -> None:
    theirs = oracle(shape, gain)
    ours = unet_like(theirs)
    x, t = scale * noise(2, ours.config.in_channels, *size), torch.tensor([601, 3])
    labels = torch.tensor([2, 6]) if ours.config.class_count else None
    expected = theirs(x, t, class_labels=labels).sample
    got = ours(x, t, noise_level=labels)
    assert 1e-6 < expected.abs().max() < 1e4
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
def test_files_of_the_reference_load_and_configs_go_both_ways(shape: str, tmp_path: Path) -> None:
    theirs = oracle(shape)
    theirs.save_pretrained(tmp_path / "unet")
    ours = load_network(tmp_path, UNet, "unet")
    assert pixel_unet_config(pixel_unet_json(ours.config)) == ours.config
    x = noise(1, ours.config.in_channels, 16, 16)
    labels = torch.tensor([4]) if ours.config.class_count else None
    with torch.no_grad():
        expected = theirs(x, 10, class_labels=labels).sample
        assert (ours(x, 10, noise_level=labels) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_files_of_before_2023(tmp_path: Path) -> None:
    """The first files on the hub have other names for the attention."""
    theirs = oracle("google")
    theirs.save_pretrained(tmp_path / "unet")
    new = load_network(tmp_path, UNet, "unet").state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        return next((name.replace(a, b) for a, b in old.items() if "attentions" in name and a in name), name)

    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({renamed(name): tensor.contiguous() for name, tensor in theirs.state_dict().items()}, file)
    again = load_network(tmp_path, UNet, "unet").state_dict()
    assert all(torch.equal(again[name], new[name]) for name in new)


def test_sinusoids_of_the_first_networks() -> None:
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0.0, 7, 999])
    expected = get_timestep_embedding(t, 32, flip_sin_to_cos=False, downscale_freq_shift=1)
    assert torch.allclose(sinusoids(t, 32, original_ddpm=True), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"freq_shift": 1}, "freq_shift"),
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "mirror image"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "mirror image"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"sample_size": [32, 16, 8]}, "sample_size"),
        ({"add_attention": False}, "add_attention"),
        ({"dropout": 0.1}, "dropout"),
    ],
)
def test_other_networks_are_refused(change: dict[str, Any], said: str) -> None:
    config = pixel_unet_json(unet_like(oracle("digits")).config)
    with pytest.raises(MismatchError, match=said):
        pixel_unet_config({**config, **change})
