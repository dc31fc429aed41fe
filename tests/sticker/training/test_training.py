"""Training: the loop, the normalisation of latents, the vocabulary. What is learned shows in test_sticker.py."""

import math
import random
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from support.small import randomise, small_pipeline
from torch import Tensor, nn

from minisd.errors import InputError, MismatchError, NumericalError, ResumeError
from minisd.models import UNet
from minisd.sticker.training.autoencoder import (
    VAE_CONFIG,
    fold,
    new_vae,
    normalise,
    reconstruction_loss,
    thumbnail_loss,
    train_vae,
)
from minisd.sticker.training.contrastive import train_clip
from minisd.sticker.training.dataset import SHORT, TAUGHT_WORDS, lessons, new_tokenizer
from minisd.sticker.training.text_encoder import new_reader, train_reader
from minisd.sticker.training.unet import (
    SCHEDULER,
    expected_loss,
    latent_pool,
    new_unet,
    sample_timesteps,
    text_config,
    train_unet,
)
from minisd.sticker.training.vocabulary import apply_merges, learn_vocabulary
from minisd.sticker.world.captions import caption
from minisd.sticker.world.render import render
from minisd.training.trainer import Recipe, _average, load_average, train


class Clock:
    """A second a look: makes time-budgeted training repeatable."""

    def __init__(self) -> None:
        self.now, self.tick = 0.0, 1.0

    def monotonic(self) -> float:
        self.now += self.tick
        return self.now


class Killed(Exception):
    """Stands for a process that ends in the middle of a step."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr("minisd.training.trainer.time.monotonic", fake.monotonic)
    return fake


def linear() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 1)


def fitting(model: nn.Linear) -> object:
    def loss(generator: torch.Generator, progress: float) -> Tensor:
        x = torch.randn(16, 3, generator=generator)
        return ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()

    return loss


def test_it_learns_and_returns_the_average(clock: Clock, tmp_path: Path) -> None:
    model, lines = linear(), []
    recipe = Recipe(minutes=10, learning_rate=0.05, warmup_steps=10, ema_decay=0.9)
    average = train(model, fitting(model), recipe, tmp_path / "run.pt", lines.append)
    assert average is not model
    assert torch.allclose(average.weight, torch.ones(1, 3), atol=1e-2)
    assert "step" in lines[-1]


def test_a_run_continues_from_its_file_to_the_same_weights(clock: Clock, tmp_path: Path) -> None:
    whole = linear()
    recipe = Recipe(minutes=3, learning_rate=0.05, save_every=7)
    train(whole, fitting(whole), recipe, tmp_path / "whole.pt")

    parts = linear()
    inner, calls = fitting(parts), 0

    def killed(generator: torch.Generator, progress: float) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 60:
            raise Killed
        return inner(generator, progress)

    with pytest.raises(Killed):
        train(parts, killed, recipe, tmp_path / "parts.pt")
    resumed = linear()
    average = train(resumed, fitting(resumed), recipe, tmp_path / "parts.pt")
    stored = torch.load(tmp_path / "whole.pt", weights_only=True)
    again = torch.load(tmp_path / "parts.pt", weights_only=True)
    assert again["step"] == pytest.approx(stored["step"], abs=2)  # a look at the clock more or less
    assert torch.allclose(resumed.weight, whole.weight, atol=5e-3)
    assert torch.equal(average.weight, again["average"]["weight"])


def train_stage(stage: str, path: Path) -> dict[str, Tensor]:
    if stage == "loop":
        model = linear()
        return train(model, fitting(model), Recipe(0, steps=12, learning_rate=0.05), path).state_dict()
    if stage == "autoencoder":
        return train_vae(0, path, lambda line: None, batch=2, steps=12).state_dict()
    tokenizer = new_tokenizer()
    reader = new_reader(text_config(len(tokenizer)))
    arguments = {"minutes": 0, "steps": 12, "path": path, "report": lambda line: None, "batch": 2}
    if stage == "text":
        return train_reader(reader, tokenizer, **arguments).state_dict()
    if stage == "clip":
        return train_clip(reader.text_encoder, tokenizer, **arguments).state_dict()
    return train_unet(new_vae(), tokenizer, reader.text_encoder, new_unet(), **arguments, pool=8).state_dict()


@pytest.mark.parametrize("stage", ["loop", "autoencoder", "text", "unet", "clip"])
def test_a_stage_killed_at_random_ends_in_the_same_weights_bit_for_bit(
    stage: str, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minisd.sticker.training.autoencoder.normalise", lambda vae: None)
    clock.tick = 50  # a save every third step
    whole = train_stage(stage, tmp_path / "whole.pt")

    chance, kills, left = random.Random(0), 0, 0

    def deadly(*arguments: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        _average(*arguments)

    monkeypatch.setattr("minisd.training.trainer._average", deadly)
    while True:
        left = chance.randint(2, 8)
        try:
            parts = train_stage(stage, tmp_path / "parts.pt")
            break
        except Killed:
            kills += 1
    assert kills >= 2
    assert all(torch.equal(parts[name], weight) for name, weight in whole.items())
    stored, again = (torch.load(tmp_path / f"{name}.pt", weights_only=True)["model"] for name in ("whole", "parts"))
    assert all(torch.equal(again[name], weight) for name, weight in stored.items())


def test_a_finished_run_is_not_trained_again(clock: Clock, tmp_path: Path) -> None:
    first = linear()
    train(first, fitting(first), Recipe(minutes=1), tmp_path / "run.pt")
    second = linear()
    train(second, fitting(second), Recipe(minutes=1), tmp_path / "run.pt")
    assert torch.equal(first.weight, second.weight)


def one_of_two(process: int, folder: Path) -> None:
    """Train in a group of two processes, each on data of its own."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=process, world_size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minisd.training.trainer.time.monotonic", Clock().monotonic)
        model = linear()
        data = (torch.eye(3)[:2], torch.eye(3)[2:])[process]
        lines: list[str] = []
        draws: list[float] = []

        def loss(generator: torch.Generator, progress: float) -> Tensor:
            draws.append(torch.randn((), generator=generator).item())
            return (model(data) ** 2).mean()

        train(model, loss, PAIR, folder / "run.pt", lines.append)
    torch.save((model.state_dict(), len(lines), draws), folder / f"{process}.pt")
    dist.destroy_process_group()


