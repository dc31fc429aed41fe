# %% [markdown]
# # 17 · Image to image, and DDIM inversion
#
# **You will** start a run from an image instead of from noise, choose how much of it may change, run DDIM backwards to
# find the noise that leads to a given image, and change one word of that image while the rest stays.
#
# **Needs** notebook 05 (noise schedule, DDIM, $v$), notebook 08 (guidance).
#
# **Takes** 20 minutes to read, less than a minute to run.

# %% [markdown]
# ## A run need not begin at the beginning
#
# Text to image starts from pure noise and takes, say, 20 steps down. After 8 of them the latents are a mixture: some
# image, much noise. But such a mixture can also be made from an image that we **have**: encode it, add the noise of
# that level, and take only the 12 steps that are left. The rough layout comes through the noise, the details are drawn
# again, and they follow a prompt. This is *image to image* (Meng et al. 2022, SDEdit).
#
# Our image to begin with is a sketch of two blots, which is nothing that this model was trained on:

# %%
import lesson
import torch
from PIL import Image, ImageDraw

import weights_loader
from minisd.images import from_pil, to_pil

sd = weights_loader.load("sticker")
schedule = sd.scheduler.schedule

sketch = Image.new("RGB", (128, 128), "white")
pen = ImageDraw.Draw(sketch)
pen.polygon([(24, 20), (56, 16), (62, 36), (48, 54), (22, 48)], fill=(220, 30, 35))
pen.polygon([(68, 80), (100, 72), (108, 92), (88, 112), (72, 104)], fill=(20, 81, 220))
pixels = from_pil(sketch)
print("the sketch:", tuple(pixels.shape), "values from -1 to 1")

# %% [markdown]
# The loop is that of notebook 08. What is new is above it: `strength`, from 0 to 1, is the share of the steps that are
# taken. Two draws are random, and a seed means the same image only if they are drawn in the same order. First the
# autoencoder draws latents, because its encoder answers with a mean and a deviation (notebook 09); then comes the
# noise.


# %%
@torch.no_grad()
def predict(x, t, text, scale):
    """The guided prediction of the UNet."""
    u, c = sd.unet(torch.cat([x, x]), t, text).chunk(2)
    return u + scale * (c - u)


@torch.no_grad()
def image_to_image(pixels, prompt, strength, seed, n=20, scale=3.0):
    draw = torch.Generator().manual_seed(seed)
    moments = sd.vae.encode(pixels)
    z = moments.mean + moments.std * torch.randn(moments.mean.shape, generator=draw)
    z = z * sd.vae.config.scaling_factor
    noise = torch.randn(z.shape, generator=draw)

    taken = int(n * strength)
    grid = sd.scheduler.grid(n)
    x = schedule.add_noise(z, noise, grid.source[n - taken])
    text = sd.encode_prompt(["", prompt])
    for i in range(n - taken, n):  # the first steps are skipped
        x = sd.scheduler.step(grid, i, x, predict(x, grid.timesteps[i], text, scale)).x_prev
    return sd.decode(x)


prompt = "a red star above a blue heart"
mine = image_to_image(pixels, prompt, strength=0.6, seed=1)
theirs = sd(prompt, image=sketch, strength=0.6, seed=1, num_inference_steps=20, output_type="pt").images
print(f"largest difference of a pixel: {float((mine - theirs).abs().max()):.1e}")
lesson.claim("our loop draws what sd(..., image=, strength=) draws", (mine - theirs).abs().max() < 1e-3)
lesson.claim("strength 0.8 skips the first 10 of 50 steps", 50 - int(50 * 0.8) == 10)

# %% [markdown]
# The line with `range` is what makes it image to image. The fast.ai Deep Dive writes the same with an `if`: it runs
# over all steps and does nothing before `start_step`. So `start_step` 10 of 50 and a strength of 0.8 are one setting.
#
# **Predict, then run**: the same sketch with strengths from 0.1 to 1, from one seed. Up to where will you recognise the
# blots, from where on the words? And which of the images in the last column depends on the sketch at all?

