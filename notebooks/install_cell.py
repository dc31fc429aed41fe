"""The first cell of a notebook that is opened where minisd is not installed, such as in Colab."""

import re

import nbformat
from nbformat import NotebookNode

from notebooks.build import BuildError

CODE = """\
# Where minisd is not installed, as in Colab, this installs it. It takes about a minute.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("minisd") is None:
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", "{address}", "minisd-repository"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "./minisd-repository"], check=True)
    sys.path.append("minisd-repository/notebooks")  # lesson.py, which the lessons import
    importlib.invalidate_caches()
"""


def add_install_cell(notebook: NotebookNode, address: str) -> None:
    """Insert the cell behind the opening of a notebook. address: of a git repository with this project.

    Raises BuildError for an address that git would read as an option, or that is none.
    """
    if not re.fullmatch(r"[\w/.][\w/.:@+~-]*", address):
        raise BuildError(f"--repository is {address!r}, expected the address of a git repository: https://...")
    cell = nbformat.v4.new_code_cell(CODE.format(address=address).rstrip(), id="install")
    notebook.cells.insert(1, cell)
