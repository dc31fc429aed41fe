"""Textual inversion: new words in every format, against the reference's loader; the end token beyond new ids."""

import copy
import json
import warnings
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from support.saved_models import Saved, noise
from support.small import oracle_text, small_pipeline, small_tokenizer, text_like
from torch import Tensor, nn

import weights_loader
from minisd.configs import SD1_TEXT, CLIPTextConfig
from minisd.errors import InputError, MinisdError, MismatchError, NumericalError
from minisd.models import CLIPTextTransformer
from minisd.pipeline import Defaults, StableDiffusion
from minisd.pipeline.conditioning import TokenizerAndEncoder
from minisd.tokenizer import PromptTruncated, Tokenizer
from weights_loader import official_configs

diffusers = pytest.importorskip("diffusers")

CLOSE = 1e-5
WIDTH = 64
PROMPTS = [
    "a <birb> cat",
    "<birb><birb>, <BIRB> x<birb>s",
    "no word of it",
    "<birb>",
    "red cat " * 40 + "<birb>",
    "cat " * 73 + "<birb> dog",
]


def vectors(n: int = 3, width: int = WIDTH, seed: int = 0) -> Tensor:
    return noise(n, width, seed=seed)


def a1111(path: Path, values: Tensor, as_module: bool = False, name: str = "another name", token_id: Any = 265) -> Path:
    """What that program saves: a dict with the vectors under "*", as a parameter; in old files a module."""
    parameter = nn.Parameter(values)
    inner: Any = nn.ParameterDict({"*": parameter}) if as_module else {"*": parameter}
    value = {"string_to_token": {"*": token_id}, "string_to_param": inner, "name": name, "step": 500,
             "sd_checkpoint": "abc", "sd_checkpoint_name": None}  # fmt: skip
    torch.save(value, path)
    return path


def written(path: Path, kind: str, values: Tensor) -> Path:
    match kind:
        case "bin":
            torch.save({"<birb>": values}, path / "learned_embeds.bin")
            return path / "learned_embeds.bin"
        case "bin in a dict with order":
            torch.save(OrderedDict({"<birb>": values.half()}), path / "learned_embeds.bin")
            return path / "learned_embeds.bin"
        case "safetensors":
            safetensors.torch.save_file({"<birb>": values}, path / "learned_embeds.safetensors")
            return path / "learned_embeds.safetensors"
        case "a1111":
            return a1111(path / "<birb>.pt", values)
        case "a1111 module":
            return a1111(path / "<birb>.pt", values, as_module=True)
        case "first program":  # of Gal et al.: the ids are tensors
            return a1111(path / "<birb>.pt", values, as_module=True, token_id=torch.tensor(265))
        case "tensor":
            torch.save(values, path / "<birb>.pt")
            return path / "<birb>.pt"
        case "parameter":
            torch.save(nn.Parameter(values), path / "<birb>.bin")
            return path / "<birb>.bin"
        case _:
            safetensors.torch.save_file({"emb_params": values}, path / "<birb>.safetensors")
            return path / "<birb>.safetensors"


NAMED = ("bin", "bin in a dict with order", "safetensors", "a1111", "a1111 module", "first program", "emb_params")
KINDS = (*NAMED, "tensor", "parameter")


@torch.no_grad()
def states_of_oracle(oracle: Any, prompt: str) -> Tensor:
    """Ids and states of the reference, which first spells out the tokens of several vectors."""
    prompt = oracle.maybe_convert_prompt(prompt, oracle.tokenizer)
    ids = oracle.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return ids, oracle.text_encoder(ids)[0]