# %%
strengths = [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0]
drawn = []
for seed in (1, 2):
    drawn += [sketch, *(to_pil(image_to_image(pixels, prompt, s, seed))[0] for s in strengths)]
lesson.pictures(
    drawn,
    alt="Two rows: a sketch of blots, then seven images: star and heart in its places, at last anywhere.",
    title="Little strength keeps the places of the sketch, much strength keeps only the prompt",
    columns=1 + len(strengths),
    labels=["sketch", *(f"{s}" for s in strengths)],
    rows=["seed 1", "seed 2"],
)

# %%
black = torch.full_like(pixels, -1.0)
from_sketch, from_black = (image_to_image(each, prompt, 1.0, seed=1) for each in (pixels, black))
signal = schedule.alpha_bar(999) ** 0.5
print(f"share of the image at t = 999: {signal:.4f} here, in SD 1 it is 0.0683")
lesson.claim("at strength 1 the image does not matter here", torch.allclose(from_sketch, from_black, atol=1e-4))

# %% [markdown]
# <details><summary>Answer</summary>
#
# None in the last column. At strength 1 the run starts at the noisiest level, where this model's schedule leaves
# nothing of the image: a black start gives the same result. (SD 1's schedule leaves a little, see notebook 05, so there
# the brightness of the image shines through even at strength 1.)
#
# Between the ends is the useful range: blots become a star and a heart **where the blots were**. Places are decided at
# the noisy levels, edges at the last ones, so even a small strength redraws the edges.
#
# </details>
#
# ## What stays, what follows
#
# In Sticker World both can be measured. Six scenes, each of two objects; the prompt describes the scene, but with
# another colour for the upper object. We ask for a range of strengths: does the image show what the prompt says, and is
# the lower object, which the prompt does not change, still where it was?

# %%
from dataclasses import replace

from minisd.sticker.evaluation import psnr
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Object, Scene

SCENES = [
    # upper object, its colour and its new one; lower object, its colour
    ("circle", "red", "green", "square", "blue"),
    ("star", "green", "blue", "heart", "orange"),
    ("triangle", "purple", "red", "circle", "cyan"),
    ("square", "yellow", "purple", "ring", "red"),
    ("heart", "pink", "cyan", "star", "blue"),
    ("ring", "orange", "red", "triangle", "green"),
]


def words(shape, colour, below):
    article = "an" if colour == "orange" else "a"
    return f"{article} {colour} {shape} above {'an' if below.colour == 'orange' else 'a'} {below.colour} {below.shape}"


before, recoloured, old_prompts, new_prompts = [], [], [], []
for k, (shape, colour, new_colour, shape_below, colour_below) in enumerate(SCENES):
    upper = Object(shape, colour, "medium", x=0.4 + 0.02 * k, y=0.28, radius=0.13)
    lower = Object(shape_below, colour_below, "medium", x=0.6 - 0.03 * k, y=0.72, radius=0.13)
    before.append(Scene((upper, lower)))
    recoloured.append(Scene((replace(upper, colour=new_colour), lower)))
    old_prompts.append(words(shape, colour, lower))
    new_prompts.append(words(shape, new_colour, lower))
print(old_prompts[0], "->", new_prompts[0])
side = sd.vae.config.sample_size
start, goal = render(before, side), render(recoloured, side)


def follows(images):
    """How many images are what the new prompt says."""
    return sum(check(image, prompt).exact for image, prompt in zip(images, new_prompts, strict=True))


def stays(images):
    """In how many the lower object is still there, in its place."""
    count = 0
    for image, prompt, scene in zip(images, new_prompts, before, strict=True):
        lower = scene.objects[1]
        count += any(
            (thing.shape, thing.colour) == (lower.shape, lower.colour)
            and abs(thing.x - lower.x) + abs(thing.y - lower.y) < 0.08
            for thing in check(image, prompt).found
        )
    return count


