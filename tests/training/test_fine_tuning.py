"""Fine-tuning: an embedding and a LoRA from a few images; the model stays frozen, killed runs continue, files load."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.runs import check_killed_runs, steps_of
from support.small import small_pipeline
from support.training_images import training_images

import weights_loader
from minisd.adapters import Lora, LowRank, LowRankChanges, add_embeddings
from minisd.adapters.lora import by_layer
from minisd.cli import main
from minisd.errors import InputError
from minisd.interpret import text_vectors
from minisd.pipeline import StableDiffusion
from minisd.training import fine_tuning, textual_inversion
from minisd.training.lora import SETTINGS as LORA
from minisd.training.lora import attention_weight_names, train_lora
from minisd.training.textual_inversion import train_embedding

TOKEN = "<candy>"
CAPTION = f"a {TOKEN}"


@pytest.fixture
def sd() -> StableDiffusion:
    return small_pipeline()


def weights_of(sd: StableDiffusion) -> list[torch.Tensor]:
    return [p.detach().clone() for part in (sd.unet, sd.text_encoder, sd.vae) for p in part.parameters()]


def test_an_embedding_is_trained_and_the_model_stays_frozen(sd: StableDiffusion, tmp_path: Path) -> None:
    before, size = weights_of(sd), len(sd.tokenizer)
    start = text_vectors.word_vectors(sd, "cat")
    lines: list[str] = []
    vectors = train_embedding(
        sd, training_images(CAPTION), TOKEN, "cat", steps_of(tmp_path / "run.pt", 12, lines.append)
    )
    assert vectors.shape == start.shape
    assert (vectors - start).abs().max() > 1e-3
    assert len(sd.tokenizer) == size
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(sd), strict=True))


def test_the_embedding_depends_on_the_position_of_the_token(sd: StableDiffusion, tmp_path: Path) -> None:
    """The vectors reach the loss through the position of the token in the caption."""
    first = train_embedding(sd, training_images(CAPTION), TOKEN, "cat", steps_of(tmp_path / "a.pt", 4))
    other = train_embedding(sd, training_images(f"{TOKEN} above a dog"), TOKEN, "cat", steps_of(tmp_path / "b.pt", 4))
    again = train_embedding(sd, training_images(CAPTION), TOKEN, "cat", steps_of(tmp_path / "c.pt", 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("sd2", [False, True])
@pytest.mark.parametrize("kind", ["embedding", "lora"])
def test_the_loss(kind: str, sd2: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is that of the pipeline's own networks, for epsilon and v, with the trained vectors in the prompt."""
    caption = f"{TOKEN} above a {TOKEN}" if kind == "embedding" else "a cat"
    sd, pictures = small_pipeline(sd2), training_images(caption, 12)
    losses = []
    for module in (fine_tuning, textual_inversion):
        monkeypatch.setattr(module, "train", lambda model, loss, *others: losses.append(loss) or model)
    if kind == "embedding":
        vectors = train_embedding(sd, pictures, TOKEN, "cat", steps_of(tmp_path / "run.pt", 1))
        add_embeddings({TOKEN: [(sd.text_parts[0], vectors)]})
    else:
        train_lora(sd, pictures, steps_of(tmp_path / "run.pt", 1))
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


