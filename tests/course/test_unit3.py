"""Hugging Face diffusion course, unit 3: its kinds of cells with minisd.course and with the reference."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.course_cells import FULL, SCHEDULE, alike, close, guided_loop, picture, to_pil

from minisd.errors import InputError, MismatchError
from minisd.schedulers import LMS, Euler

PROMPT, NEGATIVE = "a red circle above a blue square", "a yellow star"


def text_pipe(lib: Any, model: str) -> Any:
    pipe = lib.StableDiffusionPipeline.from_pretrained(model, safety_checker=None, **FULL).to("cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 42) -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(seed)


def mask() -> Image.Image:
    array = np.zeros((64, 64), np.uint8)
    array[16:48, 8:40] = 255
    return Image.fromarray(array)


def test_every_argument(ours: Any, theirs: Any, model: str) -> None:
    """A size that is not square, a negative prompt, a generator."""

    def cell(lib: Any) -> list[Image.Image]:
        return text_pipe(lib, model)(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            height=96,
            width=128,
            guidance_scale=8,
            num_inference_steps=4,
            generator=seeded(),
        ).images

    alike(cell(ours), cell(theirs))


def test_a_row_of_guidance_scales(ours: Any, theirs: Any, model: str) -> None:
    def cell(lib: Any) -> list[Image.Image]:
        pipe = text_pipe(lib, model)
        options = {"height": 96, "width": 96, "num_inference_steps": 3}
        return [pipe(PROMPT, guidance_scale=g, generator=seeded(), **options).images[0] for g in (1.1, 8, 12)]

    alike(cell(ours), cell(theirs))


def test_the_components(ours: Any, model: str) -> None:
    pipe = text_pipe(ours, model)
    names = ["vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor"]
    assert list(pipe.components.keys()) == names
    assert pipe.vae.config.scaling_factor == 0.18215
    assert pipe.unet.config.in_channels == pipe.unet.in_channels == 4
    assert pipe.text_encoder.device == pipe.unet.device == pipe.device == torch.device("cpu")
    assert pipe.vae.eval() is pipe.vae.train(False) is pipe.vae.requires_grad_(False) is pipe.vae
    assert not any(weight.requires_grad for weight in pipe.vae.parameters())
    for each in (pipe.enable_attention_slicing, pipe.disable_attention_slicing, pipe.enable_vae_slicing):
        assert each() is None
    pipe.enable_attention_slicing("max")


def test_texts_of_their_own_length(ours: Any, theirs: Any, model: str) -> None:
    """Texts without padding."""
    text = "A painting of a flooble"
    mine, reference = text_pipe(ours, model), text_pipe(theirs, model)
    states = []
    for pipe in (mine, reference):
        tokens = pipe.tokenizer(text).input_ids
        assert isinstance(tokens[0], int)
        with torch.no_grad():
            states.append(pipe.text_encoder(torch.tensor([tokens]))["last_hidden_state"])
    close(*states, 1e-5)
    assert states[0].shape == (1, len(mine.tokenizer(text)["input_ids"]), pipe.text_encoder.config.hidden_size)


@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_encode_prompt(ours: Any, theirs: Any, model: str, negative: str | None) -> None:
    """Rows of negative prompts come first; rows for several images of a prompt are adjacent."""
    mine = text_pipe(ours, model)._encode_prompt([PROMPT, "a star"], "cpu", 2, True, negative and [negative] * 2)
    reference = text_pipe(theirs, model)
    expected = reference._encode_prompt([PROMPT, "a star"], "cpu", 2, True, negative and [negative] * 2)
    close(mine, expected, 1e-5)
    alone = text_pipe(ours, model)._encode_prompt(PROMPT, "cpu", 1, False)
    assert alone.shape[0] == 1
    close(alone, mine[4:5], 1e-5)
    with pytest.raises(InputError, match="3 negative prompts for 2"):
        text_pipe(ours, model)._encode_prompt([PROMPT, "a star"], "cpu", 1, True, ["a", "b", "c"])


def test_another_scheduler(ours: Any, theirs: Any, model: str) -> None:
    """From the pipeline's own config, with the model's noise schedule and prediction type."""

    def cell(lib: Any) -> list[Image.Image]:
        pipe = text_pipe(lib, model)
        pipe.scheduler = lib.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        return pipe(prompt=PROMPT, generator=seeded(), num_inference_steps=5).images

    alike(cell(ours), cell(theirs))
    pipe = text_pipe(ours, model)
    before = pipe.core.scheduler
    print(pipe.scheduler)
    pipe.scheduler = ours.LMSDiscreteScheduler.from_config(pipe.scheduler.config)
    plain = replace(before.schedule, rescale_betas_zero_snr=False)  # which the reference's LMS does not know
    expected = LMS.in_place_of(before, schedule=plain, lower_order_start=False)
    assert pipe.core.scheduler == pipe.scheduler.core == expected
    pipe.scheduler = Euler.in_place_of(before)  # a sampler of minisd
    assert type(pipe.scheduler) is ours.EulerDiscreteScheduler


def test_the_loop_by_hand(ours: Any, theirs: Any, model: str) -> None:
    """Encoding with a negative prompt, the loop over the parts and decode_latents give the pipeline's image."""

    def cell(lib: Any) -> tuple[torch.Tensor, list[Image.Image], list[Image.Image]]:
        pipe = text_pipe(lib, model)
        context = pipe._encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)
        latents = torch.randn((1, 4, 16, 16), generator=seeded())
        latents = latents * pipe.scheduler.init_noise_sigma
        pipe.scheduler.set_timesteps(6, device="cpu")
        final = guided_loop(pipe, context, latents, 8)
        with torch.no_grad():
            images = pipe.numpy_to_pil(pipe.decode_latents(final.detach()))
        options = {"guidance_scale": 8, "num_inference_steps": 6, "generator": seeded()}
        return final, images, pipe(PROMPT, negative_prompt=NEGATIVE, **options).images

    mine, reference = cell(ours), cell(theirs)
    close(mine[0], reference[0])
    alike(mine[1], reference[1])
    alike(mine[1], mine[2])
    p = text_pipe(ours, model)
    alike(to_pil(p, mine[0]), mine[1])


