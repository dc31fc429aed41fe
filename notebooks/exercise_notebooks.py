"""A notebook for each exercise, without outputs: python -m notebooks.exercise_notebooks FOLDER [NAME ...]

It opens with the image that the pipeline draws once the exercise is solved, then has the empty function, its check and
the folded hints. --repository ADDRESS adds a cell that installs minisd from there, for Colab.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
import torch
from nbformat import NotebookNode
from PIL import Image

import weights_loader
from minisd import images
from minisd.errors import MinisdError
from minisd.exercises import EXERCISES, Exercise, find
from minisd.exercises.checking import enlarged
from minisd.exercises.pipeline_run import PROMPT, run
from minisd.pipeline import StableDiffusion
from notebooks.build import BuildError, sources
from notebooks.install_cell import add_install_cell

FIGURES = "figures"


def exercise_notebook(exercise: Exercise, figure: str | None) -> NotebookNode:
    """The notebook of an exercise. figure: the path of its image, if the pipeline has a place for its function."""
    lessons = {path.name[:2]: path.stem for path in sources()}
    lesson = lessons.get(exercise.notebook)
    opening = [f"# {exercise.number} · {exercise.title}"]
    if figure is not None:
        opening.append(f"![What the pipeline draws for {PROMPT!r} with the right function]({figure})")
        opening.append(f"This is what the pipeline draws for {PROMPT!r}, in few steps, with the right function in it.")
    after = f" It belongs to lesson {lesson}." if lesson else ""
    before = f" Solve {', '.join(exercise.needs)} first." if exercise.needs else ""
    opening.append(f"Level {exercise.level} of 5, about {exercise.minutes} minutes.{after}{before}")
    hints = [
        f"<details><summary>Hint {number}</summary>\n\n{text}\n\n</details>"
        for number, text in enumerate(exercise.hints, 1)
    ]
    check = f'from minisd.exercises import check\n\ncheck("{exercise.name}", {exercise.name})'
    cells = [
        nbformat.v4.new_markdown_cell("\n\n".join(opening), id="opening"),
        nbformat.v4.new_code_cell(exercise.starter.strip(), id="function"),
        nbformat.v4.new_code_cell(check, id="check"),
        nbformat.v4.new_markdown_cell("\n\n".join(hints), id="hints"),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


@torch.no_grad()
def figure_of(exercise: Exercise, sd: StableDiffusion) -> Image.Image | None:
    """What the pipeline draws with the right function; None where it has no place for it."""
    if exercise.install is None:
        return None
    return enlarged(images.to_pil(sd.decode(run(exercise, exercise.reference, sd).latents[-1]).clamp(-1, 1))[0])


def write_notebooks(folder: Path, chosen: Sequence[Exercise], repository: str | None = None) -> list[Path]:
    """Write the notebooks and their figures; gives the paths of the notebooks. Existing files are replaced.

    repository: an address to install minisd from. Raises BuildError for one that is none.
    """
    sd = weights_loader.load("sticker")
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    written = []
    for exercise in chosen:
        image = figure_of(exercise, sd)
        name = f"{FIGURES}/{exercise.name}.png"
        if image is not None:
            images.save(image, folder / name, overwrite=True)
        path = folder / f"{exercise.number:02d}_{exercise.name}.ipynb"
        notebook = exercise_notebook(exercise, None if image is None else name)
        if repository is not None:
            add_install_cell(notebook, repository)
        nbformat.write(notebook, path)
        written.append(path)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the notebooks, and print their paths."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.exercise_notebooks", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", nargs="*")
    parser.add_argument("--repository", metavar="ADDRESS", help="adds a cell that installs minisd from this address")
    args = parser.parse_args(arguments)
    try:
        chosen = [find(name) for name in args.name] or list(EXERCISES.values())
        print("\n".join(map(str, write_notebooks(args.folder, chosen, args.repository))))
    except (MinisdError, BuildError, OSError) as error:
        print(f"notebooks.exercise_notebooks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
