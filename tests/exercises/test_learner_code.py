"""Code of learners: each kind of failure becomes one sentence, with the line of their file."""

from pathlib import Path

import pytest
import torch

from minisd.exercises import learner_code
from minisd.exercises.catalogue import EXERCISES
from minisd.exercises.checking import check_solution
from minisd.exercises.learner_code import Complaint, load
from minisd.exercises.pipeline_run import Runs

HEAD = "import torch\n\n\ndef guide(both, scale):\n"


def checked(path: Path, text: str) -> str:
    path.write_text(text)
    try:
        report = check_solution(EXERCISES["guide"], load(str(path), "guide"))
    except Complaint as error:
        return str(error)
    assert report.state == "failing"
    return report.lines[0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    return both[\n", "line 5: '[' was never closed"),
        ("    return both.chunks(2)\n", "line 5: AttributeError: 'Tensor' object has no attribute 'chunks'"),
        ("    u, c = both.chunk(2)\n    u += scale * (c - u)\n    return u\n", "changes one of its arguments"),
        ("    exit()\n", "line 5: it ends the program; remove exit()"),
        ("    raise KeyError\n", "line 5: KeyError."),
        ("    return [1, 2]\n", "scale 7.5: your function returns list, expected a dense tensor"),
        ("    return torch.nn.functional.interpolate(both[0, 0], size=3, mode='bilinear')\n", "line 5: "),
        ("    u, c = both.chunk(2)\n", "scale 7.5: your function returns nothing; its last line should be"),
        ("    return both\n", "your result has the shape (4, 3, 2, 5), expected (2, 3, 2, 5)"),
        ("    return both[:2].double()\n", "your result is float64, expected float32"),
        ("    return both[:2] / 0\n", "of your numbers are NaN or infinite"),
        ("    return both[:2] + torch.randn(2, 3, 2, 5)\n", "draws random numbers"),
        ("    return both[:2].to('meta')\n", "your result is on meta, expected cpu"),
    ],
)
def test_mistakes_in_the_code(body: str, message: str, tmp_path: Path) -> None:
    assert message in checked(tmp_path / "guide.py", HEAD + body)


def test_an_error_has_its_case_and_what_was_expected(tmp_path: Path) -> None:
    path = tmp_path / "split_heads.py"
    path.write_text("def split_heads(tokens, heads):\n    return tokens.reshape(2, 7, heads, heads)\n")
    (line,) = check_solution(EXERCISES["split_heads"], load(str(path), "split_heads")).lines
    given = "from tokens (2, 7, 15), heads=3, expected a tensor of the shape (2, 3, 7, 5)"
    words = "RuntimeError: shape '[2, 7, 3, 3]' is invalid for input of size 210."
    assert line == f"three heads: {given}; line 2: {words}"


@pytest.mark.parametrize("number", ["3.5", "inf", "nan"])
def test_a_single_number_is_shown(number: str, tmp_path: Path) -> None:
    path = tmp_path / "dreambooth_loss.py"
    parameters = "prediction, target, subjects, prior_weight"
    path.write_text(f"def dreambooth_loss({parameters}):\n    return prediction.new_tensor(float('{number}'))\n")
    line = check_solution(EXERCISES["dreambooth_loss"], load(str(path), "dreambooth_loss")).lines[0]
    assert line == f"two of the subject, three of the class: your number is {number}, expected 6.07893."


def test_an_endless_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_code, "SECONDS", 0.2)
    loop = "    while True:\n        try:\n            pass\n        except Exception:\n            pass\n"
    assert "takes longer than 0.2 seconds; does a loop never end?" in checked(tmp_path / "guide.py", HEAD + loop)
    assert "does a loop never end?" in checked(tmp_path / "guide.py", "while True:\n    pass\n")


def test_a_wrong_signature_or_name(tmp_path: Path) -> None:
    path = tmp_path / "guide.py"
    one = "def guide(x):\n    return x\n"
    assert "TypeError: guide() takes 1 positional argument but 2 were given" in checked(path, one)
    assert f"{path} has no function guide; it has giude." in checked(path, "def giude(both, scale):\n    return both\n")
    assert "guide is a class, expected a function" in checked(path, "class guide:\n    pass\n")
    assert "guide is int, expected a function" in checked(path, "guide = 3\n")


