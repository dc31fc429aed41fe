"""The names and call shapes of the public Stable Diffusion courses, so that their cells run unchanged.

    from minisd.course import AutoencoderKL, CLIPTextModel, CLIPTokenizer, LMSDiscreteScheduler, UNet2DConditionModel
    from minisd.course import StableDiffusionPipeline, logging

    pipe = StableDiffusionPipeline.from_pretrained("sticker")
    pipe("a red circle", callback=latents_callback, callback_steps=12).images[0]

This layer only renames: `pipe.vae.core`, `pipe.unet.core`, `pipe.scheduler.core`, ... are minisd's own. Habits of the
courses that the modules do not have are kept here: a scheduler that remembers where its run is, noise from torch's
global generator where none is given, so that `torch.manual_seed` before a call counts, a callback that gets latents in
the dtype of the weights.
"""

from types import SimpleNamespace

from minisd.course.component import Component
from minisd.course.networks import AutoencoderKL, UNet2DConditionModel
from minisd.course.output import Output
from minisd.course.pipelines import (
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from minisd.course.pixels import DDPMPipeline, UNet2DModel
from minisd.course.scheduler import CourseScheduler
from minisd.course.schedulers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from minisd.course.text import CLIPTextModel
from minisd.course.tokens import CLIPTokenizer

# The lessons hush the other library's log; minisd keeps none.
logging = SimpleNamespace(set_verbosity_error=lambda: None, set_verbosity_warning=lambda: None)

__all__ = [
    "AutoencoderKL",
    "CLIPTextModel",
    "CLIPTokenizer",
    "Component",
    "CourseScheduler",
    "DDIMScheduler",
    "DDPMPipeline",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "Output",
    "PNDMScheduler",
    "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionPipeline",
    "UNet2DConditionModel",
    "UNet2DModel",
    "UniPCMultistepScheduler",
    "logging",
]
