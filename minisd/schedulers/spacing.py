"""Which of the T training timesteps a run of n steps visits: three spacings, and the noise levels of Karras et al.

Every spacing returns n float64 values, descending, within 0..T-1; only `linspace` has fractions. The values are
those of the reference implementation without its off-by-one errors: for T = 1000 the reference returns n + 1
`trailing` timesteps for 62 values of n (61, 103, 121, ...), and t = T in `leading` with an offset at n = T.
"""

import numpy as np
from numpy.typing import NDArray

from minisd._internal import validation
from minisd.errors import InputError

SPACINGS = ("leading", "linspace", "trailing")

Floats = NDArray[np.float64]


def validate_steps(n: object, num_train_timesteps: int = 1000) -> int:
    """The number of sampling steps as an int; InputError unless it is whole and in 1..num_train_timesteps."""
    return validation.whole_number(n, "num_inference_steps", 1, num_train_timesteps)


def leading(n: int, total: int, offset: int = 0) -> Floats:
    """Multiples of T // n from 0 up, plus an offset; never reaches pure noise (SD 1 and 2, DDIM paper)."""
    top = (n - 1) * (total // n)
    return np.arange(n, dtype=np.float64)[::-1] * (total // n) + min(offset, total - 1 - top)


def linspace(n: int, total: int) -> Floats:
    """n values from T - 1 to 0, both included (k-diffusion)."""
    return np.linspace(0, total - 1, n)[::-1].copy()


def trailing(n: int, total: int) -> Floats:
    """From T - 1 down in steps of T / n; starts at pure noise (Lin et al. 2024, table 2)."""
    return np.arange(float(total), 0, -total / n)[:n].round() - 1  # [:n]: rounding can add a value at 0


def spaced_timesteps(spacing: str, n: int, total: int, offset: int = 0) -> Floats:
    """The n timesteps of a spacing, out of `total`; the offset is for `leading` only."""
    if spacing == "leading":
        return leading(n, total, offset)
    if spacing == "linspace":
        return linspace(n, total)
    if spacing == "trailing":
        return trailing(n, total)
    raise InputError(f"timestep_spacing is {spacing!r}, expected one of {', '.join(SPACINGS)}.")


def karras_sigmas(sigma_max: float, sigma_min: float, n: int, rho: float = 7.0) -> Floats:
    """n noise levels, evenly spaced in sigma^(1/rho) (Karras et al. 2022, equation 5)."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + np.linspace(0, 1, n) * (low - high)) ** rho


def timesteps_of(sigmas: Floats, table: Floats) -> Floats:
    """The fractional timesteps of noise levels, by the T levels of the training (`table`, ascending)."""
    return np.interp(np.log(sigmas), np.log(table), np.arange(len(table), dtype=np.float64))


def sigmas_at(timesteps: Floats, table: Floats) -> Floats:
    """The noise levels of fractional timesteps, linear between the T levels of the training (`table`, ascending)."""
    return np.interp(timesteps, np.arange(len(table)), table)
