# %% [markdown]
# # 11 · The CLIP text transformer
#
# **You will** write the text encoder of Stable Diffusion in forty lines and prove that it is the library's, see which
# word looks at which, and say what the causal mask, the padding and the last layers mean for an image.
#
# **Needs** notebook 10 (how words become ids), and matrix multiplication.
#
# **Takes** 25 minutes to read, some seconds to run.

# %% [markdown]
# ## Why ids are not enough
#
# The tokenizer turns a prompt into numbers, one for each word. The UNet could look each number up in a table and take
# what it finds. Here is a prompt for which that fails:

# %%
import math

import lesson
import numpy as np
import torch
import torch.nn.functional as F

import weights_loader
from minisd.images import to_pil

sd = weights_loader.load("sticker")
clip, tokenizer = sd.text_encoder.requires_grad_(False), sd.tokenizer
prompt = "a red circle above a blue square"
ids = tokenizer([prompt])
words = [tokenizer.id_to_token(int(i)).removesuffix("</w>") for i in ids[0]]
print("ids:  ", ids[0, :10].tolist(), "...")
print("words:", words[:10], "...")

swapped = tokenizer(["a blue circle above a red square"])
lesson.claim("the other sentence has the same ids, in another order", sorted(ids[0]) == sorted(swapped[0]))

# %% [markdown]
# "red" is the same number in both sentences, so a table gives the same vector, wherever the word is. But in one
# sentence it means *the circle is red*, in the other *the square is red*. What the image needs is a vector for "red
# **in this place of this sentence**". To make such vectors, called **states**, is the whole work of the text encoder:
#
# $$\text{ids } (L) \;\to\; \text{embeddings } (L, d) \;\to\; \text{layer} \to \dots \to \text{layer} \;\to\;
# \text{states } (L, d)$$

# %%
config = clip.config
print(f"L = {config.max_length} tokens, width d = {config.width}, {config.layers} layers of {config.heads} heads")
print("the UNet reads", tuple(clip(ids).shape), "= (prompts, tokens, width)")

# %% [markdown]
# ## Two tables
#
# The first step *is* a table, one row for each id. A second table has one row for each **place** in the sentence. The
# two rows are added:


# %%
def embed(ids):
    """Token ids (B, L) -> embeddings (B, L, d)."""
    return clip.token_embedding.weight[ids] + clip.position_embedding.weight[: ids.shape[1]]


lesson.claim("that is the library's embedding", torch.equal(embed(ids), clip.embed(ids)))
first, second = (k for k, word in enumerate(words) if word == "a")
apart = float((embed(ids)[0, first] - embed(ids)[0, second]).abs().max())
print(f'the two "a" of the prompt differ by up to {apart:.2f}, because they are at places {first} and {second}')

# %% [markdown]
# The places must be added, because the next operation, attention, does not see them: it compares every vector with
# every other, and a shuffled sentence would give the same vectors, shuffled.
#
# What is in the first table? Training moved its rows, and words that are used alike should be close. Closeness is
# measured by the cosine of the angle between two rows: 1 for the same direction, about 0 for unrelated ones.
#
# **Predict, then run**: which of the words that the model was taught is nearest to "circle"? Which to "above", which
# to "red"?

# %%
taught = [word for word in sd.defaults.words.split() if word + "</w>" in tokenizer.vocab]
rows = F.normalize(clip.token_embedding.weight[[tokenizer.vocab[word + "</w>"] for word in taught]], dim=1)
cosines = rows @ rows.T
for word in ("circle", "star", "above", "below", "red", "small"):
    near = cosines[taught.index(word)].topk(4)
    print(f"{word:7}", ", ".join(f"{taught[int(k)]} {float(c):.2f}" for c, k in zip(*near, strict=True)))


def nearest(word):
    return taught[int(cosines[taught.index(word)].topk(2).indices[1])]


disc = float(cosines[taught.index("circle"), taught.index("disc")])
lesson.claim("words for one thing have one direction", disc > 0.99)
lesson.claim("the nearest to a noun with one word is its plural", nearest("star") == "stars")

