"""Stable Diffusion Deep Dive: its kinds of cells with minisd.course and, where it still runs them, the reference."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.course_cells import SCHEDULE, alike, close, guided_loop, parts, picture, to_pil

from minisd.errors import InputError

PROMPT = "a red circle above a blue square"


def ids_of(p: SimpleNamespace, text: str) -> torch.Tensor:
    options = {"padding": "max_length", "max_length": p.tokenizer.model_max_length, "truncation": True}
    return p.tokenizer(text, return_tensors="pt", **options).input_ids


def pil_to_latent(p: SimpleNamespace, image: Any) -> torch.Tensor:
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        latent = p.vae.encode(pixels * 2 - 1)
    return 0.18215 * latent.latent_dist.sample()


def opening(p: SimpleNamespace, steps: int = 6, seed: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Text states, those of the empty text first, and the initial noise."""
    with torch.no_grad():
        context = torch.cat([p.text_encoder(ids_of(p, text))[0] for text in ("", PROMPT)])
    p.scheduler.set_timesteps(steps)
    p.scheduler.timesteps = p.scheduler.timesteps.to(torch.float32)
    torch.manual_seed(seed)
    latents = torch.randn((1, p.unet.config.in_channels, 16, 16))
    return context, latents * p.scheduler.init_noise_sigma


def test_logging_can_be_silenced(ours: Any, theirs: Any) -> None:
    for lib in (ours, theirs):
        lib.logging.set_verbosity_error()


def test_the_loop(ours: Any, theirs: Any, model: str) -> None:
    def cell(lib: Any) -> torch.Tensor:
        p = parts(lib, model)
        context, latents = opening(p)
        with torch.autocast("cpu", enabled=False):
            return guided_loop(p, context, latents, 7.5)

    close(cell(ours), cell(theirs))


def test_round_trip(ours: Any, theirs: Any, model: str) -> None:
    """An image to latents, sampled from the posterior with the global seed, and back."""

    def cell(lib: Any) -> tuple[torch.Tensor, list[Any]]:
        p = parts(lib, model)
        torch.manual_seed(32)
        encoded = pil_to_latent(p, picture())
        return encoded, to_pil(p, encoded)

    (mine, images), (reference, pictures) = cell(ours), cell(theirs)
    close(mine, reference)
    alike(images, pictures)
    assert np.abs(np.asarray(images[0], int) - np.asarray(picture(), int)).mean() < 40  # similar to the input
    p = parts(ours, model)
    with torch.no_grad():
        gaussian = p.vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist
    assert torch.equal(gaussian.mode(), gaussian.mean)
    generator = [torch.Generator().manual_seed(4) for _ in range(2)]
    assert torch.equal(gaussian.sample(generator=generator[0]), gaussian.sample(generator[1]))
    assert torch.equal(p.vae.decode(gaussian.mean, return_dict=False)[0], p.vae.decode(gaussian.mean)["sample"])


def test_noise_at_a_step(ours: Any, theirs: Any, model: str) -> None:
    """Index 10 of 15: x + sigma noise, and the scaled input of the UNet."""

    def cell(lib: Any) -> list[torch.Tensor]:
        p = parts(lib, model)
        torch.manual_seed(32)
        encoded = pil_to_latent(p, picture())
        noise = torch.randn_like(encoded)
        sampling_step = 10
        p.scheduler.set_timesteps(15)
        noised = p.scheduler.add_noise(encoded, noise, timesteps=torch.tensor([p.scheduler.timesteps[sampling_step]]))
        scaled = p.scheduler.scale_model_input(noised, p.scheduler.timesteps[sampling_step])
        sigma = p.scheduler.sigmas[sampling_step]
        close(noised, encoded + noise * sigma, 1e-5)
        close(scaled, noised / (sigma**2 + 1) ** 0.5, 1e-5)
        return [noised, scaled, sigma]

    for one, other in zip(cell(ours), cell(theirs), strict=True):
        close(one, other)


def skipping(lib: Any, model: str, sampler: str, start: int = 3) -> torch.Tensor:
    p = parts(lib, model)
    p.scheduler = getattr(lib, sampler)(**SCHEDULE)
    context, _ = opening(p, steps=9)
    torch.manual_seed(32)
    encoded = pil_to_latent(p, picture())
    noise = torch.randn_like(encoded)
    latents = p.scheduler.add_noise(encoded, noise, timesteps=torch.tensor([p.scheduler.timesteps[start]]))
    return guided_loop(p, context, latents.float(), 8, start)


def test_image_to_image_by_skipping_steps(ours: Any, theirs: Any, model: str) -> None:
    close(skipping(ours, model, "EulerDiscreteScheduler"), skipping(theirs, model, "EulerDiscreteScheduler"))


def test_skipping_steps_with_lms(ours: Any, theirs: Any, model: str) -> None:
    """The reference weighs the first slopes as if there were three earlier ones."""
    close(skipping(ours, model, "LMSDiscreteScheduler"), skipping(theirs, model, "LMSDiscreteScheduler"))


