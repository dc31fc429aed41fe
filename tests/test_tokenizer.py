"""The tokenizer against transformers' CLIPTokenizer, the ids printed by the course, and bad input."""

import copy
import gzip
import json
import os
import pickle
import shutil
import time
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers, trainers

from minisd.errors import FileFormatError, InputError, MismatchError, OutputError, UnsafeFileError
from minisd.tokenizer import Encoding, PromptTruncated, Tokenizer, byte_alphabet, clip_vocabulary

transformers = pytest.importorskip("transformers")

COURSE = json.loads((Path(__file__).parent / "data" / "tokenizer_course.json").read_text())
PUPPY = "A picture of a puppy"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CORPUS = (
    "a red circle above a blue square a photo of a puppy, an astronaut riding a horse in the style of monet! "
    "don't we're it's !!! ... 東京 café привет 🐶🐶 the the there other weather 1234 ½ x² snake_case "
    "(oil on canvas) "
)


def learn_merges(count: int) -> list[tuple[str, str]]:
    """A small CLIP-like list of merges, learned here."""
    engine = Engine(models.BPE(end_of_word_suffix="</w>"))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False)
    engine.train_from_iterator([CORPUS.replace(" ", "\n")], trainer)
    known, merges = set(byte_alphabet()) | {a + "</w>" for a in byte_alphabet()}, []
    for left, right in json.loads(engine.to_str())["model"]["merges"]:
        if "Ċ" not in left + right and {left, right} <= known and left + right not in known:
            known.add(left + right)
            merges.append((left, right))
    return merges[:count]


MERGES = learn_merges(200)


def official_maps(pad: str) -> tuple[dict[str, object], dict[str, object]]:
    """special_tokens_map.json and tokenizer_config.json as published with SD 1 (end token) or SD 2 ("!")."""
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    roles = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS}
    specials = {role: {"content": token, **flags} for role, token in roles.items()}
    config = {role: {"__type": "AddedToken", **token} for role, token in specials.items()}
    more = {
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    return {**specials, "pad_token": pad}, {**config, **more, "add_prefix_space": False, "pad_token": EOS}


def write_folder(folder: Path, pad: str) -> Path:
    """A tokenizer folder with the small vocabulary, not written by the code under test."""
    folder.mkdir(parents=True)
    vocab = [*byte_alphabet(), *(a + "</w>" for a in byte_alphabet()), *(a + b for a, b in MERGES), BOS, EOS]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocab)}), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in MERGES)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, content in zip(("special_tokens_map", "tokenizer_config"), official_maps(pad), strict=True):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def small_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("small")
    return {"sd1": write_folder(root / "sd1", EOS), "sd2": write_folder(root / "sd2", "!")}