def test_image_to_image_from_components(ours: Any, theirs: Any, model: str) -> None:
    def cell(lib: Any) -> list[Image.Image]:
        pipe = text_pipe(lib, model)
        img2img = lib.StableDiffusionImg2ImgPipeline(**pipe.components)
        img2img.set_progress_bar_config(disable=True)
        return img2img(PROMPT, picture(), 0.6, num_inference_steps=6, generator=seeded()).images

    alike(cell(ours), cell(theirs))


def test_the_steps_of_image_to_image(ours: Any, model: str) -> None:
    """int(50 * 0.6) = 30, as in the course."""
    pipe = ours.StableDiffusionImg2ImgPipeline.from_pretrained(model)
    calls: list[int] = []
    pipe(PROMPT, image=picture(), strength=0.6, callback=lambda i, t, x: calls.append(i), output_type="np")
    assert calls == list(range(30))


def test_inpainting(ours: Any, model: str) -> None:
    """With the variant of 9 channels, and with a model of 4 channels."""
    for source in ("sticker-inpainting", model):
        pipe = ours.StableDiffusionInpaintPipeline.from_pretrained(source) if exists(source) else None
        if pipe is None:
            continue
        assert pipe.unet.in_channels == (4 if source == model else 9)
        options = {"image": picture(), "mask_image": mask(), "num_inference_steps": 4}
        out = pipe(prompt=PROMPT, generator=seeded(), output_type="np", **options)
        expected = pipe.core(PROMPT, guidance_scale=7.5, generator=seeded(), output_type="np", **options).images
        assert np.array_equal(out.images, expected)
        assert out[0] is out["images"] is out.images


def exists(source: str) -> bool:
    """Whether this installation has the variant."""
    import weights_loader

    try:
        weights_loader.load(source)
    except InputError:
        return False
    return True


def test_inpainting_equals_the_reference(ours: Any, theirs: Any, model: str) -> None:
    """With a model of 4 channels."""

    def cell(lib: Any) -> list[Image.Image]:
        pipe = lib.StableDiffusionInpaintPipeline(**text_pipe(lib, model).components)
        pipe.set_progress_bar_config(disable=True)
        options = {"image": picture(), "mask_image": mask(), "height": 64, "width": 64, "num_inference_steps": 4}
        return pipe(prompt=PROMPT, generator=seeded(), **options).images

    alike(cell(ours), cell(theirs))


def test_depth_to_image(ours: Any) -> None:
    from support.small import small_pipeline

    sd = small_pipeline(in_channels=5)
    pipe = ours.StableDiffusionDepth2ImgPipeline(sd.vae, sd.text_encoder, sd.tokenizer, sd.unet, sd.scheduler)
    depth = torch.linspace(0, 1, 32 * 32).view(1, 32, 32)
    calls: list[int] = []
    options = {"image": picture().resize((32, 32)), "depth_map": depth, "strength": 0.8, "output_type": "np"}
    out = pipe(prompt=PROMPT, generator=seeded(), callback=lambda i, t, x: calls.append(i), **options).images
    assert len(calls) == 41  # 40 of 50 steps, and one more call of PNDM
    expected = pipe.core(PROMPT, guidance_scale=7.5, num_inference_steps=50, generator=seeded(), **options).images
    assert np.array_equal(out, expected)
    with pytest.raises(InputError, match="give depth_map"):
        pipe(prompt=PROMPT, image=picture())


