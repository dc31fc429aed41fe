# %% [markdown]
# # 05 · The noise schedule, DDPM and DDIM
#
# **You will** turn an image into noise in one line, read off what each of the 1000 timesteps means, and write the two
# samplers that walk back: DDPM, which rolls dice on the way, and DDIM, which does not.
#
# **Needs** the basics of notebook 00, square roots and the normal distribution.
#
# **Takes** 25 minutes to read, less than a minute to run.

# %% [markdown]
# ## Going forward: from image to noise
#
# Diffusion models learn by undoing damage, so first we do the damage. At each of $T$ timesteps a small share $\beta_t$
# of the image's variance is replaced by fresh noise. Two steps of that are again a mixture of image and noise, and so
# are a thousand. So there is a shortcut to any timestep at once (Ho et al. 2020, equation 4):
#
# $$x_t = \sqrt{\bar\alpha_t}\; x_0 + \sqrt{1-\bar\alpha_t}\;\epsilon, \qquad \bar\alpha_t = \prod_{s\le t}(1-\beta_s),
# \qquad \epsilon \sim \mathcal N(0, 1)$$
#
# $\bar\alpha_t$ (`alpha_bar` in the code) is how much of the variance is still image. Here is Stable Diffusion's
# choice, computed by hand: the square roots of $\beta$ are evenly spaced.

# %%
from itertools import pairwise

import lesson
import torch

import weights_loader
from minisd.schedulers import DDIM, DDPM, NoiseSchedule

betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
alpha_bars = torch.cumprod(1 - betas, 0)

official = NoiseSchedule()  # the library's defaults are those of Stable Diffusion 1
lesson.claim("that is the library's schedule, to the last bit", torch.equal(alpha_bars, official.alpha_bars))
for t in (0, 250, 500, 750, 999):
    a = alpha_bars[t]
    print(f"t = {t:3}: alpha_bar {a:.4f}, so signal {a**0.5:.3f} and noise {(1 - a) ** 0.5:.3f}")

# %%
sd = weights_loader.load("sticker")
ours = sd.scheduler.schedule
figure, (left, right) = lesson.axes(1, 2)
left.plot(alpha_bars.sqrt(), label=r"signal $\sqrt{\bar\alpha}$")
left.plot((1 - alpha_bars).sqrt(), label=r"noise $\sqrt{1-\bar\alpha}$", linestyle="--")
left.set(xlabel="timestep t", title="Signal and noise: squares sum to 1")
left.legend()
for schedule, name, style in (
    (official, "SD 1", "-"),
    (ours, "embedded model", "-."),
    (NoiseSchedule(beta_start=1e-4, beta_end=0.02, beta_schedule="linear"), "DDPM 2020", "--"),
    (NoiseSchedule(beta_schedule="squaredcos_cap_v2"), "cosine", ":"),
):
    right.plot(schedule.alpha_bars, label=name, linestyle=style)
right.set(xlabel="timestep t", ylabel=r"$\bar\alpha$", title="Which keeps the image longest?")
right.legend()
lesson.show(
    figure,
    alt="Left, the signal falls from 1 towards 0, the noise rises to 1. Right, four schedules fall at other speeds.",
    title="A schedule is one falling curve: how much of the image is left",
)

# %% [markdown]
# **Predict, then run**: SD 1's curve stops at a last signal of about what? If it is not zero, what does the model see
# in training, at the noisiest timestep, that it will never see when it draws?

# %%
for name, schedule in (("SD 1", official), ("embedded model", ours)):
    print(f"signal left at t = 999: {schedule.alpha_bars[-1] ** 0.5:.4f} ({name})")
lesson.claim("SD 1 never trains on pure noise", official.alpha_bars[-1] ** 0.5 > 0.06)

# %% [markdown]
# <details><summary>Answer</summary>
#
# SD 1 keeps 6.8 % of the image's amplitude, and that remainder tells the model how bright the image is on average.
# Drawing starts at pure noise, whose mean is about 0; so SD 1 hardly ever draws very dark or very bright images. Lin et
# al. 2024 stretch the schedule until the signal ends at zero ("zero terminal SNR"); the embedded model was trained this
# way: its last signal above is 0.
#
# </details>

