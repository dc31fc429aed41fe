"""Imagic: the losses of its stages, the mix of the states, an image that comes back, runs that continue."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from support.runs import check_killed_runs
from support.small import small_pipeline
from support.training_images import training_images

import weights_loader
from minisd import images
from minisd.cli import main
from minisd.editing import imagic
from minisd.editing.imagic import Edit, Settings, default_settings, draw_edit, train_edit
from minisd.errors import InputError, ResumeError

FEW = Settings(state_steps=4, unet_steps=4, state_rate=1e-2, unet_rate=1e-2, batch=2, rank=2)
IMAGE = training_images("a cat", 1).pixels


@pytest.mark.parametrize("sd2", [False, True])
def test_the_loss_of_each_stage(sd2: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 1 is the loss with the states of the prompt, stage 2 with the optimised ones and the changed UNet."""
    sd, losses = small_pipeline(sd2), []
    monkeypatch.setattr(imagic, "train", lambda model, loss, *others: losses.append(loss) or model)
    train_edit(sd, IMAGE, "a red cat", tmp_path, FEW)
    values = [loss(torch.Generator().manual_seed(3), 0.0) for loss in losses]
    generator = torch.Generator().manual_seed(3)
    t = torch.randint(1000, (2,), generator=generator)
    with torch.no_grad():
        x0 = (sd.vae.encode(IMAGE).mean * sd.vae.config.scaling_factor).expand(2, -1, -1, -1)
        noise = torch.randn(x0.shape, generator=generator)
        x = sd.scheduler.schedule.add_noise(x0, noise, t)
        predicted = sd.unet(x, t, sd.text_encoder(sd.tokenizer(["a red cat"] * 2)))
        expected = (predicted - sd.scheduler.schedule.target(x0, noise, t)).square().mean().item()
    assert [value.item() for value in values] == pytest.approx([expected] * 2, rel=1e-5)  # nothing is trained yet
    for value in values:
        value.backward()
    assert all(p.grad is None for network in (sd.unet, sd.text_encoder, sd.vae) for p in network.parameters())


def test_the_mix_of_the_states() -> None:
    edit = Edit(torch.full((1, 2, 3), 4.0), torch.zeros(1, 2, 3), {})
    assert [edit.states(eta)[0, 0, 0].item() for eta in (0, 0.25, 1, 1.5)] == [0, 1, 4, 6]
    with pytest.raises(InputError, match="eta is 'x'"):
        edit.states("x")  # type: ignore[arg-type]


def test_the_image_comes_back_and_the_model_stays(tmp_path: Path) -> None:
    """Training makes the predictions for this image better; nothing of the pipeline is left changed."""
    sd = small_pipeline()
    before = [p.clone() for p in (*sd.unet.parameters(), *sd.text_encoder.parameters())]
    lines: list[str] = []
    settings = Settings(state_steps=20, unet_steps=40, state_rate=1e-2, unet_rate=1e-2, batch=4)
    edit = train_edit(sd, IMAGE, "a red cat", tmp_path, settings, lines.append)
    assert edit.prompt.shape == edit.optimised.shape == (1, 77, 64)
    assert not torch.equal(edit.prompt, edit.optimised)
    first, tuned = (float(line.rsplit(" ", 1)[1]) for line in (lines[0], lines[-1]))
    assert tuned < 0.9 * first
    options = {"num_inference_steps": 2, "output_type": "pt", "guidance_scale": 1.0}
    images = draw_edit(sd, edit, [0, 0.5, 1], seed=4, **options).images
    assert len(images) == 3
    assert torch.allclose(images[1], draw_edit(sd, edit, [0.5], seed=4, **options).images[0], atol=1e-5)
    after = (*sd.unet.parameters(), *sd.text_encoder.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    plain = sd(prompt_embeds=edit.prompt, seed=4, **options).images[0]
    assert (images[2] - plain).abs().max() > 1e-3  # the UNet is tuned for the drawing


def test_killed_runs_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagic, "_recipe", lambda rate, seed: imagic.Recipe(rate, 10, ema_decay=0.9, seed=seed))
    settings = Settings(state_steps=12, unet_steps=12, batch=1, rank=2)

    def train_to(path: Path) -> dict[str, torch.Tensor]:
        edit = train_edit(small_pipeline(), IMAGE, "a red cat", path.with_suffix(""), settings)
        torch.save({"model": {"states": edit.optimised}}, path)
        return {"states": edit.optimised, **{name: part.up for name, part in edit.changes.items()}}

    check_killed_runs(train_to, tmp_path, monkeypatch)


