"""The diagrams of the lessons and the READMEs, drawn by code: python -m notebooks.diagrams

Each function draws one figure. Files are diagrams/NAME.png.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

FOLDER = Path(__file__).resolve().parent / "diagrams"
BLUE, ORANGE, GREEN, GREY = "#CCE3F0", "#F8DFC9", "#CDEBDF", "#EEEEEE"
LINE, TEXT = "#444444", 9


def canvas(width: float, height: float, across: float, down: float) -> tuple[Figure, Axes]:
    """A figure of some inches, whose units go from (0, 0) at the lower left to (across, down)."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, across), ylim=(0, down))
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str = BLUE) -> None:
    """A box around its centre (x, y)."""
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, "round,pad=0,rounding_size=0.12", fc=colour, ec=LINE, lw=0.8))
    axes.text(x, y, text, ha="center", va="center", fontsize=TEXT)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0, dashed: bool = False
) -> None:
    """An arrow between two points."""
    style = {"arrowstyle": "-|>", "color": LINE, "lw": 0.9, "shrinkA": 0, "shrinkB": 0}
    style |= {"connectionstyle": f"arc3,rad={bend}", "linestyle": "--" if dashed else "-"}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)


def note(axes: Axes, x: float, y: float, text: str, size: float = TEXT - 1, **options: object) -> None:
    """A text without a box."""
    axes.text(x, y, text, fontsize=size, **{"ha": "center", "va": "center", "color": "#222222", **options})  # type: ignore[arg-type]


def pipeline() -> Figure:
    """From a prompt to an image."""
    figure, axes = canvas(9, 3.6, 18, 7.2)
    box(axes, 1.5, 5.2, 2.4, 1.1, '"a red circle"', GREY)
    box(axes, 4.9, 5.2, 2.4, 1.1, "tokenizer")
    box(axes, 8.6, 5.2, 2.8, 1.1, "text encoder")
    box(axes, 8.6, 2.2, 2.8, 1.4, "UNet", ORANGE)
    box(axes, 12.2, 2.2, 2.4, 1.1, "guidance", ORANGE)
    box(axes, 15.9, 2.2, 2.8, 1.1, "step of the\nsampler", ORANGE)
    box(axes, 15.9, 5.2, 2.8, 1.1, "decoder")
    box(axes, 1.5, 2.2, 2.4, 1.1, "noise $x_T$", GREY)
    arrow(axes, (2.7, 5.2), (3.7, 5.2))
    arrow(axes, (6.1, 5.2), (7.2, 5.2))
    arrow(axes, (8.6, 4.65), (8.6, 2.9))
    arrow(axes, (2.7, 2.2), (7.2, 2.2))
    arrow(axes, (10.0, 2.2), (11.0, 2.2))
    arrow(axes, (13.4, 2.2), (14.5, 2.2))
    arrow(axes, (15.9, 2.75), (15.9, 4.65))
    arrow(axes, (15.9, 5.75), (15.9, 6.35))
    axes.plot([15.9, 15.9, 5.6, 5.6], [1.65, 0.4, 0.4, 2.0], color=LINE, lw=0.9)
    arrow(axes, (5.6, 1.9), (5.6, 2.18))
    arrow(axes, (8.6, 0.95), (8.6, 1.5))
    note(axes, 6.65, 5.55, "ids", va="bottom")
    note(axes, 6.65, 4.85, "77", va="top")
    note(axes, 8.85, 3.8, "text states 77 x 768", ha="left")
    note(axes, 4.2, 2.5, "$x_t$   4 x 64 x 64", va="bottom")
    note(axes, 12.2, 0.55, "$x_{t-1}$, again for every step", va="bottom")
    note(axes, 8.6, 0.9, "timestep $t$", va="top")
    note(axes, 10.5, 2.35, "two", size=7, va="bottom")
    note(axes, 13.95, 2.35, "one", size=7, va="bottom")
    note(axes, 16.15, 3.7, "$x_0$ at the end", ha="left", size=7)
    note(axes, 15.9, 6.45, "image 3 x 512 x 512", va="bottom")
    return figure