PAIR = Recipe(minutes=0.5, learning_rate=0.05, warmup_steps=1)


def test_two_processes_train_as_one_on_the_data_of_both(clock: Clock, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2)
    (first, lines, draws), (second, silence, others) = (torch.load(tmp_path / f"{process}.pt") for process in (0, 1))
    alone = linear()

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        return ((alone(torch.eye(3)[:2]) ** 2).mean() + (alone(torch.eye(3)[2:]) ** 2).mean()) / 2

    train(alone, loss, PAIR, tmp_path / "alone.pt")
    for name, weight in alone.state_dict().items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], weight, atol=1e-6)
    assert (lines > 0, silence) == (True, 0)  # one of them speaks and saves
    assert not set(draws) & set(others)  # each on batches of its own


def test_seeds_and_steps_draw_different_batches(clock: Clock, tmp_path: Path) -> None:
    model, draws = linear(), []

    def loss(generator: torch.Generator, progress: float) -> Tensor:
        draws.append(torch.randn((), generator=generator).item())
        return model.weight.sum()

    train(model, loss, Recipe(minutes=0.1), tmp_path / "a.pt")
    train(model, loss, Recipe(minutes=0.1, seed=1), tmp_path / "b.pt")
    assert len(set(draws)) == len(draws) == 12


def test_bad_batches_are_skipped_and_too_many_stop_the_run(clock: Clock, tmp_path: Path) -> None:
    model = linear()
    inner, calls = fitting(model), 0

    def sometimes(generator: torch.Generator, progress: float) -> Tensor:
        nonlocal calls
        calls += 1
        return inner(generator, progress) * (math.nan if calls % 3 == 0 else 1.0)

    train(model, sometimes, Recipe(minutes=1), tmp_path / "run.pt")
    assert torch.isfinite(model.weight).all()

    def always(generator: torch.Generator, progress: float) -> Tensor:
        return inner(generator, progress) * math.nan

    before = model.weight.clone()
    with pytest.raises(NumericalError, match="not finite"):
        train(model, always, Recipe(minutes=1), tmp_path / "other.pt")
    assert torch.equal(model.weight, before)


def test_a_run_of_another_model_is_refused(clock: Clock, tmp_path: Path) -> None:
    model = linear()
    train(model, fitting(model), Recipe(minutes=0.2), tmp_path / "run.pt")
    other = nn.Linear(4, 1)
    with pytest.raises(ResumeError, match="another model"):
        train(other, fitting(other), Recipe(minutes=1), tmp_path / "run.pt")


