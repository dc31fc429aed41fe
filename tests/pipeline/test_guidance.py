"""Steering: guidance for each step, rescaled guidance, text states in place of texts, guidance by a loss."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from support.small import oracle_pipeline, small_pipeline, small_tokenizer, text_like, unet_like, vae_like
from torch import Tensor

from minisd.errors import CallbackError, InputError, MinisdError
from minisd.pipeline import StableDiffusion, guidance
from minisd.pipeline.loss_guidance import Guide
from minisd.schedulers import DDIM, DDPM, LMS, Heun, Scheduler

SIZE = {"height": 16, "width": 24}
CLOSE = 1e-5


@pytest.fixture(scope="module")
def sd1() -> StableDiffusion:
    return small_pipeline()


@pytest.fixture(scope="module")
def sd2() -> StableDiffusion:
    return small_pipeline(sd2=True)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def latents_of(sd: StableDiffusion, *args: Any, **others: Any) -> Tensor:
    return sd(*args, **{"num_inference_steps": 3, "seed": 1, "output_type": "latent", **SIZE, **others}).images


def distance(got: Tensor, expected: Tensor) -> float:
    """Relative to the largest value."""
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())


def with_sampler(sd: StableDiffusion, scheduler: Scheduler) -> StableDiffusion:
    return StableDiffusion(sd.tokenizer, sd.text_encoder, sd.vae, sd.unet, scheduler)


def both(tmp_path: Path, sd2: bool) -> tuple[StableDiffusion, Any]:
    """Ours and the reference's, two levels, the same random weights."""
    theirs = oracle_pipeline(tmp_path, sd2)
    scheduler = Scheduler.from_config({**theirs.scheduler.config, "_class_name": type(theirs.scheduler).__name__})
    parts = (text_like(theirs.text_encoder), vae_like(theirs.vae), unet_like(theirs.unet))
    return StableDiffusion(small_tokenizer(sd2), *parts, scheduler), theirs


# A scale for each step.


@pytest.mark.parametrize("kind", ["list", "tuple", "array", "tensor", "function"])
def test_a_scale_for_each_call(kind: str) -> None:
    values = [3.0, 1.0, 0.0, -2.5]
    given: dict[str, Any] = {"list": values, "tuple": tuple(values), "array": np.array(values)}
    given |= {"tensor": torch.tensor(values), "function": lambda i: values[i]}
    assert guidance.scales(given[kind], 4) == tuple(values)
    assert guidance.scales(7, 3) == (7.0, 7.0, 7.0)


