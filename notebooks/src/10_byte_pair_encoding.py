# %% [markdown]
# # 10 · Byte-pair encoding: how words become numbers
#
# **You will** train a tokenizer on captions, write CLIP's encoding from characters to ids, compare it with the
# library's piece by piece, and see what happens to words that it has never met, to long prompts and to new words of
# your own.
#
# **Needs** nothing but Python.
#
# **Takes** 20 minutes to read, a few seconds to run.

# %% [markdown]
# ## Whole words, or letters?
#
# A network reads numbers, so a prompt has to become a list of numbers from a fixed table. One for each word? Then the
# table never ends, and what is not in it cannot be written. One for each letter? Then everything can be written, but
# prompts get long, and the network has to learn spelling first. Byte-pair encoding (Sennrich et al. 2016) is in
# between: begin with letters, and give the pairs that are seen most often a number of their own.

# %%
from collections import Counter
from itertools import pairwise

import lesson
import torch

import weights_loader
from minisd.sticker.world.captions import sample_caption
from minisd.sticker.world.sampling import scene_from_seed

captions = [sample_caption(scene_from_seed(s), torch.Generator().manual_seed(s)) for s in range(400)]
words = Counter(word for text in captions for word in text.split() if word.isalpha())
print(captions[:3])
print(len(words), "different words, such as", ", ".join(word for word, _ in words.most_common(12)))

# %% [markdown]
# ## Training: merge the most frequent pair, again and again
#
# A word is a list of characters. The last one carries a mark, `</w>`, for "a word ends here". So *star* at the end of a
# word and *star* at the beginning of *starfish* stay apart.


# %%
def as_characters(word):
    return (*word[:-1], word[-1] + "</w>")


def pairs_of(pieces):
    return list(pairwise(pieces))


def merged(pieces, pair):
    """All places of a pair made into one piece, from left to right."""
    out, k = [], 0
    while k < len(pieces):
        if tuple(pieces[k : k + 2]) == pair:
            out.append(pieces[k] + pieces[k + 1])
            k += 2
        else:
            out.append(pieces[k])
            k += 1
    return tuple(out)


def train(words, count):
    """{word: how often it occurs} -> the first `count` merges, in the order in which they were learnt."""
    state = {word: as_characters(word) for word in words}
    merges = []
    for _ in range(count):
        seen = Counter()
        for word, pieces in state.items():
            for pair in pairs_of(pieces):
                seen[pair] += words[word]
        if not seen:
            break
        best = max(seen, key=lambda pair: (seen[pair], pair))  # ties by the alphabet, so that it is always the same
        merges.append(best)
        state = {word: merged(pieces, best) for word, pieces in state.items()}
    return merges


print(as_characters("star"), pairs_of(as_characters("star")))

# %% [markdown]
# **Predict, then run**: the captions are full of "a", "circle", "square", "of". Which pair of characters will be
# merged first?

# %%
learnt = train(words, 60)
for k in (0, 1, 2, 3, 10, 30):
    print(f"merge {k:2}: {learnt[k][0]!r} + {learnt[k][1]!r}")


def pieces_after(count):
    """Mean number of pieces of a word, weighted by how often it is used."""
    total = 0
    for word, often in words.items():
        pieces = as_characters(word)
        for pair in learnt[:count]:
            pieces = merged(pieces, pair)
        total += often * len(pieces)
    return total / sum(words.values())


counts = range(0, 61, 5)
figure, panel = lesson.axes(width=5, height=2.6)
panel.plot(counts, [pieces_after(n) for n in counts], marker="o")
panel.set(xlabel="merges learnt", ylabel="pieces a word", ylim=(0, None))
lesson.show(
    figure,
    alt="The mean number of pieces a word falls steeply with the first merges and then more slowly.",
    title="Each merge shortens the text; the first ones shorten it most",
)
lesson.claim("g and r are merged first", learnt[0] == ("g", "r"))
lesson.claim("merges make texts shorter", pieces_after(60) < 0.7 * pieces_after(0))

