# %% [markdown]
# # 16 · Schedulers and guidance compared
#
# **You will** measure samplers and guidance scales instead of trusting your eyes: how far an image is from the
# many-step answer, how often it shows what was asked, with an interval; and judge how much a dozen images prove.
#
# **Needs** notebooks 06 (the samplers) and 08 (guidance).
#
# **Takes** 25 minutes to read, about a minute to run.

# %% [markdown]
# ## An exact judge
#
# "Sampler A looks better than B" is what most comparisons say, over four lucky images. Sticker World allows more: a
# program can look at an image and say whether it shows what the prompt asked for. It reads the prompt into an
# *expectation*, finds the objects in the image, and compares.
#
# To be fair, every setting below draws **the same prompts from the same seeds**, so that all that differs is the
# setting. The prompts are a dozen scenes of two objects, which is hard enough for mistakes to happen.

# %%
import itertools
import math
from typing import NamedTuple

import lesson
import torch

import weights_loader
from minisd.images import to_pil
from minisd.schedulers import DDIM, PNDM, DPMSolverMultistep, EulerAncestral
from minisd.sticker.evaluation.judging import judge_prompts, wilson_interval
from minisd.sticker.evaluation.prompt_suites import suite_examples
from minisd.sticker.world.captions import parse_caption
from minisd.sticker.world.checker.check import check

sd = weights_loader.load("sticker")
usual = sd.scheduler
prompts = [example.prompt for example in suite_examples("two", 12, seed=0, words=sd.defaults.words)]


class Run(NamedTuple):
    latents: torch.Tensor
    pictures: list
    right: list  # of each image, whether it is exactly what was asked


def run(calls=8, scale=3.0, kind=DPMSolverMultistep, asked=prompts, **more):
    """The same prompts from the same seeds, with so many calls of the UNet (guided ones count once)."""
    steps = calls - 1 if kind is PNDM else calls  # PLMS asks once more than it steps
    sampler = kind.in_place_of(usual)
    assert len(sampler.grid(steps)) == calls
    sd.scheduler = sampler
    made = sd(asked, seed=0, num_inference_steps=steps, guidance_scale=scale, output_type="latent", **more)
    sd.scheduler = usual
    pictures = to_pil(sd.decode(made.images))
    return Run(made.images, pictures, [check(p, a).exact for p, a in zip(pictures, asked, strict=True)])


reference = run(calls=24)
print("the first prompt is read as:", parse_caption(prompts[0]))
for prompt, right in zip(prompts, reference.right, strict=True):
    print("right" if right else "wrong", " ", prompt)
lesson.pictures(
    reference.pictures,
    alt="Twelve images of two objects each, labelled right or wrong by the checker.",
    title="A dozen prompts, many steps, judged by the program",
    columns=6,
    labels=["right" if right else "wrong" for right in reference.right],
)
alike = judge_prompts(sd, prompts, seed=0, steps=6, guidance_scale=3.0).verdicts
again = run(calls=6, kind=DDIM)
lesson.claim("our `run` judges as the library's measure does", again.right == [v.exact for v in alike])

# %% [markdown]
# ## How much do twelve images prove?
#
# If 9 of 12 are right, the rate is 75 %. But another dozen might give 7, or all 12. The **95 % interval** says which
# true rates are compatible with what we saw. For small counts the formula of Wilson is the one to use, because it stays
# sensible when all or none are right:
#
# $$\frac{p + \frac{z^2}{2n} \pm z\sqrt{\frac{p(1-p)}{n} + \frac{z^2}{4n^2}}}{1 + \frac{z^2}{n}}, \qquad z = 1.96$$


# %%
def wilson(right, n, z=1.96):
    p = right / n
    middle = p + z**2 / (2 * n)
    reach = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, (middle - reach) / (1 + z**2 / n)), min(1.0, (middle + reach) / (1 + z**2 / n))


for right, n in ((9, 12), (12, 12), (75, 100), (750, 1000)):
    low, high = wilson(right, n)
    print(f"{right:4} of {n:4}: {100 * right / n:3.0f} %, interval {100 * low:3.0f} % to {100 * high:3.0f} %")
