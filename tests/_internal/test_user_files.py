"""Texts of people and the messages about them: marks, encodings, what is no file, what cannot be printed."""

import io
from pathlib import Path

import pytest

from minisd._internal.messages import LONGEST, printable, shown
from minisd._internal.user_files import LARGEST_TEXT, read_limited, read_text
from minisd.errors import InputError, IntegrityError


def test_the_mark_of_windows_editors_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa caf\xc3\xa9\r\n")
    assert read_text(tmp_path / "a.txt") == "a café\r\n"


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_one_sentence_that_names_the_file(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("it’s a café".encode(encoding))
    with pytest.raises(InputError, match=r"a\.txt .*; save it as UTF-8\.$"):
        read_text(tmp_path / "a.txt")


def test_a_text_without_end_is_refused() -> None:
    with pytest.raises(InputError, match="longer than 10 MB"):
        read_limited(io.BytesIO(bytes(LARGEST_TEXT + 1)), "standard input")


def test_messages_are_one_printable_line_of_bounded_length() -> None:
    """Whatever they quote, and whatever builtin class they are."""
    for kind in (InputError, IntegrityError):
        message = str(kind("a\u202ename\nis\x1b[31m " + "long " * 10**5))
        assert message.startswith("a\\u202ename is\\x1b[31m long")
        assert message.isprintable()
        assert len(message) < LONGEST + 20
    assert printable("東京 — ½") == "東京 — ½"
    assert shown(10**5000) == "a int that cannot be shown"
    assert len(shown(list(range(10**6)))) < 100
