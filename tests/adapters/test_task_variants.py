"""Variants of a model: equal to the model at first; merged, saved and loaded; trained on the pipeline's own inputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import steps_of
from torch import Tensor

import weights_loader
from minisd.adapters.task_variants import EXTRA_CHANNELS, RANK, Variant, apply_variant, variant_from_tensors
from minisd.errors import InputError, MismatchError
from minisd.pipeline import StableDiffusion
from minisd.sticker.training import task_variants
from minisd.sticker.training.dataset import training_scenes
from minisd.sticker.training.task_variants import inpainting_masks, make_task_pool, train_variant
from minisd.sticker.world.captions import parse_caption, sample_caption
from minisd.sticker.world.render import depth, draw_layers, masks, render
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import Object, Scene
from weights_loader.sources import EMBEDDED_TASKS

SIDE = 128  # pixels of the embedded model's images


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return weights_loader.load("sticker")


def task_arguments(task: str, scenes: list) -> dict[str, Any]:
    """The arguments of a call for the task."""
    pixels = render(scenes, SIDE)
    if task == "inpainting":
        return {"image": pixels, "mask_image": inpainting_masks(scenes, SIDE, torch.Generator().manual_seed(3))}
    if task == "depth":
        return {"depth_map": depth(scenes, SIDE)}
    return {"image": torch.nn.functional.interpolate(pixels, size=(16, 16), mode="area"), "noise_level": 0}


def randomised(sd: StableDiffusion, task: str) -> Variant:
    variant = Variant(sd.unet, task)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in variant.parameters():
            each.copy_(0.1 * torch.randn(each.shape, generator=generator))
    return variant


@pytest.mark.parametrize("task", ["depth", "upscaling"])
def test_a_new_variant_generates_the_images_of_its_model(sd: StableDiffusion, task: str) -> None:
    """Except inpainting: there the noise comes after that of the masked image, as in the reference."""
    other = apply_variant(sd, Variant(sd.unet, task))
    assert other.task == task
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    common: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent", "latents": noise}
    expected = sd("a red circle", **common).images
    got = other("a red circle", **common, **task_arguments(task, training_scenes(1, 0))).images
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_merged_is_the_sum(sd: StableDiffusion) -> None:
    before = {name: weight.clone() for name, weight in sd.unet.state_dict().items()}
    variant = randomised(sd, "inpainting")
    after = apply_variant(sd, variant).unet.state_dict()
    name = "down.1.resnets.0.conv1.weight"
    i = variant.names.index(name)
    change = torch.einsum("or,rn->on", variant.up[i], variant.down[i]).view(before[name].shape)
    assert torch.allclose(after[name], before[name] + change, atol=1e-6)
    assert torch.equal(after["conv_in.weight"][:, :4], before["conv_in.weight"])
    assert torch.equal(after["conv_in.weight"][:, 4:], variant.beside)
    assert all(torch.equal(weight, before[name]) for name, weight in sd.unet.state_dict().items())
    linear = variant.names.index("middle.transformer.blocks.0.attention2.q.weight")
    assert variant.up[linear].shape == (128, RANK)


@pytest.mark.parametrize("task", EXTRA_CHANNELS)
def test_a_variant_is_saved_and_loaded(sd: StableDiffusion, task: str, tmp_path: Path) -> None:
    variant = randomised(sd, task)
    again = variant_from_tensors(sd.unet, task, variant.state_dict())
    other = apply_variant(sd, again)
    scenes = training_scenes(1, 0)
    common = {"seed": 1, "num_inference_steps": 2, "output_type": "pt", **task_arguments(task, scenes)}
    expected = other("a red circle", **common).images
    weights_loader.save(other, tmp_path / "model")
    torch.testing.assert_close(
        weights_loader.load(tmp_path / "model")("a red circle", **common).images, expected, atol=1e-5, rtol=1e-5
    )
    with pytest.raises(MismatchError, match="not the"):
        variant_from_tensors(sd.unet, "depth" if task != "depth" else "inpainting", variant.state_dict())


@pytest.mark.parametrize("task", EXTRA_CHANNELS)
def test_training_inputs_equal_the_inputs_of_the_pipeline(sd: StableDiffusion, task: str) -> None:
    scenes = training_scenes(2, 5)
    seen: list[Tensor] = []
    other = apply_variant(sd, Variant(sd.unet, task))
    other.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0][:, 4:]))
    other(["a shape"] * 2, seed=1, num_inference_steps=1, output_type="latent", **task_arguments(task, scenes))
    taught = make_task_pool(sd.vae, task, scenes, torch.Generator().manual_seed(3)).condition
    tolerance = {"depth": 1e-5, "inpainting": 0.5, "upscaling": 0.1}[task]  # drawn noise is in two of them
    assert seen[0].shape == taught.shape
    assert (seen[0] - taught).abs().max() < tolerance
    if task == "inpainting":
        assert torch.equal(seen[0][:, :1], taught[:, :1])


def test_depth_is_nearest_in_the_middle_of_an_object() -> None:
    scenes = [scene_from_seed(seed) for seed in range(4)]  # flat and apart
    near, cover = depth(scenes)[:, 0], masks(scenes).amax(1)
    assert near[cover == 0].max() == 0
    assert near[cover == 1].min() >= 0.5
    assert near.flatten(1).amax(1).min() > 0.7
    assert near.max() <= 1


def test_holes_are_boxes_that_hide_something() -> None:
    scenes = training_scenes(60, 9)
    boxes = inpainting_masks(scenes, 64, torch.Generator().manual_seed(0))
    assert boxes.unique().tolist() == [0, 1]
    assert (boxes.flatten(1).sum(1) > 0).all()
    whole = sum(
        bool((cover.amax(0) * (1 - box[0])).max() == 0) for cover, box in zip(masks(scenes), boxes, strict=True)
    )
    assert 10 < whole < 60  # all of the things hidden


def test_a_box_around_a_sticker_hides_its_shadow() -> None:
    obj = Object("star", "red", "medium", 0.5, 0.5, 0.13, "sticker")
    scenes = [Scene((obj,), "gray")] * 60
    paint, _, shadow = (each[0, 0] for each in draw_layers(scenes[:1]))
    boxes = inpainting_masks(scenes, 64, torch.Generator().manual_seed(0))[:, 0]
    hiding = [box for box in boxes if (paint * (1 - box)).max() == 0]
    assert len(hiding) > 40
    betrayed = sum(bool((shadow * (1 - box)).max() > 0) for box in hiding)
    assert betrayed <= 2  # by boxes that lie anywhere


def test_training_is_repeatable_and_leaves_the_model_alone(sd: StableDiffusion, tmp_path: Path) -> None:
    before = sd.unet.conv_out.weight.clone()
    runs = (steps_of(tmp_path / name, 3) for name in ("a.pt", "b.pt"))
    one, two = (train_variant(sd, "upscaling", run, pool=4, batch=2) for run in runs)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one.beside.abs().max() > 0
    assert one.up[0].abs().max() > 0
    assert one.noise_levels.abs().max() > 0
    assert torch.equal(sd.unet.conv_out.weight, before)


def test_they_have_names() -> None:
    assert set(EMBEDDED_TASKS.values()) == set(EXTRA_CHANNELS)


@pytest.mark.parametrize("name", EMBEDDED_TASKS)
def test_the_embedded_ones_do_their_task(name: str) -> None:
    sd = weights_loader.load(name)
    assert sd.task == EMBEDDED_TASKS[name]
    scenes = training_scenes(12, 11)
    prompts = [sample_caption(scene, torch.Generator().manual_seed(0)) for scene in scenes]
    pictures = sd(prompts, seed=1, num_inference_steps=8, output_type="pt", **task_arguments(sd.task, scenes)).images
    expected = render(scenes, SIDE)
    error = (pictures - expected).square().mean().item()
    others = (pictures.roll(1, 0) - expected).square().mean().item()
    assert error < 0.5 * others  # what is given is looked at


def test_unknown_tasks(sd: StableDiffusion) -> None:
    with pytest.raises(InputError, match="no variant 'colouring'"):
        Variant(sd.unet, "colouring")


def test_captions_are_true_of_the_pool(sd: StableDiffusion) -> None:
    pool = make_task_pool(sd.vae, "depth", training_scenes(3, 1), torch.Generator())
    assert len(pool.scenes) == len(pool.latents) == len(pool.condition) == 3
    assert all(sample_caption(scene, torch.Generator().manual_seed(0)) for scene in pool.scenes)


def test_depth_is_learned_from_pairs_whose_captions_often_leave_out_how_they_stand() -> None:
    scenes = task_variants._related_pairs(60, seed=3)
    assert all(scene.relation is not None for scene in scenes)
    assert len(scenes) == 60
    generator = torch.Generator().manual_seed(0)
    shares = {
        task: sum(
            parse_caption(task_variants._caption(scene, task, generator)).relation is not None for scene in scenes
        )
        / 60
        for task in ("depth", "upscaling")
    }
    assert shares["depth"] < 0.7 * shares["upscaling"]
    assert shares["depth"] > 0.1
