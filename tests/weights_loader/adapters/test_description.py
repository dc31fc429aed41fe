"""`inspect` names adapters: format, rank or vectors, family."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

import weights_loader

DOWN, UP = (4, 768), (320, 4)
WORD = "textual-inversion embedding in the format of"
FILES = {
    "kohya": (
        {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": DOWN,
         "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": UP,
         "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.alpha": ()},
        "a LoRA in the format of kohya, rank 4, 1 layers", "SD 1.x"),
    "PEFT": (
        {f"base_model.model.x.{i}.attn2.to_v.lora_{factor}.weight": shape
         for i in (8, 16) for factor, shape in (("A", (i, 2048)), ("B", (640, i)))},
        "a LoRA in the format of PEFT, ranks 8 to 16, 2 layers", "SDXL"),
    "diffusers": (
        {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight": (4, 1024),
         "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.up.weight": UP},
        "a LoRA in the format of diffusers, rank 4, 1 layers", "SD 2.x"),
    "cloneofsimo": (
        {f"unet:{i}:{factor}": shape for i in (0, 6) for factor, shape in (("down", DOWN), ("up", UP))},
        "a LoRA in the format of cloneofsimo, rank 4, 2 layers", "SD 1.x"),
    "word": ({"<candy>": (2, 768)}, f"a {WORD} diffusers, 2 vectors, <candy>", "SD 1.x"),
    "vector": ({"cat-toy": (1024,)}, f"a {WORD} diffusers, 1 vector, cat-toy", "SD 2.x"),
    "A1111": ({"emb_params": (3, 768)}, f"a {WORD} A1111, 3 vectors", "SD 1.x"),
    "SDXL": ({"clip_l": (5, 768), "clip_g": (5, 1280)}, f"a {WORD} SDXL, 5 vectors", "SDXL"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_adapters_are_named(tmp_path: Path, name: str) -> None:
    shapes, layout, family = FILES[name]
    tensors = {key: torch.zeros(shape) for key, shape in shapes.items()}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    found = weights_loader.inspect(tmp_path / "a.safetensors")
    assert (found.layout, found.family) == (layout, family)
    assert "predicts" not in str(found)


def test_adapters_of_the_embedded_model() -> None:
    folder = weights_loader.resolve("sticker") / "adapters"
    assert "a LoRA in the format of PEFT, rank" in str(weights_loader.inspect(folder / "night.safetensors"))
    assert "1 vector, <candy>" in str(weights_loader.inspect(folder / "candy.safetensors"))
