"""The vocabulary of a single-file checkpoint, which holds none: beside the file, else CLIP's from the hub."""

from functools import partial
from pathlib import Path

from huggingface_hub import constants, hf_hub_download

from minisd.errors import HubError, MismatchError
from minisd.tokenizer import EOS, Tokenizer
from weights_loader.hub.errors import attempt

CLIP_REPO = "openai/clip-vit-large-patch14"  # all official models share these two files
FILES = ("vocab.json", "merges.txt")
OPENCLIP_PAD = "!"


def find_tokenizer(path: Path, is_openclip: bool, offline: bool | None = None, progress: bool = True) -> Tokenizer:
    """The tokenizer for a single file: its vocabulary, padded as SD 1.x (with the end token) or SD 2.x (with id 0).

    Looks beside the file for vocab.json and merges.txt, also in a folder `tokenizer` there, and for the original
    bpe_simple_vocab_16e6.txt.gz; then asks the hub for CLIP's. Raises MismatchError that says what to do.
    """
    for folder in (path.parent / "tokenizer", path.parent):
        if all((folder / name).is_file() for name in FILES):
            return padded(Tokenizer.from_folder(folder), is_openclip)
    for name in ("bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt"):
        if (path.parent / name).is_file():
            return Tokenizer.from_bpe(path.parent / name, pad=OPENCLIP_PAD if is_openclip else EOS)
    try:
        offline = constants.HF_HUB_OFFLINE if offline is None else offline
        fetch = partial(hf_hub_download, CLIP_REPO, local_files_only=offline)
        paths = [Path(attempt(partial(fetch, name), CLIP_REPO, name)) for name in FILES]
    except HubError as error:
        raise MismatchError(
            f"{path.name} holds no vocabulary and CLIP's cannot be had ({error}); put vocab.json and merges.txt "
            "beside the file, or pass tokenizer= a folder that has them."
        ) from error
    return padded(Tokenizer.from_folder(paths[0].parent), is_openclip)


def padded(tokenizer: Tokenizer, is_openclip: bool) -> Tokenizer:
    """The same vocabulary, padded as a text encoder of CLIP's or of OpenCLIP's kind was taught."""
    pad = OPENCLIP_PAD if is_openclip else EOS
    return Tokenizer(tokenizer.vocab, tokenizer.merges, pad=pad, max_length=tokenizer.max_length)
