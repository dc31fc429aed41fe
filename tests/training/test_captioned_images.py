"""Images with captions from a folder: text files, metadata files, and what is wrong with them."""

import warnings
from pathlib import Path

import pytest
from PIL import Image

from minisd.errors import InputError
from minisd.training.captioned_images import read_captioned_images


def test_images_of_a_folder(tmp_path: Path) -> None:
    Image.new("RGB", (100, 50), "red").save(tmp_path / "b.png")
    Image.new("L", (20, 20), 255).save(tmp_path / "a.jpg")
    (tmp_path / "b.txt").write_text("a red sheet\n")
    (tmp_path / "notes.md").write_text("no picture")
    with pytest.warns(UserWarning, match=r"'notes\.md'"):
        pixels, captions = read_captioned_images(tmp_path, 32, "something white")
    assert captions == ["something white", "a red sheet"]
    assert pixels.shape == (2, 3, 32, 32)
    assert pixels[0].min() > 0.98
    assert pixels[1, 0].min() == 1
    assert pixels[1, 1:].max() == -1
    with pytest.raises(InputError, match=r"a\.jpg has no caption"):
        read_captioned_images(tmp_path, 32)
    (tmp_path / "c.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"c\.png cannot be read"):
        read_captioned_images(tmp_path, 32, "x")
    (tmp_path / "none").mkdir()
    for folder, message in ((tmp_path / "none", "contains no images"), (tmp_path / ("y" * 300), "is no folder")):
        with pytest.raises(InputError, match=message):
            read_captioned_images(folder, 32, "x")


def test_texts_and_folders_of_people(tmp_path: Path) -> None:
    """Marks of editors, files of systems, captions with other suffixes; what is not used is said."""
    for name in ("a.png", "b.PNG", "c.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa cat")
    (tmp_path / "b.TXT").write_text("a dog")
    (tmp_path / "c.caption").write_text("a bird")
    for name in ("._a.png", ".DS_Store", ".hidden.txt"):
        (tmp_path / name).write_bytes(b"of a system")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_captioned_images(tmp_path, 8).captions == ["a cat", "a dog", "a bird"]
    for name in ("d.bmp", "e.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"also contains 'd\.bmp', 'e\.txt', which is not used"):
        read_captioned_images(tmp_path, 8)
    (tmp_path / "a.txt").write_bytes("it’s a cat".encode("cp1252"))
    with pytest.raises(InputError, match=r"a\.txt is not UTF-8 text at byte 2; save it as UTF-8"):
        read_captioned_images(tmp_path, 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one of them in a folder inside."""
    (tmp_path / "train").mkdir()
    Image.new("RGB", (9, 8), "red").save(tmp_path / "a.png")
    Image.new("RGB", (8, 9), "blue").save(tmp_path / "train" / "b.png")
    return tmp_path


ROWS = [("train/b.png", "a blue, large sheet"), ("a.png", "a red sheet")]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_metadata_file(suffix: str, folder: Path) -> None:
    if suffix == "csv":
        text = "file_name,more,text\n" + "".join(f'{name},1,"{caption}"\n' for name, caption in ROWS)
    else:
        text = "".join(f'{{"text": "{caption}", "file_name": "{name}"}}\n\n' for name, caption in ROWS)
    (folder / f"metadata.{suffix}").write_text("\ufeff" + text, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels, captions = read_captioned_images(folder, 8)
    assert captions == [caption for _, caption in ROWS]
    assert pixels[0, 2].min() == 1
    assert pixels[0, 0].max() == -1


def test_the_prompt_is_for_rows_without_a_caption_and_other_images_are_named(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "train/b.png", "text": " "}\n')
    with pytest.warns(UserWarning, match=r"also contains 'a\.png', which is not used"):
        assert read_captioned_images(folder, 8, "a sheet").captions == ["a sheet"]
    (folder / "a.png").unlink()
    with pytest.raises(InputError, match=r"b\.png has no caption; write one to metadata\.jsonl, or give a prompt"):
        read_captioned_images(folder, 8)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png: a sheet", "line 2 is 'a.png: a sheet', expected an object"),
        ("[1]", "expected an object"),
        ("[" * 100_000, "expected an object"),
        ('{"file_name": "a.png", "text": 3}', "line 2: text is 3, expected a text"),
        ('{"text": "a sheet"}', "file_name is None"),
        ('{"file_name": "metadata.jsonl", "text": "x"}', r"file_name is 'metadata\.jsonl', expected one of \.png"),
        ('{"file_name": "c.png", "text": "x"}', r"file_name is 'c\.png', expected a file in"),
        ('{"file_name": "../a.png", "text": "x"}', "expected a file in"),
        ('{"file_name": "/etc/a.png", "text": "x"}', "expected a file in"),
        ('{"file_name": "train", "text": "x"}', "expected one of"),
        ('{"file_name": "train/b.png", "text": "x"}', "is listed twice"),
    ],
)
def test_a_wrong_row_is_named(line: str, message: str, folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "train/b.png", "text": "blue"}\n' + line + "\n")
    with pytest.raises(InputError, match=message) as caught:
        read_captioned_images(folder, 8, "x")
    assert "metadata.jsonl, line 2" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_two_metadata_files_or_one_without_rows_are_refused(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(InputError, match=r"metadata\.csv lists no images"):
        read_captioned_images(folder, 8)
    (folder / "metadata.csv").write_text("file,caption\na.png,x\n")
    with pytest.raises(InputError, match="line 2: file_name is None"):
        read_captioned_images(folder, 8)
    (folder / "metadata.jsonl").write_text("")
    with pytest.raises(InputError, match="expected one of them"):
        read_captioned_images(folder, 8)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file_name,text\na.png,a red circle, blue square\n", "line 2 has more values than columns"),
        ("file_name,text\na.png," + "x" * 200_000 + "\n", "cannot be read .*field larger"),
    ],
)
def test_csv_that_loses_words_is_refused(table: str, message: str, folder: Path) -> None:
    (folder / "metadata.csv").write_text(table)
    with pytest.raises(InputError, match=message):
        read_captioned_images(folder, 8)


def test_line_ends_of_other_systems(folder: Path) -> None:
    (folder / "metadata.csv").write_bytes(b"file_name,text\ra.png,a red sheet\rtrain/b.png,blue\r")
    assert read_captioned_images(folder, 8).captions == ["a red sheet", "blue"]
    (folder / "metadata.csv").unlink()
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one\u2028line"}\r\n', encoding="utf-8")
    assert read_captioned_images(folder, 8).captions == ["one\u2028line"]
