"""The colours of Sticker World, and their perceptual distance (CIE Lab, CIEDE2000)."""

import math

import torch
from torch import Tensor

# Pairwise CIEDE2000 >= 20, and >= 25 to every background, so that no two are confused.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "orange": (250, 130, 0),
    "yellow": (255, 232, 0),
    "green": (0, 150, 50),
    "cyan": (0, 205, 215),
    "blue": (20, 81, 220),
    "purple": (141, 19, 159),
    "pink": (255, 99, 190),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "beige": (225, 205, 185),
}
PALETTE = COLOURS | BACKGROUNDS
# Their contrast to white is below 3:1, the least for graphics (WCAG 2.1, 1.4.11).
PALE = ("orange", "yellow", "cyan", "pink")


def rgb(names: list[str], device: torch.device | str = "cpu") -> Tensor:
    """Named colours as sRGB (N, 3) in [-1, 1], the range of all images here."""
    return torch.tensor([PALETTE[name] for name in names], dtype=torch.float32, device=device) / 127.5 - 1


def lab(pixels: Tensor) -> Tensor:
    """CIE L*a*b* (D65) of sRGB in [-1, 1].  (..., 3) -> (..., 3).

    Source: IEC 61966-2-1 for sRGB, CIE 15 for Lab.
    """
    srgb = (pixels.float().clamp(-1, 1) + 1) / 2
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = linear.new_tensor(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = linear @ (to_xyz / to_xyz.sum(1, keepdim=True)).T  # relative to white
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=1e-9) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def delta_e(first: Tensor, second: Tensor) -> Tensor:
    """CIEDE2000 difference of two Lab colours, (..., 3) and (..., 3) broadcast -> (...).

    A difference of 1 is just visible, two colours above 20 are never confused. Sharma, Wu, Dalal 2005, eq. 2 to 22.
    """
    (l1, a1, b1), (l2, a2, b2) = first.unbind(-1), second.unbind(-1)
    c7 = ((torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2) ** 7
    stretch = 1.5 - 0.5 * torch.sqrt(c7 / (c7 + 25.0**7))
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = torch.atan2(b1, a1), torch.atan2(b2, a2)  # a gray has no hue: its chroma 0 removes the term

    turn = torch.remainder(h2 - h1 + math.pi, 2 * math.pi) - math.pi  # the short way round
    gray = c1 * c2 == 0
    hue = torch.where(gray, h1 + h2, h1 + turn / 2)
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    d_l, d_c = l2 - l1, c2 - c1
    d_h = 2 * torch.sqrt(c1 * c2) * torch.sin(turn / 2)

    degrees = math.pi / 180
    weight = (
        1
        - 0.17 * torch.cos(hue - 30 * degrees)
        + 0.24 * torch.cos(2 * hue)
        + 0.32 * torch.cos(3 * hue + 6 * degrees)
        - 0.20 * torch.cos(4 * hue - 63 * degrees)
    )
    s_l = 1 + 0.015 * (lightness - 50) ** 2 / torch.sqrt(20 + (lightness - 50) ** 2)
    s_c = 1 + 0.045 * chroma
    s_h = 1 + 0.015 * chroma * weight
    hue_degrees = torch.remainder(hue / degrees, 360)
    c7 = chroma**7
    blue = 60 * degrees * torch.exp(-(((hue_degrees - 275) / 25) ** 2))
    rotation = -2 * torch.sqrt(c7 / (c7 + 25.0**7)) * torch.sin(blue)
    light, c, h = d_l / s_l, d_c / s_c, d_h / s_h
    return torch.sqrt((light * light + c * c + h * h + rotation * c * h).clamp(min=0))


PALETTE_LAB = lab(rgb(list(PALETTE)))


def pixel_differences(image: Tensor, known: Tensor = PALETTE_LAB) -> Tensor:
    """CIEDE2000 of each pixel of an image (3, H, W) to each of K Lab colours (K, 3) -> (H, W, K)."""
    return delta_e(lab(image.movedim(0, -1))[..., None, :], known)
