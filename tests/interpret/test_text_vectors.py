"""Embedding surgery: equal to the text encoder of transformers, and used by the pipeline."""

import math
from pathlib import Path

import pytest
import torch
from support.small import oracle_pipeline, small_pipeline, small_tokenizer, text_like
from torch import Tensor

from minisd.errors import InputError
from minisd.interpret import text_vectors
from minisd.pipeline import StableDiffusion

PROMPT = "a red cat above blue cat"


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return small_pipeline()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_swapped_word_is_the_prompt_with_the_other_word(sd: StableDiffusion) -> None:
    """As in the lesson, "cat" with the vector of "dog" gives the 77 states of "dog", and the same image."""
    vectors = text_vectors.replace_word(sd, PROMPT, "cat", text_vectors.word_vectors(sd, "dog"))
    states = text_vectors.encode_vectors(sd, vectors)
    assert torch.equal(states, sd.encode_prompt(["a red dog above blue cat"]))
    second = text_vectors.encode_vectors(
        sd, text_vectors.replace_word(sd, PROMPT, "cat", text_vectors.word_vectors(sd, "dog")[0], occurrence=1)
    )
    assert torch.equal(second, sd.encode_prompt(["a red cat above blue dog"]))
    assert torch.equal(second[:, :6], sd.encode_prompt([PROMPT])[:, :6])  # causal: nothing changes before it
    assert (second[:, 6:] - sd.encode_prompt([PROMPT])[:, 6:]).abs().amax(2).min() > 1e-3
    call = {"num_inference_steps": 2, "seed": 1, "guidance_scale": 1.0, "output_type": "latent"}
    assert torch.equal(sd(prompt_embeds=states, **call).images, sd("a red dog above blue cat", **call).images)


def test_encoding_equals_the_reference_from_input_embeddings(tmp_path: Path) -> None:
    theirs = oracle_pipeline(tmp_path)
    sd = small_pipeline()
    sd = StableDiffusion(small_tokenizer(), text_like(theirs.text_encoder), sd.vae, sd.unet, sd.scheduler)
    mixed = text_vectors.lerp(text_vectors.word_vectors(sd, "dog"), text_vectors.word_vectors(sd, "circle"), 0.5)
    vectors = text_vectors.replace_word(sd, PROMPT, "red", mixed)

    def put(module: torch.nn.Module, args: object, output: Tensor) -> Tensor:
        return vectors

    handle = theirs.text_encoder.get_input_embeddings().register_forward_hook(put)
    expected = theirs.text_encoder(sd.tokenizer(PROMPT))[0]
    handle.remove()
    plain = theirs.text_encoder(sd.tokenizer(PROMPT))[0]
    got = text_vectors.encode_vectors(sd, vectors)
    assert (got - expected).abs().max() < 1e-5
    assert (plain - expected).abs().max() > 0.01


def test_words_of_several_tokens(sd: StableDiffusion) -> None:
    zebra = text_vectors.word_vectors(sd, "zebra")
    assert zebra.shape == (5, 64)
    vectors = text_vectors.replace_word(sd, "a zebra", "zebra", 2 * zebra)
    assert torch.equal(vectors[0, 2:7], 2 * zebra)
    assert torch.equal(vectors[0, :2], text_vectors.token_vectors(sd, "a zebra")[0, :2])
    with pytest.raises(InputError, match=r"\(1, 64\), expected finite ones \(5, 64\)"):
        text_vectors.replace_word(sd, "a zebra", "zebra", text_vectors.word_vectors(sd, "cat"))
    with pytest.raises(InputError, match="one shape"):
        text_vectors.lerp(zebra, text_vectors.word_vectors(sd, "cat"), 0.5)


