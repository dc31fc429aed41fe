"""Write a distilled student of the embedded model as a small file: python -m tools.student_file FOLDER FILE --rank 16.

FOLDER: a model of `minisd train distill --start-from sticker`, first guided, then progressive. The file holds the
changes of low rank that are closest to it, in float16; `sticker-fast` is loaded from such a file.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

import weights_loader
from minisd.adapters.distilled_student import student_changes
from weights_loader.formats.safetensors import save_safetensors


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file, and print its size and the share of the change that it keeps."""
    parser = argparse.ArgumentParser(prog="python -m tools.student_file", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args(arguments)
    teacher, student = weights_loader.load("sticker").unet, weights_loader.load(args.folder).unet
    changes = student_changes(teacher, student, args.rank)
    tensors = {name: tensor.half().contiguous() for name, tensor in changes.state_dict().items()}
    save_safetensors(tensors, args.file, {"format": "pt"}, overwrite=args.overwrite)
    lost = total = 0.0
    for name in changes.names:
        change = student.get_parameter(name) - teacher.get_parameter(name)
        kept = changes.parts[name].delta(change)
        lost, total = lost + (change - kept).square().sum().item(), total + change.square().sum().item()
    size = sum(map(torch.numel, tensors.values())) * 2 / 1e6
    print(f"{args.file}  {size:.2f} MB, {100 * (1 - lost / total):.1f} % of the squared changes")


if __name__ == "__main__":
    main()
