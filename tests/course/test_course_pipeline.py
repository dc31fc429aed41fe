"""StableDiffusionPipeline of minisd.course: callbacks, seeds, arguments, outputs and components."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from support.small import oracle_pipeline, small_pipeline

import weights_loader
from minisd.course import StableDiffusionPipeline
from minisd.errors import CallbackError, DeviceError, InputError
from minisd.pipeline import Defaults
from minisd.schedulers import DDIM, LMS, PNDM

PROMPT = "a red circle above a blue square"


@pytest.fixture
def pipe() -> StableDiffusionPipeline:
    sd = small_pipeline()
    return StableDiffusionPipeline(
        vae=sd.vae, text_encoder=sd.text_encoder, tokenizer=sd.tokenizer, unet=sd.unet, scheduler=sd.scheduler
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_latents_callback_of_the_course(pipe: StableDiffusionPipeline, dtype: torch.dtype) -> None:
    """In 50 steps, the default; in float16, which is slow on a CPU, in 4."""
    pipe.to(dtype=dtype)
    few = {} if dtype == torch.float32 else {"num_inference_steps": 4}
    prompt = PROMPT
    calls, arrays = [], []

    vae = pipe.vae
    images = []

    def latents_callback(i, t, latents):  # type: ignore[no-untyped-def]
        calls.append((i, int(t)))
        latents = 1 / 0.18215 * latents
        image = vae.decode(latents).sample[0]
        image = (image / 2 + 0.5).clamp(0, 1)
        image = image.cpu().permute(1, 2, 0).numpy()
        arrays.append(image.dtype)
        images.extend(pipe.numpy_to_pil(image))

    torch.manual_seed(9000)
    final_image = pipe(prompt, callback=latents_callback, callback_steps=12, **few).images[0]
    images.append(final_image)

    assert calls == ([(0, 751)] if few else [(0, 981), (12, 761), (24, 521), (36, 281), (48, 41)])
    assert len(images) == len(calls) + 1
    assert {image.size for image in images} == {(32, 32)}
    assert set(arrays) == {np.dtype(np.float16 if dtype == torch.float16 else np.float32)}
    torch.manual_seed(9000)
    assert same(pipe(prompt, **few).images[0], final_image)


def test_the_callback_gets_each_state(pipe: StableDiffusionPipeline) -> None:
    """The callback gets the timestep and the latents that the loop has after the same call."""
    states = {}
    pipe(PROMPT, num_inference_steps=4, generator=seeded(), callback=lambda i, t, x: states.update({i: (t, x)}))
    steps = list(pipe.core.denoise(PROMPT, num_inference_steps=4, generator=seeded()))
    assert list(states) == [0, 1, 2, 3, 4]
    for step in steps:
        assert int(states[step.i][0]) == int(step.t)
        assert torch.equal(states[step.i][1], step.latents)


def test_mutating_the_latents_changes_nothing(pipe: StableDiffusionPipeline) -> None:
    plain = pipe(PROMPT, num_inference_steps=4, generator=seeded(), output_type="np").images
    mutated = pipe(
        PROMPT,
        num_inference_steps=4,
        generator=seeded(),
        output_type="np",
        callback=lambda i, t, x: x.zero_(),
    ).images
    assert np.array_equal(plain, mutated)


def test_a_failing_callback(pipe: StableDiffusionPipeline) -> None:
    def fail(i: int, t: torch.Tensor, latents: torch.Tensor) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(CallbackError, match=r"step 0.*mine") as caught:
        pipe(PROMPT, num_inference_steps=2, callback=fail)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "12"])
def test_callback_steps_is_a_positive_whole_number(pipe: StableDiffusionPipeline, wrong: object) -> None:
    with pytest.raises(InputError, match="callback_steps"):
        pipe(PROMPT, num_inference_steps=2, callback=print, callback_steps=wrong)  # type: ignore[arg-type]


def test_callback_must_be_a_function(pipe: StableDiffusionPipeline) -> None:
    with pytest.raises(InputError, match="callback"):
        pipe(PROMPT, num_inference_steps=2, callback=5)  # type: ignore[arg-type]


def test_seeds(pipe: StableDiffusionPipeline) -> None:
    """torch.manual_seed is used; a given generator replaces it and does not touch the global one."""
    torch.manual_seed(3)
    by_global = pipe(PROMPT, num_inference_steps=2).images[0]
    assert same(by_global, pipe(PROMPT, num_inference_steps=2, generator=seeded(3)).images[0])
    assert not same(by_global, pipe(PROMPT, num_inference_steps=2).images[0])
    before = torch.random.get_rng_state()
    pipe(PROMPT, num_inference_steps=2, generator=seeded(3))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_arguments_reach_the_pipeline(pipe: StableDiffusionPipeline) -> None:
    latents = torch.randn(2, 4, 8, 12, generator=seeded())
    options = {"num_inference_steps": 3, "guidance_scale": 5.0, "latents": latents, "output_type": "np"}
    pipe.scheduler = DDIM()
    got = pipe(["a cat", "a dog"], 16, 24, negative_prompt=["blurry", "red"], **options).images
    assert got.shape == (2, 16, 24, 3)
    assert np.array_equal(got, pipe.core(["a cat", "a dog"], ["blurry", "red"], **options).images)
    assert not np.array_equal(got, pipe(["a cat", "a dog"], **options).images)
    noisy = pipe(["a cat", "a dog"], eta=1.0, generator=seeded(), **options).images
    assert np.array_equal(noisy, pipe.core(["a cat", "a dog"], eta=1.0, generator=seeded(), **options).images)
    assert len(pipe("a cat", num_inference_steps=1, num_images_per_prompt=3).images) == 3


def test_output_shapes(pipe: StableDiffusionPipeline) -> None:
    def make(**options: object) -> object:
        return pipe(PROMPT, num_inference_steps=2, generator=seeded(), **options)  # type: ignore[arg-type]

    output = make()
    assert output.images is output["images"] is output[0]
    assert isinstance(output.images[0], Image.Image)
    assert same(make(return_dict=False)[0][0], output.images[0])
    with pytest.raises(AttributeError, match="picture"):
        _ = output.picture
    with pytest.raises(KeyError):
        output["picture"]
    array = make(output_type="np").images
    tensor = make(output_type="pt").images
    assert torch.equal(tensor, torch.from_numpy(array).permute(0, 3, 1, 2))
    assert same(pipe.numpy_to_pil(array)[0], output.images[0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_to_pil(pipe: StableDiffusionPipeline, dtype: type) -> None:
    array = np.array([[[0.0, 0.25, 1.0], [0.5, 2.0, -1.0]]], dtype)
    assert [list(image.getdata()) for image in pipe.numpy_to_pil(array)] == [[(0, 64, 255), (128, 255, 0)]]
    assert len(pipe.numpy_to_pil(np.stack([array, array]))) == 2


def test_the_default_guidance_is_that_of_diffusers(pipe: StableDiffusionPipeline) -> None:
    """7.5, whatever the model's default is. The default of 50 steps is tested above."""
    pipe.core.defaults = Defaults(4, 2.0)
    options = {"num_inference_steps": 2, "generator": seeded(), "output_type": "np"}
    got = pipe(PROMPT, **options).images
    options["generator"] = seeded()
    assert np.array_equal(got, pipe.core(PROMPT, guidance_scale=7.5, **options).images)


