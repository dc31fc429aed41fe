# %% [markdown]
# # 20 · Guidance by a loss
#
# **You will** steer an image by a formula instead of words: write a loss on the image, follow its gradient at each
# step, choose whether the gradient passes through the UNet, and see how literally a loss is obeyed.
#
# **Needs** notebook 05 ($x_t$, the predicted $x_0$), notebook 08 (guidance), and what a gradient is.
#
# **Takes** 15 minutes to read, less than a minute to run.

# %% [markdown]
# ## What words cannot say
#
# "Somewhat bluer." "Nothing in the right half." Some wishes are hard to put into words, but easy to put into a formula:
# a function that looks at an image and returns one number, small if the image is as we wish. Such a function is a
# *loss*. If it can be differentiated, its gradient says how each value of the image should change.
#
# The fast.ai Deep Dive has the first example, the "blue loss": how far is the blue channel from a high value? On
# white paper that says little, because white is full of blue, too. So we measure what makes blue blue, more blue than
# red and green:

# %%
import time

import lesson
import torch

import weights_loader
from minisd.images import to_pil
from minisd.pipeline.loss_guidance import Guide
from minisd.sticker.world.palette import PALETTE, rgb

sd = weights_loader.load("sticker")
schedule, scheduler = sd.scheduler.schedule, sd.scheduler


def blueness(pictures):
    """Pixels (B, 3, H, W) in [0, 1] -> the mean of blue minus the mean of red and green, for each image."""
    red, green, blue = pictures.unbind(1)
    return (blue - (red + green) / 2).mean((1, 2))


of_colour = dict(zip(PALETTE, blueness(rgb(list(PALETTE))[:, :, None, None] / 2 + 0.5).tolist(), strict=True))
print(", ".join(f"{name} {value:+.2f}" for name, value in sorted(of_colour.items(), key=lambda pair: -pair[1])))
lesson.claim("of all colours blue has the most", max(of_colour, key=of_colour.get) == "blue")
lesson.claim("white, gray and black have none", all(abs(of_colour[name]) < 1e-6 for name in ("white", "gray", "black")))

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
#
# `sd.decode` switches gradients off, so we call the decoder itself.

# %%
prompt = "a circle"


def decode(latents):
    """Latents -> pixels in about [0, 1], with gradients."""
    return sd.vae.decode(latents / sd.vae.config.scaling_factor) / 2 + 0.5


def loss(x0):
    """Small where the images are blue; a sum, so each image is steered as if it were alone."""
    return -blueness(decode(x0)).sum()


def guided(x, t, text, scale=3.0):
    u, c = sd.unet(torch.cat([x, x]), t, text).chunk(2)
    return u + scale * (c - u)


noise = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(5))
steps = list(sd.denoise(prompt, latents=noise[:1], num_inference_steps=10))
text = sd.encode_prompt(["", prompt])
grid = scheduler.grid(10)

i = 4
x = steps[i - 1].latents.clone().requires_grad_()
alpha_bar = schedule.alpha_bar(grid.source[i])
x0, _ = schedule.x0_and_eps(x, guided(x, grid.timesteps[i], text), alpha_bar)
(gradient,) = torch.autograd.grad(loss(x0), x)
print(f"at t = {grid.source[i]}: the gradient has the length {float(gradient.norm()):.4f}")


@torch.no_grad()
def value(x0):
    return float(loss(x0))


@torch.no_grad()
def guess(x):
    return schedule.x0_and_eps(x, guided(x, grid.timesteps[i], text), alpha_bar)[0]


def shown(latents):
    with torch.no_grad():
        return to_pil(2 * decode(latents) - 1)[0]


moves = (0, 50, 200)
guesses = [guess(x.detach() - move * gradient) for move in moves]
for move, each in zip(moves, guesses, strict=True):
    print(f"moved by {move:3} gradients: loss of the guess {value(each):+.4f}")
lesson.pictures(
    [shown(x.detach()), *map(shown, guesses), gradient[0].norm(dim=0)],
    alt="Noisy latents, the guessed image, two guesses after moves with other objects, and a map of the gradient.",
    title="Moved against the gradient, the guess gets nearer to the wish",
    labels=["$x_t$", *(f"guess, moved {move}" for move in moves), "gradient"],
    size=1.3,
    cmap="magma",
)
lesson.claim("a move against the gradient lowers the loss", value(guesses[1]) < value(guesses[0]))