# %%
lesson.claim("6.8 % it is", round(100 * float(official.alpha_bars[-1]) ** 0.5, 1) == 6.8)

# %% [markdown]
# ## Seeing it
#
# Everything happens in the latents of the autoencoder (notebook 09): an image is encoded, noise is added, and for us to
# look at it, it is decoded again.

# %%
from minisd.images import to_pil
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Object, Scene

scene = Scene(
    (Object("star", "orange", "large", 0.4, 0.45, 0.19), Object("circle", "blue", "medium", 0.74, 0.72, 0.13))
)
pixels = render([scene], sd.vae.config.sample_size)
x0 = sd.encode(pixels, torch.Generator().manual_seed(0))
noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))


def add_noise(x0, noise, t):
    """Equation 4."""
    return ours.alpha_bar(t) ** 0.5 * x0 + (1 - ours.alpha_bar(t)) ** 0.5 * noise


def decoded(latents):
    return to_pil(sd.decode(latents))[0]


times = [0, 100, 250, 400, 600, 800, 999]
noisy = [add_noise(x0, noise, t) for t in times]
lesson.pictures(
    [decoded(x) for x in noisy],
    alt="The same image with more and more noise from left to right, in the end nothing but noise.",
    title="The layout outlives the edges: noise hides small details first",
    labels=[f"t = {t}" for t in times],
)
for t, x in zip(times, noisy, strict=True):
    assert torch.allclose(x, ours.add_noise(x0, noise, t), atol=1e-6)
deviations = [float(x.std()) for x in noisy]
print("standard deviation of the latents:", ", ".join(f"{each:.2f}" for each in deviations))
lesson.claim("the deviation stays between 0.6 and 1.1", all(0.6 < each < 1.1 for each in deviations))

# %% [markdown]
# The size of the numbers stays about the same all the way: this plain image has a deviation of 0.7, an average image
# and pure noise have 1. Nothing is added on top; image is *exchanged* for noise. That is why latents are scaled to
# about unit variance before they enter the loop.
#
# ## What the model predicts
#
# The UNet gets $x_t$, $t$ and the words. To undo the mixture, one more number for each value is needed. Any of these
# three will do, because each follows from another by the equation above:
#
# - $\epsilon$, the noise (SD 1, most of SD 2),
# - $x_0$, the clean image,
# - $v = \sqrt{\bar\alpha}\,\epsilon - \sqrt{1-\bar\alpha}\,x_0$, a mixture that is well behaved at both ends (Salimans
#   and Ho 2022): at the clean end it is the noise, at the noisy end minus the image.
#
# If $x_t$ is a point on a circle with the axes $x_0$ and $\epsilon$, then $v$ is the direction in which it moves along
# the circle: $x_t$ and $v$ are $x_0$ and $\epsilon$, turned by an angle. So the same two numbers turn them back:


# %%
def x0_and_eps(x, v, alpha_bar):
    """From a v-prediction to both the image and the noise."""
    signal, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    return signal * x - sigma * v, signal * v + sigma * x


t = 600
v = ours.velocity(x0, noise, t)
back, eps = x0_and_eps(add_noise(x0, noise, t), v, ours.alpha_bar(t))
lesson.claim(
    "turned back exactly: image and noise are found again",
    torch.allclose(back, x0, atol=1e-5) and torch.allclose(eps, noise, atol=1e-5),
)
print("what this model was trained to predict:", ours.prediction_type)

# %% [markdown]
# These are the symbols, also those of later lessons: the noise level $\sigma_t$ is the subject of notebook 06, the
# guidance scale that of notebook 08. (In the function above, `sigma` is the share of the noise in $x_t$; notebook 06
# divides it by the share of the image. The letter $s$ has two uses: below it is the next timestep, in the table the
# scale.)
#
# ![A table of symbols: x_0 clean latents, epsilon noise, alpha_bar the share of the image in the variance, x_t noisy
# latents, sigma the noise for one unit of image, v the velocity, s the guidance scale.](diagrams/names.png)
#
# ## One guess is not enough
#
# If the model predicts the noise, why not take all of it away at once?
#
# **Predict, then run**: below, one image with noise of three strengths, and what the trained model makes of it in
# **one** call. What will come back from t = 999, where nothing of the image is left?

