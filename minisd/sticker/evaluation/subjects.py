"""Measure DreamBooth: how often a model draws a subject in contexts that it was not trained in."""

from tqdm import tqdm

from minisd import images
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.judging import BATCH, Rate
from minisd.sticker.world.subject import contexts, shows_context


def measure_subject(
    sd: StableDiffusion, seed: int, steps: int | None = None, repeats: int = 1, label: str | None = None
) -> Rate:
    """The rate of right images of a sks shape in each of the 50 contexts; repeats: images of each context."""
    wanted, right = contexts() * repeats, 0
    for k in tqdm(range(0, len(wanted), BATCH), desc=label, leave=False, disable=None if label else True):
        some = wanted[k : k + BATCH]
        drawn = sd([each.prompt for each in some], seed=seed + k, num_inference_steps=steps).images
        pairs = zip(drawn, some, strict=True)
        right += sum(shows_context(images.from_pil(image)[0], context) for image, context in pairs)
    return Rate(right, len(wanted))