# %%
shares = [0.1, 0.2, 0.4, 0.6, 0.8, 1.0]
follow, stay, kept = [], [], {}
for s in shares:
    images = sd(new_prompts, image=start, strength=s, seed=0, num_inference_steps=20, output_type="pt").images
    follow.append(follows(images))
    stay.append(stays(images))
    kept[s] = images
    print(f"strength {s}: {follow[-1]} of 6 follow the prompt, {stay[-1]} of 6 keep the lower object in its place")

figure, panel = lesson.axes(width=4.6, height=2.7)
panel.plot(shares, follow, marker="o", label="image follows the new prompt")
panel.plot(shares, stay, marker="s", linestyle="--", label="lower object is where it was")
panel.set(xlabel="strength", ylabel="images, of 6", ylim=(-0.3, 6.3), yticks=range(0, 7, 2))
panel.legend(loc="lower center", fontsize=8)
lesson.show(
    figure,
    alt="Over strength the number that follow the prompt rises, the number that keep the lower object falls.",
    title="Strength trades the old image for the new words",
)
lesson.claim("with strength 0.1 fewer follow than with the best one", follow[0] < max(follow))
lesson.claim("strength 1 forgets where objects were", stay[-1] < max(stay))

# %% [markdown]
# There is a window in between, and one has to search for it. The reason for the trade: the noise that we add is **any**
# noise. It hides what should change, and just as much what should stay. It would be better to start from a noise that
# already belongs to this image, so that a run with the old prompt would give back the old image exactly. Does such a
# noise exist?
#
# ## DDIM backwards
#
# DDIM has no dice (notebook 05): one start, one image. So we can try to walk the same path backwards.
#
# For a model that predicts $v$ the step is a rotation. Write the noise level as an angle $\varphi$ with
# $\cos\varphi = \sqrt{\bar\alpha}$. Then $x = \cos\varphi\,x_0 + \sin\varphi\,\epsilon$, and $v$ is the direction in
# which $x$ moves when $\varphi$ grows. To go from the angle of $t$ down to that of $s$, turn back by their difference
# $\Delta$:
#
# $$x_s = \cos\Delta\;x_t - \sin\Delta\;v(x_t, t)$$
#
# Backwards, turn forward by $\Delta$. There is one problem: $v$ should be computed at $x_t$, exactly the point that we
# are looking for. The solution (Song et al. 2021): neighbouring points are alike, so compute it at $x_s$ instead.
#
# $$x_t \approx \cos\Delta\;x_s + \sin\Delta\;v(x_s, t)$$

# %%
from minisd.interpret.inversion import invert


def angle(t):
    """Of the noise level of timestep t; t below 0 is the clean image."""
    return torch.tensor(schedule.alpha_bar(t), dtype=torch.float64).sqrt().acos().float()


def turn(x, v, by):
    return by.cos() * x + by.sin() * v


@torch.no_grad()
def encode_mean(pixels):
    """The image's latents without dice."""
    return sd.vae.encode(pixels).mean * sd.vae.config.scaling_factor


@torch.no_grad()
def inverted(pixels, text, n):
    """The path from the image up to its noise, one entry for each noise level."""
    path, grid = [encode_mean(pixels)], sd.scheduler.grid(n)
    for k in reversed(range(n)):
        t, s = grid.source[k], grid.previous[k]
        v = sd.unet(path[-1], torch.tensor(t), text)
        path.append(turn(path[-1], v, angle(t) - angle(s)))
    return path


text = sd.encode_prompt(old_prompts)
path = inverted(start, text, 20)
theirs = invert(sd, start, old_prompts, num_inference_steps=20, refine=0)
print(f"{len(path)} noise levels, from t = -1 to t = 999")
lesson.claim("that is the library's inversion as published", torch.allclose(path[-1], theirs, atol=1e-3))

# %% [markdown]
# Now the test: from that noise down again, with the same prompt and without guidance.
#
# **Predict, then run**: will the six images come back? Remember that each of the 20 steps asked the UNet at a point a
# little off the right one.


