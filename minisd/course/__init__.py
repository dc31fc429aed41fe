"""The names and call shapes of the public Stable Diffusion courses, so that their cells run unchanged.

    from minisd.course import AutoencoderKL, CLIPTextModel, CLIPTokenizer, LMSDiscreteScheduler, UNet2DConditionModel
    from minisd.course import StableDiffusionPipeline, logging

    pipe = StableDiffusionPipeline.from_pretrained("sticker")
    pipe("a red circle", callback=latents_callback, callback_steps=12).images[0]

These classes only wrap minisd's own, which are `pipe.vae.core`, `pipe.unet.core`, `pipe.scheduler.core`, ... They add
what the courses expect: a scheduler remembers the current step of its run; noise comes from torch's global generator if
no generator is given, so `torch.manual_seed` works; a callback gets latents in the dtype of the weights.
"""

from types import SimpleNamespace

from minisd.course.component import CourseComponent, CourseOutput
from minisd.course.networks import AutoencoderKL, UNet2DConditionModel
from minisd.course.pipelines import (
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from minisd.course.pixels import DDIMPipeline, DDPMPipeline, UNet2DModel
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
from minisd.course.training_helpers import (
    CLIPFeatureExtractor,
    StableDiffusionSafetyChecker,
    get_cosine_schedule_with_warmup,
    get_scheduler,
)

# The courses silence the log of diffusers; minisd has no log.
logging = SimpleNamespace(set_verbosity_error=lambda: None, set_verbosity_warning=lambda: None)

__all__ = [
    "AutoencoderKL",
    "CLIPFeatureExtractor",
    "CLIPTextModel",
    "CLIPTokenizer",
    "CourseComponent",
    "CourseOutput",
    "CourseScheduler",
    "DDIMPipeline",
    "DDIMScheduler",
    "DDPMPipeline",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionSafetyChecker",
    "UNet2DConditionModel",
    "UNet2DModel",
    "UniPCMultistepScheduler",
    "get_cosine_schedule_with_warmup",
    "get_scheduler",
    "logging",
]
