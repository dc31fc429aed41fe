"""All exercises, in their order."""

from collections.abc import Mapping

from minisd.exercises import sheets
from minisd.exercises.exercise import Exercise

EXERCISES: dict[str, Exercise] = {name: sheet.exercise for name, sheet in sheets.SHEETS.items()}


def find(name: str, known: Mapping[str, Exercise] = EXERCISES) -> Exercise:
    """The exercise with this name, or number. Raises InputError, which names the nearest ones."""
    return sheets.find(name, known)
