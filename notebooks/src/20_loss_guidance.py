# %% [markdown]
# # 20 · Guidance by a loss
#
# **You will** steer an image by a formula instead of words: write a loss on the image, follow its gradient at each
# step, choose whether the gradient passes through the UNet, and see how literally a loss is obeyed.
#
# **Needs** notebook 05 ($x_t$, the predicted $x_0$), notebook 08 (guidance), and what a gradient is.
#
# **Takes** 15 minutes to read, about a minute to run.

# %% [markdown]
# ## What words cannot say
#
# "Nothing in the right half." "Somewhat bluer." Some wishes are hard to put into words, but easy to put into a formula:
# a function that looks at an image and returns one number, small if the image is as we wish. Such a function is a
# *loss*. If it can be differentiated, its gradient says how each value of the image should change.
#
# The first wish is about **place**: the prompt is "a red star", and the right half of the image should stay white.

# %%
import time
from collections import Counter

import lesson
import torch

import weights_loader
from minisd.images import from_pil, to_pil
from minisd.pipeline.loss_guidance import Guide
from minisd.sticker.world.checker.check import check

sd = weights_loader.load("sticker")
schedule, scheduler = sd.scheduler.schedule, sd.scheduler
prompt = "a red star"


def decode(latents):
    """Latents -> pixels in about [0, 1], with gradients; `sd.decode` switches them off."""
    return sd.vae.decode(latents / sd.vae.config.scaling_factor) / 2 + 0.5


