"""The options of every command; importing them loads no PyTorch, so that `--help` answers at once.

A function adds the options of the command whose module has its name; its docstring is the command's help. The lists of
names below repeat those of the library; tests/cli/test_options.py compares them.
"""

from argparse import SUPPRESS
from pathlib import Path

from minisd.cli.bench_options import bench
from minisd.cli.demo_options import app, demo
from minisd.cli.eval_options import evaluate
from minisd.cli.exercise_options import exercises
from minisd.cli.fine_tune_options import FINE_TUNINGS, distillation, fine_tuning
from minisd.cli.parser import Parser, real, whole

DTYPES = ("float32", "bfloat16", "float16")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SAMPLERS = {  # name: class in minisd.schedulers
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "dpm++": "DPMSolverMultistep",
    "dpm++sde": "DPMSolverMultistep",
    "euler": "Euler",
    "euler-a": "EulerAncestral",
    "heun": "Heun",
    "lcm": "LCM",
    "lms": "LMS",
    "pndm": "PNDM",
    "unipc": "UniPC",
}
TURNS = ("half", "quarter", "mirror", "flip")
VERIFIED = ("v1-1", "v1-2", "v1-3", "v1-4", "v1-5", "v2-base", "v2", "v2-1-base", "v2-1")
STAGES = ("vae", "text", "unet", "vae128", "preview", "clip")
TASKS = ("inpainting", "depth", "upscaling")

DEVICE = "cpu, cuda or mps (default: the fastest of this machine)"
TOKENIZER = "folder of the vocabulary, for a single file that has none beside it"
VARIANT = "weight files to read where a folder or repository has several kinds, such as fp16"
OFFLINE = "never connect to the hub; read its cache"


def generate(parser: Parser) -> None:
    """Draw images from a prompt with Stable Diffusion, or run a command."""
    parser.usage = '%(prog)s "prompt" [options]\n       %(prog)s command [options]'
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    parser.add_argument_group("commands (minisd COMMAND --help lists the options of a command)", "\n".join(lines))

    what = parser.add_argument_group("what to draw")
    what.add_argument("prompt", help="description of the image; @FILE reads it from a file, - from standard input")
    what.add_argument("--negative", default="", metavar="PROMPT", help="negative prompt: what the image must not show")
    what.add_argument("--count", type=whole, default=1, metavar="N", help="number of images")
    what.add_argument("--seed", type=whole, metavar="N", help="seed of the first image (default: random, and printed)")
    what.add_argument("--best-of", type=whole, default=1, metavar="N", help="candidates an image; CLIP keeps the best")
    what.add_argument("--clip", metavar="MODEL", help="CLIP for --best-of: name or folder (default: the model's)")
    what.add_argument("--height", type=whole, metavar="PIXELS", help="height of the image (default: the model's)")
    what.add_argument("--width", type=whole, metavar="PIXELS", help="width of the image (default: the model's)")
    what.add_argument("--strict-prompt", action="store_true", help="refuse a prompt that is too long for the model")

    views = parser.add_argument_group("several prompts, several frames")
    views.add_argument("--grid", metavar="CxR", help="C x R windows, such as 5x3: a line of the prompt each, or all")
    views.add_argument("--turned", metavar="PROMPT", help="what the same image shows when it is turned")
    views.add_argument(
        "--turn", choices=TURNS, metavar="NAME", help=f"how --turned turns it: {', '.join(TURNS)} (default: half)"
    )
    views.add_argument("--loop", type=whole, metavar="N", help="N frames that end where they begin, as a .gif")

    how = parser.add_argument_group("how to draw it")
    how.add_argument("--steps", type=whole, metavar="N", help="denoising steps (default: the model's)")
    how.add_argument("--guidance", type=real, metavar="SCALE", help="guidance scale, 1 for none (default: the model's)")
    how.add_argument(
        "--sampler", choices=SAMPLERS, metavar="NAME", help=f"{', '.join(SAMPLERS)} (default: the model's)"
    )
    how.add_argument("--karras", action="store_true", help="noise levels of Karras et al. 2022 for the sampler")
    how.add_argument("--eta", type=real, default=0.0, metavar="X", help="noise that DDIM adds at each step, 0..1")
    how.add_argument(
        "--reuse-features", type=whole, default=1, metavar="N", help="faster: of N UNet calls one is whole; approximate"
    )
    how.add_argument(
        "--preview-decoder", nargs="?", const="", metavar="SOURCE",
        help="faster: a small decoder, of a folder or hub id (default: the model's); approximate",
    )  # fmt: skip
    how.add_argument("--device", metavar="NAME", help=DEVICE)
    how.add_argument(
        "--dtype",
        choices=(*DTYPES, "auto"),
        default="float32",
        metavar="NAME",
        help=f"{', '.join(DTYPES)}; auto: the fastest",
    )

    begin = parser.add_argument_group("begin with an image")
    begin.add_argument("--image", type=Path, metavar="FILE", help="image to change")
    begin.add_argument(
        "--strength", type=real, metavar="X", help="how much of --image to change, 0..1 (default: 0.8; 1 with --mask)"
    )
    begin.add_argument("--mask", type=Path, metavar="FILE", help="mask for --image: white where it is redrawn")
    begin.add_argument("--depth", type=Path, metavar="FILE", help="depth map, near is white (needs a depth model)")
    begin.add_argument("--upscale", type=Path, metavar="FILE", help="small image to enlarge (needs an upscaler)")
    begin.add_argument("--noise-level", type=whole, metavar="N", help="noise level of the small image of --upscale")

    model = parser.add_argument_group("model and adapters")
    model.add_argument("--model", default="sticker", help="name, hub id, folder or file")
    model.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:SCALE]", help="merge a LoRA; may be repeated"
    )
    model.add_argument(
        "--embedding", action="append", default=[], metavar="FILE[:TOKEN]", help="add a learned token; may be repeated"
    )
    model.add_argument("--refiner", metavar="MODEL", help="model for the last steps, such as sdxl-refiner")
    model.add_argument(
        "--handover", type=real, default=0.8, metavar="X", help="share of the noise levels before --refiner, 0..1"
    )
    model.add_argument("--variant", metavar="NAME", help=VARIANT)
    model.add_argument("--tokenizer", type=Path, metavar="FOLDER", help=TOKENIZER)
    model.add_argument(
        "--prediction-type", choices=PREDICTION_TYPES, metavar="NAME",
        help=f"what the UNet of a single file predicts: {', '.join(PREDICTION_TYPES)}",
    )  # fmt: skip
    model.add_argument("--offline", action="store_true", default=None, help=OFFLINE)

    output = parser.add_argument_group("output")
    output.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="PNG, JPEG or WebP (default: a name from the prompt)"
    )
    output.add_argument("--overwrite", action="store_true", help="replace existing files")
    output.add_argument(
        "--scale", type=whole, metavar="N", help="enlarge each pixel to N x N (default: until a side has 256)"
    )
    output.add_argument("--film", type=Path, metavar="FILE", help="also save the steps: a strip (.png) or a .gif")
    output.add_argument("--quiet", action="store_true", help="no progress bars")


