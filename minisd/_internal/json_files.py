"""Read JSON files of models; write_json is in atomic_files."""

import json
from pathlib import Path
from typing import Any

from minisd.errors import FileFormatError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a UTF-8 file. Raises FileFormatError: missing, unreadable, or not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileFormatError(f"{path} is missing; download it again.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} cannot be read as JSON ({error}); download it again.") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} holds a JSON {type(value).__name__}, expected an object; download it again.")
    return value
