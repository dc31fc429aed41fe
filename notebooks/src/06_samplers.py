# %% [markdown]
# # 06 · The other samplers
#
# **You will** find the one differential equation that all samplers solve, write Euler, Euler ancestral, Heun, LMS and
# DPM-Solver++ in a few lines each, and measure how fast the error of each of them falls.
#
# **Needs** notebook 05 (noise schedule, DDPM and DDIM), and what a derivative is.
#
# **Takes** 30 minutes to read, less than a minute to run.

# %% [markdown]
# ## The sigma view
#
# In notebook 05 a noisy image is $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon$. Both shares change
# with $t$, which makes formulas long. Divide by the first of them, and one number is left, the noise level $\sigma$:
#
# $$x = x_0 + \sigma\,\epsilon, \qquad \sigma = \sqrt{\frac{1-\bar\alpha_t}{\bar\alpha_t}}$$
#
# Now the image stays as it is, and the noise grows on top of it. The UNet was trained on $x_t$, so before we ask it we
# multiply by $\sqrt{\bar\alpha_t} = 1/\sqrt{\sigma^2+1}$ again. That is all that "scaling the model's input" means.

# %%
import math
from itertools import pairwise

import lesson
import numpy as np
import torch

import weights_loader
from minisd.images import to_pil
from minisd.schedulers import DDIM, LMS, PNDM, DPMSolverMultistep, Euler, EulerAncestral, Heun, NoiseSchedule

sd = weights_loader.load("sticker")
ours, official = sd.scheduler.schedule, NoiseSchedule()  # of the embedded model, and of Stable Diffusion 1

by_hand = ((1 - official.alpha_bars) / official.alpha_bars).sqrt()
lesson.claim("sigma is the library's, at each of the 1000 timesteps", torch.allclose(by_hand, official.sigmas))
for t in (0, 250, 500, 750, 990, 999):
    print(f"t = {t:3}: sigma {official.sigmas[t]:7.3f} (SD 1) {ours.sigmas[t]:9.3f} (embedded model)")

# %% [markdown]
# SD 1 goes up to a noise level of 14.6. The embedded model was trained up to pure noise, where nothing of the image is
# left. There $\sigma$ would be infinite; the library writes 4096 instead.
#
# One function now holds all that we need of the UNet: **give it $x$ and $\sigma$, and it returns the clean image that
# it predicts.** We compute in float64, so that differences below are those of the methods, not of rounding.

# %%
words = sd.encode_prompt(["an orange star"])
table = ours.sigmas.log().numpy()


@torch.no_grad()
def unet(x, sigma):
    """x (B, 4, h, w) in the sigma view -> the clean image, as the UNet predicts it."""
    signal = 1 / math.hypot(sigma, 1)
    t = np.interp(math.log(sigma), table, np.arange(len(table)))  # the timestep with this noise level
    output = sd.unet((signal * x).float(), torch.tensor(t), words.expand(len(x), -1, -1)).double()
    return ours.x0_and_eps(signal * x, output, signal**2)[0]


def noise_of(*seeds):
    size = (4, sd.unet.config.sample_size, sd.unet.config.sample_size)
    return torch.stack([torch.randn(size, generator=torch.Generator().manual_seed(s)) for s in seeds]).double()


def decoded(x):
    return to_pil(sd.decode(x.float()))


levels = [8, 3, 1, 0.3]
clean = sd.encode(sd("an orange star", seed=4, output_type="pt").images, torch.Generator().manual_seed(0)).double()
noisy = [clean + sigma * noise_of(1) for sigma in levels]
lesson.pictures(
    [decoded(x / math.hypot(sigma, 1))[0] for x, sigma in zip(noisy, levels, strict=True)]
    + [decoded(unet(x, sigma))[0] for x, sigma in zip(noisy, levels, strict=True)],
    alt="Above a star under four amounts of noise, falling to the right; below the UNet's guesses, ever clearer.",
    title="What the UNet predicts: the clean image",
    columns=4,
    labels=[f"sigma {sigma:g}" for sigma in levels],
    rows=["x", "guess"],
)

