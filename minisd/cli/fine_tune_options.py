"""The options of `minisd train` for training on images and for distillation; importing them loads no PyTorch.

None of them has a default here, so that `check_stage` sees what was typed. The settings have the names of the fields of
`minisd.training.fine_tuning.Settings`.
"""

from argparse import Namespace
from pathlib import Path

from minisd.cli.parser import Parser, real, whole
from minisd.errors import InputError

AUTOCAST = ("bfloat16", "float16")
METHODS = ("progressive", "guided")
WHOLE_MODEL = ("full", "dreambooth")
WITH_SETTINGS = (*WHOLE_MODEL, "lora")
FINE_TUNINGS = (*WITH_SETTINGS, "embedding")
NAMES = {"first": "--from", "last": "--to"}  # options that are not the name with dashes
STAGES_OF = {  # an option: the stages that read it
    "task": ("variant",),
    **dict.fromkeys(("pictures", "prompt"), (*FINE_TUNINGS, "distill")),
    **dict.fromkeys(("token", "like"), ("embedding",)),
    "rank": ("lora",),
    "sample": WITH_SETTINGS,
    **dict.fromkeys(("class_prompt", "class_images", "class_pictures", "prior_weight"), WITH_SETTINGS),
    **dict.fromkeys(
        ("learning_rate", "warmup_steps", "decay_fraction", "accumulation", "empty_prompts", "min_snr", "autocast",
         "seed"),
        WITH_SETTINGS,
    ),
    **dict.fromkeys(("batch", "gradient_checkpointing"), (*FINE_TUNINGS, "distill")),
    "ema_decay": (*WITH_SETTINGS, "distill"),
    "text_encoder": (*WHOLE_MODEL, "lora"),
    **dict.fromkeys(("method", "first", "last", "guidance", "scales"), ("distill",)),
}  # fmt: skip


def check_stage(args: Namespace) -> None:
    """Refuse options that the stage does not read. Raises InputError."""
    for name, stages in STAGES_OF.items():
        if getattr(args, name) is not None and args.stage not in stages:
            option = NAMES.get(name, "--" + name.replace("_", "-"))
            raise InputError(f"{option} is for {', '.join(stages)}, not for {args.stage}; remove it.")


def fine_tuning(parser: Parser) -> None:
    """The options for the images and the settings."""
    images = parser.add_argument_group("your images: full, dreambooth, lora, embedding, distill")
    images.add_argument("--pictures", type=Path, metavar="FOLDER", help="images X.png with X.txt, or metadata.jsonl")
    images.add_argument("--prompt", help="caption of the images that have none: 'a photo of sks dog'")
    images.add_argument("--token", help="new token of an embedding, such as '<candy>'; the captions contain it")
    images.add_argument("--like", metavar="WORD", help="known word whose embedding the new token starts from")
    images.add_argument("--rank", type=whole, metavar="N", help="rank of a LoRA (default: 4)")

    prior = parser.add_argument_group("images of the class beside: dreambooth, or full and lora as such")
    prior.add_argument("--class-prompt", metavar="TEXT", help="of the class, such as 'a photo of a dog'")
    prior.add_argument("--class-images", type=whole, metavar="N", help="to draw of the class (default: 100)")
    prior.add_argument("--class-pictures", type=Path, metavar="FOLDER", help="images of the class, not drawn")
    prior.add_argument("--prior-weight", type=real, metavar="X", help="of the loss on the class (default: 1)")

    how = parser.add_argument_group("settings of full, dreambooth and lora; where it says so, of others")
    how.add_argument("--learning-rate", type=real, metavar="X", help="5e-6, lora 1e-4; small models 2e-4, lora 2e-3")
    how.add_argument("--warmup-steps", type=whole, metavar="N", help="until that rate is reached (default: 20)")
    how.add_argument("--decay-fraction", type=real, metavar="X", help="last part, of falling rate (lora: 0.35)")
    how.add_argument(
        "--batch", type=whole, metavar="N", help="images, and as many of the class (4; lora, embedding 8; distill 16)"
    )
    how.add_argument("--accumulation", type=whole, metavar="N", help="batches of a step (default: 1)")
    how.add_argument("--empty-prompts", type=real, metavar="X", help="share of captions left out (0.1; dreambooth 0)")
    how.add_argument("--min-snr", type=real, metavar="X", help="limit of the loss weight; published: 5")
    how.add_argument(
        "--ema-decay", type=real, metavar="X", help="of an average of the weights (lora 0.98; distill 0.999)"
    )
    how.add_argument("--autocast", choices=AUTOCAST, metavar="DTYPE", help="bfloat16 or float16, where it is fast")
    how.add_argument("--seed", type=whole, metavar="N", help="of noise and order (default: 0)")
    how.add_argument("--sample", metavar="PROMPT", help="drawn at each save as FOLDER/samples.png")
    how.add_argument("--text-encoder", action="store_true", default=None, help="train it, too")
    how.add_argument(
        "--gradient-checkpointing", action="store_true", default=None,
        help="less memory, more time; for embedding and distill as well",
    )  # fmt: skip


def distillation(parser: Parser) -> None:
    """The options of the stage "distill"."""
    how = parser.add_argument_group("distill")
    how.add_argument("--method", choices=METHODS, metavar="NAME", help=f"{' (default) or '.join(METHODS)}")
    how.add_argument("--from", type=whole, dest="first", metavar="N", help="steps of the teacher (default: 32)")
    how.add_argument("--to", type=whole, dest="last", metavar="N", help="steps of the last student (default: 4)")
    how.add_argument("--guidance", type=real, metavar="SCALE", help="scale that is learned (default: the model's)")
    how.add_argument("--scales", metavar="A,B", help="of a student that reads the scale: its range (default: 1,8)")
