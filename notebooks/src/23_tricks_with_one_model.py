# %% [markdown]
# # 23 · Tricks with one model: anagrams, sticker sheets, loops
#
# **You will** make one model do three things that it was not trained for: an image that shows something else when it is
# turned, an image larger than the model, and an animation that ends where it began. All three are one idea: change
# what the UNet sees, and average what it answers.
#
# **Needs** notebook 08 (guidance); notebook 15 (the loop, step by step) helps.
#
# **Takes** 15 minutes to read, about a minute to run.

# %% [markdown]
# ## Answers can be averaged
#
# In notebook 08 the UNet gave two answers for one $x_t$, with the prompt and without it, and the loop continued with a
# mixture of both. Nothing says that both must be about the *same view* of the image. The UNet may also see $x_t$
# upside down, or only its left half, and get another prompt for that view. Its answer is turned back, or put back to
# its place; where several answers meet, the loop takes their mean.
#
# Each answer pulls the image to where one prompt wants it. The mean pulls it to where *all* of them agree, if there is
# such a place.
#
# ## An image that is two images
#
# First by hand. The prompt of the image is "a red heart"; seen upside down, it should be "a red triangle".

# %%
import lesson
import torch
from PIL import Image

import weights_loader
from minisd import View, view_grid
from minisd.images import to_pil
from minisd.pipeline.noise import noise_circle
from minisd.sticker.world.checker.check import check

sd = weights_loader.load("sticker")
grid = sd.scheduler.grid(20)
upright, upside_down = "a red heart", "a red triangle"


def flip(x):
    """Top and bottom exchanged, of latents or pixels (..., h, w)."""
    return x.flip(-2)


def guided(x, t, text, scale=3.0):
    """The UNet's prediction with classifier-free guidance (notebook 08)."""
    u, c = sd.unet(torch.cat([x, x]), t, text).chunk(2)
    return u + scale * (c - u)


@torch.no_grad()
def anagram(noise):
    """Latents whose image is one thing as it is, and another one upside down."""
    heart, triangle = (sd.encode_prompt(["", prompt]) for prompt in (upright, upside_down))
    x = noise
    for i, t in enumerate(grid.timesteps):
        as_it_is = guided(x, t, heart)
        turned = flip(guided(flip(x), t, triangle))  # turn, ask, turn back
        x = sd.scheduler.step(grid, i, x, (as_it_is + turned) / 2).x_prev
    return x


noise = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(3))
mine = sd.decode(anagram(noise[:1]))
views = [View(upright), View(upside_down, turn="flip")]
theirs = sd(views=views, latents=noise[:1], output_type="pt").images
lesson.claim("our loop draws what sd(views=...) draws", torch.allclose(mine, theirs, atol=1e-3))

# %% [markdown]
# **Predict, then run**: what does an image look like that is a heart and, upside down, a triangle? And how many of
# eight will the checker accept both ways?

# %%
drawn = sd(views=views, latents=noise, num_images_per_prompt=8, output_type="pt").images


def right_both_ways(images, upright, upside_down):
    """How many images are exact as they are, and how many are also exact upside down."""
    first = [check(image, upright).exact for image in images]
    second = [check(flip(image), upside_down).exact for image in images]
    return sum(first), sum(a and b for a, b in zip(first, second, strict=True))


