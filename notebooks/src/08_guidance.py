# %% [markdown]
# # 08 · Classifier-free guidance: why the UNet gives two predictions
#
# **You will** see what is in the two outputs of the UNet, combine them by hand into an image that follows the prompt,
# prove that one batched call equals two calls, and measure what the guidance scale buys and costs.
#
# **Needs** notebook 05 (what the UNet predicts, DDIM).
#
# **Takes** 15 minutes to read, less than a minute to run.

# %% [markdown]
# ## The riddle
#
# Look into any Stable Diffusion program and you find that the UNet is given one image's latents and "returns two". Here
# is that moment, with everything laid out. First the words, as the text encoder returns them:

# %%
import lesson
import torch

import weights_loader
from minisd.images import to_pil
from minisd.pipeline import guidance

sd = weights_loader.load("sticker")
prompt = "a red star"
cond = sd.encode_prompt([prompt])
uncond = sd.encode_prompt([""])
print("the prompt:      ", tuple(cond.shape), "= (images, tokens, width)")
print("the empty prompt:", tuple(uncond.shape))

# %%
size = (sd.unet.config.in_channels, sd.unet.config.sample_size, sd.unet.config.sample_size)
x = torch.randn(1, *size, generator=torch.Generator().manual_seed(2))
t = torch.tensor(999)

with torch.no_grad():
    both = sd.unet(torch.cat([x, x]), t, torch.cat([uncond, cond]))

print("in: ", tuple(torch.cat([x, x]).shape), "and text", tuple(torch.cat([uncond, cond]).shape))
print("out:", tuple(both.shape))

# %% [markdown]
# So the UNet does not return two images for one. It is given a **batch of two**: the same latents twice, once with the
# empty prompt, once with ours. As with every batch, it returns one prediction for each row. Nothing is stacked in the
# channels, and the rows do not influence each other:
#
# **Predict, then run**: instead of one call with a batch of two, two calls with one image each. Are the results equal?

# %%
with torch.no_grad():
    first = sd.unet(x, t, uncond)
    second = sd.unet(x, t, cond)

apart = float((torch.cat([first, second]) - both).abs().max())
print(f"largest difference: {apart:.1e}, of values up to {float(both.abs().max()):.1f}")
lesson.claim("one batched call is two calls (to rounding)", apart < 1e-4)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Equal, up to the rounding of the last digits. The batch is there for speed alone: one call with two rows keeps the
# processor busier than two calls with one.
#
# </details>
#
# ## Why ask without a prompt?
#
# What is in the two predictions? Each one, with the latents, gives a guess of the finished image (notebook 05). Some
# steps into a run the two can be told apart by eye. The **difference** is the interesting part: what the words changed.

# %%
grid = sd.scheduler.grid(20)
schedule = sd.scheduler.schedule


def decoded(latents):
    return to_pil(sd.decode(latents))[0]


def halves(x, i):
    """The two predictions at call i, and the clean images that follow from them."""
    with torch.no_grad():
        u, c = sd.unet(torch.cat([x, x]), grid.timesteps[i], torch.cat([uncond, cond])).chunk(2)
    alpha_bar = schedule.alpha_bar(grid.source[i])
    return u, c, schedule.x0_and_eps(x, u, alpha_bar)[0], schedule.x0_and_eps(x, c, alpha_bar)[0]


shown, changes = [], []
for i in range(len(grid)):
    u, c, x0_u, x0_c = halves(x, i)
    if i in (0, 3, 6, 9, 13, 19):
        shown.append((i, decoded(x0_u), decoded(x0_c), (c - u)[0].norm(dim=0)))
    changes.append(float((c - u).square().mean().sqrt()))
    x = sd.scheduler.step(grid, i, x, u + 3.0 * (c - u)).x_prev

