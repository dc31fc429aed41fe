# %% [markdown]
# # 29 · Measuring: FID and exact checks
#
# **You will** judge a model by numbers, and say what each number can prove: the exact rate and its interval, the
# difference of two settings, the Fréchet distance (written by hand), the CLIP score. You will build models that are bad
# in a way which a distance does not see, and choose the best of four images by CLIP.
#
# **Needs** notebook 12 (CLIP) and notebook 16 (the checker, intervals).
#
# **Takes** 25 minutes to read, about a minute to run.

# %% [markdown]
# ## Three questions
#
# | question | measure | needs |
# |---|---|---|
# | Does an image show what its prompt says? | exact check | a program that understands images and prompts |
# | Do the images, as a set, look like real ones? | Fréchet distance (FID) | real images, a network's features |
# | Does an image fit its prompt, as a network sees it? | CLIP score | a network trained on images and captions |
#
# The first question can be answered here because Sticker World is simple. For photographs no such program exists, so
# most papers report the other two. In this lesson all three look at the same images, and we can see where they
# disagree.
#
# The model draws 48 prompts with two settings: without guidance (scale 1) and with it (scale 3), in few steps. Both get
# the same prompts and the same noise. The prompts name all there is: sizes, colours, shapes, the relation, the
# background.

# %%
import math
from dataclasses import replace

import lesson
import torch

import weights_loader
from minisd.images import from_pil, to_pil
from minisd.sticker.evaluation.judging import judge_prompts, wilson_interval
from minisd.sticker.evaluation.prompt_suites import suite_examples
from minisd.sticker.training.dataset import training_scenes
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.render import render

sd = weights_loader.load("sticker")
prompts = [example.prompt for example in suite_examples("full", 48, seed=0, words=sd.defaults.words)]
plain = judge_prompts(sd, prompts, seed=0, steps=6, guidance_scale=1.0)
guided = judge_prompts(sd, prompts, seed=0, steps=6, guidance_scale=3.0)
right = {"scale 1": [v.exact for v in plain.verdicts], "scale 3": [v.exact for v in guided.verdicts]}
lesson.pictures(
    plain.pictures[:6] + guided.pictures[:6],
    alt="Two rows of six images of two objects: the prompts without guidance and with it, each judged right or wrong.",
    title="The same prompts and the same noise, judged by the checker",
    columns=6,
    labels=["right" if each else "wrong" for row in right.values() for each in row[:6]],
    rows=list(right),
)
for k, prompt in enumerate(prompts[:6]):
    print(f"{k + 1}: {prompt}")

# %% [markdown]
# ## The exact rate, and what n images can prove
#
# Notebook 16 has the formula of Wilson for the 95 % interval of a rate. Many papers use a simpler one, $p \pm
# 1.96\sqrt{p(1-p)/n}$. The promise of both is: *if you measure again and again, 95 of 100 intervals contain the true
# rate.* This can be checked without dice: for a true rate, the chance of each count is known, so we add up the chances
# of those counts whose interval contains the true rate.
#
# **Predict, then run**: a model is right in 95 % of all cases, and we draw 24 images. Which formula keeps its promise?


# %%
def simple(k, n):
    reach = 1.96 * math.sqrt(k / n * (1 - k / n) / n)
    return k / n - reach, k / n + reach


def wilson(k, n, z=1.96):
    middle = k / n + z**2 / (2 * n)
    reach = z * math.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    return max(0.0, (middle - reach) / (1 + z**2 / n)), min(1.0, (middle + reach) / (1 + z**2 / n))


def coverage(interval, rate, n):
    """The probability that the interval of n trials contains the true rate."""
    inside = [k for k in range(n + 1) if interval(k, n)[0] <= rate <= interval(k, n)[1]]
    return sum(math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in inside)