@torch.no_grad()
def test_components_give_the_outputs_of_the_modules(pipe: StableDiffusionPipeline) -> None:
    pixels = torch.rand(1, 3, 16, 16, generator=seeded()) * 2 - 1
    gaussian, core = pipe.vae.encode(pixels).latent_dist, pipe.vae.core.encode(pixels)
    assert type(gaussian) is type(core)
    assert torch.equal(gaussian.sample(seeded()), core.sample(seeded()))
    z = core.mean
    assert torch.equal(pipe.vae.decode(z).sample, pipe.vae.core.decode(z))
    assert pipe.vae.config is pipe.vae.core.config
    assert pipe.vae.config.scaling_factor == 0.18215

    ids = pipe.tokenizer(PROMPT, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(ids, pipe.tokenizer.core(PROMPT))
    states = pipe.text_encoder(ids)
    assert states[0] is states.last_hidden_state is states["last_hidden_state"]
    assert torch.equal(states[0], pipe.text_encoder.core(ids))

    x, t = torch.randn(1, 4, 8, 8, generator=seeded()), torch.tensor(500)
    eps = pipe.unet.core(x, t, states[0])
    for got in (
        pipe.unet(x, t, encoder_hidden_states=states[0]).sample,
        pipe.unet(x, 500, states[0])["sample"],
        pipe.unet(x, t, states[0], return_dict=False)[0],
    ):
        assert torch.equal(got, eps)
    assert pipe.unet.in_channels == pipe.unet.config.in_channels == 4
    assert next(pipe.unet.parameters()) is next(pipe.unet.core.parameters())
    assert torch.equal(copy.deepcopy(pipe.vae).decode(z).sample, pipe.vae.decode(z).sample)
    with pytest.raises(AttributeError):
        _ = pipe.unet.no_such_thing


def test_the_decoder_can_be_differentiated(pipe: StableDiffusionPipeline) -> None:
    """For loss guidance: there is no hidden no_grad."""
    z = torch.zeros(1, 4, 8, 8, requires_grad=True)
    pipe.vae.decode(z).sample.mean().backward()
    assert z.grad is not None
    assert z.grad.abs().max() > 0


def test_components_make_another_pipeline(pipe: StableDiffusionPipeline) -> None:
    names = ["vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor"]
    assert list(pipe.components) == names
    other = StableDiffusionPipeline(**pipe.components)
    assert other.unet.core is pipe.unet.core
    other.scheduler = LMS()
    assert isinstance(pipe.scheduler.core, PNDM)  # each pipeline has its own
    results = [each(PROMPT, num_inference_steps=2, generator=seeded()).images[0] for each in (pipe, other)]
    assert not same(*results)
    with pytest.raises(InputError, match="scheduler"):
        pipe.scheduler = "LMS"  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        pipe.unet = other.unet  # type: ignore[misc]
    with pytest.raises(InputError, match="safety"):
        StableDiffusionPipeline(**{**pipe.components, "safety_checker": object()})


def test_to(pipe: StableDiffusionPipeline) -> None:
    assert pipe.to("cpu") is pipe
    assert pipe.vae.to("cpu") is pipe.vae
    with pytest.raises(DeviceError):
        pipe.to("cuda:99")


def test_from_pretrained(pipe: StableDiffusionPipeline, tmp_path) -> None:  # type: ignore[no-untyped-def]
    weights_loader.save(pipe.core, tmp_path / "model")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None).to("cpu")
    results = [each(PROMPT, num_inference_steps=2, generator=seeded()).images[0] for each in (pipe, again)]
    assert same(*results)