# %% [markdown]
# <details><summary>Answer</summary>
#
# "circle" is nearest to "dot", "disc" and "disk": their rows were copied from its row before the model learned these
# words, and the training had no reason to move them apart. "star" is nearest to "stars", "above" to "over". For "red"
# nothing comes close: the colours are *not* neighbours. This model was trained to tell what a caption says, and for
# that the colours must be kept apart. CLIP's table was trained on texts of all kinds, and its neighbours are mostly
# spellings and relatives of a word.
#
# </details>

# %%
from minisd.configs import SD1_TEXT, SD2_TEXT

print(f"rows in CLIP's table: {SD1_TEXT.vocab_size:,}; in that of the embedded model: {config.vocab_size:,}")

# %% [markdown]
# ## Attention: every token asks the others
#
# Each vector is turned into three by three matrices: a **query** (what do I look for?), a **key** (what do I offer?)
# and a **value** (what do I hand over?). A token compares its query with all keys, makes shares of the results that
# sum to 1 (softmax), and takes the values in these shares (Vaswani et al. 2017, equation 1):
#
# $$\text{attention}(q, k, v) = \text{softmax}\!\left(\frac{q k^\top}{\sqrt{d_h}} + \text{mask}\right) v$$
#
# This happens in several **heads** at once, each with its own piece of the width, $d_h$ numbers wide, so that one token
# can look for several features. The mask is what makes a *text* transformer of it: a token may look at itself and at
# those before it, never ahead. Where it may not look, the mask is $-\infty$, and softmax makes 0 of that.


# %%
def causal_mask(length):
    """0 where a token (row) may look, minus infinity where it may not."""
    return torch.full((length, length), -math.inf).triu(1)


