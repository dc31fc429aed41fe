"""The vocabulary of a single-file checkpoint, which contains none: beside the file, else CLIP's from the hub."""

from collections.abc import Mapping
from pathlib import Path

from minisd._internal.model_files import is_file
from minisd.configs import CLIPTextConfig
from minisd.errors import HubError, InputError, MismatchError
from minisd.tokenizer import EOS, Tokenizer

CLIP_REPO = "openai/clip-vit-large-patch14"  # all official models have the same vocabulary
FILES = ("vocab.json", "merges.txt")
OPENCLIP_PAD = "!"  # id 0


class NoVocabulary(MismatchError):
    """A single file has no vocabulary beside it, and CLIP's cannot be downloaded."""


def find_tokenizer(path: Path, is_openclip: bool, offline: bool | None = None, progress: bool = True) -> Tokenizer:
    """The tokenizer for a single file, with the padding of its text encoder.

    Searches vocab.json and merges.txt in a folder `tokenizer` beside the file and beside the file itself, then the
    original bpe_simple_vocab_16e6.txt.gz there, then CLIP's vocabulary on the hub or in its cache. Raises
    MismatchError.
    """
    for folder in (path.parent / "tokenizer", path.parent):
        if all(is_file(folder / name) for name in FILES):
            return padded(Tokenizer.from_folder(folder), is_openclip)
    for name in ("bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt"):
        if is_file(path.parent / name):
            return Tokenizer.from_bpe(path.parent / name, pad=OPENCLIP_PAD if is_openclip else EOS)
    from weights_loader.hub.download import download_files  # imported here, as in sources.py

    try:
        folder = download_files(CLIP_REPO, FILES, offline, progress)
    except HubError as error:
        raise NoVocabulary(
            f"{path.name} contains no vocabulary, and CLIP's is not available ({error}); put vocab.json and merges.txt "
            "beside the file, or pass tokenizer= a folder with them."
        ) from error
    return padded(Tokenizer.from_folder(folder), is_openclip)


def padded(tokenizer: Tokenizer, is_openclip: bool) -> Tokenizer:
    """The same vocabulary with the padding of OpenCLIP ("!", id 0) or of CLIP (the end token)."""
    pad = OPENCLIP_PAD if is_openclip else EOS
    return Tokenizer(tokenizer.vocab, tokenizer.merges, pad=pad, max_length=tokenizer.max_length)


def check_vocabulary(tokenizer: Tokenizer, config: CLIPTextConfig) -> None:
    """Raise MismatchError if prompts are longer than the text encoder reads, or end in another token."""
    if tokenizer.max_length > config.max_length:
        raise MismatchError(
            f"the tokenizer has model_max_length {tokenizer.max_length}, expected at most the {config.max_length} of "
            "the text encoder; take both from one model."
        )
    if config.end_id is not None and config.end_id != tokenizer.eos_id:
        raise MismatchError(
            f"the text encoder config has eos_token_id {config.end_id}, expected the {tokenizer.eos_id} of the "
            "tokenizer; take both from one model."
        )


def restore_words(tokenizer: Tokenizer, added: Mapping[str, int], path: Path) -> None:
    """Add the learned words of a saved model to its tokenizer. Raises MismatchError: a vocabulary of another size."""
    try:
        tokenizer.restore_tokens(sorted((i, word) for word, i in added.items()))
    except InputError as error:
        raise MismatchError(f"{path} holds learned words that do not fit the tokenizer: {error}") from None
