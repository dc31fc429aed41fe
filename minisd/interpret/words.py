"""Where a word stands among the tokens of a prompt: it may be several tokens, and may come several times."""

from minisd._internal import validation
from minisd.errors import InputError
from minisd.tokenizer import Tokenizer


def find(tokenizer: Tokenizer, prompt: str, word: str, occurrence: int = 0) -> range:
    """The positions of a word, or of several in a row, among the ids that the text encoder reads for a prompt.

    All byte pairs of a word count; parts of words do not. occurrence: 0 is the first time that it comes. Start and end
    token are found by their own names, tokenizer.bos and tokenizer.eos. Raises InputError where the word is not.
    """
    row = tokenizer.encode(prompt).ids[0].tolist()
    pieces = tokenizer.encode(word, padding=False, truncation=False).ids[0, 1:-1].tolist()
    if not pieces:
        raise InputError(f"the word is {word!r}, expected one with letters, as it stands in the prompt.")
    places = [k for k in range(len(row)) if row[k : k + len(pieces)] == pieces]
    occurrence = validation.whole_number(occurrence, "occurrence", 0, 10**6)
    if occurrence >= len(places):
        times = f"comes {len(places)} times" if places else "is not"
        raise InputError(
            f"{word!r} {times} among the first {tokenizer.max_length - 2} tokens of {prompt!r}, expected it there "
            f"{occurrence + 1} times; give a whole word of the prompt, its first occurrence is 0."
        )
    return range(places[occurrence], places[occurrence] + len(pieces))
