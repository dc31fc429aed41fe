"""The public names of minisd: complete, lazy, and known to type checkers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minisd
from minisd import errors


def test_each_name_is_what_its_module_holds() -> None:
    for name in minisd.__all__:
        assert getattr(minisd, name) is not None
    assert minisd.UNet is minisd.models.UNet
    assert issubclass(minisd.InputError, errors.MinisdError)
    assert dir(minisd) == sorted(minisd.__all__)


def test_type_checkers_see_the_same_names() -> None:
    stub = ast.parse(Path(minisd.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: (node.module, alias.name) for node in imports for alias in node.names}
    expected = {name: (module, name) for name, module in minisd._MODULE_OF.items()}
    assert seen == expected | {name: ("minisd", name) for name in minisd._SUBMODULES}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'UNnet'"):
        _ = minisd.UNnet  # type: ignore[attr-defined]


def test_importing_minisd_imports_no_torch() -> None:
    code = "import sys, minisd; print([m for m in ('torch', 'numpy', 'tqdm', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
