"""Errors of the library name Python arguments; the command line shows the options that the user typed."""

import re
from collections.abc import Collection

OPTION_OF = {  # where the option is not the argument's name with dashes
    "denoising_end": "--handover",
    "denoising_start": "--handover",
    "depth_map": "--depth",
    "guidance_scale": "--guidance",
    "mask_image": "--mask",
    "negative_prompt": "--negative",
    "num_images_per_prompt": "--count",
    "num_inference_steps": "--steps",
    "use_karras_sigmas": "--karras",
}
ONE_WORD = {"accumulation", "eta", "strength"}  # always arguments
# arguments at the beginning of a message, or directly after the words of BEFORE:
ENGLISH = {"batch", "device", "height", "image", "seed", "width"}
BEFORE = re.compile(r"(?:^|\b(?:and|give|of|(?<!pipe )(?<!socket )or|remove|without) )$")
QUOTED = r"""(?<!\w)(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`[^`]*`)(?!\w)"""
NAME = r"(?<![\w./\\-])(?P<name>[a-z]+(?:_[a-z]+)*)(?![\w/\\-]|\.\w)(?P<value>=(?:True\b| )?)?"  # of no path or option
WORDS = re.compile(f"{QUOTED}|{NAME}")


def with_options(message: str, options: Collection[str], argv: Collection[str] = ()) -> str:
    """The message with the names of arguments replaced: `num_inference_steps is 0` becomes `--steps is 0`.

    options: all options of the command. argv: what the user typed; `image` is --upscale if that is there. Quoted text,
    such as prompts and file names, and names without an option stay as they are.
    """

    def option(match: re.Match[str]) -> str:
        name, value = match["name"] or "", match["value"]
        is_argument = value is not None or "_" in name or name in ONE_WORD
        is_argument |= name in ENGLISH and BEFORE.search(message, 0, match.start()) is not None
        found = "--upscale" if name == "image" and "--upscale" in argv else option_of(name)
        space = "" if value in (None, "=True") else " "
        return f"{found}{space}" if is_argument and found in options else match[0]

    return WORDS.sub(option, message)


def option_of(argument: str) -> str:
    """The option for a Python argument; with dashes unless OPTION_OF lists another name."""
    return OPTION_OF.get(argument, "--" + argument.replace("_", "-"))