# %% [markdown]
# ## DDIM is Euler's method
#
# DDIM mixes the guessed image and the guessed noise again, with the shares of the next timestep $s$. In the sigma view
# this is $x_s = \hat x_0 + \sigma_s\,\hat\epsilon$. Before the step it was $x_t = \hat x_0 + \sigma_t\,\hat\epsilon$.
# Subtract:
#
# $$x_s = x_t + (\sigma_s - \sigma_t)\;\hat\epsilon$$
#
# New value = old value + step length times slope. That is the oldest method there is for a differential equation,
# Euler's, and the equation is
#
# $$\frac{dx}{d\sigma} = \hat\epsilon(x, \sigma) = \frac{x - \hat x_0(x, \sigma)}{\sigma}$$
#
# **The slope is the noise.** So to draw is to start at a large $\sigma$ with pure noise and to solve this equation
# down to $\sigma = 0$ (Song et al. 2021, Karras et al. 2022). What differs between samplers is only how they solve it.


# %%
def euler(denoise, x, sigmas):
    """All x on the way from the first noise level to the last."""
    path = [x]
    for sigma, after in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        x = x + (after - sigma) * slope
        path.append(x)
    return path


n = 12
grid = Euler.in_place_of(sd.scheduler).grid(n)
sigmas = list(grid.sigmas)
print("noise levels of", n, "steps:", ", ".join(f"{sigma:.2f}" for sigma in sigmas))


def library(sampler, memory=None):
    """All x of the library's sampler, as the UNet sees them; dice from seed 100."""
    grid, dice = sampler.grid(n), torch.Generator().manual_seed(100)
    x = noise_of(3) * grid.init_noise_sigma
    path, size = [sampler.scale_input(grid, 0, x)], x.shape
    for i, t in enumerate(grid.timesteps):
        with torch.no_grad():
            output = sd.unet(path[-1].float(), t, words).double()
        x, _, memory = sampler.step(grid, i, x, output, memory, lambda: torch.randn(size, generator=dice).double())
        path.append(sampler.scale_input(grid, i + 1, x) if i + 1 < len(grid) else x)
    return path


def drift(mine, theirs):
    """The largest difference on the whole way; ours is first scaled as the UNet sees it."""
    seen = [x / math.hypot(sigma, 1) for x, sigma in zip(mine, sigmas, strict=True)]
    return max(float((a - b).abs().max()) for a, b in zip(seen, theirs, strict=True))


path = euler(unet, noise_of(3) * sigmas[0], sigmas)
apart = drift(path, library(Euler.in_place_of(sd.scheduler)))
print(f"ours and the library's Euler: {apart:.1e};  ours and DDIM: {drift(path, library(sd.scheduler)):.1e}")
lesson.claim("our Euler is the library's, over the whole way", apart < 1e-5)
lesson.claim("and DDIM is Euler, but for 4096 in place of infinity", drift(path, library(sd.scheduler)) < 0.1)

# %% [markdown]
# ## A problem whose answer is known
#
# To see what a method does wrong we need the right answer, and the UNet cannot give it. So for a moment the "images"
# are single numbers, near $-1$ or near $+1$, each side a normal distribution of width 0.25. For such data the best
# possible denoiser is a formula (Bayes' rule), and the equation's exact solution can be computed: on a line the paths
# never cross, so a path keeps its **rank**. A path that starts above three quarters of all points ends above three
# quarters of them.

# %%
WIDTH = 0.25


def ideal(x, sigma):
    """The mean of all clean values that may have become x."""
    spread = WIDTH**2 + sigma**2
    return (WIDTH**2 * x + sigma**2 * torch.tanh(x / spread)) / spread


def rank(x, sigma):
    """The share of noisy values below x."""
    spread = math.hypot(WIDTH, sigma)
    return (torch.special.ndtr((x - 1) / spread) + torch.special.ndtr((x + 1) / spread)) / 2


def exact(x, sigma, after):
    """Where the path through x at noise level sigma is at level `after`: the same rank, found by halving."""
    target_rank, low, high = rank(x, sigma), torch.full_like(x, -1e3), torch.full_like(x, 1e3)
    for _ in range(80):
        middle = (low + high) / 2
        below = rank(middle, after) < target_rank
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def karras(high, low, n, rho=7):
    """n noise levels, evenly spaced in sigma^(1/rho)."""
    return (torch.linspace(high ** (1 / rho), low ** (1 / rho), n, dtype=torch.float64) ** rho).tolist()


HIGH, LOW = 20.0, 0.05
start = HIGH * torch.linspace(-1.5, 1.5, 13, dtype=torch.float64)
fine = karras(HIGH, LOW, 200)
few = karras(HIGH, LOW, 8)
right = torch.stack([exact(start, HIGH, sigma) for sigma in fine])