# %%
@torch.no_grad()
def down(x, text, n, skip=0):
    """DDIM from noise to image by turning, without guidance; `skip` leaves out the first steps."""
    grid = sd.scheduler.grid(n)
    for k in range(skip, n):
        t, s = grid.source[k], grid.previous[k]
        x = turn(x, sd.unet(x, torch.tensor(t), text), angle(s) - angle(t))
    return sd.decode(x)


def decibels(first, second):
    return float(psnr(first, second).mean())


dice = torch.randn(path[-1][:1].shape, generator=torch.Generator().manual_seed(0))
library = sd(old_prompts[0], latents=dice, num_inference_steps=20, guidance_scale=1, output_type="pt").images
lesson.claim("turning is the library's DDIM", torch.allclose(down(dice, text[:1], 20), library, atol=1e-2))

again = down(path[-1], text, 20)

most = decibels(start, sd.decode(encode_mean(start)))  # nothing comes back better than the autoencoder allows
print(f"PSNR of what came back: {decibels(start, again):.1f} dB; the autoencoder alone: {most:.1f} dB")
lesson.claim("it loses more than the autoencoder does", decibels(start, again) < most - 0.5)

# %%
lesson.pictures(
    [*to_pil(start), *to_pil(again)],
    alt="Above six images of two objects on white. Below what came back: the objects, on gray backgrounds.",
    title=lesson.claim(
        "20 steps up and 20 down: the objects come back, the white backgrounds turn gray",
        {check(image, prompt).background_found for image, prompt in zip(again, old_prompts, strict=True)} == {"gray"},
    ),
    columns=6,
    rows=["image", "came back"],
    size=1.05,
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Not well. The errors add up on the way: each step starts where the last one, slightly wrong, ended. The background
# suffers most. How bright it is depends on the mean of the noise, a single small number for each channel, so the same
# small error in every cell is enough to change it. More and smaller steps help, as neighbours are then closer together;
# but then every run down takes as many steps, too.
#
# </details>
#
# ## Ask again at the new point
#
# We want the $x_t$ that DDIM sends to our $x_s$. Solve its step for $x_t$:
#
# $$x_t = \frac{x_s + \sin\Delta\;v(x_t, t)}{\cos\Delta}$$
#
# The unknown is on both sides. So guess, put the guess in at the right, and get a better one at the left; repeat. This
# is a *fixed-point iteration* (Pan et al. 2023 use it for inversion). Each repetition costs one more call.


# %%
@torch.no_grad()
def refined(pixels, text, n, refine):
    path, grid = [encode_mean(pixels)], sd.scheduler.grid(n)
    for k in reversed(range(n)):
        t, s = grid.source[k], grid.previous[k]
        delta, low = angle(t) - angle(s), path[-1]
        x = turn(low, sd.unet(low, torch.tensor(t), text), delta)
        for _ in range(refine):
            x = (low + delta.sin() * sd.unet(x, torch.tensor(t), text)) / delta.cos()
        path.append(x)
    return path


found = refined(start, text, 20, refine=4)
theirs = invert(sd, start[:1], old_prompts[0], num_inference_steps=20, refine=4)
print(f"largest difference: {float((found[-1][:1] - theirs).abs().max()):.1e}")
lesson.claim("that is the library's invert(refine=4)", torch.allclose(found[-1][:1], theirs, atol=5e-3))

few, few_words = start[:3], text[:3]  # three of the six are enough here
plain = decibels(few, again[:3])
close = decibels(few, down(found[-1][:3], few_words, 20))
small_steps = decibels(few, down(inverted(few, few_words, 100)[-1], few_words, 100))
print(f"plain:     20 calls up,  20 calls down: {plain:.1f} dB")
print(f"plain:    100 calls up, 100 calls down: {small_steps:.1f} dB")
print(f"refined:  100 calls up,  20 calls down: {close:.1f} dB")
lesson.claim("smaller steps bring back more", small_steps > plain + 1)
lesson.claim("and so does refining", close > plain + 1)

# %% [markdown]
# Five times the calls on the way up help either way; with refining, the way down, which an edit takes again and again,
# stays short. How much they help is partly luck: of so few images a single one that goes astray decides.
#
# But is what we found a *noise*? Compare it with one from the dice: the deviation of its values, and where they are
# large.

# %%
for name, x in (("dice", dice), ("inversion, plain", path[-1]), ("inversion, refined", found[-1])):
    print(f"{name:18}: deviation {float(x.std()):.2f}")
lesson.pictures(
    [x[0].norm(dim=0) for x in (dice, found[0], found[len(found) // 2], found[-1])],
    alt="Four maps of size: noise from the dice is even speckle; the inverted one still shows where the objects are.",
    title="What inversion finds still shows the image (norm of each latent)",
    labels=["dice", "t = -1", "t = 499", "t = 999"],
    cmap="magma",
    size=1.4,
)

# %% [markdown]
# Not quite. Its values are smaller than those of the dice, and the objects can be made out in it. It is *a* point that
# DDIM turns into the image, not a typical one: our images are flat colours, which the model's own runs never hit
# exactly. That matters when we ask for something else from there, as the next sections do.
#
# ## Guidance is hard to invert
#
# So far guidance was off. With guidance, $v$ is the combination of two predictions (notebook 08), and its errors are
# multiplied, too. To see what guidance alone does, take steps that are small enough for what goes before: 50, refined.
#
# **Predict, then run**: which comes back worse: guidance only on the way down, or both ways?

# %%
came_back = {}
for up, low in ((1.0, 1.0), (1.0, 3.0), (3.0, 3.0)):
    noise = invert(sd, start, old_prompts, num_inference_steps=50, guidance_scale=up, refine=2)
    images = sd(old_prompts, latents=noise, num_inference_steps=50, guidance_scale=low, output_type="pt").images
    came_back[up, low] = decibels(start, images)
    print(f"guidance {up:g} on the way up, {low:g} on the way down: {came_back[up, low]:.1f} dB")
lesson.claim("guidance on the way down alone leads elsewhere", came_back[1.0, 3.0] < came_back[1.0, 1.0])
lesson.claim("guidance both ways comes back worst", came_back[3.0, 3.0] < came_back[1.0, 3.0])

# %% [markdown]
# <details><summary>Answer</summary>
#
# Guidance both ways, and both are worse than none. Guidance on one way only means two different paths, so nothing makes
# them meet. Guidance both ways is one path, but a crooked one: the fixed-point iteration needs neighbours to be alike,
# and guidance makes them less alike. So one inverts without guidance, and lets guidance act only on the last part of
# the way down. That is the next section.
#
# </details>
#
# ## Change one word
#
# An edit needs guidance, or the new word has too little effect. The trick is not to go all the way up: leave the path
# at an intermediate level, from which most of the old image is already decided, and go down from there with the new
# prompt. In the library, `denoising_start` says what share of the way is already done.


# %%
def edited(path, prompts, skip, n=20, scale=3.0):
    """Down from an intermediate point of the inverted path, with other words."""
    grid, x = sd.scheduler.grid(n), path[n - skip]
    text = torch.cat([sd.encode_prompt([""] * len(prompts)), sd.encode_prompt(prompts)])
    for k in range(skip, n):
        t, s = grid.source[k], grid.previous[k]
        x = turn(x, predict(x, torch.tensor(t), text, scale), angle(s) - angle(t))
    return sd.decode(x)


mine = edited(found, new_prompts, skip=8)
theirs = sd(new_prompts, latents=found[12], denoising_start=8 / 20, num_inference_steps=20, output_type="pt").images
print(f"largest difference of a pixel: {float((mine - theirs).abs().max()):.1e}")
lesson.claim("that is the library's run from there", torch.allclose(mine, theirs, atol=1e-2))

# %% [markdown]
# Now compare it with image to image, which enters at the same level with noise from the dice. We know the image that we
# want, because the renderer can draw it: the old scene with the new colour.

# %%
entries = [4, 8, 12]
by_path, by_dice = [], []
for skip in entries:
    left, right = edited(found, new_prompts, skip), kept[round(1 - skip / 20, 1)]
    by_path.append(decibels(goal, left))
    by_dice.append(decibels(goal, right))
    print(
        f"first {skip} of 20 steps skipped: inversion {by_path[-1]:.1f} dB and {follows(left)} of 6 right; "
        f"dice {by_dice[-1]:.1f} dB and {follows(right)} of 6 right"
    )
print(f"for comparison, the old images: {decibels(goal, start):.1f} dB")
lesson.claim("inversion keeps more of the image, on average", sum(by_path) > sum(by_dice) + 3)

# %%
rows = [start, kept[0.6], edited(found, new_prompts, 8), goal]
lesson.pictures(
    [image for row in rows for image in to_pil(row)],
    alt="Four rows of six: old images; image to image, objects moved; edits by inversion, in place; the goal.",
    title="Change one colour: from the image's own noise, objects stay in place",
    columns=6,
    rows=["before", "dice", "inversion", "goal"],
    size=1.05,
)

# %% [markdown]
# What is kept has a price. The found noise holds on to the old image, so a new word may take effect too late, or in the
# wrong place: compare the counts of right images above, and look for a column where the edit went wrong. How early to
# leave the path is a choice again, as strength was, but with a better trade.

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why does a small strength keep the places of the objects?</summary>
#
# The run starts at a level with little noise, where the layout still shows in the latents. The steps that are left
# decide edges, not places.
#
# </details>
#
# <details><summary>Why does the given image not matter at strength 1, in this model?</summary>
#
# The run starts at the noisiest level, and there the schedule of this model leaves nothing of the image. The schedule
# of SD 1 leaves a little.
#
# </details>
#
# <details><summary>Why can DDIM be run backwards, and DDPM not?</summary>
#
# DDIM has no dice, so each start belongs to one image and the same path can be walked back. DDPM adds new noise at each
# step, so an image does not belong to one start.
#
# </details>
#
# <details><summary>Why does plain inversion not lead back to the image exactly?</summary>
#
# The prediction is needed at the noisier point, and that is the point which is looked for. Plain inversion takes the
# point before it instead, and the small errors of all steps add up.
#
# </details>
#
# <details><summary>Why does an edit go up only a part of the way?</summary>
#
# At a level in between, most of the old image is decided already, so what the new prompt does not name stays. The new
# word still has enough steps left to take effect.
#
# </details>
#
# ## Your turn
#
# Write this function yourself. `start` makes a file for it, and `minisd exercises check` compares your results with the
# reference and says what differs ([the exercises](../minisd/exercises/README.md)).
#
# - `minisd exercises start steps_to_skip`: say how many steps of a run are left out at a given strength.

# %% [markdown]
# ## Summary
#
# - **Image to image** skips the first steps: latents of an image, noise of that level, the rest of the run. `strength`
#   is the share of the steps that are taken. It trades the old image for the new words.
# - **DDIM inversion** walks DDIM backwards to the noise of a given image. Asking the UNet at the wrong end of each step
#   costs exactness; asking again at the new point (`refine`) brings it back.
# - Guidance makes inversion less exact, so invert without it.
# - **Edit**: go only part of the way up, then down from there with one word changed. The rest stays better than with
#   noise from the dice.
#
# **Code**: `prepare_latents` in [initial_latents.py](../minisd/pipeline/initial_latents.py), `invert` in
# [inversion.py](../minisd/interpret/inversion.py), `DDIMInverse` in
# [ddim_inverse.py](../minisd/schedulers/ddim_inverse.py), measured by
# [inversion.py](../minisd/sticker/evaluation/inversion.py). **Next**: [18 · Inpainting, depth and
# upscaling](18_inpainting_depth_upscaling.ipynb).
