"""The tokenizer: the pieces of a prompt in the slots that the text encoder reads."""

import math
import re

from PIL import Image, ImageDraw

from minisd._internal import validation
from minisd.demos.demo import Demo, Panel, Table, row_of
from minisd.demos.drawing import FAINT, INK, PAPER, font, text_width
from minisd.demos.inputs import PROMPT, words_of
from minisd.pipeline import StableDiffusion
from minisd.tokenizer import Tokenizer

COLUMNS = 11  # 77 slots are 7 rows
WIDE, TALL, GAP = 92, 44, 4  # pixels of a slot
LETTERS, SMALL = 13, 10
TINTS = ("#cfe6f5", "#fbdcc6", "#cdeee2", "#f3dbe8", "#fbe8c2")  # of the words, in turn
SPECIAL, PADDING = "#4a4a4a", "#efefef"
WORD_END = "</w>"


def show(sd: StableDiffusion, prompt: str = PROMPT) -> Demo:
    """A prompt as pieces in slots: one colour a word, each with its id. Raises InputError."""
    validation.text(prompt, "prompt")
    tokenizer = sd.tokenizer
    encoding = tokenizer.encode(prompt)
    ids, used = encoding.ids[0].tolist(), int(encoding.attention_mask[0].sum())
    pieces = [tokenizer.id_to_token(each) for each in ids]
    words = _word_numbers(pieces, used)
    kinds = ["start", *(f"word {number + 1}" for number in words), "end", *["padding"] * (len(ids) - used)]
    spoken = re.findall(r"\w+", prompt)
    text = [
        f"{_count(spoken, 'word')} of {prompt!r} become {_count(words, 'piece')}; with the start and "
        f"end tokens {used} of {len(ids)} slots are used, the other {len(ids) - used} hold padding.",
        f"The vocabulary has {len(tokenizer):,} tokens, made by {len(tokenizer.merges):,} merges.",
    ]
    split = [word for word in words_of(prompt) if len(tokenizer.tokenize(word)) > 1]
    if split:
        text.append(f"In more than one piece: {', '.join(split)}.")
    if encoding.dropped[0]:
        text.append(f"The prompt is too long, and this part is dropped: {encoding.dropped[0]!r}.")
    slots = _draw(tokenizer, ids, pieces, words, used)
    described = " ".join(pieces[1 : used - 1]).replace(WORD_END, "")
    panel = Panel(
        "slot number and id below each piece; grey: padding",
        slots,
        f"{len(ids)} slots: the start token, the pieces {described}, the end token, then padding",
    )
    rows = [(slot, pieces[slot], ids[slot], kinds[slot]) for slot in range(used)]
    return Demo(
        "Tokenizer: a prompt becomes numbers",
        tuple(text),
        (row_of("One colour for each word", [panel]),),
        Table(("slot", "piece", "id", "what"), tuple(rows)),
        ("minisd/tokenizer.py",),
        "10",
    )


def _word_numbers(pieces: list[str], used: int) -> list[int]:
    """For each piece between start and end, the number of its word: a word ends with `</w>`."""
    numbers, number = [], 0
    for piece in pieces[1 : used - 1]:
        numbers.append(number)
        number += piece.endswith(WORD_END) or not piece.isalnum()
    return numbers


def _draw(tokenizer: Tokenizer, ids: list[int], pieces: list[str], words: list[int], used: int) -> Image.Image:
    rows = math.ceil(len(ids) / COLUMNS)
    drawn = Image.new("RGB", (COLUMNS * (WIDE + GAP) - GAP, rows * (TALL + GAP) - GAP), PAPER)
    pen = ImageDraw.Draw(drawn)
    for slot, (number, piece) in enumerate(zip(ids, pieces, strict=True)):
        left, top = slot % COLUMNS * (WIDE + GAP), slot // COLUMNS * (TALL + GAP)
        inside = 0 < slot < used - 1
        special = slot in (0, used - 1)
        fill = TINTS[words[slot - 1] % len(TINTS)] if inside else SPECIAL if special else PADDING
        ink = PAPER if special else INK if inside else FAINT
        pen.rounded_rectangle((left, top, left + WIDE - 1, top + TALL - 1), 5, fill=fill)
        name = {tokenizer.bos_id: "start", tokenizer.eos_id: "end"}.get(number, piece.removesuffix(WORD_END))
        name = name if inside or special else "pad"
        pen.text((left + WIDE / 2, top + 15), _cut(name, WIDE - 8), ink, font(LETTERS), anchor="mm")
        faint = PAPER if special else "#4a4a4a" if inside else FAINT
        pen.text((left + WIDE / 2, top + 33), f"{slot} · id {number}", faint, font(SMALL), anchor="mm")
    return drawn


def _cut(text: str, width: int) -> str:
    """A text that fits into a slot."""
    while text_width(text, LETTERS) > width:
        text = f"{text.removesuffix('…')[:-1]}…"
    return text


def _count(items: list[str] | list[int], name: str) -> str:
    return f"{len(items)} {name}{'s' * (len(items) != 1)}"