def test_folding_the_statistics_changes_the_latents_and_nothing_else() -> None:
    vae = new_vae().eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(4, 3, 32, 32, generator=generator) * 2 - 1
    mean, std = torch.tensor([0.5, -2.0, 3.0, 0.0]), torch.tensor([2.0, 0.3, 1.0, 4.0])
    with torch.no_grad():
        before = vae.encode(pixels)
        picture = vae.decode(before.mean)
        fold(vae, mean, std)
        after = vae.encode(pixels)
        scale = (std * vae.config.scaling_factor)[:, None, None]
        assert torch.allclose(after.mean, (before.mean - mean[:, None, None]) / scale, atol=1e-4)
        assert torch.allclose(after.std * scale, before.std, rtol=1e-4, atol=1e-6)
        assert torch.allclose(vae.decode(after.mean), picture, atol=1e-5)


def test_latents_are_normalised() -> None:
    vae = new_vae().eval()
    normalise(vae, scenes=200)
    latents = latent_pool(vae, lessons(100, seed=3))  # a narrower world
    assert latents.mean().abs() < 0.3
    assert 0.7 < latents.std() < 1.3


def test_the_thumbnail_is_the_picture_in_three_channels() -> None:
    target = torch.rand(2, 3, 16, 16)
    small = torch.nn.functional.avg_pool2d(target, 4)
    assert thumbnail_loss(torch.cat([small, torch.randn(2, 1, 4, 4)], 1), target) < 1e-6
    assert thumbnail_loss(torch.cat([small + 0.5, torch.randn(2, 1, 4, 4)], 1), target) == pytest.approx(0.5, abs=1e-5)


def test_the_autoencoder_trains_on_from_another(tmp_path: Path) -> None:
    start = randomise(new_vae(), seed=5)
    vae = train_vae(0, tmp_path / "a.pt", lambda line: None, start=start)  # no time for a step
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected, got = start.decode(start.encode(pixels).mean), vae.decode(vae.encode(pixels).mean)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    other = small_pipeline().vae
    assert other.config != VAE_CONFIG
    with pytest.raises(MismatchError, match="other sizes"):
        train_vae(0, tmp_path / "b.pt", lambda line: None, start=other)


def test_training_on_can_keep_the_latents(tmp_path: Path) -> None:
    """Of what the one before knew, while both halves learn."""
    start = new_vae()
    normalise(start, scenes=200)
    before = {name: weight.clone() for name, weight in start.state_dict().items()}
    pixels = render(lessons(20, seed=3), 64)
    moved, k = {}, start.config.scaling_factor
    for keep in (True, False):
        path = tmp_path / f"{keep}.pt"
        vae = train_vae(0, path, lambda line: None, batch=2, start=start, steps=12, keep_latents=keep)
        parts = {
            name.split(".")[0] for name, weight in vae.state_dict().items() if not torch.equal(before[name], weight)
        }
        assert {"encoder", "decoder"} <= parts
        with torch.no_grad():
            moved[keep] = k * (vae.encode(pixels).mean - start.encode(pixels).mean).abs().mean()
    assert moved[True] < moved[False] / 2
    with pytest.raises(InputError, match="give it as start"):
        train_vae(0, tmp_path / "c.pt", lambda line: None, steps=1, keep_latents=True)