# %%
words = sd.encode_prompt(["an orange star to the left of a blue circle"])


@torch.no_grad()
def predict(x, t):
    """One call of the UNet -> the clean image and the noise, as it believes."""
    return ours.x0_and_eps(x, sd.unet(x, torch.tensor(t), words), ours.alpha_bar(t))


guessed_at = [250, 600, 999]
guesses = [predict(add_noise(x0, noise, t), t)[0] for t in guessed_at]
lesson.pictures(
    [decoded(add_noise(x0, noise, t)) for t in guessed_at] + [decoded(x) for x in guesses],
    alt="Above the image under three amounts of noise; below the guesses: clear, clear, and at t = 999 two blobs.",
    title="A single guess from pure noise is an average",
    columns=3,
    labels=[f"t = {t}" for t in guessed_at],
    rows=["noisy", "one guess"],
    size=1.5,
)
errors = [float((x - x0).square().mean()) for x in guesses]
print("mean squared error of the guess:", ", ".join(f"{e:.3f}" for e in errors))
lesson.claim("the error grows with the noise", errors[0] < errors[1] < errors[2])

# %% [markdown]
# <details><summary>Answer</summary>
#
# The training loss is a squared error, and what makes a squared error small when many images are possible is their
# mean. At t = 250 and 600 the noise still shows where the objects are. At t = 999 all images that fit the words are
# possible, wherever their objects may be, so the guess is two pale blobs, one at the left and one at the right. They
# are pink rather than orange and blue, because the decoder was never trained on the mean of many latents. So we take a
# small step in the direction of the guess, look again, and the next guess has more information. That is the whole idea
# of a sampler.
#
# </details>
#
# ## DDIM: mix again with less noise
#
# The simplest sampler follows from equation 4 directly (Song et al. 2021, equation 12). The model gives $\hat x_0$
# and $\hat\epsilon$; mix **the same two** again, with the shares of the next, less noisy timestep $s$:
#
# $$x_s = \sqrt{\bar\alpha_s}\;\hat x_0 + \sqrt{1-\bar\alpha_s}\;\hat\epsilon$$


# %%
words = sd.encode_prompt(["an orange star"])  # from here on one object


def ddim_step(x, t, s):
    """From timestep t to s < t; s = -1 is the clean image."""
    x0, eps = predict(x, t)
    return ours.alpha_bar(s) ** 0.5 * x0 + (1 - ours.alpha_bar(s)) ** 0.5 * eps


def sample(step, n, seed):
    """Walk down n evenly spaced timesteps from pure noise, by one sampler's step."""
    x = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
    times = [round(1000 - k * 1000 / n) - 1 for k in range(n)] + [-1]
    path = [x]
    for t, s in pairwise(times):
        path.append(step(path[-1], t, s))
    return path


ddim = sample(ddim_step, 20, seed=3)
lesson.pictures(
    [decoded(x) for x in ddim[::4]],
    alt="Noise becomes an orange star in five steps from left to right.",
    title="Ten lines of code, and a star comes out of noise",
    labels=[f"after {k} steps" for k in range(0, 21, 4)],
)

# %% [markdown]
# The library's sampler is the same formula, so both must agree at every step, not only in looks:


# %%
def library(sampler, n, seed):
    grid, draw = sampler.grid(n), torch.Generator().manual_seed(seed)
    x = torch.randn(x0.shape, generator=draw)
    path = [x]
    for i, t in enumerate(grid.timesteps):
        with torch.no_grad():
            output = sd.unet(x, t, words)
        x = sampler.step(grid, i, x, output, None, lambda: torch.randn(x0.shape, generator=draw)).x_prev
        path.append(x)
    return path


