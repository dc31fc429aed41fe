"""CLIP text transformer: token ids in, one vector per token out. These vectors condition the UNet."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.configs import CLIPImageConfig, CLIPTextConfig
from minisd.errors import InputError
from minisd.models.layers import Attention


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x): the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer: self-attention, then an MLP, each added to its input.

    Causal for texts, where a token attends to itself and those before it; in images every patch attends to every patch.
    """

    def __init__(self, config: CLIPTextConfig | CLIPImageConfig, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.norm_eps)
        self.attention = Attention(config.width, config.heads, qkv_bias=True, causal=causal)
        self.norm2 = nn.LayerNorm(config.width, config.norm_eps)
        self.expand = nn.Linear(config.width, config.mlp_width)
        self.activation = ACTIVATIONS[config.activation]
        self.contract = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) -> (B, L, width)."""
        x = x + self.attention(self.norm1(x))
        return x + self.contract(self.activation(self.expand(self.norm2(x))))


class TokenEmbedding(nn.Embedding):
    """The vectors of the ids of a vocabulary."""

    def forward(self, input: Tensor) -> Tensor:
        """Ids (...), int64 -> vectors (..., width). Raises InputError for an id outside of the vocabulary."""
        try:
            return super().forward(input)
        except IndexError:
            raise InputError(
                f"token ids are {int(input.min())} to {int(input.max())}, expected ids of this model's vocabulary, 0 "
                f"to {len(self.weight) - 1}; ids differ between vocabularies, ask this model's tokenizer."
            ) from None


class CLIPTextTransformer(nn.Module):
    """The text half of CLIP (Radford et al. 2021).

    SD 1.x uses the states after the last layer. SD 2.x uses those after the last but one layer of OpenCLIP-H, so its
    config has one layer less. The final norm applies to both. SDXL uses the states before the last layer, without the
    norm, and pools after the last layer.
    """

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = TokenEmbedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.max_length, config.width)
        self.layers = nn.ModuleList(TransformerLayer(config, causal=True) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width, config.norm_eps)
        if config.projection_width is not None:
            self.text_projection = nn.Linear(config.width, config.projection_width, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) -> token plus position embeddings (B, L, width)."""
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]

    def transform(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, L, width) -> text states (B, L, width)."""
        return self.finish(self.before_last(embeddings))

    def before_last(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, L, width) -> the states that enter the last layer (B, L, width)."""
        x = embeddings
        for layer in self.layers[:-1]:
            x = layer(x)
        return x

    def finish(self, x: Tensor) -> Tensor:
        """The last layer and the final norm: (B, L, width) -> text states (B, L, width)."""
        return self.final_norm(self.layers[-1](x))

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (B, L), int64, L <= max_length -> text states (B, L, width)."""
        return self.transform(self.embed(ids))

    def pool(self, states: Tensor, ids: Tensor) -> Tensor:
        """The state at the end token, projected where the checkpoint has a projection: (B, L, width) -> (B, P).

        The first end token counts, because padding may repeat it; added words have larger ids.
        """
        ends = (ids == self.config.end_token).int().argmax(-1)
        pooled = states[torch.arange(len(ids), device=ids.device), ends]
        return pooled if self.config.projection_width is None else self.text_projection(pooled)