figure, panel = lesson.axes(width=6.5, height=3.2)
shrink = [math.hypot(sigma, 1) for sigma in fine]
panel.plot(fine, right / torch.tensor(shrink)[:, None], color="#bbbbbb", linewidth=1)
coarse = torch.stack(euler(ideal, start, few)) / torch.tensor([math.hypot(sigma, 1) for sigma in few])[:, None]
panel.plot(few, coarse, color=lesson.COLOURS[0], marker="o", markersize=3, linewidth=1)
panel.set(xscale="log", xlim=(25, 0.04), xlabel="noise level (falling)", ylabel="x, as the model sees it")
lesson.show(
    figure,
    alt="Grey curves fan out of noise towards minus one and one; blue broken lines of 8 points miss their bends.",
    title="Grey: the exact paths. Blue: Euler with 8 levels cuts the bends",
)
wrong = (euler(ideal, start, few)[-1] - right[-1]).abs().mean()
print(f"mean error of Euler with 8 levels: {wrong:.3f}")

# %% [markdown]
# Euler believes that the slope at the start of a step holds to its end. Where the path bends, it leaves it. There are
# two ways to be better without more steps: look at the far end as well, or remember what was seen before.
#
# ## Heun: look at the far end
#
# Take Euler's step, ask for the slope **there**, and do the step again with the mean of both slopes. That costs two
# calls of the model a step. (The last step has no far end to ask at: at $\sigma=0$ the slope is 0/0. And from "pure
# noise", a level that stands for infinity, the mean of two slopes has no meaning; both steps stay Euler's.)


# %%
def heun(denoise, x, sigmas):
    path = [x]
    for sigma, after in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        ahead = x + (after - sigma) * slope
        if after > 0 and sigma < 1000:
            there = (ahead - denoise(ahead, after)) / after
            ahead = x + (after - sigma) * (slope + there) / 2
        x = ahead
        path.append(x)
    return path


theirs = library(Heun.in_place_of(sd.scheduler))  # a list of calls; ours is one of steps
theirs = [theirs[0], *theirs[2::2], theirs[-1]]
apart = drift(heun(unet, noise_of(3) * sigmas[0], sigmas), theirs)
lesson.claim("our Heun is the library's, over the whole way", apart < 1e-5)

# %% [markdown]
# ## LMS: remember
#
# The slopes of earlier steps are known already. A **linear multistep** method lays a curve through the last four of
# them and takes the area under it, from this noise level to the next. The area is a weighted sum of the four slopes.
# Which weights? Those that are right for the curves $1, u, u^2, u^3$, since all cubic curves are made of these: four
# equations for four weights. We measure $u$ so that the step goes from 0 to 1, where the area under $u^j$ is $1/(j+1)$.


# %%
def lms_weights(sigmas, i, order):
    """Weights of the slopes at steps i, i - 1, ...: exact for all polynomials below that order."""
    here, there = sigmas[i], sigmas[i + 1]
    u = torch.tensor([(sigmas[i - k] - here) / (there - here) for k in range(order)], dtype=torch.float64)
    curves = torch.stack([u**j for j in range(order)])
    areas = torch.tensor([1 / (j + 1) for j in range(order)], dtype=torch.float64)
    return (there - here) * torch.linalg.solve(curves, areas)


def lms(denoise, x, sigmas):
    path, slopes = [x], []
    for i in range(len(sigmas) - 1):
        slopes = [(x - denoise(x, sigmas[i])) / sigmas[i], *slopes][:4]
        x = x + sum(w * slope for w, slope in zip(lms_weights(sigmas, i, len(slopes)), slopes, strict=True))
        path.append(x)
    return path


apart = drift(lms(unet, noise_of(3) * sigmas[0], sigmas), library(LMS.in_place_of(sd.scheduler)))
lesson.claim("our LMS is the library's, over the whole way", apart < 1e-5)

even = lms_weights([4.0, 3.0, 2.0, 1.0, 0.0], 3, 4)
print("on evenly spaced levels, in units of 1/24 of a step:", [round(float(w), 6) for w in -24 * even])
lesson.claim("these are 55, -59, 37, -9", torch.allclose(-24 * even, torch.tensor([55.0, -59, 37, -9]).double()))