def inspect(parser: Parser) -> None:
    """Show layout, family, components and dtypes of a folder or file."""
    parser.add_argument_group("model").add_argument("source", help="file, folder, known name or hub id in the cache")


def convert(parser: Parser) -> None:
    """Convert a model folder (diffusers) to a single file (ldm), or back."""
    model = parser.add_argument_group("model")
    model.add_argument("source", help="name, hub id, folder or file")
    model.add_argument("target", type=Path, help="new folder, or a file that ends in .safetensors")
    how = parser.add_argument_group("how to read and write it")
    how.add_argument("--dtype", choices=DTYPES, metavar="NAME", help="convert the weights, too: " + ", ".join(DTYPES))
    how.add_argument(
        "--prediction-type", choices=PREDICTION_TYPES, metavar="NAME",
        help=f"what the UNet of an SD 2.x file predicts: {', '.join(PREDICTION_TYPES)}",
    )  # fmt: skip
    how.add_argument("--tokenizer", type=Path, metavar="FOLDER", help=TOKENIZER)
    how.add_argument("--overwrite", action="store_true", help="replace an existing target")


def verify(parser: Parser) -> None:
    """Check official weights (SD 1.x, 2.x, XL) against published numbers.

    The exit code is 0 if no check fails.
    """
    model = parser.add_argument_group("model")
    model.add_argument("model", help="name, hub id, folder or file")
    model.add_argument(
        "--as", dest="known_as", choices=VERIFIED, metavar="NAME",
        help=f"which model it is, where its name does not tell: {', '.join(VERIFIED)}",
    )  # fmt: skip
    model.add_argument("--variant", metavar="NAME", help=VARIANT)
    model.add_argument("--tokenizer", type=Path, metavar="FOLDER", help=TOKENIZER)
    model.add_argument("--offline", action="store_true", default=None, help=OFFLINE)
    checks = parser.add_argument_group("checks")
    checks.add_argument("--quick", action="store_true", help="only the checks that need no denoising")
    checks.add_argument("--golden", type=Path, metavar="PNG", help="ddsat_c9_1.png, the otter, to compare with")
    checks.add_argument("--picture", type=Path, metavar="PNG", help="ddsat_c15_0.png, to encode and decode")
    checks.add_argument("--device", metavar="NAME", help=DEVICE)
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="also write the results to a new file")
    output.add_argument("--quiet", action="store_true", help="no progress bars")


