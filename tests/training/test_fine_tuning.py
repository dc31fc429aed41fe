"""Fine-tuning: a word and a LoRA from a few pictures; nothing else changes, killed runs go on, files load."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from support.small import small_pipeline

import weights_loader
from minisd.adapters import Lora, LowRank, LowRankChanges, add_embeddings
from minisd.cli import main
from minisd.errors import InputError
from minisd.interpret import text_vectors
from minisd.pipeline import StableDiffusion
from minisd.sticker.training import examples
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.render import render
from minisd.training import fine_tuning
from minisd.training.fine_tuning import Pictures, attention_weights, read_pictures, train_embedding, train_lora

WORD = "<candy>"


@pytest.fixture
def sd() -> StableDiffusion:
    return small_pipeline()


def learned(text: str = f"a {WORD}", count: int = 5) -> Pictures:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    return Pictures(F.interpolate(coarse, size=32, mode="bilinear"), [text] * count)


def quiet(line: str) -> None:
    pass


def bits(sd: StableDiffusion) -> list[torch.Tensor]:
    return [p.detach().clone() for part in (sd.unet, sd.text_encoder, sd.vae) for p in part.parameters()]


def test_a_word_learns_and_nothing_else_changes(sd: StableDiffusion, tmp_path: Path) -> None:
    before, size = bits(sd), len(sd.tokenizer)
    start = text_vectors.vector(sd, "cat")
    lines: list[str] = []
    vectors = train_embedding(sd, learned(), WORD, "cat", 1, tmp_path / "run.pt", lines.append, steps=12)
    assert vectors.shape == start.shape
    assert (vectors - start).abs().max() > 1e-3
    assert len(sd.tokenizer) == size
    assert all(torch.equal(a, b) for a, b in zip(before, bits(sd), strict=True))


def test_the_word_is_read_where_the_caption_has_it(sd: StableDiffusion, tmp_path: Path) -> None:
    """The vectors reach the loss through the place of the token: at no step, the start is what the encoder has."""
    first = train_embedding(sd, learned(), WORD, "cat", 1, tmp_path / "a.pt", quiet, steps=4)
    other = train_embedding(sd, learned(f"{WORD} above a dog"), WORD, "cat", 1, tmp_path / "b.pt", quiet, steps=4)
    again = train_embedding(sd, learned(), WORD, "cat", 1, tmp_path / "c.pt", quiet, steps=4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("sd2", [False, True])
@pytest.mark.parametrize("kind", ["embedding", "lora"])
def test_the_loss(kind: str, sd2: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is minimised, computed again from the pipeline's own parts: epsilon or v, the word in its place."""
    sd, pictures = small_pipeline(sd2), learned(f"{WORD} above a {WORD}" if kind == "embedding" else "a cat", 12)
    losses = []
    monkeypatch.setattr(fine_tuning, "train", lambda model, loss, *others: losses.append(loss) or model)
    if kind == "embedding":
        vectors = train_embedding(sd, pictures, WORD, "cat", 1, tmp_path / "run.pt", quiet)
        add_embeddings({WORD: [(sd.text_parts[0], vectors)]})
    else:
        train_lora(sd, pictures, 1, tmp_path / "run.pt", quiet)
    got = losses[0](torch.Generator().manual_seed(3), 0.0)

    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(12, (8,), generator=generator)
    texts = [pictures.captions[row] for row in rows]
    if kind == "lora":
        dropped = torch.rand(8, generator=generator) < 0.1
        assert dropped.any()
        texts = ["" if drop else text for drop, text in zip(dropped.tolist(), texts, strict=True)]
    with torch.no_grad():
        x0 = sd.vae.encode(pictures.pixels[rows]).mean * sd.vae.config.scaling_factor
        t = torch.randint(1000, (8,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        a = sd.scheduler.schedule.alpha_bars[t].float()[:, None, None, None]
        prediction = sd.unet(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, sd.text_encoder(sd.tokenizer(texts)))
        target = a.sqrt() * noise - (1 - a).sqrt() * x0 if sd2 else noise
        assert got.item() == pytest.approx((prediction - target).square().mean().item(), rel=1e-4)
    got.backward()
    assert all(p.grad is None for part in (sd.unet, sd.text_encoder) for p in part.parameters())


@pytest.mark.parametrize("kind", ["embedding", "lora"])
def test_a_killed_run_goes_on(kind: str, sd: StableDiffusion, tmp_path: Path) -> None:
    def run(path: Path, steps: int) -> torch.Tensor:
        if kind == "embedding":
            return train_embedding(sd, learned(), WORD, "dog", 1, path, quiet, steps=steps)
        changes = train_lora(sd, learned("a cat"), 1, path, quiet, steps=steps)
        return torch.cat([up.flatten() for up in changes.up])

    class Killed(BaseException):
        pass

    whole = run(tmp_path / "whole.pt", 8)
    calls = 0

    def stop(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minisd.training.trainer.time.monotonic", iter(range(0, 10**6, 50)).__next__)
        if kind == "embedding":
            with pytest.raises(Killed):
                train_embedding(sd, learned(), WORD, "dog", 1, tmp_path / "run.pt", stop, steps=8)
        else:
            with pytest.raises(Killed):
                train_lora(sd, learned("a cat"), 1, tmp_path / "run.pt", stop, steps=8)
    assert torch.allclose(run(tmp_path / "run.pt", 8), whole, atol=0)


def test_a_lora_learns_and_its_file_does_what_was_trained(sd: StableDiffusion, tmp_path: Path) -> None:
    before = bits(sd)
    changes = train_lora(sd, learned("a cat"), 1, tmp_path / "run.pt", quiet, rank=3, steps=12)
    assert all(torch.equal(a, b) for a, b in zip(before, bits(sd), strict=True))
    wanted = {name: weight.detach() for name, weight in changes.weights(sd.unet).items()}
    assert max(float((weight - sd.unet.get_parameter(name)).abs().max()) for name, weight in wanted.items()) > 1e-4
    weights_loader.save_lora(changes.parts, sd.unet, tmp_path / "lora.safetensors")
    lora = weights_loader.load_lora(sd, tmp_path / "lora.safetensors")
    assert lora.layers == len(wanted) == 4 * 2 * sum("attention2.q" in name for name in wanted)
    for name, weight in wanted.items():
        assert torch.allclose(sd.unet.get_parameter(name), weight, atol=1e-6)


def test_a_lora_with_a_factor_is_saved_with_it(sd: StableDiffusion, tmp_path: Path) -> None:
    name = attention_weights(sd.unet)[0]
    weight = sd.unet.get_parameter(name)
    change = LowRank(torch.randn(2, weight.shape[1]), torch.randn(len(weight), 2), factor=0.25)
    weights_loader.save_lora({name: change}, sd.unet, tmp_path / "lora.safetensors")
    expected = weight + change.delta(weight)
    weights_loader.load_lora(sd, tmp_path / "lora.safetensors")
    assert torch.allclose(sd.unet.get_parameter(name), expected, atol=1e-6)
    with pytest.raises(InputError, match=r"has no elsewhere\.weight"):
        weights_loader.save_lora({"elsewhere.weight": change}, sd.unet, tmp_path / "other.safetensors")


def test_fresh_changes_change_nothing(sd: StableDiffusion) -> None:
    changes = LowRankChanges(sd.unet, attention_weights(sd.unet), 2)
    assert all(torch.equal(w, sd.unet.get_parameter(name)) for name, w in changes.weights(sd.unet).items())
    layers = {sd.unet.get_submodule(name.removesuffix(".weight")): part for name, part in changes.parts.items()}
    assert Lora(layers).layers == len(changes.names)


def test_the_file_names_the_references_layers(sd: StableDiffusion, tmp_path: Path) -> None:
    """What the file says, added to the reference's layers of these names, gives what our UNet gives."""
    diffusers = pytest.importorskip("diffusers")
    weights_loader.save(sd, tmp_path / "model")
    changes = train_lora(sd, learned("a cat"), 1, tmp_path / "run.pt", quiet, steps=12)
    weights_loader.save_lora(changes.parts, sd.unet, tmp_path / "lora.safetensors")
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "model", subfolder="unet")
    x, text = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 64)
    tensors = load_file(tmp_path / "lora.safetensors")
    with torch.no_grad():
        before = sd.unet(x, 500, text)
        for name in (name for name in tensors if name.endswith("lora_A.weight")):
            layer = theirs.get_submodule(name.removeprefix("unet.").removesuffix(".lora_A.weight"))
            layer.weight += tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
        weights_loader.load_lora(sd, tmp_path / "lora.safetensors")
        after = sd.unet(x, 500, text)
        assert torch.allclose(theirs(x, 500, text).sample, after, atol=1e-5)
    assert (after - before).abs().max() > 1e-4


def test_pictures_of_a_folder(tmp_path: Path) -> None:
    Image.new("RGB", (100, 50), "red").save(tmp_path / "b.png")
    Image.new("L", (20, 20), 255).save(tmp_path / "a.jpg")
    (tmp_path / "b.txt").write_text("a red sheet\n")
    (tmp_path / "notes.md").write_text("no picture")
    pixels, captions = read_pictures(tmp_path, 32, "something white")
    assert captions == ["something white", "a red sheet"]
    assert pixels.shape == (2, 3, 32, 32)
    assert pixels[0].min() > 0.98
    assert pixels[1, 0].min() == 1
    assert pixels[1, 1:].max() == -1
    with pytest.raises(InputError, match=r"a\.jpg has no caption"):
        read_pictures(tmp_path, 32)
    (tmp_path / "c.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"c\.png cannot be read"):
        read_pictures(tmp_path, 32, "x")
    with pytest.raises(InputError, match="holds no pictures"):
        read_pictures(tmp_path / "elsewhere", 32, "x")


def test_bad_input(sd: StableDiffusion, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    with pytest.raises(InputError, match="does not have '<candy>'"):
        train_embedding(sd, learned("a cat"), WORD, "cat", 1, path, quiet, steps=1)
    with pytest.raises(InputError):
        train_embedding(sd, learned("a cat"), "cat", "dog", 1, path, quiet, steps=1)  # a word that there is
    with pytest.raises(InputError):
        train_embedding(sd, learned(), WORD, "", 1, path, quiet, steps=1)
    for other in (small_pipeline(in_channels=9), small_pipeline(in_channels=5)):
        with pytest.raises(InputError, match="cannot be fine-tuned"):
            train_lora(other, learned("a cat"), 1, path, quiet, steps=1)
        with pytest.raises(InputError, match="cannot be fine-tuned"):
            train_embedding(other, learned(), WORD, "cat", 1, path, quiet, steps=1)
    assert not path.exists()


def test_the_examples_are_what_they_say(tmp_path: Path) -> None:
    lessons = examples.candy(12)
    assert len({text for _, text in lessons}) > 8
    for scene, text in lessons:
        assert text.count(WORD) == 1
        assert check(render([scene])[0], text.replace(WORD, "pink star")).exact
    for scene, text in examples.night(6):
        assert scene.background == "black"
        assert check(render([scene])[0], scene).exact
        assert text.split()[-1] == scene.things[0].shape
    examples.write(tmp_path / "night", examples.night(3))
    assert [path.name for path in sorted((tmp_path / "night").glob("*.txt"))] == ["00.txt", "01.txt", "02.txt"]
    assert len(read_pictures(tmp_path / "night", 64).captions) == 3


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights_loader.save(small_pipeline(), tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "pictures" / "1.png")
    where = ["--pictures", str(tmp_path / "pictures"), "--start-from", str(tmp_path / "model"), "--steps", "2"]
    assert main(["train", "lora", str(tmp_path / "l"), *where, "--prompt", "a cat", "--rank", "2"]) == 0
    assert main(["train", "embedding", str(tmp_path / "e"), *where, "--prompt", "a <x>"]) == 2
    assert "needs --token" in capsys.readouterr().err
    words = ["--prompt", "a <x>", "--token", "<x>", "--like", "cat"]
    assert main(["train", "embedding", str(tmp_path / "e"), *where, *words]) == 0
    assert str(tmp_path / "e" / "embedding.safetensors") in capsys.readouterr().out
    sd = weights_loader.load(tmp_path / "model")
    assert weights_loader.load_embedding(sd, tmp_path / "e" / "embedding.safetensors") == ["<x>"]
    assert weights_loader.load_lora(sd, tmp_path / "l" / "lora.safetensors").layers == len(attention_weights(sd.unet))
    assert main(["train", "lora", str(tmp_path / "l"), "--steps", "2"]) == 2
    assert "needs --pictures" in capsys.readouterr().err
