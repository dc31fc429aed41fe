"""The text encoder, opened as the Deep Dive opens it: embeddings, causal mask, layers, final norm."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from minisd._internal import validation
from minisd.adapters.textual_inversion import set_rows
from minisd.course.component import Component
from minisd.course.output import Output
from minisd.errors import InputError
from minisd.models import CLIPTextTransformer


class TextEmbeddings(Component):
    """From ids to vectors; .token_embedding and .position_embedding are the tables themselves."""

    core: CLIPTextTransformer
    kind: ClassVar[type] = CLIPTextTransformer

    @property
    def position_ids(self) -> Tensor:
        """0, 1, 2, ... to the longest text, (1, L)."""
        return torch.arange(self.core.config.max_length, device=self.device)[None]

    def __call__(self, input_ids: Tensor) -> Tensor:
        """Ids (B, L) -> token plus position embeddings (B, L, width)."""
        return self.core.embed(input_ids)


class TextLayers(Component):
    """The transformer layers, without the final norm."""

    core: nn.ModuleList
    kind: ClassVar[type] = nn.ModuleList

    def __call__(
        self,
        inputs_embeds: Tensor,
        attention_mask: None = None,
        causal_attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Output | tuple[Any, ...]:
        """Embeddings (B, L, width) -> .last_hidden_state (B, L, width) and, if asked for, .hidden_states, all of them.

        causal_attention_mask: as `_build_causal_attention_mask` makes it; the layers are causal by themselves, so it
        is only checked. return_dict False: a tuple. Raises InputError for other masks and for attentions.
        """
        if attention_mask is not None or output_attentions:
            raise InputError(
                "the text layers take no attention_mask and give no attentions, expected None for both; "
                "padding is read like words here."
            )
        length = inputs_embeds.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=inputs_embeds.device).triu(1)
        mask = causal_attention_mask
        if mask is None or mask.shape[-2:] != future.shape or not bool(((mask < 0) == future.to(mask.device)).all()):
            got = "None" if mask is None else f"another one, of shape {tuple(mask.shape)}"
            raise InputError(
                f"causal_attention_mask is {got}, expected the causal one of {length} tokens; "
                "make it by text_model._build_causal_attention_mask(bsz, seq_len, dtype)."
            )
        states = [inputs_embeds]
        for layer in self.core:
            states.append(layer(states[-1]))
        output = Output(last_hidden_state=states[-1])
        if output_hidden_states:
            output["hidden_states"] = tuple(states)
        return tuple(output.values()) if return_dict is False else output


class TextModel(Component):
    """The parts of the text encoder."""

    core: CLIPTextTransformer
    kind: ClassVar[type] = CLIPTextTransformer

    @property
    def embeddings(self) -> TextEmbeddings:
        """Token and position embeddings."""
        return TextEmbeddings(self.core)

    @property
    def encoder(self) -> TextLayers:
        """The layers."""
        return TextLayers(self.core.layers)

    @property
    def final_layer_norm(self) -> nn.LayerNorm:
        """The norm after the layers."""
        return self.core.final_norm

    def _build_causal_attention_mask(self, bsz: int, seq_len: int, dtype: torch.dtype) -> Tensor:
        """(bsz, 1, seq_len, seq_len): 0 where a token may look, the lowest number of the dtype behind it."""
        return torch.full((bsz, 1, seq_len, seq_len), torch.finfo(dtype).min, dtype=dtype).triu(1)


class CLIPTextModel(Component):
    """The text encoder."""

    core: CLIPTextTransformer
    kind: ClassVar[type] = CLIPTextTransformer
    part: ClassVar[str] = "text_encoder"

    def __call__(self, input_ids: Tensor) -> Output:
        """Ids (B, L) -> .last_hidden_state (B, L, width)."""
        return Output(last_hidden_state=self.core(input_ids))

    @property
    def text_model(self) -> TextModel:
        """The same, in parts."""
        return TextModel(self.core)

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of token embeddings; write a row of .weight.data to teach a word."""
        return self.core.token_embedding

    @torch.no_grad()
    def resize_token_embeddings(self, new_num_tokens: int) -> nn.Embedding:
        """Rows for tokens added to the tokenizer, each the mean of the old rows until you write it; -> the table.

        Raises InputError for fewer rows than there are.
        """
        table, config = self.core.token_embedding, self.core.config
        old = len(table.weight)
        count = validation.whole_number(new_num_tokens, "new_num_tokens", old, 10**7)
        if count > old:
            rows = table.weight.mean(0, keepdim=True).expand(count - old, -1)
            set_rows(self.core, old, rows, config.end_token)
        return table
