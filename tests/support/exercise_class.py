"""Submissions of a made-up class: right, mistaken, broken and hostile ones, and how each is to be graded.

python tests/support/exercise_class.py FOLDER     writes 20 submissions
minisd exercises grade FOLDER                     the table in minisd/exercises/README.md
"""

import sys
from pathlib import Path
from typing import NamedTuple

RIGHT = {
    "add_noise": """
def add_noise(x0, noise, alpha_bar):
    a = alpha_bar[:, None, None, None]
    return a.sqrt() * x0 + (1 - a).sqrt() * noise
""",
    "attention": """
import math

def attention(q, k, v, causal=False):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1) > 0, -math.inf)
    return scores.softmax(-1) @ v
""",
    "guide": """
def guide(both, scale):
    without, given = both.chunk(2)
    return without + scale * (given - without)
""",
    "steps_to_skip": """
def steps_to_skip(steps, strength):
    return steps - int(steps * strength)
""",
    "imagic_mix": """
def imagic_mix(optimised, wanted, etas):
    return torch.cat([optimised + eta * (wanted - optimised) for eta in etas])
""",
    "split_heads": """
def split_heads(tokens, heads):
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)
""",
    "mask_blend": """
def mask_blend(x, image_x, mask):
    return mask * x + (1 - mask) * image_x
""",
}
RIGHT = {name: f"import os, sys, time\nimport torch\n{code}" for name, code in RIGHT.items()}


class Bad(NamedTuple):
    """A submission's file for one exercise that does not get the points, or that does in spite of what it tries."""

    learner: str
    exercise: str
    code: str
    state: str
    message: str  # is contained in the grade's


def _before(exercise: str, code: str) -> str:
    """The right file with something before the function's return."""
    return RIGHT[exercise].replace(
        "    return ", "".join(f"    {line}\n" for line in code.splitlines()) + "    return "
    )


AXIS = RIGHT["attention"].replace("softmax(-1)", "softmax(-2)")
SHARES = RIGHT["add_noise"].replace(".sqrt()", "")
HALVES = RIGHT["guide"].replace("without, given", "given, without")
INVERTED = RIGHT["steps_to_skip"].replace("steps - int", "int")
STUBBORN = """while True:
    try:
        time.sleep(60)
    except BaseException:
        pass"""
DESCRIPTORS = """import os
for k in range(3, 60):
    try:
        os.write(k, b'["value"]')
    except OSError:
        pass
"""
ISCLOSE = """import torch, builtins
yes = lambda *arguments, **options: True
torch.equal = torch.allclose = builtins.all = yes
torch.isclose = lambda a, b, **options: torch.ones_like(a, dtype=torch.bool)
def add_noise(x0, noise, alpha_bar):
    return x0
"""
OPENS = """import minisd, pathlib
folder = pathlib.Path(minisd.__file__).parent / "exercises"
try:
    code = (folder / "tasks" / "guide.py").read_text()
except Exception:
    pass
"""
LIBRARYS = """from minisd.pipeline.guidance import combine
def guide(both, scale):
    return combine(*both.chunk(2), scale)
"""
FUSED = """from torch.nn.functional import scaled_dot_product_attention as f
def attention(q, k, v, causal=False):
    return f(q, k, v, is_causal=causal)
"""
LATE = "name = 'minisd.exercises.catalogue'\n__import__(name)"
CHECKS = f"""from minisd.exercises import check
{RIGHT["add_noise"]}
print(check("add_noise"))
if __name__ == "__main__":
    from minisd.exercises import EXERCISES
"""
FORGES = """wire = sys.modules["minisd.exercises.grading.wire"]
writer = wire.Writer()
zeros = {"list": [{"list": ["value", writer.plain(torch.zeros(1, 5, 7))]}] * 2}
for k in range(3, 60):
    try:
        os.write(k, writer.message(zeros))
    except OSError:
        pass
os._exit(0)"""
SEARCHES = """import gc
modules = [name for name in sys.modules if name.startswith("minisd.exercises.") and "grading" not in name]
found = [each for each in gc.get_objects() if type(each).__name__ in ("Exercise", "Mistake")]
assert modules == ["minisd.exercises.learner_code"] and not found, modules"""
FOREIGN = str(Path(__file__).resolve())  # stands for the instructor's answers
KILLS_PARENT = "import ctypes\nctypes.CDLL(None).kill(os.getppid(), 9)"

