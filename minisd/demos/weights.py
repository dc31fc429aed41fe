"""Official weights: what a file or a folder holds, without loading it."""

from pathlib import Path

import weights_loader
from minisd._internal.messages import printable
from minisd.demos.charts import draw_bars
from minisd.demos.demo import Demo, Panel, Table, row_of
from weights_loader.sources import EMBEDDED

MILLION = 1_000_000


def show(source: str | Path = EMBEDDED) -> Demo:
    """The layout, family and networks of a model folder, a weight file or an adapter; nothing is downloaded.

    source: as for weights_loader.inspect. Raises the classes of minisd.errors.
    """
    found = weights_loader.inspect(source)
    sizes = [(name, part.parameters / MILLION) for name, part in found.components.items()]
    total = sum(part.parameters for part in found.components.values())
    text = [
        f"{found.path.name}: layout {found.layout}, family {found.family}.",
        f"{total:,} parameters in {sum(part.tensors for part in found.components.values()):,} tensors.",
    ]
    if "unet" in found.components:
        text.append(f"The UNet predicts {found.prediction_type or 'what the tensors do not show'}.")
    if found.words:
        text.append(f"The model knows {len(found.words.split())} words.")
    text += [printable(f"Note: {notice}") for notice in found.notices]
    bars = draw_bars(sizes, " M", 520)
    alt = "a bar for each network: " + ", ".join(f"{name} {size:.2f} million" for name, size in sizes)
    return Demo(
        "Weights: what a file or folder is",
        tuple(text),
        (row_of("Parameters of each network, in millions", [Panel("M: millions of parameters", bars, alt)]),),
        Table(
            ("network", "tensors", "parameters", "dtypes"),
            tuple(
                (name, part.tensors, part.parameters, _listed(part.dtypes)) for name, part in found.components.items()
            ),
        ),
        ("weights_loader/inspection.py",),
        "22",
    )


def _listed(dtypes: dict[str, int]) -> str:
    return ", ".join(f"{count} {dtype}" for dtype, count in dtypes.items())
