"""Training at official size: the command, on a model in small."""

from pathlib import Path

import pytest

import weights_loader
from minisd.configs import CLIPTextConfig, UNetConfig, VAEConfig
from tools import official_size


def test_each_stage_gets_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(official_size, "SD1_TEXT", CLIPTextConfig(99, width=32, layers=1, heads=1, mlp_width=32))
    monkeypatch.setattr(official_size, "SD1_VAE", VAEConfig(channels=(32, 32), layers_per_block=1, sample_size=32))
    unet = UNetConfig(
        channels=(32, 64), depths=(1, 0), heads=(1, 2), layers_per_block=1, context_width=32,
        only_cross_attention=(False, False),
    )  # fmt: skip
    monkeypatch.setattr(official_size, "SD1_UNET", unet)
    official_size.main(
        [str(tmp_path), "--pixels", "32", "--steps", "1", "--stages", "lora, text encoder", "dreambooth"]
    )
    printed = capfd.readouterr().out.splitlines()
    assert "| 32 x 32 pixels | steps | time, with loading and saving | peak memory |" in printed
    assert [line.split("|")[1].strip() for line in printed[-2:]] == ["lora, text encoder", "dreambooth"]
    assert float(printed[-1].split("|")[4].split()[0]) > 0.1
    assert weights_loader.load(tmp_path / "dreambooth" / "dreambooth").unet.config.sample_size == 16
    with pytest.raises(RuntimeError, match="ended with code 2"):
        official_size.measured(["train", "lora", str(tmp_path / "x")])
