"""SDXL's size conditioning: numbers about the image that the UNet reads beside the pooled text embedding."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minisd._internal.messages import shown
from minisd._internal.validation import real_number, whole_number
from minisd.errors import InputError
from minisd.models.unet import sinusoids

Size = tuple[int, int]


@dataclass(frozen=True)
class MicroConditioning:
    """SDXL's size conditioning (Podell et al. 2023, section 2.2).

    Sizes are (height, width) in pixels; None means the size of the requested image. crop is (top, left). A small
    original_size asks for a blurred image, a crop for an image that is cut off. The refiner reads an aesthetic score
    from 0 to 10 in place of the target size; the negative prompt has its own score.
    """

    original_size: Size | None = None
    crop: Size = (0, 0)
    target_size: Size | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5

    def __post_init__(self) -> None:
        for name, least in (("original_size", 1), ("target_size", 1), ("crop", 0)):
            pair = getattr(self, name)
            if pair is None and name != "crop":
                continue
            pair = pair.tolist() if hasattr(pair, "tolist") else pair  # of NumPy or torch
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise InputError(f"{name} is {shown(pair)}, expected two whole numbers such as (1024, 1024).")
            object.__setattr__(self, name, tuple(whole_number(side, name, least, 1_000_000) for side in pair))
        for name in ("aesthetic_score", "negative_aesthetic_score"):
            object.__setattr__(self, name, real_number(getattr(self, name), name, 0, 10))

    def resolved_for(self, height: int, width: int) -> "MicroConditioning":
        """The same for an image of this size in pixels, with no size left open."""
        own = (height, width)
        return replace(self, original_size=self.original_size or own, target_size=self.target_size or own)

    def as_vector(self, count: int, negative: bool = False) -> list[float]:
        """The numbers in the UNet's order: six for the base model, five for the refiner."""
        if self.original_size is None or self.target_size is None:
            raise InputError("the sizes are open; call resolved_for(height, width) first.")
        score = self.negative_aesthetic_score if negative else self.aesthetic_score
        return [*self.original_size, *self.crop, *(self.target_size if count == 6 else (score,))]


def append_sizes(pooled: Tensor, sizes: Sequence[Sequence[float]], width: int) -> Tensor:
    """Pooled text (B, P) and N numbers for each row -> (B, P + N width); each number becomes `width` sinusoids."""
    rows = torch.tensor(sizes, dtype=torch.float32, device=pooled.device)
    return torch.cat([pooled, sinusoids(rows.flatten(), width).reshape(len(rows), -1).to(pooled.dtype)], dim=1)
