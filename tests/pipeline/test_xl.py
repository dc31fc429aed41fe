"""SDXL beside the reference: base, image to image, inpainting, refiner and the hand-over between the two."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from support.small import small_pipeline
from support.small_xl import oracle_xl

import weights_loader
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion
from minisd.pipeline.latents import encode_pixels
from minisd.pipeline.sdxl_sizes import MicroConditioning
from minisd.schedulers import PNDM, Heun

PROMPTS = {"prompt": ["a cat", "a red dog!"]}
SIZE = {"height": 24, "width": 32}


def noise(rows: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 4, 12, 16, generator=torch.Generator().manual_seed(seed))


def picture() -> torch.Tensor:
    return torch.linspace(-1, 1, 3 * 24 * 32).reshape(1, 3, 24, 32)


def assert_close(got: Any, expected: Any, tolerance: float = 1e-4) -> None:
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, StableDiffusion]:
    return saved(tmp_path_factory.mktemp("base"), "base")


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, StableDiffusion]:
    return saved(tmp_path_factory.mktemp("refiner"), "refiner")


def saved(folder: Path, kind: str) -> tuple[Any, StableDiffusion]:
    oracle = oracle_xl(folder, kind)
    oracle.save_pretrained(folder / "model")
    return oracle, weights_loader.load(folder / "model")


@pytest.mark.parametrize("guidance", [1.0, 6.0])
@pytest.mark.parametrize("negative", ["", "blurry"])
def test_text_to_image(base: tuple[Any, StableDiffusion], guidance: float, negative: str) -> None:
    """An empty negative prompt is none: zeros, as the base's model index says."""
    oracle, sd = base
    steps = {"num_inference_steps": 3, "guidance_scale": guidance}
    told = {"negative_prompt": [negative] * 2} if negative else {}
    x = noise()
    expected = oracle(**PROMPTS, **told, **SIZE, **steps, latents=x.clone(), output_type="np").images
    got = sd(**PROMPTS, negative_prompt=negative, **steps, latents=x, output_type="np").images
    assert expected.std() > 0.05
    assert np.abs(got - expected).max() < 1e-4


def test_sizes_are_heard(base: tuple[Any, StableDiffusion]) -> None:
    oracle, sd = base
    x = noise()
    steps = {"num_inference_steps": 2, "guidance_scale": 4.0}
    told = {"original_size": (100, 50), "crops_coords_top_left": (3, 7), "target_size": (24, 33)}
    expected = oracle(**PROMPTS, **SIZE, **steps, **told, latents=x.clone(), output_type="latent").images
    micro = MicroConditioning(original_size=(100, 50), crop=(3, 7), target_size=(24, 33))
    got = sd(**PROMPTS, **steps, latents=x, micro=micro, output_type="latent").images
    assert_close(got, expected)
    unheard = sd(**PROMPTS, **steps, latents=x, output_type="latent").images
    assert (got - unheard).abs().max() > 1e-2


def test_no_empty_prompt_is_zeroed_where_the_index_says_so(tmp_path: Path) -> None:
    oracle = oracle_xl(tmp_path)
    oracle.register_to_config(force_zeros_for_empty_prompt=False)
    oracle.save_pretrained(tmp_path / "model")
    sd = weights_loader.load(tmp_path / "model")
    x = noise()
    steps = {"num_inference_steps": 2, "guidance_scale": 4.0}
    expected = oracle(**PROMPTS, **SIZE, **steps, latents=x.clone(), output_type="latent").images
    assert_close(sd(**PROMPTS, **steps, latents=x, output_type="latent").images, expected)