lesson.claim("ours is the library's interval", math.dist(wilson(41, 48), wilson_interval(41 / 48, 48)) < 1e-9)
rates = torch.linspace(0.5, 0.995, 100).tolist()
figure, panel = lesson.axes(width=6.0, height=2.7)
for name, interval in (("simple", simple), ("Wilson", wilson)):
    panel.plot(rates, [coverage(interval, rate, 24) for rate in rates], label=name)
    print(f"{name:7} true rate 95 %, 24 images: {coverage(interval, 0.95, 24):.0%} of the intervals contain it")
panel.axhline(0.95, color="#bbbbbb", linestyle="--", label="promised")
panel.set(xlabel="true rate", ylabel="contain it", ylim=(0, 1.03))
panel.legend(loc="lower left")
lesson.show(
    figure,
    alt="Wilson's curve stays near 0.95 for all true rates; the simple one falls steeply as the rate nears 1.",
    title="24 images: near 100 % the simple interval breaks its promise",
)
lesson.claim("the simple interval contains the rate in less than 75 %", coverage(simple, 0.95, 24) < 0.75)
lesson.claim("Wilson's in at least 94 %", coverage(wilson, 0.95, 24) > 0.94)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Wilson's. The simple one fails where good models are: in more than a quarter of all measurements such a model draws 24
# right images of 24, and then the simple interval is from 100 % to 100 %. It claims to be certain and is wrong.
#
# </details>
#
# Two rules follow, and are worth remembering. To halve an interval, take four times as many images. And **n of n
# right** proves a rate of about $1 - 4/n$, not of 1.

# %%
for k, n in ((24, 24), (192, 192), (23, 24), (46, 48), (184, 192), (958, 1000)):
    low, high = wilson(k, n)
    print(f"{k:4} of {n:4} right: {low:6.1%} to {high:6.1%}, {100 * (high - low):4.1f} points wide")
for name, each in right.items():
    low, high = wilson(sum(each), len(each))
    print(f"{name}: {sum(each)} of {len(each)} right, {low:.1%} to {high:.1%}")
lesson.claim("n of n: the lower end is near 1 - 4/n", abs(wilson(192, 192)[0] - (1 - 4 / 192)) < 0.003)
ratio = (wilson(46, 48)[1] - wilson(46, 48)[0]) / (wilson(184, 192)[1] - wilson(184, 192)[0])
lesson.claim("four times the images make the interval about half as wide", 1.7 < ratio < 2.3)

# %% [markdown]
# ## Comparing two settings
#
# Is scale 3 better than scale 1? Two intervals side by side answer badly, because they forget that both settings had
# the **same prompts and noise**. A difficult prompt is difficult for both. So we make a table of pairs. Prompts that
# are right in both, or wrong in both, say nothing about the difference; those that changed sides do.
#
# With $b$ prompts that only the second setting gets right, and $c$ that only the first gets right, the difference of
# the rates is $(b-c)/n$, and its deviation is $\sqrt{b + c - (b-c)^2/n}\,/\,n$. For a p-value we ask: if both were
# equally good, each prompt that changed sides would be a coin. How probable is a result as one-sided as ours?


# %%
def paired(first, second):
    """The difference of the rates with its 95 % interval, and the p-value of the sign test."""
    n = len(first)
    b = sum(y and not x for x, y in zip(first, second, strict=True))
    c = sum(x and not y for x, y in zip(first, second, strict=True))
    reach = 1.96 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    p = min(1.0, 2 * sum(math.comb(b + c, k) for k in range(max(b, c), b + c + 1)) / 2 ** (b + c))
    return (b - c) / n, (b - c) / n - reach, (b - c) / n + reach, p


def unpaired_reach(first, second):
    """Half the width of the interval, if the settings had prompts and noise of their own."""
    n = len(first)
    return 1.96 * math.sqrt(sum(sum(each) / n * (1 - sum(each) / n) / n for each in (first, second)))