def test_the_tokenizer_equals_the_reference(pipe: StableDiffusionPipeline, tmp_path) -> None:  # type: ignore[no-untyped-def]
    reference = oracle_pipeline(tmp_path).tokenizer
    padded = {"padding": "max_length", "max_length": 77, "truncation": True}
    for text in (PROMPT, [PROMPT, "a cat"], ""):
        for options in ({}, padded, {**padded, "padding": False}):
            got, want = pipe.tokenizer(text, **options), reference(text, **options)  # type: ignore[arg-type]
            assert got.input_ids == got["input_ids"] == want.input_ids
            assert got.attention_mask == want.attention_mask
        got, want = (each(text, return_tensors="pt", **padded) for each in (pipe.tokenizer, reference))
        assert torch.equal(got.input_ids, want.input_ids)
        assert torch.equal(got.attention_mask, want.attention_mask)
    assert pipe.tokenizer.model_max_length == reference.model_max_length
    assert len(pipe.tokenizer) == len(reference)
    assert pipe.tokenizer("a cat", return_tensors="pt").input_ids.shape == (1, 4)
    for wrong in (
        {"max_length": 1},
        {"max_length": 78},
        {"padding": "right"},
        {"return_tensors": "np"},
    ):
        with pytest.raises(InputError):
            pipe.tokenizer("a cat", **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tokens"):
        pipe.tokenizer(["a cat", "cat"], return_tensors="pt")


def test_images_equal_the_reference(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """diffusers with the same weights: the latents in both callbacks, and the final image."""
    reference = oracle_pipeline(tmp_path / "tokenizer")
    reference.save_pretrained(tmp_path / "model")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    latents = torch.randn(1, 4, 16, 16, generator=seeded())
    options = {"num_inference_steps": 10, "latents": latents, "output_type": "np"}
    states: dict[str, dict[int, torch.Tensor]] = {"ours": {}, "theirs": {}}
    ours = pipe(PROMPT, callback=lambda i, t, x: states["ours"].update({i: x}), callback_steps=4, **options).images
    theirs = reference(
        PROMPT, callback=lambda i, t, x: states["theirs"].update({i: x.clone()}), callback_steps=4, **options
    ).images
    assert list(states["ours"]) == [0, 4, 8]  # current diffusers does not call back at the first of 11 calls
    assert set(states["theirs"]) <= set(states["ours"])
    assert len(states["theirs"]) >= 2
    for i, x in states["theirs"].items():
        assert (x - states["ours"][i]).abs().max() <= 1e-4 * x.abs().max()
    assert np.abs(ours - theirs).max() <= 1e-4