def unet() -> Figure:
    """The U with its skips."""
    figure, axes = canvas(9, 4.2, 18, 8.4)
    levels = [(6.9, 320, "64 x 64"), (5.2, 640, "32 x 32"), (3.5, 1280, "16 x 16"), (1.8, 1280, "8 x 8")]
    for k, (y, channels, places) in enumerate(levels):
        left, right = 3.2 + 0.75 * k, 14.8 - 0.75 * k
        words = "residual blocks" if k == 3 else "residual blocks\n+ transformers"
        box(axes, left, y, 2.9, 1.05, words)
        box(axes, right, y, 2.9, 1.05, words, GREEN)
        arrow(axes, (left + 1.45, y), (right - 1.45, y), dashed=True)
        note(axes, 9, y + 0.12, f"skips: {channels} x {places}", va="bottom")
        if k < 3:
            below = levels[k + 1][0]
            arrow(axes, (left + 0.3, y - 0.525), (left + 0.5, below + 0.525))
            arrow(axes, (right - 0.5, below + 0.525), (right - 0.3, y - 0.525))
    box(axes, 9, 0.6, 3.6, 0.8, "middle", ORANGE)
    arrow(axes, (6.2, 1.27), (7.15, 0.75))
    arrow(axes, (10.85, 0.75), (11.8, 1.27))
    arrow(axes, (0.5, 6.9), (1.75, 6.9))
    arrow(axes, (16.25, 6.9), (17.5, 6.9))
    note(axes, 0.9, 7.35, "noisy latents\n4 x 64 x 64", va="bottom")
    note(axes, 17.1, 7.35, "prediction\n4 x 64 x 64", va="bottom")
    note(axes, 2.0, 2.6, "time: into every\nresidual block", ha="center")
    note(axes, 16.0, 2.6, "text: into every\ntransformer", ha="center")
    note(axes, 1.6, 4.35, "halved", size=7)
    note(axes, 16.4, 4.35, "doubled", size=7)
    return figure


def attention() -> Figure:
    """Queries, keys, values."""
    figure, axes = canvas(9, 3.2, 18, 6.4)

    def matrix(x: float, y: float, width: float, height: float, name: str, size: str, colour: str) -> None:
        axes.add_patch(Rectangle((x - width / 2, y - height / 2), width, height, fc=colour, ec=LINE, lw=0.8))
        note(axes, x, y, name, size=TEXT)
        note(axes, x, y - height / 2 - 0.12, size, size=7, va="top")

    matrix(1.3, 4.6, 1.5, 2.2, "image\nplaces", "N x width", GREY)
    matrix(1.3, 1.5, 1.5, 1.4, "text\nstates", "M x width", GREY)
    matrix(5.0, 4.6, 1.1, 2.2, "Q", "N x d", BLUE)
    matrix(5.0, 1.5, 1.1, 1.4, "K", "M x d", BLUE)
    matrix(7.2, 1.5, 1.1, 1.4, "V", "", GREEN)
    note(axes, 7.85, 0.95, "M x d", size=7, ha="left")
    matrix(10.2, 4.6, 1.4, 2.2, "weights", "N x M", ORANGE)
    matrix(15.6, 4.6, 1.1, 2.2, "result", "N x d", GREEN)
    arrow(axes, (2.05, 4.6), (4.45, 4.6))
    arrow(axes, (2.05, 1.5), (4.45, 1.5))
    axes.plot([2.7, 2.7, 7.2, 7.2], [1.5, 0.3, 0.3, 0.5], color=LINE, lw=0.9)
    arrow(axes, (7.2, 0.4), (7.2, 0.8))
    arrow(axes, (5.55, 4.6), (9.5, 4.6))
    arrow(axes, (5.0, 2.2), (9.5, 4.0), bend=-0.12)
    arrow(axes, (10.9, 4.6), (15.05, 4.6))
    arrow(axes, (7.75, 1.5), (15.05, 3.9), bend=0.2)
    note(axes, 3.2, 4.75, "a matrix", size=7, va="bottom")
    note(axes, 3.5, 1.65, "a matrix", size=7, va="bottom")
    note(axes, 7.5, 4.75, r"$QK^T/\sqrt{d}$, softmax of each row", va="bottom")
    note(axes, 13.0, 4.75, "weighted mean of V", va="bottom")
    note(axes, 10.2, 5.95, "each row sums to 1: where a place looks", size=7)
    return figure