# %% [markdown]
# A move need not recolour the object that is there. The gradient has passed through the UNet, so what counts is what
# the UNet *would* draw from the moved $x$, and that may be another object at another place. Compare the guesses.
#
# ## The whole run
#
# How far to move? Early there is much noise in $x$, and the guess is open; late everything is settled, and a large
# move would only spoil it. So the move is scaled by the variance of the noise that is in $x$ at that moment,
# $\sigma^2 = 1-\bar\alpha$ in the space of DDIM:
#
# $$x \leftarrow x - s\,\sigma^2\,\nabla_x L(\hat x_0(x))$$
#
# That is the update of the Deep Dive. The scale $s$ is ours to choose, as in notebook 08.


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


mine = steered(prompt, loss, 100, noise[1:2])
guide = Guide(lambda x0, i: loss(x0), scale=100)
theirs = sd(prompt, latents=noise[1:2], num_inference_steps=10, guide=guide, output_type="pt").images
print(f"largest difference of a pixel: {float((mine - theirs).abs().max()):.1e}")
lesson.claim("our loop draws what sd(..., guide=Guide(loss)) draws", torch.allclose(mine, theirs, atol=1e-3))

# %% [markdown]
# **Predict, then run**: the prompt says "a circle" and no colour. What will happen to a circle that would have been
# purple? And will ten times the scale make the images bluer still?

# %%
from minisd.sticker.world.checker.check import check


def judged(images, prompt):
    """How many are right, and the colours found."""
    verdicts = [check(image, prompt) for image in images]
    colours = [thing.colour or "no known colour" for verdict in verdicts for thing in verdict.found]
    return sum(verdict.exact for verdict in verdicts), ", ".join(colours) or "nothing"


scales = (0, 30, 100, 300, 1000)
pictures, blue, right = [], [], []
for s in scales:
    images = steered(prompt, loss, s, noise)
    pictures += to_pil(images)
    blue.append(float(blueness(images / 2 + 0.5).mean()))
    count, colours = judged(images, prompt)
    right.append(count)
    print(f"scale {s:4}: blueness {blue[-1]:+.3f}; {count} of 3 are one circle; {colours}")
lesson.pictures(
    pictures,
    alt="Five rows of three circles by scale: other colours and other places at each scale, not bluer with each.",
    title="A little makes them bluer, more throws the circles elsewhere",
    size=1.4,
    columns=3,
    rows=[f"scale {s}" for s in scales],
)
lesson.claim("the guided images are bluer", max(blue[1:]) > blue[0])
lesson.claim("more is not always bluer", blue != sorted(blue))

# %% [markdown]
# <details><summary>Answer</summary>
#
# A circle that is nearly blue may turn blue; the colour is the model's own, as the loss only picks among what the
# prompt leaves open. But "bluer" is also a circle that is smaller, if it was yellow, or gone: white paper has more
# blueness than a yellow circle on it. The loss does not know what a circle is; it is only a formula, and the model
# finds the nearest image that satisfies it.
#
# Ten times the scale is not ten times the blue. A large move throws $x$ somewhere else altogether in the first steps,
# and from there the UNet draws just another circle. The gradient says in which direction to go from here, not what is
# over there.
#
# How should the loss be written so that vanishing does not pay? For instance, divide by how much of the image is not
# white: then only the colour of what *is* there counts. Try it.
#
# </details>

# %% [markdown]
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
        both.append(torch.autograd.grad(loss(x0), x)[0])
    return both


calls = (0, 2, 4, 6, 8)
maps = [gradients(noise[:1] if i == 0 else steps[i - 1].latents, i) for i in calls]
for i, (long, short) in zip(calls, maps, strict=True):
    print(
        f"t = {grid.source[i]:3}: length {float(long.norm()):.4f} through the UNet, {float(short.norm()):.4f} without"
    )