def test_training_on_starts_with_latents_of_unit_deviation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a fresh one does: thumbnail, noise and KL are meant for that scale."""
    start = new_vae()
    normalise(start, scenes=200)
    monkeypatch.setattr(
        "minisd.sticker.training.autoencoder.normalise", lambda vae: None
    )  # which hides the scale again
    vae = train_vae(0, tmp_path / "a.pt", lambda line: None, start=start)
    with torch.no_grad():
        latents = vae.encode(render(lessons(100, seed=3), 64)).mean
    assert 0.7 < latents.std() < 1.3


def test_the_autoencoder_starts_almost_deterministic() -> None:
    with torch.no_grad():
        gauss = new_vae().encode(torch.zeros(1, 3, 16, 16))
    assert gauss.std.max() < 0.06


def test_reconstruction_weighs_things_over_background() -> None:
    target = -torch.ones(1, 3, 32, 32)
    target[:, :, 8:16, 8:16] = 1
    on_thing, on_ground = target.clone(), target.clone()
    on_thing[:, :, 10, 10] -= 0.5
    on_ground[:, :, 28, 28] += 0.5
    assert reconstruction_loss(target, target) == 0
    assert reconstruction_loss(on_thing, target) > 1.5 * reconstruction_loss(on_ground, target)


def test_every_word_of_the_world_is_one_token_and_captions_are_short() -> None:
    tokenizer = new_tokenizer()
    assert [word for word in TAUGHT_WORDS.split() if len(tokenizer.tokenize(word)) != 1] == []
    generator = torch.Generator().manual_seed(0)
    captions = [caption(scene, generator) for scene in lessons(300, seed=0)]
    lengths = tokenizer.encode(captions).attention_mask.sum(1)
    assert lengths.max() <= SHORT  # so nothing is lost in the first part of the training
    assert tokenizer.decode(tokenizer("a café 東京")[0], skip_special=True) == "a café 東京"


def test_the_learned_merges_are_byte_pair_encoding() -> None:
    words = ["orange", "and", "an", "band", "bandana"]
    tokenizer = learn_vocabulary(words)
    for word in [*words, "banana", "sand"]:
        assert tokenizer.tokenize(word) == apply_merges(word, tokenizer.merges)
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)


def test_timesteps_where_much_is_lost_anyway_weigh_less() -> None:
    first, middle, last = expected_loss(torch.tensor([0, 400, 999])).tolist()
    assert 0.03 < middle < first < last < 0.4


def test_timesteps_are_spread_and_the_noisiest_get_their_share() -> None:
    t = sample_timesteps(1000, torch.Generator().manual_seed(0))
    assert 0 <= t.min() < 3
    assert t.max() == 999
    assert (t.diff() >= 0).all()
    assert (t >= 700).float().mean() == pytest.approx(0.4, abs=0.01)
    assert len(set(sample_timesteps(24, torch.Generator().manual_seed(0)).tolist())) == 24


def test_latents_of_the_pool_and_the_unet_fit_together() -> None:
    vae, tokenizer = new_vae().eval(), new_tokenizer()
    latents = latent_pool(vae, lessons(3, seed=0))
    unet, text_encoder = new_unet(), new_reader(text_config(len(tokenizer))).text_encoder
    with torch.no_grad():
        prediction = unet(latents, 10, text_encoder(tokenizer(["a red circle"] * 3)))
    assert prediction.shape == latents.shape
    assert SCHEDULER.schedule.alpha_bars[-1] == 0  # the last level is pure noise
    assert torch.equal(new_unet().conv_in.weight, unet.conv_in.weight)


def test_the_unet_is_trained_and_the_text_encoder_left_alone(tmp_path: Path) -> None:
    tokenizer, vae, unet = new_tokenizer(), new_vae().eval(), new_unet()
    text_encoder = new_reader(text_config(len(tokenizer))).text_encoder
    before = {name: weight.clone() for name, weight in text_encoder.state_dict().items()}
    lines: list[str] = []
    train_unet(vae, tokenizer, text_encoder, unet, 0, tmp_path / "a.pt", lines.append, pool=4, batch=2, steps=4)
    assert "4 scenes encoded" in lines[0]
    assert not torch.equal(unet.conv_in.weight, new_unet().conv_in.weight)
    assert all(torch.equal(before[name], weight) for name, weight in text_encoder.state_dict().items())
    again, stored = load_average(new_unet(), tmp_path / "a.pt"), torch.load(tmp_path / "a.pt", weights_only=True)
    assert all(torch.equal(weight, stored["average"][name]) for name, weight in again.state_dict().items())
    with pytest.raises(ResumeError, match="another model"):
        load_average(linear(), tmp_path / "a.pt")


def test_a_run_shows_its_average_whenever_it_is_saved(clock: Clock, tmp_path: Path) -> None:
    model, shown = linear(), []
    average = train(model, fitting(model), Recipe(1, save_every=20), tmp_path / "run.pt", show=shown.append)
    assert shown == [average] * 3


@pytest.mark.parametrize("right", [True, False])
def test_a_compiled_unet_that_loses_gradients_is_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: bool
) -> None:
    """As torch 2.13 does on the CPU in bfloat16: same prediction, but nothing learned from the text."""
    calls = 0

    def compiled(unet: UNet) -> object:
        def predict(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if right:
                return unet(x, t, text)
            with torch.no_grad():
                prediction = unet(x, t, text)
            return prediction + 0 * unet(x, t, text)

        return predict

    monkeypatch.setattr(torch, "compile", compiled)
    tokenizer, lines = new_tokenizer(), []
    reader, unet = new_reader(text_config(len(tokenizer))), new_unet()
    arguments = {"pool": 4, "batch": 2, "steps": 3, "compiled": True}
    train_unet(new_vae(), tokenizer, reader.text_encoder, unet, 0, tmp_path / "a.pt", lines.append, **arguments)
    assert calls == (4 if right else 1)
    assert any("gradients are wrong by 100%" in line for line in lines) is not right
