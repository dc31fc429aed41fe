"""The networks, as plain modules: each takes its config, none knows the others."""

from minisd.models.clip import CLIPTextTransformer
from minisd.models.clip_image import CLIP, CLIPImageTransformer
from minisd.models.preview_decoder import PreviewDecoder
from minisd.models.unet import UNet
from minisd.models.vae import VAE, Gaussian

__all__ = ["CLIP", "VAE", "CLIPImageTransformer", "CLIPTextTransformer", "Gaussian", "PreviewDecoder", "UNet"]
