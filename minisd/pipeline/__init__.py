"""Stable Diffusion as a pipeline: encode the prompt, denoise step by step, decode the image."""

from minisd.pipeline.arguments import Defaults
from minisd.pipeline.denoising import DenoisingStep
from minisd.pipeline.stable_diffusion import LOW_RES, Callback, Output, OutputType, StableDiffusion
from minisd.pipeline.views import View, view_grid

__all__ = [
    "LOW_RES", "Callback", "Defaults", "DenoisingStep", "Output", "OutputType", "StableDiffusion", "View", "view_grid",
]  # fmt: skip
