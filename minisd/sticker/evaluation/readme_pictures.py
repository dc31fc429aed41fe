"""The pictures of the README, drawn by the embedded model: its loop, heat maps, styles, tasks, adapters."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

import weights_loader
from minisd import images
from minisd.interpret.attention_maps import overlay, record_attention
from minisd.interpret.film import Film
from minisd.sticker.world.render import depth, render
from minisd.sticker.world.scene import Scene, Thing
from weights_loader.sources import EMBEDDED

PROMPT = "a red circle above a blue square"
BEIGE = "on a beige background"
STYLE_PROMPTS = [
    "a large yellow star sticker",
    "an outlined purple square above a red heart sticker",
    "three cyan diamond stickers",
    "a green heart in front of an orange square",
    "a blue circle behind a pink cross",
    "a red star in front of a purple circle on a black background",
]
GIVEN = Scene(
    (Thing("circle", "red", "large", 0.32, 0.36, 0.19), Thing("square", "blue", "small", 0.76, 0.74, 0.09)), "beige"
)
HOLE = (4, 6, 38, 42)  # left, top, right, below: around the circle


def draw() -> dict[str, Image.Image]:
    """Each picture by the name of its file."""
    return {f"{picture.__name__}.png": picture() for picture in (film, heat_maps, styles, tasks, adapters)}


def film() -> Image.Image:
    """x_t above, predicted x0 below, of every second step."""
    sd = weights_loader.load(EMBEDDED)
    kept = Film(sd, every=2)
    for _ in kept.watch(sd.denoise(PROMPT, seed=3)):
        pass
    return kept.strip()


def heat_maps() -> Image.Image:
    """A picture, and where it looks at two of its words."""
    sd = weights_loader.load(EMBEDDED)
    with record_attention(sd) as maps:
        picture = sd(PROMPT, seed=3).images[0].resize((192, 192), Image.Resampling.LANCZOS)
    heat = [overlay(picture, maps.heat_map(word, PROMPT)) for word in ("circle", "square")]
    return images.image_grid([picture, *heat], 3, gap=4)


def styles() -> Image.Image:
    """Things outlined, as stickers and in front of others."""
    drawn = weights_loader.load(EMBEDDED)(STYLE_PROMPTS, seed=1).images
    return images.image_grid(drawn, len(drawn), gap=2)


def tasks() -> Image.Image:
    """Above what is given, below what is drawn."""
    pixels = render([GIVEN])
    given, near = images.to_pil(pixels)[0], depth([GIVEN])
    small = F.interpolate(pixels, size=(16, 16), mode="area")
    left, top, right, below = HOLE
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., top:below, left:right] = 1
    framed = given.copy()
    ImageDraw.Draw(framed).rectangle((left, top, right - 1, below - 1), outline="black")
    plain, inpainting, by_depth, larger = (
        weights_loader.load(f"{EMBEDDED}{task}") for task in ("", "-inpainting", "-depth", "-upscaling")
    )
    drawn = [
        plain(f"a large purple heart above a small blue square {BEIGE}", image=given, strength=0.8, seed=2),
        inpainting(
            f"a large green star to the left of a small blue square {BEIGE}", image=given, mask_image=mask, seed=1
        ),
        by_depth("an orange circle above a green square on a black background", depth_map=near, seed=1),
        larger(f"a large red circle above a small blue square {BEIGE}", image=small, noise_level=0, seed=1),
    ]
    shown = [given, framed, *(images.to_pil(each)[0] for each in (2 * near.expand(-1, 3, -1, -1) - 1, small))]
    titles = ["--image --strength", "--mask", "--depth", "--upscale"]
    return _titled([*shown, *(output.images[0] for output in drawn)], titles)


def adapters() -> Image.Image:
    """The same prompts and seeds, above without, below with a word or a LoRA."""
    sd, folder = weights_loader.load(EMBEDDED), weights_loader.resolve(EMBEDDED) / "adapters"
    words, things = ["a {} above a blue square", "a large {}"], ["a red square", "a cyan heart"]
    above = sd([text.format("star") for text in words], seed=1).images + sd(things, seed=3).images
    weights_loader.load_embedding(sd, folder / "candy.safetensors")
    below = sd([text.format("<candy>") for text in words], seed=1).images
    weights_loader.load_lora(sd, folder / "night.safetensors")
    below += sd(things, seed=3).images
    return _titled([*above, *below], ["star, <candy>", "star, <candy>", "--lora night", "--lora night"])


def _titled(pictures: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Pictures in columns, all at 128 pixels; a title above each column."""
    grid = images.image_grid(
        [each.convert("RGB").resize((128, 128), Image.Resampling.NEAREST) for each in pictures], len(titles), gap=6
    )
    sheet = Image.new("RGB", (grid.width, grid.height + 16), "white")
    sheet.paste(grid, (0, 16))
    for k, title in enumerate(titles):
        ImageDraw.Draw(sheet).text((k * 134 + 4, 2), title, fill="black")
    return sheet
