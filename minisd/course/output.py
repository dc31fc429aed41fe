"""What the courses' calls return."""

from typing import Any


class Output(dict[str, Any]):
    """Fields by name, by key and by place, as out.sample, out["sample"], out[0]."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"this output has no {name!r}, only {', '.join(self)}.")
        return self[name]

    def __getitem__(self, key: str | int) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)