def test_the_weights_do_not_change(sd: StableDiffusion) -> None:
    table = sd.text_encoder.token_embedding.weight.clone()
    vector = text_vectors.word_vectors(sd, "cat")
    vector.zero_()
    text_vectors.replace_word(sd, PROMPT, "cat", vector)
    assert torch.equal(sd.text_encoder.token_embedding.weight, table)
    assert not text_vectors.encode_vectors(sd, text_vectors.token_vectors(sd, PROMPT)).requires_grad


def test_lerp_and_slerp() -> None:
    a, b = noise(2, 5, 8), noise(2, 5, 8, seed=1)
    for mix in (text_vectors.lerp, text_vectors.slerp):
        assert torch.allclose(mix(a, b, 0), a, atol=1e-6)
        assert torch.allclose(mix(a, b, 1), b, atol=1e-6)
    assert torch.allclose(text_vectors.lerp(a, b, 0.35), 0.65 * a + 0.35 * b)
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    third = text_vectors.slerp(x, y, 1 / 3)
    assert torch.allclose(third, torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]]))
    # each vector is interpolated by itself
    assert torch.allclose(text_vectors.slerp(a, b, 0.3)[1, 4], text_vectors.slerp(a[1, 4], b[1, 4], 0.3), atol=1e-6)


def test_slerp_keeps_the_length_of_noise() -> None:
    """Halfway between two noises lerp keeps 0.7 of the standard deviation, slerp all of it."""
    a, b = noise(2, 4, 16, 16), noise(2, 4, 16, 16, seed=1)
    halfway = text_vectors.slerp(a, b, 0.5, dims=(1, 2, 3))
    assert halfway.std() == pytest.approx(1, abs=0.05)
    assert text_vectors.lerp(a, b, 0.5).std() == pytest.approx(math.sqrt(0.5), abs=0.05)


@pytest.mark.parametrize("other", [1.0, 2.5, -1.0, 0.0])
def test_slerp_of_parallel_vectors_is_lerp(other: float) -> None:
    a = noise(3, 8)
    got = text_vectors.slerp(a, other * a, 0.25)
    assert torch.allclose(got, 0.75 * a + 0.25 * other * a, atol=1e-5)


def test_mixed_prompts_are_used(sd: StableDiffusion) -> None:
    first, second = (sd.encode_prompt([text]) for text in ("a cat", "a dog"))
    states = torch.cat([text_vectors.lerp(first, second, w) for w in (0, 0.5, 1)])
    call = {"num_inference_steps": 2, "output_type": "latent"}
    x = noise(1, 4, 8, 12).repeat(3, 1, 1, 1)
    got = sd(prompt_embeds=states, latents=x, **call).images
    for row, text in ((0, "a cat"), (2, "a dog")):
        expected = sd(text, latents=x[:1], **call).images
        assert (got[row, None] - expected).abs().max() < 1e-5 * expected.abs().max()
    assert all((got[1] - got[row]).abs().max() > 1e-3 for row in (0, 2))


def test_wrong_arguments(sd: StableDiffusion) -> None:
    vectors = text_vectors.token_vectors(sd, "a cat")
    with pytest.raises(InputError, match="'dog' is not among"):
        text_vectors.replace_word(sd, "a cat", "dog", text_vectors.word_vectors(sd, "dog"))
    with pytest.raises(InputError, match="expected finite"):
        text_vectors.replace_word(sd, "a cat", "cat", torch.full((64,), math.nan))
    with pytest.raises(InputError, match=r"\(63,?\)|\(1, 63\)"):
        text_vectors.replace_word(sd, "a cat", "cat", torch.zeros(63))
    with pytest.raises(InputError, match=r"vectors is \(77, 64\)"):
        text_vectors.encode_vectors(sd, vectors[0])
    with pytest.raises(InputError, match="vectors has 78 tokens"):
        text_vectors.encode_vectors(sd, torch.zeros(1, 78, 64))
    with pytest.raises(InputError, match="weight is nan"):
        text_vectors.lerp(vectors, vectors, math.nan)
    with pytest.raises(InputError, match="int64"):
        text_vectors.slerp(vectors.long(), vectors.long(), 0.5)
