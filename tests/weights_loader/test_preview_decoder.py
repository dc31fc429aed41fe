"""Preview decoders from folders that diffusers wrote, from the hub and inside models; what does not fit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.local_hub import LocalHub
from support.saved_models import copy, edit, edit_json
from support.small import randomise, small_pipeline

import weights_loader
from minisd.configs import TAESD, PreviewDecoderConfig
from minisd.errors import HubOffline, InputError, MinisdError, MismatchError
from minisd.models import PreviewDecoder
from weights_loader.names import diffusers as names
from weights_loader.names import expand
from weights_loader.preview_configs import preview_config, preview_json

pytest.importorskip("diffusers")
from diffusers import AutoencoderTiny

CONFIG = PreviewDecoderConfig(width=8, blocks_per_level=(1, 2))
WEIGHTS = "diffusion_pytorch_model.safetensors"
LATENTS = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AutoencoderTiny as diffusers saves it, with its encoder."""
    folder = tmp_path_factory.mktemp("tiny") / "saved"
    randomise(AutoencoderTiny.from_config(preview_json(CONFIG))).save_pretrained(folder)
    return folder


def refusal(source: str | Path, kind: type[MinisdError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        weights_loader.load_preview_decoder(source)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_what_diffusers_saved(saved: Path) -> None:
    decoder = weights_loader.load_preview_decoder(saved)
    assert decoder.config == CONFIG
    assert not decoder.training
    expected = AutoencoderTiny.from_pretrained(saved).decode(LATENTS).sample
    assert (decoder(LATENTS) - expected).abs().max() <= 1e-5
    half = weights_loader.load_preview_decoder(str(saved), dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


def test_the_decoder_alone_is_enough_and_no_part_of_it_may_lack(saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, tmp_path / "m")
    edit(folder / WEIGHTS, lambda tensors: {k: v for k, v in tensors.items() if not k.startswith("encoder.")})
    weights_loader.load_preview_decoder(folder)
    edit(folder / WEIGHTS, lambda tensors: {k: v for k, v in tensors.items() if k != "decoder.layers.2.conv.4.bias"})
    refusal(folder, MismatchError, r"1 missing: decoder\.layers\.2\.conv\.4\.bias")
    edit(folder / WEIGHTS, lambda tensors: tensors | {"decoder.layers.99.weight": torch.ones(1)})
    refusal(folder, MismatchError, r"1 unexpected: decoder\.layers\.99\.weight")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 16}, r"of another shape: decoder\.layers\.0\.weight"),
        ({"decoder_block_out_channels": [8, 16]}, r"has decoder_block_out_channels \[8, 16\], expected 2 equal"),
        ({"decoder_block_out_channels": [8]}, "expected 2 equal"),
        ({"num_decoder_blocks": 3}, "has num_decoder_blocks 3, expected a list"),
        ({"num_decoder_blocks": [0, 1]}, "has num_decoder_blocks"),
        ({"num_decoder_blocks": [200, 1]}, "describes 201 blocks"),
        ({"act_fn": "mish"}, "has act_fn 'mish', expected 'relu'"),
        ({"scaling_factor": 0.18215}, "has scaling_factor 0.18215, expected 1.0"),
        ({"upsampling_scaling_factor": 4}, "has upsampling_scaling_factor 4, expected 2"),
    ],
)
def test_a_config_that_does_not_fit(changes: dict[str, object], message: str, saved: Path, tmp_path: Path) -> None:
    folder = copy(saved, tmp_path / "m")
    edit_json(folder / "config.json", **changes)
    refusal(folder, MismatchError, message)


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for source in ("nonsense", "x" * 5000, tmp_path / "absent", str(tmp_path / "file")):
        refusal(source, InputError, "is not a folder, expected 'sticker'")
    refusal(tmp_path, MismatchError, r"has no config\.json")


def test_taesd_as_it_is_published(shared_data: Path) -> None:
    """Its config, and each name and shape of its decoder's tensors."""
    stored = json.loads((shared_data / "manifests" / "taesd.vae.diffusers.json").read_text())
    config = preview_config(json.loads((shared_data / "configs" / "taesd" / "vae.json").read_text()))
    assert config == TAESD
    with torch.device("meta"):
        ours = PreviewDecoder(config).state_dict()
    sources = expand(names.preview_decoder(config), ours)
    decoder = {name: tuple(shape) for name, shape in stored.items() if name.startswith("decoder.")}
    assert {source.name: tuple(ours[name].shape) for name, source in sources.items()} == decoder


@torch.no_grad()
def test_models_keep_their_preview_decoder(tmp_path: Path) -> None:
    sd = small_pipeline()
    folder = weights_loader.save(sd, tmp_path / "model")
    assert not (folder / "preview").exists()
    assert weights_loader.load(folder).preview_decoder is None
    refusal(folder, MismatchError, "is a model without a preview decoder")
    (folder / "preview").mkdir()  # somebody's images
    assert weights_loader.load(folder).preview_decoder is None

    sd.preview_decoder = randomise(PreviewDecoder(CONFIG))
    weights_loader.save(sd, folder, dtype=torch.float16, overwrite=True)
    again = weights_loader.load(folder)
    assert again.preview_decoder is not None
    expected = sd.preview(LATENTS)
    assert expected.std() > 0.01
    assert (again.preview(LATENTS) - expected).abs().max() < 0.01
    alone = weights_loader.load_preview_decoder(folder)
    assert torch.equal(alone.conv_in.weight, again.preview_decoder.conv_in.weight)

    edit(folder / "preview" / WEIGHTS, lambda tensors: {**dict(list(tensors.items())[1:])})
    with pytest.raises(MismatchError, match="preview does not fit its network; 1 missing"):
        weights_loader.load(folder)
    sd.preview_decoder = None
    weights_loader.save(sd, folder, overwrite=True)
    assert not (folder / "preview").exists()


def test_diffusers_ignores_the_preview_decoder_of_a_model(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    sd = small_pipeline()
    sd.preview_decoder = randomise(PreviewDecoder(CONFIG))
    StableDiffusionPipeline.from_pretrained(weights_loader.save(sd, tmp_path / "model"), local_files_only=True)


def test_from_the_hub_and_from_its_cache(saved: Path, tmp_path: Path) -> None:
    code = """
import sys, weights_loader
offline = sys.argv[1] == "offline"
print(weights_loader.load_preview_decoder("me/tiny", offline=offline, progress=False).config)
"""

    def load(how: str) -> subprocess.CompletedProcess[str]:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / how), "PYTHONPATH": ":".join(sys.path)}
        environment |= {"HF_HUB_DISABLE_XET": "1"}
        return subprocess.run(
            [sys.executable, "-c", code, how], env=environment, capture_output=True, text=True, check=False
        )

    with LocalHub() as hub:
        hub.repos["me/tiny"] = {path.name: path.read_bytes() for path in saved.iterdir()} | {"taesd.pth": b"other"}
        found = load("online")
        assert found.stdout == f"{CONFIG}\n", found.stderr
        assert "taesd.pth" not in {file for _, _, file, _ in hub.log}
        shutil.move(tmp_path / "online", tmp_path / "offline")
        requests = len(hub.log)
        assert load("offline").stdout == f"{CONFIG}\n"
        assert len(hub.log) == requests
        shutil.rmtree(tmp_path / "offline")
        assert HubOffline.__name__ in load("offline").stderr