def test_image_to_image(base: tuple[Any, StableDiffusion]) -> None:
    oracle, sd = base
    theirs = diffusers.StableDiffusionXLImg2ImgPipeline(**oracle.components, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    arguments = {"prompt": "a cat", "strength": 0.6, "num_inference_steps": 5, "guidance_scale": 3.0}
    seeded = torch.Generator().manual_seed(5)
    expected = theirs(image=(picture() + 1) / 2, generator=seeded, output_type="latent", **arguments).images
    got = sd(image=picture(), seed=5, output_type="latent", **arguments).images
    assert_close(got, expected)


def test_inpainting(tmp_path: Path) -> None:
    oracle, sd = saved(tmp_path, "inpainting")
    assert sd.task == "inpainting"
    mask = torch.zeros(1, 1, 24, 32)
    mask[..., 6:, 10:] = 1
    arguments = {"prompt": "a cat", "num_inference_steps": 3, "guidance_scale": 3.0}
    seeded = torch.Generator().manual_seed(5)
    expected = oracle(
        image=(picture() + 1) / 2,
        mask_image=mask,
        strength=1.0,
        generator=seeded,
        output_type="latent",
        **SIZE,
        **arguments,
    ).images
    got = sd(image=picture(), mask_image=mask, seed=5, output_type="latent", **arguments).images
    assert_close(got, expected)


def test_the_refiner_alone(refiner: tuple[Any, StableDiffusion]) -> None:
    """One text encoder, five numbers, another score for the negative prompt, whose emptiness is text to it."""
    oracle, sd = refiner
    arguments = {"prompt": "a cat", "strength": 0.5, "num_inference_steps": 6, "guidance_scale": 3.0}
    for scores in ({}, {"aesthetic_score": 9.0, "negative_aesthetic_score": 1.0}):
        seeded = torch.Generator().manual_seed(5)
        expected = oracle(
            image=(picture() + 1) / 2, generator=seeded, output_type="latent", **arguments, **scores
        ).images
        micro = MicroConditioning(**scores)
        got = sd(image=picture(), seed=5, output_type="latent", micro=micro, **arguments).images
        assert_close(got, expected)


@pytest.mark.parametrize("share", [0.5, 0.799])  # at 0.799 of 10 steps a timestep, 201, lies on the border
def test_hand_over(base: tuple[Any, StableDiffusion], refiner: tuple[Any, StableDiffusion], share: float) -> None:
    (base_oracle, sd), (refiner_oracle, second) = base, refiner
    x = noise()
    arguments = {**PROMPTS, "num_inference_steps": 10, "guidance_scale": 3.0}
    half = base_oracle(**arguments, **SIZE, latents=x.clone(), denoising_end=share, output_type="latent").images
    expected = refiner_oracle(**arguments, image=half, denoising_start=share, output_type="latent").images
    ours = sd(**arguments, latents=x, denoising_end=share, output_type="latent").images
    assert_close(ours, half)
    got = second(**arguments, latents=ours, denoising_start=share, output_type="latent").images
    assert_close(got, expected)


@pytest.mark.parametrize("sampler", [Heun, PNDM])
def test_handing_over_to_itself_changes_nothing_where_a_level_is_visited_twice(
    base: tuple[Any, StableDiffusion], sampler: Any
) -> None:
    """Heun has no memory over steps: two halves are the whole. PNDM begins anew, so only the calls are counted."""
    _, sd = base
    scheduler = sampler.in_place_of(sd.scheduler)
    assert scheduler.calls_before(10, 4) == (8 if sampler is Heun else 5)
    if sampler is PNDM:
        return
    twin = StableDiffusion(
        sd.tokenizer, sd.text_encoder, sd.vae, sd.unet, scheduler, sd.defaults,
        tokenizer_2=sd.tokenizer_2, text_encoder_2=sd.text_encoder_2,
    )  # fmt: skip
    arguments = {"prompt": "a cat", "num_inference_steps": 6, "output_type": "latent"}
    whole = twin(latents=noise(1), **arguments).images
    half = twin(latents=noise(1), denoising_end=0.5, **arguments).images
    assert (half - whole).abs().max() > 1e-2
    assert_close(twin(latents=half, denoising_start=0.5, **arguments).images, whole, 1e-6)


@pytest.mark.parametrize("kind", ["base", "inpainting", "refiner"])
def test_in_and_out(tmp_path: Path, kind: str) -> None:
    _, sd = saved(tmp_path, kind)
    given: dict[str, Any] = {"seed": 1, "num_inference_steps": 2, "output_type": "pt", "image": picture()}
    if kind == "inpainting":
        given["mask_image"] = torch.ones(24, 32)
    expected = sd("a cat", **given).images

    weights_loader.save(sd, tmp_path / "again")
    again = weights_loader.load(tmp_path / "again")
    torch.testing.assert_close(again("a cat", **given).images, expected, atol=1e-5, rtol=1e-5)
    assert again.defaults == sd.defaults
    names = {"base": "", "inpainting": "Inpaint", "refiner": "Img2Img"}
    theirs = getattr(diffusers, f"StableDiffusionXL{names[kind]}Pipeline").from_pretrained(tmp_path / "again")
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["_class_name"] == type(theirs).__name__
    assert theirs.config.force_zeros_for_empty_prompt == (kind != "refiner")
    assert theirs.text_encoder_2.config.projection_dim == 40
    assert (theirs.text_encoder is None) == (kind == "refiner")

    weights_loader.save(sd, tmp_path / "m.safetensors", layout="ldm")
    first = sd.tokenizer
    single = weights_loader.load(tmp_path / "m.safetensors", tokenizer=first)
    assert (single("a cat", **given).images - expected).abs().max() < 1e-4
    assert single.defaults == sd.defaults
    texts = 1 if kind == "refiner" else 2
    for path in ("m.safetensors", "again"):
        found = weights_loader.inspect(tmp_path / path)
        assert found.family.startswith("SDXL")
        assert sum(name.startswith("text_encoder") for name in found.components) == texts


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"denoising_end": 1.5}, "expected a number in 0..1"),
        ({"denoising_end": 0.0}, "leaves no step to do"),
        ({"denoising_end": 1.0}, "leaves no step to the other model"),
        ({"denoising_start": 0.5}, "give latents"),
        ({"denoising_start": 0.5, "image": picture()}, "give latents and no image"),
    ],
)
def test_bad_hand_overs(base: tuple[Any, StableDiffusion], arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        base[1].denoise("a cat", num_inference_steps=5, **arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"original_size": (10, 0)}, "original_size is 0"),
        ({"target_size": 512}, "expected two whole numbers"),
        ({"crop": (-1, 0)}, "crop is -1"),
        ({"crop": None}, "expected two whole numbers"),
        ({"aesthetic_score": 11.0}, r"in 0\.\.10"),
    ],
)
def test_bad_sizes(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        MicroConditioning(**arguments)


def test_sizes_are_not_for_sd1() -> None:
    with pytest.raises(InputError, match="micro is SDXL size conditioning"):
        small_pipeline().denoise("a cat", micro=MicroConditioning())


@pytest.mark.parametrize("guidance", [1.0, 6.0])
@pytest.mark.parametrize("negative", [{}, {"negative_prompt": "blurry"}, {"negative_prompt_2": "ugly"}], ids=str)
def test_two_texts(base: tuple[Any, StableDiffusion], guidance: float, negative: dict[str, str]) -> None:
    """One for each text encoder; a list, one for all pictures. Silence is only where both are silent."""
    oracle, sd = base
    call = {"num_inference_steps": 2, "guidance_scale": guidance, "output_type": "latent"}
    x = noise(4)
    told = {"negative_prompt": [""] * 2, **{name: [text] * 2 for name, text in negative.items()}} if negative else {}
    expected = oracle(
        **PROMPTS, prompt_2=["a dog", "a cat"], num_images_per_prompt=2, **told, **SIZE, **call, latents=x.clone()
    ).images
    got = sd(**PROMPTS, prompt_2=["a dog", "a cat"], num_images_per_prompt=2, **negative, **call, latents=x).images
    assert_close(got, expected)
    assert (sd(**PROMPTS, num_images_per_prompt=2, **negative, **call, latents=x).images - got).abs().max() > 1e-2
    if guidance > 1 and negative:
        silent = sd(**PROMPTS, prompt_2=["a dog", "a cat"], num_images_per_prompt=2, **call, latents=x).images
        assert (silent - got).abs().max() > 1e-2
    one = sd(**PROMPTS, prompt_2="a dog", **call, latents=x[:2]).images
    assert torch.equal(one, sd(**PROMPTS, prompt_2=["a dog", "a dog"], **call, latents=x[:2]).images)


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_text_states_with_pooled_text(request: pytest.FixtureRequest, kind: str) -> None:
    """They are the prompt, bit for bit; each side may be given so, and zeros are no silence then."""
    oracle, sd = request.getfixturevalue(kind)
    texts = ["blurry", "ugly", *PROMPTS["prompt"]]
    states, pooled = sd.encode_prompt(texts), sd.encode_pooled(texts)
    assert states.shape == (4, 77, sd.unet.config.context_width)
    assert pooled.shape == (4, 40)
    call = {"latents": noise(), "num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "latent"}
    positive = {"prompt_embeds": states[2:], "pooled_prompt_embeds": pooled[2:]}
    negative = {"negative_prompt_embeds": states[:2], "negative_pooled_prompt_embeds": pooled[:2]}
    expected = sd(**PROMPTS, negative_prompt=texts[:2], **call).images
    assert torch.equal(sd(**positive, **negative, **call).images, expected)
    assert_close(sd(**positive, negative_prompt=texts[:2], **call).images, expected, 1e-5)
    assert_close(sd(**PROMPTS, **negative, **call).images, expected, 1e-5)
    assert_close(sd(**positive, **call).images, sd(**PROMPTS, **call).images, 1e-5)
    unguided = call | {"guidance_scale": 1.0}
    assert_close(sd(**positive, **unguided).images, sd(**PROMPTS, **unguided).images, 1e-5)
    assert sd(**positive, num_images_per_prompt=2, **(call | {"latents": noise(4)})).images.shape[0] == 4
    if kind == "base":
        theirs = oracle(**positive, **negative, **SIZE, **(call | {"latents": noise()})).images
        assert_close(expected, theirs)
        two = sd.encode_prompt(PROMPTS["prompt"], ["a dog", "a cat"]), sd.encode_pooled(["a dog", "a cat"])
        got = sd(prompt_embeds=two[0], pooled_prompt_embeds=two[1], **call).images
        assert_close(got, sd(**PROMPTS, prompt_2=["a dog", "a cat"], **call).images, 1e-5)


STATES, POOLED = torch.zeros(1, 77, 192), torch.zeros(1, 40)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompt_embeds": STATES}, "prompt_embeds was given without pooled_prompt_embeds; SDXL needs both"),
        ({"prompt": "a", "pooled_prompt_embeds": POOLED}, "^pooled_prompt_embeds was given without prompt_embeds"),
        ({"prompt": "a", "negative_prompt_embeds": STATES}, "was given without negative_pooled_prompt_embeds"),
        ({"prompt_embeds": STATES, "pooled_prompt_embeds": POOLED[:, 1:]}, r"is \(1, 39\), expected .*\(1, 40\)"),
        ({"prompt_embeds": STATES, "pooled_prompt_embeds": POOLED.repeat(2, 1)}, r"is \(2, 40\)"),
        ({"prompt_embeds": STATES, "pooled_prompt_embeds": POOLED / 0}, "expected finite"),
        ({"prompt_embeds": STATES, "pooled_prompt_embeds": [1.0]}, "is list"),
        ({"prompt_embeds": STATES, "pooled_prompt_embeds": POOLED, "prompt": "a"}, "prompt and prompt_embeds were"),
        ({"prompt_embeds": STATES, "pooled_prompt_embeds": POOLED, "prompt_2": "a"}, "prompt_2 and prompt_embeds were"),
        ({"prompt": "a", "prompt_2": ["b", "c"]}, "prompt_2 holds 2 texts for 1 prompts"),
        ({"prompt": "a", "prompt_2": 3}, "prompt_2 is int"),
        ({"prompt": ["a", "b"], "negative_prompt_2": ["c"]}, "negative_prompt_2 holds 1 texts for 2"),
    ],
)  # fmt: skip
def test_bad_texts(base: tuple[Any, StableDiffusion], arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        base[1].denoise(**arguments)
    assert "\n" not in str(caught.value)


def test_other_families_hear_one_text_and_no_pooled_one(refiner: tuple[Any, StableDiffusion]) -> None:
    plain = small_pipeline()
    for sd in (plain, refiner[1]):
        with pytest.raises(InputError, match="negative_prompt_2 is for SDXL's second text encoder"):
            sd.denoise("a cat", negative_prompt_2="a dog")
        with pytest.raises(InputError, match="prompts_2 is for SDXL's second"):
            sd.encode_prompt(["a cat"], ["a dog"])
    with pytest.raises(InputError, match="pooled_prompt_embeds is for SDXL"):
        plain.denoise("a cat", pooled_prompt_embeds=POOLED)
    with pytest.raises(InputError, match="only available for SDXL models"):
        plain.encode_pooled(["a cat"])


def test_as_many_texts_for_both_encoders(base: tuple[Any, StableDiffusion]) -> None:
    with pytest.raises(InputError, match="prompts_2 holds 1 texts for 2 prompts"):
        base[1].encode_prompt(["a cat", "a dog"], ["a dog"])


def test_the_autoencoder_runs_in_float32_where_float16_would_overflow(tmp_path: Path) -> None:
    _, sd = saved(tmp_path, "base")
    with torch.no_grad():
        for weights in sd.vae.parameters():
            weights.copy_(weights.half())
    expected = encode_pixels(sd.vae, picture(), torch.zeros)
    decoded = sd.decode(expected)
    sd.vae.half()
    assert torch.equal(encode_pixels(sd.vae, picture(), torch.zeros), expected)
    assert torch.equal(sd.decode(expected), decoded)
    assert sd.vae.from_latents.weight.dtype == torch.float16
