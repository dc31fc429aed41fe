"""The text encoder, and its parts as the Deep Dive uses them: embeddings, causal mask, layers, final norm."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from minisd._internal import validation
from minisd.adapters.textual_inversion import set_rows
from minisd.course.component import CourseComponent, CourseOutput
from minisd.errors import InputError
from minisd.models import CLIPTextTransformer

NO_MASK = (
    "attention_mask and output_attentions are not supported, expected None for both; "
    "the text encoder reads padding tokens like any other."
)


class TextEmbeddings(CourseComponent):
    """Ids to vectors; .token_embedding and .position_embedding are the embedding tables."""

    core: CLIPTextTransformer
    kind: ClassVar[type] = CLIPTextTransformer

    @property
    def position_ids(self) -> Tensor:
        """The positions 0, 1, 2, ..., (1, L)."""
        return torch.arange(self.core.config.max_length, device=self.device)[None]

    def __call__(self, input_ids: Tensor) -> Tensor:
        """Ids (B, L) -> token plus position embeddings (B, L, width)."""
        return self.core.embed(input_ids)


class TextLayers(CourseComponent):
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
    ) -> CourseOutput | tuple[Any, ...]:
        """Embeddings (B, L, width) -> .last_hidden_state (B, L, width), and .hidden_states with output_hidden_states.

        causal_attention_mask: the one from `_build_causal_attention_mask`. It is only checked, because the layers are
        always causal. return_dict False: a tuple. Raises InputError for other masks and for output_attentions.
        """
        if attention_mask is not None or output_attentions:
            raise InputError(NO_MASK)
        length = inputs_embeds.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=inputs_embeds.device).triu(1)
        mask = causal_attention_mask
        if mask is None or mask.shape[-2:] != future.shape or not bool(((mask < 0) == future.to(mask.device)).all()):
            got = "None" if mask is None else f"a tensor of shape {tuple(mask.shape)}"
            raise InputError(
                f"causal_attention_mask is {got}, expected the causal mask of {length} tokens; "
                "make it with text_model._build_causal_attention_mask(bsz, seq_len, dtype)."
            )
        states = [inputs_embeds]
        for layer in self.core:
            states.append(layer(states[-1]))
        output = CourseOutput(last_hidden_state=states[-1])
        if output_hidden_states:
            output["hidden_states"] = tuple(states)
        return tuple(output.values()) if return_dict is False else output


class TextModel(CourseComponent):
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
        """(bsz, 1, seq_len, seq_len): the lowest number of the dtype for later tokens, 0 for the others."""
        return torch.full((bsz, 1, seq_len, seq_len), torch.finfo(dtype).min, dtype=dtype).triu(1)


class CLIPTextModel(CourseComponent):
    """The text encoder."""

    core: CLIPTextTransformer
    kind: ClassVar[type] = CLIPTextTransformer
    part: ClassVar[str] = "text_encoder"

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: None = None,
        position_ids: None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CourseOutput | tuple[Any, ...]:
        """Ids (B, L) -> .last_hidden_state (B, L, width), .pooler_output (B, width), its row at the end token.

        output_hidden_states: .hidden_states, too, before the first layer and after each. return_dict False: a tuple.
        Raises InputError for position_ids and what the layers do not support.
        """
        if position_ids is not None:
            raise InputError("position_ids are not supported, expected None: positions are 0, 1, 2, ...")
        if attention_mask is not None or output_attentions:
            raise InputError(NO_MASK)
        states = [self.core.embed(input_ids)]
        for layer in self.core.layers:
            states.append(layer(states[-1]))
        last = self.core.final_norm(states[-1])
        output = CourseOutput(last_hidden_state=last, pooler_output=self.core.pool(last, input_ids))
        if output_hidden_states:
            output["hidden_states"] = tuple(states)
        return tuple(output.values()) if return_dict is False else output

    @property
    def text_model(self) -> TextModel:
        """The parts of the encoder."""
        return TextModel(self.core)

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of token embeddings; a row of .weight.data is the vector of a token and can be replaced."""
        return self.core.token_embedding

    @torch.no_grad()
    def resize_token_embeddings(self, new_num_tokens: int) -> nn.Embedding:
        """Add rows for tokens that were added to the tokenizer, filled with the mean of the old rows; -> the table.

        Raises InputError for fewer rows than the table has.
        """
        table, config = self.core.token_embedding, self.core.config
        old = len(table.weight)
        count = validation.whole_number(new_num_tokens, "new_num_tokens", old, 10**7)
        if count > old:
            rows = table.weight.mean(0, keepdim=True).expand(count - old, -1)
            set_rows(self.core, old, rows, config.end_token)
        return table
