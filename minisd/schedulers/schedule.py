"""The noise schedule: how much image and how much noise x holds at each timestep, and what the model predicts.

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps        (Ho et al. 2020, equation 4)

The same x in sigma space (k-diffusion) is x_t / sqrt(alpha_bar_t) = x_0 + sigma_t eps.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from minisd._internal.messages import shown
from minisd.errors import InputError

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

# Replaces alpha_bar = 0, where sigma would be infinite, by sigma 4096, as in the reference.
SMALLEST_ALPHA_BAR = 2.0**-24
SMALLEST_BETA = 1e-12  # a level with no noise at all has no sigma


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for the two half precisions, whose rounding would be visible in images; else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def is_number(value: object) -> bool:
    """Whether the value is a finite int or float; a bool is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def is_whole_number(value: object) -> bool:
    """Whether the value is an int; a bool is not."""
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class NoiseSchedule:
    """T noise levels, and what the model predicts; the fields are keys of scheduler_config.json.

    The defaults are those of SD 1.x. beta_schedule: "linear"; "scaled_linear", linear in sqrt(beta), which the
    original code calls linear; "squaredcos_cap_v2", the cosine of Nichol and Dhariwal 2021. trained_betas replaces
    all three. rescale_betas_zero_snr moves the last level to pure noise (Lin et al. 2024, algorithm 1).
    prediction_type: "epsilon" (the noise), "v_prediction" (Salimans and Ho 2022), "sample" (x_0).
    Raises InputError for other values. All tensors are float64, on the CPU, of shape (T,).
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    num_train_timesteps: int = 1000
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"

    def __post_init__(self) -> None:
        if self.beta_schedule not in BETA_SCHEDULES:
            raise InputError(
                f"beta_schedule is {shown(self.beta_schedule)}, expected one of {', '.join(BETA_SCHEDULES)}."
            )
        if self.prediction_type not in PREDICTION_TYPES:
            raise InputError(
                f"prediction_type is {shown(self.prediction_type)}, expected one of {', '.join(PREDICTION_TYPES)}."
            )
        if not isinstance(self.rescale_betas_zero_snr, bool):
            raise InputError(f"rescale_betas_zero_snr is {shown(self.rescale_betas_zero_snr)}, expected True or False.")
        steps = self.num_train_timesteps
        if not is_whole_number(steps) or not 1 <= steps <= 65536:
            raise InputError(f"num_train_timesteps is {shown(steps)}, expected a whole number in 1..65536.")
        if self.rescale_betas_zero_snr and steps < 2:
            raise InputError("num_train_timesteps is 1, expected at least 2 with rescale_betas_zero_snr.")
        if self.trained_betas is not None:
            if not isinstance(self.trained_betas, list | tuple) or len(self.trained_betas) != steps:
                raise InputError(
                    f"trained_betas is not a list of num_train_timesteps = {steps} numbers; give one, or None."
                )
            object.__setattr__(self, "trained_betas", tuple(self.trained_betas))  # a list cannot be hashed
        for beta in (self.beta_start, self.beta_end, *(self.trained_betas or ())):
            if not is_number(beta) or not SMALLEST_BETA <= beta < 1:
                raise InputError(
                    f"a beta of the noise schedule is {shown(beta)}, expected a number from {SMALLEST_BETA} to below 1."
                )

    @cached_property
    def betas(self) -> Tensor:
        """(T,) float64: the share of the variance that each timestep replaces with noise."""
        betas = self._plain_betas()
        if not self.rescale_betas_zero_snr:
            return betas
        roots = torch.cumprod(1 - betas, 0).sqrt()
        alpha_bars = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
        return 1 - torch.cat([alpha_bars[:1], alpha_bars[1:] / alpha_bars[:-1]])

    def _plain_betas(self) -> Tensor:
        steps, first, last = self.num_train_timesteps, self.beta_start, self.beta_end
        if self.trained_betas is not None:
            return torch.tensor(self.trained_betas, dtype=torch.float64)
        if self.beta_schedule == "linear":
            return torch.linspace(first, last, steps, dtype=torch.float64)
        if self.beta_schedule == "scaled_linear":
            return torch.linspace(math.sqrt(first), math.sqrt(last), steps, dtype=torch.float64) ** 2
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        alpha_bars = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - alpha_bars[1:] / alpha_bars[:-1]).clamp(max=0.999)

    @cached_property
    def alpha_bars(self) -> Tensor:
        """(T,) float64: the share of the image in the variance at each timestep, the product of 1 - beta."""
        return torch.cumprod(1 - self.betas, 0)

    @cached_property
    def sigmas(self) -> Tensor:
        """(T,) float64: the ratio of noise to image, sqrt((1 - alpha_bar) / alpha_bar), ascending and finite."""
        alpha_bars = self.alpha_bars.clamp(min=SMALLEST_ALPHA_BAR)
        return ((1 - alpha_bars) / alpha_bars).sqrt()

    def alpha_bar(self, t: int, clean: float = 1.0) -> float:
        """alpha_bars[t] as a Python float; `clean` for t below 0, the end of a run."""
        return self.alpha_bars[t].item() if t >= 0 else clean

    def add_noise(self, x0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """x_t of x0 and noise, both (B, ...), at timestep t: an int, or an int64 tensor () or (B,)."""
        signal, sigma = self._mix(x0, t)
        return (signal * x0.to(signal.dtype) + sigma * noise.to(signal.dtype)).to(x0.dtype)

    def velocity(self, x0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans and Ho 2022); arguments as for add_noise."""
        signal, sigma = self._mix(x0, t)
        return (signal * noise.to(signal.dtype) - sigma * x0.to(signal.dtype)).to(x0.dtype)

    def target(self, x0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """The correct model output for add_noise(x0, noise, t), by prediction_type; arguments as for add_noise."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return self.velocity(x0, noise, t)
        return x0

    def x0_and_eps(self, x: Tensor, output: Tensor, alpha_bar: float) -> tuple[Tensor, Tensor]:
        """The image and the noise that the model's output implies for x at level alpha_bar; all (B, ...).

        The inverse of `target`. Raises InputError at alpha_bar 0 with prediction_type "epsilon": pure noise holds
        no image.
        """
        signal, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        if self.prediction_type == "v_prediction":
            return signal * x - sigma * output, signal * output + sigma * x
        if self.prediction_type == "sample":
            return output, (x - signal * output) / sigma
        if signal == 0:
            raise InputError(
                "prediction_type is 'epsilon', expected 'v_prediction' or 'sample': this timestep is pure noise "
                "(rescale_betas_zero_snr); check the model's config."
            )
        return (x - sigma * output) / signal, output

    def _mix(self, x0: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped and placed to multiply x0."""
        index = torch.as_tensor(t, device="cpu")  # the table is on the CPU: not every device has float64
        if index.is_floating_point() or index.dtype == torch.bool or index.ndim > 1:
            raise InputError(f"timestep is {t!r}, expected a whole number, or one for each image of the batch.")
        if index.ndim == 1 and len(index) not in (1, len(x0)):
            raise InputError(
                f"timestep has {len(index)} values, expected 1 or {len(x0)}, one for each image of the batch."
            )
        if not bool(((index >= 0) & (index < self.num_train_timesteps)).all()):
            raise InputError(f"timestep is {t!r}, expected values in 0..{self.num_train_timesteps - 1}.")
        alpha_bar = self.alpha_bars[index].reshape(-1, *[1] * (x0.ndim - 1))
        dtype = compute_dtype(x0.dtype)
        return alpha_bar.sqrt().to(x0.device, dtype), (1 - alpha_bar).sqrt().to(x0.device, dtype)