@pytest.mark.parametrize("sd2_like", [False, True])
def test_guidance_of_each_step_is_the_references(tmp_path: Path, sd2_like: bool) -> None:
    """The reference has no such argument; its scale is changed from a callback. With PNDM: 5 calls for 4 steps."""
    ours, theirs = both(tmp_path, sd2_like)
    scales = [7.5, 3.0, 2.0, 5.0, 1.5]
    scales = scales[: len(ours.scheduler.grid(4))]

    def next_scale(pipe: Any, i: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._guidance_scale = scales[min(i + 1, len(scales) - 1)]
        return {}

    call = {"num_inference_steps": 4, "latents": noise(2, 4, 8, 12), "negative_prompt": ["blurry", ""]}
    prompts = ["a red cat", "a dog"]
    expected = theirs(
        prompts, **call, guidance_scale=scales[0], output_type="latent", callback_on_step_end=next_scale, **SIZE
    ).images
    got = ours(prompts, **call, guidance_scale=scales, output_type="latent").images
    assert distance(got, expected) < CLOSE
    assert distance(ours(prompts, **call, guidance_scale=7.5, output_type="latent").images, expected) > 0.01


def test_guidance_of_each_step_by_hand(sd2: StableDiffusion) -> None:
    x, scales = noise(1, 4, 8, 12), (4.0, 1.0, -1.0)
    got = [
        step.latents for step in sd2.denoise("a cat", "a dog", latents=x, num_inference_steps=3, guidance_scale=scales)
    ]
    grid = sd2.scheduler.grid(3)
    with torch.no_grad():
        cond, uncond = (sd2.encode_prompt([text]) for text in ("a cat", "a dog"))
        for i, t in enumerate(grid.timesteps):
            a, b = sd2.unet(x, t, cond), sd2.unet(x, t, uncond)
            x = sd2.scheduler.step(grid, i, x, b + scales[i] * (a - b)).x_prev
            assert distance(got[i], x) < CLOSE


def test_a_step_without_guidance_is_one_pass(sd2: StableDiffusion) -> None:
    """And a run of equal scales is the run of one."""
    rows: list[int] = []
    handle = sd2.unet.conv_out.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    latents_of(sd2, ["a cat", "a dog"], guidance_scale=[1, 3, 1.0])
    handle.remove()
    assert rows == [2, 4, 2]
    assert torch.equal(latents_of(sd2, "a cat", guidance_scale=[3] * 3), latents_of(sd2, "a cat", guidance_scale=3))
    assert torch.equal(latents_of(sd2, "a cat", guidance_scale=lambda i: 1), latents_of(sd2, "a cat", guidance_scale=1))


def test_image_to_image_counts_its_own_calls(sd2: StableDiffusion) -> None:
    picture = noise(1, 3, 16, 24).clamp(-1, 1)
    call = {"image": picture, "strength": 0.5, "num_inference_steps": 4, "height": None, "width": None}
    assert torch.equal(
        latents_of(sd2, "a cat", guidance_scale=[3, 3], **call), latents_of(sd2, "a cat", guidance_scale=3, **call)
    )
    with pytest.raises(InputError, match="holds 4 numbers, expected 2"):
        latents_of(sd2, "a cat", guidance_scale=[3] * 4, **call)


# Rescaled guidance.


@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
def test_rescaling_is_the_references(rescale: float) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    uncond, cond = noise(3, 4, 5, 7), noise(3, 4, 5, 7, seed=1) * torch.tensor([0.5, 1, 2])[:, None, None, None]
    expected = rescale_noise_cfg(uncond + 7.5 * (cond - uncond), cond, rescale)
    assert distance(guidance.combine(uncond, cond, 7.5, rescale), expected) < 1e-6
    whole = guidance.combine(uncond, cond, 7.5, 1.0)
    assert torch.allclose(whole.std((1, 2, 3)), cond.std((1, 2, 3)))  # a picture at a time


@pytest.mark.parametrize("sd2_like", [False, True])
def test_pictures_with_rescaled_guidance_are_the_references(tmp_path: Path, sd2_like: bool) -> None:
    ours, theirs = both(tmp_path, sd2_like)
    call: dict[str, Any] = {
        "num_inference_steps": 4,
        "latents": noise(2, 4, 8, 12),
        "guidance_scale": 6.0,
        "output_type": "latent",
    }
    prompts = ["a red cat", "a dog"]
    expected = theirs(prompts, **call, guidance_rescale=0.7, **SIZE).images
    assert distance(ours(prompts, **call, guidance_rescale=0.7).images, expected) < CLOSE
    assert distance(ours(prompts, **call).images, expected) > 0.01


# Text states in place of texts.


def test_text_states_are_the_prompt_bit_for_bit(sd1: StableDiffusion) -> None:
    states = sd1.encode_prompt(["blurry", "red", "a cat", "a dog"])  # as the pipeline does it, in one batch
    expected = latents_of(sd1, ["a cat", "a dog"], negative_prompt=["blurry", "red"])
    got = latents_of(sd1, prompt_embeds=states[2:], negative_prompt_embeds=states[:2])
    assert torch.equal(got, expected)
    unguided = latents_of(sd1, "a cat", guidance_scale=1)
    assert torch.equal(latents_of(sd1, prompt_embeds=sd1.encode_prompt(["a cat"]), guidance_scale=1), unguided)


def test_states_and_texts_mix_and_repeat(sd1: StableDiffusion) -> None:
    expected = latents_of(sd1, ["a cat", "a dog"], negative_prompt="blurry", num_images_per_prompt=2)
    states, negative = sd1.encode_prompt(["a cat", "a dog"]), sd1.encode_prompt(["blurry"])
    before = states.clone()
    one = latents_of(sd1, prompt_embeds=states, negative_prompt="blurry", num_images_per_prompt=2)
    two = latents_of(sd1, ["a cat", "a dog"], negative_prompt_embeds=negative, num_images_per_prompt=2)
    assert distance(one, expected) < CLOSE
    assert distance(two, expected) < CLOSE
    assert torch.equal(states, before)


def test_states_of_another_length(sd1: StableDiffusion) -> None:
    """Two prompts one after the other, as for long ones."""
    long, empty = (sd1.encode_prompt([text]).repeat(1, 2, 1) for text in ("a cat", ""))
    got = latents_of(sd1, prompt_embeds=long, negative_prompt_embeds=empty)
    assert distance(got, latents_of(sd1, "a cat")) < CLOSE  # attention to everything twice is the same
    with pytest.raises(InputError, match="154 long, those of the negative prompt 77"):
        sd1.denoise(prompt_embeds=long)


# What is refused, before any work.

STATES = torch.zeros(1, 77, 64)
BAD: list[tuple[dict[str, Any], str]] = [
    ({"guidance_scale": [1, 2]}, "holds 2 numbers, expected 3"),
    ({"guidance_scale": []}, "holds 0 numbers"),
    ({"guidance_scale": [1, 2, math.nan]}, "guidance_scale is nan"),
    ({"guidance_scale": [1, 2, "3"]}, "guidance_scale is '3'"),
    ({"guidance_scale": lambda i: 1 / (i - 1)}, "ZeroDivisionError.*0..2"),
    ({"guidance_scale": lambda i: None}, "guidance_scale is None"),
    ({"guidance_scale": {1: 2}}, "guidance_scale is {1: 2}"),
    *(({"guidance_rescale": r}, "guidance_rescale") for r in (-0.1, 1.1, math.nan, "0.7", True)),
    ({"prompt_embeds": STATES}, "both given"),
    ({"negative_prompt_embeds": STATES, "negative_prompt": "a"}, "negative_prompt_embeds were both"),
    ({"prompt": None}, "prompt is NoneType"),
    ({"prompt": None, "prompt_embeds": STATES[0]}, r"prompt_embeds is \(77, 64\), expected a tensor"),
    ({"prompt": None, "prompt_embeds": STATES[:, :, 1:]}, r"\(1, 77, 63\).*64"),
    ({"prompt": None, "prompt_embeds": STATES[:0]}, r"\(0, 77, 64\)"),
    ({"prompt": None, "prompt_embeds": [1.0]}, "prompt_embeds is list"),
    ({"prompt": None, "prompt_embeds": STATES / 0}, "NaN"),
    ({"prompt": None, "prompt_embeds": STATES.long()}, "int64"),
    ({"prompt": None, "prompt_embeds": STATES[:, :70]}, "70 long"),
    ({"negative_prompt_embeds": STATES.repeat(3, 1, 1)}, "holds 3 text states for 1"),
    ({"guide": 3}, "guide is 3"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_refused_before_any_work(sd2: StableDiffusion, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        sd2.denoise(**{"prompt": "a cat", "num_inference_steps": 3, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad", [{"scale": math.nan}, {"scale": "1"}, {"every": 0}, {"every": 1.5}, {"through_unet": 1}]
)
def test_settings_of_a_guide_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the guide's"):
        Guide(lambda x0, i: x0.sum(), **bad)


# Guidance by a loss.


def blueness(sd: Any) -> Callable[[Tensor], Tensor]:
    """The lesson's: how far the blue of a decoded picture is from 0.9."""
    return lambda x0: (sd.vae.decode(x0 / 0.18215)[:, 2] / 2 + 0.5 - 0.9).abs().mean()


def test_the_blue_loss_of_the_lesson(tmp_path: Path) -> None:
    """Its loop, written out on the reference's networks and sampler: the UNet's output counts as given."""
    ours, theirs = both(tmp_path, sd2=False)
    ours.scheduler = LMS()
    sampler = diffusers.LMSDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    sampler.set_timesteps(8)
    x = noise(1, 4, 8, 12) * sampler.init_noise_sigma
    states = ours.encode_prompt(["", "a cat"])
    for i, t in enumerate(sampler.timesteps):
        with torch.no_grad():
            seen = sampler.scale_model_input(torch.cat([x] * 2), t)
            uncond, cond = theirs.unet(seen, t, encoder_hidden_states=states).sample.chunk(2)
        eps = uncond + 8 * (cond - uncond)
        if i % 5 == 0:
            sigma = sampler.sigmas[i]
            x = x.detach().requires_grad_()
            pixels = theirs.vae.decode((x - sigma * eps) / 0.18215).sample / 2 + 0.5
            loss = (pixels[:, 2] - 0.9).abs().mean() * 200
            x = x.detach() - torch.autograd.grad(loss, x)[0] * sigma**2
        x = sampler.step(eps, t, x).prev_sample
    call = {"latents": noise(1, 4, 8, 12), "num_inference_steps": 8, "guidance_scale": 8, "output_type": "latent"}
    loss = blueness(ours)
    guide = Guide(lambda x0, i: loss(x0), scale=200, every=5, through_unet=False)
    assert distance(ours("a cat", **call, guide=guide).images, x) < CLOSE
    assert distance(ours("a cat", **call).images, x) > 0.01


@pytest.mark.parametrize("through_unet", [False, True])
@pytest.mark.parametrize("sampler", [DDIM(), LMS(), Heun()], ids=lambda s: type(s).__name__)
def test_the_gradient_is_that_of_finite_differences(
    sd1: StableDiffusion, sampler: Scheduler, through_unet: bool
) -> None:
    """In float64, through UNet and guidance or not, on a later call; the sampler's own sigma scales it."""
    exact = small_pipeline()
    exact.unet.double()
    sigma, seen = 0.7, {}
    x, states = noise(2, 4, 8, 12).double(), exact.encode_prompt(["a cat"] * 2).double()
    grid = sampler.grid(4)
    _, _, memory = sampler.step(grid, 0, x, x) if not isinstance(sampler, Heun) else (None, None, None)
    call = 2

    def predict(x: Tensor) -> Tensor:
        return exact.unet(sampler.scale_input(grid, call, x), grid.timesteps[call].double(), states)

    def x0_of(x: Tensor, output: Tensor) -> Tensor:
        return sampler.step(grid, call, x, output, memory).x0

    def loss(x0: Tensor, i: int) -> Tensor:
        seen["i"] = i
        return (x0.tanh() * torch.linspace(0, 1, x0.numel(), dtype=x0.dtype).view_as(x0)).sum()

    with torch.no_grad():
        moved, output = Guide(loss, 3.0, through_unet=through_unet).descend(call, x, sigma, predict, x0_of)
        assert torch.equal(output, predict(x))
        direction, h = noise(2, 4, 8, 12, seed=3).double(), 1e-5
        ends = []
        for way in (x + h * direction, x - h * direction):
            ends.append(loss(x0_of(way, predict(way) if through_unet else output), call))
        slope = float((ends[0] - ends[1]) / (2 * h))
    assert seen["i"] == call
    assert float(((x - moved) * direction).sum()) == pytest.approx(3.0 * sigma**2 * slope, rel=1e-6)
    assert abs(slope) > 0.1


def test_the_move_is_the_same_in_both_spaces(sd2: StableDiffusion) -> None:
    """x = sqrt(alpha_bar) y for y in sigma space; one step by hand for DDIM, sigma^2 = 1 - alpha_bar."""
    x = noise(1, 4, 8, 12)
    guide = Guide(lambda x0, i: (x0**2).sum(), 0.05, through_unet=False)
    given = {"latents": x, "num_inference_steps": 4, "guidance_scale": 1, "guide": guide}
    first = next(iter(sd2.denoise("a cat", **given)))
    schedule, grid = sd2.scheduler.schedule, sd2.scheduler.grid(4)
    with torch.no_grad():
        v = sd2.unet(x, grid.timesteps[0], sd2.encode_prompt(["a cat"]))
    a = schedule.alpha_bar(grid.source[0])
    x0, _ = schedule.x0_and_eps(x, v, a)
    moved = x - 0.05 * (1 - a) * 2 * x0 * math.sqrt(a)
    assert distance(first.latents, sd2.scheduler.step(grid, 0, moved, v).x_prev) < CLOSE
    sigma2 = (1 - a) / a
    y_moved = x / math.sqrt(a) - 0.05 * sigma2 * 2 * x0 * a  # dx0/dy = sqrt(a) dx0/dx
    assert distance(y_moved * math.sqrt(a), moved) < CLOSE


@pytest.mark.parametrize("through_unet", [False, True])
def test_it_lowers_the_loss_and_steers_each_picture_alone(sd2: StableDiffusion, through_unet: bool) -> None:
    def loss(x0: Tensor, i: int) -> Tensor:
        return (x0 - 2).square().mean((1, 2, 3)).sum()

    guide = Guide(loss, 20.0, through_unet=through_unet)
    call = {"num_inference_steps": 6, "guidance_scale": 3.0}
    plain, steered = (
        latents_of(sd2, ["a cat", "a dog"], **call),
        latents_of(sd2, ["a cat", "a dog"], guide=guide, **call),
    )
    assert loss(steered, 0) < 0.9 * loss(plain, 0)
    alone = latents_of(sd2, "a dog", guide=guide, **{**call, "seed": 2})
    assert distance(steered[1:], alone) < CLOSE
    assert not steered.requires_grad
    assert all(parameter.grad is None for parameter in sd2.unet.parameters())


def test_a_guide_of_nothing_changes_nothing(sd2: StableDiffusion) -> None:
    """Also where the sampler draws noise: asking for x0 does not draw."""
    for sampler in (sd2.scheduler, DDPM(sd2.scheduler.schedule)):
        sd = with_sampler(sd2, sampler)
        calls: list[int] = []

        def nothing(x0: Tensor, i: int, calls: list[int] = calls) -> Tensor:
            calls.append(i)
            return 0 * x0.sum()

        plain = latents_of(sd, "a cat", num_inference_steps=5)
        guided = latents_of(sd, "a cat", num_inference_steps=5, guide=Guide(nothing, every=2))
        assert distance(guided, plain) < 1e-6
        assert calls == [0, 2, 4]


def test_a_function_alone_is_a_guide_and_the_iterator_takes_it(sd2: StableDiffusion) -> None:
    def loss(x0: Tensor, i: int) -> Tensor:
        assert torch.is_grad_enabled()
        return (x0**2).sum() / 10

    *_, last = sd2.denoise("a cat", seed=1, num_inference_steps=3, guide=loss, **SIZE)
    assert torch.equal(last.latents, latents_of(sd2, "a cat", guide=Guide(loss)))
    assert distance(last.latents, latents_of(sd2, "a cat")) > 1e-3
    with torch.no_grad():
        assert torch.equal(latents_of(sd2, "a cat", guide=loss), last.latents)


def fails(x0: Tensor, i: int) -> Tensor:
    raise KeyError("mine")


LOSSES: list[tuple[Any, str]] = [
    (fails, "failed at step 0: KeyError"),
    (lambda x0, i: None, "gave None at step 0, expected a scalar"),
    (lambda x0, i: 3.0, "gave 3.0"),
    (lambda x0, i: x0, r"shape \(1, 4, 8, 12\)"),
    (lambda x0, i: x0.sum() / 0, "inf at step 0|nan at step 0"),
    (lambda x0, i: x0.detach().sum(), "has no gradient with respect to x0"),
    (lambda x0, i: (x0 - x0.detach()).abs().sum().sqrt(), "gradient of the guide's loss is not finite"),
]


@pytest.mark.parametrize(("loss", "message"), LOSSES, ids=[message for _, message in LOSSES])
def test_a_loss_that_fails_is_named(sd2: StableDiffusion, loss: Any, message: str) -> None:
    with pytest.raises(CallbackError, match=message):
        latents_of(sd2, "a cat", guide=loss)


def test_decoding_without_gradients_is_explained(sd2: StableDiffusion) -> None:
    with pytest.raises(CallbackError, match=r"sd\.vae\.decode\(sd\.vae\.raw"):
        latents_of(sd2, "a cat", guide=lambda x0, i: sd2.decode(x0).sum())
    weight = torch.nn.Parameter(torch.ones(()))  # the loss has a gradient, but not by x0
    with pytest.raises(CallbackError, match="has no gradient with respect to x0"):
        latents_of(sd2, "a cat", guide=lambda x0, i: sd2.decode(x0).sum() * weight)
    with torch.inference_mode(), pytest.raises(MinisdError, match="inference_mode"):
        latents_of(sd2, "a cat", guide=lambda x0, i: x0.sum())