@pytest.mark.filterwarnings("ignore::minisd.tokenizer.PromptTruncated")
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_as_the_reference(saved: Saved, tmp_path: Path, kind: str, n: int) -> None:
    values = vectors(n)[0] if n == 1 and not kind.startswith(("a1111", "emb", "first")) else vectors(n)
    path = written(tmp_path, kind, values)
    oracle, sd = copy.deepcopy(saved.oracle), weights_loader.load(saved.folder)
    before = sd.text_encoder.token_embedding.weight.detach().clone()
    if kind in ("a1111 module", "first program"):
        oracle.load_textual_inversion({"<birb>": values})  # it cannot read this one itself
    else:
        oracle.load_textual_inversion(str(path), token="<birb>")
    assert weights_loader.load_embedding(sd, path) == ["<birb>"]
    table = sd.text_encoder.token_embedding.weight
    assert torch.equal(table[:-n], before)
    assert torch.equal(
        table[-n:], values.reshape(n, WIDTH).half().float() if "order" in kind else values.reshape(n, -1)
    )
    assert sd.text_encoder.config.vocab_size == len(table) == sd.text_encoder.token_embedding.num_embeddings
    assert sd.tokenizer.added == ["<birb>", "<birb>_1", "<birb>_2"][:n]
    for prompt in PROMPTS:
        ids, states = states_of_oracle(oracle, prompt.replace("BIRB", "birb"))  # it spells out in this case only
        assert torch.equal(sd.tokenizer(prompt), ids), prompt
        assert (sd.encode_prompt([prompt]) - states).abs().max() <= CLOSE * states.abs().max()


def test_truncated_vectors_are_reported() -> None:
    tokenizer = small_tokenizer()
    first = tokenizer.add_token("<birb>", vectors=3)
    assert tokenizer.tokenize("a <birb>!") == ["a</w>", "<birb>", "<birb>_1", "<birb>_2", "!</w>"]
    with pytest.warns(PromptTruncated, match="'<birb> dog'"):
        encoding = tokenizer.encode("cat " * 73 + "<birb> dog")
    assert encoding.ids[0, 74:].tolist() == [first, first + 1, tokenizer.eos_id]
    assert encoding.dropped == ["<birb> dog"]


