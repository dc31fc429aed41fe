"""fast.ai lesson 9, stable_diffusion: its kinds of cells with minisd.course and with the reference."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.course_cells import FULL, SCHEDULE, alike, close, encode_texts, guided_loop, parts, picture, to_pil

from minisd.errors import InputError

PROMPT = "a red circle above a blue square"


def text_pipe(lib: Any, model: str, **options: Any) -> Any:
    pipe = lib.StableDiffusionPipeline.from_pretrained(model, safety_checker=None, **{**FULL, **options}).to("cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image_grid(imgs: list[Image.Image], rows: int, cols: int) -> Image.Image:
    w, h = imgs[0].size
    grid = Image.new("RGB", size=(cols * w, rows * h))
    for i, img in enumerate(imgs):
        grid.paste(img, box=(i % cols * w, i // cols * h))
    return grid


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        (3, {}),
        (6, {"guidance_scale": 1.1}),
        (4, {"guidance_scale": 14, "negative_prompt": "blue"}),
        (4, {"num_images_per_prompt": 2, "height": 48, "width": 80}),
    ],
)
def test_text_to_image(ours: Any, theirs: Any, model: str, steps: int, options: dict[str, Any]) -> None:
    """Few steps, guidance, the negative prompt, several images; torch.manual_seed."""

    def cell(lib: Any) -> list[Image.Image]:
        pipe = text_pipe(lib, model)
        pipe.enable_attention_slicing()
        torch.manual_seed(1024)
        return pipe(PROMPT, num_inference_steps=steps, **options).images

    alike(cell(ours), cell(theirs))


def test_the_guidance_grid(ours: Any, theirs: Any, model: str) -> None:
    """A list of prompts is a batch; four scales, two images each."""

    def cell(lib: Any) -> list[Image.Image]:
        pipe = text_pipe(lib, model)
        torch.manual_seed(1000)
        prompts = [PROMPT] * 2
        rows = [pipe(prompts, guidance_scale=g, num_inference_steps=3).images for g in [1.1, 3, 7, 14]]
        return [image_grid([image for row in rows for image in row], rows=4, cols=2)]

    alike(cell(ours), cell(theirs))


@pytest.mark.parametrize("name", ["image", "init_image"])
def test_image_to_image_and_again(ours: Any, theirs: Any, model: str, name: str) -> None:
    """An image from a sketch, a second one from the first at strength 1; three images at once."""

    def load(lib: Any) -> Any:
        pipe = lib.StableDiffusionImg2ImgPipeline.from_pretrained(model, safety_checker=None, **FULL).to("cpu")
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def cell(lib: Any, name: str) -> list[Image.Image]:
        pipe = load(lib)
        torch.manual_seed(1000)
        first = pipe(prompt=PROMPT, strength=0.8, num_inference_steps=5, **{name: picture()}).images
        torch.manual_seed(1000)
        return first + pipe(prompt=PROMPT, strength=1, num_inference_steps=4, **{name: first[0]}).images

    alike(cell(ours, name), cell(theirs, "image"))
    pipe = load(ours)
    images = pipe(
        prompt=PROMPT, num_images_per_prompt=3, strength=0.8, num_inference_steps=3, **{name: picture()}
    ).images
    assert len({image.tobytes() for image in images}) == 3
    for wrong in ({}, {"image": picture(), "init_image": picture()}):
        with pytest.raises(InputError, match="give image"):
            pipe(prompt=PROMPT, **wrong)


def test_a_learned_word_by_hand(ours: Any, theirs: Any, model: str) -> None:
    """A vector from a file of {token: vector} is written into the table and used in a prompt."""

    def cell(lib: Any) -> tuple[Any, list[Image.Image]]:
        pipe = text_pipe(lib, model)
        tokenizer, text_encoder = pipe.tokenizer, pipe.text_encoder
        width = text_encoder.get_input_embeddings().weight.shape[1]
        learned = {"<watercolor-portrait>": torch.randn(width, generator=torch.Generator().manual_seed(5))}
        token, embeds = next(iter(learned.items()))
        embeds = embeds.to(text_encoder.dtype)
        before = len(tokenizer)
        assert tokenizer.add_tokens(token) == 1
        assert tokenizer.add_tokens(token) == 0
        text_encoder.resize_token_embeddings(len(tokenizer))
        token_id = tokenizer.convert_tokens_to_ids(token)
        assert token_id == before
        text_encoder.get_input_embeddings().weight.data[token_id] = embeds
        assert len(text_encoder.get_input_embeddings().weight) == before + 1
        torch.manual_seed(1000)
        images = pipe("a circle in the style of <watercolor-portrait>", num_inference_steps=3).images
        return pipe, images

    pipe, images = cell(ours)
    alike(images, cell(theirs)[1])
    ids = pipe.tokenizer("a <Watercolor-portrait>").input_ids
    assert len(pipe.tokenizer) - 1 in ids
    fresh = text_pipe(ours, model)
    assert len(fresh.tokenizer) == len(pipe.tokenizer) - 1
    old = fresh.text_encoder.get_input_embeddings().weight
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[:-1], old)


def test_a_checkpoint_saved_and_loaded(ours: Any, model: str, tmp_path: Any) -> None:
    """As the DreamBooth cell loads a checkpoint; also in half precision."""
    text_pipe(ours, model).save_pretrained(tmp_path / "mine")
    results = []
    for source in (model, str(tmp_path / "mine")):
        torch.manual_seed(1000)
        pipe = text_pipe(ours, source)
        results.append(pipe(PROMPT, num_inference_steps=2, num_images_per_prompt=2).images)
    for a, b in zip(*results, strict=True):  # another file may be rounded otherwise
        assert np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max() <= 1
    half = text_pipe(ours, model, torch_dtype=torch.float16, use_auth_token=True)
    assert half.dtype == half.unet.dtype == half.text_encoder.dtype == torch.float16
    assert half.to(torch.float32).unet.dtype == torch.float32
    with pytest.raises(InputError, match="HF_TOKEN"):
        text_pipe(ours, model, use_auth_token="hf_secret")


def test_the_betas(ours: Any, theirs: Any) -> None:
    expected = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    for lib in (ours, theirs):
        close(lib.LMSDiscreteScheduler(**SCHEDULE).betas, expected, 1e-6)


def test_from_parts(ours: Any, theirs: Any, model: str) -> None:
    """Texts, the empty text padded to the same length, noise times init_noise_sigma, the loop, the image."""

    def cell(lib: Any) -> tuple[list[torch.Tensor], list[Image.Image]]:
        p = parts(lib, model)
        p.scheduler.set_timesteps(7)
        text_input = p.tokenizer(
            [PROMPT],
            padding="max_length",
            max_length=p.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        max_length = text_input.input_ids.shape[-1]
        uncond_input = p.tokenizer([""], padding="max_length", max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            context = torch.cat([p.text_encoder(each.input_ids)[0] for each in (uncond_input, text_input)])
        assert text_input["attention_mask"].sum() < max_length
        torch.manual_seed(100)
        latents = torch.randn((1, p.unet.config.in_channels, 128 // 8, 128 // 8))
        latents = latents * p.scheduler.init_noise_sigma
        final = guided_loop(p, context, latents, 7.5)
        numbers = [text_input.input_ids, context, latents, p.scheduler.sigmas, p.scheduler.timesteps.float(), final]
        return numbers, to_pil(p, final)

    (mine, images), (reference, pictures) = cell(ours), cell(theirs)
    for one, other in zip(mine, reference, strict=True):
        close(one, other)
    alike(images, pictures)


def test_refactored(ours: Any, theirs: Any, model: str) -> None:
    """mk_samples: text_enc, the loop, mk_img; two prompts at once."""

    def mk_samples(lib: Any, prompts: list[str], g: float = 7.5, seed: int = 100, steps: int = 5) -> torch.Tensor:
        p = parts(lib, model)
        text = encode_texts(p, prompts)
        uncond = encode_texts(p, [""] * len(prompts), text.shape[1])
        if seed:
            torch.manual_seed(seed)
        latents = torch.randn((len(prompts), p.unet.config.in_channels, 16, 16))
        p.scheduler.set_timesteps(steps)
        final = guided_loop(p, torch.cat([uncond, text]).detach(), latents * p.scheduler.init_noise_sigma, g)
        with torch.no_grad():
            return p.vae.decode(1 / 0.18215 * final).sample

    prompts = [PROMPT, "an astronaut riding a horse"]
    close(mk_samples(ours, prompts), mk_samples(theirs, prompts), 1e-3)


def test_why_two_predictions(ours: Any, model: str) -> None:
    """With guidance the UNet returns a batch of two predictions, equal to those of two calls."""
    p = parts(ours, model)
    context = encode_texts(p, ["", PROMPT])
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both = p.unet(torch.cat([latents] * 2), 500, encoder_hidden_states=context)["sample"]
        single = [p.unet(latents, 500, row[None]).sample for row in context]
        pixels = p.vae.decode(latents).sample
    assert both.is_contiguous()  # the course uses randn_like and view
    assert pixels.is_contiguous()
    assert both.shape == (2, 4, 16, 16)
    close(both, torch.cat(single), 1e-5)


def test_a_pipeline_from_parts(ours: Any, theirs: Any, model: str) -> None:
    """A complete pipeline from separate parts, with latents_callback."""
    torch.manual_seed(0)
    p = parts(ours, model)
    pipe = ours.StableDiffusionPipeline(
        vae=p.vae,
        text_encoder=p.text_encoder,
        tokenizer=p.tokenizer,
        unet=p.unet,
        scheduler=ours.PNDMScheduler(**SCHEDULE, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
    )
    vae, images, calls = pipe.vae, [], []

    def latents_callback(i: int, t: Any, latents: Any) -> None:
        calls.append((i, int(t)))
        latents = 1 / 0.18215 * latents
        image = vae.decode(latents).sample[0]
        image = (image / 2 + 0.5).clamp(0, 1)
        image = image.cpu().permute(1, 2, 0).numpy()
        images.extend(pipe.numpy_to_pil(image))

    final = pipe(PROMPT, callback=latents_callback, callback_steps=12).images[0]
    images.append(final)
    assert calls == [(0, 981), (12, 761), (24, 521), (36, 281), (48, 41)]
    assert image_grid(images, rows=1, cols=len(images)).size == (6 * final.width, final.height)
    with pytest.raises(InputError, match=r"AutoencoderKL got a \w+, expected minisd's VAE"):
        ours.StableDiffusionPipeline(**{**pipe.components, "vae": pipe.unet})