labels = [f"t = {int(grid.timesteps[i])}" for i, *_ in shown]
lesson.pictures(
    [each[1] for each in shown] + [each[2] for each in shown],
    alt="Above guesses without the prompt, below with it: early on they differ, later both show a red star.",
    title="Early on the two guesses disagree: only one knows of a red star",
    columns=len(shown),
    labels=labels,
    rows=["without\nprompt", "with\nprompt"],
)

# %%
lesson.pictures(
    [each[3] for each in shown],
    alt="Six maps of the size of the difference: spread out at first, then around the star.",
    title="Where the words change the prediction (brighter: more)",
    labels=labels,
    cmap="magma",
)
print("change by the words, per value:", ", ".join(f"{changes[i]:.2f}" for i, *_ in shown))

# %% [markdown]
# The words matter while the layout is open. Once the star is visible in $x_t$ itself, the UNet sees it without the
# prompt, and the two predictions come together.
#
# ## Guidance: walk on in that direction
#
# With the difference as a direction, take it times a scale $s$ (Ho and Salimans 2022):
#
# $$\hat\epsilon = \epsilon_{\text{uncond}} + s\,(\epsilon_{\text{cond}} - \epsilon_{\text{uncond}})$$
#
# (The weights of the two predictions, $1-s$ and $s$, sum to 1, so the formula is the same for $v$ and $x_0$.)
#
# ![A line from the prediction without the prompt, at scale 0, through the one with the prompt, at scale 1, and beyond
# both to scale 3 and scale 5.](diagrams/guidance.png)
#
# In code, one line:


# %%
def combine(uncond, cond, scale):
    return uncond + scale * (cond - uncond)


u, c = both.chunk(2)
for s in (0.0, 1.0, 3.0, 7.5):
    assert torch.equal(combine(u, c, s), guidance.combine(u, c, s))
lesson.claim("at scale 0 the prompt has no effect", torch.equal(combine(u, c, 0.0), u))
lesson.claim("at scale 1 it is the plain conditional prediction", torch.allclose(combine(u, c, 1.0), c, atol=1e-5))
other = c + (3.0 - 1) * (c - u)  # another common way to write it, with w = s - 1
lesson.claim("(1 + w) cond - w uncond with w = s - 1 is the same", torch.allclose(combine(u, c, 3.0), other, atol=1e-5))
lesson.source(guidance.combine)

# %% [markdown]
# **Predict, then run**: the formula is one straight line through two points, $s = 0$ and $s = 1$. The images of scale 3
# are beyond both. Why should a point **outside** of what the model ever predicted be any good?


# %%
def draw(prompt, scale, seed, n=12, negative=""):
    """The whole of text to image, from the parts."""
    text = sd.encode_prompt([negative, prompt])
    grid = sd.scheduler.grid(n)
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(seed)) * grid.init_noise_sigma
    memory = None
    for i, t in enumerate(grid.timesteps):
        with torch.no_grad():
            u, c = sd.unet(torch.cat([x, x]), t, text).chunk(2)
        x, _, memory = sd.scheduler.step(grid, i, x, combine(u, c, scale), memory)
    return decoded(x)