theirs = library(DDIM(ours, timestep_spacing="trailing", steps_offset=0, set_alpha_to_one=True), 20, seed=3)
drift = max(float((a - b).abs().max()) for a, b in zip(ddim, theirs, strict=True))
print(f"largest difference over all 20 steps: {drift:.1e}")
lesson.claim("our DDIM is the library's DDIM", drift < 1e-3)
lesson.source(DDIM._step)

# %% [markdown]
# (The library's version has two more options: `eta`, see below, and the clipping that models of *pixels* need.)
#
# ## DDPM: the dice roll at every step
#
# The older sampler asks: given $x_t$ and the guess $\hat x_0$, where may the chain have been at $s$? By Bayes' rule
# that is a normal distribution, a mean between $\hat x_0$ and $x_t$ and a variance, and DDPM **draws** from it (Ho et
# al. 2020, equations 6 and 7), with $\alpha = \bar\alpha_t/\bar\alpha_s$:
#
# $$x_s = \frac{\sqrt{\bar\alpha_s}\,(1-\alpha)}{1-\bar\alpha_t}\,\hat x_0
# + \frac{\sqrt{\alpha}\,(1-\bar\alpha_s)}{1-\bar\alpha_t}\,x_t +
# \sqrt{\frac{1-\bar\alpha_s}{1-\bar\alpha_t}(1-\alpha)}\;z, \qquad z \sim \mathcal N(0,1)$$


# %%
def ddpm_stepper(draw):
    def step(x, t, s):
        x0, _ = predict(x, t)
        a_t, a_s = ours.alpha_bar(t), ours.alpha_bar(s)
        a = a_t / a_s
        mean = a_s**0.5 * (1 - a) / (1 - a_t) * x0 + a**0.5 * (1 - a_s) / (1 - a_t) * x
        variance = (1 - a_s) / (1 - a_t) * (1 - a)
        return mean + variance**0.5 * torch.randn(x.shape, generator=draw)

    return step


ddpm = sample(ddpm_stepper(torch.Generator().manual_seed(100)), 50, seed=3)

dice = torch.Generator().manual_seed(3)
start = torch.randn(x0.shape, generator=dice)  # as in `library`: first the start, then the dice
own, step = [start], ddpm_stepper(dice)
steps = [round(1000 - k * 20) - 1 for k in range(50)] + [-1]
for t, s in pairwise(steps):
    own.append(step(own[-1], t, s))
theirs = library(DDPM(ours, timestep_spacing="trailing", steps_offset=0), 50, seed=3)
drift = max(float((a - b).abs().max()) for a, b in zip(own, theirs, strict=True))
print(f"largest difference over all 50 steps: {drift:.1e}")
lesson.claim("our DDPM is the library's DDPM", drift < 1e-2)

# %% [markdown]
# **Predict, then run**: three runs from the **same** starting noise, with each sampler, 50 steps. In which row are the
# three images equal?

# %%
rows = [sample(ddim_step, 50, seed=3)[-1] for _ in range(3)]
rows += [sample(ddpm_stepper(torch.Generator().manual_seed(100 + k)), 50, seed=3)[-1] for k in range(3)]
lesson.pictures(
    [decoded(x) for x in rows],
    alt="Above three equal images of a star, below three stars at different places.",
    title="DDIM: the noise decides. DDPM: the dice on the way decide, too",
    columns=3,
    labels=["run 1", "run 2", "run 3"],
    rows=["DDIM", "DDPM"],
    size=1.5,
)
lesson.claim("DDIM gives the same image every time", torch.equal(rows[0], rows[1]) and torch.equal(rows[1], rows[2]))
lesson.claim("DDPM does not", not torch.allclose(rows[3], rows[4], atol=0.1))

