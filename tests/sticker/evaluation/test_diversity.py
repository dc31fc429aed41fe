"""Diversity: the distances of samples, and of painters that vary like the training data, or not at all."""

import functools
import random

import numpy as np
import pytest
from support.painter import Painter, Request

from minisd.sticker.evaluation import diversity
from minisd.sticker.evaluation.diversity import (
    OPEN_PROMPTS,
    entropy,
    kolmogorov_smirnov,
    measure_diversity,
    total_variation,
)
from minisd.sticker.world.scene import Object, Scene

reference_objects = functools.cache(diversity._reference_objects)


@pytest.fixture(autouse=True)
def fewer_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the reference, drawn once for all tests of a seed."""
    monkeypatch.setattr(diversity, "_REFERENCE_COUNT", 500)
    monkeypatch.setattr(diversity, "_reference_objects", reference_objects)


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
    chance = random.Random(0)  # the standard error is the deviation over many repetitions
    repeated = [entropy(chance.choices("abc", (0.7, 0.2, 0.1), k=200)) for _ in range(300)]
    assert float(np.std([bits for bits, _ in repeated])) == pytest.approx(repeated[0][1], rel=0.2)


def test_open_attributes() -> None:
    world = measure_diversity(Painter(), 32, seed=5)  # type: ignore[arg-type]
    assert list(world) == list(OPEN_PROMPTS)
    assert [list(world[prompt]) for prompt in OPEN_PROMPTS] == [
        ["colours", "shapes", "x", "y"], ["colours", "x", "y"], ["shapes", "x", "y"],
    ]  # fmt: skip
    every = [each for distances in world.values() for each in distances.values()]
    assert sum(each["distance"] for each in every) == pytest.approx(sum(each["chance"] for each in every), rel=0.3)

    def always(request: Request) -> Scene:
        return Scene((Object("circle", "red", "medium", 0.5, 0.5, 0.13),))

    rigid = measure_diversity(Painter(always), 8, seed=5)  # type: ignore[arg-type]
    assert rigid["a circle"]["colours"]["distance"] == pytest.approx(6 / 7)  # cyan circles are held out
    assert rigid["a red shape"]["shapes"]["distance"] == pytest.approx(7 / 8)
    assert rigid["a shape"]["colours"]["distance"] == pytest.approx(1 - 8 / 56)
    assert all(0.4 < rigid[prompt][axis]["distance"] < 0.6 for prompt in OPEN_PROMPTS for axis in "xy")


def test_empty_images_have_the_largest_distance() -> None:
    empty = measure_diversity(Painter(lambda request: Scene(())), 2, seed=5)  # type: ignore[arg-type]
    assert [each["distance"] for distances in empty.values() for each in distances.values()] == pytest.approx([1] * 10)