scales = [0, 0.5, 1, 2, 4, 8, 16]
lesson.pictures(
    [draw("a blue circle above a green star", s, seed) for seed in (1, 2) for s in scales],
    alt="Two rows of seven images with guidance 0 to 16: from arbitrary objects to a blue circle above a green star.",
    title="The images follow the prompt as the scale grows",
    columns=len(scales),
    labels=[f"scale {s}" for s in scales],
    rows=["seed 1", "seed 2"],
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Because the model's own conditional prediction is too cautious: it is an average over everything that might go with
# these words. Bayes' rule, below, reads the difference as the gradient of "how well do these words fit this image"; a
# scale above 1 counts that fit more than once, and prefers images that the words fit unmistakably. It is a trade: away
# from what the data look like, towards what was asked, with less variety.
#
# </details>
#
# ### What the difference is, by Bayes' rule
#
# Call the noisy latents $x$ and the prompt $c$. At each noise level Bayes' rule says
# $p(c \mid x) = p(x \mid c)\,p(c)\,/\,p(x)$. Of the three factors $p(c)$ does not depend on $x$, so
#
# $$\nabla_x \log p(c \mid x) = \nabla_x \log p(x \mid c) - \nabla_x \log p(x)$$
#
# The gradients at the right are called **scores**. The best possible prediction of the noise is $-\sigma$ times a
# score, where $\sigma = \sqrt{1-\bar\alpha_t}$ is the deviation of the noise in $x$: with the prompt it is the score of
# $p(x \mid c)$, without it that of $p(x)$. So `uncond + scale * (cond - uncond)` is $-\sigma$ times
#
# $$\nabla_x \log p(x) + s\,\nabla_x \log p(c \mid x) = \nabla_x \log\big(p(x)\;p(c \mid x)^s\big)$$
#
# At scale 1 this is the score of $p(x \mid c)$. A larger scale raises $p(c \mid x)$ to a power, which sharpens it:
# latents that the words fit badly become much less probable than those that they fit well. This holds for the true
# scores, and at each noise level by itself: in general, noise on images of one sharpened distribution does not give the
# sharpened distributions of the higher levels.
#
# Our loop is the pipeline's: the same seed gives the same image.

# %%
import numpy as np

mine = np.asarray(draw("a blue circle", 3.0, seed=5), dtype=int)
theirs = np.asarray(sd("a blue circle", seed=5, guidance_scale=3.0, num_inference_steps=12).images[0], dtype=int)
print("largest difference of a pixel value:", abs(mine - theirs).max())
lesson.claim("our loop draws the pipeline's image", abs(mine - theirs).max() <= 1)

# %% [markdown]
# ## What it buys, what it costs
#
# In Sticker World a program can judge. A prompt that names one object, many seeds, several scales: how often is the
# image exactly right? And how much do the images differ from each other?

# %%
from minisd.sticker.world.checker.check import check

asked, count = "a green circle", 12
measured = []
for s in (0, 0.5, 1, 2, 4, 8):
    images = sd(asked, num_images_per_prompt=count, seed=100, guidance_scale=s, num_inference_steps=12).images
    right = sum(check(image, asked).exact for image in images)
    spread = np.stack([np.asarray(image, dtype=float) for image in images]).std(axis=0).mean()
    measured.append((s, right, spread))
    print(f"scale {s:3}: {right:2} of {count} right; variety {spread:5.1f}")

figure, (left, right) = lesson.axes(1, 2, width=3.6, height=2.6)
left.plot([str(m[0]) for m in measured], [m[1] for m in measured], marker="o")
left.set(
    xlabel="guidance scale",
    ylabel=f"right, of {count}",
    ylim=(-0.5, count + 0.5),
    yticks=range(0, count + 1, 3),
    title="The prompt is followed",
)
right.plot([str(m[0]) for m in measured], [m[2] for m in measured], marker="s", color=lesson.COLOURS[1])
right.set(
    xlabel="guidance scale",
    ylabel="deviation between images",
    ylim=(0, None),
    title="... and the images grow alike",
)
lesson.show(
    figure, alt="Left the number of right images over the scale, rising from scale 0. Right the variety, falling."
)
lesson.claim("guidance 4 follows the prompt more often than guidance 0", measured[4][1] > measured[0][1])
lesson.claim("and its images differ less", measured[4][2] < measured[0][2])

# %% [markdown]
# The cost is also in time: every guided step asks the UNet twice. (Guided *distillation* removes this cost: notebook
# 28.)
#
# ## The negative prompt is the other row
#
# The first row need not be the empty prompt. Put words there, and the image moves *away* from them:
#
# **Predict, then run**: the prompt is "a circle", of no colour. What will the negative prompt "a red circle" do?

# %%
seeds = range(1, 25)
plain = [draw("a circle", 4.0, seed) for seed in seeds]
without = [draw("a circle", 4.0, seed, negative="a red circle") for seed in seeds]


def colours(image):
    """The colours of the objects in an image."""
    return {thing.colour for thing in check(image, "a circle").found}


def count(images, colour):
    """How many images show an object of this colour."""
    return sum(colour in colours(image) for image in images)


for colour in ("red", "cyan"):
    print(
        f"{colour}: {count(plain, colour)} of {len(seeds)} without, {count(without, colour)} with the negative prompt"
    )
circles = [k for k in range(len(seeds)) if check(plain[k], "a circle").exact and check(without[k], "a circle").exact]
shown = sorted(circles, key=lambda k: colours(plain[k]) != {"red"})[:6]  # the red ones first
lesson.pictures(
    [images[k] for images in (plain, without) for k in shown],
    alt="Six circles, the first ones red; below, the same seeds with the negative prompt: no red, much cyan.",
    title=lesson.claim(
        f"Away from red: of {len(seeds)} circles none is red, {count(without, 'cyan')} are cyan, the opposite colour",
        count(without, "red") == 0 and count(without, "cyan") > count(plain, "cyan") + len(seeds) / 3,
    ),
    columns=len(shown),
    labels=[f"seed {seeds[k]}" for k in shown],
    rows=["negative: none", "negative:\na red circle"],
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The two predictions agree about "circle" and differ in "red", so the direction from the first to the second is "not
# red". The opposite of red is cyan, and that is the colour of most circles.
#
# </details>
#
# ## Where the empty prompt is learnt
#
# "Classifier-free" means that no second network judges the image; one UNet plays both parts. It can, because in
# training some of the captions are replaced by the empty one (one in ten for SD). So it has learnt to draw without a
# prompt, and it knows the empty row from its training.

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why does the UNet return two predictions under guidance?</summary>
#
# It is given two rows: the same latents with the empty prompt, and with the prompt. As with every batch, it returns one
# prediction for each row.
#
# </details>
#
# <details><summary>Why is the formula the same for the noise, for v and for the clean image?</summary>
#
# For given latents, one of the three is a multiple of another plus a fixed part. The weights of the two predictions,
# $1-s$ and $s$, sum to 1, so the fixed part stays as it is.
#
# </details>
#
# <details><summary>In which direction does guidance change the prediction, by Bayes' rule?</summary>
#
# The difference of the two predictions is a multiple of the gradient of $\log p(c \mid x)$, the direction in which the
# words fit the latents better. A scale above 1 counts this gradient more than once.
#
# </details>
#
# <details><summary>Why do the images of different seeds grow alike as the scale grows?</summary>
#
# A large scale prefers latents that the words fit unmistakably. These are fewer than those that the words merely fit,
# so the images have less room to differ.
#
# </details>
#
# <details><summary>What would happen if the training had no empty captions?</summary>
#
# The UNet would not know how to answer the row with the empty prompt. The difference of the two rows would then not be
# what the words change.
#
# </details>
#
# ## Your turn
#
# Write this function yourself. `start` makes a file for it, and `minisd exercises check` compares your results with the
# reference and says what differs ([the exercises](../minisd/exercises/README.md)).
#
# - `minisd exercises start guide`: combine the two halves of a batch of predictions at a guidance scale.

# %% [markdown]
# ## Summary
#
# - The UNet returns one prediction a row. Guidance gives it two rows: the same latents, without and with the prompt.
# - The guided prediction goes from the first through the second and beyond: `uncond + scale * (cond - uncond)`.
# - With guidance the images follow the prompt, and they vary less than without it. A negative prompt replaces the empty
#   row.
#
# **Code**: `combine` in [guidance.py](../minisd/pipeline/guidance.py), the loop in
# [denoising.py](../minisd/pipeline/denoising.py). **Next**: [09 · The autoencoder](09_autoencoder.ipynb).
