"""The training cells of the courses: DreamBooth's loop and textual inversion, with both libraries."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.course_cells import SCHEDULE, alike, close, parts
from support.training_images import training_images
from torch import Tensor

TOKEN = "<birb-style>"
V_SCHEDULE = {**SCHEDULE, "prediction_type": "v_prediction"}  # what the embedded model predicts


def images() -> Tensor:
    """Four training images."""
    return F.interpolate(training_images("a cat", 4, seed=2).pixels, size=64, mode="bilinear")


def example(tokenizer: Any, prompt: str, pixels: Tensor) -> dict[str, Any]:
    """An element of the hackathon's data set: ids are not padded yet."""
    ids = tokenizer(prompt, padding="do_not_pad", truncation=True, max_length=tokenizer.model_max_length).input_ids
    return {"instance_prompt_ids": ids, "instance_images": pixels}


def collate(tokenizer: Any, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    ids = [each["instance_prompt_ids"] for each in examples]
    pixels = torch.stack([each["instance_images"] for each in examples]).to(memory_format=torch.contiguous_format)
    padded = tokenizer.pad(
        {"input_ids": ids}, padding="max_length", return_tensors="pt", max_length=tokenizer.model_max_length
    ).input_ids
    return {"input_ids": padded, "pixel_values": pixels.float()}


def objective(p: SimpleNamespace, batch: dict[str, Tensor], noises: Any) -> Tensor:
    """The loss of both notebooks."""
    with torch.no_grad():
        latents = p.vae.encode(batch["pixel_values"]).latent_dist.mean * 0.18215
    noise = torch.randn(latents.shape)
    timesteps = torch.randint(0, noises.config.num_train_timesteps, (len(latents),)).long()
    noisy = noises.add_noise(latents, noise, timesteps)
    states = p.text_encoder(batch["input_ids"])[0]
    predicted = p.unet(noisy, timesteps, states).sample
    target = noise
    if noises.config.prediction_type == "v_prediction":
        target = noises.get_velocity(latents, noise, timesteps)
    return F.mse_loss(predicted, target, reduction="none").mean([1, 2, 3]).mean()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_hackathons_dreambooth_loop(
    ours: Any, theirs: Any, model: str, checkpointing: bool, tmp_path: Path
) -> None:
    """All weights of the UNet, AdamW, clipped gradients; the result is saved as a pipeline with PNDM, and drawn."""

    def cell(lib: Any) -> tuple[list[float], Any]:
        p = parts(lib, model)
        p.vae.requires_grad_(False)
        p.text_encoder.requires_grad_(False)
        if checkpointing:
            p.unet.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW(p.unet.parameters(), lr=1e-4)
        noises = lib.DDPMScheduler(**V_SCHEDULE)
        torch.manual_seed(3434554)
        p.unet.train()
        losses = []
        for step in range(4):
            pixels = images()[step : step + 1]
            batch = collate(p.tokenizer, [example(p.tokenizer, "a photo of ccorgi dog", each) for each in pixels])
            loss = objective(p, batch, noises)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(p.unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        pipe = lib.StableDiffusionPipeline(
            text_encoder=p.text_encoder, vae=p.vae, unet=p.unet, tokenizer=p.tokenizer,
            scheduler=lib.PNDMScheduler(**V_SCHEDULE, skip_prk_steps=True, steps_offset=1),
            safety_checker=None, feature_extractor=None,
        )  # fmt: skip
        folder = tmp_path / ("ours" if lib is ours else "theirs")
        pipe.save_pretrained(folder)
        again = ours.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        generator = torch.Generator().manual_seed(1)
        images_ = again("a photo of ccorgi dog", num_inference_steps=3, guidance_scale=7.0, generator=generator).images
        return losses, images_

    (mine, drawn), (reference, expected) = cell(ours), cell(theirs)
    assert mine == pytest.approx(reference, rel=1e-4)
    alike(drawn, expected)


def test_the_textual_inversion_cells(ours: Any, theirs: Any, model: str) -> None:
    """A token is added, starts as a known word, and alone is trained: the gradients of all other rows are zero."""

    def cell(lib: Any) -> tuple[list[float], Tensor, Tensor]:
        p = parts(lib, model)
        assert p.tokenizer.add_tokens(TOKEN) == 1
        (start,) = p.tokenizer.encode("star", add_special_tokens=False)
        new = p.tokenizer.convert_tokens_to_ids(TOKEN)
        p.text_encoder.resize_token_embeddings(len(p.tokenizer))
        table = p.text_encoder.get_input_embeddings().weight
        table.data[new] = table.data[start]
        before = table.data.clone()
        for part in (p.vae, p.unet):
            part.requires_grad_(False)
        text_model = getattr(p.text_encoder, "text_model", p.text_encoder)  # gone in the current reference
        for part in (text_model.encoder, text_model.final_layer_norm, text_model.embeddings.position_embedding):
            for parameter in part.parameters():
                parameter.requires_grad = False
        optimizer = torch.optim.AdamW(p.text_encoder.get_input_embeddings().parameters(), lr=5e-3, weight_decay=0)
        noises = lib.DDPMScheduler(**V_SCHEDULE)
        torch.manual_seed(0)
        losses = []
        for _ in range(4):
            ids = p.tokenizer(
                [f"a {TOKEN}", f"a painting of {TOKEN}"], padding="max_length", truncation=True,
                max_length=p.tokenizer.model_max_length, return_tensors="pt",
            ).input_ids  # fmt: skip
            loss = objective(p, {"pixel_values": images()[:2], "input_ids": ids}, noises)
            loss.backward()
            gradients = p.text_encoder.get_input_embeddings().weight.grad
            others = torch.arange(len(p.tokenizer)) != new
            gradients.data[others] = gradients.data[others].fill_(0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses, before, p.text_encoder.get_input_embeddings().weight.detach()

    (mine, start, learned), (reference, start_, learned_) = cell(ours), cell(theirs)
    assert mine == pytest.approx(reference, rel=1e-4)
    assert torch.equal(learned[:-1], start[:-1])
    assert (learned[-1] - start[-1]).abs().max() > 1e-3
    close(start, start_)
    close(learned, learned_)