lesson.pictures(
    [each[0].norm(dim=0) / each.norm().clamp(min=1e-12) for k in (0, 1) for each in (pair[k] for pair in maps)],
    alt="Maps of both gradients at five timesteps: through the UNet around the object, without it more evenly.",
    title="Where the two gradients pull (each on its own scale)",
    columns=len(calls),
    labels=[f"t = {grid.source[i]}" for i in calls],
    rows=["through\nthe UNet", "decoder\nalone"],
    cmap="magma",
)
lesson.claim("at the first step the short gradient is zero", maps[0][1].norm() < 1e-6)
lesson.claim("the long one is not", maps[0][0].norm() > 1e-6)

# %% [markdown]
# <details><summary>Answer</summary>
#
# It does not know how the UNet will react: that a hint of blue *here* becomes a blue circle *there*. It pulls at the
# guess as it is. At the first step there is no image in $x$ at all in this model ($\bar\alpha = 0$), so the factor, and
# with it the short gradient, is zero just where most could be decided. (SD 1's schedule leaves a little, see notebook
# 05.)
#
# </details>

# %%
images = steered(prompt, loss, 100, noise, through_unet=False)
short = float(blueness(images / 2 + 0.5).mean())
print(f"blueness: no guide {blue[0]:+.3f}; scale 100 through the UNet {blue[2]:+.3f}, decoder alone {short:+.3f}")


def seconds(**options):
    """For one step of one image, in time of the processor."""
    began = time.process_time()
    sd(prompt, latents=noise[:1], num_inference_steps=10, **options)
    return (time.process_time() - began) / 10


cost = {
    "no guide": seconds(),
    "decoder alone": seconds(guide=Guide(lambda x0, i: loss(x0), scale=100, through_unet=False)),
    "through the UNet": seconds(guide=Guide(lambda x0, i: loss(x0), scale=100)),
    "the same, every 5th": seconds(guide=Guide(lambda x0, i: loss(x0), scale=100, every=5)),
}
for name, value in cost.items():
    print(f"{name:20} {1000 * value:4.0f} ms a step, {value / cost['no guide']:.1f} times as much")
lesson.claim("a guided step costs more than a plain one", cost["through the UNet"] > cost["no guide"])

# %% [markdown]
# `every=5` moves only at every fifth step, as the Deep Dive does: cheaper, and often enough.
#
# ## Another wish: keep the right half empty
#
# Nothing in the method is about colour. Here is a wish about **place**: the right half should be white. The prompt does
# not say where the star should be.

# %%
wish = "a red star"


def right_half(x0):
    """How far the right half is from white, in the mean."""
    return (1 - decode(x0)[..., 32:]).abs().mean((1, 2, 3)).sum()


def places(images):
    """From left (0) to right (1)."""
    return [thing.x for image in images for thing in check(image, wish).found]


rows, where = [], []
for s in (0, 150):
    images = steered(wish, right_half, s, noise)
    rows += to_pil(images)
    where.append(places(images))
    print(f"scale {s:3}: x = {', '.join(f'{x:.2f}' for x in where[-1])}; {judged(images, wish)[0]} of 3 right")
lesson.pictures(
    rows,
    alt="Above red stars at several places, below, from the same noise, stars in the left half.",
    title="From the same noise, with the right half empty",
    size=1.4,
    columns=3,
    rows=["no guide", "guided"],
)
lesson.claim("the stars are further to the left", sum(where[1]) / max(len(where[1]), 1) < sum(where[0]) / len(where[0]))

# %% [markdown]
# Words for this exist in Sticker World ("on the left"). But the loss needs no word, no caption in training, and no
# training at all: whatever can be written as a formula of the image can be asked for. With a network as the loss, such
# as CLIP's match of image and text, this is how people steered models before guidance was built into them.
#
# ## Summary
#
# - At each step: guess the finished image, measure, move $x$ against the gradient, times scale and $\sigma^2$.
# - A small scale chooses among what the model would draw; a large one throws the image elsewhere, not further.
# - A loss is taken literally. Ask which image satisfies it most cheaply.
# - Through the UNet the gradient knows how the model reacts, and costs the most. With the UNet's answer as given it is
#   cheap, and blind at the noisy end.
#
# **Code**: `Guide` in [loss_guidance.py](../minisd/pipeline/loss_guidance.py), its place in the loop in
# [denoising.py](../minisd/pipeline/denoising.py). **Next**: [21 · Word heat maps](21_word_heat_maps.ipynb).
