"""Read JSON files of models; write_json is in atomic_files."""

import json
from pathlib import Path
from typing import Any

from minisd._internal.model_files import read_model_file
from minisd.errors import FileFormatError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a UTF-8 file. Raises FileFormatError: missing, unreadable, too long, or not a JSON object."""
    raw = read_model_file(path)
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} cannot be read as JSON ({error}); download it again.") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} holds a JSON {type(value).__name__}, expected an object; download it again.")
    return value