# %% [markdown]
# These four whole numbers are in every textbook on differential equations, under the names of Adams and Bashforth. They
# are also in the source of **PLMS** (official name `PNDMScheduler`), the sampler that SD 1 came with: it treats its
# timesteps as evenly spaced, mixes the last four predictions with these weights, and then moves by DDIM's formula (Liu
# et al. 2022).
#
# ## DPM-Solver++ 2M: a better question
#
# Euler's step can also be written without the slope, by putting $(x-\hat x_0)/\sigma$ in:
#
# $$x_s = \frac{\sigma_s}{\sigma_t}\,x_t + \Big(1 - \frac{\sigma_s}{\sigma_t}\Big)\,\hat x_0$$
#
# It is a mixture of where we are and the guessed image, and the first part is exact. Only $\hat x_0$ is guessed: the
# method treats it as constant during the step. But it does change, and from the last two guesses we know in which
# direction. DPM-Solver++ (Lu et al. 2022) therefore extrapolates to the **middle of the step**. It measures the length
# of a step in $\lambda = -\ln\sigma$: a step is long when the noise falls by a large factor. $r$ below is the length of
# the last step, measured in this way, compared with that of the present one.


# %%
def dpm_2m(denoise, x, sigmas):
    path, before = [x], None
    for i, (sigma, after) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        guess = x0
        if before is not None and after > 0:
            r = math.log(sigmas[i - 1] / sigma) / math.log(sigma / after)
            guess = x0 + (x0 - before) / (2 * r)
        x = after / sigma * x + (1 - after / sigma) * guess
        before = x0
        path.append(x)
    return path


apart = drift(dpm_2m(unet, noise_of(3) * sigmas[0], sigmas), library(DPMSolverMultistep.in_place_of(sd.scheduler)))
lesson.claim("our DPM-Solver++ 2M is the library's, over the whole way", apart < 1e-5)

# %% [markdown]
# ## The order of a method
#
# Back to the problem with a known answer. A method is of **order** $p$ if its error falls like $n^{-p}$ with the
# number of steps $n$: with order 1, twice the steps halve the error; with order 2, they quarter it. On a plot with both
# axes logarithmic the errors of such a method lie on a straight line, and the order is its slope.
#
# **Predict, then run**: Euler, Heun, DPM-Solver++ 2M, LMS. Which orders?

# %%
steps = [8, 12, 16, 24, 32, 48, 64, 96, 128, 192]
methods = {"Euler": euler, "Heun": heun, "DPM-Solver++ 2M": dpm_2m, "LMS": lms}
true = exact(start, HIGH, LOW)
errors = {
    name: [float((method(ideal, start, karras(HIGH, LOW, n))[-1] - true).abs().mean()) for n in steps]
    for name, method in methods.items()
}
orders = {name: math.log(e[5] / e[-1]) / math.log(steps[-1] / steps[5]) for name, e in errors.items()}

figure, panel = lesson.axes(width=6.5, height=3.4)
for (name, e), marker in zip(errors.items(), "os^D", strict=True):
    panel.plot(steps, e, marker=marker, markersize=4, label=f"{name}: order {orders[name]:.1f}")
