"""The pipeline by itself: seeds, guidance, what it refuses, what it leaves alone, NaN, output types."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from support.small import small_pipeline
from torch import Tensor

from minisd._internal import memory
from minisd.errors import CallbackError, DeviceError, InputError, NumericalError, OutOfMemory
from minisd.models import CLIPTextTransformer
from minisd.pipeline import Defaults, DenoisingStep, StableDiffusion
from minisd.pipeline.noise import draw_noise
from minisd.schedulers import DDIM, LMS, PNDM

SIZE = {"height": 16, "width": 24}


@pytest.fixture(scope="module")
def sd1() -> StableDiffusion:
    return small_pipeline()


@pytest.fixture(scope="module")
def sd2() -> StableDiffusion:
    return small_pipeline(sd2=True)


def latents_of(sd: StableDiffusion, *args: Any, **others: Any) -> Tensor:
    return sd(*args, **{"num_inference_steps": 2, "output_type": "latent", **SIZE, **others}).images


def count_rows(sd: StableDiffusion, network: torch.nn.Module, run: Callable[[], object]) -> list[int]:
    """The batch size of each call of a network during a run."""
    rows: list[int] = []
    handle = network.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        run()
    finally:
        handle.remove()
    return rows


def assert_close(got: Tensor, expected: Tensor) -> None:
    """To 1e-5 of the scale: another batch size sums in another order."""
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Seeds.


def test_the_same_seed_gives_the_same_picture(sd1: StableDiffusion) -> None:
    first, again, other = (
        sd1("a cat", seed=seed, num_inference_steps=2, output_type="np", **SIZE) for seed in (5, 5, 6)
    )
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)
    assert first.seeds == [5]


def test_picture_k_of_a_batch_is_that_of_seed_plus_k(sd1: StableDiffusion) -> None:
    prompts = ["a cat", "a red dog", "above"]
    batch = sd1(prompts, seed=40, num_inference_steps=3, output_type="latent", **SIZE)
    assert batch.seeds == [40, 41, 42]
    for k, prompt in enumerate(prompts):
        single = latents_of(sd1, prompt, seed=40 + k, num_inference_steps=3)
        assert_close(batch.images[k, None], single)


def test_several_pictures_a_prompt_are_neighbours(sd1: StableDiffusion) -> None:
    both = latents_of(sd1, ["a cat", "a dog"], num_images_per_prompt=2, seed=7)
    for k, prompt in enumerate(("a cat", "a cat", "a dog", "a dog")):
        assert_close(both[k, None], latents_of(sd1, prompt, seed=7 + k))


def test_noise_inside_of_the_loop_belongs_to_the_picture_too(sd2: StableDiffusion) -> None:
    batch = latents_of(sd2, ["a cat"] * 2, seed=3, eta=1.0, num_inference_steps=2)
    single = latents_of(sd2, "a cat", seed=4, eta=1.0, num_inference_steps=2)
    assert_close(batch[1, None], single)
    assert (single - latents_of(sd2, "a cat", seed=4, num_inference_steps=2)).abs().max() > 1e-2


def test_smallest_and_largest_seed(sd1: StableDiffusion) -> None:
    largest = sd1("a cat", seed=2**64 - 1, num_images_per_prompt=2, num_inference_steps=1, output_type="latent", **SIZE)
    assert largest.seeds == [2**64 - 1, 0]  # round the corner
    assert_close(largest.images[1, None], latents_of(sd1, "a cat", seed=0, num_inference_steps=1))


def test_without_a_seed_one_is_drawn_and_returned(sd1: StableDiffusion) -> None:
    first = sd1("a cat", num_inference_steps=1, output_type="latent", **SIZE)
    assert first.seeds is not None
    assert first.seeds != sd1("a cat", num_inference_steps=1, output_type="latent", **SIZE).seeds
    assert torch.equal(latents_of(sd1, "a cat", seed=first.seeds[0], num_inference_steps=1), first.images)


def test_generators(sd1: StableDiffusion) -> None:
    def made(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    listed = latents_of(sd1, ["a cat", "a dog"], generator=made(11, 12))
    assert torch.equal(listed, latents_of(sd1, ["a cat", "a dog"], seed=11))
    one = sd1(
        "a cat",
        generator=made(11)[0],
        num_images_per_prompt=2,
        num_inference_steps=2,
        output_type="latent",
        **SIZE,
    )
    assert one.seeds is None
    assert_close(
        one.images,
        latents_of(sd1, ["a cat"] * 2, latents=noise(2, 4, 8, 12, seed=11), height=None, width=None),
    )


def test_noise_is_drawn_for_each_picture_by_its_own_generator() -> None:
    drawn = draw_noise((2, 3), [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    assert torch.equal(drawn, torch.stack([noise(3, seed=1), noise(3, seed=2)]))


# The loop.


def test_guidance_of_one_is_one_pass(sd1: StableDiffusion) -> None:
    """One row a picture; with anything else both halves come out of one batch."""
    steps = len(sd1.scheduler.grid(3))
    for guidance, rows in ((1, 2), (1.0, 2), (7.5, 4), (0, 4), (-1, 4)):

        def run(guidance: float = guidance) -> None:
            latents_of(sd1, ["a cat", "a dog"], seed=1, num_inference_steps=3, guidance_scale=guidance)

        assert count_rows(sd1, sd1.unet.conv_out, run) == [rows] * steps
        assert count_rows(sd1, sd1.text_encoder, run) == [rows]


def test_guidance_formula(sd2: StableDiffusion) -> None:
    """uncond + s (cond - uncond): 0 is the negative prompt alone, 1 the prompt alone; one step by hand."""
    x = noise(1, 4, 8, 12)
    given = {"latents": x, "num_inference_steps": 1, "height": None, "width": None}
    zero = latents_of(sd2, "a cat", negative_prompt="blurry", guidance_scale=0, **given)
    assert_close(zero, latents_of(sd2, "blurry", guidance_scale=1, **given))
    grid = sd2.scheduler.grid(1)
    with torch.no_grad():
        cond, uncond = (sd2.unet(x, grid.timesteps[0], sd2.encode_prompt([text])) for text in ("a cat", "blurry"))
    by_hand = sd2.scheduler.step(grid, 0, x, uncond + 5 * (cond - uncond)).x_prev
    got = latents_of(sd2, "a cat", negative_prompt="blurry", guidance_scale=5, **given)
    assert_close(got, by_hand)


def test_latents_are_unit_noise_scaled_by_the_scheduler() -> None:
    sd = small_pipeline()
    sd.scheduler = LMS()
    x = noise(1, 4, 8, 12)
    grid = sd.scheduler.grid(2)
    assert grid.init_noise_sigma > 10
    seen: list[Tensor] = []
    handle = sd.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    next(iter(sd.denoise("a cat", latents=x, num_inference_steps=2, guidance_scale=1)))
    handle.remove()
    expected = x * grid.init_noise_sigma / math.hypot(grid.sigmas[0], 1)
    assert_close(seen[0], expected)


def test_given_latents_are_what_a_seed_would_draw(sd1: StableDiffusion) -> None:
    given = latents_of(sd1, "a cat", latents=noise(1, 4, 8, 12, seed=9), height=None, width=None)
    assert torch.equal(given, latents_of(sd1, "a cat", seed=9))
    asked_too = latents_of(sd1, "a cat", latents=noise(1, 4, 8, 12, seed=9))
    assert torch.equal(given, asked_too)


def test_the_callers_things_stay_as_they_are(sd2: StableDiffusion) -> None:
    x, prompts, negative = noise(2, 4, 8, 12), ["a cat", "a dog"], ["blurry", ""]
    before, scheduler = x.clone(), sd2.scheduler
    rng, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    weights = {name: tensor.clone() for name, tensor in sd2.unet.state_dict().items()}
    list(sd2.denoise(prompts, negative, latents=x, num_inference_steps=2, eta=0.5))
    sd2(prompts, negative, seed=1, num_inference_steps=1, output_type="pil", **SIZE)
    assert torch.equal(x, before)
    assert prompts == ["a cat", "a dog"]
    assert negative == ["blurry", ""]
    assert torch.equal(torch.get_rng_state(), rng)
    assert np.array_equal(np.random.get_state()[1], np_state)
    assert sd2.scheduler is scheduler
    assert scheduler.eta == 0
    assert all(torch.equal(sd2.unet.state_dict()[name], tensor) for name, tensor in weights.items())


def test_changing_what_a_step_shows_does_not_change_later_runs(sd1: StableDiffusion) -> None:
    right = latents_of(sd1, "a cat", seed=1, num_inference_steps=3)

    def vandal(i: int, t: Tensor, latents: Tensor) -> None:
        latents.zero_()

    assert torch.equal(latents_of(sd1, "a cat", seed=1, num_inference_steps=3, callback=vandal), right)
    for step in sd1.denoise("a cat", seed=1, num_inference_steps=3, **SIZE):
        step.x0.zero_()
        last = step
    assert torch.equal(last.latents, right)


def test_callback_that_fails_is_named(sd1: StableDiffusion) -> None:
    def fail(i: int, t: Tensor, latents: Tensor) -> None:
        raise KeyError("mine")

    with pytest.raises(CallbackError, match="step 0") as caught:
        sd1("a cat", seed=1, num_inference_steps=1, callback=fail, **SIZE)
    assert isinstance(caught.value.__cause__, KeyError)


def test_the_iterator_is_the_call(sd1: StableDiffusion) -> None:
    steps = list(sd1.denoise("a cat", seed=2, num_inference_steps=3, **SIZE))
    assert torch.equal(steps[-1].latents, latents_of(sd1, "a cat", seed=2, num_inference_steps=3))
    grid = sd1.scheduler.grid(3)
    assert [step.i for step in steps] == list(range(len(grid)))
    assert torch.equal(torch.stack([step.t for step in steps]), grid.timesteps)
    assert all(isinstance(step, DenoisingStep) and step.x0.shape == (1, 4, 8, 12) for step in steps)


def test_breaking_off_leaves_everything_usable(sd1: StableDiffusion) -> None:
    right = latents_of(sd1, "a cat", seed=2)
    calls = count_rows(sd1, sd1.unet, lambda: next(iter(sd1.denoise("a cat", seed=2, num_inference_steps=50, **SIZE))))
    assert len(calls) == 1
    for step in sd1.denoise("a dog", seed=2, num_inference_steps=50, **SIZE):
        if step.i == 1:
            break
    assert torch.is_grad_enabled()
    assert torch.equal(latents_of(sd1, "a cat", seed=2), right)


def test_two_runs_side_by_side_do_not_meet(sd1: StableDiffusion) -> None:
    alone = [latents_of(sd1, text, seed=1, num_inference_steps=3) for text in ("a cat", "a dog")]
    runs = [sd1.denoise(text, seed=1, num_inference_steps=3, **SIZE) for text in ("a cat", "a dog")]
    last = list(zip(*runs, strict=True))[-1]
    assert all(torch.equal(step.latents, right) for step, right in zip(last, alone, strict=True))


def test_denoise_checks_when_called_and_works_when_asked(sd1: StableDiffusion) -> None:
    def refuse() -> None:
        with pytest.raises(InputError, match=r"num_inference_steps|steps"):
            sd1.denoise("a cat", num_inference_steps=0)

    assert count_rows(sd1, sd1.text_encoder, refuse) == []
    assert count_rows(sd1, sd1.text_encoder, lambda: sd1.denoise("a cat", num_inference_steps=1)) == []


def test_grad_mode_is_the_callers(sd1: StableDiffusion) -> None:
    """On inside of a loop body, although the networks run without."""
    for step in sd1.denoise("a cat", seed=1, num_inference_steps=1, **SIZE):
        assert torch.is_grad_enabled()
        assert not step.latents.requires_grad
    steps = sd1.denoise("a cat", seed=1, num_inference_steps=2, **SIZE)
    with torch.no_grad():
        next(steps)
        assert not torch.is_grad_enabled()
    with torch.enable_grad():
        next(steps)
        assert torch.is_grad_enabled()


def test_defaults_travel_with_the_model() -> None:
    sd = small_pipeline()
    sd.defaults = Defaults(num_inference_steps=2, guidance_scale=3.0)
    sd.scheduler = DDIM()
    plain = sd("a cat", seed=1, output_type="latent").images
    assert plain.shape == (1, 4, 16, 16)
    assert torch.equal(plain, latents_of(sd, "a cat", seed=1, guidance_scale=3.0, height=None, width=None))


def test_a_model_of_a_small_world_says_which_words_it_never_learned(sd1: StableDiffusion) -> None:
    sd = small_pipeline()
    sd.defaults = Defaults(num_inference_steps=1, words="a red circle")
    with pytest.warns(UserWarning, match=r"not trained on the words 'dog', 'blue', .* them; `minisd inspect` .* 3\."):
        sd.denoise("A red dog, a dog", "blue", **SIZE)
    with pytest.warns(UserWarning, match=r"words 'circel', 'reds', 'blue', so .* similar .* knows: 'circle', 'red'; `"):
        sd.denoise("circel, reds", "blue", **SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sd.denoise("a Red circle.", **SIZE)
        sd1.denoise("a dog", **SIZE)  # lists no words, so knows any


def test_half_a_character_is_refused_before_any_work(sd1: StableDiffusion) -> None:
    """By the name of what it was given as, whoever is told first."""
    for given, name in ((("a cat", "b\ud83d"), "prompt 1"), ("\udc00", "prompt")):
        with pytest.raises(InputError, match=f"{name} holds half of a surrogate pair"):
            sd1.denoise(given, **SIZE)
        with pytest.raises(InputError, match=f"negative_{name} holds half of a surrogate pair"):
            sd1.denoise(["a cat"] * 2 if name == "prompt 1" else "a cat", given, **SIZE)


def test_decoding_divides_by_the_scaling_factor_once(sd1: StableDiffusion) -> None:
    x = noise(2, 4, 8, 12)
    with torch.no_grad():
        raw = sd1.vae.decode(x / 0.18215)
        assert_close(sd1.decode(x), raw.clamp(-1, 1))
        pixels = noise(1, 3, 16, 24).clamp(-1, 1)
        expected = sd1.vae.encode(pixels).sample(torch.Generator().manual_seed(1)) * 0.18215
    assert torch.equal(sd1.encode(pixels, torch.Generator().manual_seed(1)), expected)


def test_output_types(sd1: StableDiffusion) -> None:
    outputs = {
        kind: sd1(["a cat", "a dog"], seed=3, num_inference_steps=1, output_type=kind, **SIZE).images
        for kind in ("pil", "np", "pt", "latent")
    }
    assert outputs["latent"].shape == (2, 4, 8, 12)
    assert outputs["pt"].shape == (2, 3, 16, 24)
    assert outputs["np"].shape == (2, 16, 24, 3)
    assert outputs["np"].dtype == np.float32
    assert all(isinstance(image, PIL.Image.Image) and image.size == (24, 16) for image in outputs["pil"])
    assert_close(outputs["pt"], sd1.decode(outputs["latent"]))
    np.testing.assert_allclose(outputs["np"], outputs["pt"].permute(0, 2, 3, 1).numpy() / 2 + 0.5, atol=1e-6)
    assert np.array_equal(np.asarray(outputs["pil"][1]), (outputs["np"][1] * 255).round().astype(np.uint8))


# NaN: the stage is named, no black picture.


@pytest.mark.parametrize(
    ("network", "stage"), [("text_encoder", "text states"), ("unet", "latents"), ("vae", "decoded pixels")]
)
def test_damaged_weights_are_no_black_picture(network: str, stage: str) -> None:
    sd = small_pipeline()
    parameters = dict(getattr(sd, network).named_parameters())
    name = {"text_encoder": "final_norm.weight", "unet": "conv_out.bias", "vae": "decoder.conv_out.bias"}[network]
    with torch.no_grad():
        parameters[name][0] = math.nan
    with pytest.raises(NumericalError, match=stage):
        sd("a cat", seed=1, num_inference_steps=1, **SIZE)


def test_enormous_guidance_overflows_with_a_word() -> None:
    sd = small_pipeline()
    with torch.no_grad():
        sd.unet.conv_out.weight.mul_(1e37)
    with pytest.raises(NumericalError, match="step 0"):
        sd("a cat", seed=1, num_inference_steps=2, guidance_scale=1000, **SIZE)


class Unusable:
    """Neither a number nor a text can be made of it."""

    def __index__(self) -> int:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")


# What is refused, before any work: reference/reliability.md, N and P rows.

BAD: list[tuple[str, dict[str, Any], str]] = [
    *((f"N1 steps {n!r}", {"num_inference_steps": n}, "1..1000") for n in (0, -1, 2.5, "3", True, math.nan)),
    *((f"N3 steps {n!r}", {"num_inference_steps": n}, "1..1000") for n in (1001, 2000)),
    *((f"N5 guidance {g!r}", {"guidance_scale": g}, "guidance_scale") for g in (math.nan, math.inf, -math.inf)),
    *((f"N5 guidance {g!r}", {"guidance_scale": g}, "guidance_scale") for g in ("7.5", True, 1e9)),
    ("N7 height 17", {"height": 17}, "16 or 18"),
    ("N7 width 513", {"width": 513}, "512 or 514"),
    *((f"N8 height {s!r}", {"height": s}, "height") for s in (0, -8, 1, 3, 16.0, "16", True)),
    *((f"N8 width {s!r}", {"width": s}, "width") for s in (0, -8, 2, 2.5, "x")),
    ("N10 huge", {"height": 65536, "width": 65536}, "GiB"),
    *((f"N11 seed {s!r}", {"seed": s}, "seed") for s in (-1, 2**64, 1.5, math.nan, "1", True)),
    *((f"N14 eta {e!r}", {"eta": e}, "eta") for e in (-0.1, 1.1, 2, math.nan, "0", True)),
    ("N14 eta without DDIM", {"eta": 0.5}, "only DDIM.*PNDM"),
    *((f"N15 images {n!r}", {"num_images_per_prompt": n}, "num_images_per_prompt") for n in (0, -1, 1.5, 10**9, True)),
    ("N15 huge", {"num_images_per_prompt": 10_000, "height": 8192, "width": 8192}, "GiB"),
    ("N15 generators", {"generator": [torch.Generator()] * 2}, "2 generators for 1"),
    ("generator of another kind", {"generator": [1]}, "torch.Generator"),
    ("seed and generator", {"seed": 1, "generator": torch.Generator()}, "one of them"),
    ("P8 negatives", {"negative_prompt": ["a", "b"]}, "negative_prompt holds 2 texts for 1"),
    ("prompt None", {"prompt": None}, "prompt is NoneType"),
    ("prompt number", {"prompt": 3}, "prompt is int"),
    ("prompt bytes", {"prompt": b"cat"}, "prompt is bytes"),
    ("no prompts", {"prompt": []}, "empty list"),
    ("prompts of numbers", {"prompt": ["a", 3]}, "prompt 1 is int"),
    ("negative number", {"negative_prompt": 3}, "negative_prompt is int"),
    ("number of 5,000 digits", {"seed": 10**5000}, "seed is a int that cannot be shown"),
    ("number that fails", {"seed": Unusable()}, "seed is "),
    ("latents without data", {"latents": torch.zeros(1, 4, 8, 8, device="meta")}, "latents is a tensor without data"),
    ("latents sparse", {"latents": torch.zeros(1, 4, 8, 8).to_sparse()}, "latents is a tensor .*sparse"),
    ("one generator", {"generator": 5}, "torch.Generator"),
    ("steps as a picture", {"num_inference_steps": torch.zeros(64, 64)}, "1..1000"),
    ("too many pixels of one kind", {"height": 1_048_576}, "height is 1048576"),
    ("output type", {"output_type": "jpeg"}, "output_type is 'jpeg'"),
    ("callback", {"callback": 3}, "callback is 3"),
    *((f"callback_steps {n!r}", {"callback_steps": n}, "callback_steps") for n in (0, -1, 1.5, True)),
    ("latents of another batch", {"latents": torch.zeros(2, 4, 8, 8)}, r"\(2, 4, 8, 8\), expected \(1, 4"),
    ("latents of other channels", {"latents": torch.zeros(1, 3, 8, 8)}, r"expected \(1, 4"),
    ("latents flat", {"latents": torch.zeros(4, 8, 8)}, r"expected \(1, 4"),
    ("latents list", {"latents": [1]}, "latents are list"),
    ("latents whole", {"latents": torch.zeros(1, 4, 8, 8, dtype=torch.int64)}, "whole numbers"),
    ("latents NaN", {"latents": torch.full((1, 4, 8, 8), math.nan)}, "NaN"),
    ("latents tiny", {"latents": torch.zeros(1, 4, 1, 8)}, "height of 1"),
    ("latents and seed", {"latents": torch.zeros(1, 4, 8, 8), "seed": 1}, "seed"),
    ("latents and height", {"latents": torch.zeros(1, 4, 8, 8), "height": 32}, "height is 32.*16"),
]


@pytest.mark.parametrize(("arguments", "message"), [(a, m) for _, a, m in BAD], ids=[name for name, _, _ in BAD])
def test_refused_before_any_work(sd1: StableDiffusion, arguments: dict[str, Any], message: str) -> None:
    def run() -> None:
        with pytest.raises(InputError, match=message) as caught:
            sd1(**{"prompt": "a cat", "num_inference_steps": 1, **arguments})
        assert "\n" not in str(caught.value)

    assert count_rows(sd1, sd1.text_encoder, run) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_inference_steps": np.int64(1)},
        {"guidance_scale": np.float64(2.0)},
        {"guidance_scale": -3},
        {"height": 4, "width": 4},
        {"height": 4, "width": 64},
        {"seed": np.uint64(2**64 - 1)},
        {"prompt": ("a cat",)},
        {"prompt": ""},
        {"prompt": ["a cat", ""], "negative_prompt": ["blurry", "red"]},
        {"callback_steps": np.int32(3)},
    ],
    ids=str,
)
def test_accepted(sd1: StableDiffusion, arguments: dict[str, Any]) -> None:
    result = latents_of(sd1, **{"prompt": "a cat", "num_inference_steps": 1, **arguments})
    assert torch.isfinite(result).all()


def test_one_and_a_thousand_steps(sd1: StableDiffusion) -> None:
    """N2: both valid; a thousand is checked without being run."""
    assert torch.isfinite(latents_of(sd1, "a cat", seed=1, num_inference_steps=1)).all()
    sd1.denoise("a cat", num_inference_steps=1000)
    times = DDIM().grid(1000).timesteps
    assert len(times) == len(times.unique()) == 1000


def test_components_that_do_not_fit_are_refused() -> None:
    sd = small_pipeline()
    wide = CLIPTextTransformer(replace(sd.text_encoder.config, width=128))
    with pytest.raises(InputError, match="128, the UNet expects 64"):
        StableDiffusion(sd.tokenizer, wide, sd.vae, sd.unet, sd.scheduler)
    few = CLIPTextTransformer(replace(sd.text_encoder.config, vocab_size=100))
    with pytest.raises(InputError, match="text encoder 100"):
        StableDiffusion(sd.tokenizer, few, sd.vae, sd.unet, sd.scheduler)


def test_inpainting_unet_is_not_for_text_to_image() -> None:
    """F26: refused with the reason, before any work."""
    sd = small_pipeline(in_channels=9)
    with pytest.raises(InputError, match=r"inpainting model.*4 channels"):
        sd("a cat")
    with pytest.raises(InputError, match="inpainting"):
        sd.denoise("a cat")


def test_half_precision_keeps_latents_in_float32() -> None:
    sd = small_pipeline().to(dtype=torch.bfloat16)
    assert sd.dtype == torch.bfloat16
    x = noise(1, 4, 8, 12)
    got = latents_of(sd, "a cat", latents=x, height=None, width=None, guidance_scale=2.0)
    assert got.dtype == torch.float32
    exact = latents_of(small_pipeline(), "a cat", latents=x, height=None, width=None, guidance_scale=2.0)
    assert (got - exact).abs().max() < 0.2 * exact.abs().max()


def test_steps_of_pndm_are_one_more_call() -> None:
    """The warm-up of PNDM: the iterator yields calls, so the bar is as long as the work."""
    assert len(PNDM().grid(4)) == 5
    sd = small_pipeline()
    steps: Iterator[DenoisingStep] = sd.denoise("a cat", seed=1, num_inference_steps=4, **SIZE)
    assert len(list(steps)) == 5


def test_printing_a_pipeline_says_what_it_is(sd1: StableDiffusion) -> None:
    lines = repr(sd1).splitlines()
    assert [line.split()[0] for line in lines] == ["StableDiffusion,", "task", "parts", "sampler", "runs", "source"]
    count = sum(p.numel() for p in sd1.unet.parameters())
    assert f"UNet {count:,}" in lines[2]
    assert "PNDM, epsilon" in lines[3]
    assert "float32 on cpu" in lines[4]
    assert "built from components" in lines[5]


def test_a_misspelt_argument_is_refused(sd1: StableDiffusion) -> None:
    for call in (sd1, sd1.denoise):
        with pytest.raises(TypeError, match="unexpected keyword argument 'num_steps'"):
            call("a cat", num_steps=3)


def test_numbers_of_numpy_and_torch_and_none_for_not_given(sd1: StableDiffusion) -> None:
    """Wherever a number is asked; None is the default of each argument."""
    image = PIL.Image.new("RGB", (24, 16), "red")
    plain = sd1("a cat", image=image, seed=5, strength=0.5, guidance_scale=2.5, num_inference_steps=4)
    numbers: dict[str, Any] = {
        "seed": np.uint64(5), "strength": np.float32(0.5), "guidance_scale": torch.tensor(2.5), "height": np.int32(16),
        "width": np.array(24), "num_inference_steps": np.int64(4), "num_images_per_prompt": torch.tensor(1),
        "eta": np.float16(0), "guidance_rescale": np.longdouble(0), "callback_steps": np.uint8(1),
    }  # fmt: skip
    assert sd1("a cat", image=image, **numbers).images[0].tobytes() == plain.images[0].tobytes()
    none = dict.fromkeys(("negative_prompt", "num_images_per_prompt", "eta", "guidance_rescale", "callback_steps"))
    again = sd1("a cat", image=image, seed=5, strength=0.5, guidance_scale=2.5, num_inference_steps=4, **none)
    assert again.images[0].tobytes() == plain.images[0].tobytes()
    with pytest.raises(InputError, match="seed is True"):
        sd1("a cat", seed=np.bool_(True))


def test_to_takes_a_dtype_alone_and_refuses_before_anything_moves() -> None:
    sd = small_pipeline()
    assert sd.to(torch.bfloat16).dtype == torch.bfloat16
    assert sd.to("cpu:0", torch.float32).dtype == torch.float32
    for arguments, error in ((("meta",), DeviceError), (("nonsense",), DeviceError), ((torch.int8,), InputError)):
        with pytest.raises(error, match="expected"):
            sd.to(*arguments)
    assert (sd.dtype, sd.device.type) == (torch.float32, "cpu")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
@pytest.mark.parametrize("stage", ["text_encoder", "unet", "vae"])
def test_out_of_memory_in_any_stage(stage: str, error: Exception) -> None:
    sd = small_pipeline()

    def fail(*_: object) -> None:
        raise error

    network = getattr(sd, stage)
    handle = (network.decoder if stage == "vae" else network).register_forward_pre_hook(fail)
    with pytest.raises(OutOfMemory, match=r"needed (2.00 GiB|9 bytes|memory) more, .* were left; choose a smaller"):
        sd("a cat", seed=1, num_inference_steps=1, **SIZE)
    handle.remove()
    sd("a cat", seed=1, num_inference_steps=1, **SIZE)


def test_the_estimate_knows_the_whole_run_and_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    sd = small_pipeline()
    monkeypatch.setattr(memory, "available", lambda device=None: 100 * 2**20)
    for arguments in ({"num_images_per_prompt": 2000}, {"height": 1024, "width": 1024}):
        with pytest.raises(OutOfMemory, match=r"needs about .*, 100 MiB are free or allowed"):
            sd.denoise("a cat", **{**SIZE, **arguments})
    sd.denoise("a cat", **SIZE)


@pytest.mark.parametrize(
    ("where", "count"), [((0, 0, 0, 0), 0), ((5, 0, 6, 16), 1), ((0, 0, 24, 16), 0), ((0, 0, 24, 15), 1)]
)
def test_a_mask_whose_marks_are_lost_is_said(sd1: StableDiffusion, where: tuple[int, ...], count: int) -> None:
    """Cells are 2 x 2 pixels, and the first pixel of each decides."""
    mask = PIL.Image.new("L", (24, 16))
    mask.paste(255, where)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sd1.denoise("a cat", image=PIL.Image.new("RGB", (24, 16)), mask_image=mask)
    assert len(caught) == count, [str(each.message) for each in caught]
