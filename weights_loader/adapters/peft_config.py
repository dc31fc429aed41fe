"""PEFT's settings of a LoRA, in the header of its file or in adapter_config.json: alpha where no tensor holds it."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisd._internal.messages import shown
from minisd.errors import FileFormatError, MismatchError
from weights_loader.adapters.lora_file import ADVICE, ENDINGS, plain_name
from weights_loader.formats.weight_file import WeightFile

HEADER = "lora_adapter_metadata"  # diffusers stores them here, each with the name of its network as prefix


def header_settings(file: WeightFile) -> dict[str, Any]:
    """The settings in the header of a file; {} if there are none. Raises FileFormatError."""
    try:
        settings = json.loads(file.metadata.get(HEADER, "{}"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{file.path}: {HEADER} in the header is not JSON ({error}); download the LoRA again."
        ) from None
    if not isinstance(settings, dict):
        raise FileFormatError(
            f"{file.path}: {HEADER} in the header is a {type(settings).__name__}, expected a JSON object."
        )
    return settings


@dataclass(frozen=True)
class PeftConfig:
    """`settings`: of all layers, or each with a network as prefix ("unet.lora_alpha"). `path`: for messages."""

    settings: Mapping[str, Any]
    path: Path

    def factor(self, key: str, network: str, rank: int) -> float:
        """The factor of the layer whose `down` is `key`: alpha / rank, or alpha / sqrt(rank) (rsLoRA); 1 without alpha.

        Raises MismatchError for settings of another kind of adapter.
        """
        settings = self._of(network)
        if settings.get("peft_type", "LORA") != "LORA" or settings.get("use_dora"):
            kind = "DoRA" if settings.get("use_dora") else shown(settings["peft_type"])
            raise MismatchError(f"{self.path} describes a {kind} adapter, expected a LoRA; {ADVICE}.")
        patterns = settings.get("alpha_pattern") or {}
        if not isinstance(patterns, dict) or not all(re.fullmatch(r"[\w.]+", name) for name in patterns):
            raise MismatchError(
                f"{self.path}: alpha_pattern is {shown(patterns)}, expected an alpha for each name of a layer."
            )
        plain = plain_name(key)
        layer = next((plain.removesuffix(each) for each in ENDINGS if plain.endswith(each)), plain)
        named = (value for name, value in patterns.items() if layer == name or layer.endswith(f".{name}"))
        alpha = next(named, settings.get("lora_alpha"))  # the first match
        if alpha is None:
            return 1.0
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise MismatchError(f"{self.path}: alpha is {shown(alpha)}, expected a finite number.")
        return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)

    def _of(self, network: str) -> Mapping[str, Any]:
        if not any("." in name for name in self.settings):
            return self.settings
        prefix = f"{network}."
        return {name.removeprefix(prefix): v for name, v in self.settings.items() if name.startswith(prefix)}