# %% [markdown]
# <details><summary>Answer</summary>
#
# In DDIM's. Its step contains no randomness, so the start alone decides; that is what makes seeds useful, and what lets
# notebook 17 run it backwards, from an image to its noise. DDPM throws away a little of $x_t$ at each step and puts new
# noise in its place.
#
# </details>
#
# ## Between the two: eta
#
# The two are ends of one family: DDIM with `eta` 1 draws as much noise as DDPM, with 0.5 half of that. All walk
# through the same noise levels.
#
# **Predict, then run**: in which row will the image stay the same, whatever the number of steps?


# %%
def ddim_eta(eta):
    return DDIM(ours, timestep_spacing="trailing", steps_offset=0, set_alpha_to_one=True, eta=eta)


counts, etas = [3, 5, 10, 30], [0.0, 0.5, 1.0]
grid = [library(ddim_eta(eta), n, seed=3)[-1] for eta in etas for n in counts]
lesson.pictures(
    [decoded(x) for x in grid],
    alt="Three rows by eta 0, 0.5 and 1, four columns by 3 to 30 steps: with eta 0 the object stays where it is.",
    title="The more noise on the way, the less the starting noise decides",
    columns=len(counts),
    labels=[f"{n} steps" for n in counts],
    rows=[f"eta {eta:g}" for eta in etas],
    size=1.3,
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# In the row of eta 0: without dice all step counts follow one and the same path, only with finer or coarser steps, so
# they end at about the same image. With eta 1 another number of steps means other dice, and another image. New noise
# also has to be cleaned up again, so samplers without it get along with fewer steps.
#
# </details>

# %% [markdown]
# ## What you can now explain
#
# <details><summary>What would happen if noise were added on top, and the image not reduced?</summary>
#
# The numbers would grow with the timestep, and the network would get inputs of very different sizes. The schedule
# exchanges image for noise, so their size stays about the same.
#
# </details>
#
# <details><summary>Why does SD 1 hardly ever draw very dark images?</summary>
#
# In its training even the noisiest latents contain a remainder of the image, which tells its average brightness. A run
# starts from pure noise, whose mean is about 0, and the model takes that for an average brightness.
#
# </details>
#
# <details><summary>Why is it harder, at pure noise, to predict v than to predict the noise?</summary>
#
# At pure noise $x_t$ is the noise, so a model that predicts the noise only has to repeat its input. There $v$ is minus
# the image, so the model still has to guess the image.
#
# </details>
#
# <details><summary>Why does DDIM mix the guessed image with the guessed noise again?</summary>
#
# Both together are $x_t$, as the model sees it. Mixed with the shares of the next timestep they have the noise level
# that the model expects there, and the model can guess again.
#
# </details>
#
# <details><summary>Why do two runs of DDPM from the same noise end at different images?</summary>
#
# DDPM draws new noise at each step, so the start does not decide alone. A step of DDIM contains no randomness.
#
# </details>
#
# ## Your turn
#
# Write these functions yourself. `start` makes a file for each, and `minisd exercises check` compares your results with
# the reference and says what differs ([the exercises](../minisd/exercises/README.md)).
#
# - `minisd exercises start add_noise`: mix images with noise, each at its own noise level.
# - `minisd exercises start ddim_step`: go from one noise level to the next by DDIM, for a model that predicts $v$.
# - `minisd exercises start alpha_bars`: compute the schedule from its first and its last beta.

# %% [markdown]
# ## Summary
#
# - A noise schedule is one falling curve, $\bar\alpha_t$; $x_t$ is a mixture of image and noise whose size stays
#   about the same.
# - The model's answer, whether $\epsilon$, $v$ or $x_0$, gives both the image and the noise.
# - One guess is an average of all that is possible. Samplers therefore go in steps: **DDIM** mixes the guessed image
#   and the guessed noise again, with less noise; **DDPM** draws from where the chain may have been.
# - What we wrote is what the library does; the cells above compared them at every step.
#
# **Code**: [schedule.py](../minisd/schedulers/schedule.py), [ddim.py](../minisd/schedulers/ddim.py),
# [ddpm.py](../minisd/schedulers/ddpm.py), and what all samplers share, [base.py](../minisd/schedulers/base.py).
# **Next**: [06 · The other samplers](06_samplers.ipynb).
