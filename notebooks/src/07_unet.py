# %% [markdown]
# # 07 · The UNet, step by step
#
# **You will** take the UNet of the embedded model apart, write each of its parts as a plain function, run the whole
# network with your own functions on its weights, and find out what each part is for by leaving it out.
#
# **Needs** notebook 05 (what the UNet predicts); convolution, normalisation and attention by name.
#
# **Takes** 30 minutes to read, less than a minute to run.

# %% [markdown]
# ## What goes in, what comes out
#
# The UNet answers one question: *what in these latents is noise?* It has three inputs: the noisy latents, the timestep
# and the states of the words. It returns a tensor in the shape of the latents.

# %%
import math

import lesson
import torch
import torch.nn.functional as F

import weights_loader
from minisd.images import to_pil

sd = weights_loader.load("sticker")
unet, config = sd.unet, sd.unet.config
prompt = "a red circle above a blue square"
text = sd.encode_prompt([prompt])  # (1, tokens, width)
x = torch.randn(1, 4, config.sample_size, config.sample_size, generator=torch.Generator().manual_seed(3))
t = torch.tensor(600)

with torch.no_grad():
    expected = unet(x, t, text)
print("latents", tuple(x.shape), " timestep", int(t), " states", tuple(text.shape), " ->", tuple(expected.shape))
print("channels of the levels:", config.channels, " parameters:", f"{sum(p.numel() for p in unet.parameters()):,}")

# %% [markdown]
# ### A look at the whole
#
# Drawn as a diagram, the UNet has the form of the letter that it is named after. This is that of Stable Diffusion 1;
# the embedded model has three levels, with transformers on the lower two.
#
# ![Residual blocks at four resolutions, with transformers at the upper three: on the left the way down, below the
# middle, on the right the way up, and dashed arrows for the skips between both ways.](diagrams/unet.png)
#
# PyTorch can tell us when a module has run: a **hook** is a function that it calls with the module's input and output.
# One hook on every larger part, one call, and we have the tree of shapes. Read it as the way of the data: down in
# resolution, through the middle, up again.

# %%
from minisd.models.layers import Downsample, ResBlock, Upsample
from minisd.models.unet import MLP, SpatialTransformer


def watch(unet, note):
    """Call note(name, module, output) after each larger part that runs; returns the hooks, to be removed."""
    parts = {name: module for name, module in unet.named_modules() if name.count(".") <= 3}
    kinds = (MLP, ResBlock, SpatialTransformer, Downsample, Upsample)
    chosen = {n: m for n, m in parts.items() if isinstance(m, kinds) or n in ("conv_in", "conv_out")}
    return [
        module.register_forward_hook(lambda m, inputs, output, name=name: note(name, m, output))
        for name, module in chosen.items()
    ]


shapes = []
hooks = watch(unet, lambda name, module, output: shapes.append((name, type(module).__name__, tuple(output.shape[1:]))))
with torch.no_grad():
    unet(x, t, text)
for hook in hooks:
    hook.remove()
for name, kind, shape in shapes:
    print(f"{name:26} {kind:20} {shape}")
lesson.claim("out of the UNet comes the shape that went in", shapes[-1][2] == tuple(x.shape[1:]))

# %% [markdown]
# Three levels, each with half the height and width of the one before and twice its channels. What repeats is a
# `ResBlock`, where the time comes in, and, on the lower levels, a `SpatialTransformer`, where the words come in. We
# now write all of these.
#
# ## 1 · The time embedding
#
# A network cannot do much with the bare number 600. It needs a vector in which near timesteps look alike and far ones
# do not. Think of the hands of a clock: one that turns fast tells a timestep from the next, one that turns slowly tells
# early from late. So we take angles at many speeds, and of each the cosine and the sine:


