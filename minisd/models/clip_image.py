"""CLIP's image half, and both halves together: how well does a text describe an image?"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.configs import CLIPImageConfig, CLIPTextConfig
from minisd.errors import InputError
from minisd.models.clip import CLIPTextTransformer, TransformerLayer
from minisd.models.layers import to_tokens


class CLIPImageTransformer(nn.Module):
    """The image half of CLIP (Radford et al. 2021): a vision transformer (Dosovitskiy et al. 2021).

    The image is cut into N square patches; each becomes a token. A class token before them collects the content of the
    image.
    """

    def __init__(self, config: CLIPImageConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_size, config.patch_size, bias=False)
        self.class_token = nn.Parameter(torch.zeros(config.width))
        self.position_embedding = nn.Embedding(1 + config.patches, config.width)
        self.pre_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.layers = nn.ModuleList(TransformerLayer(config, causal=False) for _ in range(config.layers))
        self.post_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.image_projection = nn.Linear(config.width, config.projection_width, bias=False)

    def embed(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, size, size) in [-1, 1] -> class token and patches, plus positions: (B, 1 + N, width).

        Raises InputError for another shape, because the positions are learned for one size.
        """
        size = self.config.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise InputError(
                f"CLIP's image encoder got pixels of shape {tuple(pixels.shape)}, expected (B, 3, {size}, {size}); "
                "resize them, for instance by torch.nn.functional.interpolate with antialias=True."
            )
        mean, std = (pixels.new_tensor(each)[:, None, None] for each in (self.config.mean, self.config.std))
        patches = to_tokens(self.patch_embedding(((pixels + 1) / 2 - mean) / std))  # (B, N, width)
        class_token = self.class_token.expand(len(patches), 1, -1)
        return torch.cat([class_token, patches], 1) + self.position_embedding.weight

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, size, size) in [-1, 1] -> image states (B, 1 + N, width). Raises InputError."""
        x = self.pre_norm(self.embed(pixels))
        for layer in self.layers:
            x = layer(x)
        return x

    def pool(self, states: Tensor) -> Tensor:
        """The state of the class token, normed and projected: (B, 1 + N, width) -> (B, P)."""
        return self.image_projection(self.post_norm(states[:, 0]))


class CLIP(nn.Module):
    """Both halves of CLIP (Radford et al. 2021, figure 3): images and texts become unit vectors in one space.

    Training makes an image closest to its own text. Raises InputError where the projection widths of the halves differ.
    """

    def __init__(self, text_config: CLIPTextConfig, image_config: CLIPImageConfig) -> None:
        super().__init__()
        if text_config.projection_width != image_config.projection_width:
            raise InputError(
                f"the text half of CLIP projects to {text_config.projection_width}, the image half to "
                f"{image_config.projection_width}; give both configs one projection_width."
            )
        self.text_encoder = CLIPTextTransformer(text_config)
        self.image_encoder = CLIPImageTransformer(image_config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # section 2.5 of the paper; learned, as a log

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, size, size) in [-1, 1] -> unit vectors (B, P). Raises InputError for another size."""
        return F.normalize(self.image_encoder.pool(self.image_encoder(pixels)), dim=-1)

    def embed_texts(self, ids: Tensor) -> Tensor:
        """Token ids (B, L), int64 -> unit vectors (B, P)."""
        return F.normalize(self.text_encoder.pool(self.text_encoder(ids), ids), dim=-1)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Pixels (B, 3, size, size) in [-1, 1] and token ids (C, L) -> logits (B, C): scaled cosines.

        Their softmax over the texts is the probability that a text belongs to the image.
        """
        return self.logit_scale.exp() * self.embed_images(pixels) @ self.embed_texts(ids).T