# %% [markdown]
# <details><summary>Answer</summary>
#
# `g` and `r`, which begin both "green" and "gray". A single "a" is not a pair: it is one piece from the start,
# `a</w>`. CLIP learnt its 48,894 merges from the captions of the internet, in the same way.
#
# </details>

# %%
from minisd.configs import CLIP_VOCABULARY

count = CLIP_VOCABULARY - 2 * 256 - 2
print(f"{CLIP_VOCABULARY:,} ids = 256 characters + 256 with the mark + {count:,} merges + start and end")

# %% [markdown]
# ## Encoding: the merges, in the order of learning
#
# To encode a word, go through the merges **in the order in which they were learnt**, earliest first: of all pairs in
# the word, merge the one of lowest rank. Neither the longest piece first, nor from left to right: both give other
# results, and a text encoder that was trained on one understands nothing of the other.


# %%
def encode_word(word, ranks):
    """The pieces of a word; ranks: pair -> when it was learnt."""
    pieces = as_characters(word)
    while len(pieces) > 1:
        best = min(pairs_of(pieces), key=lambda pair: ranks.get(pair, float("inf")))
        if best not in ranks:
            break
        pieces = merged(pieces, best)
    return list(pieces)


sd = weights_loader.load("sticker")
tokenizer = sd.tokenizer
ranks = {pair: k for k, pair in enumerate(tokenizer.merges)}
for word in ("circle", "red", "starred", "bluebell", "astronaut"):
    print(f"{word:10}", encode_word(word, ranks))

# %% [markdown]
# The library has the same rule, done fast by the `tokenizers` package. All words of the captions and a few hundred
# made-up ones must come out alike:

# %%
import random

dice = random.Random(0)
made_up = ["".join(dice.choices("abcdefghilnoprstuw", k=dice.randint(1, 12))) for _ in range(500)]
for word in [*words, *made_up]:
    assert encode_word(word, ranks) == tokenizer.tokenize(word), word
lesson.claim(f"our encoding is the library's, on {len(words)} words and {len(made_up)} made-up ones", True)

# %% [markdown]
# ## A greedy shortcut, and why it is wrong
#
# **Predict, then run**: what if one took the longest known piece from the left, without the merges? For how many of
# the made-up words will the pieces differ?


# %%
def longest_first(word):
    rest, out = word, []
    while rest:
        size = next(n for n in range(len(rest), 0, -1) if (rest[:n] + "</w>" * (n == len(rest))) in tokenizer.vocab)
        out.append(rest[:size] + "</w>" * (size == len(rest)))
        rest = rest[size:]
    return out


ambiguous = [word for word in made_up if longest_first(word) != encode_word(word, ranks)]
print(f"{len(ambiguous)} of {len(made_up)} differ")
for word in ambiguous[:3]:
    print(f"{word:14} longest first: {longest_first(word)}   by rank: {encode_word(word, ranks)}")
lesson.claim("it is not the same rule", len(ambiguous) > 0)

# %% [markdown]
# <details><summary>Answer</summary>
#
# For some. That is the dangerous kind of wrong: everyday words come out right, so the mistake stays unnoticed.
#
# </details>
#
# ## From pieces to ids
#
# The id of a piece is its place in the table: first all 256 bytes as characters, then the same with the end mark,
# then the merges in their order, then the start and the end. So the table is nothing but the list of merges, written
# differently:

# %%
from minisd.tokenizer import byte_alphabet

alphabet = byte_alphabet()
table = [*alphabet, *(letter + "</w>" for letter in alphabet), *(a + b for a, b in tokenizer.merges)]
table += [tokenizer.bos, tokenizer.eos]
same = {piece: k for k, piece in enumerate(table)} == tokenizer.vocab
lesson.claim("that is the vocabulary of the embedded model, id by id", same)
print(f"{len(table)} = 256 + 256 + {len(tokenizer.merges)} + 2")