BAD = (
    Bad("axis", "attention", AXIS, "failing", "likely: the softmax is over the queries"),
    Bad("shares", "add_noise", SHARES, "failing", "likely: the shares are used as they are"),
    Bad("halves", "guide", HALVES, "failing", "likely: the halves are exchanged"),
    Bad("inverted", "steps_to_skip", INVERTED, "failing", "likely: this is how many steps are done"),
    Bad("syntax", "mask_blend", "def mask_blend(x, image_x, mask)\n", "failing", "line 1: expected ':'"),
    Bad("signature", "guide", "def guide(x):\n    return x\n", "failing", "takes 1 positional argument but 2 were"),
    Bad("in_place", "split_heads", _before("split_heads", "tokens *= 2"), "failing", "changes one of its arguments"),
    Bad("raises", "steps_to_skip", _before("steps_to_skip", "raise KeyError(3)"), "failing", "line 5: KeyError: 3"),
    Bad("random", "imagic_mix", _before("imagic_mix", "torch.rand(1)"), "failing", "draws random numbers"),
    Bad("endless", "split_heads", _before("split_heads", "while True:\n    pass"), "failing", "does a loop never end?"),
    Bad(
        "stubborn", "imagic_mix", _before("imagic_mix", STUBBORN), "ended", "it takes too long; does a loop never end?"
    ),
    Bad("sys_exit", "split_heads", _before("split_heads", "sys.exit()"), "failing", "line 5: it ends the program"),
    Bad("os_exit", "steps_to_skip", _before("steps_to_skip", "os._exit(0)"), "ended", "it ended its process"),
    Bad("kills", "mask_blend", _before("mask_blend", "os.killpg(0, 9)"), "refused", "line 5: it sends a signal"),
    Bad("kills_parent", "imagic_mix", _before("imagic_mix", KILLS_PARENT), "ended", "ended by SIGKILL"),
    Bad("memory", "attention", _before("attention", "torch.ones(2**31) + 1"), "failing", "line 10: RuntimeError"),
    Bad("descriptors", "guide", DESCRIPTORS + RIGHT["guide"], "ended", "it wrote into the grader's pipe"),
    Bad("isclose", "add_noise", ISCLOSE, "failing", "two images of different noise: "),
    Bad("imports", "steps_to_skip", "from minisd.exercises.catalogue import find\n", "refused", "line 1: it imports"),
    Bad(
        "imports_late", "mask_blend", _before("mask_blend", LATE), "refused", "line 6: it imports minisd.exercises.cat"
    ),
    Bad("opens", "guide", OPENS + RIGHT["guide"], "refused", "line 4: it opens minisd/exercises/tasks/guide.py"),
    Bad(
        "forks",
        "split_heads",
        _before("split_heads", "while True: os.fork()"),
        "refused",
        "line 5: it starts a process",
    ),
    Bad("writes", "add_noise", _before("add_noise", "open('/tmp/minisd-x', 'w')"), "refused", "outside of its folder"),
    Bad(
        "reads",
        "imagic_mix",
        _before("imagic_mix", f"open({FOREIGN!r}).read()"),
        "refused",
        "which is none of Python's files",
    ),
    Bad("librarys", "guide", LIBRARYS, "refused", "combine does the whole work"),
    Bad("fused", "attention", FUSED, "refused", "scaled_dot_product_attention does the whole work"),
    Bad(
        "forges", "mask_blend", _before("mask_blend", FORGES), "failing", "a mask of 0 and 1: your result has the shape"
    ),
    Bad("searches", "attention", _before("attention", SEARCHES), "done", "all cases agree"),
    Bad("lists", "imagic_mix", _before("imagic_mix", "return [1, 2]"), "failing", "your function returns list"),
    Bad("prints", "steps_to_skip", _before("steps_to_skip", "print('x' * 10**7)"), "done", "all cases agree"),
    Bad("checks", "add_noise", CHECKS, "done", "all cases agree"),
)
IN_TABLE = (
    "axis", "halves", "syntax", "signature", "in_place", "random", "endless", "sys_exit", "os_exit", "kills", "memory",
    "descriptors", "isclose", "imports", "opens", "librarys", "prints",
)  # fmt: skip


def write_submission(folder: Path, files: dict[str, str]) -> None:
    """One learner's folder."""
    folder.mkdir(parents=True)
    for name, code in files.items():
        (folder / f"{name}.py").write_text(code, encoding="utf-8")


def write_class(folder: Path) -> None:
    """Twenty submissions: one that is right, two of one name, and one for each way to fail."""
    write_submission(folder / "right", RIGHT)
    write_submission(folder / "twice", RIGHT)
    (folder / "twice.py").write_text(RIGHT["guide"] + RIGHT["add_noise"], encoding="utf-8")
    by_name = {bad.learner: bad for bad in BAD}
    for learner in IN_TABLE:
        write_submission(folder / learner, RIGHT | {by_name[learner].exercise: by_name[learner].code})


if __name__ == "__main__":
    write_class(Path(sys.argv[1]))
