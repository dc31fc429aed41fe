"""Networks of official size, random weights: the reference's image, one file, the memory for loading."""

import gc
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from support.small import merges, write_tokenizer

import weights_loader
from minisd.tokenizer import clip_vocabulary

pytestmark = pytest.mark.slow
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

FAMILIES: dict[str, dict[str, Any]] = {
    "sd15": {
        "unet": {"attention_head_dim": 8, "cross_attention_dim": 768},
        "text": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "hidden_act": "quick_gelu",
            "projection_dim": 768,
        },
        "prediction_type": "epsilon",
    },
    "sd21": {
        "unet": {
            "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
        "text": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
            "projection_dim": 512,
        },
        "prediction_type": "v_prediction",
    },
}


def write_oracle(folder: Path, family: str) -> np.ndarray:
    """A full-size pipeline of the reference, saved; its image of noise (1, 4, 16, 16)."""
    facts = FAMILIES[family]
    torch.manual_seed(0)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(
        write_tokenizer(folder.parent / "vocabulary", family == "sd21")
    )
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(clip_vocabulary(merges())), bos_token_id=0, eos_token_id=2, **facts["text"]
        )
    )
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=facts["prediction_type"],
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    oracle = diffusers.StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(sample_size=64, **facts["unet"]).eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    oracle.set_progress_bar_config(disable=True)
    oracle.save_pretrained(folder)
    return oracle("a red cat", latents=noise(), height=128, width=128, num_inference_steps=2, output_type="np").images


def noise() -> torch.Tensor:
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))


def picture(source: Path, **arguments: Any) -> np.ndarray:
    sd = weights_loader.load(source, **arguments)
    return sd("a red cat", latents=noise(), num_inference_steps=2, output_type="np").images


# The peaks of all memory (VmRSS) and of the process's own (RssAnon), while loading and while every weight is
# read: sampled, because the kernel keeps the peak of the sum only.
MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
import weights_loader
from minisd.models import UNet
from weights_loader.loading import load_network

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = dict(line.split(":") for line in lines if line.startswith(("VmRSS", "RssAnon")))
    return {key: int(value.split()[0]) * 1024 for key, value in sizes.items()}

before, peak, done = resident(), resident(), False
def watch():
    while not done:
        for key, value in resident().items():
            peak[key] = max(peak[key], value)
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
unet = load_network(Path(sys.argv[1]), UNet, "unet")
total = sum(float(p.sum()) for p in unet.parameters())
done = True
thread.join()
size = sum(p.numel() * p.element_size() for p in unet.parameters())
print((peak["VmRSS"] - before["VmRSS"]) / size, (peak["RssAnon"] - before["RssAnon"]) / size)
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_full_size(tmp_path: Path, family: str) -> None:
    """Folder and single file give the reference's image; loading takes the memory of the weights once."""
    folder, single = tmp_path / "model", tmp_path / "single.safetensors"
    try:
        expected = write_oracle(folder, family)
        gc.collect()
        assert expected.std() > 0.01
        assert np.abs(picture(folder) - expected).max() < 1 / 255

        run = [sys.executable, "-c", MEASURE, str(folder)]
        measured = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        all_memory, own = (float(number) for number in measured.split())
        assert all_memory <= 1.05  # mapped and touched: once
        assert own <= 0.05  # nothing copied

        sd = weights_loader.load(folder)
        weights_loader.save(sd, single, layout="ldm", dtype=torch.bfloat16)
        tokenizer = sd.tokenizer
        shutil.rmtree(folder)
        # bfloat16 halves the disk space; the expected image is that of the rounded weights
        for network in (sd.unet, sd.vae, sd.text_encoder):
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.copy_(parameter.bfloat16())
        rounded = sd("a red cat", latents=noise(), num_inference_steps=2, output_type="np").images
        del sd, network, parameter
        gc.collect()
        assert np.abs(picture(single, tokenizer=tokenizer) - rounded).max() < 1 / 255
        with safetensors.safe_open(single, "pt") as file:
            names = list(file.keys())
        assert sum(name.startswith("model.diffusion_model.") for name in names) == 686
        assert sum(name.startswith("first_stage_model.") for name in names) == 248
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        single.unlink(missing_ok=True)