@pytest.fixture(scope="session")
def official_folders(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    source, folders = shared_data / "tokenizer", {}
    for family in ("sd15", "sd21_base", "sdxl_base_1", "sdxl_base_2"):
        folders[family] = tmp_path_factory.mktemp("official") / family
        folders[family].mkdir()
        for file in (source / "vocab.json", source / "merges.txt", *(source / family).iterdir()):
            shutil.copyfile(file, folders[family] / file.name)
    return folders


@pytest.fixture
def small(small_folders: dict[str, Path]) -> Tokenizer:
    return Tokenizer.from_folder(small_folders["sd1"])


@pytest.fixture(scope="session")
def sd1(official_folders: dict[str, Path]) -> Tokenizer:
    return Tokenizer.from_folder(official_folders["sd15"])


def oracle(folder: Path) -> Any:
    return transformers.CLIPTokenizer.from_pretrained(folder)


def reference_ids(reference: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    out = reference(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    return out.input_ids, out.attention_mask


def quiet(tokenizer: Tokenizer, texts: str | list[str], **options: bool) -> Encoding:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptTruncated)
        return tokenizer.encode(texts, **options)


AWKWARD = [
    "", " ", "\t\n", "½ ⅷ x² ٣ 四 snake_case __x__", "cat, dog", "café 東京", "cafe\u0301",
    "don't WE'RE it's 'twas ''s !'s", "i'd I'LL i've i'm 'd'd x'll'e", f"a {BOS} b{EOS}c",
    f"{BOS.upper()} x {EOS.upper()}!y", "a ! b!!! !?",
    "İ ǅ ẞ ΑΣ ﬁ Ω Å", "👩‍👩‍👧 🐶 \U0001f3f4\u200d☠️", "مرحبا שלום", "\x00\x01\x7f\x1c\x85",
    "a\u00a0b\u3000c\u200bd\u180ee\u2028f", "\u1100\u1161\u11a8 가", "a</w> </w>b", "\ufeff\ufffd\ufffe",
    "e" + "\u0301\u0327" * 40, "!" * 100, "a" * 300, "-_-" * 40, "word " * 200, "。" * 90, "\u0345\u0301",
    "&amp; <b>",
]  # fmt: skip
FRAGMENTS = st.sampled_from([*AWKWARD, *CORPUS.split(), "'s", "'S", "'", "!", "\u3000", "\u0301", "_", " "])
TEXTS = st.lists(st.one_of(FRAGMENTS, st.text(max_size=8)), max_size=12).map("".join)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_equals_reference(tokenizer: Tokenizer, reference: Any, texts: list[str]) -> None:
    ids, mask = reference_ids(reference, texts)
    ours = quiet(tokenizer, texts)
    assert torch.equal(ours.ids, ids)
    assert torch.equal(ours.attention_mask, mask)
    for text in texts:
        assert tokenizer.tokenize(text) == reference.tokenize(text)
        whole = quiet(tokenizer, text, padding=False, truncation=False).ids[0].tolist()
        assert whole == reference(text).input_ids
        for skip in (False, True):
            assert tokenizer.decode(whole, skip_special=skip) == reference.decode(whole, skip_special_tokens=skip)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_small_vocabulary_equals_transformers_on_fuzzed_unicode(small_folders, family):
    tokenizer, reference = Tokenizer.from_folder(small_folders[family]), oracle(small_folders[family])
    assert_equals_reference(tokenizer, reference, AWKWARD)

    @FUZZ
    @given(TEXTS)
    def check(text: str) -> None:
        assert_equals_reference(tokenizer, reference, [text])

    check()


@pytest.mark.parametrize("family", ["sd15", "sd21_base", "sdxl_base_1", "sdxl_base_2"])
def test_official_vocabulary_equals_transformers_on_fuzzed_unicode(official_folders, family):
    tokenizer, reference = Tokenizer.from_folder(official_folders[family]), oracle(official_folders[family])
    assert len(tokenizer) == 49408
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.max_length) == (49406, 49407, 77)
    assert tokenizer.pad_id == (49407 if family in ("sd15", "sdxl_base_1") else 0)
    assert_equals_reference(tokenizer, reference, AWKWARD)
    if family.startswith("sdxl"):  # the same special tokens as the other two
        return

    @FUZZ
    @given(TEXTS)
    def check(text: str) -> None:
        assert_equals_reference(tokenizer, reference, [text])

    check()


def test_every_character_equals_transformers(small_folders):
    """All of Unicode, but few of its 130,000 caseless letters: letter, number, blank or sign; lower case."""
    tokenizer, reference = Tokenizer.from_folder(small_folders["sd2"]), oracle(small_folders["sd2"])
    steps = {"Cs": 0, "Co": 0, "Cn": 0, "Lo": 16}
    kinds = ((c, steps.get(unicodedata.category(chr(c)), 1)) for c in range(0x110000))
    characters = [chr(c) for c, step in kinds if step and c % step == 0]
    assert len(characters) > 20_000
    for start in range(0, len(characters), 2000):
        text = "".join(f"x{c}1" for c in characters[start : start + 2000])
        assert tokenizer.encode(text, truncation=False).ids[0].tolist() == reference(text).input_ids


def test_reference_ids_of_awkward_prompts(shared_data, official_folders):
    facts = json.loads((shared_data / "tokenizer" / "reference_ids.json").read_text(encoding="utf-8"))
    for family, folder in official_folders.items():
        tokenizer = Tokenizer.from_folder(folder)
        assert quiet(tokenizer, facts["prompts"]).ids.tolist() == facts[family]["ids"]
        assert tokenizer.pad_id == facts[family]["pad_token_id"]


def test_course_ids(sd1):
    for text, ids in COURSE.items():
        encoding = sd1.encode(text)
        row = [49406, *ids, 49407]
        assert encoding.ids.tolist() == [row + [49407] * (77 - len(row))]
        assert encoding.attention_mask.tolist() == [[1] * len(row) + [0] * (77 - len(row))]
    assert sd1.token_to_id("cat</w>") == 2368
    assert sd1.id_to_token(8797) == "robot</w>"
    assert sd1.tokenize("flooble") == ["floo", "ble</w>"]
    assert sd1.tokenize(PUPPY) == ["a</w>", "picture</w>", "of</w>", "a</w>", "puppy</w>"]
    assert sd1.decode(49407) == EOS
    assert sd1.decode(sd1(PUPPY)[0], skip_special=True) == PUPPY.lower()


def test_shapes_types_and_one_text_or_many(small):
    one, many = small("a puppy"), small(["a puppy", "", "a red circle above"])
    assert one.shape == (1, 77)
    assert many.shape == (3, 77)
    assert many.dtype == torch.int64
    assert torch.equal(many[0], one[0])
    assert many[1].tolist() == [small.bos_id] + [small.eos_id] * 76
    assert torch.equal(small(("a puppy", "")), many[:2])
    assert small.encode(["a puppy"]).attention_mask.dtype == torch.int64


def test_without_padding_rows_are_as_long_as_the_longest(small):
    encoding = small.encode(["x", "x y z"], padding=False)
    x, y, z = (small.token_to_id(f"{letter}</w>") for letter in "xyz")
    assert encoding.ids.tolist() == [
        [small.bos_id, x, small.eos_id, small.pad_id, small.pad_id],
        [small.bos_id, x, y, z, small.eos_id],
    ]
    assert encoding.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert small.encode("x " * 100, truncation=False).ids.shape == (1, 102)
    assert small.encode("x", truncation=False).ids.shape == (1, 77)


@pytest.mark.parametrize("count", [74, 75, 76, 77, 78, 500])
def test_long_prompts_keep_the_end_token_and_quote_the_cut_text(small, count):
    words = ["xyz"[n % 3] for n in range(min(count, 75))] + [str(n % 10) for n in range(count - 75)]
    prompt = " ".join(words)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoding = small.encode([prompt, "x"])
    lost = " ".join(words[75:])
    assert encoding.dropped == [lost, ""]
    assert encoding.ids.shape == (2, 77)
    row = encoding.ids[0].tolist()
    assert row[:75] == [small.bos_id, *(small.token_to_id(f"{w}</w>") for w in words[:74])]
    assert row[min(count, 75) + 1] == small.eos_id
    assert encoding.attention_mask[0].sum() == min(count, 75) + 2
    if lost:
        (warning,) = caught
        assert warning.category is PromptTruncated
        assert repr(lost[:400])[:-1] in str(warning.message)
        assert len(str(warning.message)) < 600
    else:
        assert not caught


def test_dropped_is_the_text_as_typed(small):
    lost = "Café  東京 ÉTÉ\n!"
    with pytest.warns(PromptTruncated, match="Café  東京 ÉTÉ"):
        assert small.encode("X " * 75 + lost + "  ").dropped == [lost]
    with pytest.warns(PromptTruncated):
        # the lower case of İ is i and a dot of two bytes: three tokens
        assert small.encode("İ" + "\u3000X" * 72 + " " + lost).dropped == [lost]
    with pytest.warns(PromptTruncated):
        assert small.encode("1" * 80).dropped == ["1" * 5]


def test_very_long_prompts_take_bounded_time_and_give_the_reference_ids(small_folders):
    tokenizer, reference = Tokenizer.from_folder(small_folders["sd2"]), oracle(small_folders["sd2"])
    start = time.process_time()
    encoding = quiet(tokenizer, ["puppy " * 170_000, "a" * 3 * 10**5, " " * 10**6])
    assert time.process_time() - start < 20
    assert 170_000 - 76 < len(encoding.dropped[0].split()) < 170_000
    texts = ["puppy " * 10_000, "a" * 10**5, "!'s" * 10_000, "\u3000".join("xy" * 5_000), "x\u00a0" * 900]
    assert torch.equal(quiet(tokenizer, texts).ids, reference_ids(reference, texts)[0])
    assert torch.equal(encoding.ids[:2], reference_ids(reference, texts[:2])[0])


def test_a_long_prompt_is_read_only_as_far_as_needed(small):
    """The head gives the same pieces as the whole, wherever the cut falls, and whatever the blanks are."""
    generator = torch.Generator().manual_seed(0)
    blanks = [" ", "  ", "\n", "\t", "\u3000", "\u00a0", " \u0301", "\u2003 "]
    words = ["puppy", "e", "\u0301", "!", "'s", EOS, "x²", "東京", "the", "İ", "\u3000"]
    for _ in range(300):
        picks = torch.randint(0, 10**6, (240,), generator=generator).tolist()
        text = "".join(words[p % len(words)] + blanks[p // 100 % len(blanks)] for p in picks)
        whole = small._pieces(text)
        first = small._first_pieces(text)
        assert len(first) > 75
        assert first.ids[:75] == whole.ids[:75]
        assert first.offsets[75] == whole.offsets[75]
    assert len(small._first_pieces("puppy " * 1000)) < 1000  # it does cut
    mostly_blank = "\u3000 " * 200 + "x " * 80  # the first words are no tokens
    assert quiet(small, mostly_blank).ids[0, 1:76].unique().tolist() == [small.token_to_id("x</w>")]
    small.add_token("one two three")
    small.add_token("zqzqzq dog")  # begins before the place of the cut, ends behind it
    text = "x " * 71 + "one two three " * 2 + "zqzqzq dog " + "x " * 500
    assert small._first_pieces(text).ids[:75] == small._pieces(text).ids[:75]
    assert small._pieces(text).ids[73] == small.token_to_id("zqzqzq dog")


@pytest.mark.parametrize(
    "bad",
    [
        *(None, 1, 1.5, b"a cat", [], (), {"a": 1}, iter("ab"), "\ud800"),
        *([["a"]], ["a", 1], ["a", None], ["a", ["b"]], ["a", "x\udfff"]),
    ],
    ids=lambda bad: "iterator" if hasattr(bad, "__next__") else ascii(bad),  # no addresses: workers must agree
)
def test_bad_prompts_are_input_errors(small, bad):
    with pytest.raises(InputError) as caught:
        small(bad)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()  # a message that can be printed


def test_bad_ids_texts_and_tokens_are_input_errors(small):
    for bad in (-1, len(small), [0, len(small)], [0.5], ["a"], torch.tensor([[0, 1]]), None):
        with pytest.raises(InputError):
            small.decode(bad)
    for bad in (None, 1, ["a"], "\udc00"):
        with pytest.raises(InputError):
            small.tokenize(bad)
    for bad in ("", " ", " x", "x ", "a", "the</w>", BOS, EOS.upper(), None, "\ud800"):
        with pytest.raises(InputError):
            small.add_token(bad)
    assert len(small) == len(small.vocab)


def test_decode_round_trip(small):
    @FUZZ
    @given(st.text(max_size=60))
    def check(text: str) -> None:
        assume(not any(token in text for token in ("</w>", "<|")))
        spaced = small.decode(quiet(small, text, truncation=False, padding=False).ids[0], skip_special=True)
        expected = "".join(c.lower() for c in unicodedata.normalize("NFC", text))
        strip = {ord(c): None for c in spaced + expected if c.isspace()}
        assert spaced.translate(strip) == expected.translate(strip)

    check()


def test_added_tokens_match_before_the_merges(small_folders):
    for folder in small_folders.values():
        tokenizer, reference = Tokenizer.from_folder(folder), oracle(folder)
        size = len(tokenizer)
        for n, token in enumerate(("<cat-toy>", "sks", "Big Dog", "<birb>", "<birb>_1", "café")):
            assert tokenizer.add_token(token) == size + n
            assert reference.add_tokens(token) == 1
            assert tokenizer.token_to_id(token) == size + n
            assert tokenizer.id_to_token(size + n) == token
        assert len(tokenizer) == len(reference) == size + 6
        texts = [
            "a <CAT-TOY>s",
            "asksa",
            "big dog BIG  dog",
            "<birb> <birb>_1!",
            "cafe\u0301 CAFÉ",
            "x<cat-toy>",
        ]
        assert_equals_reference(tokenizer, reference, texts)
        assert tokenizer("x<cat-toy>")[0, 2] == size
        with pytest.raises(InputError, match="exists already"):
            tokenizer.add_token("<CAT-toy>")
        assert len(tokenizer) == size + 6


@pytest.mark.parametrize("pad", [EOS, "!"])
@pytest.mark.parametrize("added", [[], ["<cat-toy>", "Big Dog"]])
def test_saved_folders_load_the_same_in_transformers_and_here(tmp_path, pad, added):
    tokenizer = Tokenizer(clip_vocabulary(MERGES), MERGES, pad=pad)
    for token in added:
        tokenizer.add_token(token)
    tokenizer.save(tmp_path / "new" / "tokenizer")
    folder = tmp_path / "new" / "tokenizer"
    official = {"vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"}
    assert {file.name for file in folder.iterdir()} == official | ({"added_tokens.json"} if added else set())
    reference, again = oracle(folder), Tokenizer.from_folder(folder)
    assert len(reference) == len(again) == len(tokenizer)
    assert reference.model_max_length == 77
    texts = [*AWKWARD, *COURSE, "a <cat-toy> and a big dog"]
    assert_equals_reference(tokenizer, reference, texts)
    assert_equals_reference(again, reference, texts)
    assert (again.pad, again.pad_id, again.added) == (pad, reference.pad_token_id, added)
    reference.save_pretrained(tmp_path / "v5")  # tokenizer.json instead of vocab.json and merges.txt
    assert not (tmp_path / "v5" / "vocab.json").exists()
    newest = Tokenizer.from_folder(tmp_path / "v5")
    assert newest.merges == tokenizer.merges
    assert_equals_reference(newest, oracle(tmp_path / "v5"), texts)
    assert newest.added == added
    (tmp_path / "v5" / "tokenizer_config.json").unlink()
    assert Tokenizer.from_folder(tmp_path / "v5").pad_id == tokenizer.eos_id


def test_official_folder_survives_saving(official_folders, tmp_path):
    for family in ("sd15", "sdxl_base_2"):
        folder = official_folders[family]
        Tokenizer.from_folder(folder).save(tmp_path / family)
        assert (tmp_path / family / "merges.txt").read_bytes() == (folder / "merges.txt").read_bytes()
        for name in ("vocab.json", "special_tokens_map.json"):
            assert json.loads((tmp_path / family / name).read_text()) == json.loads((folder / name).read_text())
        assert_equals_reference(Tokenizer.from_folder(folder), oracle(tmp_path / family), AWKWARD)


def test_added_tokens_decoder_of_transformers_4(small_folders, tmp_path):
    folder = shutil.copytree(small_folders["sd2"], tmp_path / "v4")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    vocab = json.loads((folder / "vocab.json").read_text())
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    entries = {
        "!": (0, True),
        BOS: (vocab[BOS], True),
        EOS: (vocab[EOS], True),
        "<cat-toy>": (len(vocab), False),
    }
    config["added_tokens_decoder"] = {str(i): {"content": t, **flags, "special": s} for t, (i, s) in entries.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "!"}))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.added == ["<cat-toy>"]
    assert (
        tokenizer("<cat-toy>").tolist() == oracle(folder)(["<cat-toy>"], padding="max_length", max_length=77).input_ids
    )


def test_bare_folder_and_other_special_tokens(small_folders, tmp_path):
    folder = shutil.copytree(small_folders["sd2"], tmp_path / "bare")
    (folder / "special_tokens_map.json").unlink()
    assert Tokenizer.from_folder(folder).pad == EOS  # now tokenizer_config.json decides
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1e30, "pad_token": None}))
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.pad, tokenizer.max_length) == (EOS, 77)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 16, "pad_token": {"content": "?"}}))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer("").shape == (1, 16)
    assert tokenizer("")[0, 2] == tokenizer.token_to_id("?") == tokenizer.pad_id
    vocab = {
        **{t: i for t, i in clip_vocabulary([]).items() if i < 512},
        "[start]": 512,
        "[end]": 513,
        "[pad]": 514,
    }
    other = Tokenizer(vocab, [], bos="[start]", eos="[end]", pad="[pad]", max_length=5)
    assert other("a").tolist() == [[512, vocab["a</w>"], 513, 514, 514]]


