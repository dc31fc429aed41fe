"""The measures, by hand and against scipy; rates of painters that are right, and wrong, on purpose."""

import math
import random

import numpy as np
import pytest
import torch
from support.painter import Asked, Lossless, Painter, as_asked, in_other_colours

from minisd.errors import InputError
from minisd.images import from_pil
from minisd.sticker.evaluation.diversity import (
    FREE_PROMPTS,
    entropy,
    free_attributes,
    kolmogorov_smirnov,
    total_variation,
)
from minisd.sticker.evaluation.metrics import Rate, asks, interval, judge_prompts, psnr, rates, reconstruction, ssim
from minisd.sticker.evaluation.prompt_suites import suites
from minisd.sticker.world.captions import expectation
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Scene, Thing

PROMPTS = suites(3, seed=0)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_intervals_are_wilsons() -> None:
    assert interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert interval(1.0, 96) == pytest.approx((0.9615, 1.0), abs=1e-4)
    assert interval(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert Rate(96, 96).as_json() == {"rate": 1.0, "low": interval(1.0, 96)[0], "high": 1.0, "count": 96}


def test_psnr_by_hand() -> None:
    black, white = -torch.ones(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    gray = black.clone()
    gray[1] += 0.2  # a tenth of the range
    assert psnr(black, white).tolist() == [0, 0]
    assert psnr(black, gray).tolist() == pytest.approx([100, 20], abs=1e-4)
    with pytest.raises(InputError, match="cannot be compared"):
        psnr(black, white[:1])


def test_ssim_of_one_window_by_hand() -> None:
    x, y = noise(1, 1, 11, 11).double(), noise(1, 1, 11, 11, seed=1).double()
    a, b = (each[0, 0].numpy() / 2 + 0.5 for each in (x, y))  # in [0, 1], where the paper's L is 1
    weight = np.array([[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for j in range(11)] for i in range(11)])
    weight /= weight.sum()
    mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
    var_a, var_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
    cov = (weight * (a - mean_a) * (b - mean_b)).sum()
    top = (2 * mean_a * mean_b + 0.0001) * (2 * cov + 0.0009)
    expected = top / ((mean_a**2 + mean_b**2 + 0.0001) * (var_a + var_b + 0.0009))
    assert float(ssim(x, y)[0]) == pytest.approx(expected, rel=1e-9)


def test_ssim_is_the_mean_over_windows_and_channels() -> None:
    x, y = noise(2, 3, 12, 11), noise(2, 3, 12, 11, seed=1)
    parts = [ssim(x[:, c : c + 1, k : k + 11], y[:, c : c + 1, k : k + 11]) for c in range(3) for k in range(2)]
    assert torch.allclose(ssim(x, y), torch.stack(parts).mean(0), atol=1e-6)
    assert torch.allclose(ssim(x, y), ssim(y, x))
    assert ssim(x, x).tolist() == pytest.approx([1, 1])
    with pytest.raises(InputError, match="11 x 11"):
        ssim(x[..., :10], y[..., :10])


def test_ssim_sees_structure_where_psnr_does_not() -> None:
    """The point of the paper's figure 2: at the same error, a brighter picture looks better than a noisy one."""
    scene = Scene((Thing("star", "red", "large", 0.5, 0.5, 0.19),), "gray")
    picture = render([scene])
    brighter, noisy = picture + 0.1, picture + 0.1 * noise(*picture.shape).sign()
    assert float(psnr(picture, brighter)) == pytest.approx(float(psnr(picture, noisy)), abs=1e-3)
    assert float(ssim(picture, brighter)) > 0.95 > 0.8 > float(ssim(picture, noisy))


def test_reconstructions() -> None:
    same = reconstruction(Lossless(), 6, seed=0)  # type: ignore[arg-type]
    assert (same.mean_psnr, same.worst_percent_psnr, same.worst_psnr) == pytest.approx((100, 100, 100))
    assert same.mean_ssim == pytest.approx(1)
    assert same.exact == Rate(6, 6)
    faded = reconstruction(Lossless(gain=0.1), 6, seed=0)  # type: ignore[arg-type]
    assert faded.exact == Rate(0, 6)
    assert faded.worst_psnr <= faded.worst_percent_psnr <= faded.mean_psnr < 20
    assert faded.mean_ssim < 0.9


def test_a_painter_who_does_as_asked_is_right_in_everything() -> None:
    for name, prompts in PROMPTS.items():
        measured = rates(prompts, judge_prompts(Painter(), prompts, seed=0).verdicts)  # type: ignore[arg-type]
        assert {rate.value for rate in measured.values()} == {1.0}, name
        assert measured["exact"].total == 3


def test_a_painter_in_other_colours_is_wrong_in_those() -> None:
    for name, prompts in PROMPTS.items():
        if name == "partial":  # where no colour may be named
            continue
        painter = Painter(in_other_colours)
        measured = {k: r.value for k, r in rates(prompts, judge_prompts(painter, prompts, 0).verdicts).items()}  # type: ignore[arg-type]
        wrong = {"exact", "object", "colour"}
        assert measured == {skill: 0.0 if skill in wrong else 1.0 for skill in measured}, name


def test_rates_count_only_prompts_that_ask() -> None:
    prompts = ["a red circle above a blue star", "a red circle", "a shape", "two red stars"]
    empty = check(render([Scene(())])[0], "a red circle")
    measured = rates(prompts, [empty] * 4)
    totals = {"exact": 4, "object": 3, "colour": 3, "shape": 3, "relation": 1, "count": 4}
    assert {skill: rate.total for skill, rate in measured.items()} == totals
    assert {skill: rate.right for skill, rate in measured.items() if rate.right} == {"relation": 1}  # it was not asked
    assert asks(expectation("a shape in the top left on a black background")) == {
        "exact", "count", "position", "background",
    }  # fmt: skip


def test_pictures_do_not_depend_on_the_batch() -> None:
    painter = Painter()
    judged = judge_prompts(painter, ["a red circle"] * 20, seed=7)  # type: ignore[arg-type]
    assert [(len(prompts), seed) for prompts, seed in painter.calls] == [(16, 7), (4, 23)]
    assert len(judged.pictures) == len(judged.verdicts) == 20
    last = painter(["a red circle"], seed=26).images[0]
    assert torch.equal(from_pil(judged.pictures[19]), from_pil(last))


def test_distances_of_samples_by_hand_and_by_scipy() -> None:
    assert total_variation("aab", "ab") == pytest.approx(1 / 6)
    assert total_variation(["a", None], ["a"]) == 0.5
    assert total_variation("ab", "cd") == 1
    assert kolmogorov_smirnov([1, 2], [1, 2]) == 0
    assert kolmogorov_smirnov([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5
    assert kolmogorov_smirnov([], [1]) == 1
    stats = pytest.importorskip("scipy.stats")
    chance = random.Random(0)
    for n, m in ((5, 7), (40, 13)):
        a, b = [round(chance.random(), 1) for _ in range(n)], [round(chance.random() ** 2, 1) for _ in range(m)]
        assert kolmogorov_smirnov(a, b) == pytest.approx(stats.ks_2samp(a, b).statistic)


def test_entropy_by_hand() -> None:
    assert entropy("abcd" * 5)[0] == pytest.approx(2)
    assert entropy(["a", "a", "b", None])[0] == pytest.approx(0.9183, abs=1e-4)
    assert entropy([None, "a"]) == (0, 0)
    assert entropy([]) == (0, 0)
    chance = random.Random(0)  # the standard error is that of many tries
    tries = [entropy(chance.choices("abc", (0.7, 0.2, 0.1), k=200)) for _ in range(300)]
    assert float(np.std([bits for bits, _ in tries])) == pytest.approx(tries[0][1], rel=0.2)


def test_what_is_left_open() -> None:
    world = free_attributes(Painter(), 32, seed=5)  # type: ignore[arg-type]
    assert list(world) == list(FREE_PROMPTS)
    assert [list(world[prompt]) for prompt in FREE_PROMPTS] == [
        ["colours", "shapes", "x", "y"], ["colours", "x", "y"], ["shapes", "x", "y"],
    ]  # fmt: skip
    every = [each for distances in world.values() for each in distances.values()]
    assert sum(each["distance"] for each in every) == pytest.approx(sum(each["chance"] for each in every), rel=0.3)

    def always(asked: Asked) -> Scene:
        return Scene((Thing("circle", "red", "medium", 0.5, 0.5, 0.13),))

    rigid = free_attributes(Painter(always), 8, seed=5)  # type: ignore[arg-type]
    assert rigid["a circle"]["colours"]["distance"] == pytest.approx(6 / 7)  # cyan circles are held out
    assert rigid["a red shape"]["shapes"]["distance"] == pytest.approx(7 / 8)
    assert rigid["a shape"]["colours"]["distance"] == pytest.approx(1 - 8 / 56)
    assert all(0.4 < rigid[prompt][axis]["distance"] < 0.6 for prompt in FREE_PROMPTS for axis in "xy")


def test_nothing_found_is_as_far_as_can_be() -> None:
    empty = free_attributes(Painter(lambda asked: Scene(())), 2, seed=0)  # type: ignore[arg-type]
    assert [each["distance"] for distances in empty.values() for each in distances.values()] == pytest.approx([1] * 10)


def test_the_painter_itself_varies() -> None:
    scenes = {as_asked(Asked(prompt="a shape", seed=seed)) for seed in range(10)}
    assert len(scenes) == 10
