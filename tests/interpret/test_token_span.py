"""The positions of words in a prompt: words of several tokens, several occurrences, wrong arguments."""

import pytest
from support.small import small_tokenizer

from minisd.errors import InputError
from minisd.interpret.text_vectors import token_span
from minisd.tokenizer import EOS

TOKENIZER = small_tokenizer()


def test_a_word_of_several_tokens() -> None:
    """ "zebra" has no merges here: five tokens, the last one with the end of the word."""
    prompt = "red zebra above blue cat"
    assert len(TOKENIZER.tokenize("zebra")) == 5
    assert token_span(TOKENIZER, prompt, "red") == range(1, 2)
    assert token_span(TOKENIZER, prompt, "zebra") == range(2, 7)
    assert token_span(TOKENIZER, prompt, "Above  BLUE") == range(7, 9)  # consecutive words, any case and blanks
    assert token_span(TOKENIZER, prompt, "cat") == range(9, 10)


def test_parts_of_words_do_not_match() -> None:
    assert TOKENIZER.tokenize("catdog") == ["ca", "t", "dog</w>"]
    assert token_span(TOKENIZER, "catdog dog cat", "dog", occurrence=0) == range(3, 4)
    with pytest.raises(InputError, match="is not among"):
        token_span(TOKENIZER, "catdog", "cat")
    with pytest.raises(InputError, match="is not among"):
        token_span(TOKENIZER, "cat", "catdog")


def test_occurrences_and_special_tokens() -> None:
    prompt = "red cat above red dog"
    assert token_span(TOKENIZER, prompt, "red") == range(1, 2)
    assert token_span(TOKENIZER, prompt, "red", occurrence=1) == range(4, 5)
    assert token_span(TOKENIZER, prompt, TOKENIZER.bos) == range(0, 1)
    assert token_span(TOKENIZER, prompt, EOS) == range(6, 7)
    assert token_span(TOKENIZER, "<a> red", "red") == range(4, 5)
    tokenizer = small_tokenizer()
    tokenizer.add_token("<a>")
    assert token_span(tokenizer, "red <a> cat", "<a>") == range(2, 3)


@pytest.mark.parametrize(
    ("prompt", "word", "occurrence", "message"),
    [
        ("red cat", "dog", 0, "'dog' is not among the first 75 tokens"),
        ("red cat", "cat", 1, "occurs 1 times .* at least 2"),
        ("red cat", "", 0, "the word is ''"),
        ("red cat", " ", 0, "the word is ' '"),
        ("red cat", "cat", -1, "occurrence is -1"),
        ("red cat", "cat", True, "occurrence is True"),
        ("red cat", 3, 0, "int"),
        (None, "cat", 0, "NoneType"),
        ("red " * 80 + "cat", "cat", 0, "is not among the first 75"),
    ],
)
@pytest.mark.filterwarnings("ignore:the prompt has more")
def test_wrong_arguments(prompt: str, word: str, occurrence: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        token_span(TOKENIZER, prompt, word, occurrence)