# %% [markdown]
# Why bytes? Because every text of every language is bytes, so nothing is ever unknown. "é" is two of them, and an
# emoji four:

# %%
for text in ("a", "é", "🙂"):
    print(f"{text}: {len(text.encode())} bytes, pieces {tokenizer.tokenize(text)}")
lesson.claim("and back again", tokenizer.decode(tokenizer(["é 🙂"])[0], skip_special=True) == "é 🙂")

# %% [markdown]
# ## 77 places
#
# The text encoder reads a fixed number of positions. The prompt gets a start and an end, and the rest is filled up.
#
# **Predict, then run**: with 77 positions, how many pieces may a prompt have? And what happens to the rest?

# %%
ids = tokenizer(["a red circle"])[0]
print(len(ids), "ids:", [tokenizer.id_to_token(int(i)) for i in ids[:7]], "...")
lesson.claim("77 positions", len(ids) == tokenizer.max_length == 77)

# %%
import warnings

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    coded = tokenizer.encode(["a red circle " * 25 + "above a blue square"])
print("pieces that fit:", int(coded.attention_mask.sum()) - 2)
print("lost:", coded.dropped)
print("warning:", caught[0].message)
lesson.claim("75 pieces fit", int(coded.attention_mask.sum()) - 2 == 75)
lesson.claim("the end is cut off, and the warning says what was lost", "above a blue square" in str(caught[0].message))

# %% [markdown]
# <details><summary>Answer</summary>
#
# 75: two places go to the start and the end. What comes after them never reaches the image, so the library warns.
#
# </details>
#
# Upper case, more than one blank, and accents written in two ways make no difference; the texts are brought to one
# form first:

# %%
one, other = tokenizer(["A  RED\tCircle", "a red circle"])
lesson.claim("the same ids", torch.equal(one, other))

# %% [markdown]
# ## A word of your own
#
# Textual inversion teaches a model a new word: a new id, whose vector is trained on a few images (notebook 24). For
# the tokenizer that is one more row. Added words are found **before** anything is cut into pieces:

# %%
import copy

mine = copy.deepcopy(tokenizer)
new = mine.add_token("<my-cat>")
print("new id:", new, "of", len(mine))
print(mine.tokenize("a <my-cat> above a circle"))
print(tokenizer.tokenize("a <my-cat>"), "without it")
lesson.claim("it is one piece, the next free id", mine.tokenize("<my-cat>") == ["<my-cat>"] and new == len(tokenizer))

# %% [markdown]
# ## What it means for the image
#
# Does the cutting matter for the image? Each word that the model was taught is one piece, so its state can represent it
# as a whole. Another word is cut into pieces that the model has never seen together:

# %%
taught = [word for word in sd.defaults.words.split() if word.isalpha()]
lengths = Counter(len(tokenizer.tokenize(word)) for word in taught)
print("pieces of the words that the model was taught:", dict(lengths))
lesson.claim("every taught word is one piece", lengths[1] == len(taught))


def show_pieces(texts):
    """Each text on a line, its pieces on coloured grounds; a blank ends a word."""
    figure, panel = lesson.axes(width=7, height=0.36 * len(texts))
    panel.axis("off")
    panel.set(xlim=(0, 70), ylim=(-len(texts), 0))
    for row, text in enumerate(texts):
        place = 1
        for k, piece in enumerate(tokenizer.tokenize(text)):
            shown = piece.replace("</w>", " ")
            ground = {
                "facecolor": lesson.COLOURS[k % len(lesson.COLOURS)],
                "alpha": 0.35,
                "edgecolor": "none",
                "pad": 3,
            }
            panel.text(place, -row - 0.5, shown, family="monospace", fontsize=11, va="center", bbox=ground)
            place += len(shown) + 1
    lesson.show(
        figure,
        alt="Six texts cut into coloured pieces: taught words are whole, unknown words are two to eight pieces.",
        title="Taught words are one piece, others are cut",
    )


