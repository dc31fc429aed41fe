# %% [markdown]
# # 21 · Word heat maps: where the image looks at a word
#
# **You will** compute cross-attention by hand, record it in a running model without changing a bit of the image, make
# heat maps of words, and check with an exact judge whether they point at the right object.
#
# **Needs** notebook 14 (the UNet and the states of the text).
#
# **Takes** 15 minutes to read, less than a minute to run.

# %% [markdown]
# ## Cross-attention, by hand
#
# The words enter the UNet in one way only: cross-attention. Each place of the feature map makes a *query*, each token
# of the prompt a *key* and a *value*. How well query and key fit decides how much of the value the place takes:
#
# $$\text{weights} = \text{softmax}\left(\frac{Q K^\top}{\sqrt{d}}\right), \qquad \text{out} = \text{weights}\; V$$
#
# The weights of one place sum to 1 over the tokens. They are what a heat map shows.

# %%
import lesson
import torch

import weights_loader
from minisd.interpret.attention_maps import overlay, record_attention


def attention(q, k, v):
    """q (places, d), k and v (tokens, d) -> what each place takes, and from where."""
    weights = torch.softmax(q @ k.T / q.shape[-1] ** 0.5, dim=-1)
    return weights @ v, weights


draw = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(n, 8, generator=draw) for n in (5, 3, 3))
out, weights = attention(q, k, v)
fused = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
lesson.claim("two lines do what PyTorch's fused function does", torch.allclose(out, fused, atol=1e-5))
lesson.claim("each place spreads a weight of 1 over the tokens", torch.allclose(weights.sum(-1), torch.ones(5)))

# %% [markdown]
# ## Recording a run
#
# The fused function does not return its weights; the recorder computes them in addition.
#
# **Predict, then run**: will the image with recording be the same as without, bit for bit?

# %%
sd = weights_loader.load("sticker")
prompt = "a red circle above a blue square"
with record_attention(sd) as maps:
    picture = sd(prompt, seed=3, num_inference_steps=20).images[0]
plain = sd(prompt, seed=3, num_inference_steps=20).images[0]