def test_ids_with_their_strings(ours: Any, theirs: Any, model: str) -> None:
    def cell(lib: Any) -> list[tuple[int, str]]:
        p = parts(lib, model)
        tokens = p.tokenizer(
            "A picture of a puppy",
            padding="max_length",
            max_length=p.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return [(int(t), p.tokenizer.decoder.get(int(t))) for t in tokens["input_ids"][0][:8]]

    def reference_strings(lib: Any) -> Any:  # current transformers has no `decoder`
        tokenizer = parts(lib, model).tokenizer
        ids = tokenizer("A picture of a puppy").input_ids[:8]
        return list(zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True))

    assert cell(ours) == reference_strings(theirs)
    assert cell(ours)[0][1] == "<|startoftext|>"


def output_of(p: SimpleNamespace, input_embeddings: torch.Tensor) -> torch.Tensor:
    """The course's code from input embeddings to text states."""
    bsz, seq_len = input_embeddings.shape[:2]
    text_model = p.text_encoder.text_model
    mask = text_model._build_causal_attention_mask(bsz, seq_len, dtype=input_embeddings.dtype)
    outputs = text_model.encoder(
        inputs_embeds=input_embeddings,
        attention_mask=None,
        causal_attention_mask=mask.to("cpu"),
        output_attentions=None,
        output_hidden_states=True,
        return_dict=None,
    )
    return text_model.final_layer_norm(outputs[0])


def reference_output_of(p: SimpleNamespace, input_embeddings: torch.Tensor) -> torch.Tensor:
    """The same with current transformers, which has no text_model and no mask function."""
    bsz, seq_len = input_embeddings.shape[:2]
    mask = torch.full((bsz, 1, seq_len, seq_len), torch.finfo(torch.float32).min).triu(1)
    outputs = p.text_encoder.encoder(inputs_embeds=input_embeddings, attention_mask=mask, is_causal=False)
    return p.text_encoder.final_layer_norm(outputs[0])


@torch.no_grad()
def test_the_text_encoder_in_parts(ours: Any, theirs: Any, model: str) -> None:
    """Token and position embeddings, mask, layers and final norm together equal the encoder."""
    p, reference = parts(ours, model), parts(theirs, model)
    ids = ids_of(p, "a red circle")
    text_model = p.text_encoder.text_model
    token_emb_layer, pos_emb_layer = text_model.embeddings.token_embedding, text_model.embeddings.position_embedding
    position_ids = text_model.embeddings.position_ids[:, :77]
    assert position_ids.tolist() == [list(range(77))]
    embedded = token_emb_layer(ids) + pos_emb_layer(position_ids)
    assert torch.equal(embedded, text_model.embeddings(ids))
    assert token_emb_layer is p.text_encoder.get_input_embeddings()
    close(embedded, reference.text_encoder.embeddings(ids), 1e-6)

    mask = text_model._build_causal_attention_mask(2, 5, torch.float16)
    assert mask.shape == (2, 1, 5, 5)
    assert mask.dtype == torch.float16
    assert torch.equal(mask[0, 0] < 0, torch.ones(5, 5, dtype=torch.bool).triu(1))
    assert mask.min() == torch.finfo(torch.float16).min

    states = output_of(p, embedded)
    close(states, p.text_encoder(ids)[0], 1e-6)
    close(states, reference.text_encoder(ids)[0], 1e-5)
    hidden = text_model.encoder(embedded, causal_attention_mask=mask_of(p, embedded), output_hidden_states=True)
    assert len(hidden.hidden_states) == len(p.text_encoder.core.layers) + 1
    assert torch.equal(hidden.hidden_states[0], embedded)
    assert torch.equal(hidden.hidden_states[-1], hidden.last_hidden_state)
    plain = text_model.encoder(embedded, causal_attention_mask=mask_of(p, embedded), return_dict=False)
    assert len(plain) == 1
    assert torch.equal(plain[0], hidden[0])


def mask_of(p: SimpleNamespace, embedded: torch.Tensor) -> torch.Tensor:
    return p.text_encoder.text_model._build_causal_attention_mask(*embedded.shape[:2], embedded.dtype)


@torch.no_grad()
def test_other_masks_are_refused(ours: Any, model: str) -> None:
    p = parts(ours, model)
    embedded = p.text_encoder.text_model.embeddings(ids_of(p, "a"))
    encoder, mask = p.text_encoder.text_model.encoder, mask_of(p, embedded)
    for wrong in (None, torch.zeros_like(mask), mask[..., :5, :5]):
        with pytest.raises(InputError, match="_build_causal_attention_mask"):
            encoder(inputs_embeds=embedded, causal_attention_mask=wrong)
    for more in ({"attention_mask": torch.ones(1, 77)}, {"output_attentions": True}):
        with pytest.raises(InputError, match="expected None"):
            encoder(inputs_embeds=embedded, causal_attention_mask=mask, **more)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["another word", "half of each", "learned"])