def attention(x, layer):
    """Tokens (B, L, d) -> new tokens (B, L, d), and the shares (B, heads, L, L)."""
    part = layer.attention
    q, k, v = (f(x).unflatten(-1, (part.heads, -1)).transpose(1, 2) for f in (part.q, part.k, part.v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + causal_mask(x.shape[1])
    shares = scores.softmax(-1)
    return part.out((shares @ v).transpose(1, 2).flatten(2)), shares


x = embed(ids)
mine, shares = attention(x, clip.layers[0])
difference = float((mine - clip.layers[0].attention(x)).abs().max())
print(f"largest difference to the library's attention: {difference:.1e}")
lesson.claim("our attention is the library's", difference < 1e-5)
lesson.claim("every row of shares sums to 1", torch.allclose(shares.sum(-1), torch.ones(()), atol=1e-5))

used = words.index(tokenizer.eos) + 1  # start, words, end; padding follows
shown = [word.replace("<|startoftext|>", "START").replace("<|endoftext|>", "END") for word in words[:used]]
figure, panels = lesson.axes(1, 2, width=3.6, height=3.4)
mask = (causal_mask(used) == 0).float()
average = shares[0, :, :used, :used].mean(0)
for panel, picture, title in zip(panels, (mask, average), ("The mask: who may look", "Layer 1: who does"), strict=True):
    panel.imshow(picture, cmap="magma", vmin=0)
    panel.set_xticks(range(used), shown, rotation=90)
    panel.set_yticks(range(used), shown)
    panel.set(title=title, xlabel="is looked at")
panels[0].set_ylabel("looks")
lesson.show(
    figure,
    alt="Left a triangle of ones at and below the diagonal. Right shares of attention, only within that triangle.",
    title="No token looks ahead",
)

# %% [markdown]
# ## One layer, line by line
#
# A layer has two halves. In the first, tokens exchange information (attention); in the second, each token is processed
# alone (a small network with one hidden layer, the **MLP**). Both halves do not replace a vector, they **add** to it,
# so that what a word was is never lost: the residual connection. And both see the vector *normed*, to mean 0 and
# variance 1, so that no layer depends on the size of the numbers that the layers before it produce.


# %%
def layer_norm(x, norm):
    """Mean 0 and variance 1 over the width, then a learned scale and shift for each number."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def quick_gelu(x):
    """Lets large numbers pass and stops negative ones, softly."""
    return x * torch.sigmoid(1.702 * x)


def mlp(x, layer):
    return layer.contract(quick_gelu(layer.expand(x)))


def layer_step(x, layer):
    """One layer: (B, L, d) -> (B, L, d)."""
    x = x + attention(layer_norm(x, layer.norm1), layer)[0]
    return x + mlp(layer_norm(x, layer.norm2), layer)


layer = clip.layers[0]
lesson.claim("the norm is torch's", torch.allclose(layer_norm(x, layer.norm1), layer.norm1(x), atol=1e-5))
lesson.claim("one layer is the library's", torch.allclose(layer_step(x, layer), layer(x), atol=1e-5))

# %% [markdown]
# `quick_gelu` is an approximation of another function, GELU. OpenAI trained CLIP with the approximation, OpenCLIP
# (the text encoder of SD 2) with the original. How much does it matter which one a loader takes?

# %%
line = torch.linspace(-4, 4, 200)
gap = (quick_gelu(line) - F.gelu(line)).abs().max()


def encode(ids, step=layer_step):
    """Ids (B, L) -> states (B, L, d): the whole text encoder."""
    x = embed(ids)
    for layer in clip.layers:
        x = step(x, layer)
    return layer_norm(x, clip.final_norm)


def wrong_step(x, layer):
    """As `layer_step`, with GELU in place of QuickGELU."""
    x = x + attention(layer_norm(x, layer.norm1), layer)[0]
    return x + layer.contract(F.gelu(layer.expand(layer_norm(x, layer.norm2))))


states = encode(ids)
right, wrong = (float((each - clip(ids)).abs().max()) for each in (states, encode(ids, wrong_step)))
print(f"the two functions differ by up to {gap:.3f}")
print(f"states, largest difference to the library: {right:.1e}; with the wrong function: {wrong:.1e}")
lesson.claim("all layers by hand are the text encoder, to 1e-5", right < 1e-5)
lesson.claim("with the wrong one they are not, and nothing would warn us but this number", wrong > 1e-3)

# %% [markdown]
# That was the whole text encoder: two tables, a few equal layers, and a last norm. Here is the library's layer, for
# comparison:

# %%
from minisd.models.clip import TransformerLayer

lesson.source(TransformerLayer.forward)

# %% [markdown]
# ## The state at the end token has read everything
#
# The end token comes last, so it sees the whole sentence. CLIP was trained with the state at that place only (notebook
# 12), so there the meaning of the sentence should be.
#
# **Predict, then run**: four sentences. The second says the same as the first in other words; the third and fourth use
# exactly the words of the first. To which of them will the end state of the first be closest?

# %%
sentences = [
    "a red circle above a blue square",
    "a blue square below a red circle",
    "a blue circle above a red square",
    "a blue square above a red circle",
]


def bag_of_words(ids):
    """The mean of the rows of the table, without places: what is left when the order is ignored."""
    lengths = (ids == config.end_token).int().argmax(1)
    rows = clip.token_embedding.weight[ids]
    return torch.stack([row[:n].mean(0) for row, n in zip(rows, lengths, strict=True)])


def end_state(ids):
    """The state at the first end token (padding may repeat it)."""
    ends = (ids == config.end_token).int().argmax(1)
    return encode(ids)[torch.arange(len(ids)), ends]


four = tokenizer(sentences)
lesson.claim("the library calls it pooling", torch.allclose(end_state(four), clip.pool(clip(four), four), atol=1e-5))
for name, vectors in (("bag of words", bag_of_words(four)), ("end state", end_state(four))):
    cosine = F.cosine_similarity(vectors[:1], vectors)
    print(f"{name:12} compared with the first:", ", ".join(f"{float(c):.2f}" for c in cosine))
bag, end = (F.cosine_similarity(v[:1], v) for v in (bag_of_words(four), end_state(four)))
lesson.claim(
    "a bag of words cannot tell the last two from the first", torch.allclose(bag[2:], torch.ones(2), atol=1e-4)
)
lesson.claim("the end state is closest to what means the same", end[1:].argmax() == 0 and end[1] > end[2:].max() + 0.1)

# %% [markdown]
# <details><summary>Answer</summary>
#
# To the second: other words in another order, one meaning. This is what the layers are for. The embedded model was
# trained to read such sentences; the official CLIP is known to be much worse at it (Yuksekgonul et al. 2022), which is
# one reason why Stable Diffusion mixes up which object is red.
#
# </details>
#
# ## What the mask means for your prompt
#
# **Predict, then run**: we change the *last* word of the prompt, "square" to "star". Which states change? And which
# would change without the mask?

# %%
other = tokenizer([prompt.replace("square", "star")])


def free_attention(x, layer):
    """Attention without the mask."""
    part = layer.attention
    q, k, v = (f(x).unflatten(-1, (part.heads, -1)).transpose(1, 2) for f in (part.q, part.k, part.v))
    shares = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return part.out((shares @ v).transpose(1, 2).flatten(2))


def free_step(x, layer):
    x = x + free_attention(layer_norm(x, layer.norm1), layer)
    return x + mlp(layer_norm(x, layer.norm2), layer)


masked = (encode(ids) - encode(other))[0].norm(dim=1)
free = (encode(ids, free_step) - encode(other, free_step))[0].norm(dim=1)
changed = words.index("square")
figure, panel = lesson.axes(width=6.4, height=2.6)
places = torch.arange(used)
panel.bar(places - 0.2, masked[:used], 0.4, label="with the mask")
panel.bar(places + 0.2, free[:used], 0.4, label="without", hatch="//", alpha=0.7)
panel.set_xticks(range(used), shown, rotation=30)
panel.set(ylabel="how much the state changes")
panel.legend()
lesson.show(
    figure,
    alt="Bars for each word: with the mask only the changed word and the end token move; without it all of them do.",
    title='"square" becomes "star": with the mask, the past does not change',
)
lesson.claim("no state before the changed word moved", masked[:changed].max() < 1e-5)
lesson.claim("that word and all after it did", masked[changed:].min() > 1e-2)
lesson.claim("without the mask, every state moves", free.min() > 1e-3)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Only "square" itself, the end, and the padding behind it. So the state at "circle" does not know whether a square or a
# star will follow. For a prompt that means: a word is changed by what comes **before** it. In "a circle that is red",
# the state at "circle" knows nothing of red; the states behind it do. The UNet reads all states, so it can still find
# out, but "a red circle" makes it easier.
#
# </details>
#
# ## Which word looks at which?
#
# The shares of attention can be drawn, layer by layer. The library's attention has a hook for it: it calls the function
# in `on_weights` with the shares of each call.

# %%
seen = []
for layer in clip.layers:
    layer.attention.on_weights = lambda shares: seen.append(shares[0].mean(0)[:used, :used])
clip(ids)
for layer in clip.layers:
    layer.attention.on_weights = None

figure, panels = lesson.axes(1, len(seen), width=2.5, height=3.7)
for k, (panel, picture) in enumerate(zip(panels, seen, strict=True)):
    panel.imshow(picture, cmap="magma", vmin=0, vmax=0.8)
    panel.set_xticks(range(used), shown, rotation=90)
    panel.set_yticks(range(used), shown if k == 0 else [])
    panel.set(title=f"layer {k + 1}")
lesson.show(
    figure,
    alt="Four triangular maps: attention is spread in the first layer, and gathers in few columns in the later ones.",
    title="Spread out at first; later few words are looked at (row looks at column, mean over the heads)",
)
adjective, noun = words.index("red"), words.index("circle")
strongest = max(float(layer[noun, adjective]) for layer in seen)
print(f'the largest share that "circle" gives to "red" in a layer: {strongest:.2f}')
print(f"even shares would be {1 / (noun + 1):.2f}")
lesson.claim('in some layer, "circle" looks at "red" more than by chance', strongest > 1 / (noun + 1))

# %% [markdown]
# Read a row from left to right: the token at its left takes from the tokens below the columns. Such maps show where
# values come from, not what is done with them.
#
# ## The padding that the UNet sees
#
# A prompt of nine tokens is filled up to 77, with the end token again and again (SD 2 fills with id 0). Nothing marks
# the filling as empty: its places look back at the whole sentence, so each of its states is one more summary, and the
# UNet's attention reads them like words.
#
# **Predict, then run**: take the states of the words from "a red circle" and those of the padding from "a blue star".
# What will be drawn?


# %%
def draw(text, seed):
    """An image from text states (1, L, d), with guidance 3."""
    both = torch.cat([sd.encode_prompt([""])[:, : text.shape[1]], text])
    grid, memory = sd.scheduler.grid(10), None
    size = sd.unet.config.sample_size
    x = torch.randn(1, sd.unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(seed))
    for i, t in enumerate(grid.timesteps):
        with torch.no_grad():
            u, c = sd.unet(torch.cat([x, x]), t, both).chunk(2)
        x, _, memory = sd.scheduler.step(grid, i, x, u + 3 * (c - u), memory)
    return to_pil(sd.decode(x))[0]


from minisd.sticker.world.checker.check import check

red, blue = (clip(tokenizer([text])) for text in ("a red circle", "a blue star"))
n = 5  # start, three words, end
mixed = [red, blue, torch.cat([red[:, :n], blue[:, n:]], 1), red[:, :n]]
columns = ["a red circle", "a blue star", "words of red circle,\npadding of blue star", "a red circle,\nno padding"]
seeds = (1, 2, 3)
drawn = [[draw(text, seed) for text in mixed] for seed in seeds]
right = [sum(check(row[column], "a red circle").object for row in drawn) for column in range(len(mixed))]
lesson.pictures(
    [image for row in drawn for image in row],
    alt="Three rows of four images: red circles, blue stars, with other padding or none the red circles again.",
    title=lesson.claim("The words decide what is drawn, in all three images", right == [3, 0, 3, 3]),
    columns=len(mixed),
    labels=columns,
    rows=[f"seed {seed}" for seed in seeds],
    size=1.4,
)
apart = [np.abs(np.asarray(row[2], dtype=float) - np.asarray(row[0], dtype=float)).mean() for row in drawn]
print("mean difference with the other padding:", ", ".join(f"{each:.2f} of 255" for each in apart))
lesson.claim("other padding changes the image, hardly to be seen", 0 < max(apart) < 2)
without = clip(tokenizer(["a red circle"])[:, :n])
lesson.claim("the words' states do not depend on the padding", torch.allclose(red[:, :n], without, atol=1e-5))

# %% [markdown]
# <details><summary>Answer</summary>
#
# In this model the words win. The image is not quite the same as with its own padding, but one has to measure to see
# it. How much the padding weighs depends on the training. The embedded model saw
# short texts, with little padding, for the larger part of its training; the official ones always saw all 77 places. So
# padding is not nothing, and a program that fills up with another id draws another image.
#
# </details>
#
# ## The last layer but one
#
# Stable Diffusion 2 stops one layer early: it takes the states that *enter* the last layer of its text encoder, and
# gives them the final norm. Why? The last layer was trained for one purpose only, the end state that is compared with
# images; no loss ever used its states at the other places. A layer earlier, the states are less specialised. Among
# users of SD 1 the same trick is known as *clip skip*. In code it needs no switch: a text encoder of one layer less
# **is** it.

# %%
from dataclasses import replace

from minisd.models import CLIPTextTransformer

x = embed(ids)
for layer in clip.layers[:-1]:
    x = layer_step(x, layer)
early = layer_norm(x, clip.final_norm)

shorter = CLIPTextTransformer(replace(config, layers=config.layers - 1))
weights = {name: value for name, value in clip.state_dict().items() if f"layers.{config.layers - 1}." not in name}
shorter.load_state_dict(weights)
lesson.claim("one layer less is clip skip", torch.allclose(early, shorter(ids), atol=1e-5))
lesson.claim("the library's SD 2 has 23 of OpenCLIP's 24 layers", SD2_TEXT.layers == 24 - 1)
skipped = float((early - states).norm() / states.norm())
print(f"between the two, the states of the embedded model change by {skipped:.0%} of their length")

# %% [markdown]
# A UNet understands the states that it was trained with. Skipping layers under a UNet that was trained without is an
# experiment, not a setting.
#
# ## The real one
#
# The text encoder of Stable Diffusion 1 (CLIP ViT-L/14) is the same class with other sizes. On torch's *meta* device
# a network has shapes but no numbers, so it can be built in a moment, without memory:

# %%
with torch.device("meta"):
    large = CLIPTextTransformer(SD1_TEXT)


def count(module):
    return sum(p.numel() for p in module.parameters())


d, layers = SD1_TEXT.width, SD1_TEXT.layers
for name, size in (
    (f"token table, {SD1_TEXT.vocab_size:,} x {d}", count(large.token_embedding)),
    (f"place table, {SD1_TEXT.max_length} x {d}", count(large.position_embedding)),
    (f"attention, {layers} x 4 matrices {d} x {d}", layers * count(large.layers[0].attention)),
    (
        f"MLP, {layers} x 2 matrices {d} x {SD1_TEXT.mlp_width}",
        layers * (count(large.layers[0].expand) + count(large.layers[0].contract)),
    ),
    ("all", count(large)),
):
    print(f"{name:36} {size:12,}")
lesson.claim("123,060,480 parameters, as in the official file", count(large) == 123_060_480)

with torch.device("meta"):
    second = CLIPTextTransformer(SD2_TEXT)
lesson.claim("and 340,387,840 in the one of SD 2", count(second) == 340_387_840)

# %% [markdown]
# The names of the weights differ between the official files and this class; notebook 22 shows how they are matched. The
# functions of this lesson run on the official weights as well, as nothing in them depends on sizes.

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why can the UNet not just look up a vector for each word?</summary>
#
# A table gives "red" the same vector in every sentence. Which object is red depends on the place of the word in the
# sentence, and a state knows what comes before it.
#
# </details>
#
# <details><summary>Why does the state at "circle" not change when the last word of the prompt does?</summary>
#
# The causal mask gives every later token a share of 0. So the state is made from "circle" and the words before it only.
#
# </details>
#
# <details><summary>Why does the end token stand for the whole sentence?</summary>
#
# It comes after all words, so the mask lets it look at each of them. And CLIP was trained with the state at this place
# alone.
#
# </details>
#
# <details><summary>Why is padding not empty for the UNet?</summary>
#
# The padding comes after the words and looks back at them, so its states are further summaries of the sentence. Nothing
# tells the UNet's attention that these places are only filling.
#
# </details>
#
# <details><summary>Why is it dangerous to load CLIP with GELU in place of QuickGELU?</summary>
#
# The two functions are so similar that no error appears. But all states are a little wrong, and only a comparison with
# recorded numbers shows it.
#
# </details>
#
# ## Your turn
#
# Write this function yourself. `start` makes a file for it, and `minisd exercises check` compares your results with the
# reference and says what differs ([the exercises](../minisd/exercises/README.md)).
#
# - `minisd exercises start text_states`: write the forward pass of the text encoder from its parts.

# %% [markdown]
# ## Summary
#
# - Ids become vectors by two tables, for the word and for its place; equal layers make states of them: attention,
#   then an MLP, both normed before and added after.
# - The causal mask lets a token see only what comes before it: a later word never changes an earlier state.
# - The end token has read the whole sentence, and so has all the padding, which the UNet reads like words.
# - SD 2 reads one layer earlier: the same code with one layer less. QuickGELU and GELU must not be mixed up.
#
# **Code**: `CLIPTextTransformer` in [clip.py](../minisd/models/clip.py), `Attention` in
# [layers.py](../minisd/models/layers.py), the sizes in [configs.py](../minisd/configs.py).
# **Next**: [12 · CLIP, trained contrastively](12_contrastive.ipynb).
