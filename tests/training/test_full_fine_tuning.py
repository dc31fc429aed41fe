"""Full fine-tuning and DreamBooth: the loss and gradients of the reference, what is trained, settings, killed runs."""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import check_killed_runs, steps_of
from support.small import small_pipeline
from support.small_xl import oracle_xl
from support.training_images import training_images

import weights_loader
from minisd import images
from minisd._internal import large_tensors
from minisd.adapters import Lora
from minisd.adapters.lora import by_layer
from minisd.cli import main
from minisd.errors import InputError, ResumeError
from minisd.pipeline import Defaults, StableDiffusion
from minisd.training import fine_tuning, full_fine_tuning, trainer
from minisd.training.captioned_images import CaptionedImages
from minisd.training.checkpointing import gradient_checkpointing
from minisd.training.class_images import class_images
from minisd.training.denoising import denoising_losses, training_side
from minisd.training.fine_tuning import Settings, is_small
from minisd.training.full_fine_tuning import train_full
from minisd.training.guidance_distillation import guided_student
from minisd.training.lora import train_lora

DROPPED = Settings(batch=6, empty_prompts=0.3)


def loss_of(
    sd: StableDiffusion, folder: Path, settings: Settings = DROPPED, prior: CaptionedImages | None = None, seed: int = 3
) -> torch.Tensor:
    """The loss of one step, after its backward pass; the gradients are left in the networks."""
    losses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tuning, "train", lambda model, loss, *others: losses.append((model, loss)) or model)
        patch.setattr(full_fine_tuning, "freeze", lambda *networks: None)
        train_full(sd, training_images("a cat", 7), steps_of(folder / "run.pt", 1), settings, prior)
    ((_, loss),) = losses
    value = loss(torch.Generator().manual_seed(seed), 0.0)
    value.backward()
    return value.detach()


@pytest.mark.parametrize("min_snr", [None, 5.0])
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("sd2", [False, True])
def test_a_step_is_that_of_the_reference(sd2: bool, with_prior: bool, min_snr: float | None, tmp_path: Path) -> None:
    """The same objective with diffusers' UNet and noise: loss to 1e-6, gradients to 1e-4."""
    import diffusers

    sd = small_pipeline(sd2)
    weights_loader.save(sd, tmp_path / "model")
    pictures, prior = training_images("a cat", 7), training_images("a dog", 5, seed=1)
    settings = Settings(batch=6, empty_prompts=0.3, prior_weight=0.7, min_snr=min_snr)
    got = loss_of(sd, tmp_path, settings, prior if with_prior else None)

    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "model", subfolder="unet")
    noises = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    generator = torch.Generator().manual_seed(3)
    x0, states = [], []
    for each in (pictures, prior)[: 1 + with_prior]:
        rows = torch.randint(len(each.captions), (6,), generator=generator)
        dropped = torch.rand(6, generator=generator) < 0.3
        texts = ["" if drop else each.captions[row] for drop, row in zip(dropped.tolist(), rows.tolist(), strict=True)]
        with torch.no_grad():
            x0.append(sd.vae.encode(each.pixels[rows]).mean * sd.vae.config.scaling_factor)
            states.append(sd.text_encoder(sd.tokenizer(texts)))
    x0, states = torch.cat(x0), torch.cat(states)
    t = torch.randint(1000, (len(x0),), generator=generator)
    noise = torch.randn(x0.shape, generator=generator)
    predicted = theirs(noises.add_noise(x0, noise, t), t, states).sample
    target = noises.get_velocity(x0, noise, t) if sd2 else noise
    each = (predicted - target).square().mean((1, 2, 3))
    if min_snr is not None:
        snr = noises.alphas_cumprod[t] / (1 - noises.alphas_cumprod[t])
        each = each * snr.clamp(max=min_snr) / (snr + 1 if sd2 else snr)
    expected = each[:6].mean() + (0.7 * each[6:].mean() if with_prior else 0)
    expected.backward()
    assert got.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)

    moved = copy.deepcopy(sd)
    for ours, parameter in zip(moved.unet.parameters(), sd.unet.parameters(), strict=True):
        ours.data.copy_(parameter.grad)
    weights_loader.save(moved, tmp_path / "gradients")
    gradients = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "gradients", subfolder="unet").state_dict()
    for name, parameter in theirs.named_parameters():
        assert (gradients[name] - parameter.grad).abs().max() <= 1e-4 * parameter.grad.abs().max() + 1e-7, name