def not_white(pixels):
    """How far the right half is from white, in the mean, for each image."""
    return (1 - pixels[..., pixels.shape[-1] // 2 :]).abs().mean((1, 2, 3))


def right_half(x0):
    """The loss: a sum, so that each image is steered as if it were alone."""
    return not_white(decode(x0)).sum()


for where in ("on the left", "on the right"):
    image = from_pil(sd(f"a red star {where}", seed=1).images[0]) / 2 + 0.5
    print(f"a star {where}: loss {float(not_white(image)):.4f}")

# %% [markdown]
# ## One step, by hand
#
# A loss on the *finished* image would come too late, and a loss on $x_t$ would judge noise. But in every step the
# UNet's answer gives a guess of the finished image, $\hat x_0$ (notebook 05). So:
#
# 1. predict $\hat x_0$ from $x$, with gradients switched on;
# 2. decode it to pixels, still with gradients;
# 3. compute the loss, and its gradient with respect to $x$;
# 4. move $x$ a little against the gradient, and take the usual step from there.


# %%
def guided(x, t, text, scale=3.0):
    """The UNet's prediction with classifier-free guidance (notebook 08)."""
    u, c = sd.unet(torch.cat([x, x]), t, text).chunk(2)
    return u + scale * (c - u)


noise = torch.randn(24, 4, 16, 16, generator=torch.Generator().manual_seed(5))
steps = list(sd.denoise(prompt, latents=noise[:1], num_inference_steps=10))
text = sd.encode_prompt(["", prompt])
grid = scheduler.grid(10)

i = 3
alpha_bar = schedule.alpha_bar(grid.source[i])


def guess(x):
    """The predicted x0 at call i."""
    return schedule.x0_and_eps(x, guided(x, grid.timesteps[i], text), alpha_bar)[0]


x = steps[i - 1].latents.clone().requires_grad_()
(gradient,) = torch.autograd.grad(right_half(guess(x)), x)
print(f"at t = {grid.source[i]}: the gradient has the length {float(gradient.norm()):.4f}")

moves = (0, 20, 50)
with torch.no_grad():
    guesses = [guess(x - move * gradient) for move in moves]
    losses = [float(right_half(each)) for each in guesses]
    shown = [to_pil(2 * decode(each) - 1)[0] for each in (x, *guesses)]
for move, loss in zip(moves, losses, strict=True):
    print(f"moved by {move:2} gradients: loss of the guess {loss:.4f}")
lesson.pictures(
    [*shown, gradient[0].norm(dim=0)],
    alt="Noisy latents; three guesses, in which a pink shape moves from the middle to the left; a map of the gradient.",
    title=lesson.claim(
        "Moved against the gradient, the guessed shape goes to the left", losses[0] > losses[1] > losses[2]
    ),
    labels=["$x_t$", *(f"guess, moved {move}" for move in moves), "gradient"],
    size=1.3,
    cmap="magma",
)

# %% [markdown]
# The shape, which will be the star, does not fade in the right half; it is drawn at another place. The gradient has
# passed through the UNet, so what counts is what the UNet *would* draw from the moved $x$.
#
# ## The whole run
#
# How far to move? Early there is much noise in $x$, and the guess is open; late everything is settled, and a large
# move would only spoil it. So the move is scaled by the variance of the noise that is in $x$ at that moment,
# $\sigma^2 = 1-\bar\alpha$ in the space of DDIM:
#
# $$x \leftarrow x - s\,\sigma^2\,\nabla_x L(\hat x_0(x))$$
#
# That is the update of the fast.ai Deep Dive. The scale $s$ is ours to choose, as in notebook 08.


# %%
def steered(prompt, loss, scale, noise, n=10, through_unet=True):
    text = torch.cat([sd.encode_prompt([""] * len(noise)), sd.encode_prompt([prompt] * len(noise))])
    grid, x = scheduler.grid(n), noise
    for i, t in enumerate(grid.timesteps):
        alpha_bar = schedule.alpha_bar(grid.source[i])
        x = x.detach().requires_grad_()
        with torch.set_grad_enabled(through_unet):
            v = guided(x, t, text)
        x0, _ = schedule.x0_and_eps(x, v, alpha_bar)
        (gradient,) = torch.autograd.grad(loss(x0), x)
        x = x.detach() - scale * (1 - alpha_bar) * gradient
        x = scheduler.step(grid, i, x, v.detach()).x_prev
    return sd.decode(x)


mine = steered(prompt, right_half, 150, noise[1:2])
guide = Guide(lambda x0, i: right_half(x0), scale=150)
theirs = sd(prompt, latents=noise[1:2], num_inference_steps=10, guide=guide, output_type="pt").images
print(f"largest difference of a pixel: {float((mine - theirs).abs().max()):.1e}")
lesson.claim("our loop draws what sd(..., guide=Guide(loss)) draws", torch.allclose(mine, theirs, atol=1e-3))

# %% [markdown]
# **Predict, then run**: below, stars without the wish and with it, from the same noise. What will become of a star
# that would have been at the right: gone, cut off, or at the left?

# %%
dozen = noise[:12]
plain = sd([prompt] * len(dozen), latents=dozen, num_inference_steps=10, output_type="pt").images
wished = steered(prompt, right_half, 150, dozen)


def judged(images, prompt):
    """How many images are right, and all objects in them."""
    verdicts = [check(image, prompt) for image in images]
    return sum(verdict.exact for verdict in verdicts), [thing for verdict in verdicts for thing in verdict.found]


left = {}
for name, images in (("no guide", plain), ("guided", wished)):
    right, things = judged(images, prompt)
    left[name] = sum(thing.x < 0.5 for thing in things)
    print(f"{name:8}: {right} of {len(images)} are one red star; {left[name]} are in the left half")
lesson.pictures(
    to_pil(torch.cat([plain[:6], wished[:6]])),
    alt="Above six red stars at several places; below, from the same noise, six stars in the left half.",
    title=lesson.claim(
        "From the same noise, with the right half empty: all stars are at the left",
        left["guided"] == len(wished) > left["no guide"] + 2,
    ),
    columns=6,
    rows=["no guide", "guided"],
)
lesson.claim("and they are stars as before", judged(wished, prompt)[0] >= len(wished) - 1)

# %% [markdown]
# <details><summary>Answer</summary>
#
# At the left. The wish is made while the image is still open: at the first steps the UNet can draw the star anywhere,
# and moving it costs nothing.
#
# </details>
#
# Words for this exist in Sticker World ("on the left"). But the loss needs no word, no caption in training, and no
# training at all: whatever can be written as a formula of the image can be asked for. With a network as the loss, such
# as CLIP's match of image and text, this is how people steered models before guidance was built into them.
#
# ## Through the UNet, or only through the decoder?
#
# The gradient has gone a long way back: from the loss through the decoder to $\hat x_0$, and from there through the
# UNet to $x$. The second half costs most of the time and memory. The Deep Dive leaves it out: it takes the UNet's
# answer as a fixed number. Then $\hat x_0 = \sqrt{\bar\alpha}\,x - \sqrt{1-\bar\alpha}\,v$ is a plain formula in $x$,
# and the gradient is that with respect to $\hat x_0$, times $\sqrt{\bar\alpha}$.
#
# **Predict, then run**: what can the short gradient not know? Look at the factor $\sqrt{\bar\alpha}$ for the first
# steps, too.


# %%
def gradients(x, i):
    """With respect to x at call i: through the UNet, and with its answer as given."""
    both = []
    for through_unet in (True, False):
        x = x.detach().requires_grad_()
        with torch.set_grad_enabled(through_unet):
            v = guided(x, grid.timesteps[i], text)
        x0, _ = schedule.x0_and_eps(x, v, schedule.alpha_bar(grid.source[i]))
        both.append(torch.autograd.grad(right_half(x0), x)[0])
    return both


calls = (0, 2, 4, 6, 8)
maps = [gradients(noise[:1] if i == 0 else steps[i - 1].latents, i) for i in calls]
for i, (long, short) in zip(calls, maps, strict=True):
    print(
        f"t = {grid.source[i]:3}: length {float(long.norm()):.4f} through the UNet, {float(short.norm()):.4f} without"
    )
lesson.pictures(
    [each[0].norm(dim=0) / each.norm().clamp(min=1e-12) for k in (0, 1) for each in (pair[k] for pair in maps)],
    alt="Maps of both gradients at five timesteps: through the UNet on both sides, without it in the right half only.",
    title="Where the two gradients pull (each on its own scale)",
    columns=len(calls),
    labels=[f"t = {grid.source[i]}" for i in calls],
    rows=["through\nthe UNet", "decoder\nalone"],
    cmap="magma",
)
lesson.claim("at the first step the short gradient is zero", maps[0][1].norm() < 1e-6)
lesson.claim("the long one is not", maps[0][0].norm() > 1e-6)

# %%
right, things = judged(steered(prompt, right_half, 150, dozen, through_unet=False), prompt)
alone = sum(thing.x < 0.5 for thing in things)
print(f"in the left half: {left['no guide']} without a guide, {left['guided']} through the UNet, {alone} decoder alone")
lesson.claim("at this scale the decoder alone moves hardly any star", alone <= left["no guide"] + 1)


def seconds(**options):
    """For one step of one image, in time of the processor."""
    began = time.process_time()
    sd(prompt, latents=noise[:1], num_inference_steps=10, **options)
    return (time.process_time() - began) / 10


cost = {
    "no guide": seconds(),
    "decoder alone": seconds(guide=Guide(lambda x0, i: right_half(x0), scale=150, through_unet=False)),
    "through the UNet": seconds(guide=Guide(lambda x0, i: right_half(x0), scale=150)),
    "the same, every 5th": seconds(guide=Guide(lambda x0, i: right_half(x0), scale=150, every=5)),
}
for name, value in cost.items():
    print(f"{name:20} {1000 * value:4.0f} ms a step, {value / cost['no guide']:.1f} times as much")
lesson.claim("a guided step costs more than a plain one", cost["through the UNet"] > cost["no guide"])

# %% [markdown]
# <details><summary>Answer</summary>
#
# It does not know how the UNet will react: that a hint of red at the *left* moves the star there. It pulls at the guess
# as it is, only where the loss looks. At the first step there is no image in $x$ at all in this model ($\bar\alpha =
# 0$), so the factor, and with it the short gradient, is zero just where most could be decided. (SD 1's schedule leaves
# a little, see notebook 05.)
#
# </details>
#
# `every=5` moves only at every fifth step, as the Deep Dive does: cheaper, and often enough.
#
# ## A loss is taken literally: the blue loss
#
# The Deep Dive's own example is the "blue loss": how far is the blue channel from a high value? On white paper that
# says little, because white is full of blue, too. So we measure what makes blue blue, more blue than red and green:

# %%
from minisd.sticker.world.palette import PALETTE, rgb


def blueness(pixels):
    """Pixels (B, 3, H, W) in [0, 1] -> the mean of blue minus the mean of red and green, for each image."""
    red, green, blue = pixels.unbind(1)
    return (blue - (red + green) / 2).mean((1, 2))


def not_blue(x0):
    return -blueness(decode(x0)).sum()


of_colour = dict(zip(PALETTE, blueness(rgb(list(PALETTE))[:, :, None, None] / 2 + 0.5).tolist(), strict=True))
print(", ".join(f"{name} {value:+.2f}" for name, value in sorted(of_colour.items(), key=lambda pair: -pair[1])))
blues = sorted(of_colour, key=of_colour.get)[-3:]
lesson.claim("of all colours blue has the most, then cyan, then purple", blues == ["purple", "cyan", "blue"])
lesson.claim("white, gray and black have none", all(abs(of_colour[name]) < 1e-6 for name in ("white", "gray", "black")))

# %% [markdown]
# **Predict, then run**: the prompt says "a circle" and no colour. How many of 24 circles will be blue, cyan or purple
# with scale 30?

# %%
scales, circle = (0, 30), "a circle"
rows, blue, count = [], {}, {}
for scale in scales:
    if scale == 0:  # faster without a gradient
        images = sd([circle] * len(noise), latents=noise, num_inference_steps=20, output_type="pt").images
    else:
        images = steered(circle, not_blue, scale, noise, n=20)
    rows += to_pil(images)
    right, things = judged(images, circle)
    found = Counter(thing.colour or "no known colour" for thing in things)
    blue[scale], count[scale] = float(blueness(images / 2 + 0.5).mean()), sum(found[name] for name in blues)
    colours = ", ".join(f"{number} {colour}" for colour, number in found.most_common())
    print(f"scale {scale:3}: blueness {blue[scale]:+.3f}; {right} of {len(images)} are one circle; {colours}")
lesson.pictures(
    rows,
    alt="Two rows of 24 circles, without a guide and with scale 30: some more blue and purple ones in the second.",
    title=lesson.claim(
        f"Blue, cyan or purple: {count[0]} of {len(noise)} circles without a guide, {count[30]} with it",
        blue[30] > 1.5 * blue[0] and count[30] > count[0],
    ),
    columns=len(noise),
    rows=[f"scale {scale}" for scale in scales],
    size=0.45,
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Half of them, only some more than without. The blueness has grown by more than that: red and orange circles, which
# have less of it than the white paper, became others, and pink is a little bluer than paper already. The colours are
# the model's own, as the loss only picks among what the prompt leaves open. The loss does not know what a circle is; it
# is only a formula, and the model finds a near image that satisfies it better.
#
# </details>

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why does the loss look at the predicted image, and not at latents or finished image?</summary>
#
# The latents are mostly noise at the first steps, and a loss on them would judge the noise. The finished image comes
# when nothing can be changed any more.
#
# </details>
#
# <details><summary>Why does the star move to the left, rather than fade at the right?</summary>
#
# The gradient passes through the UNet, so it says how the whole next guess depends on $x$. At the first steps the UNet
# can draw the star anywhere, and the prompt still asks for a star.
#
# </details>
#
# <details><summary>Why is the short gradient zero at the first step of this model?</summary>
#
# There the share of the image in $x$ is 0, and the UNet's answer counts as a fixed number. So the predicted image does
# not change with $x$.
#
# </details>
#
# <details><summary>Why is the move scaled by the variance of the noise?</summary>
#
# At the first steps there is much noise, the image is open, and a large move helps. At the last steps everything is
# settled, and a large move would only spoil it.
#
# </details>
#
# <details><summary>How can a loss be satisfied in a way that nobody meant?</summary>
#
# A loss is a formula and knows nothing of the objects. If white has more blueness than a yellow circle, a smaller
# yellow circle satisfies the blue loss as well.
#
# </details>
#
# ## Your turn
#
# [The exercises](../minisd/exercises/README.md) belong to other lessons. Try these experiments in the cells above;
# where a claim becomes false, its cell stops, and that is a finding as well.
#
# - Write a loss for the upper half of the image, with `pixels[..., : pixels.shape[-2] // 2, :]`, and see where the
#   stars go.
# - Steer the dozen stars with the scales `50` and `500` in place of `150`, and count the stars at the left and those
#   that are exact.
# - Pass `every=5` to `Guide`, and count how many stars are still at the left.

# %% [markdown]
# ## Summary
#
# - At each step: guess the finished image, measure, move $x$ against the gradient, times scale and $\sigma^2$.
# - The loss chooses among what the model would draw for the prompt.
# - A loss is taken literally. Ask which image satisfies it most cheaply.
# - Through the UNet the gradient knows how the model reacts, and costs the most. With the UNet's answer as given it is
#   cheap, and blind at the noisy end.
#
# **Code**: `Guide` in [loss_guidance.py](../minisd/pipeline/loss_guidance.py), its place in the loop in
# [denoising.py](../minisd/pipeline/denoising.py). **Next**: [21 · Word heat maps](21_word_heat_maps.ipynb).
