"""The tokenizer of minisd.course equals the reference; the table of token embeddings grows and can be trained."""

from typing import Any

import pytest
import torch
from support.course_cells import FULL

from minisd import course
from minisd.errors import InputError

TEXTS = ["a red circle above a blue square", "a cat", "", "An otter, in 2 hats!"]


@pytest.fixture
def pair(ours: Any, theirs: Any, model: str) -> tuple[Any, Any]:
    return tuple(lib.CLIPTokenizer.from_pretrained(model, subfolder="tokenizer") for lib in (ours, theirs))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": True},
        {"padding": "longest", "return_tensors": "pt"},
        {"padding": "max_length", "max_length": 77, "return_tensors": "pt"},
        {"padding": "max_length", "max_length": 9, "truncation": True, "return_tensors": "pt"},
        {"padding": True, "max_length": 5, "truncation": True},
        {"padding": False, "max_length": 5, "truncation": True},
        {"padding": "do_not_pad"},
    ],
)
@pytest.mark.filterwarnings("ignore::minisd.tokenizer.PromptTruncated")
def test_calls(pair: tuple[Any, Any], options: dict[str, Any]) -> None:
    mine, reference = pair
    for texts in (TEXTS, TEXTS[0], [TEXTS[3]]):
        if isinstance(texts, str) and options.get("return_tensors") is None and options.get("padding") in (True,):
            continue
        got, want = mine(texts, **options), reference(texts, **options)
        for name in ("input_ids", "attention_mask"):
            a, b = got[name], want[name]
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_words_and_ids(pair: tuple[Any, Any]) -> None:
    mine, reference = pair
    ids = mine("A picture of a puppy").input_ids
    assert mine.convert_ids_to_tokens(ids) == reference.convert_ids_to_tokens(ids)
    assert [mine.decoder.get(i) for i in ids] == reference.convert_ids_to_tokens(ids)
    assert mine.decoder.get(10**6) is None
    assert mine.convert_tokens_to_ids(mine.convert_ids_to_tokens(ids)) == ids
    assert mine.convert_tokens_to_ids("no such token") == reference.convert_tokens_to_ids("no such token")
    assert mine.decode(mine.eos_token_id) == mine.eos_token == "<|endoftext|>"
    assert "puppy" in mine.decode(ids, skip_special_tokens=True)
    assert mine.encode("a puppy") == reference.encode("a puppy")
    assert mine.encode("puppy", add_special_tokens=False) == reference.encode("puppy", add_special_tokens=False)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "bos_token", "pad_token", "model_max_length"):
        assert getattr(mine, name) == getattr(reference, name)
    assert len(mine) == len(reference) == len(mine.decoder)


@pytest.mark.parametrize("options", [{}, {"padding": "max_length", "max_length": 12}, {"padding": False}])
def test_pad(pair: tuple[Any, Any], options: dict[str, Any]) -> None:
    """As DreamBooth collates: texts are encoded without padding and padded later."""
    mine, reference = pair
    rows = [mine(text, padding="do_not_pad", truncation=True, max_length=77).input_ids for text in TEXTS[:2]]
    if options.get("padding") is False:
        assert mine.pad({"input_ids": rows}, **options).input_ids == rows
        with pytest.raises(InputError, match="padding='max_length'"):
            mine.pad({"input_ids": rows}, return_tensors="pt", **options)
        return
    got = mine.pad({"input_ids": rows}, return_tensors="pt", **options)
    want = reference.pad({"input_ids": rows}, return_tensors="pt", **options)
    assert torch.equal(got.input_ids, want.input_ids)
    assert torch.equal(got.attention_mask, want.attention_mask)
    assert mine.pad({"input_ids": rows}, **options).input_ids == got.input_ids.tolist()


def test_add_tokens(pair: tuple[Any, Any]) -> None:
    mine, reference = pair
    n = len(mine)
    for tokens in ("<tiny>", ["<tiny>", "<a>", "<b>"], ["<a>"]):
        assert mine.add_tokens(tokens) == reference.add_tokens(tokens)
    assert len(mine) == len(reference) == n + 3
    assert mine.convert_tokens_to_ids(["<tiny>", "<a>"]) == reference.convert_tokens_to_ids(["<tiny>", "<a>"])
    assert mine("a <tiny> cat").input_ids == reference("a <tiny> cat").input_ids
    assert mine.add_tokens(mine.convert_ids_to_tokens([5, 300])) == 0  # the course checks for 0
    with pytest.raises(InputError, match="blank"):
        mine.add_tokens(" ")


def test_the_table_grows(ours: Any, model: str) -> None:
    """New rows are the mean of the old ones; the old rows and the end token stay; the table never shrinks."""
    encoder = ours.CLIPTextModel.from_pretrained(model, subfolder="text_encoder", **FULL)
    other = ours.CLIPTextModel.from_pretrained(model, subfolder="text_encoder", **FULL)
    table = encoder.get_input_embeddings()
    n, end = len(table.weight), encoder.core.config.end_token
    assert encoder.resize_token_embeddings(n) is table
    assert encoder.resize_token_embeddings(n + 3) is table
    assert table.weight.shape[0] == table.num_embeddings == encoder.config.vocab_size == n + 3
    old = other.get_input_embeddings().weight
    assert torch.equal(table.weight[:n], old)
    assert torch.allclose(table.weight[n:], old.mean(0).expand(3, -1), atol=1e-6)
    assert encoder.core.config.end_token == end
    table.weight.data[n + 1] = 1.0
    assert (encoder.get_input_embeddings()(torch.tensor([n + 1])) == 1).all()
    assert not (table.weight[n] == 1).any()
    with pytest.raises(InputError, match="new_num_tokens"):
        encoder.resize_token_embeddings(n)


def test_training_one_row(ours: Any, model: str) -> None:
    """As in textual inversion: everything but the token table is frozen, and the table gets gradients."""
    encoder = ours.CLIPTextModel.from_pretrained(model, subfolder="text_encoder", **FULL)
    for frozen in (
        encoder.text_model.encoder.parameters(),
        encoder.text_model.final_layer_norm.parameters(),
        encoder.text_model.embeddings.position_embedding.parameters(),
    ):
        for parameter in frozen:
            parameter.requires_grad = False
    encoder.train()
    encoder(torch.tensor([[0, 5, 6]]))[0].sum().backward()
    assert [name for name, weight in encoder.named_parameters() if weight.grad is not None] == [
        "token_embedding.weight"
    ]
    rows = encoder.get_input_embeddings().weight.grad.abs().sum(1).nonzero().flatten()
    assert rows.tolist() == [0, 5, 6]


def test_errors(pair: tuple[Any, Any]) -> None:
    mine, _ = pair
    for wrong, message in (
        ({"padding": "right"}, "padding is 'right'"),
        ({"return_tensors": "tf"}, "return_tensors is 'tf'"),
        ({"max_length": 1}, "max_length is 1"),
        ({"max_length": 100}, "max_length is 100"),
        ({"return_tensors": "pt"}, "tokens, expected equal lengths"),
    ):
        with pytest.raises(InputError, match=message):
            mine(TEXTS, **wrong)
    with pytest.raises(AttributeError):
        _ = course.CourseOutput(a=1).b
