"""The files of the two libraries, and which of them are the core that a student reads."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for library in ("minisd", "weights_loader")
    for path in sorted((ROOT / library).rglob("*.py"))
}
HELPERS = {"_internal", "errors", "images"}
CORE = {"configs", "tokenizer", "models", "schedulers", "pipeline", "minimal", *HELPERS}
