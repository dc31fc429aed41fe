"""Distances between sets of images: against their formulas, and in the right order."""

import math
from types import SimpleNamespace

import pytest
import torch
from support.painter import Painter
from torch import Tensor, nn

from minisd.errors import InputError
from minisd.models import CLIP
from minisd.sticker.evaluation.frechet import frechet_distance, measure_distances, squared_mmd
from minisd.sticker.training.contrastive import IMAGE_CONFIG, new_clip
from minisd.sticker.training.dataset import new_tokenizer
from minisd.sticker.training.text_encoder import new_caption_probe, text_config


def normal(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_frechet_of_shifted_and_stretched_sets() -> None:
    """For equal covariances only the means count; for covariances that commute, the differences of the deviations."""
    x = normal(500, 5, seed=0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    shift = torch.tensor([3.0, 0, 0, -4, 0])
    assert frechet_distance(x, x + shift) == pytest.approx(25, rel=1e-6)
    stretch = torch.tensor([1.0, 2, 3, 0.5, 1])
    values, vectors = torch.linalg.eigh(torch.cov(x.double().T))
    white = (x.double() - x.double().mean(0)) @ vectors / values.sqrt()  # covariance 1
    expected = (stretch.double() - 1).square().sum()
    assert frechet_distance(white, white * stretch) == pytest.approx(float(expected), rel=1e-6)


def test_frechet_of_covariances_that_do_not_commute() -> None:
    """The root of C1 C2 has the same trace as the root of C1^1/2 C2 C1^1/2, which is symmetric."""
    x = (normal(300, 4, seed=1) @ normal(4, 4, seed=2)).double()
    y = (normal(400, 4, seed=3) @ normal(4, 4, seed=4) + 1).double()
    one, two = torch.cov(x.T), torch.cov(y.T)
    values, vectors = torch.linalg.eigh(one)
    root = vectors @ values.sqrt().diag() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ two @ root).clamp(min=0).sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + one.trace() + two.trace() - 2 * shared
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(float(expected), rel=1e-9)
    assert (one @ two - two @ one).abs().max() > 0.1


def test_more_dimensions_than_vectors() -> None:
    value = frechet_distance(normal(10, 40, seed=5), normal(12, 40, seed=6))
    assert math.isfinite(value)
    assert value > 0


def test_mmd_by_its_formula() -> None:
    x, y = normal(7, 3, seed=7), normal(5, 3, seed=8) + 1

    def kernel(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    expected = (
        mean([kernel(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
        + mean([kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
        - 2 * mean([kernel(a, b) for a in x for b in y])
    )
    assert squared_mmd(x, y) == pytest.approx(expected, rel=1e-5)


def test_mmd_of_one_distribution_is_zero_in_the_mean() -> None:
    values = [squared_mmd(normal(30, 4, seed=s), normal(40, 4, seed=1000 + s)) for s in range(200)]
    mean, deviation = sum(values) / 200, torch.tensor(values).std().item()
    assert min(values) < 0
    assert abs(mean) < 3 * deviation / math.sqrt(200)


@pytest.mark.parametrize(("n", "m"), [((1, 4), (5, 4)), ((5, 4), (5, 3)), ((5,), (5,))])
def test_sets_that_do_not_fit(n: tuple[int, ...], m: tuple[int, ...]) -> None:
    for distance in (frechet_distance, squared_mmd):
        with pytest.raises(InputError, match="two sets of vectors"):
            distance(torch.zeros(n), torch.zeros(m))


def test_perfect_images_have_the_distance_of_other_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A painter that draws the captions is as close as other scenes; an autoencoder that loses everything is not."""
    monkeypatch.setattr("minisd.sticker.evaluation.judging.check", lambda *_: None)  # only the images count
    encoder = new_caption_probe(text_config(len(new_tokenizer()))).text_encoder
    clip: CLIP = new_clip(encoder)
    painter = Painter()

    def grey(latents: Tensor) -> Tensor:
        return torch.zeros(len(latents), 3, IMAGE_CONFIG.image_size, IMAGE_CONFIG.image_size)

    config = SimpleNamespace(sample_size=IMAGE_CONFIG.image_size)
    painter.vae = SimpleNamespace(encode=lambda pixels: SimpleNamespace(mean=pixels), decode=grey, config=config)
    found = measure_distances(painter, clip, 24, seed=1)
    assert list(found) == ["scenes", "autoencoder", "drawn"]
    assert found["drawn"].frechet < 3 * found["scenes"].frechet
    assert found["autoencoder"].frechet > 3 * found["scenes"].frechet
    assert found["autoencoder"].mmd > 10 * abs(found["scenes"].mmd)
    assert isinstance(clip, nn.Module)
