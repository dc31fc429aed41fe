"""The options: names as in the library, help without PyTorch, suggestions, messages with the option that was typed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import weights_loader
from minisd.adapters.task_variants import EXTRA_CHANNELS
from minisd.cli import bench, bench_options, eval_options, main, options, verify
from minisd.cli.option_names import with_options
from minisd.parity.benchmark.families import FAMILIES
from minisd.parity.benchmark.timing import CLOCKS
from minisd.pipeline.views import TURNS
from minisd.schedulers import Scheduler
from minisd.schedulers.schedule import PREDICTION_TYPES
from minisd.sticker.evaluation.prompt_suites import SUITES
from minisd.sticker.training.stages import STAGES
from weights_loader.devices import DTYPES

COMMANDS = ["inspect", "convert", "verify", "bench", "train", "edit", "eval", "exercises", "demo", "app"]
HEAVY = ("torch", "numpy", "matplotlib", "PIL", "tqdm", "weights_loader")


def test_the_names_are_those_of_the_library() -> None:
    assert {*options.SAMPLERS.values()} == {sampler.__name__ for sampler in Scheduler.samplers.values()}
    assert options.PREDICTION_TYPES == PREDICTION_TYPES
    assert [f"torch.{name}" for name in options.DTYPES] == [str(dtype) for dtype in DTYPES]
    assert tuple(FAMILIES) == bench_options.FAMILIES
    assert tuple(bench.MEASURES) == bench_options.ROWS
    assert tuple(CLOCKS) == bench_options.CLOCKS
    assert tuple(verify.NAMES) == options.VERIFIED
    assert tuple(STAGES) == options.STAGES
    assert tuple(EXTRA_CHANNELS) == options.TASKS
    assert tuple(SUITES) == eval_options.SUITES
    assert ("none", *options.TURNS) == tuple(TURNS)


@pytest.mark.parametrize("command", [[], *([each] for each in COMMANDS)])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\nfrom minisd.cli import main\n"
        f"try:\n    main({[*command, '--help']!r})\n"
        f"finally:\n    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: minisd")
    assert done.stderr.strip() == "[]"


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    return capsys.readouterr().out


def test_help_lists_the_commands_then_groups_of_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(capsys)
    titles = ["commands", "what to draw:", "how to draw it:", "begin with an image:", "model and adapters:", "output:"]
    assert [line for line in text.splitlines() if line.startswith(tuple(titles))][1:] == titles[1:]
    places = [text.index(part) for part in ("\ncommands", *(f"\n  {name} " for name in COMMANDS), "\nwhat to draw:")]
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) <= 80
    assert list(options.COMMANDS) == COMMANDS


@pytest.mark.parametrize("command", [[], *([each] for each in COMMANDS)])
def test_help_shows_only_defaults_that_inform(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(help_of(capsys, *command).split())
    assert not any(f"(default: {value})" in text for value in ("None", "False", "", "[]", "==SUPPRESS=="))
    assert ("(default: sticker)" in text) == (command in ([], ["edit"], ["eval"], ["exercises"]))
    assert ("(default: 0.0)" in text) == (command == [])  # --eta


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a cat", "--guidence", "3"], "there is no option --guidence; did you mean --guidance?"),
        (["a cat", "--guid", "3"], "there is no option --guid; did you mean --guidance?"),
        (["a cat", "--num_inference_steps=3"], "there is no option --num_inference_steps; did you mean --steps?"),
        (["a cat", "--negative-prompt", "a dog"], "there is no option --negative-prompt; did you mean --negative?"),
        (["a cat", "-steps", "3"], "there is no option -steps; did you mean --steps?"),
        (["a cat", "-output", "a.png"], "there is no option -output; did you mean --output?"),
        (["a cat", "--zzz"], "there is no option --zzz; see `minisd --help`."),
        (["--prompt", "a cat"], "there is no option --prompt; give the prompt without it; see `minisd --help`."),
        (["verify", "--model", "sd15"], "there is no option --model; give the model without it"),
        (["verify", "sd15", "--quik"], "there is no option --quik; did you mean --quick?"),
        (["train", "all", "runs", "--minuets", "3"], "there is no option --minuets; did you mean --minutes?"),
        (["train", "vea", "runs"], "stage is 'vea', expected one of all, vae, text, unet, vae128, preview, clip, "
                                   "variant, full, dreambooth, lora, embedding, distill; did you mean vae?"),
        (["eval", "--suite", "two"], "there is no option --suite; did you mean --suites?"),
        (["bench", "--family", "sd1.5"],
         "--family is 'sd1.5', expected one of sticker, sd15, sd21, sdxl; did you mean sd15?"),
        (["a", "--sampler", "dppm"], "did you mean ddpm?"),
        (["trian", "vae", "runs"], "unexpected 'vae runs'; did you mean `minisd train`?"),
        (["verfy", "sd15", "--quick"], "there is no option --quick; did you mean --quiet or `minisd verify`?"),
        (["a", "red", "cat"], "unexpected 'red cat'; put a text of several words in quotes; see `minisd --help`."),
        (["a", "--steps"], "--steps: expected one argument; see `minisd --help`."),
        (["a", "--steps", "7,5"], "--steps: '7,5' is not a whole number; write it in digits, such as 20; see"),
        (["a", "--guidance", "high"], "--guidance: 'high' is not a number; write it with a point, such as 7.5; see"),
        ([], "the following arguments are required: prompt; see `minisd --help`."),
        (["convert", "a"], "the following arguments are required: target; see `minisd convert --help`."),
    ],
)  # fmt: skip
def test_mistakes_name_the_nearest(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not message.endswith("`.") or "did you mean" not in error


def test_a_word_that_resembles_a_command_is_a_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for prompt, meant in (("trian", "`minisd train`"), ("help", "`minisd --help`"), ("cat", "")):
        assert main([prompt, "--steps", "1", "--quiet", "-o", str(tmp_path / f"{prompt}.png")]) == 0
        captured = capsys.readouterr()
        assert f"{prompt}.png  256 x 256" in captured.out
        assert ("did you mean the command" in captured.err) == bool(meant)
        assert meant in captured.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--steps", "0"], "--steps is 0, expected a whole number in 1..1000"),
        (["--guidance", "1001"], "--guidance is 1001.0, expected"),
        (["--guidance", "nan"], "--guidance is nan, expected"),
        (["--count", "0"], "--count is 0, expected"),
        (["--seed", "-1"], "--seed is -1, expected"),
        (["--height", "63"], "--height is 63, expected"),
        (["--width", "0"], "--width is 0, expected"),
        (["--eta", "2"], "--eta is 2.0, expected"),
        (["--reuse-features", "0"], "--reuse-features is 0, expected"),
        (["--strength", "0.5"], "--strength "),
        (["--noise-level", "5"], "--noise-level needs an upscaler"),
        (["--negative", "\udc80"], "--negative holds half of a surrogate pair"),
        (["--sampler", "ddim", "--karras"], "--karras"),
        (["--device", "gpu0"], "--device is 'gpu0', expected"),
        (["--mask", "{image}"], "a --mask was given without"),
        (["--depth", "{image}", "--image", "{image}", "--model", "{model}"], "--depth needs a depth model"),
        (["--image", "{image}", "--strength", "0.01"], "--strength 0.01 of 20 steps leaves"),
        (["--image", "{image}", "--strength", "2"], "--strength is 2.0, expected"),
        (["--upscale", "{image}", "--noise-level", "50"], "--noise-level is 50, expected"),
        (["--upscale", "{image}", "--height", "64"], "remove --height and --width"),
        (["--refiner", "sticker", "--handover", "0"], "--handover"),
    ],
)
def test_messages_name_the_option(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    given = [each.format(image=tmp_path / "a.png", model="sticker-upscaling") for each in given]
    code = 7 if "--device" in given else 2
    assert main(["a red circle", "--quiet", "-o", str(tmp_path / "b.png"), *given]) == code
    error = capsys.readouterr().err
    assert message in error
    assert not any(name in error for name in ("num_inference_steps", "guidance_scale", "_image", "_prompt", "_level"))


def test_names_in_quotes_and_paths_stay() -> None:
    known = ("--steps", "--mask", "--image", "--noise-level", "--guidance", "--tokenizer", "--overwrite")
    for before, after in (
        ("num_inference_steps is 0, expected 1.", "--steps is 0, expected 1."),
        ("'num_inference_steps is 0' holds mask_image.", "'num_inference_steps is 0' holds --mask."),
        ('"it\'s a mask_image" and mask_image', '"it\'s a mask_image" and --mask'),
        ("a model's mask_image, a model's image", "a model's --mask, a model's image"),
        ("/tmp/mask_image.png and mask_image/x cannot be read", "/tmp/mask_image.png and mask_image/x cannot be read"),
        ("give image and mask_image; image is 3", "give --image and --mask; image is 3"),
        ("give an image, or remove noise_level.", "give an image, or remove --noise-level."),
        ("noise_level needs guidance_scale", "--noise-level needs --guidance"),
        ("`mask_image` and the seed", "`mask_image` and the seed"),
        ("pass tokenizer= a folder, or overwrite=True.", "pass --tokenizer a folder, or --overwrite."),
        ("pass noise_level='fp16' or revision='main'", "pass --noise-level 'fp16' or revision='main'"),
    ):
        assert with_options(before, known) == after
    assert with_options("a.png is a pipe or device", ("--device",)) == "a.png is a pipe or device"
    assert with_options("image is 3", ("--image", "--upscale"), ["a", "--upscale", "b.png"]) == "--upscale is 3"


def test_the_fastest_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from weights_loader.devices import best_device

    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr("torch.cuda.is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr("torch.backends.mps.is_available", lambda mps=mps: mps)
        assert str(best_device()) == expected


def test_the_fastest_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision only where the device has instructions for it."""
    from weights_loader.devices import best_dtype

    for capabilities, expected in (({"amx_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda found=capabilities: found, raising=False)
        assert best_dtype(torch.device("cpu")) == expected
    for supported, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation, yes=supported: yes)
        assert best_dtype(torch.device("cuda")) == expected


@pytest.mark.parametrize(("model", "expected"), [("sticker", "float32"), ("copy", "bfloat16")])
def test_dtype_auto_says_what_it_takes(
    model: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The embedded model is too small to gain; a model of another name takes the fastest dtype."""
    monkeypatch.setattr("weights_loader.best_dtype", lambda device: torch.bfloat16)
    source = model
    if model == "copy":
        source = str(weights_loader.save(weights_loader.load("sticker"), tmp_path / "copy"))
    target = tmp_path / "a.png"
    assert main(["a red circle", "--model", source, "--dtype", "auto", "--steps", "1", "-o", str(target)]) == 0
    assert f"computes in {expected}\n" in capsys.readouterr().out
    assert target.exists()