def test_words_are_named(tmp_path: Path) -> None:
    """By the argument, else by the file's content, else by its name."""
    sd = small_pipeline()
    path = a1111(tmp_path / "bad hands-5.pt", vectors(2))
    assert weights_loader.load_embedding(sd, path) == ["bad hands-5"]
    assert weights_loader.load_embedding(sd, str(path), token="<other>") == ["<other>"]
    assert sd.tokenizer.tokenize("a bad hands-5") == ["a</w>", "bad hands-5", "bad hands-5_1"]
    ids = sd.tokenizer("<other>")[0, 1:3]
    assert torch.equal(sd.text_encoder.token_embedding(ids), vectors(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(sd1: Saved, tmp_path: Path, dtype: torch.dtype) -> None:
    sd = weights_loader.load(sd1.folder, dtype=dtype)
    weights_loader.load_embedding(sd, written(tmp_path, "bin", vectors(2)))
    assert sd.text_encoder.token_embedding.weight.dtype == dtype
    assert torch.equal(sd.text_encoder.token_embedding.weight[-2:], vectors(2).to(dtype))


def test_nothing_is_written_into_the_old_table(sd1: Saved, tmp_path: Path) -> None:
    sd = weights_loader.load(sd1.folder)
    old = sd.text_encoder.token_embedding.weight.data
    copied = old.clone()
    weights_loader.load_embedding(sd, written(tmp_path, "bin", vectors(2)))
    assert torch.equal(old, copied)
    with torch.inference_mode():
        weights_loader.load_embedding(sd, written(tmp_path, "bin", vectors(2)), "<two>")
    sd.text_encoder(sd.tokenizer("<two>")).sum().backward()
    assert sd.text_encoder.token_embedding.weight.grad is not None


def test_rows_that_no_token_used(tmp_path: Path) -> None:
    """A table may be longer than the vocabulary: the next id is what counts."""
    sd = small_pipeline()
    size = len(sd.tokenizer)
    config = CLIPTextConfig(**{**vars(sd.text_encoder.config), "vocab_size": size + 2})
    sd.text_encoder = CLIPTextTransformer(config)
    last = sd.text_encoder.token_embedding.weight[-1].clone()
    weights_loader.load_embedding(sd, written(tmp_path, "bin", vectors(1)))
    assert len(sd.text_encoder.token_embedding.weight) == size + 2
    assert torch.equal(sd.text_encoder.token_embedding.weight[size], vectors(1)[0])
    assert torch.equal(sd.text_encoder.token_embedding.weight[-1], last)
    assert sd.text_encoder.config.end_token == sd.tokenizer.eos_id
    weights_loader.load_embedding(sd, written(tmp_path, "bin", vectors(3)), "<more>")
    assert len(sd.text_encoder.token_embedding.weight) == size + 4


# The end token


@torch.no_grad()
def test_the_pooled_state_is_at_the_first_end_token(sd1: Saved, tmp_path: Path) -> None:
    sd = weights_loader.load(sd1.folder)
    prompts = ["a <birb> cat <birb>", "red cat", "<birb>"]
    weights_loader.load_embedding(sd, written(tmp_path, "bin", vectors(2)))
    ids = sd.tokenizer(prompts)
    states = sd.text_encoder(ids)
    ends = [row.tolist().index(sd.tokenizer.eos_id) for row in ids]
    assert ends == [7, 3, 3]
    assert torch.equal(sd.text_encoder.pool(states, ids), states[range(3), ends])


def test_end_token_in_configs() -> None:
    """Official files say 2; larger vocabularies have had words added."""
    assert SD1_TEXT.end_token == 49407
    for json_config, end in (
        ({"eos_token_id": 2}, 49407),
        ({}, 49407),
        ({"vocab_size": 49411, "eos_token_id": 2}, 49407),
        ({"vocab_size": 49411, "eos_token_id": 49407}, 49407),
        ({"vocab_size": 300, "eos_token_id": 2}, 299),
        ({"vocab_size": 300, "eos_token_id": 49407}, 299),
        ({"vocab_size": 300, "eos_token_id": 290}, 290),
    ):
        config = official_configs.text_config(json_config)
        assert config.end_token == end
        assert official_configs.text_config(official_configs.text_json(config)) == config
        assert official_configs.text_json(config)["eos_token_id"] == end
    for wrong in ("290", True):
        with pytest.raises(MismatchError, match="eos_token_id"):
            official_configs.text_config({"vocab_size": 300, "eos_token_id": wrong})


def test_a_model_with_new_words_is_saved_and_loaded_here_and_by_the_reference(sd1: Saved, tmp_path: Path) -> None:
    sd = weights_loader.load(sd1.folder)
    weights_loader.load_embedding(sd, written(tmp_path, "bin", vectors(3)))
    weights_loader.load_embedding(sd, written(tmp_path, "bin", vectors(1)), "<one>")
    weights_loader.save(sd, tmp_path / "m")
    again = weights_loader.load(tmp_path / "m")
    assert again.text_encoder.config == sd.text_encoder.config
    prompt = "a <one> <birb> cat"
    assert again.tokenizer.tokenize(prompt) == sd.tokenizer.tokenize(prompt)
    torch.testing.assert_close(again.encode_prompt([prompt]), sd.encode_prompt([prompt]), atol=1e-5, rtol=1e-5)
    oracle = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "m", safety_checker=None)
    ids, states = states_of_oracle(oracle, prompt)
    assert torch.equal(sd.tokenizer(prompt), ids)
    assert (sd.encode_prompt([prompt]) - states).abs().max() <= CLOSE * states.abs().max()
    with torch.no_grad():
        pooled = sd.text_encoder.pool(sd.text_encoder(ids), ids)
        assert (pooled - oracle.text_encoder(ids).pooler_output).abs().max() <= CLOSE * pooled.abs().max()


def test_one_file_keeps_the_words(sd1: Saved, tmp_path: Path) -> None:
    sd = weights_loader.load(sd1.folder)
    weights_loader.load_embedding(sd, written(tmp_path, "bin", vectors(3)))
    weights_loader.load_embedding(sd, written(tmp_path, "bin", vectors(1)), "<one>")
    weights_loader.save(sd, tmp_path / "m.safetensors", layout="ldm")
    prompt = "a <one> <birb> cat"
    for tokenizer in (small_tokenizer(), sd.tokenizer):  # the second has the words already
        again = weights_loader.load(tmp_path / "m.safetensors", tokenizer=tokenizer)
        assert again.tokenizer.tokenize(prompt) == sd.tokenizer.tokenize(prompt)
        torch.testing.assert_close(again.encode_prompt([prompt]), sd.encode_prompt([prompt]), atol=1e-5, rtol=1e-5)
    other = small_tokenizer()
    other.add_token("<before>")
    with pytest.raises(MismatchError, match=r"learned words that do not fit the tokenizer: .*'<birb>' has id"):
        weights_loader.load(tmp_path / "m.safetensors", tokenizer=other)


def test_several_terms_in_one_file(sd1: Saved, tmp_path: Path) -> None:
    terms = {"<a>": vectors(1), "<b>": vectors(2, seed=1)}
    torch.save(
        {"string_to_token": dict.fromkeys(terms, torch.tensor(265)), "string_to_param": terms}, tmp_path / "x.pt"
    )
    sd = weights_loader.load(sd1.folder)
    assert weights_loader.load_embedding(sd, tmp_path / "x.pt") == ["<a>", "<b>"]
    assert torch.equal(sd.text_encoder.token_embedding.weight[-2:], terms["<b>"])


def test_float8(sd1: Saved, tmp_path: Path) -> None:
    values = vectors(2).to(torch.float8_e4m3fn)
    safetensors.torch.save_file({"<birb>": values}, tmp_path / "x.safetensors")
    sd = weights_loader.load(sd1.folder)
    weights_loader.load_embedding(sd, tmp_path / "x.safetensors")
    assert torch.equal(sd.text_encoder.token_embedding.weight[-2:], values.float())


# Two text encoders


def two_encoders() -> SimpleNamespace:
    """Tokenizers and text encoders of SDXL in small, of two widths."""
    vocab = len(small_tokenizer())
    first = text_like(oracle_text("wide", vocab_size=vocab, bos_token_id=vocab - 2))
    second = text_like(oracle_text("sd2", projection=40, vocab_size=vocab, bos_token_id=vocab - 2))
    return with_texts(
        TokenizerAndEncoder(small_tokenizer(), first), TokenizerAndEncoder(small_tokenizer(sd2=True), second)
    )


def with_texts(*parts: TokenizerAndEncoder) -> SimpleNamespace:
    """As much of a pipeline as there is to textual inversion."""
    names = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
    pairs = {name: each for row, part in zip(names, parts, strict=False) for name, each in zip(row, part, strict=True)}
    return SimpleNamespace(text_parts=list(parts), defaults=Defaults(), **pairs)


@pytest.mark.parametrize(("first", "second"), [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_two_text_encoders_get_the_vectors_of_their_width(tmp_path: Path, first: str, second: str) -> None:
    sd: Any = two_encoders()
    tensors = {first: vectors(2, 96), second: vectors(2, 48, seed=1)}
    safetensors.torch.save_file(tensors, tmp_path / "<birb>.safetensors")
    assert weights_loader.load_embedding(sd, tmp_path / "<birb>.safetensors") == ["<birb>"]
    for tokenizer, encoder, key in (
        (sd.tokenizer, sd.text_encoder, first),
        (sd.tokenizer_2, sd.text_encoder_2, second),
    ):
        ids = tokenizer("<birb>")
        assert torch.equal(encoder.token_embedding(ids[0, 1:3]), tensors[key])
        states = encoder(ids)
        pooled = states[0, 3] if key == first else encoder.text_projection(states[0, 3])
        assert torch.equal(encoder.pool(states, ids)[0], pooled)


def test_when_the_second_cannot_have_it_the_first_is_not_changed(tmp_path: Path) -> None:
    sd: Any = two_encoders()
    sd.tokenizer_2.add_token("<birb>")
    safetensors.torch.save_file({"clip_l": vectors(2, 96), "clip_g": vectors(2, 48)}, tmp_path / "<birb>.safetensors")
    refuse(sd, tmp_path / "<birb>.safetensors", InputError, "exists already")
    safetensors.torch.save_file({"clip_l": vectors(2, 96), "clip_g": vectors(3, 48)}, tmp_path / "<x>.safetensors")
    refuse(sd, tmp_path / "<x>.safetensors", MismatchError, "has 2 and 3 vectors|has 3 and 2 vectors")
    safetensors.torch.save_file({"<y>": vectors(2, 96)}, tmp_path / "y.safetensors")
    refuse(sd, tmp_path / "y.safetensors", MismatchError, "vectors of 96 .* text encoders of 48 and 96")


# Refusals


def refuse(sd: Any, path: Path, kind: type[MinisdError], message: str, token: str | None = None) -> None:
    """One sentence, and nothing is changed."""
    sizes, tables = len(sd.tokenizer), sd.text_encoder.token_embedding.weight.detach().clone()
    with pytest.raises(kind, match=message) as caught:
        weights_loader.load_embedding(sd, path, token)
    assert "\n" not in str(caught.value)
    assert len(sd.tokenizer) == sizes
    assert torch.equal(sd.text_encoder.token_embedding.weight, tables)
    assert len(sd.text_encoder.token_embedding.weight) == sd.text_encoder.config.vocab_size


@pytest.fixture(scope="module")
def ours() -> StableDiffusion:
    sd = small_pipeline()
    sd.tokenizer.add_token("<there>_2")
    sd.tokenizer.add_token("<taken>")
    sd.text_encoder.token_embedding = nn.Embedding(len(sd.tokenizer), WIDTH)
    sd.text_encoder.config = CLIPTextConfig(**{**vars(sd.text_encoder.config), "vocab_size": len(sd.tokenizer)})
    return sd


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        ("cat", InputError),  # a word of the vocabulary
        ("Cat", InputError),
        ("a", InputError),  # a piece
        ("cat</w>", InputError),
        ("<there>_2", InputError),
        ("<there>", InputError),  # its third vector would be that
        ("<|ENDOFTEXT|>", InputError),
        ("", InputError),
        (" <x>", InputError),
        ("\ud800", InputError),
    ],
)
def test_tokens(ours: StableDiffusion, tmp_path: Path, token: str, kind: type[MinisdError]) -> None:
    refuse(ours, written(tmp_path, "bin", vectors(3)), kind, "token", token)


@pytest.mark.parametrize(
    ("tensors", "kind", "message"),
    [
        ({"<x>": torch.full((2, WIDTH), float("nan"))}, NumericalError, "'<x>' hold NaN or infinity"),
        ({"<x>": torch.full((WIDTH,), float("inf"))}, NumericalError, "hold NaN or infinity"),
        ({"<x>": vectors(76)}, InputError, "76 vectors, expected at most 75"),
        ({"<x>": vectors(0)}, MismatchError, r"shape \(0, 64\), expected"),
        ({"<x>": vectors(2).int()}, MismatchError, "torch.int32"),
        ({"<x>": vectors(2)[None]}, MismatchError, r"<x> has shape \(1, 2, 64\), expected vectors"),
        ({"<x>": torch.tensor(1.0)}, MismatchError, r"has shape \(\), expected vectors"),
        ({"<x>": vectors(2, 768)}, MismatchError, r"vectors of 768 \(SD 1.x\), the model has text encoders of 64"),
        ({"<x>": vectors(1, 1024)}, MismatchError, r"1024 \(SD 2.x\).*made for this family"),
        ({"clip_l": vectors(1, 768), "clip_g": vectors(1, 1280)}, MismatchError, r"768 and 1280 \(SDXL\)"),
        ({"emb_params": vectors(1, 768)}, MismatchError, r"768 \(SD 1.x\)"),
        ({"x.lora_down.weight": vectors(), "x.lora_up.weight": vectors()}, MismatchError, "is a LoRA .*or --lora"),
        ({"a": vectors(), "b": vectors()}, MismatchError, r"is in no known format \(2 tensors: 'a', 'b'\)"),
        ({"emb_params": vectors(), "b": vectors()}, MismatchError, "is an embedding in an unknown format .*save it as"),
    ],
)  # fmt: skip
def test_files(
    ours: StableDiffusion, tmp_path: Path, tensors: dict[str, Tensor], kind: type[MinisdError], message: str
) -> None:
    path = tmp_path / "file.safetensors"
    safetensors.torch.save_file(tensors, path)
    refuse(ours, path, kind, message)


def test_one_token_for_several_words(ours: StableDiffusion, tmp_path: Path) -> None:
    safetensors.torch.save_file({"<a>": vectors(1), "<b>": vectors(1)}, tmp_path / "x.safetensors")
    refuse(ours, tmp_path / "x.safetensors", InputError, "holds <a>, <b>, but token names one word", "<c>")


def test_of_several_words_none_is_added_where_one_cannot_be(ours: StableDiffusion, tmp_path: Path) -> None:
    for second, message in (("<taken>", "exists already"), ("<A>", "differ in case only")):
        safetensors.torch.save_file({"<a>": vectors(1), second: vectors(1)}, tmp_path / "x.safetensors")
        refuse(ours, tmp_path / "x.safetensors", InputError, message)


def test_loading_one_as_a_model_names_load_embedding(tmp_path: Path) -> None:
    for kind in NAMED:
        path = written(tmp_path, kind, vectors(2))
        with pytest.raises(MismatchError, match=r"is a textual-inversion embedding, .*load_embedding or --embedding"):
            weights_loader.load(path)


# A real file


@torch.no_grad()
def test_a_real_file(shared_data: Path) -> None:
    """<birb-style> of the concept library, with the official vocabulary; the encoder cut to one layer."""
    sd: Any = with_texts(
        TokenizerAndEncoder(
            Tokenizer.from_folder(shared_data / "tokenizer"), CLIPTextTransformer(CLIPTextConfig(layers=1)).eval()
        )
    )
    assert weights_loader.load_embedding(sd, shared_data / "learned_embeds.bin") == ["<birb-style>"]
    ids = sd.tokenizer("a dog in the style of <birb-style>")
    assert ids[0, :10].tolist() == [49406, 320, 1929, 530, 518, 1844, 539, 49408, 49407, 49407]
    vector = torch.load(shared_data / "learned_embeds.bin", weights_only=True)["<birb-style>"]
    assert torch.equal(sd.text_encoder.token_embedding.weight[49408], vector)
    states = sd.text_encoder(ids)
    assert torch.equal(sd.text_encoder.pool(states, ids), states[:, 8])


def test_official_key_list_of_an_embedding(shared_data: Path, tmp_path: Path) -> None:
    listing = json.loads((shared_data / "manifests" / "adapters" / "real_test_embedding.json").read_text())["tensors"]
    path = tmp_path / "test_embedding.safetensors"
    safetensors.torch.save_file({key: noise(*shape) for key, (_, shape) in listing.items()}, path)
    sd: Any = with_texts(
        TokenizerAndEncoder(
            small_tokenizer(), CLIPTextTransformer(CLIPTextConfig(vocab_size=len(small_tokenizer()), layers=1))
        )
    )
    assert weights_loader.load_embedding(sd, path) == ["test_embedding"]
    assert sd.tokenizer.added == ["test_embedding", *(f"test_embedding_{i}" for i in range(1, 5))]


def test_an_added_word_is_a_known_word(tmp_path: Path) -> None:
    """The embedded model warns of words outside its vocabulary, but not of added ones."""
    sd = weights_loader.load("sticker")
    safetensors.torch.save_file({"<candy>": torch.randn(1, 128)}, tmp_path / "candy.safetensors")
    weights_loader.load_embedding(sd, tmp_path / "candy.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sd("a <candy> above a red circle", num_inference_steps=1)
    with pytest.warns(UserWarning, match="not trained on the words 'sweet'"):
        sd("a sweet <candy>", num_inference_steps=1)
