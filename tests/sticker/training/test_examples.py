"""The images to fine-tune with show what their captions mention, and can be read again."""

import re
from dataclasses import replace
from pathlib import Path

from minisd.sticker.training.examples import (
    SUBJECT_EXAMPLES,
    TOKEN,
    candy_examples,
    class_examples,
    night_examples,
    subject_examples,
    write_examples,
)
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.render import render
from minisd.sticker.world.subject import Context, contexts, find_subject, shows_context
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


def test_the_subject_is_shown_alone_and_beside_other_objects() -> None:
    pixels, captions = subject_examples()
    assert all(find_subject(image) for image in pixels)
    assert len(set(captions)) == len(captions) == 6
    for image, caption in zip(pixels, captions, strict=True):
        other = re.search(r"an? (?!large|small|sks)\w+ (?!background)\w+", caption)
        relation = re.search(r"left of|right of|above", caption)
        background = re.search(r"(\w+) background", caption)
        told = Context(caption, other and other[0], relation and relation[0], background[1] if background else "white")
        if caption.startswith("a red triangle"):
            told = replace(told, relation="below")  # where the subject is
        assert shows_context(image, told), caption


def test_no_example_of_the_subject_is_a_context_of_the_evaluation() -> None:
    shown = {scene.objects[0].colour + " " + scene.objects[0].shape for scene, *_ in SUBJECT_EXAMPLES if scene.objects}
    assert len(shown) == 4
    assert not shown & {each.other.split(" ", 1)[1] for each in contexts() if each.other is not None}
    assert not set(subject_examples()[1]) & {each.prompt for each in contexts()}


def test_the_examples_of_the_class_are_scenes_of_the_training() -> None:
    examples = class_examples(40)
    assert examples == class_examples(40)
    assert len({text for _, text in examples}) > 30
    assert all(re.search("shape|object|thing", text) for _, text in examples[1::2])
    assert all(check(render([scene])[0], text).exact for scene, text in examples)