panel.set(xscale="log", yscale="log", xlabel="noise levels", ylabel="mean error at the end")
panel.set_xticks(steps, [str(n) for n in steps])
panel.minorticks_off()
panel.legend()
lesson.show(
    figure,
    alt="Four falling lines on logarithmic axes: Euler the flattest, Heun and DPM-Solver++ steeper, LMS steepest.",
    title="The steeper the line, the more a step is worth",
)
lesson.claim("Euler is of order 1", abs(orders["Euler"] - 1) < 0.2)
lesson.claim("Heun and DPM-Solver++ 2M are of order 2", max(abs(orders[k] - 2) for k in list(methods)[1:3]) < 0.3)
lesson.claim("LMS falls fastest", orders["LMS"] > 3)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Euler 1, Heun and DPM-Solver++ 2M 2, and LMS between 3 and 4 (its very first steps remember less, so they are of a
# lower order). Note the horizontal axis: it counts levels. Heun pays for each of its steps twice, DPM-Solver++ once.
#
# </details>
#
# ## Where to put the levels
#
# With a fixed number of steps one can still choose at which noise levels to stop. Karras et al. 2022 space them evenly
# in $\sigma^{1/\rho}$, with $\rho = 7$: short steps where there is little noise and the path bends, long ones where
# nearly everything is noise. That is the function `karras` above. How good a choice is $\rho$?

# %%
from minisd.schedulers.spacing import karras_sigmas

lesson.claim("`karras` is the library's", np.allclose(karras(14.6, 0.03, 15), karras_sigmas(14.6, 0.03, 15)))

figure, (left, right) = lesson.axes(1, 2, width=3.9, height=3.0)
for name, sampler, style in (
    ("timesteps evenly spaced", Euler(official), "o-"),
    ("Karras", Euler(official, use_karras_sigmas=True), "s--"),
):
    left.plot(sampler.grid(15).sigmas[:-1], style, markersize=4, label=name)
left.plot(karras(14.6, 0.03, 15, rho=1), "^:", markersize=4, label="sigmas evenly spaced")
left.set(xlabel="step", xticks=range(0, 15, 2), ylabel="noise level", yscale="log", title="SD 1, 15 levels")
left.legend(fontsize=8)
rhos = [1, 2, 3, 5, 7, 10, 20]
spaced = [float((euler(ideal, start, karras(HIGH, LOW, 16, rho))[-1] - true).abs().mean()) for rho in rhos]
right.plot(rhos, spaced, marker="o")
right.axvline(7, color="#bbbbbb", linestyle="--")
right.set(xlabel="rho", ylabel="Euler's error", ylim=(0, None), title="Known answer, 16 levels")
lesson.show(
    figure,
    alt="Left, three spacings fall to near 0 over the steps. Right, the error falls steeply until rho 5, then is flat.",
    title="Even spacing in sigma wastes the steps; rho 7 is on safe ground",
)
lesson.claim("evenly spaced sigmas (rho 1) are more than 3 times worse than rho 7", spaced[0] > 3 * spaced[4])

# %% [markdown]
# ## Ancestral: roll the dice
#
# DDPM rolls dice at each step. In the sigma view it has a short form: walk by Euler **further down** than the next
# level, to $\sigma_{\text{down}} = \sigma_s^2/\sigma_t$, and add fresh noise until the level is $\sigma_s$ again.
# Variances add, so the fresh noise has $\sigma_{\text{up}}^2 = \sigma_s^2 - \sigma_{\text{down}}^2$.


# %%
def ancestral(denoise, x, sigmas, dice):
    path = [x]
    for sigma, after in pairwise(sigmas):
        down = after**2 / sigma
        up = math.sqrt(after**2 - down**2)
        slope = (x - denoise(x, sigma)) / sigma
        x = x + (down - sigma) * slope + up * torch.randn(x.shape, generator=dice).double()
        path.append(x)
    return path


mine = ancestral(unet, noise_of(3) * sigmas[0], sigmas, torch.Generator().manual_seed(100))
apart = drift(mine, library(EulerAncestral.in_place_of(sd.scheduler)))
lesson.claim("our Euler ancestral is the library's, over the whole way", apart < 1e-5)

# %% [markdown]
# **Predict, then run**: with more and more steps, Euler comes nearer and nearer to one answer. Does the ancestral
# sampler, too? After all, smaller steps add less noise each.

# %%
counts = [8, 32, 128, 512]
crowd = HIGH * torch.randn(2000, generator=torch.Generator().manual_seed(0)).double()
goal = exact(crowd, HIGH, LOW)
share = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
away = []
print("levels   Euler: mean error   ancestral: mean distance to Euler's goal   its distribution: mean error")
for n in counts:
    straight = euler(ideal, crowd, karras(HIGH, LOW, n))[-1]
    rolled = ancestral(ideal, crowd, karras(HIGH, LOW, n), torch.Generator().manual_seed(n))[-1]
    missed = [float((ends - goal).abs().mean()) for ends in (straight, rolled)]
    away.append(missed[1])
    crowds = float((rolled.quantile(share) - goal.quantile(share)).abs().mean())
    print(f"{n:6}   {missed[0]:.4f}              {missed[1]:.4f}                                     {crowds:.4f}")
lesson.claim(
    "the ancestral sampler does not come near Euler's answer, with any of these numbers of levels", min(away) > 0.3
)
lesson.claim("but its points are spread as they should be", crowds < 0.15)


def old_noise(n):
    """The share of the start's noise in what noise is left at the last level."""
    return math.prod((after**2 / sigma) / sigma for sigma, after in pairwise(karras(HIGH, LOW, n))) * HIGH / LOW


print("share of the starting noise that is left:", ", ".join(f"{old_noise(n):.6f} ({n} levels)" for n in counts))
lesson.claim("with any number of levels the same", abs(old_noise(8) - old_noise(512)) < 1e-9)

# %% [markdown]
# <details><summary>Answer</summary>
#
# No. Smaller steps add less noise each, but there are more of them, and the two cancel: the same small share of the
# starting noise is left, whatever the number of steps. The rest has been replaced by dice. So two runs with different
# numbers of steps see different dice, and end at different images. Neither is wrong: *as a crowd* the end points are
# distributed like the data. One equation has one answer; the ancestral sampler follows a random walk.
#
# </details>
#
# ## Back to images
#
# The same on the UNet: one starting noise, more and more steps.

# %%
counts = [10, 20, 40]
settled = [euler(unet, noise_of(3) * 80, [*karras(80, 0.05, n), 0])[-1] for n in counts]
restless = [
    ancestral(unet, noise_of(3) * 80, [*karras(80, 0.05, n), 0], torch.Generator().manual_seed(n))[-1] for n in counts
]
lesson.pictures(
    decoded(torch.cat(settled + restless)),
    alt="Above three nearly equal images by Euler, below three different ones by the ancestral sampler.",
    title="Euler settles, ancestral does not",
    columns=3,
    labels=[f"{n} steps" for n in counts],
    rows=["Euler", "ancestral"],
    size=1.4,
)
moved = [float((row[2] - row[1]).square().mean().sqrt()) for row in (settled, restless)]
print(f"change from 20 to 40 steps: Euler {moved[0]:.3f}, ancestral {moved[1]:.3f}")
lesson.claim("the ancestral image changes more", moved[1] > 2 * moved[0])

# %% [markdown]
# And does the order of a method help with a network, whose slope is not a smooth formula? The answer is not known here,
# so we take a run of many Heun steps in its place. To be fair to all, we count **calls of the UNet**, which is what an
# image costs.

# %%
noise = noise_of(1, 2, 3)
steady = [*karras(80, 0.05, 60), 0]
reference = heun(unet, noise * 80, steady)[-1]
calls = [5, 7, 11, 15, 23]
found = {name: [] for name in methods}
for n in calls:
    for name, method in methods.items():
        levels = karras(80, 0.05, (n + 1) // 2 if method is heun else n)
        end = method(unet, noise * 80, [*levels, 0])[-1]
        found[name].append(float((end - reference).square().mean().sqrt()))

figure, panel = lesson.axes(width=6.5, height=3.2)
for (name, e), marker in zip(found.items(), "os^D", strict=True):
    panel.plot(calls, e, marker=marker, markersize=4, label=name)
panel.set(xscale="log", yscale="log", xlabel="calls of the UNet", ylabel="distance to the reference")
panel.set_xticks(calls, [str(n) for n in calls])
panel.minorticks_off()
panel.legend()
lesson.show(
    figure,
    alt="Distances to the reference over the number of calls: Euler falls slowest, the other three faster.",
    title="A second order also helps a real UNet, once there are enough steps",
)
lesson.claim("at 23 calls DPM-Solver++ is nearer than Euler", found["DPM-Solver++ 2M"][-1] < found["Euler"][-1])

# %% [markdown]
# With very few calls no method has much information, and Heun, which has half as many levels, can be the worst of all.
# Order is a promise about small steps.
#
# Last, what you came for: the same prompt, the same seed, few steps, through the library (which adds guidance, the
# subject of notebook 08).

# %%
counts = [3, 5, 8, 20]
samplers = {
    "DDIM": DDIM,
    "ancestral": EulerAncestral,
    "Heun": Heun,
    "LMS": LMS,
    "PLMS": PNDM,
    "DPM++ 2M": DPMSolverMultistep,
}
usual = sd.scheduler


def hearts(seed, counts):
    """A red heart by each sampler, in each number of steps: {sampler: images}."""
    found = {}
    for name, kind in samplers.items():
        sd.scheduler = kind.in_place_of(usual)
        found[name] = [sd("a red heart", seed=seed, num_inference_steps=n).images[0] for n in counts]
    sd.scheduler = usual
    return found


def apart(images, name):
    """How far the last image of a sampler is from that of DDIM: the mean difference of the pixels, 0 to 255."""
    one, other = (np.asarray(images[each][-1], dtype=float) for each in (name, "DDIM"))
    return float(np.abs(one - other).mean())


without_dice = [name for name in samplers if name != "ancestral"]
drawn = hearts(1, counts)
lesson.pictures(
    [image for row in drawn.values() for image in row],
    alt="Six rows of samplers, columns of 3 to 20 steps. At 20 steps one heart, only ancestral has another.",
    title=lesson.claim(
        "One prompt, one seed: at 20 steps all samplers without dice draw one image",
        max(apart(drawn, name) for name in without_dice) < 1 and apart(drawn, "ancestral") > 5,
    ),
    columns=len(counts),
    labels=[f"{n} steps" for n in counts],
    rows=list(samplers),
)
for name, kind in samplers.items():
    print(f"{name:10} calls: {', '.join(str(len(kind.in_place_of(usual).grid(n))) for n in counts)}")

# %% [markdown]
# Two warnings. Look at the calls before you compare: 5 steps of Heun cost as much as 9 of DDIM. And with few steps a
# long memory can harm: PLMS extrapolates from predictions that were made far away and no longer hold, so it spoils with
# 3 to 8 steps a heart that plain DDIM already gets right.
#
# There is a third. Not every noise leads to one image. Some noises are at a **fork**: half of what the words allow is
# at one side, half at the other, and a small error of the sampler decides. Seed 7 is such a noise.

# %%
fork = hearts(7, [20])
lesson.pictures(
    [image for row in fork.values() for image in row],
    alt="Six hearts from one seed, one for each sampler: outlined ones and solid ones, in several places.",
    title=lesson.claim(
        "At a fork a small error decides: samplers without dice draw different hearts",
        max(apart(fork, name) for name in without_dice) > 5,
    ),
    labels=list(samplers),
)

# %% [markdown]
# So compare samplers over many seeds, not by one image; notebook 16 does.

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why is DDIM the same as Euler's method?</summary>
#
# In the sigma view a step of DDIM adds the change of $\sigma$ times the predicted noise. The predicted noise is the
# slope $dx/d\sigma$, so this is the old value plus step length times slope.
#
# </details>
#
# <details><summary>Why does Heun pay twice for a step, and LMS once?</summary>
#
# Heun also asks the model for the slope at the far end of the step. LMS uses the slopes of earlier steps, which are
# known already.
#
# </details>
#
# <details><summary>How can the ancestral sampler be right, if it never settles on one image?</summary>
#
# With another number of steps its dice lead to another image. But its end points, as a crowd, are distributed like the
# data, so each of them is a valid image.
#
# </details>
#
# <details><summary>Why can a method of higher order lose to Euler's in a few steps?</summary>
#
# The order says how fast the error falls when the steps become small. In a few long steps the slope changes too much,
# and what a method concludes from other places of the path no longer holds.
#
# </details>
#
# <details><summary>Why do evenly spaced noise levels waste steps?</summary>
#
# Most of them are at large noise, where the path is nearly straight and a long step does no harm. The path bends at
# small noise, and there too few levels are left.
#
# </details>
#
# ## Your turn
#
# Write this function yourself. `start` makes a file for it, and `minisd exercises check` compares your results with the
# reference and says what differs ([the exercises](../minisd/exercises/README.md)).
#
# - `minisd exercises start euler_step`: follow the slope from one noise level to the next.

# %% [markdown]
# ## Summary
#
# - In the sigma view $x = x_0 + \sigma\epsilon$, and to draw is to solve $dx/d\sigma = \hat\epsilon$ from a large
#   $\sigma$ to 0. DDIM is Euler's method for it.
# - **Heun** looks at the far end of the step and pays twice. **LMS** lays a curve through the slopes that it has seen.
#   **DPM-Solver++ 2M** extrapolates the guessed image to the middle of the step.
# - Higher order means that the error falls faster with more steps. It says nothing about three steps.
# - **Ancestral** samplers replace noise by dice, the same share for any number of steps, and so never settle.
#
# **Code**: [euler.py](../minisd/schedulers/euler.py), [heun.py](../minisd/schedulers/heun.py),
# [lms.py](../minisd/schedulers/lms.py), [dpm_solver.py](../minisd/schedulers/dpm_solver.py),
# [pndm.py](../minisd/schedulers/pndm.py), and the spacings in [spacing.py](../minisd/schedulers/spacing.py); the orders
# of all samplers are measured in [sampler_order.py](../minisd/parity/sampler_order.py).
# **Next**: [07 · The UNet, step by step](07_unet.ipynb).
