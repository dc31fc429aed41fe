"""The images to fine-tune with show what their captions mention, and can be read again."""

from pathlib import Path

from minisd.sticker.training.examples import TOKEN, candy_examples, night_examples, write_examples
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.render import render
from minisd.training.captioned_images import read_captioned_images


def test_the_examples_show_what_their_captions_mention(tmp_path: Path) -> None:
    examples = candy_examples(12)
    assert len({text for _, text in examples}) > 8
    for scene, text in examples:
        assert text.count(TOKEN) == 1
        assert check(render([scene])[0], text.replace(TOKEN, "pink star")).exact
    for scene, text in night_examples(6):
        assert scene.background == "black"
        assert check(render([scene])[0], scene).exact
        assert text.split()[-1] == scene.objects[0].shape
    write_examples(tmp_path / "night", night_examples(3))
    assert [path.name for path in sorted((tmp_path / "night").glob("*.txt"))] == ["00.txt", "01.txt", "02.txt"]
    assert len(read_captioned_images(tmp_path / "night", 64).captions) == 3
