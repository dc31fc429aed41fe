# %% [markdown]
# # 12 · CLIP, trained contrastively
#
# **You will** train both halves of a small CLIP until an image finds its caption, write the loss that does it, classify
# colours without ever training a classifier, and find out what CLIP does *not* learn, and why.
#
# **Needs** notebook 11 (the text transformer).
#
# **Takes** 20 minutes to read, about a minute to run.

# %% [markdown]
# ## One space for images and words
#
# The text encoder of Stable Diffusion was not made for drawing. It is one half of CLIP (Radford et al. 2021), which was
# trained on images and their captions from the internet, for a task that needs no labels: *which caption belongs to
# which image?* Each half turns its input into **one vector** of length 1:
#
# - the text half: the state at the end token, projected by a matrix;
# - the image half: the image is cut into patches, each becomes a token, and a transformer without a mask reads them
#   all, with one more token that gathers what they show; its state is projected.
#
# Then an image and a text are compared by the cosine of their vectors.
#
# Our world: two objects, side by side or one above the other, of six shapes in eight colours.

# %%
import json
import math

import lesson
import torch
import torch.nn.functional as F

import weights_loader
from minisd.images import to_pil
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Object, Scene

colours = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
shapes = ("circle", "square", "triangle", "star", "ring", "cross")
dice = torch.Generator().manual_seed(0)


def chance(count):
    return int(torch.randint(count, (), generator=dice))


def draw_fact():
    """What an image shows: the left or upper object, the right or lower one, and whether one is above the other."""
    while True:
        first, second = ((colours[chance(8)], shapes[chance(6)]) for _ in range(2))
        if first[0] != second[0] and first[1] != second[1]:
            return first, second, bool(chance(2))


def caption_of(fact):
    first, second = (("an " if thing[0] == "orange" else "a ") + " ".join(thing) for thing in fact[:2])
    return f"{first} {'above' if fact[2] else 'left of'} {second}"


def swap_colours(fact):
    first, second, vertical = fact
    return (second[0], first[1]), (first[0], second[1]), vertical


def scene(fact):
    things = []
    for (colour, shape), along in zip(fact[:2], (0.24, 0.70), strict=True):
        u, v = torch.rand(2, generator=dice).tolist()
        place = (along + 0.06 * u, 0.3 + 0.4 * v)
        things.append(Object(shape, colour, "medium", *(place[::-1] if fact[2] else place), 0.14))
    return Scene(tuple(things))


tokenizer = weights_loader.load("sticker").tokenizer
LENGTH = 10  # start, at most eight words, end


def make_set(count):
    """Facts, their images, the ids of a caption for each, and of the same with the colours swapped."""
    facts = [draw_fact() for _ in range(count)]
    true, false = [caption_of(fact) for fact in facts], [caption_of(swap_colours(fact)) for fact in facts]
    pixels = render([scene(fact) for fact in facts], size=32)
    return facts, pixels, tokenizer(true)[:, :LENGTH], tokenizer(false)[:, :LENGTH], true


facts, pixels, ids, swapped_ids, captions = make_set(3000)
test_facts, test_pixels, test_ids, test_swapped_ids, test_captions = make_set(400)


def folded(caption):
    """In three lines, to be shown above an image."""
    words = caption.split()
    return "\n".join((" ".join(words[:3]), " ".join(words[3:-3]), " ".join(words[-3:])))


lesson.pictures(
    to_pil(pixels[:6]),
    alt="Six small images of two coloured objects, side by side or one above the other, with their captions.",
    title="Images and their captions",
    labels=[folded(caption) for caption in captions[:6]],
    size=1.4,
)
print(f"{len(set(facts)):,} different facts among {len(facts):,} images")

# %% [markdown]
# ## Both halves
#
# The library's CLIP class takes any sizes; these are tiny. Nothing is trained yet.

# %%
from minisd.configs import CLIPImageConfig, CLIPTextConfig
from minisd.models import CLIP