# %%
def sinusoids(t, width):
    """Timesteps (N,) -> (N, width): cosines, then sines, of speeds from 1 down to nearly 1/10000."""
    speeds = 10000.0 ** -(torch.arange(width // 2) / (width // 2))
    angles = t[:, None] * speeds
    return torch.cat([angles.cos(), angles.sin()], dim=1)


every = torch.arange(1000.0)
hands = sinusoids(every, config.channels[0])
alike = hands @ hands[600] / hands[600].square().sum()
figure, (left, right) = lesson.axes(1, 2, width=4.2, height=2.8)
left.imshow(hands.T, aspect="auto", cmap="gray", interpolation="nearest")
left.set(xlabel="timestep", ylabel="place in the vector", title="16 hands, two coordinates each")
right.plot(every, alike)
right.axvline(600, color="#bbbbbb", linestyle="--")
right.set(xlabel="timestep", ylabel="similarity to t = 600", title="Near in time, near in the vector")
lesson.show(
    figure,
    alt="Left, stripes of 32 waves, some fast, some slow. Right, the similarity to t = 600 has a sharp peak there.",
    title="One number becomes a vector that can be compared",
)

from minisd.models import unet as library

apart = (sinusoids(torch.tensor([600.0]), 32) - library.sinusoids(torch.tensor([600]), 32)).abs().max()
lesson.claim("these are the library's sinusoids", apart < 1e-4)

# %% [markdown]
# A small network, two linear layers with a SiLU between, turns the hands into the vector that all residual blocks
# share.


# %%
def time_vector(t):
    hidden = unet.time.linear1(sinusoids(t.float().reshape(1), config.channels[0]))
    return unet.time.linear2(F.silu(hidden))


with torch.no_grad():
    time = time_vector(t)
    apart = (time - unet.embed_time(t, x)).abs().max()
print("the time, as the blocks get it:", tuple(time.shape))
lesson.claim("our time vector is the UNet's", apart < 1e-4)

# %% [markdown]
# ## 2 · The residual block
#
# Two convolutions, each after a group norm and a SiLU; the result is **added** to the input, so a block only has to
# learn a correction. Between the two convolutions the time is added: one number for each channel, the same at all
# positions. So the time cannot say *where*; it can say *how much of which feature*.
#
# The group norm brings each group of channels of each image to mean 0 and variance 1, then scales and shifts every
# channel.


# %%
def group_norm(norm, x):
    groups = x.unflatten(1, (norm.num_groups, -1))  # (B, groups, channels of one, h, w)
    mean = groups.mean((2, 3, 4), keepdim=True)
    variance = groups.var((2, 3, 4), keepdim=True, unbiased=False)
    x = ((groups - mean) / (variance + norm.eps).sqrt()).flatten(1, 2)
    return x * norm.weight[:, None, None] + norm.bias[:, None, None]


def residual(block, x, time):
    h = block.conv1(F.silu(group_norm(block.norm1, x)))
    h = h + block.time(F.silu(time))[:, :, None, None]
    h = block.conv2(F.silu(group_norm(block.norm2, h)))
    return block.skip(x) + h  # skip: a 1x1 convolution where the number of channels changes, else nothing


with torch.no_grad():
    start = unet.conv_in(x)
    block = unet.down[0].resnets[0]
    apart = (residual(block, start, time) - block(start, time)).abs().max()
print("conv_in:", tuple(x.shape), "->", tuple(start.shape))
lesson.claim("our residual block is the library's", apart < 1e-4)

# %% [markdown]
# ## 3 · The transformer: which position looks where
#
# A convolution sees its neighbours. Attention lets each position look at everything, and choose. Each position asks a
# *query*, each position or word to look at offers a *key* and a *value*; where query and key agree, the value is taken:
#
# $$\text{attention}(Q, K, V) = \text{softmax}\Big(\frac{Q K^\top}{\sqrt d}\Big)\,V$$
#
# It is done several times side by side with smaller vectors of width $d$ ("heads"), so that a position can look for
# several features at once.
#
# The transformer block uses it twice. In **self-attention** the keys and values come from the positions of the same
# feature map. In **cross-attention** they come from the states of the words: here, and only here, the prompt enters.
# Then a feed-forward layer processes each position alone; half of its hidden units are gates for the other half
# (GEGLU). Each of the three gets a normalised input, and is added to what was there.


# %%
def attention(layer, x, context):
    """x (B, N, width) looks at context (B, M, its width)."""

    def heads(tokens):
        return tokens.unflatten(-1, (layer.heads, -1)).transpose(1, 2)  # (B, heads, positions, d)

    q, k, v = heads(layer.q(x)), heads(layer.k(context)), heads(layer.v(context))
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)  # (B, heads, N, M)
    return layer.out((weights @ v).transpose(1, 2).flatten(2))


def feed_forward(layer, x):
    values, gates = layer.expand(x).chunk(2, dim=-1)
    return layer.contract(values * F.gelu(gates))


def transformer(module, x, text, off=()):
    """Feature map (B, width, h, w) -> the same; `off` names what is left out, for later."""
    h = module.proj_in(group_norm(module.norm, x))
    h = h.flatten(2).transpose(1, 2)  # a map is a list of positions: (B, h * w, width)
    for block in module.blocks:
        y = block.norm1(h)
        h = h + attention(block.attention1, y, y) * ("self-attention" not in off)
        h = h + attention(block.attention2, block.norm2(h), text) * ("cross-attention" not in off)
        h = h + feed_forward(block.feed_forward, block.norm3(h))
    h = h.transpose(1, 2).unflatten(2, x.shape[2:])  # back to a map
    return x + module.proj_out(h)


with torch.no_grad():
    module = unet.down[1].transformers[0]
    size = config.sample_size // 2
    some = torch.randn(1, config.channels[1], size, size, generator=torch.Generator().manual_seed(0))
    apart = (transformer(module, some, text) - module(some, text)).abs().max()
print(f"self-attention: {size * size} positions look at {size * size}; cross-attention: at {text.shape[1]} word pieces")
lesson.claim("our transformer is the library's", apart < 1e-4)

# %% [markdown]
# ## 4 · Down, through the middle, and up
#
# On the way **down** every map is kept on a stack before the next step. At the bottom a position covers a large part of
# the image, and the middle sees all of it: it can decide what goes where, but it has forgotten where the edges were. On
# the way **up** each block gets the map from below and, beside it in the channels, the kept map of the same size. These
# **skip connections** bring the exact places back. The way up has one block more on each level, so that every kept map
# is used once.
#
# Here is the whole forward pass:


# %%
def stage(level, i, x, time, text, off):
    x = residual(level.resnets[i], x, time)
    return transformer(level.transformers[i], x, text, off) if level.transformers else x


@torch.no_grad()
def forward(x, t, text, off=()):
    time = time_vector(t) * ("time" not in off)
    x = unet.conv_in(x)
    kept = [x]
    for level in unet.down:
        for i in range(len(level.resnets)):
            x = stage(level, i, x, time, text, off)
            kept.append(x)
        if level.resample is not None:
            x = level.resample.conv(x)  # every second position: half the height and width
            kept.append(x)

    if "middle" not in off:
        x = residual(unet.middle.resnets[0], x, time)
        x = transformer(unet.middle.transformer, x, text, off)
        x = residual(unet.middle.resnets[1], x, time)

    for level in unet.up:
        for i in range(len(level.resnets)):
            skip = kept.pop() * ("skips" not in off)
            x = stage(level, i, torch.cat([x, skip], dim=1), time, text, off)
        if level.resample is not None:
            x = level.resample.conv(F.interpolate(x, size=kept[-1].shape[2:]))  # each position doubled
    return unet.conv_out(F.silu(group_norm(unet.norm_out, x)))


for when in (1, 300, 600, 999):
    with torch.no_grad():
        theirs = unet(x, torch.tensor(when), text)
    apart = float((forward(x, torch.tensor(when), text) - theirs).abs().max())
    print(f"t = {when:3}: largest difference {apart:.1e}, of values up to {float(theirs.abs().max()):.1f}")
    assert apart < 1e-4
apart = (forward(x, t, text) - expected).square().mean().sqrt() / expected.square().mean().sqrt()
lesson.claim("our forward pass is sd.unet, to 1e-5 of its size", apart < 1e-5)
wide = torch.randn(1, 4, 18, 26, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    lesson.claim("in another image size, too", torch.allclose(forward(wide, t, text), unet(wide, t, text), atol=1e-4))

# %% [markdown]
# With the functions above this is the UNet of Stable Diffusion, all of it. It draws, too:


# %%
def draw(net, prompt=prompt, seed=3, steps=20, scale=3.0):
    """Text to image with any function in the UNet's place; notebooks 08 and 14 explain the loop."""
    states = sd.encode_prompt(["", prompt])
    grid = sd.scheduler.grid(steps)
    x = torch.randn(1, 4, config.sample_size, config.sample_size, generator=torch.Generator().manual_seed(seed))
    for i, t in enumerate(grid.timesteps):
        uncond, cond = net(torch.cat([x, x]), t, states).chunk(2)
        x = sd.scheduler.step(grid, i, x, uncond + scale * (cond - uncond)).x_prev
    return to_pil(sd.decode(x))[0]


import numpy as np

mine = draw(forward)
theirs = sd(prompt, seed=3, num_inference_steps=20, guidance_scale=3.0).images[0]
lesson.pictures(
    [mine, theirs],
    alt="Twice the same image of a red circle above a blue square.",
    title="Your UNet draws",
    labels=["our functions", "sd(...)"],
    size=1.6,
)
apart = np.abs(np.asarray(mine, dtype=int) - np.asarray(theirs, dtype=int)).max()
lesson.claim("the same image, to 2 of 255 steps of brightness", apart <= 2)

# %% [markdown]
# ### What the maps look like
#
# The strength of the feature maps on the way, on latents from which the image begins to appear:

# %%
steps = list(sd.denoise(prompt, seed=3, num_inference_steps=20))
middle_of_run = steps[12]
maps = []
hooks = watch(unet, lambda name, module, output: maps.append((name, output)) if output.ndim == 4 else None)
with torch.no_grad():
    unet(middle_of_run.latents, steps[13].t, text)
for hook in hooks:
    hook.remove()


def strength(map):
    """(1, C, h, w) -> (h, w), 0 to 1: how far each position's features are from the mean position's."""
    size = (map - map.mean((2, 3), keepdim=True))[0].norm(dim=0)
    return (size - size.min()) / (size.max() - size.min())


places = [f"{way}.{k}.resnets.0" for way in ("down", "up") for k in range(len(config.channels))]
found = dict(maps)
labels = [place.removesuffix(".resnets.0").replace(".", " ") for place in places]
labels.insert(len(config.channels), "middle")
places.insert(len(config.channels), "middle.resnets.1")
lesson.pictures(
    [to_pil(sd.decode(middle_of_run.x0))[0], *(strength(found[place]) for place in places)],
    alt="The image, then seven maps: objects with edges, coarser and coarser to four by four, then finer again.",
    title="Down to a few cells and up again (brighter: stronger)",
    labels=["image", *labels],
    cmap="magma",
)

# %% [markdown]
# ## 5 · How the words enter
#
# **Predict, then run**: same latents, same timestep, but "star" in place of "square". The tree above lists the parts in
# the order in which they run. Which is the first whose output changes?

# %%
other = sd.encode_prompt([prompt.replace("square", "star")])


def outputs(text):
    found = []
    hooks = watch(unet, lambda name, module, output: found.append((name, output)))
    with torch.no_grad():
        unet(x, t, text)
    for hook in hooks:
        hook.remove()
    return found


changes = [
    (name, float((a - b).norm() / a.norm())) for (name, a), (_, b) in zip(outputs(text), outputs(other), strict=True)
]
for name, change in changes:
    print(f"{name:26} {change:8.5f}  {'█' * math.ceil(40 * change)}".rstrip())
first = next(name for name, change in changes if change > 0)
lesson.claim("nothing changes before the first transformer", first == "down.1.transformers.0")
lesson.claim(
    "without cross-attention the prompt has no effect at all",
    torch.equal(forward(x, t, text, ["cross-attention"]), forward(x, t, other, ["cross-attention"])),
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The first transformer, on the second level. `conv_in`, the time and the first level's block come before it and never
# see a word. From there on the change is in the map, and everything behind it has it, blocks without attention as well.
# There is one entrance for the words; remove it, and two prompts give the same answer to the last bit.
#
# </details>
#
# ## 6 · Where the parameters live
#
# The class `UNet` has no sizes of its own; they are all in the configuration. So the same code is the UNet of Stable
# Diffusion 1.5, if we ask for its sizes. To count we need no gigabytes: on PyTorch's `meta` device tensors have a shape
# but no content.

# %%
from minisd.configs import SD1_UNET
from minisd.models.unet import UNet

with torch.device("meta"):
    official = UNet(SD1_UNET)
count = sum(p.numel() for p in official.parameters())
print(f"SD 1.5: {count:,} parameters in {len(official.state_dict())} tensors, channels {SD1_UNET.channels}")
print("transformers after a block, by level:", config.depths, "(embedded model)", SD1_UNET.depths, "(SD 1.5)")
lesson.claim("the UNet of SD 1.5 has 859,520,964 parameters", count == 859_520_964)

# %%
KINDS = {
    "attention1": "self-attention",
    "attention2": "cross-attention",
    "feed_forward": "feed-forward",
    "resnets": "residual blocks",
    "resample": "down- and upsampling",
}


def shares(unet):
    """The percentage of the parameters in each kind of part."""
    found = dict.fromkeys([*KINDS.values(), "the rest"], 0)
    for name, p in unet.named_parameters():
        kind = next((KINDS[part] for part in KINDS if f".{part}." in f".{name}."), "the rest")
        found[kind] += p.numel()
    return {kind: 100 * n / sum(found.values()) for kind, n in found.items()}


small, large = shares(unet), shares(official)
for kind in small:
    print(f"{kind:22} embedded model {small[kind]:5.1f} %   SD 1.5 {large[kind]:5.1f} %")
figure, panel = lesson.axes(width=6.5, height=2.8)
places = range(len(small))
panel.barh([p - 0.2 for p in places], list(small.values()), height=0.38, label="embedded model")
panel.barh([p + 0.2 for p in places], list(large.values()), height=0.38, label="SD 1.5", hatch="//")
panel.set_yticks(places, list(small))
panel.invert_yaxis()
panel.set(xlabel="% of the parameters")
panel.legend()
lesson.show(
    figure,
    alt="Pairs of bars for both models: the residual blocks are by far the longest, the attentions are short.",
    title="Most parameters are 3x3 convolutions, in both models",
)
lesson.claim(
    "more than half are in residual blocks, in both", min(small["residual blocks"], large["residual blocks"]) > 50
)

# %% [markdown]
# At which levels the words come in is a setting, too: the embedded model has no transformer on its highest level, SD
# 1.5 has none on its lowest. And the entrance for the words is small: few of the parameters decide what all the others
# draw. That is why methods that touch only attention (LoRA, word heat maps, prompt editing) go so far.
#
# ## 7 · Break it
#
# What is each part for? Leave it out of `forward`, and draw.
#
# **Predict, then run**: five images, each without one part: the skip connections, the time (its vector is zero), the
# cross-attention, the self-attention, the middle. Which is missed most, and is any of them not missed at all?

# %%
parts = ["skips", "time", "cross-attention", "self-attention", "middle"]
seeds = (3, 2)


def without(part):
    return lambda x, t, text: forward(x, t, text, [part])


rows = [[mine if seed == 3 else draw(forward, seed=seed)] for seed in seeds]
for row, seed in zip(rows, seeds, strict=True):
    row += [draw(without(part), seed=seed) for part in parts]
lesson.pictures(
    [picture for row in rows for picture in row],
    alt="Two rows: with all parts a circle above a square; nothing like it without skips, other objects without words.",
    title="Leave one part out: no image, other sizes, other objects, a stain, or hardly a change",
    columns=1 + len(parts),
    labels=["all parts", *(f"no {part}" for part in parts)],
    rows=[f"seed {seed}" for seed in seeds],
    size=1.3,
)


def error(off):
    """How far the prediction is from that of the whole UNet, relative to its size; mean over timesteps."""
    ratios = []
    for step, now in zip(steps[4:19:5], steps[5:20:5], strict=True):
        whole = forward(step.latents, now.t, text)
        ratios.append(float((forward(step.latents, now.t, text, [off]) - whole).norm() / whole.norm()))
    return sum(ratios) / len(ratios)


for part in parts:
    print(f"no {part:16} prediction off by {100 * error(part):4.0f} %")
lesson.claim("nothing is missed as much as the skips", error("skips") > max(error(part) for part in parts[1:]))

# %% [markdown]
# <details><summary>Answer</summary>
#
# - **Skips**: the way up gets only what fits through the few cells at the bottom. The exact places are lost, and with
#   them the noise itself, which is different in every cell: the UNet can no longer predict what it was trained to
#   predict.
# - **Cross-attention**: it draws without knowing the prompt. The number is small, and the image is a different one all
#   the same: the words change each prediction a little, but at every step in the same direction.
# - **Time**: the UNet has to guess from the latents how much noise there is. Its predictions are further off than
#   without words. Something like the objects of the prompt appears, but colours, edges and places suffer.
# - **Self-attention**: positions far apart can hardly agree on what each of them draws. Layout and circle stay, but a
#   part of the square gets another colour.
# - **Middle**: it may not be missed at all, in this model. Its images are small, and the blocks around the middle work
#   at the same resolution. Every part only adds a correction to what it gets, and nothing in the training says that
#   each part has to be used.
#
# So do not conclude from a drawing of a network what each part does in a trained one. Leave it out and look.
#
# </details>

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why does the time come in as cosines and sines of many speeds?</summary>
#
# A network cannot do much with one bare number. The fast waves tell a timestep from the next one, the slow waves tell
# early from late, so near timesteps get similar vectors and far ones do not.
#
# </details>
#
# <details><summary>Why are the skip connections missed more than any other part?</summary>
#
# Only a few cells are left at the bottom, and the exact places do not fit through them. The noise is different in every
# cell, so without the skips the UNet cannot predict it.
#
# </details>
#
# <details><summary>Which part must be removed so that all prompts give the same prediction, and why?</summary>
#
# The cross-attention: the states of the words enter there, and only there. All other parts see the latents and the
# time.
#
# </details>
#
# <details><summary>Why can the time not say where in the image a feature should be?</summary>
#
# It adds one number to each channel, the same at all positions. So it changes how much of a feature there is, but not
# its place.
#
# </details>
#
# <details><summary>Why may a trained UNet hardly miss a part that its drawing shows?</summary>
#
# Each part only adds a correction to what it gets, and nothing in the training says that each part has to be used.
# Leave a part out and look, before you say what it is for.
#
# </details>
#
# ## Your turn
#
# Write these functions yourself. `start` makes a file for each, and `minisd exercises check` compares your results with
# the reference and says what differs ([the exercises](../minisd/exercises/README.md)).
#
# - `minisd exercises start timestep_embedding`: turn timesteps into cosines and sines.
# - `minisd exercises start res_block`: write the residual block, with the time at its right place.
# - `minisd exercises start transformer_block`: put self-attention, cross-attention and the feed-forward layer together.

# %% [markdown]
# ## Summary
#
# - A UNet is two kinds of parts, repeated: residual blocks, which read the time, and transformers, which read the
#   words. Each adds a correction to what it gets.
# - On the way down maps become small and rich; on the way up the kept maps bring the exact places back.
# - The time is a vector of sines and cosines, the same at all positions; the words come in by cross-attention alone.
# - Your functions are `sd.unet`, to rounding, and the same code with other sizes is the UNet of SD 1.5.
#
# **Code**: [unet.py](../minisd/models/unet.py), [layers.py](../minisd/models/layers.py), sizes in
# [configs.py](../minisd/configs.py). **Next**: [08 · Guidance](08_guidance.ipynb).
