"""Colours: conversion and distance against published numbers, and the distances within the palette."""

import pytest
import torch

from minisd.sticker.world.palette import BACKGROUNDS, COLOURS, delta_e, lab, rgb

# Sharma, Wu, Dalal 2005, table 1: pairs of Lab colours and their CIEDE2000.
SHARMA = [
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
    ((50, 0, 0), (50, -1, 2), 2.3669),
    ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
    ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]


@pytest.mark.parametrize(("first", "second", "expected"), SHARMA)
def test_delta_e_is_the_published_one(first, second, expected):
    measured = delta_e(torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64))
    assert float(measured) == pytest.approx(expected, abs=6e-5)


def test_lab_of_primaries():
    expected = torch.tensor(
        [[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86], [100, 0, 0], [0, 0, 0]]
    )
    pixels = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1], [-1, -1, -1]])
    assert torch.allclose(lab(pixels), expected, atol=0.02)


def test_all_colours_are_far_apart():
    colours, grounds = lab(rgb(list(COLOURS))), lab(rgb(list(BACKGROUNDS)))
    between = delta_e(colours[:, None], colours) + 1000 * torch.eye(len(COLOURS))
    assert float(between.min()) >= 20
    assert float(delta_e(colours[:, None], grounds).min()) >= 25
    assert float((delta_e(grounds[:, None], grounds) + 1000 * torch.eye(len(BACKGROUNDS))).min()) >= 14