WIDTH = 64
sizes = {"width": WIDTH, "layers": 2, "heads": 4, "mlp_width": 2 * WIDTH, "projection_width": WIDTH}
torch.manual_seed(0)
clip = CLIP(
    CLIPTextConfig(len(tokenizer), **sizes),
    CLIPImageConfig(image_size=32, patch_size=4, mean=(0.5,) * 3, std=(0.5,) * 3, **sizes),
)
torch.nn.init.normal_(clip.image_encoder.position_embedding.weight, std=0.1)
torch.nn.init.normal_(clip.text_encoder.token_embedding.weight, std=0.2)
torch.nn.init.normal_(clip.text_encoder.position_embedding.weight, std=0.1)


def embed_images(clip, pixels):
    """Images (B, 3, 32, 32) -> unit vectors (B, width)."""
    half = clip.image_encoder
    return F.normalize(half.pool(half(pixels)), dim=-1)


def embed_texts(clip, ids):
    """Ids (B, L) -> unit vectors (B, width)."""
    half = clip.text_encoder
    return F.normalize(half.pool(half(ids), ids), dim=-1)


with torch.no_grad():
    few, texts = embed_images(clip, pixels[:4]), embed_texts(clip, ids[:4])
    lesson.claim("all vectors have length 1", torch.allclose(few.norm(dim=1), torch.ones(4), atol=1e-5))
    same = torch.equal(few, clip.embed_images(pixels[:4])) and torch.equal(texts, clip.embed_texts(ids[:4]))
    lesson.claim("these are the library's functions", same)
print(f"{sum(p.numel() for p in clip.parameters()):,} parameters in both halves")

# %% [markdown]
# ## The loss: what belongs to what?
#
# Take a batch of $B$ images and their $B$ captions, and make the matrix of all cosines: $B$ rows of images, $B$ columns
# of texts. The right pairs are on the diagonal. Read a **row** as a test with $B$ answers: *which of these texts
# belongs to this image?* That is a classification, so its loss is the cross-entropy. Read a **column** in the same way:
# *which image belongs to this text?* The loss is the mean of both (Radford et al. 2021, figure 3):
#
# $$L = \tfrac12\,\Big(\text{CE}(s\,I\,T^\top) + \text{CE}(s\,T\,I^\top)\Big)$$
#
# Cosines lie between -1 and 1, and a softmax over such small numbers is nearly flat. So they are multiplied by a
# scale $s$, which is learnt with the rest.
#
# There is a trap: two images of a batch may show the same fact. Then the "wrong" text is right as well, so the loss
# must not punish it: such places are taken out of the test.


# %%
def cross_entropy(logits):
    """Mean of -log(share of the right answer); the right answer to row i is column i."""
    shares = logits.softmax(1)
    return -shares.diagonal().log().mean()


def contrastive_loss(images, texts, scale, also_true, untrue=None):
    """Symmetric contrastive loss; images, texts (B, d) of length 1.

    also_true (B, B): other texts that are true of an image, too. untrue (B, N, d): wrong texts for each image.
    """
    logits = (scale * images @ texts.T).masked_fill(also_true, -math.inf)
    wide = logits
    if untrue is not None:
        wide = torch.cat([logits, scale * (untrue @ images[:, :, None])[:, :, 0]], 1)
    return (cross_entropy(wide) + cross_entropy(logits.T)) / 2


def same_fact(rows):
    """Which other images of a batch show the same fact: (B, B)."""
    chosen = [facts[row] for row in rows]
    return torch.tensor([[a == b for b in chosen] for a in chosen]).fill_diagonal_(False)


# %% [markdown]
# **Predict, then run**: before training, the halves know nothing. What is the loss for a batch of 28, if every answer
# is as likely as any other?

# %%
BATCH = 28
with torch.no_grad():
    flat = contrastive_loss(torch.zeros(BATCH, 4), torch.zeros(BATCH, 4), 1.0, torch.zeros(BATCH, BATCH).bool())
    images, texts = embed_images(clip, pixels[:BATCH]), embed_texts(clip, ids[:BATCH])
    untrained = contrastive_loss(images, texts, clip.logit_scale.exp(), same_fact(range(BATCH)))