first, second = right.values()
pairs = [*zip(first, second, strict=True)]
print("right in both:", pairs.count((True, True)), "  in neither:", pairs.count((False, False)))
print("only with scale 3:", pairs.count((False, True)), "  only with scale 1:", pairs.count((True, False)))
difference, low, high, p = paired(first, second)
print(f"difference {100 * difference:.0f} points, {100 * low:.0f} to {100 * high:.0f}; p-value {p:.2g}")
print(f"as if unpaired: plus or minus {100 * unpaired_reach(first, second):.0f} points")
lesson.claim("guidance helps: so one-sided a result has a chance of less than 5 %", difference > 0 and p < 0.05)

chosen = torch.randint(len(pairs), (4000, len(pairs)), generator=torch.Generator().manual_seed(0))
changes = torch.tensor([int(y) - int(x) for x, y in pairs]).float()
means = changes[chosen].mean(1).sort().values
print(f"bootstrap: {100 * float(means[100]):.0f} to {100 * float(means[-101]):.0f} points")
lesson.claim(
    "drawing the prompts again and again gives about the same interval",
    abs(means[100] - low) < 0.06 and abs(means[-101] - high) < 0.06,
)

# %% [markdown]
# The last lines are the **bootstrap**: draw 48 of our 48 prompts with replacement, compute the difference, repeat 4,000
# times, and take the middle 95 %. It needs no formula, so it also works for numbers that have none, such as an FID.
#
# **Predict, then run**: someone tries 20 settings and reports the best with its p-value against the first. In truth all
# 20 are equally good. How often is the best one "significantly better" (p below 0.05)?

# %%
dice = torch.Generator().manual_seed(0)
n, trials, beaten = 48, 200, {2: 0, 20: 0}
for settings in beaten:
    for _ in range(trials):
        drawn = (torch.rand(settings, n, generator=dice) < 0.8).tolist()
        best = max(drawn[1:], key=sum)
        difference, *_, p = paired(drawn[0], best)
        beaten[settings] += difference > 0 and p < 0.05
    print(f"{settings:2} equal settings: the best of the others beats the first in {beaten[settings] / trials:.0%}")
lesson.claim("with two settings that is rare", beaten[2] / trials < 0.05)
lesson.claim("with 20 it is not", beaten[20] / trials > 0.1)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Often, although there is nothing to find. The best of many is best by luck as well. So choose with one set of prompts,
# and report what you chose with another one. The suites of `minisd eval` have a seed for that.
#
# </details>
#
# ## The Fréchet distance, by hand
#
# Now the second question, about whole sets of images. An image becomes a vector of **features**: numbers with which a
# network describes it. FID takes the features of an Inception network (Heusel et al. 2017). We take those of the
# embedded CLIP, as Inception knows photographs and no stickers. So the numbers cannot be compared with those of papers.
#
# A set of images is then a cloud of points. The distance describes each cloud by a normal distribution, with mean $m$
# and covariance $C$, and compares these:
#
# $$d = \|m_1 - m_2\|^2 + \operatorname{tr}\left(C_1 + C_2 - 2\,(C_1 C_2)^{1/2}\right)$$
#
# In one dimension that is $(m_1-m_2)^2 + (s_1-s_2)^2$, with the deviations $s$. In more dimensions, the trace of the
# root is the sum of the roots of the eigenvalues of $C_1^{1/2} C_2\, C_1^{1/2}$, a symmetric matrix with the same
# eigenvalues as $C_1 C_2$.

# %%
from minisd.sticker.evaluation.frechet import frechet_distance, squared_mmd

clip, clip_tokenizer = weights_loader.load_clip("sticker")


@torch.no_grad()
def features(pixels):
    """CLIP's features of images of 64 x 64 pixels, before they are made unit vectors."""
    return torch.cat([clip.image_encoder.pool(clip.image_encoder(part)) for part in pixels.split(100)]).double()


