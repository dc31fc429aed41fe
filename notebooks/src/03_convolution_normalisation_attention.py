# %% [markdown]
# # 03 · Convolution, normalisation, attention
#
# **You will** build the three operations that the UNet of Stable Diffusion is made of, see what each does to an image,
# check each against the library's own, and run one block of the trained UNet by hand.
#
# **Needs** notebook 01 (matrix products, broadcasting, linear layers); of notebook 02, what a module is.
#
# **Takes** 25 minutes to read, less than a minute to run.

# %% [markdown]
# ## 1 · Convolution: one small question, asked everywhere
#
# A linear layer asks its questions to the whole image at once. For an image that is wasteful: an edge is an edge,
# wherever it is. So ask a small question, about 3 by 3 pixels, and move it over all places. The answers form an image
# again. That is a **convolution**, and the weights of the small question are its **kernel**.
#
# We take an image that the embedded model draws, in grey.

# %%
import lesson
import torch
import torch.nn.functional as F

import weights_loader

sd = weights_loader.load("sticker")
drawn = sd("a large red star", seed=3, num_inference_steps=12, output_type="pt").images
grey = drawn.mean(dim=1)[0]  # (64, 64), from -1, black, to 1, white
print("image", tuple(drawn.shape), "= (images, channels, height, width); grey", tuple(grey.shape))


def slide(picture, kernel):
    """Put the kernel at each place; multiply number by number; add up."""
    size = len(kernel)
    height, width = len(picture) - size + 1, picture.shape[1] - size + 1
    out = torch.zeros(height, width)
    for i in range(height):
        for j in range(width):
            out[i, j] = (picture[i : i + size, j : j + size] * kernel).sum()
    return out


print("out", tuple(slide(grey, torch.ones(3, 3)).shape), "- the kernel does not fit around the outermost pixels")

# %% [markdown]
# **Predict, then run**: here are four kernels. What will each make of the star? One of them leaves areas of one colour
# as they are, three of them answer 0 there. Which?