def test_embedding_surgery(ours: Any, theirs: Any, model: str, kind: str) -> None:
    """The vector of one token is replaced by that of another word, by a mean, by a learned one."""
    p, reference = parts(ours, model), parts(theirs, model)

    def cell(p: SimpleNamespace, embeddings: Any, finish: Any) -> torch.Tensor:
        ids = ids_of(p, "a red circle")
        token_embeddings = embeddings.token_embedding(ids)
        place = 2
        other = embeddings.token_embedding(ids_of(p, "a blue circle")[0, place])
        if kind == "half of each":
            other = 0.5 * token_embeddings[0, place] + 0.5 * other
        if kind == "learned":
            other = torch.randn(other.shape, generator=torch.Generator().manual_seed(0))
        token_embeddings[0, torch.where(ids[0] == ids[0, place])] = other
        position_embeddings = embeddings.position_embedding(embeddings.position_ids[:, :77])
        return finish(p, token_embeddings + position_embeddings)

    states = cell(p, p.text_encoder.text_model.embeddings, output_of)
    close(states, cell(reference, reference.text_encoder.embeddings, reference_output_of), 1e-5)
    before = p.text_encoder(ids_of(p, "a red circle"))[0]
    assert torch.allclose(states[:, :2], before[:, :2], atol=1e-5)  # causality
    assert (states[:, 2:4] - before[:, 2:4]).abs().max() > 0.01
    if kind == "another word" and (ids_of(p, "a red circle") != ids_of(p, "a blue circle")).sum() == 1:
        close(states, p.text_encoder(ids_of(p, "a blue circle"))[0], 1e-5)


def test_a_mix_of_two_texts(ours: Any, theirs: Any, model: str) -> None:
    def cell(lib: Any) -> torch.Tensor:
        p = parts(lib, model)
        with torch.no_grad():
            mixed = [p.text_encoder(ids_of(p, text))[0] for text in ("a red circle", "a blue square")]
        context, latents = opening(p, seed=33)
        return guided_loop(p, torch.cat([context[:1], mixed[0] * 0.35 + mixed[1] * 0.65]), latents, 7.5)

    close(cell(ours), cell(theirs))


def test_the_video(ours: Any, theirs: Any, model: str) -> None:
    """x_t and predicted x0; the repeated step of older copies of the course gives the same last frame."""

    def cell(lib: Any, repeat: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        p = parts(lib, model)
        context, latents = opening(p)
        previews = []
        for t in p.scheduler.timesteps:
            latent_model_input = p.scheduler.scale_model_input(torch.cat([latents] * 2), t)
            with torch.no_grad():
                u, c = p.unet(latent_model_input, t, encoder_hidden_states=context)["sample"].chunk(2)
            noise_pred = u + 8 * (c - u)
            if repeat:
                previews.append(p.scheduler.step(noise_pred, t, latents).pred_original_sample)
                latents = p.scheduler.step(noise_pred, t, latents).prev_sample
            else:
                out = p.scheduler.step(noise_pred, t, latents)
                previews.append(out.pred_original_sample)
                latents = out.prev_sample
        return latents, previews

    twice, once, reference = cell(ours, True), cell(ours, False), cell(theirs, False)
    assert torch.equal(twice[0], once[0])
    for a, b, c in zip(twice[1], once[1], reference[1], strict=True):
        assert torch.equal(a, b)
        close(b, c)
    close(once[0], reference[0])


def test_loss_guidance(ours: Any, theirs: Any, model: str) -> None:
    """The blue loss, differentiated through the decoder but not the UNet, at every second step."""

    def blue_loss(images: torch.Tensor) -> torch.Tensor:
        return torch.abs(images[:, 2] - 0.9).mean()

    def cell(lib: Any) -> tuple[list[float], torch.Tensor]:
        p = parts(lib, model)
        context, latents = opening(p)
        losses = []
        for i, t in enumerate(p.scheduler.timesteps):
            latent_model_input = p.scheduler.scale_model_input(torch.cat([latents] * 2), t)
            sigma = p.scheduler.sigmas[i]
            with torch.no_grad():
                u, c = p.unet(latent_model_input, t, encoder_hidden_states=context)["sample"].chunk(2)
            noise_pred = u + 8 * (c - u)
            if i % 2 == 0:
                latents = latents.detach().requires_grad_()
                latents_x0 = latents - sigma * noise_pred
                denoised_images = p.vae.decode((1 / 0.18215) * latents_x0).sample / 2 + 0.5
                loss = blue_loss(denoised_images) * 200
                losses.append(loss.item())
                cond_grad = torch.autograd.grad(loss, latents)[0]
                latents = latents.detach() - cond_grad * sigma**2
            latents = p.scheduler.step(noise_pred, t, latents).prev_sample
        return losses, latents

    (losses, latents), (expected, reference) = cell(ours), cell(theirs)
    assert losses == pytest.approx(expected, rel=1e-3)
    close(latents, reference, 1e-3)


def test_the_schedule_plots(ours: Any, theirs: Any) -> None:
    for lib in (ours, theirs):
        scheduler = lib.LMSDiscreteScheduler(**SCHEDULE)
        scheduler.set_timesteps(15)
        assert len(scheduler.sigmas) == len(scheduler.timesteps) + 1
        assert scheduler.sigmas[-1] == 0
