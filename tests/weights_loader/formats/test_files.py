"""Sniffing, safetensors headers, mapping: reference/reliability.md, F1-F13, F28, F33, F34."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minisd.errors import FileFormatError, InputError, IntegrityError, MinisdError, MismatchError
from weights_loader.formats.weight_file import open_weights

GENERATOR = torch.Generator().manual_seed(0)
TENSORS = {
    "a.weight": torch.randn(3, 4, generator=GENERATOR),
    "a.half": torch.randn(5, generator=GENERATOR).half(),
    "b.bfloat": torch.randn(2, 3, 1, 2, generator=GENERATOR).bfloat16(),
    "b.ids": torch.arange(7),
    "c.scalar": torch.tensor(0.5),
    "c.empty": torch.zeros(0, 4),
    "d.fp8": torch.randn(3, generator=GENERATOR).to(torch.float8_e4m3fn),
    "d.mask": torch.tensor([True, False]),
}


def same(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal in dtype, shape and every bit."""

    def raw(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8)

    return got.dtype == expected.dtype and got.shape == expected.shape and torch.equal(raw(got), raw(expected))


def build(header: object, data: bytes, pad: bool = True) -> bytes:
    """A safetensors file with this header, whatever it is."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    if pad:
        raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + data


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, object]:
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else shape,
        "data_offsets": [begin, end],
    }


def write(folder: Path, content: bytes, name: str = "model.safetensors") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


GOOD = build({"a": entry(0, 8), "b": entry(8, 12)}, bytes(12))
DEEP = b"[" * 5000 + b"]" * 5000


def test_safetensors_positive(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(TENSORS, path, metadata={"format": "pt"})
    file = open_weights(str(path))
    assert (file.path, file.format, file.metadata, file.prefix) == (path, "safetensors", {"format": "pt"}, "")
    assert file.notices == ["1 tensors are stored in float8, which keeps about one digit of each number."]
    assert file.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    assert file.dtypes == {name: tensor.dtype for name, tensor in TENSORS.items()}
    for name, tensor in TENSORS.items():
        assert same(file.tensor(name), tensor), name


FORMAT, DAMAGED, MISMATCH = FileFormatError, IntegrityError, MismatchError
FAULTS = [
    ("F1 empty", b"", FORMAT, "0 bytes"),
    ("F2 short", GOOD[:7], FORMAT, "7 bytes"),
    ("F3 one byte short", GOOD[:-1], DAMAGED, "incomplete download"),
    ("F3 header only", GOOD[:-12], DAMAGED, "incomplete download"),
    ("F3 half of the header", GOOD[: (len(GOOD) - 12) // 2], DAMAGED, "incomplete download"),
    ("F4 length u64-max", b"\xff" * 8 + GOOD[8:], FORMAT, "does not begin"),
    ("F4 length 2^63", (2**63).to_bytes(8, "little") + GOOD[8:], FORMAT, "does not begin"),
    ("F4 length 100 MB + 1", (100_000_001).to_bytes(8, "little") + GOOD[8:], FORMAT, "does not begin"),
    ("F4 length 0", bytes(8) + GOOD[8:], FORMAT, "does not begin"),
    ("F5 header beyond the end", (10**6).to_bytes(8, "little") + GOOD[8:], DAMAGED, "incomplete"),
    ("F6 overlap", build({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), FORMAT, "header is damaged"),
    ("F6 hole", build({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), FORMAT, "header is damaged"),
    ("F6 hole at the start", build({"a": entry(4, 8)}, bytes(8)), FORMAT, "header is damaged"),
    ("F6 negative", build({"a": entry(-4, 0, [1])}, bytes(4)), FORMAT, "the header is damaged; download"),
    ("F6 end < begin", build({"a": entry(8, 4, [1])}, bytes(8)), FORMAT, "the header is damaged; download"),
    ("F6 three offsets", build({"a": entry(0, 4) | {"data_offsets": [0, 4, 4]}}, bytes(4)), FORMAT, "is damaged"),
    ("F7 trailing", GOOD + b"PK", FORMAT, "something was appended"),
    ("F9 mismatch", build({"a": entry(0, 8, [3])}, bytes(8)), FORMAT, "header is damaged"),
    ("F9 overflow to 0", build({"a": entry(0, 0, [2**62, 4])}, b""), FORMAT, "header is damaged"),
    ("F9 overflow beside 0", build({"a": entry(0, 0, [2**62, 4, 0])}, b""), FORMAT, "header is damaged"),
    ("F9 true as size", build({"a": entry(0, 4, [True])}, bytes(4)), FORMAT, "header is damaged"),
    ("F9 float size", build({"a": entry(0, 4, [1.0])}, bytes(4)), FORMAT, "header is damaged"),
    ("F10 dtype", build({"a": entry(0, 4, [1], "F31")}, bytes(4)), FORMAT, "header is damaged"),
    ("F10 dtype list", build({"a": entry(0, 4, [1]) | {"dtype": []}}, bytes(4)), FORMAT, "header is damaged"),
    ("F11 UTF-8", build(b'{"\xff": 1}', b""), FORMAT, "header is damaged"),
    ("F11 no JSON", build(b"{hello}", b""), FORMAT, "header is damaged"),
    ("F11 deep", build(b'{"a":' + DEEP + b"}", b""), FORMAT, "header is damaged"),
    ("F11 huge integer", build(b'{"a":' + b"9" * 5000 + b"}", b""), FORMAT, "header is damaged"),
    ("F11 metadata", build({"__metadata__": {"a": 1}, "a": entry(0, 4)}, bytes(4)), FORMAT, "header is damaged"),
    ("F11 metadata list", build({"__metadata__": [], "a": entry(0, 4)}, bytes(4)), FORMAT, "header is damaged"),
    ("F11 entry", build({"a": {"dtype": "F32"}}, b""), FORMAT, "header is damaged"),
    ("F11 entry list", build({"a": []}, b""), FORMAT, "header is damaged"),
    ("F12 no tensors", build({}, b""), MISMATCH, "without any tensor"),
    ("F12 only metadata", build({"__metadata__": {"a": "b"}}, b""), MISMATCH, "without any tensor"),
    ("F13 empty name", build({"": entry(0, 4)}, bytes(4)), FORMAT, "name ''"),
    ("F13 NUL", build({"a\0b": entry(0, 4)}, bytes(4)), FORMAT, r"a\x00b"),
    ("F13 control", build({"a\x1b[2J": entry(0, 4)}, bytes(4)), FORMAT, r"a\x1b"),
    ("F13 surrogate", build(b'{"\\ud800":%b}' % json.dumps(entry(0, 4)).encode(), bytes(4)), FORMAT, "is damaged"),
    ("F13 1 MB", build({"a" * 2**20: entry(0, 4)}, bytes(4)), FORMAT, "1,048,576 characters"),
    ("F33 LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265380512\n", FORMAT,
     "of 4.27 GB, not the file itself; run `git lfs pull`"),
    ("F33 HTML", b"\n<!DOCTYPE html><html>Sign in</html>", FORMAT, "web page"),
    ("F33 HTML 2", b"<html><body>502</body></html>", FORMAT, "web page"),
    ("F33 JSON", b'{"error": "Repository not found"}', FORMAT, "Repository not found"),
    ("F33 gzip", b"\x1f\x8b\x08\0" + bytes(20), FORMAT, "gzip"),
    ("F33 PNG", b"\x89PNG\r\n\x1a\n" + bytes(20), FORMAT, "PNG image"),
    ("F33 noise", bytes(range(200, 256)) * 3, FORMAT, "model"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "content", "error", "says"), FAULTS, ids=[row[0] for row in FAULTS])
@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_faults(tmp_path: Path, case: str, content: bytes, error: type, says: str, name: str) -> None:
    assert open_weights(write(tmp_path, GOOD, "control.safetensors")).shapes == {"a": (2,), "b": (1,)}
    path = write(tmp_path, content, name)
    with pytest.raises(MinisdError) as caught:
        open_weights(path)
    if name == "model.safetensors" or "F4" not in case:  # what is behind an absurd length under another name is open
        assert type(caught.value) is error
        assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 400
    assert "weights_only" not in str(caught.value)
    assert path.read_bytes() == content


def test_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ckpt")
    for path, error in [
        (tmp_path, FileFormatError),
        (tmp_path / "pipe.ckpt", FileFormatError),  # opening it would block for ever
        (Path(os.devnull), FileFormatError),
        (tmp_path / "absent.ckpt", InputError),
        (tmp_path / "a\0b", InputError),
    ]:
        with pytest.raises(error):
            open_weights(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_unreadable(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    path.chmod(0)
    with pytest.raises(FileFormatError, match="permissions"):
        open_weights(path)


def test_renamed(tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS, tmp_path / "model.ckpt")
    torch.save(TENSORS, tmp_path / "model.safetensors")
    for name, format in [("model.ckpt", "safetensors"), ("model.safetensors", "pickle")]:
        file = open_weights(tmp_path / name)
        assert file.format == format
        assert len(file.notices) == 2
        assert name in file.notices[1]
        assert all(same(file.tensor(key), tensor) for key, tensor in TENSORS.items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefix(tmp_path: Path, prefix: str) -> None:
    content = build({f"{prefix}a": entry(0, 4), f"{prefix}module.b": entry(4, 8)}, bytes(8))
    file = open_weights(write(tmp_path, content))
    assert (file.prefix, set(file.shapes)) == (prefix, {"a", "module.b"})
    assert prefix in file.notices[0]
    mixed = build({f"{prefix}a": entry(0, 4), "b": entry(4, 8)}, bytes(8))
    assert set(open_weights(write(tmp_path, mixed)).shapes) == {f"{prefix}a", "b"}


@pytest.mark.parametrize("shift", range(8))
def test_header_of_any_length(tmp_path: Path, shift: int) -> None:
    """Files written before February 2023 have headers that are not padded to 8 bytes."""
    values = torch.arange(6, dtype=torch.float64)
    header = {
        "__metadata__": {"x": "y" * shift},
        "a": entry(0, 48, [2, 3], "F64"),
        "b": entry(48, 50, [1], "F16"),
    }
    path = write(tmp_path, build(header, values.numpy().tobytes() + b"\0\x3c", pad=False))
    file = open_weights(path)
    assert same(file.tensor("a"), values.reshape(2, 3))
    assert same(file.tensor("b"), torch.ones(1, dtype=torch.float16))
    assert file.tensor("a").data_ptr() % 8 == 0


def test_tensors_are_views_that_never_write(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(TENSORS, path)
    before = path.read_bytes()
    file = open_weights(path)
    first, second = file.tensor("a.weight"), file.tensor("a.weight")
    assert first.data_ptr() == second.data_ptr()
    assert first.untyped_storage().nbytes() == 48  # of its own: saving it again does not save the whole file
    first.fill_(7)
    assert path.read_bytes() == before
    assert same(open_weights(path).tensor("a.weight"), TENSORS["a.weight"])
    del file
    gc.collect()
    assert second[0, 0] == 7  # the map lives as long as a tensor does
    with pytest.raises(InputError, match="nothing"):
        open_weights(path).tensor("nothing")


def test_replaced_and_truncated_while_open(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.ones(100_000)}, path)
    file = open_weights(path)
    write(tmp_path, GOOD, "other").replace(path)
    assert bool((file.tensor("a") == 1).all())
    safetensors.torch.save_file({"a": torch.ones(100_000)}, path)
    file = open_weights(path)
    os.truncate(path, 5000)
    with pytest.raises(IntegrityError, match="another program is writing"):  # not SIGBUS
        file.tensor("a")


MEASURE = """
import sys, torch
from weights_loader.formats.weight_file import open_weights
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
before = rss()
file = open_weights(sys.argv[1])
tensors = [file.tensor(name) for name in file.shapes]
mapped = rss() - before
tensors[0].sum()
print(mapped, rss() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["big.safetensors", "big.ckpt"])
def test_opening_reads_nothing(tmp_path: Path, name: str) -> None:
    tensors = {str(index): torch.zeros(5_000_000) for index in range(5)}  # 100 MB
    save = safetensors.torch.save_file if name.endswith("safetensors") else torch.save
    save(tensors, tmp_path / name)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / name)]
    root = str(Path(__file__).resolve().parents[3])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    mapped, touched = map(float, output.split())
    assert mapped < 8
    assert 15 < touched < 40  # MB: the control: one tensor of 20 MB was really read


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_safetensors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """One mutation: a MinisdError, or what the official reader sees in the file."""
    folder = tmp_path_factory.getbasetemp()
    valid = safetensors.torch.save(TENSORS, {"format": "pt"})
    end = 8 + int.from_bytes(valid[:8], "little")
    where = data.draw(st.integers(0, end - 1))
    content = data.draw(
        st.sampled_from(
            [
                valid[:where] + bytes([data.draw(st.integers(0, 255))]) + valid[where + 1 :],
                valid[:where] + valid[where + 1 :],
                valid[:where] + bytes([data.draw(st.integers(0, 255))]) + valid[where:],
                valid[: data.draw(st.integers(0, len(valid)))],
                valid + data.draw(st.binary(min_size=1, max_size=9)),
            ]
        )
    )
    path = write(folder, content, "mutated.safetensors")
    try:
        file = open_weights(path)
    except MinisdError as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    expected = safetensors.torch.load(content)
    assert set(expected) == {file.prefix + name for name in file.shapes}
    for name in file.shapes:
        assert same(file.tensor(name), expected[file.prefix + name])


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=300), name=st.sampled_from(["x.safetensors", "x.ckpt", "x"]))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    with pytest.raises(MinisdError):
        open_weights(write(tmp_path_factory.getbasetemp(), content, name))
