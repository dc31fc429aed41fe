"""Convert a model between the official layouts: a folder (diffusers) and a single file (ldm)."""

import argparse
from pathlib import Path

import torch

import weights_loader
from minisd.cli.generate import PREDICTION_TYPES
from minisd.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    """The options of `minisd convert`."""
    parser.add_argument("source", help="name, hub id, folder or file")
    parser.add_argument("target", type=Path, help="a folder, or a file that ends in .safetensors")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="convert the weights too")
    parser.add_argument("--prediction-type", choices=PREDICTION_TYPES, help="of an SD 2.x file")
    parser.add_argument("--tokenizer", type=Path, help="for a single file: the folder of its vocabulary")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def run(args: argparse.Namespace) -> int:
    """Load, save in the other layout, say so."""
    sd = weights_loader.load(args.source, prediction_type=args.prediction_type, tokenizer=args.tokenizer)
    layout = "ldm" if args.target.suffix == ".safetensors" else "diffusers"
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    weights_loader.save(sd, args.target, layout=layout, dtype=dtype, overwrite=args.overwrite)
    print(f"{args.target}  {layout} layout")
    return 0
