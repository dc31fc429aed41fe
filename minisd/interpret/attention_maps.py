"""Word heat maps: how much each place of the picture looks at a word, by the UNet's cross-attention (Tang et al. 2023).

with record_attention(sd) as maps:
    picture = sd(prompt, seed=1).images[0]
overlay(picture, maps.heat_map("circle", prompt)).save("circle.png")
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minisd._internal import validation
from minisd.errors import InputError
from minisd.interpret import words
from minisd.models import UNet
from minisd.models.layers import Attention
from minisd.models.unet import TransformerBlock
from minisd.pipeline import StableDiffusion


class LayerMap(NamedTuple):
    """What one cross-attention layer looked at in one call of the UNet.

    level: how often the latents' size is halved there; part: "down", "middle" or "up". share (B, h, w, L): how much
    each place looks at each of the L tokens, mean over heads; sums to 1 over the tokens.
    """

    step: int
    level: int
    part: str
    share: Tensor


class AttentionMaps:
    """The maps of one run: `maps` are those of single layers and steps, `heat_map` is their mean for a word."""

    def __init__(self, sd: StableDiffusion, every: int = 1) -> None:
        self.tokenizer = sd.tokenizer
        self.every = validation.whole_number(every, "every", 1, 10**6)
        self.maps: list[LayerMap] = []
        self.clear()

    def clear(self) -> None:
        """Forget everything, for another run in the same block."""
        self.maps.clear()
        self._calls, self._pictures, self._size = 0, 0, (0, 0)

    def heat_map(
        self,
        word: str,
        prompt: str,
        picture: int = 0,
        occurrence: int = 0,
        step: int | None = None,
        level: int | None = None,
        part: str | None = None,
    ) -> Tensor:
        """Where picture `picture` of the run, made from `prompt`, looks at a word: (h, w), the latents' size.

        A place's share of attention, 0 to 1: summed over the tokens of the word, enlarged to the latents' size
        (bilinear), then the mean over heads, layers and steps. step, level, part: only of that call of the UNet, of
        that level, of that way through it; see `maps` for which there are. Other arguments: words.find.
        Raises InputError for a word that is not there, and where nothing was recorded.
        """
        places = words.find(self.tokenizer, prompt, word, occurrence)
        if not self.maps:
            raise InputError("no attention was recorded; run sd(...) inside of `with record_attention(sd) as maps:`.")
        wanted = {"step": step, "level": level, "part": part}
        chosen = [each for each in self.maps if all(v in (None, getattr(each, k)) for k, v in wanted.items())]
        if not chosen:
            there = ", ".join(f"{k} {_listed({getattr(each, k) for each in self.maps})}" for k in wanted)
            raise InputError(f"no map is of step {step}, level {level} and part {part}; there are {there}.")
        picture = validation.whole_number(picture, "picture", 0, len(chosen[0].share) - 1)
        length = chosen[0].share.shape[-1]
        if places.stop > length:
            raise InputError(f"{word!r} stands at token {places.stop - 1} of the prompt, the run had {length} tokens.")
        shares = [each.share[picture, :, :, places.start : places.stop].sum(-1) for each in chosen]
        return torch.stack([_resized(share, self._size) for share in shares]).mean(0)

    def _begin_call(self, module: UNet, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        latents = args[0] if args else kwargs["latents"]
        pictures, size = len(latents), (latents.shape[2], latents.shape[3])
        if self._calls and (pictures, size) != (self._pictures, self._size):
            raise InputError("another run begins, with pictures of another number or size; call clear() on the maps.")
        self._calls, self._pictures, self._size = self._calls + 1, pictures, size

    def _add(self, level: int, part: str, before: Callable[[Tensor], None] | None, weights: Tensor) -> None:
        """Weights (rows, heads, N, L); with guidance, the rows of the prompts come last."""
        if before is not None:
            before(weights)
        step = self._calls - 1
        if step % self.every == 0:
            size = self._size
            for _ in range(level):
                size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
            share = weights.detach()[-self._pictures :].float().mean(1).unflatten(1, size)
            self.maps.append(LayerMap(step, level, part, share.cpu()))


@contextmanager
def record_attention(sd: StableDiffusion, every: int = 1) -> Iterator[AttentionMaps]:
    """Keep what the cross-attention of a pipeline looks at, while one run is made inside of the block.

    The picture stays the same, bit for bit: the weights are computed beside what makes it. every: keeps every k-th
    call of the UNet; all 50 of one SD 1.5 picture of 512 x 512 take 400 MB. Blocks may be nested. Raises InputError.
    """
    maps = AttentionMaps(sd, every)
    watched = [(attention, attention.watch) for _, _, attention in _cross_attentions(sd.unet)]
    handle = sd.unet.register_forward_pre_hook(maps._begin_call, with_kwargs=True)
    try:
        for level, part, attention in _cross_attentions(sd.unet):
            attention.watch = partial(maps._add, level, part, attention.watch)
        yield maps
    finally:
        handle.remove()
        for attention, before in watched:
            attention.watch = before


def overlay(picture: Image.Image, heat_map: Tensor, strength: float = 0.6) -> Image.Image:
    """A heat map (h, w), of any size, over a picture in grey, bright where most; strength 1 hides the picture.

    Raises InputError for another shape, NaN and infinity.
    """
    from matplotlib import colormaps  # here, because it takes a second to load

    strength = validation.real_number(strength, "strength", 0, 1)
    if heat_map.ndim != 2 or not torch.isfinite(heat_map).all():
        raise InputError(f"the heat map has the shape {tuple(heat_map.shape)}, expected (h, w) with finite values.")
    heat = enlarged(heat_map, (picture.height, picture.width))
    reach = max(float(heat.max() - heat.min()), 1e-3 * float(heat.abs().max()), 1e-12)  # a flat map shows no noise
    heat = (heat - heat.min()) / reach
    colours = Image.fromarray(colormaps["magma"](heat.numpy(), bytes=True)).convert("RGB")
    return Image.blend(picture.convert("L").convert("RGB"), colours, strength)


def enlarged(heat_map: Tensor, size: tuple[int, int]) -> Tensor:
    """A heat map (h, w) at another size (height, width), smoothly (bicubic)."""
    return _resized(heat_map.float(), size, "bicubic")


def _resized(values: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    return F.interpolate(values[None, None], size=size, mode=mode, align_corners=False)[0, 0]


def _cross_attentions(unet: UNet) -> list[tuple[int, str, Attention]]:
    """Level, part and module of all layers that look at the text, in the order in which they run."""
    last = len(unet.down) - 1
    stages: list[tuple[int, str, nn.Module]] = [(level, "down", stage) for level, stage in enumerate(unet.down)]
    stages += [(last, "middle", unet.middle), *((last - k, "up", stage) for k, stage in enumerate(unet.up))]
    found = []
    for level, part, stage in stages:
        for block in stage.modules():
            if isinstance(block, TransformerBlock):
                layers = [block.attention1] if block.only_cross_attention else []
                found += [(level, part, each) for each in [*layers, block.attention2]]
    return found


def _listed(values: set[Any]) -> str:
    return ", ".join(map(str, sorted(values)))