print(f"guessing: {float(flat):.3f}, the logarithm of {BATCH}: {math.log(BATCH):.3f}")
print(f"the untrained halves: {float(untrained):.3f}")
lesson.claim("guessing costs the logarithm of the batch size", abs(float(flat) - math.log(BATCH)) < 1e-5)

# %% [markdown]
# <details><summary>Answer</summary>
#
# $-\log(1/B) = \log B$. The untrained halves do about as badly or a bit worse: random vectors do not even give equal
# shares. A larger batch is a harder test; CLIP was trained with batches of 32,768.
#
# </details>

# %%
print(f"guessing among {32_768:,}: {math.log(32_768):.2f}")

# %% [markdown]
# The library has the loss as a function of its own, with three untrue captions for every image (we come to those). It
# must give the same number:

# %%
from minisd.sticker.training import contrastive

with torch.no_grad():
    rows, wrong = ids[:16], swapped_ids[: 16 * contrastive.NEGATIVES_PER_IMAGE]
    untrue = embed_texts(clip, wrong).unflatten(0, (16, contrastive.NEGATIVES_PER_IMAGE))
    own = contrastive_loss(images[:16], texts[:16], clip.logit_scale.exp(), same_fact(range(16)), untrue)
    theirs = contrastive.contrastive_loss(clip, images[:16], torch.cat([rows, wrong]), same_fact(range(16)))
print(f"ours {float(own):.5f}, the library's {float(theirs):.5f}")
lesson.claim("our loss is the library's, to 1e-5", abs(float(own - theirs)) < 1e-5)
lesson.source(contrastive.contrastive_loss)

# %% [markdown]
# ## Training
#
# What is in a batch? CLIP's were drawn from the whole internet, where hardly two captions of a batch use the same
# words. Ours must be like that in small: **no two images of a batch show the same two colours**. Eight colours make 28
# pairs, so a batch has 28 images. (We will see that this matters.) The rest is short: draw a batch, compute the loss,
# step. The scale is held below 100, as in CLIP.


# %%
def by_colours(facts):
    """The rows of the images with each pair of colours."""
    groups = {}
    for row, (first, second, _) in enumerate(facts):
        groups.setdefault(frozenset((first[0], second[0])), []).append(row)
    return list(groups.values())


groups, test_groups = by_colours(facts), by_colours(test_facts)
lesson.claim("as many pairs of colours as images in a batch", len(groups) == math.comb(len(colours), 2) == BATCH)


def draw_batch():
    return torch.tensor([rows[chance(len(rows))] for rows in groups])


def train(clip, steps, with_swapped):
    """Some hundred steps of AdamW; returns the losses. with_swapped: each image's swapped caption is a wrong text."""
    rate = 2e-3
    optimizer = torch.optim.AdamW(clip.parameters(), lr=rate, betas=(0.9, 0.99))
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 20, (1 - step / steps) / 0.4)
        rows = draw_batch()
        images, texts = embed_images(clip, pixels[rows]), embed_texts(clip, ids[rows])
        untrue = embed_texts(clip, swapped_ids[rows])[:, None] if with_swapped else None
        loss = contrastive_loss(images, texts, clip.logit_scale.exp(), same_fact(rows.tolist()), untrue)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(100))
        losses.append(loss.item())
    return losses


# %% [markdown]
# To measure it: batches of the same kind, from images that were not trained on. How often is the closest text the
# image's own?


# %%
@torch.no_grad()
def cosines(clip, rows):
    """These test images with all their texts."""
    return embed_images(clip, test_pixels[rows]) @ embed_texts(clip, test_ids[rows]).T


def retrieval(clip):
    """How often the closest text of a batch is the image's own, over eight batches."""
    right = total = 0
    for k in range(8):
        rows = [each[k % len(each)] for each in test_groups]
        right += int((cosines(clip, rows).argmax(1) == torch.arange(len(rows))).sum())
        total += len(rows)
    return right / total


some = [each[0] for each in test_groups][:12]
before, found_before = cosines(clip, some), retrieval(clip)
losses = train(clip, steps=120, with_swapped=False)
after, found = cosines(clip, some), retrieval(clip)