theirs = wilson_interval(9 / 12, 12)
lesson.claim("that is the library's interval", math.dist(wilson(9, 12), theirs) < 1e-9)
low, high = wilson(9, 12)
lesson.claim("9 of 12 leave more than 40 points of room", high - low > 0.4)
narrow = wilson(900, 1200)
lesson.claim("100 times the images make it about 10 times narrower", 8 < (high - low) / (narrow[1] - narrow[0]) < 12)

# %% [markdown]
# So a dozen images tell a broken setting from a good one, and nothing finer. One fact helps at no cost: the settings
# share prompts and seeds. Then we need not compare two rates; we can count the images that **changed sides**. If a
# change repairs 6 and breaks none, that is strong evidence, whatever the rates are: were it pure chance, like 6 coins
# that all fall on the same side, it would happen in 2 of 64 cases. (This is called a sign test.)


# %%
def changed(before, after):
    """How many images became right, how many became wrong, and how probable so clear a result is by chance."""
    gained = sum(b and not a for a, b in zip(before.right, after.right, strict=True))
    lost = sum(a and not b for a, b in zip(before.right, after.right, strict=True))
    n, most = gained + lost, max(gained, lost)
    chance = min(1.0, 2 * sum(math.comb(n, k) for k in range(most, n + 1)) / 2**n)
    return gained, lost, chance


six = Run(None, [], [False] * 6), Run(None, [], [True] * 6)
print("six repaired, none broken: chance", changed(*six)[2])
lesson.claim("that is 2 of 64", changed(*six)[2] == 2 / 64)

# %% [markdown]
# ## Samplers and steps
#
# Four samplers, from very few calls of the UNet to a modest number. Two quantities are measured. The **distance**
# between the latents and those of the reference, which took many calls: how well is the equation solved? And the
# **rate** of right images: does it matter?
#
# **Predict, then run**: the ancestral sampler will never come near the reference (notebook 06). Will its images be
# wrong more often?

# %%
calls = [3, 6, 12]
kinds = {"DDIM": DDIM, "ancestral": EulerAncestral, "PLMS": PNDM, "DPM++ 2M": DPMSolverMultistep}
runs = {name: [run(n, kind=kind) for n in calls] for name, kind in kinds.items()}


def distance(one, other):
    return float((one - other).square().mean().sqrt())


def verdict(run):
    """How many are right, with the interval, as text."""
    low, high = wilson(sum(run.right), len(run.right))
    return f"{sum(run.right):2}/{len(run.right)} ({100 * low:2.0f}-{100 * high:3.0f} %)"


def bars(panel, places, runs, **style):
    """Rates with their intervals."""
    rates = [sum(each.right) / len(each.right) for each in runs]
    ends = [wilson(sum(each.right), len(each.right)) for each in runs]
    reach = [[abs(rate - end[side]) for rate, end in zip(rates, ends, strict=True)] for side in (0, 1)]
    panel.errorbar(places, rates, yerr=reach, capsize=3, **style)
    panel.set(ylabel="right, with 95 % interval", ylim=(-0.03, 1.03))


stranger = distance(reference.latents, reference.latents.roll(1, 0))  # each prompt's against the next one's
figure, (left, right) = lesson.axes(1, 2, width=4.0, height=3.2)
for k, (name, marker) in enumerate(zip(kinds, "osD^", strict=True)):
    far = [distance(each.latents, reference.latents) for each in runs[name]]
    left.plot(calls, far, marker=marker, label=name)
    bars(right, [n * (0.92 + 0.05 * k) for n in calls], runs[name], marker=marker, linewidth=1)
    print(f"{name:10}", "   ".join(f"{d:.2f} away, {verdict(each)}" for d, each in zip(far, runs[name], strict=True)))
left.axhline(stranger, color="#bbbbbb", linestyle="--", label="another image")
left.set(ylabel="distance to the reference", ylim=(0, None))
for panel in (left, right):
    panel.set(xscale="log", xlabel="calls of the UNet")
    panel.set_xticks(calls, [str(n) for n in calls])
    panel.minorticks_off()
left.legend(fontsize=8)
lesson.show(
    figure,
    alt="Left, the distances of DDIM and DPM++ fall, the others stay high. Right, rates rise, with wide bars.",
    title="Left: how well the equation is solved. Right: how often the image is right",
)

