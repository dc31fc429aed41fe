"""A LoRA of the text encoders beside that of the UNet: trained, saved, loaded, and its gradients."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.runs import steps_of
from support.small import small_pipeline
from support.training_images import training_images

import weights_loader
from minisd.adapters import Lora
from minisd.errors import InputError
from minisd.training import fine_tuning
from minisd.training.fine_tuning import Settings
from minisd.training.full_fine_tuning import train_full
from minisd.training.lora import train_lora


def test_a_lora_of_the_text_encoder(tmp_path: Path) -> None:
    """It is trained beside the UNet's, saved and loaded again; nothing of the model itself changes."""
    sd, run = small_pipeline(), {"seed": 1, "output_type": "pt", "num_inference_steps": 2}
    before, states = sd("a cat", **run).images, sd.text_encoder(sd.tokenizer("a cat"))
    settings = Settings(batch=2, learning_rate=0.05, text_encoder=True)
    drawn: list[torch.Tensor] = []
    changes = train_lora(
        sd, training_images("a cat"), steps_of(tmp_path / "run.pt", 4), 2, settings,
        sample=lambda sd: drawn.append(sd("a cat", **run).images),
    )  # fmt: skip
    assert torch.equal(sd("a cat", **run).images, before)
    (of_text,) = changes.of_encoders
    assert all(part.up.abs().max() > 0 for part in of_text.parts.values())
    assert len(of_text.parts) == 4 * sd.text_encoder.config.layers

    path = tmp_path / "lora.safetensors"
    weights_loader.save_lora(changes.parts, sd.unet, path, encoders=[(sd.text_encoder, of_text.parts)])
    names = load_file(path)
    assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight" in names
    lora = weights_loader.load_lora(sd, path)
    assert lora.layers == len(changes.parts) + len(of_text.parts)
    assert torch.allclose(sd("a cat", **run).images, drawn[-1], atol=1e-5)
    assert (sd.text_encoder(sd.tokenizer("a cat")) - states).abs().max() > 1e-3
    lora.remove()
    assert torch.equal(sd("a cat", **run).images, before)
    with pytest.raises(InputError, match="expected weights of the text encoder's matrices"):
        weights_loader.save_lora({}, sd.unet, tmp_path / "x", encoders=[(sd.text_encoder, changes.parts)])


def test_the_text_encoders_changes_get_the_gradients_of_merged_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[Callable[[torch.Generator, float], torch.Tensor]] = []
    monkeypatch.setattr(fine_tuning, "train", lambda model, loss, *others: losses.append(loss) or model)
    settings, sd = Settings(batch=2, text_encoder=True), small_pipeline()
    changes = train_lora(sd, training_images("a cat"), steps_of(tmp_path / "run.pt", 1), 2, settings)
    for each in (*changes.up, *changes.of_encoders[0].up):
        torch.nn.init.normal_(each, std=0.1, generator=torch.Generator().manual_seed(len(each)))
    losses[0](torch.Generator().manual_seed(3), 0.0).backward()
    merged = small_pipeline()
    Lora(changes.by_layer(merged))
    train_full(merged, training_images("a cat"), steps_of(tmp_path / "full.pt", 1), settings)
    weight = merged.text_encoder.requires_grad_(True).layers[0].attention.q.weight
    losses[1](torch.Generator().manual_seed(3), 0.0).backward()
    place = changes.of_encoders[0].names.index("layers.0.attention.q.weight")
    down, up = changes.of_encoders[0].down[place], changes.of_encoders[0].up[place]
    assert torch.allclose(up.grad, weight.grad @ down.T, rtol=1e-3, atol=1e-7)
    assert up.grad.abs().max() > 0