@pytest.mark.parametrize("kind", ["embedding", "lora", "lora, text encoder"])
def test_killed_runs_continue(kind: str, sd: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_to(path: Path) -> dict[str, torch.Tensor]:
        if kind == "embedding":
            return {"vectors": train_embedding(sd, training_images(CAPTION), TOKEN, "dog", steps_of(path, 12))}
        settings = replace(LORA, batch=2, text_encoder=kind != "lora")
        return train_lora(sd, training_images("a cat"), steps_of(path, 12), settings=settings).state_dict()

    check_killed_runs(train_to, tmp_path, monkeypatch)


def test_a_lora_is_trained_and_its_file_makes_the_same_changes(sd: StableDiffusion, tmp_path: Path) -> None:
    before = weights_of(sd)
    changes = train_lora(sd, training_images("a cat"), steps_of(tmp_path / "run.pt", 12), rank=3)
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(sd), strict=True))
    wanted = {name: weight.detach() for name, weight in changes.weights(sd.unet).items()}
    assert max(float((weight - sd.unet.get_parameter(name)).abs().max()) for name, weight in wanted.items()) > 1e-4
    weights_loader.save_lora(changes.parts, sd.unet, tmp_path / "lora.safetensors")
    lora = weights_loader.load_lora(sd, tmp_path / "lora.safetensors")
    assert lora.layers == len(wanted) == 4 * 2 * sum("attention2.q" in name for name in wanted)
    for name, weight in wanted.items():
        assert torch.allclose(sd.unet.get_parameter(name), weight, atol=1e-6)


def test_a_lora_with_a_factor_is_saved_with_it(sd: StableDiffusion, tmp_path: Path) -> None:
    name = attention_weight_names(sd.unet)[0]
    weight = sd.unet.get_parameter(name)
    change = LowRank(torch.randn(2, weight.shape[1]), torch.randn(len(weight), 2), factor=0.25)
    weights_loader.save_lora({name: change}, sd.unet, tmp_path / "lora.safetensors")
    expected = weight + change.delta(weight)
    weights_loader.load_lora(sd, tmp_path / "lora.safetensors")
    assert torch.allclose(sd.unet.get_parameter(name), expected, atol=1e-6)
    for other in ("elsewhere.weight", "norm_out.weight", "conv_in"):  # a norm's weight is a vector
        with pytest.raises(InputError, match=f"changes holds '{other}', expected weights of the UNet's"):
            weights_loader.save_lora({other: change}, sd.unet, tmp_path / "other.safetensors")


def test_untrained_changes_change_nothing(sd: StableDiffusion) -> None:
    changes = LowRankChanges(sd.unet, attention_weight_names(sd.unet), 2)
    assert all(torch.equal(w, sd.unet.get_parameter(name)) for name, w in changes.weights(sd.unet).items())
    assert Lora(by_layer(sd.unet, changes.parts)).layers == len(changes.names)


def test_the_file_uses_the_layer_names_of_diffusers(sd: StableDiffusion, tmp_path: Path) -> None:
    """The changes in the file, added to the layers of diffusers with these names, give the same prediction."""
    diffusers = pytest.importorskip("diffusers")
    weights_loader.save(sd, tmp_path / "model")
    changes = train_lora(sd, training_images("a cat"), steps_of(tmp_path / "run.pt", 6))
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


def test_bad_input(sd: StableDiffusion, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    with pytest.raises(InputError, match="does not contain the new token '<candy>'"):
        train_embedding(sd, training_images("a cat"), TOKEN, "cat", steps_of(path, 1))
    with pytest.raises(InputError):
        train_embedding(sd, training_images("a cat"), "cat", "dog", steps_of(path, 1))  # the token exists
    with pytest.raises(InputError):
        train_embedding(sd, training_images(CAPTION), TOKEN, "", steps_of(path, 1))
    for other in (small_pipeline(in_channels=9), small_pipeline(in_channels=5)):
        with pytest.raises(InputError, match="cannot be fine-tuned"):
            train_lora(other, training_images("a cat"), steps_of(path, 1))
        with pytest.raises(InputError, match="cannot be fine-tuned"):
            train_embedding(other, training_images(CAPTION), TOKEN, "cat", steps_of(path, 1))
    assert not path.exists()


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
    assert weights_loader.load_lora(sd, tmp_path / "l" / "lora.safetensors").layers == len(
        attention_weight_names(sd.unet)
    )
    assert main(["train", "lora", str(tmp_path / "l"), "--steps", "2"]) == 2
    assert "needs --pictures" in capsys.readouterr().err
