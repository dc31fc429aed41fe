"""What a LoRA file says of alpha beside its tensors: PEFT's settings, in the header or in adapter_config.json."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisd.errors import FileFormatError, MismatchError
from weights_loader.adapters.lora_file import ADVICE, ENDINGS
from weights_loader.formats.safetensors_header import shown
from weights_loader.formats.weight_file import WeightFile

HEADER = "lora_adapter_metadata"  # where diffusers writes them, each with its network's name in front


def header_settings(file: WeightFile) -> dict[str, Any]:
    """The settings in a file's header; empty where it has none. Raises FileFormatError."""
    try:
        settings = json.loads(file.metadata.get(HEADER, "{}"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{file.path}: {HEADER} in the header is no JSON ({error}); get it again.") from None
    if not isinstance(settings, dict):
        raise FileFormatError(f"{file.path}: {HEADER} is a {type(settings).__name__}, expected a JSON object.")
    return settings


@dataclass(frozen=True)
class PeftConfig:
    """`settings`: of all layers, or each with a network's name in front ("unet.lora_alpha"); `path`: for messages."""

    settings: Mapping[str, Any]
    path: Path

    def factor(self, key: str, network: str, rank: int) -> float:
        """alpha / rank of the layer whose `down` is `key`, or alpha / sqrt(rank) (rsLoRA); 1 where nothing is said.

        Raises MismatchError for settings of another kind of adapter.
        """
        settings = self._of(network)
        if settings.get("peft_type", "LORA") != "LORA" or settings.get("use_dora"):
            kind = "DoRA" if settings.get("use_dora") else shown(settings["peft_type"])
            raise MismatchError(f"{self.path} says that the adapter is {kind}, expected a LoRA; {ADVICE}.")
        patterns = settings.get("alpha_pattern") or {}
        if not isinstance(patterns, dict) or not all(re.fullmatch(r"[\w.]+", name) for name in patterns):
            raise MismatchError(
                f"{self.path}: alpha_pattern is {shown(patterns)}, expected names of layers, each with its alpha."
            )
        layer = next((key.removesuffix(each) for each in ENDINGS if key.endswith(each)), key)
        named = (value for name, value in patterns.items() if layer == name or layer.endswith(f".{name}"))
        alpha = next(named, settings.get("lora_alpha"))  # the first counts
        if alpha is None:
            return 1.0
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise MismatchError(f"{self.path}: alpha is {shown(alpha)}, expected a finite number; get the LoRA again.")
        return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)

    def _of(self, network: str) -> Mapping[str, Any]:
        if not any("." in name for name in self.settings):
            return self.settings
        front = f"{network}."
        return {name.removeprefix(front): v for name, v in self.settings.items() if name.startswith(front)}