figure, panel = lesson.axes(width=5, height=2.5)
panel.plot(losses)
panel.axhline(math.log(BATCH), color="gray", linestyle=":")
panel.text(len(losses), math.log(BATCH), "guessing", ha="right", va="bottom", color="gray")
panel.set(xlabel="step", ylabel="loss", ylim=(0, None))
lesson.show(figure, alt="The loss falls from the level of guessing.", title="The halves learn to find each other")
print(f"the right text among {BATCH}: {found_before:.0%} before, {found:.0%} after; by chance {1 / BATCH:.0%}")
lesson.claim("images find their texts far better than by chance", found > 0.4 and found > 3 * found_before)

# %% [markdown]
# The matrix itself, for twelve test images and their captions:

# %%
figure, panels = lesson.axes(1, 2, width=3.7, height=3.4)
for panel, matrix, title in zip(panels, (before, after), ("before training", "after"), strict=True):
    panel.imshow(matrix, cmap="magma")
    panel.set(xlabel="text", ylabel="image", title=title, xticks=range(12), yticks=range(12))
lesson.show(
    figure,
    alt="Left stripes without order; right a matrix of cosines with a bright diagonal.",
    title="The diagonal lights up: every image is near its own text",
)
best = [some[k] for k in after.argmax(1).tolist()]
lesson.pictures(
    to_pil(test_pixels[some[:6]]),
    alt="Six test images; above each, the caption among twelve that the model finds closest.",
    title="The closest of twelve captions",
    labels=[folded(test_captions[row]) for row in best[:6]],
    size=1.4,
)

# %% [markdown]
# ## A classifier without training
#
# Which colour is in the image? Our CLIP was not trained on that question. But we can ask it in words: write a sentence
# for every colour, and take the one closest to the image. Radford et al. call this **zero-shot** classification. The
# sentences should look like the captions of training. So each colour is put into many of them, with all else random,
# and the vectors are averaged (a *prompt ensemble*): what they have in common is the colour.


# %%
def sentences(kind, name, count=40):
    """Sentences that name one colour or one shape, all else by chance."""
    out = []
    for _ in range(count):
        (colour, shape), second, vertical = draw_fact()
        first = (name, shape) if kind == "colour" else (colour, name)
        out.append(caption_of((first, second, vertical)))
    return out


@torch.no_grad()
def zero_shot(pixels, kind, names):
    """For each image the name whose sentences, averaged, are closest."""
    vectors = [embed_texts(clip, tokenizer(sentences(kind, name))[:, :LENGTH]).mean(0) for name in names]
    return (embed_images(clip, pixels) @ F.normalize(torch.stack(vectors), dim=1).T).argmax(1)


right = {}
for part, (kind, names) in enumerate((("colour", colours), ("shape", shapes))):
    guessed = zero_shot(test_pixels, kind, names)
    shown = [{first[part], second[part]} for first, second, _ in test_facts]
    right[kind] = sum(names[k] in there for k, there in zip(guessed.tolist(), shown, strict=True)) / len(shown)
    print(f"{kind:6} named that is in the image: {right[kind]:.0%}; by chance {2 / len(names):.0%}")
lesson.claim("colours are seen in at least 60 %, without a classifier", right["colour"] >= 0.6)

# %% [markdown]
# Compare each line with its level of chance. To find a text in one of our batches, the two colours are enough, and
# nothing asks for the shapes. That is the weak point of such a training.
#
# ## What ordinary batches do not teach
#
# To know which words are in a caption is not the same as to know which of them belong together.
#
# **Predict, then run**: an image, its caption, and the same caption with the two colours swapped. How often is the true
# one closer?


# %%
@torch.no_grad()
def tells_order(clip):
    """How often an image is closer to its caption than to the one with the colours swapped."""
    images = embed_images(clip, test_pixels)
    true, swapped = ((images * embed_texts(clip, each)).sum(1) for each in (test_ids, test_swapped_ids))
    return float((true > swapped).float().mean())


ordinary = tells_order(clip)
print(f"the true caption is closer in {ordinary:.0%}; by chance in 50 %")


def meets_swapped(rows):
    """Whether some image's swapped caption is true of another image of the batch."""
    chosen = {facts[row] for row in rows}
    return any(swap_colours(facts[row]) in chosen for row in rows)


