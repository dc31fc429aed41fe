"""Images of a class, drawn by the model as it is: what DreamBooth trains beside the images of a subject."""

from collections.abc import Callable
from pathlib import Path

import torch

from minisd import images
from minisd._internal import validation
from minisd._internal.atomic_folders import make_folder
from minisd._internal.large_tensors import gathered
from minisd._internal.messages import shown
from minisd.errors import InputError
from minisd.pipeline import StableDiffusion
from minisd.training.captioned_images import CaptionedImages, read_captioned_images
from minisd.training.denoising import training_side
from minisd.training.run_files import fingerprint

DRAWN_AT_ONCE = 4
BLANK = 0.01  # standard deviation of the pixels, in [-1, 1]: blank images of the embedded model have 0.001, others 0.1
FEWEST, SHARE = 20, 0.1  # after so many images, this share must show something


def class_images(
    sd: StableDiffusion,
    prompt: str,
    count: int,
    folder: Path,
    report: Callable[[str], None] = lambda line: None,
) -> CaptionedImages:
    """`count` images of a class, such as "a photo of a dog", of the size of the training.

    They are kept in a folder within `folder`, whose name depends on the model and the prompt: what is there is not
    drawn again, so an interrupted call goes on. Blank images, which show nothing of the class, are left out, and others
    are drawn in their place. Raises InputError, also for a prompt that gives hardly any others, and OutputError for a
    folder that cannot be written.
    """
    (prompt,) = validation.prompts(prompt, "class_prompt")
    if not prompt.strip():
        raise InputError("class_prompt is empty, expected the name of the class, such as 'a photo of a dog'.")
    count = validation.whole_number(count, "class_images", 1, 100_000)
    kept = folder / f"class-{fingerprint(sd.unet, sd.vae, sd.text_encoder, prompt)}"
    make_folder(kept)
    total = count
    while True:
        _draw_missing(sd, prompt, [kept / f"{seed:05d}.png" for seed in range(total)], report)
        pixels = read_captioned_images(kept, training_side(sd), prompt).pixels[:total]
        rows = (pixels.flatten(1).std(1) >= BLANK).nonzero().flatten().tolist()
        if len(rows) == count:
            break
        if total >= FEWEST and len(rows) < SHARE * total:
            raise InputError(
                f"class_prompt is {shown(prompt)}, for which {total - len(rows)} of {total} images are blank; choose "
                "another prompt, or give images of the class."
            )
        total += count - len(rows)
    if blank := total - count:
        report(f"class images: {blank} of {total} are blank and left out")
    return CaptionedImages(gathered((pixels[row : row + 1] for row in rows), count), [prompt] * count)


def _draw_missing(sd: StableDiffusion, prompt: str, paths: list[Path], report: Callable[[str], None]) -> None:
    """Draw the images that do not exist yet; the name of each is its seed."""
    missing = [path for path in paths if not path.exists()]
    for begin in range(0, len(missing), DRAWN_AT_ONCE):
        some = missing[begin : begin + DRAWN_AT_ONCE]
        generators = [torch.Generator().manual_seed(int(path.stem)) for path in some]
        drawn = sd(prompt, generator=generators, num_images_per_prompt=len(some)).images
        for image, path in zip(drawn, some, strict=True):
            images.save(image, path)
        report(f"class images: {begin + len(some)} of {len(missing)} drawn")