# %%
last = {name: distance(each[-1].latents, reference.latents) for name, each in runs.items()}
lesson.claim(
    "with 12 calls the ancestral sampler is farther from the reference than DDIM and DPM++ 2M",
    last["ancestral"] > max(last["DDIM"], last["DPM++ 2M"]),
)
lesson.claim(
    "and is right as often as DDIM, within what twelve images can tell",
    changed(runs["DDIM"][-1], runs["ancestral"][-1])[2] > 0.05,
)
first = distance(runs["DDIM"][0].latents, reference.latents)
lesson.claim("DDIM comes nearer from 3 to 12 calls", last["DDIM"] < first)
for name, each in runs.items():
    gained, lost, chance = changed(each[0], each[-1])
    print(f"{name:10} from 3 to 12 calls: {gained:2} repaired, {lost} broken; by chance {chance:.3f}")
gained, lost, chance = changed(runs["DDIM"][-1], runs["DPM++ 2M"][-1])
print(f"DDIM against DPM++ 2M at 12 calls: {gained} for DPM++ 2M, {lost} for DDIM; by chance {chance:.3f}")
lesson.pictures(
    [each.pictures[1] for name in kinds for each in runs[name]],
    alt="Four rows of samplers, three columns: DDIM and DPM++ agree, the ancestral row differs, PLMS is spoilt.",
    title=f"“{prompts[1]}”",
    columns=len(calls),
    labels=[f"{n} calls" for n in calls],
    rows=list(kinds),
    size=1.4,
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The distance says that its image is a different one, about as far away as that of another prompt. It does not say that
# the image is worse: with 12 calls the ancestral sampler is right as often as DDIM. So a distance to a reference is
# a good measure of *how well an equation is solved*, and a bad one of *how good an image is*.
#
# </details>
#
# What may be concluded? Where many images were repaired and hardly any broken, more calls help; where a few changed
# sides either way, we do not know. PLMS with so few calls is another matter: it mixes predictions from far apart noise
# levels (the end of notebook 06 shows it), and a gap as wide as that shows with a dozen images. But twelve images
# cannot rank DDIM and DPM++ where their intervals overlap.
#
# ## Guidance
#
# Now the sampler is fixed, and the scale changes. Besides the rate we look at how much the values of the latents
# deviate within an image: guidance goes beyond what the model predicts, and latents that deviate far more than those of
# real images do are decoded into glaring colours.

# %%
scales = [0, 1, 2, 4, 8, 16]
swept = {s: run(scale=s) for s in scales}


def deviation(run):
    """Of the latents' values within an image, mean over the images: a measure of contrast."""
    return float(run.latents.std((1, 2, 3)).mean())


for s, each in swept.items():
    print(f"scale {s:2}: {verdict(each)} right, deviation {deviation(each):.2f}")
figure, (left, right) = lesson.axes(1, 2, width=3.9, height=2.9)
names = [str(s) for s in scales]
bars(left, names, swept.values(), marker="o")
left.set(xlabel="guidance scale")
right.plot(names, [deviation(each) for each in swept.values()], marker="s", color=lesson.COLOURS[1])
right.set(xlabel="guidance scale", ylabel="deviation of the latents")
lesson.show(
    figure,
    alt="Left, the rate rises from scale 0 to 2 or so and falls towards 16. Right, the deviation rises with the scale.",
    title="Too little guidance: the prompt is not followed. Too much: the image is spoilt",
)
gained, lost, chance = changed(swept[0], swept[4])
print(f"from scale 0 to 4: {gained} repaired, {lost} broken; by chance {chance:.4f}")
lesson.claim("scale 4 follows the prompts more often than scale 0", gained > lost)
more = [example.prompt for example in suite_examples("two", 24, seed=0, words=sd.defaults.words)]
gained, lost, chance = changed(run(scale=4, asked=more), run(scale=16, asked=more))
print(f"from scale 4 to 16, {len(more)} prompts: {gained} repaired, {lost} broken; by chance {chance:.4f}")
lesson.claim("with so few steps scale 16 is too much", lost > gained and chance < 0.05)

# %% [markdown]
# ### Guidance and steps, one noise
#
# **Predict, then run**: below is a grid from one and the same noise. Steps grow to the right, guidance downwards. In
# which corner will the image be worst?

# %%
asked, steps, rows = "a green triangle above a purple ring", [3, 8, 20], [1, 3, 8, 16]
grid = [
    sd(asked, seed=7, num_inference_steps=n, guidance_scale=s, progress=False).images[0] for s in rows for n in steps
]
lesson.pictures(
    grid,
    alt="Twelve images from one noise: spoilt by 3 steps with much guidance, else a green triangle above a ring.",
    title=f"“{asked}”, one noise",
    columns=len(steps),
    labels=[f"{n} steps" for n in steps],
    rows=[f"guidance {s}" for s in rows],
    size=1.3,
)
exact = {(s, n): check(image, asked).exact for (s, n), image in zip(itertools.product(rows, steps), grid, strict=True)}
for s in rows:
    print(f"guidance {s:2}: " + ", ".join("right" if exact[s, n] else "wrong" for n in steps))
lesson.claim("with 20 steps all scales are right", all(exact[s, 20] for s in rows))
lesson.claim("with 3 steps only the small ones are", [s for s in rows if exact[s, 3]] == [1, 3])

# %% [markdown]
# <details><summary>Answer</summary>
#
# Bottom left. Guidance makes each step go further, in a direction which was computed at the step's start; with few,
# long steps it overshoots, and even the white ground takes on a colour. So the two settings belong together: **more
# guidance needs more steps**. Top right is the opposite: well solved, with words that count only once.
#
# </details>
#
# ### Guidance and seeds

# %%
seeds, rows = 6, [0, 1, 3, 8]
grid = []
for s in rows:
    grid += sd(asked, seed=20, num_images_per_prompt=seeds, num_inference_steps=8, guidance_scale=s).images
lesson.pictures(
    grid,
    alt="Four rows by guidance, six columns by seed: top anything at all, further down a green triangle above a ring.",
    title="The seed decides where objects are, guidance whether they are what was asked",
    columns=seeds,
    labels=[f"seed {20 + k}" for k in range(seeds)],
    rows=[f"guidance {s}" for s in rows],
)

# %% [markdown]
# ## Negative prompts
#
# Notebook 08 shows how a negative prompt works: it takes the place of the empty one. Here is how well. The prompt is
# "a circle", its colour is left open. How often does a colour appear, without being forbidden, and when it is?

# %%
from minisd.sticker.evaluation.diversity import largest_object

free = ["a circle"] * 12


def things(negative):
    made = run(scale=4.0, asked=free, negative_prompt=negative)
    return [largest_object(check(picture, "a circle")) for picture in made.pictures]


forbidden = ["red", "blue", "green"]
plain = things("")
usually = sum(thing is not None and thing.colour in forbidden for thing in plain)
print(f"nothing forbidden: {usually} of 12 in one of the colours {', '.join(forbidden)}")
shown, circles = 0, 0
for colour in forbidden:
    found = [thing for thing in things(colour) if thing is not None]
    shown += sum(thing.colour == colour for thing in found)
    circles += sum(thing.shape == "circle" for thing in found)
    print(f"negative prompt {colour!r:9} {sum(thing.colour == colour for thing in found)} of 12 are {colour}")
low, high = wilson(shown, 36)
print(f"together: {shown} of 36 in the forbidden colour ({100 * low:.0f}-{100 * high:.0f} %), {circles} of 36 circles")
lesson.claim("hardly any image has the forbidden colour", shown <= 6)
lesson.claim("and most are circles still", circles > 18)

# %% [markdown]
# ## When is guidance needed?
#
# Guidance doubles the cost of a step. Notebook 08 saw that the words change the prediction most at the beginning. So
# perhaps it is enough to guide a part of the way. `guidance_scale` may be a function of the call's index, and a scale
# of 1 is one call instead of two.
#
# **Predict, then run**: guidance in the first half only, or in the second half only. Which one follows the prompt?

# %%
planned = {
    "all the way": swept[4],
    "first half": run(scale=lambda i: 4.0 if i < 4 else 1.0),
    "second half": run(scale=lambda i: 1.0 if i < 4 else 4.0),
    "never": swept[1],
}
for name, each in planned.items():
    apart = distance(each.latents, planned["all the way"].latents)
    print(f"{name:12} {verdict(each)} right, {apart:.2f} away from all the way")
lesson.pictures(
    [picture for each in planned.values() for picture in each.pictures[:6]],
    alt="Four rows of plans, six prompts: the first half only looks like all the way, the second half only like never.",
    title="What happens early decides the image",
    columns=6,
    rows=list(planned),
)
lesson.claim(
    "the first half alone comes nearer to guidance all the way than the second half alone",
    distance(planned["first half"].latents, planned["all the way"].latents)
    < distance(planned["second half"].latents, planned["all the way"].latents),
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The first half: its images are nearly those of guidance all the way. Which objects there are, and where, is settled
# while there is much noise; afterwards little more than edges are left to draw. So half of the second calls can be
# saved. The rates of a dozen images would not have proved this, their intervals overlap; the distances show it.
#
# </details>
#
# ## Rescaling
#
# A large scale does not only push towards the prompt, it makes the whole prediction larger, and the image gets too much
# contrast. `guidance_rescale` gives the guided prediction back the deviation of the conditional one (Lin et al. 2024).
# For one step, by hand:

# %%
from minisd.pipeline import guidance

u, c = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
guided = u + 8 * (c - u)
rescaled = guided * c.std() / guided.std()
print(f"deviation: conditional {c.std():.2f}, guided {guided.std():.2f}, rescaled {rescaled.std():.2f}")
lesson.claim(
    "that is the library's rescale", torch.allclose(rescaled, guidance.combine(u, c, 8, rescale=1.0), atol=1e-5)
)

strong = {0: swept[16], 0.7: run(scale=16, guidance_rescale=0.7)}
for r, each in strong.items():
    print(f"scale 16, rescale {r:3}: deviation {deviation(each):.2f}, {verdict(each)} right")
print(f"scale  4, for comparison: deviation {deviation(swept[4]):.2f}, {verdict(swept[4])} right")
lesson.pictures(
    [picture for each in strong.values() for picture in each.pictures[:6]],
    alt="Two rows of six images at guidance 16: above with too much contrast and dirt, below with less.",
    title="Rescaling takes back contrast; it does not repair too much guidance",
    columns=6,
    rows=["rescale 0", "rescale 0.7"],
)
lesson.claim("rescaled latents deviate less", deviation(strong[0.7]) < deviation(strong[0]))

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why do all settings draw the same prompts from the same seeds?</summary>
#
# Then the setting is all that differs. And you can count the images that changed sides, which proves more than two
# separate rates.
#
# </details>
#
# <details><summary>What can a dozen images show, and what can they not show?</summary>
#
# They tell a broken setting from a good one. They cannot rank two good settings, because the intervals of both are wide
# and overlap.
#
# </details>
#
# <details><summary>Why is the distance to a reference no measure of how good an image is?</summary>
#
# It says how well the sampler solves the equation. The ancestral sampler ends at another image, which can be just as
# right.
#
# </details>
#
# <details><summary>Why does more guidance need more steps?</summary>
#
# Guidance makes each step go further, in a direction that was computed at the start of the step. A long step in this
# direction overshoots.
#
# </details>
#
# <details><summary>Why is guidance needed most in the first half of a run?</summary>
#
# While there is much noise, it is decided which objects there are and where. Later the objects show in the latents
# themselves, and the words change little.
#
# </details>
#
# ## Your turn
#
# [The exercises](../minisd/exercises/README.md) belong to other lessons. Try these experiments in the cells above;
# where a claim becomes false, its cell stops, and that is a finding as well.
#
# - Compare `DDIM` and `DPMSolverMultistep` with the prompts of `more`, and see whether the larger number can rank them.
# - Guide only in the middle of the run, with `scale=lambda i: 4.0 if 2 <= i < 6 else 1.0`, and compare the distance
#   with those of the other plans.
# - Take `guidance_rescale=1.0` at scale 16, and look at the deviation and at the rate.

# %% [markdown]
# ## Summary
#
# - Same prompts, same seeds, an exact judge and an interval: then a comparison means something. With a dozen images it
#   shows what is broken, not which of two good settings is better; count the images that changed sides.
# - Deterministic samplers converge to one image. The checker accepts the images before the distance is small, and the
#   ancestral sampler is right with images of its own.
# - Guidance is needed, too much of it hurts, above all with few steps. It is needed most in the first half.
# - Negative prompts avoid what they name. Rescaling takes back the contrast of a large scale.
#
# **Code**: [judging.py](../minisd/sticker/evaluation/judging.py) and
# [figures.py](../tools/figures.py) measure the same with more images, the checker is `check` in
# [check.py](../minisd/sticker/world/checker/check.py), the scale for each step comes from `scales` in
# [guidance.py](../minisd/pipeline/guidance.py). **Next**: [17 · Image to image, and DDIM
# inversion](17_image_to_image_and_inversion.ipynb).