met = sum(meets_swapped(draw_batch().tolist()) for _ in range(100))
print(f"batches, of 100, in which a caption meets its swapped twin: {met}")
lesson.claim("no batch ever asked for the difference", met == 0)
lesson.claim("so it is learnt far less well than finding the text", ordinary < found - 0.1)

# %% [markdown]
# <details><summary>Answer</summary>
#
# About as often as by tossing a coin, although the right text is found so well. To find it, the set of words is enough:
# no other caption of the batch has these two colours. No batch ever asked which colour belongs to which object. A model
# learns what its loss asks for, and hardly more. The official CLIP has the same weakness (Yuksekgonul et al. 2022), for
# the same reason; and Stable Diffusion, which reads its text states, inherits a part of it.
#
# </details>
#
# ## Hard negatives
#
# The cure is to put the swapped caption into the test: for every image one more wrong answer, its own **hard
# negative**. We train on from where we are. For a fair comparison a copy of the model trains for as many steps with
# ordinary batches.
#
# **Predict, then run**: which of the two tests will profit from the hard negatives, the right text of a batch, or the
# true caption against the swapped one?

# %%
from copy import deepcopy

longer = deepcopy(clip)
for model, with_swapped in ((longer, False), (clip, True)):
    train(model, steps=200, with_swapped=with_swapped)

series = {
    "ordinary batches": (found, ordinary),
    "more of them": (retrieval(longer), tells_order(longer)),
    "hard negatives": (retrieval(clip), tells_order(clip)),
}
figure, panel = lesson.axes(width=6.2, height=2.8)
for k, (name, values) in enumerate(series.items()):
    bars = panel.bar([place + 0.27 * (k - 1) for place in (0, 1)], values, 0.25, label=name, hatch=("", "//", "..")[k])
    panel.bar_label(bars, fmt="{:.0%}")
panel.set_xticks((0, 1), ("finds the right text\nof a batch", "tells the true caption\nfrom the swapped one"))
panel.axhline(0.5, 0.5, 1, color="gray", linestyle=":")
panel.set(ylabel="share of test images", ylim=(0, 1.35), yticks=(0, 0.5, 1))
panel.legend(loc="upper center", ncols=3, fontsize=8)
lesson.show(
    figure,
    alt="Two groups of three bars. In the second, hard negatives recognise the swapped caption far more often.",
    title="What the loss asks for is learnt",
)
more, hard = series["more of them"][1], series["hard negatives"][1]
lesson.claim("hard negatives teach what belongs to what", hard > ordinary + 0.1)
lesson.claim("as many more ordinary batches teach less of it", hard > more + 0.05)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The second. The first test does not show it, as the words still suffice there; that is why this weakness of CLIP went
# unnoticed for a while. One must measure what one wants to know.
#
# </details>
#
# minisd's own training takes three untrue captions for each image, with colours, relations or places changed
# ([hard_negatives.py](../minisd/sticker/training/hard_negatives.py)), and also asks the image half directly what an
# image shows.
#
# ## A judge for the UNet
#
# The embedded model has a CLIP that was trained so, for three quarters of an hour, on scenes of the whole world. What
# is it good for, in a model that draws? To **choose**. A wording that was not in the training, such as "there is a red
# ring with a pink circle over it", is where the small model errs most; so let it draw each prompt four times, and keep
# the image that CLIP finds closest to the prompt. An exact checker says whether that helps. The five prompts are
# picked: with these the first try often fails.

# %%
from minisd.interpret.clip_ranking import clip_scores
from minisd.sticker.world.checker.check import check