lesson.claim("recording changes no bit", picture.tobytes() == plain.tobytes())
print(f"{len(maps.maps)} maps, of {len({(m.part, m.level) for m in maps.maps})} kinds of layers, in 20 steps")
share = maps.maps[0].weights
lesson.claim(
    "each is a share that sums to 1 over the tokens",
    torch.allclose(share.sum(-1), torch.ones(share.shape[:-1]), atol=1e-4),
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The same: what makes the image is computed as before, and the weights are computed in addition.
#
# </details>
#
# ## One map a word
#
# For a word, take the share of its token at each place, enlarge the maps of all layers to one size, and take the mean
# over heads, layers and steps.

# %%
from minisd.sticker.world.checker.check import check

named = ["red", "circle", "above", "blue", "square"]
heat = {word: maps.heat_map(word, prompt) for word in named}
objects = {thing.shape: thing for thing in check(picture, prompt).found}


def inside(thing, size):
    """The cells (size, size) whose centres are in an object, taken as a disc of its area."""
    centres = (torch.arange(size) + 0.5) / size
    return (centres - thing.x) ** 2 + (centres[:, None] - thing.y) ** 2 < thing.area / torch.pi


masks = {shape: inside(thing, len(heat["red"])) for shape, thing in objects.items()}
masks["elsewhere"] = ~(masks["circle"] | masks["square"])
share = {word: {where: float(heat[word][mask].mean()) for where, mask in masks.items()} for word in named}
for word, each in share.items():
    print(f"{word:7}", ", ".join(f"{where} {value:.3f}" for where, value in each.items()))
lesson.pictures(
    [picture, *(overlay(picture, heat[word]) for word in named), picture, *heat.values()],
    alt="Heat maps of five words, each on its own scale, below all on one: circle and above are bright at the circle, "
    "square at the square, red and blue are even.",
    title=lesson.claim(
        "Nouns point at their objects; the colours point nowhere",
        all(share[noun][noun] > 1.3 * share[noun]["elsewhere"] for noun in ("circle", "square"))
        and all(max(share[word].values()) < 1.15 * min(share[word].values()) for word in ("red", "blue")),
    ),
    columns=1 + len(named),
    labels=["image", *named],
    rows=["each on its\nown scale", "all on\none scale"],
    size=1.3,
    cmap="magma",
)
alike = float(torch.corrcoef(torch.stack([heat["above"].flatten(), heat["circle"].flatten()]))[0, 1])
lesson.claim("the map of “above” has the form of that of “circle”", alike > 0.9)

# %% [markdown]
# The image takes its colours from somewhere else: the state of the word "circle" has read "red" (notebook 11), so the
# noun carries its colour. The map of "above" is a quarter as strong as that of "circle" and has the same form. An
# overlay stretches every map to its own range, so it makes weak maps look strong; print the shares before you believe
# a heat map.
#
# **This UNet had help.** Its training had a second loss, which taught the attention of nouns to be where their objects
# are ([grounding.py](../minisd/sticker/training/grounding.py), notebook 13). So the maps below show what that loss
# achieved, not what attention finds alone. Nobody taught Stable Diffusion's attention; Tang et al. 2023 (DAAM) measured
# it there.
#
# ## Does it point at the right object?
#
# A heat map looks convincing easily. Here it can be judged: the checker of Sticker World says where each object was
# drawn, and the hottest place of a noun's map is either there or not.

# %%
import math

from minisd.images import from_pil
from minisd.sticker.world.checker.segment import detect_objects

nouns = ["circle", "square", "triangle", "star"]
hits = total = 0
area = []
for noun in nouns:
    asked = f"a green {noun}"
    with record_attention(sd, every=4) as recorded:
        drawn = sd(asked, num_images_per_prompt=4, seed=10, num_inference_steps=12).images
    for n, image in enumerate(drawn):
        found, _ = detect_objects(from_pil(image)[0])
        if len(found) != 1:
            continue  # nothing to point at, or more than one
        thing = found[0]
        hot = recorded.heat_map(noun, asked, picture=n)
        row, column = divmod(int(hot.argmax()), hot.shape[1])
        x, y = (column + 0.5) / hot.shape[1], (row + 0.5) / hot.shape[0]
        reach = 1.2 * math.sqrt(thing.area / math.pi) + 0.5 / hot.shape[0]  # about the object, and half a cell
        hits += (x - thing.x) ** 2 + (y - thing.y) ** 2 <= reach**2
        area.append(math.pi * reach**2)
        total += 1
chance = 100 * sum(area) / len(area)
print(f"{hits} of {total} maps are hottest at their object; a random point would be in {chance:.0f} of 100 cases")
lesson.claim("far more often than by chance", hits / total > 3 * chance / 100)

# %% [markdown]
# ## Early and late, coarse and fine
#
# The mean hides when and where it happens. By steps, for one noun:
#
# **Predict, then run**: at the first step there is only noise. Where will the map of "circle" be bright?

# %%
steps = [0, 2, 5, 10, 19]
lesson.pictures(
    [maps.heat_map("circle", prompt, step=i) for i in steps] + [maps.heat_map("square", prompt, step=i) for i in steps],
    alt="Two rows of five maps, for circle and square, from spread out at the first step to sharper ones later.",
    title="The words find their places within the first steps",
    columns=len(steps),
    labels=[f"step {i}" for i in steps],
    rows=["circle", "square"],
    cmap="magma",
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# In no place in particular: a broad region at most. It sharpens as the object appears in the latents (compare the
# predictions in notebook 15).
#
# </details>
#
# ## What a heat map does not prove
#
# Attention is where a layer *looks*, not what it makes of it. The states of the text have read each other (notebook
# 14): "square" knows of "blue", and the end token of the whole prompt. How much of the attention goes to no word at
# all?

# %%
last = len(sd.tokenizer.tokenize(prompt)) + 1  # where the end token is
mean = torch.stack([m.weights[0].mean((0, 1)) for m in maps.maps]).mean(0)
for name, part in (("start token", mean[:1]), ("words", mean[1:last]), ("end and padding", mean[last:])):
    print(f"{name}: {100 * part.sum():.0f} %")
lesson.claim("together they are all of it", abs(float(mean.sum()) - 1) < 1e-3)

# %% [markdown]
# ## What you can now explain
#
# <details><summary>What follows for heat maps, if the weights of a place sum to 1 over the tokens?</summary>
#
# A map shows a share. A token gets more of it only if the others get less, so a bright place says that this word gets
# more than the other tokens there.
#
# </details>
#
# <details><summary>Why may a weak heat map look strong?</summary>
#
# An overlay stretches each map to its own range. Print the shares, or show all maps on one scale, to see how much
# attention the word gets.
#
# </details>
#
# <details><summary>Why do the maps of colours point nowhere, although the colours are right?</summary>
#
# The state of the noun has read the colour before it, so the noun carries its colour. The UNet need not look at the
# token of the colour.
#
# </details>
#
# <details><summary>Why do the maps of this model prove little about Stable Diffusion?</summary>
#
# The training of this UNet had a second loss, which taught the attention of nouns where their objects are. No such loss
# taught the attention of Stable Diffusion.
#
# </details>
#
# <details><summary>Why is a heat map no proof that the word made the object?</summary>
#
# Attention says where a layer looks, not what it does with what it finds. And the states have read each other, so the
# state of one word can carry others.
#
# </details>
#
# ## Your turn
#
# Write this function yourself. `start` makes a file for it, and `minisd exercises check` compares your results with the
# reference and says what differs ([the exercises](../minisd/exercises/README.md)).
#
# - `minisd exercises start heat_map`: make a heat map of a word from the attention of several layers.

# %% [markdown]
# ## Summary
#
# - Cross-attention is how words enter; its weights, a share for each place and token, can be recorded without changing
#   the image.
# - Averaged over heads, layers and steps they become heat maps of words. Here those of nouns point at their objects,
#   which a loss taught them; those of colours point nowhere.
# - They show where the model looks, not why it draws what it draws.
#
# **Code**: [attention_maps.py](../minisd/interpret/attention_maps.py), `Attention` in
# [layers.py](../minisd/models/layers.py). **Next**: [22 · How official weights get in](22_official_weights.ipynb).
