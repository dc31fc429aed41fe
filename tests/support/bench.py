"""For tests of `minisd bench`: its options, the table that it prints, and what its rows have in common."""

import argparse
from pathlib import Path

import torch

from minisd.cli.bench_options import bench
from minisd.cli.parser import Parser
from minisd.parity.benchmark.families import FAMILIES, tiny
from minisd.parity.benchmark.rows import Setup

CPU_FLOAT32 = [(torch.device("cpu"), torch.float32)]


def parsed(*argv: object) -> argparse.Namespace:
    parser = Parser(prog="minisd bench")
    bench(parser)
    return parser.parse(["--tiny", "--repeats", "1", "--threads", "1", "--device", "cpu", *map(str, argv)])


def table(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def setup(folder: Path, family: str = "sd15", repeats: int = 1) -> Setup:
    return Setup(tiny(FAMILIES[family]), 64, folder, CPU_FLOAT32, repeats, "wall", {})
