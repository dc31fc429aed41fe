"""Several pictures from one: noise is drawn in the reference's order, from one generator or one for each."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.course_cells import SCHEDULE, alike, picture
from support.small import oracle_pipeline

from minisd import course

PROMPTS = ["a red circle", "a blue square", "a red square"]


def mask() -> Image.Image:
    return Image.fromarray(np.pad(np.full((16, 16), 255, np.uint8), 8))


@pytest.fixture(scope="module")
def models(tmp_path_factory: Any) -> dict[int, dict[str, Any]]:
    """By input channels: a small pipeline of the reference, and of the courses, with the same weights."""
    found = {}
    for channels in (4, 9):
        folder = tmp_path_factory.mktemp("models")
        pipe = oracle_pipeline(folder / "tokenizer", in_channels=channels)
        pipe.save_pretrained(folder / "model")
        mine = course.StableDiffusionPipeline.from_pretrained(folder / "model")
        found[channels] = {"theirs": pipe.components, "ours": mine.components}
    return found


CASES = {
    "image": ("StableDiffusionImg2ImgPipeline", {"strength": 0.7}),
    "inpainting, 4 channels": ("StableDiffusionInpaintPipeline", {"mask_image": mask()}),
    "inpainting, 4 channels, strength": ("StableDiffusionInpaintPipeline", {"mask_image": mask(), "strength": 0.6}),
    "inpainting, 9 channels": ("StableDiffusionInpaintPipeline", {"mask_image": mask()}),
    "inpainting, 9 channels, strength": ("StableDiffusionInpaintPipeline", {"mask_image": mask(), "strength": 0.6}),
}


@pytest.mark.parametrize(
    ("case", "batch", "noise"),
    [(case, batch, "global") for case in CASES for batch in (3, "prompts", "prompts and images")]
    + [(case, 2, "one generator") for case in CASES]
    + [("image", 2, "a list"), ("image", "prompts", "a list"), ("image", 1, "one generator")],
)
def test_as_the_reference(
    ours: Any, theirs: Any, models: dict[int, dict[str, Any]], case: str, batch: int | str, noise: str
) -> None:
    name, options = CASES[case]
    count = batch if isinstance(batch, int) else 3

    def draw(lib: Any, parts: dict[str, Any]) -> list[Image.Image]:
        pipe = getattr(lib, name)(**parts, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = lib.DDIMScheduler(**SCHEDULE, clip_sample=False)
        images: Any = picture(32)
        if batch == "prompts and images":
            images = [picture(32), picture(32).rotate(90), picture(32).rotate(180)]
        torch.manual_seed(1000)
        generator = {
            "global": None,
            "one generator": torch.Generator().manual_seed(4),
            "a list": [torch.Generator().manual_seed(seed) for seed in range(count)],
        }[noise]
        return pipe(
            PROMPTS if isinstance(batch, str) else PROMPTS[0],
            image=images,
            num_images_per_prompt=1 if isinstance(batch, str) else batch,
            num_inference_steps=2,
            generator=generator,
            **({"height": 32, "width": 32} if "inpainting" in case else {}),
            **options,
        ).images

    parts = models[9 if "9 channels" in case else 4]
    alike(draw(ours, parts["ours"]), draw(theirs, parts["theirs"]))