def autoencoder() -> Figure:
    """Pixels to latents and back."""
    figure, axes = canvas(9, 2.9, 18, 5.8)
    sizes = [(1.3, 4.0, "3 x 512 x 512"), (3.7, 3.1, "256"), (5.2, 2.3, "128"), (6.5, 1.6, "64")]
    for k, (x, height, text) in enumerate(sizes):
        for place, colour in ((x, BLUE), (18 - x, GREEN)):
            shade = GREY if k == 0 else colour
            axes.add_patch(Rectangle((place - 0.35, 2.9 - height / 2), 0.7, height, fc=shade, ec=LINE, lw=0.8))
            note(axes, place, 2.9 - height / 2 - 0.12, text, size=7, va="top")
    for (a, _, _), (b, _, _) in pairwise(sizes):
        arrow(axes, (a + 0.4, 2.9), (b - 0.4, 2.9))
        arrow(axes, (18 - b + 0.4, 2.9), (18 - a - 0.4, 2.9))
    box(axes, 9, 2.9, 1.7, 1.6, "latents\n4 x 64 x 64", ORANGE)
    arrow(axes, (6.9, 2.9), (8.15, 2.9))
    arrow(axes, (9.85, 2.9), (11.1, 2.9))
    note(axes, 3.9, 5.3, "encoder", size=TEXT + 1)
    note(axes, 14.1, 5.3, "decoder", size=TEXT + 1)
    note(axes, 7.5, 4.2, "mean and\ndeviation", size=7)
    note(axes, 9, 1.5, "48 times fewer numbers", size=8)
    return figure


def guidance() -> Figure:
    """A line through two predictions."""
    figure, axes = canvas(7, 3, 14, 6)
    points = {0.0: "without the prompt", 1.0: "with the prompt", 3.0: "scale 3", 5.0: "scale 5"}
    start, step = (1.4, 1.4), (2.1, 0.68)
    end = (start[0] + 5.5 * step[0], start[1] + 5.5 * step[1])
    axes.plot([start[0], start[0] + step[0]], [start[1], start[1] + step[1]], color=LINE, lw=2)
    arrow(axes, (start[0] + step[0], start[1] + step[1]), end, dashed=True)
    for scale, name in points.items():
        x, y = start[0] + scale * step[0], start[1] + scale * step[1]
        axes.plot(x, y, "o", color="#0072B2" if scale < 2 else "#D55E00", markersize=7)
        note(axes, x + 0.1, y - 0.45, name, ha="left" if scale < 2 else "center", va="top")
    note(axes, 4.2, 4.6, r"$p_s = p_0 + s\,(p_1 - p_0)$", size=12)
    note(axes, 1.2, 1.75, "scale 0", size=7, ha="center")
    note(axes, 3.3, 2.45, "scale 1", size=7, ha="center")
    return figure


def names() -> Figure:
    """The symbols and their relations."""
    rows = [
        ("$x_0$", "clean latents", "what the decoder makes an image of"),
        (r"$\epsilon$", "noise", "unit variance, as large as the latents"),
        (r"$\bar\alpha_t$", "alpha_bar", "share of the image in the variance at timestep t: 1 clean, 0 noise"),
        ("$x_t$", "noisy latents", r"$\sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon$"),
        (r"$\sigma_t$", "sigma", r"noise for one unit of image: $\sqrt{(1-\bar\alpha_t)\,/\,\bar\alpha_t}$"),
        ("$v_t$", "velocity", r"$\sqrt{\bar\alpha_t}\,\epsilon - \sqrt{1-\bar\alpha_t}\,x_0$"),
        ("$s$", "guidance scale", r"$p_0 + s\,(p_1 - p_0)$: 1 is the prompt alone"),
    ]
    figure, axes = canvas(8, 3.1, 16, 6.2)
    for k, (symbol, word, meaning) in enumerate(rows):
        y = 5.7 - 0.82 * k
        if k % 2 == 0:
            axes.add_patch(Rectangle((0, y - 0.41), 16, 0.82, fc=GREY, ec="none"))
        for x, text, size in ((0.5, symbol, 12), (2.0, word, 9), (5.4, meaning, 9)):
            note(axes, x, y, text, size=size, ha="left")
    return figure


DIAGRAMS: dict[str, Callable[[], Figure]] = {
    each.__name__: each for each in (pipeline, unet, attention, autoencoder, guidance, names)
}


def save(chosen: Sequence[str] = tuple(DIAGRAMS), folder: Path = FOLDER) -> list[Path]:
    """Write the diagrams as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in chosen]
    for path in paths:
        DIAGRAMS[path.stem]().savefig(path, dpi=110, metadata={"Software": None})
    return paths


if __name__ == "__main__":
    for path in save():
        print(path.relative_to(FOLDER.parent.parent))
