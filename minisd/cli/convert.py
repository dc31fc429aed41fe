"""`minisd convert`: load a model and save it in the other layout."""

import argparse

import torch

import weights_loader


def run(args: argparse.Namespace) -> int:
    """Load the model in the precision of its files, save it, print where."""
    sd = weights_loader.load(args.source, dtype=None, prediction_type=args.prediction_type, tokenizer=args.tokenizer)
    layout = "ldm" if args.target.suffix == ".safetensors" else "diffusers"
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    weights_loader.save(sd, args.target, layout=layout, dtype=dtype, overwrite=args.overwrite)
    print(f"{args.target}  {layout} layout")
    return 0
