"""Word heat maps: how strongly each position of the image attends to a word, in the UNet (Tang et al. 2023).

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
from minisd.interpret.text_vectors import token_span
from minisd.models import UNet
from minisd.models.layers import Attention
from minisd.models.unet import TransformerBlock
from minisd.pipeline import StableDiffusion


class LayerMap(NamedTuple):
    """The attention weights of one cross-attention layer in one call of the UNet.

    level: how many times the latents' size is halved there; part: "down", "middle" or "up". weights (B, h, w, L): of
    each position to each of the L tokens, averaged over heads; they sum to 1 over the tokens.
    """

    step: int
    level: int
    part: str
    weights: Tensor


class AttentionMaps:
    """The attention of one run: `maps` holds one LayerMap for each layer and step, `heat_map` averages them."""

    def __init__(self, sd: StableDiffusion, every: int = 1) -> None:
        self.tokenizer = sd.tokenizer
        self.every = validation.whole_number(every, "every", 1, 10**6)
        self.maps: list[LayerMap] = []
        self.clear()

    def clear(self) -> None:
        """Remove all maps, before another run in the same block."""
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
        """The attention to a word in one image of the run, 0 to 1: (h, w), the latents' size.

        The weights are summed over the tokens of the word, resized to the latents' size (bilinear) and averaged over
        layers and steps. picture: the index of the image. prompt: the prompt of that image. step, level, part: use
        only the maps with this value; `maps` lists them. Other arguments: see token_span.
        Raises InputError for a word that is not in the prompt, and if nothing was recorded.
        """
        span = token_span(self.tokenizer, prompt, word, occurrence)
        if not self.maps:
            raise InputError("no attention was recorded; call sd(...) inside `with record_attention(sd) as maps:`.")
        wanted = {"step": step, "level": level, "part": part}
        chosen = [each for each in self.maps if all(v in (None, getattr(each, k)) for k, v in wanted.items())]
        if not chosen:
            known = ", ".join(f"{k} {_listed({getattr(each, k) for each in self.maps})}" for k in wanted)
            raise InputError(f"no map has step {step}, level {level} and part {part}; the maps have {known}.")
        picture = validation.whole_number(picture, "picture", 0, len(chosen[0].weights) - 1)
        length = chosen[0].weights.shape[-1]
        if span.stop > length:
            raise InputError(f"{word!r} is token {span.stop - 1} of the prompt, but the run had {length} tokens.")
        summed = [each.weights[picture, :, :, span.start : span.stop].sum(-1) for each in chosen]
        return torch.stack([_resize(each, self._size, "bilinear") for each in summed]).mean(0)

    def _begin_call(self, module: UNet, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        latents = args[0] if args else kwargs["latents"]
        pictures, size = len(latents), (latents.shape[2], latents.shape[3])
        if self._calls and (pictures, size) != (self._pictures, self._size):
            raise InputError("this run has images of another number or size than the last one; call maps.clear().")
        self._calls, self._pictures, self._size = self._calls + 1, pictures, size

    def _add(self, level: int, part: str, weights: Tensor) -> None:
        """Keep weights (rows, heads, N, L); with guidance, the rows of the prompts come last."""
        step = self._calls - 1
        if step % self.every == 0:
            size = self._size
            for _ in range(level):
                size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
            mean = weights.detach()[-self._pictures :].float().mean(1).unflatten(1, size)
            self.maps.append(LayerMap(step, level, part, mean.cpu()))


@contextmanager
def record_attention(sd: StableDiffusion, every: int = 1) -> Iterator[AttentionMaps]:
    """Record the cross-attention of one run of a pipeline inside the block.

    The image stays the same, bit for bit: the recorded weights are computed separately. every: keep every k-th call of
    the UNet; all 50 calls of one SD 1.5 image of 512 x 512 take 400 MB. Blocks may be nested. Raises InputError.
    """
    maps = AttentionMaps(sd, every)
    handle = sd.unet.register_forward_pre_hook(maps._begin_call, with_kwargs=True)
    try:
        with attention_weights(sd.unet, maps._add):
            yield maps
    finally:
        handle.remove()


@contextmanager
def attention_weights(unet: UNet, callback: Callable[[int, str, Tensor], None]) -> Iterator[None]:
    """Call `callback(level, part, weights)` with the weights (B, heads, N, L) of every cross-attention in this block.

    Blocks may be nested: callbacks set outside are called first, and are restored at the end.
    """

    def both(before: Callable[[Tensor], None] | None, level: int, part: str, weights: Tensor) -> None:
        if before is not None:
            before(weights)
        callback(level, part, weights)

    layers = [(*each, each[2].on_weights) for each in _cross_attentions(unet)]
    for level, part, attention, before in layers:
        attention.on_weights = partial(both, before, level, part)
    try:
        yield
    finally:
        for _, _, attention, before in layers:
            attention.on_weights = before


def overlay(picture: Image.Image, heat_map: Tensor, strength: float = 0.6) -> Image.Image:
    """A grey image with a heat map (h, w) of any size over it, bright where it is highest.

    strength: 1 hides the image, 0 the heat map. Raises InputError for another shape, NaN and infinity.
    """
    from matplotlib import colormaps  # imported here because it takes a second

    strength = validation.real_number(strength, "strength", 0, 1)
    if heat_map.ndim != 2 or not torch.isfinite(heat_map).all():
        raise InputError(f"the heat map has the shape {tuple(heat_map.shape)}, expected (h, w) with finite values.")
    heat = resize_map(heat_map, (picture.height, picture.width))
    spread = max(float(heat.max() - heat.min()), 1e-3 * float(heat.abs().max()), 1e-12)  # hides noise of a flat map
    heat = (heat - heat.min()) / spread
    colours = Image.fromarray(colormaps["magma"](heat.numpy(), bytes=True)).convert("RGB")
    return Image.blend(picture.convert("L").convert("RGB"), colours, strength)


def resize_map(heat_map: Tensor, size: tuple[int, int]) -> Tensor:
    """A heat map (h, w) at another size (height, width), by bicubic interpolation."""
    return _resize(heat_map.float(), size, "bicubic")


def _resize(values: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return F.interpolate(values[None, None], size=size, mode=mode, align_corners=False)[0, 0]


def _cross_attentions(unet: UNet) -> list[tuple[int, str, Attention]]:
    """Level, part and module of all layers that attend to the text, in the order in which they run."""
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