@pytest.mark.parametrize("as_lora", [False, True])
def test_sdxl(as_lora: bool, tmp_path: Path) -> None:
    """The reference's loss, with its pooled text and sizes; what is saved loads there and draws the same."""
    import diffusers

    theirs = oracle_xl(tmp_path)
    theirs.save_pretrained(tmp_path / "model")
    sd, pictures, settings = weights_loader.load(tmp_path / "model"), training_images("a cat", 7), Settings(batch=6)
    losses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tuning, "train", lambda model, loss, *others: losses.append(loss) or model)
        train = train_lora if as_lora else train_full
        train(sd, pictures, steps_of(tmp_path / "run.pt", 1), settings=settings)
    got = losses[0](torch.Generator().manual_seed(3), 0.0)

    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(7, (6,), generator=generator)
    dropped = torch.rand(6, generator=generator) < 0.1
    texts = ["" if drop else "a cat" for drop in dropped.tolist()]
    with torch.no_grad():
        states, _, pooled, _ = theirs.encode_prompt(texts, do_classifier_free_guidance=False)
        x0 = theirs.vae.encode(pictures.pixels[rows]).latent_dist.mean * 0.13025
        t = torch.randint(1000, (6,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        noises = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        more = {"text_embeds": pooled, "time_ids": torch.tensor([[16, 16, 0, 0, 16, 16]] * 6)}
        predicted = theirs.unet(noises.add_noise(x0, noise, t), t, states, added_cond_kwargs=more).sample
    assert got.item() == pytest.approx((predicted - noise).square().mean().item(), rel=1e-5)

    trained = train(sd, pictures, steps_of(tmp_path / "run.pt", 2), settings=settings)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    run = {"latents": latents, "output_type": "pt", "num_inference_steps": 2, "guidance_scale": 3.0}
    before, after = (theirs("a cat", height=32, width=32, **run).images, (sd("a cat", **run).images + 1) / 2)
    if as_lora:
        assert torch.allclose(after, before, atol=1e-4)
        weights_loader.save_lora(trained.parts, sd.unet, tmp_path / "lora.safetensors")
        weights_loader.load_lora(sd, tmp_path / "lora.safetensors")
        assert ((sd("a cat", **run).images + 1) / 2 - before).abs().max() > 1e-3
        return
    assert (after - before).abs().max() > 1e-3
    weights_loader.save(sd, tmp_path / "trained")
    theirs = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path / "trained")
    assert torch.allclose(theirs("a cat", height=32, width=32, **run).images, after, atol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(tmp_path: Path) -> None:
    plain, saving = small_pipeline(), small_pipeline()
    losses = [
        loss_of(plain, tmp_path / "a"),
        loss_of(saving, tmp_path / "b", Settings(batch=6, empty_prompts=0.3, gradient_checkpointing=True)),
    ]
    assert losses[0] == losses[1]
    for a, b in zip(plain.unet.parameters(), saving.unet.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6)
    assert "forward" not in vars(saving.unet.middle)
    assert _kept(saving, True) < _kept(saving, False) / 3


def _kept(sd: StableDiffusion, active: bool) -> int:
    """How many numbers are kept for the backward pass."""
    sizes: list[int] = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x)
    with keep, gradient_checkpointing(sd.unet, active):
        sd.unet(torch.randn(1, 4, 16, 16), torch.tensor([1]), torch.randn(1, 77, 64))
    return sum(sizes)


def test_data_on_disk_gives_the_same_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = loss_of(small_pipeline(), tmp_path / "a")
    monkeypatch.setattr(large_tensors, "IN_MEMORY", 0)
    assert torch.equal(loss_of(small_pipeline(), tmp_path / "b"), expected)


def test_gradient_checkpointing_of_a_lora(tmp_path: Path) -> None:
    """The weights with the changes are computed with again, not those of the frozen model."""
    trained = []
    for active in (False, True):
        settings = Settings(batch=2, learning_rate=0.05, ema_decay=0.5, gradient_checkpointing=active)
        run = steps_of(tmp_path / f"{active}.pt", 3)
        changes = train_lora(small_pipeline(), training_images("a cat"), run, 2, settings)
        trained.append([*changes.up, *changes.down])
    assert max(float(each.detach().abs().max()) for each in trained[0][: len(trained[0]) // 2]) > 1e-3
    for one, other in zip(*trained, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("text_encoder", [False, True])
def test_what_is_trained(text_encoder: bool, tmp_path: Path) -> None:
    sd = small_pipeline()
    before = copy.deepcopy(sd)
    settings = Settings(batch=2, learning_rate=1e-3, text_encoder=text_encoder, ema_decay=0.5)
    sd.defaults = replace(sd.defaults, words="a dog" if text_encoder else "")
    assert train_full(sd, training_images("a cat"), steps_of(tmp_path / "run.pt", 3), settings) is sd
    assert sd.defaults.words == ("a dog cat" if text_encoder else "")  # no list stays no list
    changed = {
        name
        for name in ("unet", "text_encoder", "vae")
        for a, b in zip(getattr(before, name).parameters(), getattr(sd, name).parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {"unet", "text_encoder"} if text_encoder else {"unet"}
    weights_loader.save(sd, tmp_path / "model")
    again = weights_loader.load(tmp_path / "model")
    assert torch.equal(again("cat", seed=1, output_type="pt").images, sd("cat", seed=1, output_type="pt").images)


@pytest.mark.parametrize("train", [train_full, train_lora])
def test_samples_are_those_of_the_average_so_far(train: Callable[..., object], tmp_path: Path) -> None:
    """They are drawn at each save, and change nothing of the training."""
    drawn: list[torch.Tensor] = []
    options = {"prompt": "a cat", "seed": 1, "num_inference_steps": 2, "output_type": "pt"}
    settings = Settings(batch=2, learning_rate=1e-2, ema_decay=0.5)
    results = []
    for name, sample in (("a", None), ("b", lambda sd: drawn.append(sd(**options).images))):
        sd, run = small_pipeline(), steps_of(tmp_path / f"{name}.pt", 4)
        trained = train(sd, training_images("a cat"), run, settings=settings, sample=sample)
        if train is train_lora:
            Lora(by_layer(sd.unet, trained.parts))
        results.append(sd(**options).images)
    assert torch.equal(*results)
    assert torch.allclose(drawn[-1], results[1], atol=1e-5)
    assert (drawn[-1] - small_pipeline()(**options).images).abs().max() > 1e-3


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    sd, lines = small_pipeline(), []
    settings = Settings(batch=4, learning_rate=1e-3)
    start = loss_of(copy.deepcopy(sd), tmp_path / "a", seed=8)
    train_full(sd, training_images("a cat"), steps_of(tmp_path / "run.pt", 40, lines.append), settings)
    assert loss_of(copy.deepcopy(sd), tmp_path / "b", seed=8) < 0.9 * start


def test_killed_runs_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_to(path: Path) -> dict[str, torch.Tensor]:
        sd, settings = small_pipeline(), Settings(batch=2, text_encoder=True, ema_decay=0.9)
        train_full(sd, training_images("a cat"), steps_of(path, 15), settings, training_images("a dog", 3, seed=1))
        return sd.unet.state_dict()

    check_killed_runs(train_to, tmp_path, monkeypatch)


def test_a_run_of_other_settings_is_not_continued(tmp_path: Path) -> None:
    train_full(small_pipeline(), training_images("a cat"), steps_of(tmp_path / "run.pt", 1), Settings(batch=2))
    with pytest.raises(ResumeError, match="batch is 3, was 2"):
        train_full(small_pipeline(), training_images("a cat"), steps_of(tmp_path / "run.pt", 2), Settings(batch=3))
    with pytest.raises(ResumeError, match="pictures and captions is"):
        train_full(small_pipeline(), training_images("a dog"), steps_of(tmp_path / "run.pt", 2), Settings(batch=2))


def test_the_default_rate_depends_on_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_small(small_pipeline())
    monkeypatch.setattr(fine_tuning, "SMALL", 1000)
    assert not is_small(small_pipeline())


def test_bad_input(tmp_path: Path) -> None:
    run = steps_of(tmp_path / "run.pt", 1)
    with pytest.raises(InputError, match="the class is called 'a cat' like the subject"):
        train_full(small_pipeline(), training_images("a cat"), run, prior=training_images("a cat"))
    with pytest.raises(InputError, match="a model for inpainting cannot be fine-tuned"):
        train_full(small_pipeline(in_channels=9), training_images("a cat"), run)
    for name, value in (("batch", 0), ("learning_rate", 0.0), ("empty_prompts", 1.5), ("min_snr", -1), ("seed", -1)):
        with pytest.raises(InputError, match=f"{name} is {value}"):
            Settings(**{name: value})


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DreamBooth from folder to saved model, and what is refused before any work."""
    weights_loader.save(small_pipeline(), tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    images.save(images.to_pil(training_images("a cat").pixels[:1])[0], tmp_path / "pictures" / "a.png")
    where = ["--pictures", str(tmp_path / "pictures"), "--start-from", str(tmp_path / "model"), "--steps", "2"]
    subject = [*where, "--prompt", "a sks cat", "--batch", "2"]

    def train(stage: str, *arguments: str) -> tuple[int, str]:
        code = main(["train", stage, str(tmp_path / "run"), *arguments])
        return code, capsys.readouterr().err

    of_class = ["--class-prompt", "a cat"]
    (tmp_path / "run" / "lora.safetensors").mkdir(parents=True)
    for arguments, message in (
        (["full", "--prompt", "a cat"], "full needs --pictures FOLDER and --start-from MODEL"),
        (["dreambooth", *subject], "dreambooth needs --class-prompt, such as 'a photo of a dog'"),
        (
            ["embedding", *subject, "--token", "sks", "--like", "cat", "--seed", "1"],
            "--seed is for full, dreambooth, lora",
        ),
        (["embedding", *subject[:-2], "--token", "sks", "--like", "cat", "--batch", "0"], "--batch is 0, expected a"),
        (["vae", *subject], "--pictures is for full, dreambooth, lora, embedding, distill, not for vae; remove it"),
        (["embedding", *subject[:-2], "--text-encoder"], "--text-encoder is for full, dreambooth, lora, not for emb"),
        (["full", *subject, "--rank", "3"], "--rank is for lora, not for full"),
        (["full", *subject, "--prior-weight", "3"], "--prior-weight is for images of a class; give --class-prompt"),
        (["full", *subject, *of_class, "--class-images", "3", "--class-pictures", "x"], "were both given"),
        (["dreambooth", *subject, "--class-prompt", " "], "--class-prompt is empty"),
        (["dreambooth", *subject, "--class-prompt", "a sks cat"], "the class is called 'a sks cat' like the subject"),
        (["full", *where, "--prompt", "a cat", "--batch", "0"], "--batch is 0, expected a whole number in 1.."),
        (["full", *where, "--prompt", "a cat", "--min-snr", "-1"], "--min-snr is -1.0, expected a number"),
        (["lora", *subject, *of_class], "lora.safetensors"),  # it is a folder
    ):
        code, error = train(*arguments)
        assert code > 0, error
        assert message in error
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lora.safetensors"]  # no image was drawn

    more = ["--class-images", "2", "--sample", "a sks cat"]
    assert train("dreambooth", *subject, *of_class, *more)[0] == 0
    assert Image.open(tmp_path / "run" / "samples.png").width == 4 * 32 + 3 * 2
    (kept,) = (tmp_path / "run").glob("class-*")
    assert sorted(path.name for path in kept.iterdir()) == ["00000.png", "00001.png"]
    changed = weights_loader.load(tmp_path / "run" / "dreambooth")
    assert not torch.equal(changed.unet.conv_in.weight, small_pipeline().unet.conv_in.weight.half().float())
    assert train("full", *subject, "--text-encoder", "--gradient-checkpointing")[0] == 0
    trained = weights_loader.load(tmp_path / "run" / "full").text_encoder.token_embedding.weight
    assert not torch.equal(trained, small_pipeline().text_encoder.token_embedding.weight.half().float())
    again = ["full", *subject[:3], str(tmp_path / "run" / "full"), *subject[4:]]
    code, error = train(*again)
    assert code == 2
    assert "is the model to start from, and would be replaced" in error
    before = sorted(kept.iterdir())
    assert train("dreambooth", *subject, *of_class, "--class-images", "4", "--seed", "7")[0] > 0  # another seed
    assert sorted(kept.iterdir()) == before  # refused before images were drawn


def test_the_images_have_the_size_of_the_unet(tmp_path: Path) -> None:
    """A VAE of another size, as in some official models, does not matter."""
    sd = small_pipeline()
    sd.vae.config = replace(sd.vae.config, sample_size=48)
    assert training_side(sd) == 32
    sd.defaults = Defaults(num_inference_steps=1)
    assert class_images(sd, "a dog", 1, tmp_path).pixels.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bfloat16_keeps_the_loss_in_float32(
    checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast, as on a CPU with instructions for it; the second computation has the same attention."""
    monkeypatch.setattr(trainer, "computes_in", lambda dtype, device: True)
    sd, losses = small_pipeline(), []
    monkeypatch.setattr(fine_tuning, "denoising_losses", _noting(losses))
    settings = Settings(batch=2, autocast="bfloat16", gradient_checkpointing=checkpointing, accumulation=2)
    lines: list[str] = []
    train_full(sd, training_images("a cat"), steps_of(tmp_path / "run.pt", 1, lines.append), settings)
    assert float(lines[-1].rsplit(" ", 1)[1]) == pytest.approx(torch.cat(losses).mean().item(), abs=1e-4)


def _noting(losses: list[torch.Tensor]) -> Callable[..., torch.Tensor]:
    def noted(*arguments: object) -> torch.Tensor:
        losses.append(denoising_losses(*arguments))  # type: ignore[arg-type]
        return losses[-1]

    return noted


def test_models_that_training_would_spoil_are_refused(tmp_path: Path) -> None:
    half, guided = small_pipeline().to(dtype=torch.bfloat16), small_pipeline()
    guided.unet = guided_student(guided.unet, width=8)
    for sd, message in ((half, "are bfloat16, expected float32"), (guided, "has learned guidance")):
        for train in (train_full, train_lora):
            with pytest.raises(InputError, match=message):
                train(sd, training_images("a cat"), steps_of(tmp_path / "run.pt", 1))


def test_settings_take_the_numbers_of_numpy(tmp_path: Path) -> None:
    settings = Settings(batch=np.int64(1), learning_rate=np.float32(0.5), seed=np.int64(3))
    assert json.loads(json.dumps(asdict(settings)))["batch"] == 1
    with pytest.raises(InputError, match="text_encoder is 'no', expected True or False"):
        Settings(text_encoder="no")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="autocast is 'half', expected one of bfloat16, float16, or None"):
        Settings(autocast="half")
