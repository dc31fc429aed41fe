"""Signed distance functions: unit area, centroid at the origin, slope one at the edge."""

import pytest
import torch

from minisd.sticker.world.shapes import SHAPES, sdf


@pytest.mark.parametrize("shape", SHAPES)
def test_distance_functions_have_unit_disc_area_and_centroid_zero(shape):
    step = 1 / 100
    axis = torch.arange(-2 + step / 2, 2, step)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    cover = (0.5 - sdf(shape, x, y) / step).clamp(0, 1)
    assert float(cover.sum()) * step**2 == pytest.approx(torch.pi, rel=2e-3)
    assert abs(float((cover * x).mean())) < 2e-3
    assert abs(float((cover * y).mean())) < 2e-3
    distance = sdf(shape, x, y)  # its slope near the edge is 1, as anti-aliasing requires
    slope = torch.hypot(*torch.gradient(distance, spacing=step))
    assert float(slope[(distance.abs() < 0.05)].median()) == pytest.approx(1, abs=0.01)