def test_prints_are_shown_and_the_random_numbers_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "guide.py"
    path.write_text(HEAD + "    u, c = both.chunk(2)\n    print('here')\n    return u + scale * (c - u)\n")
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    assert check_solution(EXERCISES["guide"], load(str(path), "guide")).state == "done"
    assert torch.equal(torch.rand(1), expected)
    assert capsys.readouterr().out == "here\n" * len(EXERCISES["guide"].cases())


def test_what_does_the_whole_work_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "attention.py"
    path.write_text(
        "import torch.nn.functional as F\ndef attention(q, k, v, causal=False):\n"
        "    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)\n"
    )
    report = check_solution(EXERCISES["attention"], load(str(path), "attention"))
    assert report.lines[0].startswith("scaled_dot_product_attention does the whole work, and may not be called here")
    q = torch.ones(1, 1, 2, 2)
    assert torch.nn.functional.scaled_dot_product_attention(q, q, q).shape == q.shape


def test_a_wrong_solution_is_shown_in_the_pipeline(runs: Runs) -> None:
    exercise = EXERCISES["attention"]
    report = check_solution(exercise, exercise.mistakes[2].wrong, lambda: runs)
    assert report.state == "failing"
    assert report.lines[1].startswith("likely: the scores are divided by the square root of the number of keys")
    assert "first difference: " in report.lines[2]
    assert report.lines[3].startswith("distance of the latents after each step: ")
    assert report.picture is not None
    right = check_solution(exercise, exercise.variants[0], lambda: runs)
    assert right.state == "done"
    assert "the latents agree" in right.lines[-1]
    assert right.picture is not None
    assert right._repr_png_()[:4] == b"\x89PNG"


def test_a_failure_in_the_pipeline_has_its_line(runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / "guide.py"
    fails = "    if both.shape[1] == 4:\n        raise KeyError('four')\n"
    path.write_text(HEAD + fails + "    u, c = both.chunk(2)\n    return u + scale * (c - u)\n")
    report = check_solution(EXERCISES["guide"], load(str(path), "guide"), lambda: runs)
    assert report.state == "failing"
    assert report.lines == ["all cases agree", "in the pipeline, line 6: KeyError: 'four'."]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("attention", "from torch.nn.functional import scaled_dot_product_attention as a\n\n\n"
                      "def attention(q, k, v, causal=False):\n    return a(q, k, v, is_causal=causal)\n"),
        ("group_norm", "from torch.nn.functional import group_norm as g\n\n\n"
                       "def group_norm(x, groups, weight, bias, eps):\n    return g(x, groups, weight, bias, eps)\n"),
        ("res_block", "def res_block(block, x, time):\n    return block(x, time)\n"),
        ("transformer_block", "def transformer_block(block, x, text):\n    return block(x, text)\n"),
        ("text_states", "def text_states(encoder, ids):\n    return encoder.transform(encoder.embed(ids))\n"),
    ],
)  # fmt: skip
def test_the_librarys_own_function_by_another_name_is_refused(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    report = check_solution(EXERCISES[name], load(str(path), name))
    assert report.state == "failing"
    assert "does the whole work, and may not be called here" in report.lines[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("byte_pairs", "def byte_pairs(pieces, ranks):\n    ranks.clear()\n    return pieces\n"),
        ("res_block", "def res_block(block, x, time):\n    block.conv2.weight.data.zero_()\n    return x\n"),
        ("heat_map", "def heat_map(maps, first, count, size):\n    maps[0].zero_()\n    return maps[0]\n"),
    ],
)
def test_changed_lists_and_weights_are_noticed(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    assert "changes one of its arguments" in check_solution(EXERCISES[name], load(str(path), name)).lines[0]


def test_settings_of_pytorch_are_restored(tmp_path: Path) -> None:
    path = tmp_path / "guide.py"
    path.write_text(HEAD + "    torch.set_default_dtype(torch.float64)\n    torch.manual_seed(3)\n    raise KeyError\n")
    state = torch.random.get_rng_state()
    assert check_solution(EXERCISES["guide"], load(str(path), "guide")).state == "failing"
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.random.get_rng_state(), state)


def test_files_as_windows_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "guide.py"
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
    text = (head + "def guide(both, scale):\n    return both\n").replace("\n", "\r\n")
    path.write_bytes(text.encode("utf-8-sig"))
    (line,) = check_solution(EXERCISES["guide"], load(str(path), "guide")).lines
    assert line.startswith("scale 7.5: your result has the shape")
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(Complaint):
        load(str(path), "guide")