@pytest.mark.parametrize("packed", [False, True])
def test_original_bpe_file(small_folders, tmp_path, monkeypatch, packed):
    folder = Tokenizer.from_folder(small_folders["sd2"])
    text = "\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *(f"{a} {b}" for a, b in MERGES), ""]).encode()
    path = tmp_path / ("bpe.txt.gz" if packed else "bpe.txt")
    path.write_bytes(gzip.compress(text) if packed else text)
    tokenizer = Tokenizer.from_bpe(path, pad="!")
    assert (tokenizer.vocab, tokenizer.merges, tokenizer.pad_id) == (folder.vocab, folder.merges, 0)
    assert torch.equal(quiet(tokenizer, AWKWARD).ids, quiet(folder, AWKWARD).ids)
    assert Tokenizer.from_bpe(path).pad == EOS
    monkeypatch.setattr("minisd.tokenizer.BPE_FILE_MERGES", 10)  # the original file continues after CLIP's merges
    assert Tokenizer.from_bpe(path).merges == MERGES[:10]


def test_original_bpe_file_of_official_size(sd1, official_folders, tmp_path):
    merges = (official_folders["sd15"] / "merges.txt").read_text(encoding="utf-8")
    (tmp_path / "bpe.txt").write_text(merges + "zz zz\nyy yy\n", encoding="utf-8")  # the original file is longer
    tokenizer = Tokenizer.from_bpe(tmp_path / "bpe.txt")
    assert (tokenizer.vocab, tokenizer.merges) == (sd1.vocab, sd1.merges)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("vocab.json", None, FileFormatError),
        ("merges.txt", None, FileFormatError),
        ("vocab.json", b"", FileFormatError),
        ("vocab.json", b"\xff\xfe", FileFormatError),
        ("vocab.json", b"[1, 2]", FileFormatError),
        ("vocab.json", b"[" * 100_000, FileFormatError),
        ("vocab.json", b'{"a": "0"}', FileFormatError),
        ("vocab.json", b'{"a": 0.0}', FileFormatError),
        ("vocab.json", b'{"a": 0}', MismatchError),
        ("vocab.json", b'{"a": 0, "b": 2}', MismatchError),
        ("vocab.json", b'{"a": -1}', FileFormatError),
        ("merges.txt", b"#version: 0.2\na b c\n", FileFormatError),
        ("merges.txt", b"\xff\xff", FileFormatError),
        ("merges.txt", b"#version: 0.2\nzq zq\n", MismatchError),
        ("special_tokens_map.json", b"{", FileFormatError),
        ("special_tokens_map.json", b'{"pad_token": 3}', FileFormatError),
        ("special_tokens_map.json", b'{"pad_token": {}}', FileFormatError),
        ("special_tokens_map.json", b'{"pad_token": "[PAD]"}', MismatchError),
        ("special_tokens_map.json", b'{"bos_token": "a"}', MismatchError),
        ("special_tokens_map.json", b'{"bos_token": "<|endoftext|>"}', MismatchError),
        ("tokenizer_config.json", b"null", FileFormatError),
        ("tokenizer_config.json", b'{"model_max_length": "77"}', FileFormatError),
        ("tokenizer_config.json", b'{"model_max_length": 1}', FileFormatError),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}', FileFormatError),
        ("added_tokens.json", b'{"<x>": "y"}', FileFormatError),
        ("added_tokens.json", b'{"<x>": 100000}', MismatchError),
        ("added_tokens.json", b'{"<x>": 1}', MismatchError),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_missing_and_broken_files(small_folders, tmp_path, name, content, error):
    folder = shutil.copytree(small_folders["sd1"], tmp_path / "broken")
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(error) as caught:
        Tokenizer.from_folder(folder)
    assert str(folder) in str(caught.value)
    if error is FileFormatError:
        assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({}, FileFormatError),
        ({"model": 1}, FileFormatError),
        ({"model": {"merges": [["a"]], "vocab": {}}, "added_tokens": []}, FileFormatError),
        (
            {"model": {"merges": [], "vocab": {}, "end_of_word_suffix": None}, "added_tokens": []},
            MismatchError,
        ),
        (
            {"model": {"merges": [], "vocab": {}, "end_of_word_suffix": "</w>"}, "added_tokens": []},
            MismatchError,
        ),
    ],
)
def test_broken_tokenizer_json(tmp_path, content, error):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(error, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_missing_folder_and_broken_bpe_files(tmp_path):
    with pytest.raises(FileFormatError, match="nowhere"):
        Tokenizer.from_folder(tmp_path / "nowhere")
    with pytest.raises(FileFormatError, match=r"none\.txt"):
        Tokenizer.from_bpe(tmp_path / "none.txt")
    with pytest.raises(FileFormatError):
        Tokenizer.from_bpe(tmp_path)
    packed = gzip.compress(b"#version\n" + b"a b\n" * 1000)
    for broken in (packed[:20], packed[:-8], packed[:12] + b"\x00" * 20):
        (tmp_path / "cut.gz").write_bytes(broken)
        with pytest.raises(FileFormatError, match=r"cut\.gz"):
            Tokenizer.from_bpe(tmp_path / "cut.gz")
    (tmp_path / "other.txt").write_text("header\nhello world\n")
    with pytest.raises(MismatchError, match=r"other\.txt"):
        Tokenizer.from_bpe(tmp_path / "other.txt")


def test_vocabularies_and_merges_that_do_not_fit():
    vocab = clip_vocabulary(MERGES)
    for tables, options in [
        ((vocab, [("zq", "zq")]), {}),
        ((vocab, MERGES), {"pad": "[PAD]"}),
        ((vocab, MERGES), {"max_length": 1}),
        (({**vocab, "new": 0}, MERGES), {}),
        (({t: i + 1 for t, i in vocab.items()}, MERGES), {}),
    ]:
        with pytest.raises(InputError):
            Tokenizer(*tables, **options)


def test_saving_where_it_cannot_be_saved(small, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="file"):
        small.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_clip_vocabulary_order(sd1):
    assert len(byte_alphabet()) == len(set(byte_alphabet())) == 256
    assert clip_vocabulary(sd1.merges) == sd1.vocab
    small_vocabulary = clip_vocabulary(MERGES)
    assert small_vocabulary["!"] == 0
    assert list(small_vocabulary)[-2:] == [BOS, EOS]
    assert len(small_vocabulary) == 512 + len(MERGES) + 2


def test_copies_are_independent(small):
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        twin.add_token("<x>")
        assert len(twin) == len(small) + 1
        assert small.token_to_id("<x>") is None
        assert torch.equal(twin("a puppy"), small("a puppy"))


@pytest.mark.parametrize("lines", [0, 1, 2, -1])
def test_merges_that_were_cut_do_not_fit_the_vocabulary(
    small_folders: dict[str, Path], tmp_path: Path, lines: int
) -> None:
    """A broken download is a valid file that makes other tokens: the vocabulary tells which merges there must be."""
    folder = shutil.copytree(small_folders["sd1"], tmp_path / "cut")
    whole = (folder / "merges.txt").read_text().splitlines(keepends=True)
    (folder / "merges.txt").write_text("".join(whole[:lines]))
    with pytest.raises(MismatchError, match=r"merges\.txt holds .* merges, and none that makes"):
        Tokenizer.from_folder(folder)


def test_files_of_a_vocabulary_are_regular_small_and_in_their_folder(
    small_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        folder = shutil.copytree(small_folders["sd1"], tmp_path / name / "m")
        (folder / name).rename(tmp_path / name / "outside")
        (folder / name).symlink_to(tmp_path / name / "outside")
        with pytest.raises(UnsafeFileError, match=rf"{name} is a link that leads out of its folder"):
            Tokenizer.from_folder(folder)
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(FileFormatError, match=f"{name} is a folder"):
            Tokenizer.from_folder(folder)
        (folder / name).rmdir()
        (folder / name).write_bytes(gzip.compress(b" " * 40_000_000))
        with pytest.raises(FileFormatError, match=rf"{name} has more than 32,000,000 bytes"):
            Tokenizer.from_folder(folder)
        if hasattr(os, "mkfifo"):
            (folder / name).unlink()
            os.mkfifo(folder / name)
            with pytest.raises(UnsafeFileError, match=f"{name} is a device, socket or pipe"):
                Tokenizer.from_folder(folder)
    for path in ("y" * 300, "a\0b"):
        with pytest.raises(FileFormatError, match="is not a folder"):
            Tokenizer.from_folder(path)

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(FileFormatError, match=r"tokenizer_config\.json cannot be read \(Permission denied\)"):
        Tokenizer.from_folder(small_folders["sd1"])