def root(matrix):
    """The symmetric square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


def frechet(x, y):
    """Between two sets of vectors (N, D) and (M, D)."""
    means = x.mean(0), y.mean(0)
    c1, c2 = ((each - mean).T @ (each - mean) / (len(each) - 1) for each, mean in zip((x, y), means, strict=True))
    shared = torch.linalg.eigvalsh(root(c1) @ c2 @ root(c1)).clamp(min=0).sqrt().sum()
    return float((means[0] - means[1]).square().sum() + c1.trace() + c2.trace() - 2 * shared)


N = 600
scenes = training_scenes(2 * N, seed=1_000_000)  # the training has no seed from here on
pixels = render(scenes, size=64)
reference, others = pixels[:N], pixels[N:]
known, real = features(reference), features(others)
print(f"an image is {pixels[0].numel():,} numbers, its features {known.shape[1]}")

x, y = torch.randn(2, 500, 1, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([[[1.0]], [[3.0]]])
plain_formula = float((x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2)
lesson.claim("in one dimension it is the plain formula", math.isclose(frechet(x, y), plain_formula, rel_tol=1e-6))
mine, theirs = frechet(real, known), frechet_distance(real, known)
print(f"{N} real images to {N} others: {mine:.3f} by hand, {theirs:.3f} by the library")
lesson.claim("ours is the library's distance", math.isclose(mine, theirs, rel_tol=1e-3))

# %% [markdown]
# Does it see what is wrong with images? We spoil real ones in five ways and compare each set with the reference. As a
# measure stick, the first row is **other real images**: no model can be better than that.
#
# **Predict, then run**: which one is farther away, noise that an eye hardly notices, or a "model" that draws no other
# shape than circles?

# %%
dice = torch.Generator().manual_seed(0)
only_circles = [
    replace(scene, objects=tuple(replace(thing, shape="circle") for thing in scene.objects)) for scene in scenes[N:]
]
spoilt = {
    "other real images": others,
    "a little noise": (others + 0.1 * torch.randn(others.shape, generator=dice)).clamp(-1, 1),
    "blurred": torch.nn.functional.avg_pool2d(others, 5, stride=1, padding=2, count_include_pad=False),
    "red and blue exchanged": others.flip(1),
    "a gray veil": 0.7 * others,
    "circles only": render(only_circles, size=64),
}
vectors = {name: real if each is others else features(each) for name, each in spoilt.items()}
distances = {name: frechet(each, known) for name, each in vectors.items()}
for name, distance in distances.items():
    print(f"{name:24} {distance:8.2f}")
lesson.pictures(
    [image for each in spoilt.values() for image in to_pil(each[:6])],
    alt="Six rows of six images: real ones, with noise, blurred, with other colours, grayish, and circles only.",
    title="Real images, spoilt in five ways, and their distance to the reference",
    columns=6,
    rows=[f"{name}\n{distances[name]:.1f}" for name in spoilt],
    size=0.8,
)
floor = distances["other real images"]
lesson.claim(
    "blur, colours, veil and circles are at least 1.3 times as far away as other real images",
    1.3 * floor < min(distances[name] for name in list(spoilt)[2:]),
)
lesson.claim("circles only are the farthest", max(distances, key=distances.get) == "circles only")
lesson.claim("noise is hardly seen", distances["a little noise"] < 1.3 * floor)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The circles, by far. The features are those of a network that was trained to name shapes and colours, so a set without
# seven of the eight shapes is far away. The network has not learnt to see faint noise, as no caption speaks of it. An
# Inception network reacts to noise strongly. **A distance sees what its features see**, and nothing else.
#
# </details>
#
# ## Few images make a large distance
#
# The distance of real images to real images should be 0, as both are from the same world. It is not, because mean and
# covariance are estimated from few images, and errors of estimation look like differences. We halve the number of
# images again and again. Beside it stands the **kernel distance** (Binkowski et al. 2018), a mean over pairs of images,
# which has no such bias.

# %%
together = torch.cat([known, real])


def by_count(n, distance):
    """The mean distance of n real images to n others, over four splits."""
    found = []
    for split in range(4):
        order = torch.randperm(len(together), generator=torch.Generator().manual_seed(split))
        found.append(distance(together[order[:n]], together[order[n : 2 * n]]))
    return sum(found) / len(found)


counts = [N, N // 2, N // 4, N // 8]
bias = [by_count(n, frechet_distance) for n in counts]
kernel = [by_count(n, squared_mmd) for n in counts]
kernel_spoilt = {name: squared_mmd(vectors[name], known) for name in ("blurred", "circles only")}
for n, one, other in zip(counts, bias, kernel, strict=True):
    print(f"{n:4} real images to {n} others: Frechet {one:6.2f}, kernel distance {other:8.4f}")
for name, each in kernel_spoilt.items():
    print(f"{N:4} {name:12}: Frechet {distances[name]:6.2f}, kernel distance {each:8.4f}")
slope, limit = (
    torch.linalg.lstsq(torch.tensor([[1 / n, 1.0] for n in counts[:3]]), torch.tensor(bias[:3])[:, None])
    .solution.flatten()
    .tolist()
)
print(f"a line through the first three, continued to 1/n = 0: {limit:.2f}")

figure, panel = lesson.axes(width=6.0, height=2.8)
panel.plot([1 / n for n in counts], bias, marker="o", label="real images to real images")
panel.plot([0, 1 / counts[-1]], [limit, limit + slope / counts[-1]], linestyle="--", label="line, continued")
panel.set_xticks([0, *(1 / n for n in counts)], ["0", *(f"1/{n}" for n in counts)])
panel.set(xlabel="1 / number of images", ylabel="Frechet distance", ylim=(min(0, limit) - 1, None))
panel.legend(fontsize=8)
lesson.show(
    figure,
    alt="The distance of real to real images rises almost on a line with one over the number of images.",
    title="The same world, measured with fewer images: the distance grows",
)
lesson.claim("an eighth of the images: more than three times the distance", bias[-1] > 3 * bias[0])
lesson.claim("the line leads to nearly 0", abs(limit) < 0.3 * bias[0])
lesson.claim("with an eighth of the images, real ones seem worse than blurred ones", bias[-1] > distances["blurred"])
lesson.claim("the kernel distance stays near 0", max(map(abs, kernel)) < 0.1 * kernel_spoilt["circles only"])

# %% [markdown]
# So a distance says nothing without its number of images. Three habits follow. Compare only distances of the same
# number of images. Print the distance of real images to real images beside yours. Or compute it for several numbers and
# continue the line to $1/n = 0$ (Chong and Forsyth 2020). Papers use tens of thousands of images with 2,048 features;
# with fewer images than features the covariance is not even invertible.
#
# Our 48 images are far too few:

# %%
from minisd.interpret.clip_ranking import resize_and_crop


def of_pictures(pictures):
    """The features of images of any size."""
    return features(torch.cat([resize_and_crop(from_pil(each), 64) for each in pictures]))


scenes_48 = [[example.scene for example in suite_examples("full", 48, seed, sd.defaults.words)] for seed in (1, 2)]
small_reference, small_real = (features(render(each, size=64)) for each in scenes_48)
small = {"other real images": small_real, "drawn, scale 1": of_pictures(plain.pictures)}
small["drawn, scale 3"] = of_pictures(guided.pictures)
for name, each in small.items():
    print(f"48 images, {name:18} {frechet(each, small_reference):6.1f}")
lesson.claim(
    "most of the distance of the drawn images is bias",
    frechet(small_real, small_reference) > 0.5 * max(frechet(each, small_reference) for each in small.values()),
)

# %% [markdown]
# The order of the last two lines need not be that of the exact rates: guidance makes images obey, and less varied, and
# a distance counts variety. But with 48 images no order is worth believing.

# %% [markdown]
# ## What FID does not see
#
# Three "models", each of them bad in its own way. They need no network, as we can render what they would draw:
#
# - **the parrot** knows the training images by heart and shows one of them for each prompt;
# - **the shuffler** draws perfect images, but for somebody else's prompt;
# - **the mirror** draws the right objects at exchanged places: "left" becomes "right", "above" becomes "below".
#
# **Predict, then run**: the Fréchet distance never sees a prompt. Which of the three does it find?

# %%
examples = [suite_examples("two", 200, seed, sd.defaults.words) for seed in (1, 2)]
asked = [example.prompt for example in examples[0]]
target = features(render([example.scene for example in examples[1]], size=64))


def mirrored(scene):
    """The scene with each object at the opposite side of the middle."""
    return replace(scene, objects=tuple(replace(thing, x=1 - thing.x, y=1 - thing.y) for thing in scene.objects))


models = {
    "perfect": render([example.scene for example in examples[0]], size=64),
    "mirror": render([mirrored(example.scene) for example in examples[0]], size=64),
}
models["shuffler"] = models["perfect"].roll(1, 0)
results = {}
for name in ("perfect", "shuffler", "mirror"):
    images = models[name]
    exact = sum(check(image, prompt).exact for image, prompt in zip(images[:40], asked, strict=False))
    results[name] = frechet(features(images), target), exact / 40
    print(f"{name:9} distance {results[name][0]:6.2f}   exact {results[name][1]:4.0%}")
lesson.pictures(
    [image for name in results for image in to_pil(models[name][:5])],
    alt="Three rows of five images: as asked; the same images, each one place further; objects at exchanged places.",
    title="Equal distances, and very different answers to the prompts",
    columns=5,
    labels=[str(k + 1) for k in range(5)],
    rows=[f"{name}\nFD {distance:.1f}\nexact {exact:.0%}" for name, (distance, exact) in results.items()],
)
for k, prompt in enumerate(asked[:5]):
    print(f"{k + 1}: {prompt}")
perfect, shuffler, mirror = results.values()
lesson.claim(
    "the shuffler has the same distance as the perfect model", math.isclose(shuffler[0], perfect[0], rel_tol=1e-6)
)
lesson.claim("and the mirror nearly so", abs(mirror[0] - perfect[0]) < 0.2 * perfect[0])
lesson.claim("the checker finds both", perfect[1] > 0.95 and max(shuffler[1], mirror[1]) < 0.2)

# %% [markdown]
# And the parrot? It is compared with the images that it was trained on, as many papers do, and with new ones.

# %%
parrot = known[torch.randperm(N, generator=torch.Generator().manual_seed(1))]  # its images are training images
fresh = features(render(training_scenes(N, seed=1_000_002), size=64))
lines = {}
for name, each in (("parrot", parrot), ("perfect model", real)):
    lines[name] = max(0.0, frechet(each, known)), frechet(each, fresh)  # a distance of 0 may be rounded to below 0
    print(f"{name:14} to the training images {lines[name][0]:6.2f}, to new images {lines[name][1]:6.2f}")
nearest = [torch.cdist(each, known).min(1).values.median() for each in (parrot, real)]
print(f"distance to the nearest training image: parrot {float(nearest[0]):.2f}, perfect model {float(nearest[1]):.2f}")
lesson.claim(
    "to the training images the parrot is better than perfect", lines["parrot"][0] < 0.1 * lines["perfect model"][0]
)
lesson.claim("to new images it is as good", abs(lines["parrot"][1] / lines["perfect model"][1] - 1) < 0.2)
lesson.claim("the nearest training image gives it away", nearest[0] < 0.1 * nearest[1])

# %% [markdown]
# <details><summary>Answer</summary>
#
# None of the three. It compares two clouds of features, and does not know which image belongs to which prompt. So the
# shuffler has the distance of a perfect model. Left and right are equally common in the world, so the mirror has nearly
# the same distance. And the parrot has the best distance of all. FID answers: *are these images, as a set, like those?*
# It does not say whether prompts are obeyed, or whether anything is new.
#
# </details>
#
# ## The CLIP score
#
# CLIP sees image and prompt together. Its score is the cosine of both vectors (notebook 12): an opinion for each single
# image. Which of the models does it find?

# %%
from minisd.interpret.clip_ranking import best_of, clip_scores


@torch.no_grad()
def scores(images, prompts):
    """The cosine of each image (64 x 64) and its own prompt."""
    a, b = clip.image_encoder.pool(clip.image_encoder(images)), clip_tokenizer(list(prompts))
    b = clip.text_encoder.pool(clip.text_encoder(b), b)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


found = {name: scores(images, asked) for name, images in models.items()}
lesson.claim(
    "ours is the library's score",
    torch.allclose(found["perfect"], clip_scores(clip, clip_tokenizer, models["perfect"], asked), atol=1e-4),
)
for name, each in found.items():
    lower = (each < found["perfect"]).float().mean()
    print(f"{name:9} CLIP score {float(each.mean()):.3f}; below the perfect image's in {lower:.0%}")
lesson.claim(
    "nearly all mirrored images have a lower score than the perfect one",
    (found["mirror"] < found["perfect"]).float().mean() > 0.8,
)
lesson.claim("the shuffler's scores are far lower", found["shuffler"].mean() < found["perfect"].mean() - 0.2)

# %% [markdown]
# It finds both: nearly every mirrored image has a lower score than the image it was made from. That is so because this
# CLIP was trained with *untrue captions* as well, in which colours, places or the relation are exchanged. A CLIP that
# was trained on captions alone hardly notices (Yuksekgonul et al. 2022 call it a bag of words), and most are of that
# kind. The CLIP score, too, sees only what its network has learnt. And the parrot? A CLIP score finds nothing wrong
# with an image that is copied, if it fits.
#
# ## The best of four
#
# If CLIP can tell good images from bad ones, it can choose: draw four images for each prompt, and keep the one with the
# highest score. Without guidance there is much to choose from.

# %%
repeated = [prompt for prompt in prompts[:12] for _ in range(4)]
many = judge_prompts(sd, repeated, seed=500, steps=6, guidance_scale=1.0)
marks = clip_scores(clip, clip_tokenizer, torch.cat([from_pil(each) for each in many.pictures]), repeated)
correct = torch.tensor([verdict.exact for verdict in many.verdicts])
best = marks.view(12, 4).argmax(1) + 4 * torch.arange(12)
lesson.claim("choosing is an argmax", best.tolist() == best_of(marks, 4))
for name, count in (
    ("the first of four", correct.view(12, 4)[:, 0].sum()),
    ("chosen by CLIP", correct[best].sum()),
    ("any of the four", correct.view(12, 4).any(1).sum()),
):
    low, high = wilson(int(count), 12)
    print(f"{name:18} {int(count):2} of 12 right, {low:.0%} to {high:.0%}")

everything = torch.cat(
    [marks]
    + [
        clip_scores(clip, clip_tokenizer, torch.cat([from_pil(each) for each in run.pictures]), prompts)
        for run in (plain, guided)
    ]
)
known_right = torch.cat([correct, torch.tensor(first), torch.tensor(second)])
auc = (everything[known_right][:, None] > everything[~known_right]).float().mean()
print(f"{len(everything)} images, {int(known_right.sum())} right")
print(f"a right image and a wrong one: the right one has the higher score in {auc:.0%} of the pairs")
lesson.claim("CLIP's opinion agrees with the checker more often than chance", auc > 0.6)
lesson.claim("and is not the checker's", auc < 0.999)
chosen_row = sorted(range(12), key=lambda k: abs(int(correct.view(12, 4)[k].sum()) - 2))[:2]  # of both kinds
lesson.pictures(
    [many.pictures[4 * k + i] for k in chosen_row for i in range(4)],
    alt="Two rows of four images for one prompt each, with CLIP's score; some are right and some wrong.",
    title="Four images for a prompt: CLIP's score, and what the checker says",
    columns=4,
    labels=[
        f"{marks[4 * k + i]:.2f} {'right' if correct[4 * k + i] else 'wrong'}" for k in chosen_row for i in range(4)
    ],
    rows=[f"prompt {k + 1}" for k in chosen_row],
    size=1.3,
)

# %% [markdown]
# With 12 prompts the three intervals are wide, and the counts prove little. The pairs of the last line prove more: CLIP
# agrees with the checker more often than chance would.
#
# A warning: whoever chooses images by a score must not report that score as a result. The chosen images have a higher
# CLIP score by construction. Another judge has to say whether they are better; here that is the checker.
#
# ## All of it: `minisd eval`
#
# The command draws the prompts of suites, one for each skill, and prints rates with their intervals. Here it runs with
# four images of one suite, to see what it prints. Look at how wide the intervals are. The last lines are about the
# autoencoder, and about what prompts leave open.

# %%
from minisd import cli

cli.main(["eval", "--count", "4", "--suites", "two", "--steps", "6"])

# %% [markdown]
# With `--count 192` and all suites the intervals are narrow enough to tell good from better. `--clip` adds what this
# lesson measured: distances with the distance of real images beside them, the kernel distance, and the best of four.
#
# ```bash
# minisd eval --count 192 --clip --json results.json --sheet sheet.png
# ```
#
# ## On official weights
#
# There is no exact checker for photographs. What is reported instead, **not measured here**:

# %%
for line in (
    "FID: Inception, 2,048 features, 30,000 captions of COCO, features of real photographs of COCO as the reference",
    "MLPerf, SDXL: 5,000 captions; valid with an FID of 23.01 to 23.95 and a CLIP score of 31.69 to 31.81",
    "GenEval: an object detector in place of our checker, for objects, counts, colours and places",
):
    print(line)

# %% [markdown]
# ## What you can now explain
#
# <details><summary>What do 24 right images of 24 prove?</summary>
#
# That the true rate is probably 86.2 % or more. Wilson's interval says so; the simple one has the width 0 there, and is
# wrong.
#
# </details>
#
# <details><summary>Why do paired prompts prove more than two separate rates?</summary>
#
# A difficult prompt is difficult for both settings, and that part of the chance cancels. Only the prompts that changed
# sides tell the settings apart.
#
# </details>
#
# <details><summary>Why is the Fréchet distance of real images to real images not 0?</summary>
#
# Means and covariances of few images differ by chance, and the distance counts each difference. The bias falls with the
# number of images, about like 1/n.
#
# </details>
#
# <details><summary>Why can a model that ignores its prompt have the best FID?</summary>
#
# The distance compares two sets of images and never sees a prompt. Images of the right kind, in any order, have the
# same mean and covariance.
#
# </details>
#
# <details><summary>Why must a score that chose the images not be reported as their quality?</summary>
#
# The choice raises the score whether or not the images become better. A judge that took no part in the choice must say.
#
# </details>
#
# ## Your turn
#
# [The exercises](../minisd/exercises/README.md) belong to other lessons. Try these experiments in the cells above;
# where a claim becomes false, its cell stops, and that is a finding as well.
#
# - Add a fourth model to `models`, that draws every scene without its second object. Which of the three measures finds
#   it?
# - Compare 6 steps with 12 steps at scale 3 by `paired`. What do 48 prompts prove?
# - Compute the bootstrap interval of a Fréchet distance, by drawing rows of `real` with replacement. Why is it too
#   high?

# %% [markdown]
# ## Summary
#
# - **Exact rates** with Wilson's interval; n of n right prove about $1 - 4/n$. A simple interval is wrong near 100 %.
# - **Comparisons** with the same prompts and noise: count what changed sides. The best of many settings needs new
#   prompts.
# - **Fréchet distance**: mean and covariance of features. It grows as images become fewer, so always give the number
#   and the distance of real images. It sees no prompts, no wrong relations, no memorising.
# - **CLIP score**: an opinion on one image and its prompt. It can choose, and then it cannot judge.
#
# **Code**: [judging.py](../minisd/sticker/evaluation/judging.py),
# [frechet.py](../minisd/sticker/evaluation/frechet.py), [best_of_n.py](../minisd/sticker/evaluation/best_of_n.py),
# [clip_ranking.py](../minisd/interpret/clip_ranking.py); the command in
# [measurements.py](../minisd/cli/measurements.py). **Next**: [the exercises](../minisd/exercises/README.md), and a
# model of your own: `minisd train all FOLDER`.
