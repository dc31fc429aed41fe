"""Hugging Face diffusion course, units 1 and 2: models of pixels without text, with both libraries."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.course_cells import alike, close
from support.small import randomise
from torch import nn

from minisd.errors import InputError, MismatchError

BUTTERFLIES = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}


@pytest.fixture
def pretrained(theirs: Any, tmp_path: Path) -> str:
    """A pipeline that the reference saved, as on the hub."""
    unet = randomise(theirs.UNet2DModel(**BUTTERFLIES))
    theirs.DDPMPipeline(unet, theirs.DDPMScheduler(beta_schedule="squaredcos_cap_v2")).save_pretrained(tmp_path)
    return str(tmp_path)


def test_generating_from_noise(ours: Any, theirs: Any, pretrained: str) -> None:
    """The first cell of the course: load and generate."""

    def cell(lib: Any) -> Any:
        pipe = lib.DDPMPipeline.from_pretrained(pretrained).to("cpu")
        pipe.set_progress_bar_config(disable=True)
        return pipe(batch_size=3, num_inference_steps=8, generator=torch.Generator().manual_seed(1)).images

    alike(cell(ours), cell(theirs))


def test_the_global_generator_is_used(ours: Any, theirs: Any, pretrained: str) -> None:
    def cell(lib: Any) -> Any:
        pipe = lib.DDPMPipeline.from_pretrained(pretrained)
        pipe.set_progress_bar_config(disable=True)
        torch.manual_seed(5)
        return torch.from_numpy(pipe(num_inference_steps=4, output_type="np").images)

    close(cell(ours), cell(theirs))


def test_another_sampler(ours: Any, theirs: Any, pretrained: str) -> None:
    """Unit 2: the same network with DDIM, in a loop with x and x0, then in the pipeline."""

    def cell(lib: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        pipe = lib.DDPMPipeline.from_pretrained(pretrained)
        pipe.set_progress_bar_config(disable=True)
        scheduler = lib.DDIMScheduler.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(num_inference_steps=5)
        x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
        for t in scheduler.timesteps:
            with torch.no_grad():
                output = pipe.unet(scheduler.scale_model_input(x, t), t)["sample"]
            step = scheduler.step(output, t, x)
            x, x0 = step.prev_sample, step.pred_original_sample
        pipe.scheduler = scheduler
        return x, x0, pipe(num_inference_steps=5, generator=torch.Generator().manual_seed(4)).images

    (x, x0, images), (x_, x0_, images_) = cell(ours), cell(theirs)
    close(x, x_)
    close(x0, x0_)
    alike(images, images_)


def test_training_learns(ours: Any) -> None:
    """The training loop of unit 1: noise is predicted from noised images, `return_dict=False`, AdamW."""
    torch.manual_seed(0)
    model = ours.UNet2DModel(**BUTTERFLIES).to("cpu")
    noise_scheduler = ours.DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    clean = torch.linspace(-1, 1, 16).expand(8, 3, 16, 16)
    losses = []
    for _ in range(30):
        noise = torch.randn(clean.shape)
        timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (8,)).long()
        noisy = noise_scheduler.add_noise(clean, noise, timesteps)
        loss = F.mse_loss(model(noisy, timesteps, return_dict=False)[0], noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    model.eval()


def test_a_unet_inside_another_module(ours: Any) -> None:
    """The class-conditioned network of unit 2: labels are additional channels."""

    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.class_emb = nn.Embedding(10, 4)
            self.model = ours.UNet2DModel(**{**BUTTERFLIES, "in_channels": 5, "out_channels": 1})

        def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            extra = self.class_emb(labels)[:, :, None, None].expand(-1, -1, *x.shape[2:])
            return self.model(torch.cat([x, extra], 1), t).sample

    net = Conditioned()
    net(torch.randn(2, 1, 16, 16), torch.tensor([3, 900]), torch.tensor([1, 7])).mean().backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    assert len(gradients) > 50
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)


@torch.no_grad()
def test_labels(ours: Any) -> None:
    model = randomise(ours.UNet2DModel(**BUTTERFLIES, num_class_embeds=3))
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([5, 900])
    one, other = (model(x, t, class_labels=torch.tensor(labels)).sample for labels in ([0, 1], [0, 2]))
    assert torch.equal(one[0], other[0])
    assert (one[1] - other[1]).abs().max() > 1e-3


def test_a_saved_pipeline_loads_in_both(ours: Any, theirs: Any, pretrained: str, tmp_path: Path) -> None:
    pipe = ours.DDPMPipeline.from_pretrained(pretrained)
    pipe.save_pretrained(tmp_path / "mine")
    again = ours.DDPMPipeline(unet=pipe.unet, scheduler=pipe.scheduler)
    results = [
        each(num_inference_steps=3, generator=torch.Generator().manual_seed(2)).images
        for each in (
            again,
            ours.DDPMPipeline.from_pretrained(str(tmp_path / "mine")),
            theirs.DDPMPipeline.from_pretrained(str(tmp_path / "mine")),
        )
    ]
    alike(results[0], results[1])
    alike(results[0], results[2])
    assert pipe.scheduler.config["beta_schedule"] == "squaredcos_cap_v2"
    unet = ours.UNet2DModel.from_pretrained(tmp_path / "mine" / "unet")
    assert unet.config == pipe.unet.config
    assert unet.config.sample_size == 16


def test_bad_input(ours: Any, pretrained: str, model: str) -> None:
    pipe = ours.DDPMPipeline.from_pretrained(pretrained)
    with pytest.raises(InputError, match="channels, expected"):
        ours.UNet2DModel(channels=(32, 64))
    with pytest.raises(InputError, match="batch_size"):
        pipe(batch_size=0)
    with pytest.raises(InputError, match="output_type"):
        pipe(output_type="latent")
    with pytest.raises(InputError, match="expected a UNet2DModel"):
        ours.DDPMPipeline(pipe.unet.core, pipe.scheduler)
    with pytest.raises(InputError, match="UNet2DConditionModel"):
        ours.UNet2DModel.from_pretrained(model, subfolder="unet")
    with pytest.raises(MismatchError, match="expected a StableDiffusionPipeline"):
        ours.StableDiffusionPipeline.from_pretrained(pretrained)
