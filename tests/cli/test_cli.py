"""The command line: the files and lines that it writes; one line and an exit code for every mistake."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.small import small_pipeline

import weights_loader
from minisd.cli import main
from minisd.cli.inputs import file_stem
from minisd.cli.output import say
from minisd.schedulers import DDIM


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small saved model."""
    return str(weights_loader.save(small_pipeline(), tmp_path_factory.mktemp("cli") / "model"))


def run(*arguments: str) -> int:
    return main([*arguments, "--quiet"])


def test_an_image_with_its_settings_and_its_report(model: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    target = tmp_path / "picture.png"
    assert run("a cat", "--model", model, "--steps", "2", "--seed", "5", "-o", str(target)) == 0
    picture = Image.open(target)
    assert picture.text["prompt"] == "a cat"
    assert picture.text["seed"] == "5"
    printed = capsys.readouterr().out
    assert str(target) in printed
    assert "seed 5" in printed
    assert " s on cpu, after " in printed


def test_the_same_seed_gives_the_same_image_as_the_pipeline(model: str, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        settings = ("--model", model, "--steps", "2", "--seed", "5", "--scale", "1")
        assert run("a cat", *settings, "-o", str(tmp_path / name)) == 0
    assert Image.open(tmp_path / "a.png").tobytes() == Image.open(tmp_path / "b.png").tobytes()
    direct = weights_loader.load(model)("a cat", num_inference_steps=2, seed=5).images[0]
    assert Image.open(tmp_path / "a.png").tobytes() == direct.tobytes()


def test_a_small_image_is_enlarged_for_the_screen_unless_scale_says_otherwise(model: str, tmp_path: Path) -> None:
    widths = []
    for scale in (("--scale", "1"), ("--scale", "3"), ()):
        settings = ("--model", model, "--steps", "1", "--seed", "5", "--overwrite", *scale)
        assert run("a cat", *settings, "-o", str(tmp_path / "a.png")) == 0
        widths.append(Image.open(tmp_path / "a.png").width)
    own, larger, usual = widths
    assert larger == 3 * own
    assert usual % own == 0
    assert 256 <= usual < 256 + own


def test_an_enlarged_image_is_read_in_its_own_size(tmp_path: Path) -> None:
    again = ("--strength", "0.5", "--steps", "2", "--seed", "5", "--scale", "1")
    for scale in ("1", "4"):
        target = tmp_path / f"{scale}.png"
        assert run("a red circle", "--steps", "1", "--seed", "5", "--scale", scale, "-o", str(target)) == 0
        assert run("a star", "--image", str(target), *again, "-o", str(tmp_path / f"again-{scale}.png")) == 0
    with Image.open(tmp_path / "again-1.png") as first, Image.open(tmp_path / "again-4.png") as second:
        assert first.size == second.size == (128, 128)
        assert first.tobytes() == second.tobytes()
    with Image.open(tmp_path / "4.png") as image:  # of another program, or cut: as it is
        image.crop((0, 0, 250, 256)).save(tmp_path / "cut.png", pnginfo=PngInfo())
    assert run("a star", "--image", str(tmp_path / "cut.png"), *again, "-o", str(tmp_path / "b.png")) == 0
    with Image.open(tmp_path / "b.png") as image:
        assert image.size != (128, 128)


def test_a_drawn_seed_is_reported(model: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("a cat", "--model", model, "--steps", "1", "-o", str(tmp_path / "a.png")) == 0
    seed = Image.open(tmp_path / "a.png").text["seed"]
    assert f"seed {seed}" in capsys.readouterr().out


def test_count_numbers_the_files_and_names_come_from_the_prompt(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("A cat, twice!", "--model", model, "--steps", "1", "--count", "2") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-cat-twice-2.png", "a-cat-twice.png"]
    first, second = (int(Image.open(tmp_path / name).text["seed"]) for name in ("a-cat-twice.png", "a-cat-twice-2.png"))
    assert second == first + 1  # so that each image can be drawn again alone


def test_film_as_strip_and_as_animation(model: str, tmp_path: Path) -> None:
    strip, gif = tmp_path / "film.png", tmp_path / "film.gif"
    for film, name in ((strip, "a.png"), (gif, "b.png")):
        arguments = ("a cat", "--model", model, "--steps", "3", "-o", str(tmp_path / name), "--film", str(film))
        assert run(*arguments) == 0
    assert Image.open(strip).width > Image.open(strip).height  # one column for each step, two rows
    assert Image.open(gif).n_frames == len(weights_loader.load(model).scheduler.grid(3))


def test_prompts_from_a_file_and_from_standard_input(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt.txt").write_text("a café\n")
    assert run(f"@{tmp_path / 'prompt.txt'}", "--model", model, "--steps", "1", "-o", str(tmp_path / "a.png")) == 0
    assert Image.open(tmp_path / "a.png").text["prompt"] == "a café"

    class Stdin:
        buffer = io.BytesIO(b"ab\xff")

    monkeypatch.setattr("sys.stdin", Stdin())
    assert run("-", "--model", model) == 2


MISTAKES = [
    (("a", "--steps", "0"), 2, "--steps is 0, expected a whole number in 1..1000"),
    (("a", "--steps", "7,5"), 2, "'7,5'"),
    (("a", "--steps", "0x10"), 2, "'0x10'"),
    (("a", "--guidance", "nan"), 2, "nan"),
    (("a", "--guidance", "1e400"), 2, "inf"),
    (("a", "--guidance", "+3"), 2, "'+3'"),
    (("a", "--seed", "-1"), 2, "-1"),
    (("a", "--seed", "18446744073709551616"), 2, "18446744073709551616"),
    (("a", "--height", "63"), 2, "64"),
    (("a", "--width", "0"), 2, "width"),
    (("a", "--count", "0"), 2, "count"),
    (("a", "--eta", "2"), 2, "eta"),
    (("a", "--sampler", "quick"), 2, "dpm++sde"),
    (("a", "--sampler", "ddim", "--karras"), 2, "--karras"),
    (("a", "--sampler", "lcm", "--steps", "51"), 2, "50 steps"),
    (("a", "--image", "/nowhere/at/all.png"), 2, "all.png"),
    (("a", "--strength", "0.5"), 2, "give an image"),
    (("a", "--noise-level", "5"), 2, "upscaler"),
    (("a", "--device", "gpu0"), 7, "cpu"),
    (("a", "--nonsense"), 2, "--nonsense"),
    (("@/nowhere/at/all.txt",), 2, "all.txt"),
    (("a", "-o", "/nowhere/at/all.png"), 8, "/nowhere/at"),
    (("a", "-o", "picture.txt"), 8, ".txt"),
    (("a\udc80",), 2, "surrogate"),
    ((), 2, "prompt"),
]


def test_another_sampler(model: str, tmp_path: Path) -> None:
    pictures = []
    for k, options in enumerate(([], ["--sampler", "euler"], ["--sampler", "euler", "--karras"])):
        path = tmp_path / f"{k}.png"
        assert run("a star", "--model", model, "--seed", "1", "--steps", "3", "-o", str(path), *options) == 0
        pictures.append(path.read_bytes())
    assert len(set(pictures)) == 3


def test_with_an_image_and_a_mask(model: str, tmp_path: Path) -> None:
    draw = ("--model", model, "--seed", "1", "--steps", "4", "-o")
    first, second, third = (str(tmp_path / f"{name}.png") for name in "abc")
    assert run("a star", *draw, first) == 0
    assert run("a cat", *draw, second, "--image", first, "--strength", "0.5") == 0
    assert run("a cat", *draw, third, "--image", first, "--mask", second) == 0
    assert len({Path(path).read_bytes() for path in (first, second, third)}) == 3


@pytest.mark.parametrize(("arguments", "code", "quoted"), MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: tuple[str, ...],
    code: int,
    quoted: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments, "--model", model) == code
    captured = capsys.readouterr()
    assert quoted in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [("-o", "/nowhere/at/all.png"), ("-o", "picture.txt"), ("--film", "/nowhere/at/all.gif"), ("--film", "film.jpg")],
)
def test_where_to_write_is_checked_before_any_work(
    arguments: tuple[str, ...], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        pytest.fail("the model was loaded first")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights_loader, "load", load)
    assert run("a", "--model", model, *arguments) == 8


def test_existing_files_are_kept_unless_overwriting_is_allowed(model: str, tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"mine")
    assert run("a", "--model", model, "--steps", "1", "-o", str(target)) == 8
    assert target.read_bytes() == b"mine"
    assert run("a", "--model", model, "--steps", "1", "-o", str(target), "--overwrite") == 0
    assert Image.open(target).format == "PNG"


def test_an_unknown_model_names_close_ones(capsys: pytest.CaptureFixture) -> None:
    assert run("a", "--model", "stickers") == 2
    assert "sticker" in capsys.readouterr().err


def test_strict_prompt_refuses_a_prompt_that_is_too_long(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    prompt = "word " * 200
    target = str(tmp_path / "a.png")
    assert run(prompt, "--model", model, "--strict-prompt", "-o", target) == 2
    assert run(prompt, "--model", model, "--steps", "1", "-o", target) == 0
    assert "note: the prompt has more than" in capsys.readouterr().err


def test_a_mistyped_command_names_the_command(capsys: pytest.CaptureFixture) -> None:
    """`trian` alone is a prompt; with arguments of a command it is a mistake."""
    assert main(["trian", "vae", "runs/mine"]) == 2
    assert "did you mean `minisd train`?" in capsys.readouterr().err
    assert main(["a red cat", "vae"]) == 2
    assert "did you mean" not in capsys.readouterr().err
    assert main(["train", "vea", "runs/mine"]) == 2
    assert "did you mean `minisd" not in capsys.readouterr().err


def test_a_single_file_with_a_vocabulary_elsewhere(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The same image as from the folder; another image with another --prediction-type."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    single, target = tmp_path / "single.safetensors", tmp_path / "a.png"
    assert main(["convert", model, str(single)]) == 0
    common = ("a cat", "--steps", "2", "--seed", "5", "--sampler", "ddim", "-o", str(target), "--overwrite")
    assert run(*common, "--model", model) == 0
    expected = Image.open(target).tobytes()
    with_vocabulary = ("--model", str(single), "--tokenizer", f"{model}/tokenizer")
    assert run(*common, *with_vocabulary) == 0
    assert np.abs(np.frombuffer(Image.open(target).tobytes(), np.uint8).astype(int) - list(expected)).max() <= 1
    assert run(*common, *with_vocabulary, "--prediction-type", "sample") == 0
    assert Image.open(target).tobytes() != expected


def test_inspect_and_convert(model: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    single = tmp_path / "single.safetensors"
    assert main(["convert", model, str(single)]) == 0
    assert main(["inspect", str(single)]) == 0
    printed = capsys.readouterr().out
    assert "ldm" in printed
    assert "unet" in printed
    back = tmp_path / "back"
    assert main(["convert", str(single), str(back), "--tokenizer", f"{model}/tokenizer"]) == 0
    original, returned = weights_loader.load(model), weights_loader.load(back)
    for name, tensor in original.unet.state_dict().items():
        assert tensor.equal(returned.unet.state_dict()[name]), name


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("a red circle", "a-red-circle"),
        ("../../etc/passwd", "etc-passwd"),
        ("a\0b", "a-b"),
        ("CON", "picture"),
        ("東京", "picture"),
        ("x" * 300, "x" * 60),
    ],
)
def test_names_from_prompts_are_plain_and_short(prompt: str, stem: str) -> None:
    assert file_stem(prompt) == stem


def test_the_preview_decoder_draws_where_it_is_asked_for(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """That of the embedded model by itself, another one from its folder; a model without one says what to do."""
    found = {}
    for name, options in {
        "exact": (),
        "own": ("--preview-decoder",),
        "given": ("--preview-decoder", "sticker"),
    }.items():
        target = tmp_path / f"{name}.png"
        assert run("a red circle", "--steps", "2", "--seed", "5", "-o", str(target), *options) == 0
        found[name] = Image.open(target)
    assert found["own"].tobytes() == found["given"].tobytes() != found["exact"].tobytes()
    assert [found[name].text.get("preview_decoder") for name in found] == [None, "the model's", "sticker"]
    capsys.readouterr()
    target = tmp_path / "none.png"
    for options, message in (
        ((), "has no preview decoder"),
        (("sticker",), "enlarges 8 times, expected 4 channels and 2"),
    ):
        assert run("a cat", "--model", model, "-o", str(target), "--preview-decoder", *options) == 2
        assert message in capsys.readouterr().err
    assert not target.exists()


def test_a_refiner_continues(model: str, tmp_path: Path) -> None:
    """The model as its own refiner, with a sampler without memory, draws the same image as the model alone."""
    alone, both = tmp_path / "alone.png", tmp_path / "both.png"
    common = ("a cat", "--model", model, "--steps", "4", "--seed", "5", "--sampler", "ddim")
    assert run(*common, "-o", str(alone)) == 0
    other = weights_loader.load(model)
    other.scheduler = DDIM.in_place_of(other.scheduler)
    refiner = str(weights_loader.save(other, tmp_path / "refiner"))
    film = tmp_path / "film.png"
    assert run(*common, "--refiner", refiner, "--handover", "0.5", "-o", str(both), "--film", str(film)) == 0
    assert Image.open(both).tobytes() == Image.open(alone).tobytes()
    assert Image.open(both).text["refiner"] == refiner


def test_a_handover_that_leaves_no_step(model: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    target = tmp_path / "a.png"
    assert run("a cat", "--model", model, "--refiner", model, "--handover", "1", "-o", str(target)) != 0
    assert "--handover 1 of 4 steps leaves no step to the other model" in capsys.readouterr().err
    assert not target.exists()


def test_the_embedded_model_s_variant_for_the_task(tmp_path: Path) -> None:
    big, small = tmp_path / "big.png", tmp_path / "small.png"
    Image.new("RGB", (128, 128), "white").save(big)
    Image.new("RGB", (16, 16), "white").save(small)
    given = {
        "sticker": ("--image", str(big)),
        "sticker-inpainting": ("--image", str(big), "--mask", str(big)),
        "sticker-depth": ("--depth", str(big)),
        "sticker-upscaling": ("--upscale", str(small)),
    }
    for name, options in given.items():
        target = tmp_path / f"{name}.png"
        assert run("a red circle", *options, "--steps", "2", "--seed", "1", "-o", str(target)) == 0
        picture = Image.open(target)
        assert picture.text["model"] == name
        assert picture.size == (256, 256)  # 128, enlarged for the screen


def test_two_images_to_begin_with(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Image.new("RGB", (16, 16), "white").save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    assert run("a", "--image", path, "--upscale", path) == 2
    assert "were both given" in capsys.readouterr().err


def test_characters_that_the_terminal_lacks_are_escaped() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", newline="\n")
    say("a snowman, \u2603", stream)
    stream.flush()
    assert raw.getvalue() == b"a snowman, \\u2603\n"


def test_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One file for two results, a folder that cannot be written, a film that no format holds."""
    monkeypatch.setattr(weights_loader, "load", lambda *_, **__: pytest.fail("the model was loaded first"))
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (("--film", "z.png", "-o", "./z.png"), "z.png is the name of --film and of an image"),
        (("--film", "f.mp4"), "expected .png (a strip) or .gif"),
    ):
        assert run("a", *arguments) == 8
        assert message in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert run("a") == 8
    assert "read-only" in capsys.readouterr().err


def test_what_is_seldom_meant_is_said(model: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    target = str(tmp_path / "a.png")
    options = ("--guidance", "-2", "--dtype", "float16", "--steps", "1", "-o", target)
    assert run(" ", *options, "--model", model) == 0
    printed = capsys.readouterr().err
    for note in ("the prompt is empty", "--guidance is negative", "float16 is slow on a CPU"):
        assert f"note: {note}" in printed


def test_messages_are_short_and_printable(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "long.txt").write_text(" ".join(f"w{i}" for i in range(100_000)))
    for arguments in (("--strict-prompt",), ("-o", str(tmp_path / "a.png"))):
        run(f"@{tmp_path / 'long.txt'}", "--steps", "1", *arguments)
        lines = capsys.readouterr().err.splitlines()
        assert lines
        assert max(map(len, lines)) < 1200
    for name in ("y" * 300, "a\u202eb.safetensors", "a\0b"):
        for option in ("--lora", "--embedding", "--image", "--model", "--clip"):
            assert run("a", "--best-of", "2", option, name) == 2
            printed = capsys.readouterr().err.rstrip("\n")
            assert printed.isprintable()
            assert len(printed) < 1000