# %%
kernels = {
    "light at\nthe right": torch.tensor([[-1.0, 0, 1], [-1, 0, 1], [-1, 0, 1]]) / 3,
    "light\nbelow": torch.tensor([[-1.0, -1, -1], [0, 0, 0], [1, 1, 1]]) / 3,
    "mean": torch.ones(3, 3) / 9,
    "unlike its\nneighbours": torch.tensor([[-1.0, -1, -1], [-1, 8, -1], [-1, -1, -1]]) / 8,
}
answers = {name: slide(grey, kernel) for name, kernel in kernels.items()}
figure, panels = lesson.axes(1, 5, width=1.7, height=2.1)
for panel, (name, image) in zip(panels, {"image": grey, **answers}.items(), strict=True):
    plain = name in ("image", "mean")
    panel.imshow(image, cmap="gray" if plain else "RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    panel.set_title(name, fontsize=9)
    panel.set_xticks([])
    panel.set_yticks([])
lesson.show(
    figure,
    alt="The star in grey; its left and right edges; its upper and lower edges; the star blurred; its outline.",
    title="Four kernels, four questions (red: more than 0, blue: less, white: 0)",
)
corner = [float(answer[0, 0]) for answer in answers.values()]
print("in the upper left corner, where the image is", round(float(grey[0, 0]), 2), ":", [round(c, 2) for c in corner])
lesson.claim(
    "the mean keeps it, the others say 0", abs(corner[2] - grey[1, 1]) < 0.1 > max(map(abs, corner[:2] + corner[3:]))
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The mean leaves areas as they are, because its weights sum to 1; it blurs the edges between them. The weights of the
# others sum to 0: they are blind to brightness and see only changes, in one direction or in all.
#
# </details>
#
# In a network the kernels are learnt. There are also many of them, and each looks at all channels of its input: a
# kernel has the shape (channels, 3, 3), all together (outputs, channels, 3, 3). A rim of zeros around the image, the
# **padding**, keeps its size, and with **stride** 2 every second place is left out, which halves it.


# %%
def conv_loops(x, weight, bias, padding=0, stride=1):
    """x (C, H, W), weight (O, C, k, k), bias (O,) -> (O, H', W'); the definition, in loops."""
    x = F.pad(x, (padding,) * 4)
    outputs, _, size, _ = weight.shape
    rows, columns = range(0, x.shape[1] - size + 1, stride), range(0, x.shape[2] - size + 1, stride)
    out = torch.zeros(outputs, len(rows), len(columns))
    for o in range(outputs):
        for i, top in enumerate(rows):
            for j, left in enumerate(columns):
                out[o, i, j] = (x[:, top : top + size, left : left + size] * weight[o]).sum() + bias[o]
    return out


def same(a, b):
    """Equal but for rounding: nowhere apart by more than a hundred-thousandth of the largest value."""
    return a.shape == b.shape and (a - b).abs().max() <= 1e-5 * max(1, float(b.abs().max()))


unet = sd.unet.requires_grad_(False)  # we only look
latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
conv = unet.conv_in
slow = conv_loops(latents[0], conv.weight, conv.bias, padding=1)
print("weight", tuple(conv.weight.shape), "makes", tuple(latents.shape[1:]), "into", tuple(slow.shape))
lesson.claim("our loops are the UNet's first convolution", same(slow, conv(latents)[0]))

# %% [markdown]
# ### The same as a matrix product
#
# Loops are slow (notebook 01). But look at what happens at one place: the 4 * 3 * 3 numbers under the kernel are
# multiplied with those of the kernel and added up. That is a dot product! So cut out the numbers under the kernel at
# every place, write each as a column, and all the rest is one matrix product. Cutting out is called `unfold`.


# %%
def conv2d(x, weight, bias=None, padding=0, stride=1):
    """x (B, C, H, W), weight (O, C, k, k) -> (B, O, H', W')."""
    size = weight.shape[-1]
    height, width = ((side + 2 * padding - size) // stride + 1 for side in x.shape[2:])
    patches = F.unfold(x, size, padding=padding, stride=stride)  # (B, C * k * k, H' * W')
    y = weight.flatten(1) @ patches  # (O, C * k * k) times that
    y = y if bias is None else y + bias[:, None]
    return y.unflatten(2, (height, width))


print("patches", tuple(F.unfold(latents, 3, padding=1).shape), "weight", tuple(conv.weight.flatten(1).shape))
lesson.claim(
    "one product gives what the loops give",
    same(conv2d(latents, conv.weight, conv.bias, 1)[0], slow),
)

down = unet.down[0].resample.conv  # stride 2: to half the height and width
point = unet.down[1].resnets[0].skip  # a kernel of 1 by 1
features = torch.randn(2, 32, 16, 16, generator=torch.Generator().manual_seed(1))
halved = conv2d(features, down.weight, down.bias, padding=1, stride=2)
print("with stride 2:", tuple(features.shape), "->", tuple(halved.shape))
lesson.claim("it is the UNet's downsampling", same(halved, down(features)))
mixed = conv2d(features, point.weight, point.bias)
lesson.claim("it is the UNet's 1 by 1 convolution", same(mixed, point(features)))
everywhere = features.permute(0, 2, 3, 1) @ point.weight[:, :, 0, 0].T + point.bias
lesson.claim("and 1 by 1 is a linear layer at each position", same(everywhere.permute(0, 3, 1, 2), mixed))
whole = (4 * 16 * 16) * (32 * 16 * 16)
print(f"weights of this convolution: {conv.weight.numel():,}; of a linear layer between the same shapes: {whole:,}")

# %% [markdown]
# ## 2 · Normalisation: keep the numbers in range
#
# A deep network multiplies again and again. If each layer makes its numbers only a little larger, the last ones
# overflow; a little smaller, and nothing is left. Forty layers of random weights, a bit too large or too small:

# %%
dice = torch.Generator().manual_seed(2)
sizes = {}
for factor, name in ((1.3, "weights 30 % too large"), (0.7, "weights 30 % too small")):
    for normalised in (False, True):
        h = torch.randn(16, 64, generator=dice)
        curve = []
        for _ in range(40):
            h = factor * h @ torch.randn(64, 64, generator=dice) / 8
            if normalised:
                h = (h - h.mean(1, keepdim=True)) / h.std(1, keepdim=True)
            curve.append(float(h.std()))
        sizes[name + (", normalised" if normalised else "")] = curve

figure, panel = lesson.axes(width=7.6, height=2.5)
for (name, curve), style in zip(sizes.items(), ("-", ":", "--", "-."), strict=True):
    panel.plot(range(1, 41), curve, style, label=name)
panel.set(yscale="log", xlabel="layer", ylabel="size of the numbers")
panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
lesson.show(
    figure,
    alt="One curve rises exponentially over 40 layers, one falls; the two normalised ones stay at 1.",
    title="Without normalisation, forty layers amplify what one does",
)
lesson.claim(
    "normalised, the numbers stay near 1", all(abs(curve[-1] - 1) < 0.2 for n, curve in sizes.items() if "norm" in n)
)

# %% [markdown]
# So between the layers numbers are brought to mean 0 and deviation 1. *Which* numbers share one mean and one deviation?
# The UNet uses **group normalisation** (Wu and He 2018): split the channels into groups; each group of each image is
# normalised by itself, over all its channels and positions. Images of a batch thus never influence each other. Then
# each channel gets a learnt factor $\gamma$ and offset $\beta$, so that the network can choose another range:
#
# $$y = \gamma\,\frac{x-\mu}{\sqrt{\sigma^2+\varepsilon}}+\beta$$


# %%
def group_norm(x, groups, gamma, beta, eps):
    """x (B, C, H, W), gamma and beta (C,) -> the same shape."""
    grouped = x.unflatten(1, (groups, -1)).flatten(2)  # (B, groups, all numbers of a group)
    mean = grouped.mean(2, keepdim=True)
    variance = ((grouped - mean) ** 2).mean(2, keepdim=True)
    y = ((grouped - mean) / (variance + eps).sqrt()).view(x.shape)
    return y * gamma[:, None, None] + beta[:, None, None]


norm = unet.down[1].resnets[0].norm1
print(f"{norm.num_groups} groups of {norm.num_channels // norm.num_groups} channels, eps {norm.eps}")
ours = group_norm(3 + 2 * features, norm.num_groups, norm.weight, norm.bias, norm.eps)
lesson.claim("it is the UNet's normalisation", same(ours, norm(3 + 2 * features)))

# %% [markdown]
# ### What eps is for
#
# $\varepsilon$ keeps us from dividing by 0 where all numbers of a group are equal. It looks like a detail. Stable
# Diffusion has two values of it: 1e-5 in the residual blocks of the UNet, 1e-6 in its transformers and in the
# autoencoder.
#
# **Predict, then run**: someone uses 1e-5 where 1e-6 would be right. By how much is the output wrong for an input of
# deviation 1, of 0.1, of 0.01?

# %%
one, zero = torch.ones(32), torch.zeros(32)
wrong = []
for deviation in (1, 0.1, 0.01):
    x = deviation * features
    apart = group_norm(x, 8, one, zero, 1e-5) - group_norm(x, 8, one, zero, 1e-6)
    wrong.append(float(apart.abs().max()))
    print(f"deviation {deviation:4}: wrong by up to {wrong[-1]:.5f}")
lesson.claim("the smaller the input varies, the more eps matters", wrong[0] < wrong[1] < wrong[2])
lesson.claim("at a deviation of 0.01 it matters a lot", wrong[2] > 0.05)
quiet = group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
lesson.claim("for such a quiet input, too, ours is the UNet's normalisation", same(quiet, norm(x)))
flat = torch.full((1, 32, 4, 4), 0.5)
lesson.claim("without eps, a flat input gives no numbers at all", group_norm(flat, 8, one, zero, 0).isnan().all())
lesson.claim("with it, it gives 0", bool((group_norm(flat, 8, one, zero, 1e-5) == 0).all()))

# %% [markdown]
# <details><summary>Answer</summary>
#
# What counts is eps compared with the variance, the *square* of the deviation. Compared with 1, both values are
# nothing. Compared with the square of 0.01, the larger one is a tenth and the smaller one a hundredth. Plain
# backgrounds can make such quiet groups. So a program with the wrong eps may pass a test on random numbers, and go
# wrong on images.
#
# </details>
#
# ## 3 · Attention: ask all positions
#
# A convolution sees its neighbours. To learn that the other end of the image has a star as well, a position would need
# many layers. **Attention** asks all positions at once. Every position computes three vectors, each by a linear layer:
#
# - a **query** `q`: what I am looking for,
# - a **key** `k`: what I have to offer,
# - a **value** `v`: what I hand over when I am chosen.
#
# The dot product of a query with a key says how well they match. `softmax` turns the matches into shares that are
# positive and sum to 1. And with these shares the values are mixed (Vaswani et al. 2017, equation 1):
#
# $$\mathrm{attention}(q, k, v) = \mathrm{softmax}\!\left(\frac{q\,k^{\mathsf T}}{\sqrt{d}}\right) v$$


# %%
def softmax(scores):
    """Shares along the last axis. The largest is taken away first: exp of a large number would overflow."""
    powers = (scores - scores.max(-1, keepdim=True).values).exp()
    return powers / powers.sum(-1, keepdim=True)


def attention(q, k, v):
    """q (..., N, d), k and v (..., M, d) -> the mixtures (..., N, d) and the shares (..., N, M)."""
    weights = softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5)
    return weights @ v, weights


from minisd.models.layers import readable_attention

q, k, v = (torch.randn(2, n, 16, generator=dice) for n in (5, 7, 7))
lesson.claim("our softmax sums to 1", same(softmax(q).sum(-1), torch.ones(2, 5)))
mine, theirs = attention(q, k, v), readable_attention(q, k, v)
lesson.claim("it is the library's attention", same(mine[0], theirs[0]))
lesson.claim("and its shares", same(mine[1], theirs[1]))

# %% [markdown]
# What does a row of the shares mean? Here is an example without anything learnt: a small image. The numbers of one
# position are called a **token**; here they are the three numbers of its colour. Query and key both say "my colour", so
# a position finds those of its own colour:

# %%
from minisd.images import to_pil
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Object, Scene

scene = Scene(
    (
        Object("circle", "red", "medium", 0.22, 0.25, 0.14),
        Object("square", "blue", "medium", 0.75, 0.3, 0.14),
        Object("circle", "red", "medium", 0.7, 0.78, 0.14),
    )
)
side = 16
tiny = render([scene], size=side)
tokens = tiny[0].flatten(1).T  # (positions, 3)
looking = 3 * tokens
mixture, shares = attention(looking, looking, tokens)
places = {"red": (4, 3), "blue": (5, 12), "white": (14, 3)}  # row, column
rows = {name: shares[i * side + j].view(side, side) for name, (i, j) in places.items()}

figure, panels = lesson.axes(1, 4, width=1.9, height=2.1)
panels[0].imshow(to_pil(tiny)[0], interpolation="nearest")
for i, j in places.values():
    panels[0].plot(j, i, "x", color="black", markersize=7)
panels[0].set_title("three positions, marked")
for panel, (name, row) in zip(panels[1:], rows.items(), strict=True):
    i, j = places[name]
    panel.imshow(row, cmap="magma", interpolation="nearest", vmin=0)
    panel.plot(j, i, "x", color="gray", markersize=7)
    panel.set_title(f"the row of the {name} one")
for panel in panels:
    panel.set_xticks([])
    panel.set_yticks([])
    panel.title.set_fontsize(9)
lesson.show(
    figure,
    alt="An image of two red circles and a blue square; three maps: bright at both circles, the square, the ground.",
    title="A row says where its position looks: at its own colour, however far away",
)
far = float(rows["red"][11:14, 10:13].sum())
print(f"of the red position's attention, {far:.0%} goes to the middle of the other circle")
lesson.claim("the other circle gets more than its share of the area", far > 2 * 9 / side**2)

# %% [markdown]
# Both circles light up, though they are far apart: to attention all positions are equally near. That has a price. It
# does not know where anything is:
#
# **Predict, then run**: we shuffle the positions of the image like a pack of cards, and apply attention. How does the
# result differ from the one without shuffling?

# %%
order = torch.randperm(side * side, generator=dice)
shuffled, _ = attention(looking[order], looking[order], tokens[order])
lesson.claim("it is the same result, shuffled in the same way", same(shuffled, mixture[order]))

# %% [markdown]
# <details><summary>Answer</summary>
#
# Only in its order: each position finds the same colours, wherever they are now. Therefore text encoders add to each
# word a vector for its place (notebook 11). The UNet manages without such vectors: its convolutions know which
# positions are neighbours, and the zeros that they add around the map show where its border is.
#
# </details>
#
# ### Why the root of d
#
# A dot product of `d` random numbers grows with the root of `d`, and `softmax` of large numbers gives nearly everything
# to the largest. The division keeps the choice soft, whatever the width:

# %%
for d in (4, 64, 1024):
    q, k = torch.randn(200, d, generator=dice), torch.randn(10, d, generator=dice)
    raw, scaled = softmax(q @ k.T), softmax(q @ k.T / d**0.5)
    largest, softer = float(raw.max(-1).values.mean()), float(scaled.max(-1).values.mean())
    print(f"d = {d:4}: largest of 10 shares {largest:.2f}; divided by the root {softer:.2f}")
lesson.claim("at width 1024 the undivided choice is all or nothing", largest > 0.9)
lesson.claim("the divided one stays soft", softer < 0.5)

# %% [markdown]
# ### Heads, and where the words come in
#
# One row of shares can look for one kind of feature. To look for several at once, the numbers of query, key and value
# are cut into **heads**, each head attends by itself, and their results are put side by side again. A last linear layer
# mixes them.
#
# And `k` and `v` need not come from the image. In **cross-attention** they come from the words of the prompt. That is
# the place where text steers Stable Diffusion: each position asks all words. One head, with N positions and M words:
#
# ![Positions of the image give queries Q, text states give keys K and values V; Q and K give weights, whose rows sum
# to 1, and the result is a weighted mean of V.](diagrams/attention.png)


# %%
def heads_apart(tokens, heads):
    """(B, N, width) -> (B, heads, N, width / heads)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def multi_head(layer, x, context=None):
    """The attention of tokens x (B, N, width) to a context (B, M, any width), or to themselves."""
    context = x if context is None else context
    q, k, v = x @ layer.q.weight.T, context @ layer.k.weight.T, context @ layer.v.weight.T
    mixed, weights = attention(*(heads_apart(each, layer.heads) for each in (q, k, v)))
    return mixed.transpose(1, 2).flatten(2) @ layer.out.weight.T + layer.out.bias, weights


block = unet.down[1].transformers[0].blocks[0]
x = torch.randn(1, 64, 64, generator=dice)
words = sd.encode_prompt(["a red star"])
to_itself, _ = multi_head(block.attention1, x)
to_words, weights = multi_head(block.attention2, x, words)
print("words", tuple(words.shape), "shares", tuple(weights.shape), "= (images, heads, positions, words)")
lesson.claim("it is the UNet's self-attention", same(to_itself, block.attention1(x)))
lesson.claim("it is its cross-attention to the words", same(to_words, block.attention2(x, words)))

# %% [markdown]
# Notebook 21 shows these shares as heat maps: where the image looks at a word.
#
# ## One block of the UNet, by hand
#
# The UNet is a stack of **residual blocks** with attention between them. A residual block normalises, bends the numbers
# with `silu`, and convolves; twice. In between it gets the noise level: the timestep, as a vector (notebook 07), goes
# through a linear layer and is added to each channel, the same at all positions. At the end the input is added again
# (through a 1 by 1 convolution, where the number of channels changes). So the block only learns what to *change*. The
# input, and on the way back the gradient, has a straight road through the whole network.


# %%
def silu(x):
    """x times a switch between 0 and 1: for large x the number itself, for very negative x nothing."""
    return x / (1 + (-x).exp())


def res_block(block, x, time, eps=None, timed=True, skip=True, groups=None):
    """A residual block from our own pieces; the last four arguments are for making mistakes."""
    eps, groups = eps or block.norm1.eps, groups or block.norm1.num_groups
    h = silu(group_norm(x, groups, block.norm1.weight, block.norm1.bias, eps))
    h = conv2d(h, block.conv1.weight, block.conv1.bias, padding=1)
    if timed:
        shift = silu(time) @ block.time.weight.T + block.time.bias  # (B, channels)
        h = h + shift[:, :, None, None]
    h = silu(group_norm(h, groups, block.norm2.weight, block.norm2.bias, eps))
    h = conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)
    return h + conv2d(x, block.skip.weight, block.skip.bias) if skip else h


block = unet.down[1].resnets[0]
entered = []
handle = block.register_forward_pre_hook(lambda module, inputs: entered.append(inputs))  # what really comes in
with torch.no_grad():
    unet(latents, torch.tensor(500), words)
handle.remove()
(x, time), right = entered[0], block(*entered[0])
mine = res_block(block, x, time)
print("in", tuple(x.shape), "time", tuple(time.shape), "out", tuple(mine.shape))
print(f"largest difference {float((mine - right).abs().max()):.0e}, of values up to {float(right.abs().max()):.1f}")
lesson.claim("our block is the UNet's block", same(mine, right))

# %% [markdown]
# **Predict, then run**: four mistakes in this block: eps ten times too small, four groups instead of eight, the time
# forgotten, the input not added. Which would show in the numbers that the block returns? And which if the input were
# quieter, a hundredth of this one?

# %%
mistakes = {
    "eps ten times too small": {"eps": 1e-6},
    "four groups": {"groups": 4},
    "time forgotten": {"timed": False},
    "input not added": {"skip": False},
}
changed = {}
for name, mistake in mistakes.items():
    for kind, given in (("this input", x), ("a quiet one", x / 100)):
        expected = block(given, time)
        changed[name, kind] = float((res_block(block, given, time, **mistake) - expected).norm() / expected.norm())
    print(f"{name:24} changes the output by {changed[name, 'this input']:9.4%}, {changed[name, 'a quiet one']:9.4%}")
lesson.claim(
    "with this input, the wrong eps is the smallest mistake of all",
    min(mistakes, key=lambda name: changed[name, "this input"]) == "eps ten times too small",
)
lesson.claim(
    "with a quiet one it is a hundred times larger",
    changed["eps ten times too small", "a quiet one"] > 100 * changed["eps ten times too small", "this input"],
)
lesson.claim("the other three change more than 1 %", min(changed[n, "this input"] for n in list(mistakes)[1:]) > 0.01)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Three of them show at once. The wrong eps hides in the rounding, unless the input is quiet. A network with such a
# mistake draws images, and they look right. So if you rebuild a network from a description, compare numbers, piece by
# piece, with inputs that are chosen to reveal mistakes. That is what the ticks in these lessons are for.
#
# </details>

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why does a convolution need so many fewer weights than a linear layer?</summary>
#
# Its kernel looks at a small neighbourhood only, and the same kernel is used at all places. A linear layer has a weight
# of its own for each pair of an input number and an output number.
#
# </details>
#
# <details><summary>Why can a wrong eps stay unnoticed in a test on random numbers?</summary>
#
# eps is added to the variance, so it matters only where the variance is about as small as eps. Random numbers have
# variance 1; a plain background can have nearly none.
#
# </details>
#
# <details><summary>What would attention do at a large width without the division by the root of d?</summary>
#
# Dot products of longer vectors are larger, and softmax of large numbers gives nearly everything to the largest. Each
# position would take one value and ignore the others.
#
# </details>
#
# <details><summary>How does cross-attention differ from self-attention?</summary>
#
# Only in where keys and values come from. In self-attention they come from the positions of the image, in
# cross-attention from the words of the prompt; the queries come from the image in both.
#
# </details>
#
# <details><summary>Why is the input of a residual block added to its output?</summary>
#
# So the block only has to learn what to change, not to pass on everything that should stay. On the way back, the
# gradient has a direct way through the addition.
#
# </details>
#
# ## Your turn
#
# Write these functions yourself. `start` makes a file for each, and `minisd exercises check` compares your results with
# the reference and says what differs ([the exercises](../minisd/exercises/README.md)).
#
# - `minisd exercises start group_norm`: normalise each group of channels of each image, with its own mean and variance.
# - `minisd exercises start attention`: let each query take a weighted mean of the values, with an option to hide later
#   keys.
# - `minisd exercises start split_heads`: cut each token into heads without mixing the tokens.

# %% [markdown]
# ## Summary
#
# - Convolution: one small question at all places; cut out the patches, and it is a matrix product.
# - Group normalisation: mean 0 and deviation 1 within groups of channels, then a learnt range. eps is added to the
#   variance, so it matters where little varies.
# - Attention: queries meet keys, softmax makes shares, shares mix values. It sees everything, and knows no places; with
#   keys and values from the prompt it lets the words in.
# - A residual block of the UNet is nothing but these pieces, and ours gives the same numbers.
#
# **Code**: all of it in [layers.py](../minisd/models/layers.py); how the blocks are stacked in
# [unet.py](../minisd/models/unet.py). **Next**: [04 · Denoising digits](04_denoising_digits.ipynb).