first, both = right_both_ways(drawn, upright, upside_down)
print(f"{first} of {len(drawn)} are {upright}; {both} are also {upside_down}, upside down")
lesson.pictures(
    to_pil(torch.cat([drawn, flip(drawn)])),
    alt="Eight red shapes, wide and flat at the top and pointed below; in the second row the same, upside down.",
    title=lesson.claim(f"{both} of 8 images are a heart, and upside down a triangle", both >= 6),
    columns=8,
    rows=["as it is", "upside\ndown"],
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# A heart whose dent is shallow, which is a triangle with round corners when it stands on its head. Both prompts can
# live with it.
#
# </details>
#
# ## And where they do not agree?
#
# **Predict, then run**: a triangle that is a diamond upside down; a red circle that is a *blue* circle upside down.

# %%
pairs = [("a red triangle", "a red diamond"), ("a red circle", "a blue circle")]
shown, counts = [], []
for a, b in pairs:
    images = sd(views=[View(a), View(b, turn="flip")], latents=noise, num_images_per_prompt=8, output_type="pt").images
    first, both = right_both_ways(images, a, b)
    print(f"{first} of 8 are {a}; {both} are also {b}, upside down")
    shown += to_pil(images)
    counts.append(both)
lesson.pictures(
    shown,
    alt="Above eight red triangles with a hint of a second tip below; below eight purple circles.",
    title=lesson.claim("Two prompts that contradict each other are rarely met by one image", max(counts) <= 2),
    columns=8,
    rows=["triangle /\ndiamond", "red / blue"],
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The mean of two answers is a compromise, and a compromise between a triangle and a diamond is neither. Between red and
# blue it is purple, which neither prompt asked for. Nothing in the loop notices that. So when you see a beautiful
# anagram, ask how many were drawn.
#
# </details>
#
# There is a second reason, which you can measure. The loop turns *latents*. But are the turned latents the latents of
# the turned image?

# %%
with torch.no_grad():
    latents = sd.vae.encode(drawn).mean
    error = {
        "decoded as they are": (sd.vae.decode(latents) - drawn).square().mean(),
        "turned, decoded, turned back": (flip(sd.vae.decode(flip(latents))) - drawn).square().mean(),
    }
for name, value in error.items():
    print(f"{name:30} mean square error {float(value):.5f}")
ratio = error["turned, decoded, turned back"] / error["decoded as they are"]
lesson.claim("turned latents are not quite the latents of the turned image", ratio > 2)

# %% [markdown]
# Not quite: a latent cell also says *where in the cell* an edge is, and that is not turned with the grid of cells. The
# authors of the visual anagrams (Geng, Park and Owens 2024) therefore use a model that works on pixels. A heart and a
# triangle are robust enough; fine details would not be.
#
# ## An image larger than the model
#
# Now the views are **windows**: overlapping parts of a large image, each of the size that the UNet was trained on, each
# with its prompt (MultiDiffusion, Bar-Tal et al. 2023). `view_grid` places them; neighbours share a quarter.

# %%
prompts = [
    "a large red heart", "an outlined blue star", "a yellow circle", "a small green square",
    "a purple diamond", "a large cyan ring", "a pink star", "a small orange triangle",
]  # fmt: skip
sheet_views = view_grid(prompts, columns=4, rows=2, size=sd.vae.config.sample_size)
for prompt, view in zip(prompts[:2], sheet_views, strict=False):
    print(f"{prompt:24} left {view.left}, top {view.top}, {view.width} x {view.height}")
(sheet,) = sd(views=sheet_views, seed=4).images
print("the sheet has", sheet.size, "pixels; the model was trained on", sd.vae.config.sample_size)
lesson.claim("the sheet is larger than the model's images", min(sheet.size) > sd.vae.config.sample_size)
figure, panel = lesson.axes(width=6, height=3.5)
panel.imshow(sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.LANCZOS))
panel.set(xticks=[], yticks=[])
panel.spines[:].set_visible(True)
lesson.show(
    figure,
    alt="A white sheet with eight objects in two rows: heart, outlined star, circle, square; diamond, ring, star, "
    "triangle.",
    title="One image from eight prompts",
)

# %% [markdown]
# There is one $x_t$, of the size of the whole sheet, and one step of the sampler for it. Only the UNet's view is small.
# That is the difference to drawing eight images and gluing them together: in the overlap both windows speak, so no seam
# appears. **Try it**: set the overlap to 0 and look for the seams; then give all windows the same prompt.

# %% [markdown]
# ## A loop
#
# Similar noise gives similar images (DDIM without new noise is a function of the first $x_T$). So an animation is a
# path through the noise, and a loop is a **circle**: with two draws of noise $a$ and $b$,
#
# $$x_T(\varphi) = \cos(\varphi)\,a + \sin(\varphi)\,b$$
#
# Why a circle, and not a polygon of straight lines? Because every point on it is again noise of variance 1: the cosine
# and the sine of an angle, squared, sum to 1. Half way on a straight line from $a$ to $b$ the variance is one half, and
# the UNet was never shown such an $x_T$.

# %%
frames = 24
circle = noise_circle(frames, (4, 16, 16), seed=2)
straight = (circle[0] + circle[frames // 4]) / 2  # half way between two points, a quarter of the circle apart
print(f"deviation on the circle {float(circle.std()):.3f}, half way on a straight line {float(straight.std()):.3f}")
lesson.claim("half way on a straight line there is too little noise", straight.std() < 0.8 * circle.std())
loop = sd("a purple star", latents=circle, num_images_per_prompt=frames, output_type="pt").images
change = (loop - loop.roll(1, 0)).abs().mean((1, 2, 3))  # to the frame before; for the first, to the last one
far = (loop - loop.roll(frames // 2, 0)).abs().mean()
print("difference of each frame to the one before:", " ".join(f"{float(each):.3f}" for each in change))
lesson.pictures(
    to_pil(loop),
    alt="24 purple stars, which move and change their size a little from one to the next, with some sudden changes.",
    title=lesson.claim(
        "A frame resembles the next more than the one half a turn away; so do the last and the first",
        change.mean() < 0.7 * far and change[0] < far,
    ),
    columns=8,
)
lesson.animation(
    [image.resize((192, 192)) for image in to_pil(loop)],
    alt="A purple star wanders and changes its size, and returns to where it began.",
)

# %% [markdown]
# Nothing in the model knows about time or motion. The star wanders because $x_T$ wanders, and where a small change of
# the noise makes the model change its mind, the animation jumps.
#
# ## How often does it work?
#
# Pictures like these are chosen. The measured table is in the README of the embedded model; the command for it is
#
# ```console
# $ minisd eval --views
# ```

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why can the mean of two answers give an image that fits two prompts?</summary>
#
# Each answer pulls the image to where its prompt wants it. The mean pulls it to where both prompts agree, if there is
# such an image.
#
# </details>
#
# <details><summary>What happens if the two prompts of an anagram contradict each other?</summary>
#
# The mean is a compromise that neither prompt asked for, and nothing in the loop notices it. So one image rarely fits
# both prompts.
#
# </details>
#
# <details><summary>Why are turned latents not quite the latents of the turned image?</summary>
#
# A latent cell also says where in the cell an edge is. The turn exchanges the cells, but not what is inside of them.
#
# </details>
#
# <details><summary>Why do overlapping windows draw one image, and not several that are glued together?</summary>
#
# There is one $x_t$ for the whole sheet, and one step of the sampler. In the overlap the answers of both windows are
# averaged, so both go on from the same latents.
#
# </details>
#
# <details><summary>Why is the loop a circle through the noise, and not a polygon of straight lines?</summary>
#
# On the circle each point is again noise of variance 1, since the squares of cosine and sine sum to 1. Within a
# straight line the variance is smaller, and the UNet was never shown such a start.
#
# </details>
#
# ## Your turn
#
# [The exercises](../minisd/exercises/README.md) belong to other lessons. Try these experiments in the cells above;
# where a claim becomes false, its cell stops, and that is a finding as well.
#
# - Make an anagram of two other shapes, predict first whether their outlines agree, and count how many of eight are
#   right both ways.
# - Take `turn="half"` in place of `turn="flip"`, turn the images by `rot90(2, (-2, -1))` to check them, and compare the
#   counts.
# - Draw the loop from other seeds of `noise_circle`, and look how often the animation jumps.

# %% [markdown]
# ## Summary
#
# - The UNet can be asked about several views of one $x_t$; the loop takes the mean of the answers.
# - Turned views make anagrams where the prompts agree, and mud where they do not.
# - Windows make an image of any size, with a prompt for each part.
# - A circle through the noise makes a loop.
#
# **Code**: [views.py](../minisd/pipeline/views.py), its two lines in `_predict` of
# [denoising.py](../minisd/pipeline/denoising.py), `noise_circle` in [noise.py](../minisd/pipeline/noise.py). On the
# command line: `--turned`, `--grid`, `--loop`. **Next**:
# [24 · Textual inversion](24_textual_inversion.ipynb).
