"""The tokenizer, with the arguments and attributes that the courses use."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from minisd._internal import validation
from minisd.course.component import CourseComponent, CourseOutput
from minisd.errors import InputError
from minisd.tokenizer import Tokenizer

Padding = str | bool


class CLIPTokenizer(CourseComponent):
    """The tokenizer."""

    core: Tokenizer
    kind: ClassVar[type] = Tokenizer
    part: ClassVar[str] = "tokenizer"

    @property
    def model_max_length(self) -> int:
        """The number of ids that the text encoder reads."""
        return self.core.max_length

    bos_token = property(lambda self: self.core.bos)
    eos_token = property(lambda self: self.core.eos)
    pad_token = property(lambda self: self.core.pad)
    bos_token_id = property(lambda self: self.core.bos_id)
    eos_token_id = property(lambda self: self.core.eos_id)
    pad_token_id = property(lambda self: self.core.pad_id)

    @property
    def decoder(self) -> dict[int, str]:
        """Id -> token, such as "puppy</w>"."""
        return {i: self.core.id_to_token(i) for i in range(len(self))}

    def __len__(self) -> int:
        return len(self.core)

    def __call__(
        self,
        text: str | Sequence[str],
        padding: Padding = False,
        max_length: int | None = None,
        truncation: bool = False,
        return_tensors: str | None = None,
    ) -> CourseOutput:
        """Text(s) -> .input_ids, .attention_mask: tensors (B, L) with "pt", else lists, flat for a single text.

        padding: "max_length", True or "longest" (to the longest text), False or "do_not_pad". max_length: at most the
        model's, which is the default. Raises InputError, also for a tensor of rows of unequal length.
        """
        padding = _checked(padding, return_tensors)
        tokenizer = self._of_length(max_length)
        texts = [text] if isinstance(text, str) else list(text)
        # without padding each text is encoded alone, so it keeps its own length
        groups = [[each] for each in texts] if padding is False else [texts]
        coded = [tokenizer.encode(each, padding=padding == "max_length", truncation=truncation) for each in groups]
        rows = {
            "input_ids": [row for each in coded for row in each.ids],
            "attention_mask": [row for each in coded for row in each.attention_mask],
        }
        output = _output(rows, return_tensors)
        if isinstance(text, str) and return_tensors is None:
            return CourseOutput({name: each[0] for name, each in output.items()})
        return output

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """One text -> its ids, with or without the start and end tokens."""
        ids = self.core.encode(text, padding=False, truncation=False).ids[0].tolist()
        return ids if add_special_tokens else ids[1:-1]

    def pad(
        self,
        encoded_inputs: Mapping[str, Sequence[Sequence[int]]],
        padding: Padding = True,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> CourseOutput:
        """Lists of ids under "input_ids" -> .input_ids, .attention_mask of equal length; arguments as for a call."""
        padding = _checked(padding, return_tensors)
        rows = [torch.as_tensor(row) for row in encoded_inputs["input_ids"]]
        limit = self._of_length(max_length).max_length
        length = limit if padding == "max_length" else max(map(len, rows)) if padding else 0
        ids, masks = [], []
        for row in rows:
            filler = torch.full((max(length - len(row), 0),), self.core.pad_id)
            ids.append(torch.cat([row, filler]))
            masks.append(torch.cat([torch.ones_like(row), torch.zeros_like(filler)]))
        return _output({"input_ids": ids, "attention_mask": masks}, return_tensors)

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """Ids (one, or L) -> text. Raises InputError for unknown ids."""
        return self.core.decode(token_ids, skip_special=skip_special_tokens)

    def add_tokens(self, new_tokens: str | Sequence[str]) -> int:
        """Add the tokens that do not exist yet and return their number. Raises InputError for a blank token."""
        listed = [new_tokens] if isinstance(new_tokens, str) else list(new_tokens)
        new = [token for token in dict.fromkeys(listed) if self.core.token_to_id(token) is None]
        for token in new:
            self.core.add_token(token)
        return len(new)

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """Ids of tokens written as in `decoder`; unknown tokens get the id of the end token, as in the reference."""
        if isinstance(tokens, str):
            found = self.core.token_to_id(tokens)
            return self.core.eos_id if found is None else found
        return [i for token in tokens for i in [self.convert_tokens_to_ids(token)] if isinstance(i, int)]

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Tokens of ids. Raises InputError for unknown ids."""
        return [self.core.id_to_token(int(i)) for i in ids]

    def _of_length(self, max_length: int | None) -> Tokenizer:
        """The tokenizer for texts of at most max_length ids; it shares the tables of `core`."""
        if max_length in (None, self.model_max_length):
            return self.core
        other = copy.copy(self.core)
        other.max_length = validation.whole_number(max_length, "max_length", 2, self.model_max_length)
        return other


def _checked(padding: Padding, return_tensors: object) -> Padding:
    """The padding, "do_not_pad" as False. Raises InputError for unknown values."""
    if padding not in ("max_length", "longest", "do_not_pad", True, False):
        raise InputError(f"padding is {padding!r}, expected 'max_length', 'longest', 'do_not_pad', True or False.")
    if return_tensors not in ("pt", None):
        raise InputError(f"return_tensors is {return_tensors!r}, expected 'pt' or None.")
    return False if padding == "do_not_pad" else padding


def _output(rows: Mapping[str, list[torch.Tensor]], return_tensors: str | None) -> CourseOutput:
    """The rows as lists or, with "pt", as tensors (B, L)."""
    if return_tensors is None:
        return CourseOutput({name: [row.tolist() for row in each] for name, each in rows.items()})
    lengths = [len(row) for row in rows["input_ids"]]
    if len(set(lengths)) > 1:
        raise InputError(f"the texts have {lengths} tokens, expected equal lengths; pass padding='max_length'.")
    return CourseOutput({name: torch.stack(each) for name, each in rows.items()})