def test_a_run_of_another_image_or_prompt_is_not_continued(tmp_path: Path) -> None:
    train_edit(small_pipeline(), IMAGE, "a red cat", tmp_path, FEW)
    with pytest.raises(ResumeError, match="prompt is 'a dog', was 'a red cat'"):
        train_edit(small_pipeline(), IMAGE, "a dog", tmp_path, FEW)
    with pytest.raises(ResumeError, match="image is"):
        train_edit(small_pipeline(), -IMAGE, "a red cat", tmp_path, FEW)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a model for inpainting"):
        train_edit(small_pipeline(in_channels=9), IMAGE, "a cat", tmp_path)
    with pytest.raises(InputError, match=r"the image has the shape \(2, 3, 16, 16\)"):
        train_edit(small_pipeline(), IMAGE.repeat(2, 1, 1, 1), "a cat", tmp_path)
    for name, value in (("state_steps", 0), ("unet_rate", 0.0), ("rank", 0), ("seed", -1)):
        with pytest.raises(InputError, match=f"{name} is {value}"):
            Settings(**{name: value})
    assert default_settings(small_pipeline()) == imagic.SMALL
    assert [*tmp_path.iterdir()] == []


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A row of images; the second call only draws; what is refused before any work."""
    monkeypatch.setattr("minisd.editing.imagic.SMALL", FEW)
    weights_loader.save(small_pipeline(), tmp_path / "model")
    images.save(images.to_pil(IMAGE)[0], tmp_path / "in.png")
    command = ["edit", "a red cat", "--model", str(tmp_path / "model"), "--image", str(tmp_path / "in.png")]
    assert main(command) == 0
    assert Image.open(tmp_path / "in-edited.png").size[0] == 5 * 32 + 4 * 4
    assert {path.name for path in (tmp_path / "in-a-red-cat").glob("*.pt")} == {"states.pt", "unet.pt"}
    written = (tmp_path / "in-a-red-cat" / "unet.pt").stat().st_mtime_ns
    assert main([*command, "--eta", "0.7", "-o", str(tmp_path / "one.png")]) == 0
    assert Image.open(tmp_path / "one.png").size == (32, 32)
    assert (tmp_path / "in-a-red-cat" / "unet.pt").stat().st_mtime_ns == written
    capsys.readouterr()
    for arguments, message in (
        ([*command, "--eta", "0,x"], "'x' is not a number"),
        ([*command, "--eta", "99"], "--eta is 99.0, expected a number in -10..10"),
        (command[:4], "edit needs --image FILE"),
        ([*command, "-o", str(tmp_path / "one.png")], "exists"),
        (["edit", "a dog", *command[2:], "--steps", "0"], "--steps is 0"),
        ([*command, "--training-steps", "5"], "--training-steps is '5', expected those of both stages, as 500,1000"),
        ([*command, "--training-steps", "5,0"], "--training-steps is 0, expected a whole number in 1.."),
        ([*command, "--training-steps", "5,x"], "'x' is not a whole number"),
        (["edit", "a dog", *command[2:], "--seed", "-1"], "--seed is -1"),
        ([*command, "--folder", str(tmp_path / "in.png")], "in.png"),
    ):
        assert main(arguments) > 0
        assert message in capsys.readouterr().err
    assert not (tmp_path / "in-a-dog").exists()
