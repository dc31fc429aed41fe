"""DDIMPipeline of pixel models, and the blocks of UNet2DModel, against the reference."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.course_cells import alike, close
from support.small import randomise
from torch import nn

from minisd.errors import InputError

SMALL = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}


@pytest.fixture
def folder(theirs: Any, tmp_path: Path) -> str:
    unet = randomise(theirs.UNet2DModel(**SMALL))
    theirs.DDPMPipeline(unet, theirs.DDPMScheduler(beta_schedule="squaredcos_cap_v2")).save_pretrained(tmp_path)
    return str(tmp_path)


def load(lib: Any, folder: str) -> Any:
    pipe = lib.DDIMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def images(pipe: Any, **options: Any) -> torch.Tensor:
    return torch.from_numpy(pipe(2, seeded(), num_inference_steps=4, output_type="np", **options).images)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim_of_pixels(ours: Any, theirs: Any, folder: str, eta: float) -> None:
    """The folder has a DDPM scheduler; the pipeline takes DDIM with its config. Noise is drawn with eta alone."""
    pipe, expected = load(ours, folder), images(load(theirs, folder), eta=eta)
    assert type(pipe.scheduler) is ours.DDIMScheduler
    assert expected.std() > 0.05
    close(images(pipe, eta=eta), expected, 1e-5)
    if eta:
        assert (images(pipe) - expected).abs().max() > 0.01


def test_the_defaults_of_ddim(ours: Any, theirs: Any, folder: str) -> None:
    """50 steps without noise, from torch's global generator, as PIL images; eta is the third argument."""
    results = []
    for lib in (ours, theirs):
        pipe = load(lib, folder)
        torch.manual_seed(3)
        results.append(pipe().images)
        assert len(pipe.scheduler.timesteps) == 50
        results.append(pipe(1, seeded(), 0.5, 3, return_dict=False)[0])
    alike(results[0], results[2])
    alike(results[1], results[3])


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "DDIMScheduler"])
def test_a_scheduler_given_to_ddim(ours: Any, theirs: Any, folder: str, name: str) -> None:
    """Another sampler's schedule is kept; x0 is clipped if its config does not say otherwise."""
    betas = {"beta_schedule": "linear", "beta_end": 0.03, "num_train_timesteps": 400}
    results = []
    for lib in (ours, theirs):
        unet = lib.UNet2DModel.from_pretrained(folder, subfolder="unet")
        pipe = lib.DDIMPipeline(unet=unet, scheduler=getattr(lib, name)(**betas))
        pipe.set_progress_bar_config(disable=True)
        results.append(images(pipe))
    close(*results, 1e-5)


def test_a_foreign_part_of_ddim(ours: Any) -> None:
    with pytest.raises(InputError, match="scheduler is 'DDIM', expected one of DDIMScheduler"):
        ours.DDIMPipeline(ours.UNet2DModel(**SMALL), "DDIM")


def same_weights(mine: nn.Module, other: nn.Module, names: tuple[str, ...]) -> None:
    for name in names:
        a, b = getattr(mine, name), getattr(other, name)
        assert torch.equal(a.weight, b.weight)
        assert torch.equal(a.bias, b.bias)


def test_the_blocks(ours: Any, theirs: Any, folder: str) -> None:
    """The layers under the reference's names hold the weights that the reference has there."""
    mine, other = (lib.UNet2DModel.from_pretrained(folder, subfolder="unet") for lib in (ours, theirs))
    for way, name in (("down_blocks", "downsamplers"), ("up_blocks", "upsamplers")):
        assert len(getattr(mine, way)) == len(getattr(other, way)) == 3
        for a, b in zip(getattr(mine, way), getattr(other, way), strict=True):
            for one, two in zip(a.resnets, b.resnets, strict=True):
                same_weights(one, two, ("norm1", "conv1", "norm2", "conv2"))
            found, expected = getattr(a, name), getattr(b, name)
            assert (found is None) == (expected is None)
            for one, two in zip(found or (), expected or (), strict=True):
                same_weights(one, two, ("conv",))
            assert getattr(a, "upsamplers" if name == "downsamplers" else "downsamplers") is None
    same_weights(mine, other, ("conv_in", "conv_out"))


def test_the_first_weights_of_the_course(ours: Any, theirs: Any, folder: str) -> None:
    """course22p2's `init_ddpm`: zeros in the last layers, orthogonal downsampling; written in place."""

    @torch.no_grad()
    def cell(lib: Any) -> torch.Tensor:
        model = lib.UNet2DModel.from_pretrained(folder, subfolder="unet")
        x = torch.randn(2, 3, 8, 8, generator=seeded())
        before = model(x, torch.tensor([3, 900])).sample
        for block in model.down_blocks:
            for resnet in block.resnets:
                resnet.conv2.weight.data.zero_()
            for layer in block.downsamplers or []:
                layer.conv.weight.data.copy_(
                    torch.linspace(-1, 1, layer.conv.weight.numel()).view_as(layer.conv.weight)
                )
        for block in model.up_blocks:
            for resnet in block.resnets:
                resnet.conv2.weight.data.zero_()
        after = model(x, torch.tensor([3, 900])).sample
        assert (after - before).abs().max() > 0.1
        model.conv_out.weight.data.zero_()
        assert model(x, torch.tensor([3, 900])).sample.std((0, 2, 3)).max() < 1e-6
        return after

    close(cell(ours), cell(theirs), 1e-5)
