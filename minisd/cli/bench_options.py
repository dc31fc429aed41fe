"""The options of `minisd bench`; the lists of names repeat those of minisd.parity.benchmark."""

from pathlib import Path

from minisd.cli.parser import Parser, whole

FAMILIES = ("sticker", "sd15", "sd21", "sdxl")
ROWS = ("load", "text", "unet", "vae", "encode", "preview", "image", "train", "memory", "first")
CLOCKS = ("wall", "processor")


def bench(parser: Parser) -> None:
    """Compare speed, memory and accuracy with diffusers on this machine.

    Both sides get the same weights and inputs, in one run. "sticker" is the embedded model, small enough for all rows;
    the other families have random weights. Rows: loading; text encoder; UNet step; VAE decode and encode; preview
    decoder; image of 20 steps; training step; peak memory; first image from a new process, and --help.
    """
    what = parser.add_argument_group("what to measure")
    what.add_argument("--family", choices=FAMILIES, default="sd15", metavar="NAME", help=", ".join(FAMILIES))
    what.add_argument("--size", type=whole, metavar="PIXELS", help="side of the image (default: the family's)")
    what.add_argument("--tiny", action="store_true", help="a self-test: tiny networks, 64 pixels")
    what.add_argument("--rows", default="load,text,unet,vae", metavar="A,B", help=f"all, or some of {','.join(ROWS)}")
    how = parser.add_argument_group("how to measure it")
    how.add_argument("--device", metavar="A,B", help="cpu, cuda or both (default: all of these that are available)")
    how.add_argument("--dtype", metavar="A,B", help="such as float32,bfloat16 (default: the usual ones of the device)")
    how.add_argument("--repeats", type=whole, default=5, metavar="N", help="measurements of each side, in turn")
    how.add_argument("--threads", type=whole, metavar="N", help="CPU threads (default: PyTorch's choice)")
    how.add_argument(
        "--clock", choices=CLOCKS, default="wall", metavar="NAME",
        help="wall, or processor: without the time of other processes; for one thread",
    )  # fmt: skip
    files = parser.add_argument_group("files")
    files.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the weights here, or use them again")
    files.add_argument("--markdown", type=Path, metavar="FILE", help="also write what is printed")
    files.add_argument("--json", type=Path, metavar="FILE", help="also write all measurements")
    files.add_argument("--overwrite", action="store_true", help="replace the files of --markdown and --json")