def train(parser: Parser) -> None:
    """Train the embedded model, a variant, or any model on your images.

    The stages vae, text, unet, vae128, preview and clip train the embedded model from scratch; "all" trains them in
    this order. FOLDER keeps one file for each stage: an interrupted stage continues from it, and a later stage reads
    the earlier ones from there, else from --start-from. vae128 enlarges the autoencoder to 128 pixels; its latents
    stay. preview makes a small decoder for previews. The stage "variant" adapts the UNet of --start-from to another
    task.

    Four stages teach the model of --start-from what --pictures show: "embedding" a new token, "lora" a style or a
    subject in a small file; "full" trains the whole UNet, "dreambooth" with images of the class beside. "distill" makes
    students of it that need fewer steps, or one call a step.

    `torchrun --nproc-per-node 2 -m minisd train ...` trains in two processes.
    """
    stages = ["all", *STAGES, "variant", *FINE_TUNINGS, "distill"]
    what = parser.add_argument_group("what to train")
    what.add_argument("stage", choices=stages, metavar="stage", help=", ".join(stages))
    what.add_argument("folder", type=Path, help="keeps the runs, to continue them, and the result")
    what.add_argument("--start-from", metavar="MODEL", help="train this model further, instead of a new one")
    budget = parser.add_argument_group("how long")
    budget.add_argument(
        "--minutes", type=real, default=240.0, metavar="X", help="for the stage, for all of them, for each student"
    )
    budget.add_argument(
        "--steps", type=whole, metavar="N", help="steps of each stage, instead of minutes: repeatable on the CPU"
    )
    variants = parser.add_argument_group("a variant")
    variants.add_argument("--task", choices=TASKS, metavar="NAME", help=f"its task: {', '.join(TASKS)}")
    fine_tuning(parser)
    distillation(parser)
    machine = parser.add_argument_group("data and machine")
    machine.add_argument(
        "--pool", type=whole, default=24_000, metavar="N", help="scenes for UNet, variant or student, in each process"
    )
    machine.add_argument("--device", metavar="NAME", help=f"where to train the UNet; the rest uses the CPU: {DEVICE}")
    machine.add_argument("--compile", action="store_true", help="compile the UNet: needs a C++ compiler and 2 minutes")
    machine.add_argument("--threads", type=whole, metavar="N", help="CPU threads (default: PyTorch's choice)")


def edit(parser: Parser) -> None:
    """Change what an image shows by a prompt, and keep the rest of it.

    Imagic: the text states, then a change of the model are trained on the image, a minute for the embedded model. The
    folder of --folder keeps both, and another --eta only draws.
    """
    what = parser.add_argument_group("what to change")
    what.add_argument("prompt", help="what the image should show, such as 'a blue square'; @FILE or - reads it")
    what.add_argument("--image", type=Path, metavar="FILE", help="image to change; its middle, in the model's size")
    what.add_argument("--eta", default="0,0.25,0.5,0.75,1", metavar="A,B", help="how far: 0 the image, 1 the prompt")
    what.add_argument("--model", default="sticker", help="name, hub id, folder or file: SD 1.x or 2.x")
    training = parser.add_argument_group("how to train")
    training.add_argument("--training-steps", metavar="A,B", help="of both stages (500,1000; small models 100,200)")
    training.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    how = parser.add_argument_group("how to draw it")
    how.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of the noise, the same for each eta")
    how.add_argument("--steps", type=whole, metavar="N", help="denoising steps (default: the model's)")
    how.add_argument("--device", metavar="NAME", help=DEVICE)
    how.add_argument("--threads", type=whole, metavar="N", help="CPU threads (default: PyTorch's choice)")
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--output", type=Path, metavar="FILE", help="(default: IMAGE-edited.png)")
    output.add_argument("--folder", type=Path, help="keeps what was trained (default: IMAGE-PROMPT)")
    output.add_argument("--overwrite", action="store_true", help="replace existing files")


def common(parser: Parser) -> None:
    """The options that every command has."""
    other = parser.add_argument_group("other")
    other.add_argument("-h", "--help", action="help", help="show this help")
    other.add_argument("--debug", action="store_true", default=SUPPRESS, help="show the traceback of an error")


COMMANDS = {
    "inspect": inspect,
    "convert": convert,
    "verify": verify,
    "bench": bench,
    "train": train,
    "edit": edit,
    "eval": evaluate,
    "exercises": exercises,
    "demo": demo,
    "app": app,
}