def test_parts_in_folders_of_their_own(ours: Any, model: str) -> None:
    """As the other autoencoder of the course is stored; and parts that replace those of a model."""
    p = {
        "vae": ours.AutoencoderKL.from_pretrained(f"{model}/vae", **FULL),
        "unet": ours.UNet2DConditionModel.from_pretrained(f"{model}/unet"),
        "text_encoder": ours.CLIPTextModel.from_pretrained(f"{model}/text_encoder", torch_dtype=torch.float32),
        "tokenizer": ours.CLIPTokenizer.from_pretrained(f"{model}/tokenizer"),
    }
    pipe = ours.StableDiffusionPipeline.from_pretrained("sticker")
    own = ours.StableDiffusionPipeline(**p, scheduler=pipe.scheduler)
    options = {"num_inference_steps": 2, "output_type": "np"}
    expected = pipe(PROMPT, generator=seeded(), **options).images
    assert np.array_equal(own(PROMPT, generator=seeded(), **options).images, expected)
    mixed = ours.StableDiffusionPipeline.from_pretrained(model, **p, scheduler=ours.EulerDiscreteScheduler())
    assert [getattr(mixed, name).core for name in p] == [part.core for part in p.values()]
    assert type(mixed.scheduler) is ours.EulerDiscreteScheduler
    assert not np.array_equal(mixed(PROMPT, generator=seeded(), **options).images, expected)
    half = ours.AutoencoderKL.from_pretrained(f"{model}/vae", torch_dtype=torch.float16)
    assert half.dtype == torch.float16
    assert half.half().float().dtype == torch.float32
    with pytest.raises(MismatchError, match=r"config\.json|weights"):
        ours.AutoencoderKL.from_pretrained(f"{model}/tokenizer")


def test_ddim_inversion(ours: Any, theirs: Any, model: str) -> None:
    """Cells of unit 4: inversion and sampling with steps computed from alphas_cumprod."""

    def cell(lib: Any, n: int = 8, g: float = 3.5) -> tuple[torch.Tensor, torch.Tensor]:
        pipe = text_pipe(lib, model)
        pipe.scheduler = lib.DDIMScheduler.from_config({**SCHEDULE, "clip_sample": False, "set_alpha_to_one": False})
        context = pipe._encode_prompt(PROMPT, "cpu", 1, True, "")
        pipe.scheduler.set_timesteps(n, device="cpu")
        with torch.no_grad():
            pixels = torch.from_numpy(np.asarray(picture(), np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
            latents = 0.18215 * pipe.vae.encode(pixels).latent_dist.mean
        abar, stride = pipe.scheduler.alphas_cumprod, 1000 // n

        def move(latents: torch.Tensor, t: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                scaled = pipe.scheduler.scale_model_input(torch.cat([latents] * 2), t)
                u, c = pipe.unet(scaled, t, encoder_hidden_states=context).sample.chunk(2)
            eps = u + g * (c - u)
            return (latents - (1 - a).sqrt() * eps) * (b.sqrt() / a.sqrt()) + (1 - b).sqrt() * eps

        kept = []
        for t in reversed(pipe.scheduler.timesteps):
            latents = move(latents, t, abar[max(0, t.item() - stride)], abar[t])
            kept.append(latents)
        for t in pipe.scheduler.timesteps[4:]:
            latents = move(
                kept[4] if t == pipe.scheduler.timesteps[4] else latents, t, abar[t], abar[max(1, t - stride)]
            )
        return torch.cat(kept), latents

    for one, other in zip(cell(ours), cell(theirs), strict=True):
        close(one, other, 1e-3)


def test_a_part_under_a_wrong_name(ours: Any, model: str) -> None:
    with pytest.raises(InputError, match="subfolder is 'unet', expected 'vae' for AutoencoderKL"):
        ours.AutoencoderKL.from_pretrained(model, subfolder="unet")
    with pytest.raises(InputError, match="safety"):
        ours.StableDiffusionPipeline.from_pretrained(model, safety_checker=object())


def test_the_clip_of_the_course_is_that_of_sd1(ours: Any, monkeypatch: Any) -> None:
    """openai/clip-vit-large-patch14 is not a pipeline; the text encoder of SD 1 is the same."""
    from minisd.course import component

    sources: list[Any] = []
    load = component.load

    def load_embedded(source: Any, *args: Any) -> Any:
        sources.append(source)
        return load("sticker", *args)

    monkeypatch.setattr(component, "load", load_embedded)
    tokenizer = ours.CLIPTokenizer.from_pretrained("openai/clip-vit-large-patch14", torch_dtype=torch.float16)
    assert tokenizer.model_max_length == 77
    ours.CLIPTextModel.from_pretrained("openai/clip-vit-large-patch14")
    assert sources == ["CompVis/stable-diffusion-v1-4"] * 2