sd = weights_loader.load("sticker")
judge, judge_tokenizer = weights_loader.load_clip("sticker")
pairs = [
    ("a red ring", "a pink circle over"),
    ("a pink diamond", "a cyan diamond right of"),
    ("a green triangle", "a blue circle over"),
    ("a green ring", "a red triangle over"),
    ("a yellow circle", "a green circle above"),
]
prompts = [f"there is {first} with {second} it" for first, second in pairs]
drawn, labels, first, chosen = [], [], 0, 0
for k, prompt in enumerate(prompts):
    four = sd(prompt, seed=100 + 10 * k, num_images_per_prompt=4, output_type="pt").images
    closeness = clip_scores(judge, judge_tokenizer, four, [prompt] * 4)
    right = [check(picture, prompt).exact for picture in four]
    pick = int(closeness.argmax())
    first, chosen = first + right[0], chosen + right[pick]
    drawn += to_pil(four)
    labels += [f"{cosine:.2f}{', chosen' if k == pick else ''}" for k, cosine in enumerate(closeness.tolist())]
lesson.pictures(
    drawn,
    alt="Five rows of four images with two objects each; under each image its cosine with the prompt.",
    title="Four tries each, the closest is chosen",
    labels=labels,
    columns=4,
    rows=[f"{second} {first.removeprefix('a ')}" for first, second in pairs],
)
print(f"right, of these {len(prompts)}: the first of each {first}, the chosen {chosen}")
results = json.loads((weights_loader.resolve("sticker") / "results.json").read_text())
fair = results["clip"]["best of 4, held-out template"]
rates = f"the first {fair['first']['rate']:.0%}, the chosen {fair['chosen']['rate']:.0%}"
print(f"of {fair['first']['count']} prompts of this wording that nobody picked: {rates}")
lesson.claim("what CLIP chooses is right more often than the first try", fair["chosen"]["rate"] > fair["first"]["rate"])

# %% [markdown]
# On the command line that is `--best-of 4`. OpenAI did the same with the first DALL-E: it drew hundreds of images of
# each prompt, and CLIP kept the best.

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why does guessing cost the logarithm of the batch size?</summary>
#
# Among $B$ texts each one gets the share $1/B$. The loss is minus the logarithm of the right one's share, and that is
# $\log B$.
#
# </details>
#
# <details><summary>Why does the loss read the matrix by rows and by columns?</summary>
#
# A row asks which text belongs to an image, a column asks which image belongs to a text. A matrix can pass one of these
# tests and fail the other.
#
# </details>
#
# <details><summary>Why are the cosines multiplied by a learnt scale?</summary>
#
# Cosines lie between -1 and 1, and a softmax of such close numbers is nearly flat. The scale makes their differences
# count, and training finds how much.
#
# </details>
#
# <details><summary>Why does the model find the right caption, and still not know which object is red?</summary>
#
# In a batch no other caption has the same two colours, so the set of words is enough to find the right one. No batch
# asks which colour belongs to which object, so the model does not learn it.
#
# </details>
#
# <details><summary>Why does a hard negative teach what many ordinary captions do not?</summary>
#
# It has the same words as the true caption, in another order. So the loss falls only if the model reads the order.
#
# </details>
#
# ## Your turn
#
# [The exercises](../minisd/exercises/README.md) belong to other lessons. Try these experiments in the cells above;
# where a claim becomes false, its cell stops, and that is a finding as well.
#
# - In `draw_batch`, return `torch.randint(len(facts), (BATCH,), generator=dice)`, train a new model, and look which of
#   the two tests changes.
# - In `train`, replace `clip.logit_scale.exp()` by `1.0`, and compare the loss with that of guessing.
# - Call `sentences` with `count=1` in `zero_shot`, and see how much the mean over many sentences is worth.

# %% [markdown]
# ## Summary
#
# - CLIP has two halves that make vectors of length 1. The loss asks twice: which text belongs to this image, which
#   image to this text?
# - Guessing costs $\log B$. A learnt scale makes differences of cosines count.
# - Classes can be asked for in words, without training a classifier.
# - What no batch asks for is not learnt: without hard negatives, a model hardly knows which colour belongs to which
#   object.
# - A model that draws several images can leave the choice to CLIP.
#
# **Code**: [contrastive.py](../minisd/sticker/training/contrastive.py),
# [hard_negatives.py](../minisd/sticker/training/hard_negatives.py), both halves in
# [clip_image.py](../minisd/models/clip_image.py). **Next**: [13 · A whole latent diffusion model, trained
# small](13_small_latent_diffusion.ipynb).