spellings = ["a red star", "a red STAR", "a red starr", "a red disc"]
show_pieces([*spellings, "an astronaut", "a bluebell above a star"])

# %% [markdown]
# **Predict, then run**: the third prompt is the first with a slip of the finger, and the fourth names a circle by
# another word, which shares no piece with "circle". What will the model draw?

# %%
from minisd.sticker.world.checker.check import check

warnings.simplefilter("ignore")  # the library warns of words that the model does not know
drawn = {text: sd(text, seed=1, num_images_per_prompt=5, num_inference_steps=12).images for text in spellings}
stars = [sum(check(image, "a red star").exact for image in drawn[text]) for text in spellings]
circles = sum(check(image, "a red circle").exact for image in drawn["a red disc"])
lesson.pictures(
    [image for images in drawn.values() for image in images],
    alt="Four rows of five images by prompt: red stars in the first two, then other red shapes, then red circles.",
    title=lesson.claim(
        "In capitals a star is a star; misspelt, it is any red shape; a disc is a circle",
        stars == [5, 5, 0, 0] and circles == 5,
    ),
    columns=5,
    rows=[f"“{text}”" for text in spellings],
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Capital letters are the same ids, so the same images. The slip changes one piece into two, and their states mean
# nothing to the UNet: "red" is followed, the shape is left to chance. "disc" was taught: the text encoder learned that
# it means the same as "circle", whatever the pieces are. Large models have seen most slips and most words, in pieces,
# in their training; for a rare name they too have only pieces.
#
# </details>

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why is neither a table of words nor a table of letters a good choice?</summary>
#
# A table of words never ends, and a word that is not in it cannot be written. With letters every word can be written,
# but prompts get long, and the network has to learn spelling first.
#
# </details>
#
# <details><summary>Why must the merges be applied in the order in which they were learnt?</summary>
#
# Another order gives other pieces for some words. The text encoder was trained on the pieces of this order, and other
# ids mean something else to it.
#
# </details>
#
# <details><summary>Why does the last piece of a word carry a mark?</summary>
#
# The mark keeps a piece at the end of a word apart from the same letters at its beginning. So *star* alone and the
# *star* of *starfish* are different pieces.
#
# </details>
#
# <details><summary>Why is no text unknown to the tokenizer?</summary>
#
# Every text is bytes, and each byte is in the table as a piece. A word for which no merge was learnt is written byte by
# byte.
#
# </details>
#
# <details><summary>Why can one wrong letter change the object in the image?</summary>
#
# The tokenizer cuts the misspelt word into other pieces. The model has never seen these pieces together, so their
# states do not mean the object to the UNet.
#
# </details>
#
# ## Your turn
#
# Write this function yourself. `start` makes a file for it, and `minisd exercises check` compares your results with the
# reference and says what differs ([the exercises](../minisd/exercises/README.md)).
#
# - `minisd exercises start byte_pairs`: merge the pieces of a word in the order in which the merges were learnt.

# %% [markdown]
# ## Summary
#
# - Byte-pair encoding learns which pairs to merge, most frequent first; encoding applies them in the order of
#   learning.
# - A vocabulary is the 256 bytes, the same with an end mark, the merges, a start and an end: nothing is unknown.
# - 75 pieces fit between start and end; more are cut off, with a warning. Added words are found first.
# - A word that is one piece can be learnt as a whole; a misspelt one is other pieces, and so another prompt.
# - Our encoder agrees with the library's on every word that we tried.
#
# **Code**: [tokenizer.py](../minisd/tokenizer.py), [vocabulary_files.py](../minisd/_internal/vocabulary_files.py).
# **Next**: what the text encoder makes of the ids, [11 · The CLIP text transformer](11_text_transformer.ipynb).
