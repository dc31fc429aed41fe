# %% [markdown]
# # 19 · Embedding surgery
#
# **You will** open the way from the words to the UNet at two places and change the tensors there: exchange and mix word
# vectors, mix whole prompts, calculate "red circle - red + blue", walk from noise to noise, and find out what order and
# padding carry.
#
# **Needs** notebook 08 (guidance), notebook 10 (tokens).
#
# **Takes** 20 minutes to read, less than a minute to run.

# %% [markdown]
# ## Two places to cut
#
# The UNet never sees words. On their way to it they are tensors, at two places that we can reach:
#
# 1. **token vectors**: each token's row in a table, looked up, nothing more;
# 2. **text states**: what the text encoder makes of all the vectors together. These are what the UNet reads.
#
# Here is the whole way, one line a step:

# %%
import lesson
import torch

import weights_loader
from minisd.images import to_pil
from minisd.interpret import text_vectors
from minisd.sticker.world.checker.check import check

sd = weights_loader.load("sticker")
encoder = sd.text_encoder
table, places = encoder.token_embedding.weight.detach(), encoder.position_embedding.weight.detach()


@torch.no_grad()
def encode(vectors):
    """Token vectors (1, 77, width) -> text states: add the places, then run the transformer."""
    return encoder.transform(vectors + places)


prompt = "a red circle"
ids = sd.tokenizer(prompt)
vectors = table[ids]
states = encode(vectors)
print("ids", ids[0, :7].tolist(), "...")
print("token vectors", tuple(vectors.shape), " text states", tuple(states.shape))
lesson.claim("that is what encode_prompt does", torch.allclose(states, sd.encode_prompt([prompt]), atol=1e-5))


# %%
def draw(states, noise, n=12):
    """Text states and noises, one for each image or one for all -> images (B, 3, H, W)."""
    count = max(len(states), len(noise))
    states, noise = states.expand(count, -1, -1), noise.expand(count, -1, -1, -1)
    return sd(prompt_embeds=states, latents=noise, num_inference_steps=n, output_type="pt").images


def dice(seed, count=1):
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


mine = draw(states, dice(1))
theirs = sd(prompt, latents=dice(1), num_inference_steps=12, output_type="pt").images
lesson.claim("states in the place of a prompt give the prompt's image", torch.allclose(mine, theirs, atol=1e-3))

# %% [markdown]
# The Deep Dive goes the same way by hooks and private functions, because its library offers no entrance for vectors.
# Here the two entrances are `text_vectors.encode_vectors(sd, vectors)` and `sd(prompt_embeds=states)`.
#
# ## Exchange a word
#
# **Predict, then run**: we overwrite the vector of "red" with that of "blue", and encode. Will the states be *like*
# those of "a blue circle", or equal to them?


# %%
def vector(word):
    """The row of a word; in this vocabulary every word is one token."""
    return table[sd.tokenizer(word)[0, 1]]


def replace_word(prompt, word, by):
    vectors, place = table[sd.tokenizer(prompt)].clone(), prompt.split().index(word) + 1  # 1: the start token
    vectors[0, place] = by
    return vectors


swapped = encode(replace_word(prompt, "red", vector("blue")))
lesson.claim("equal", torch.allclose(swapped, sd.encode_prompt(["a blue circle"]), atol=1e-5))
theirs = text_vectors.encode_vectors(
    sd, text_vectors.replace_word(sd, prompt, "red", text_vectors.word_vectors(sd, "blue"))
)
lesson.claim("and so is the library's `replace_word`", torch.allclose(swapped, theirs, atol=1e-5))

# %% [markdown]
# <details><summary>Answer</summary>
#
# Equal. After the table nothing knows what the word was; only its vector is left. This is what makes textual inversion
# possible (notebook 24): a vector that belongs to no word works like a word.
#
# </details>
#
# ## Half red, half blue
#
# So we can also write in a vector that **no** word has.
#
# **Predict, then run**: half the vector of "red" plus half that of "blue". What colour will the circle be?

# %%
weights = [0, 0.3, 0.4, 0.45, 0.5, 0.6, 1]


def lerp(first, second, weight):
    """The straight way from first to second."""
    return (1 - weight) * first + weight * second


def named(images, prompt=prompt):
    """Colours and shapes that the checker finds, one text for each image."""
    return [
        " + ".join(f"{thing.colour or '?'} {thing.shape or '?'}" for thing in check(image, prompt).found) or "nothing"
        for image in images
    ]


def mixed_words(word, other):
    return torch.cat([encode(replace_word(prompt, word, lerp(vector(word), vector(other), w))) for w in weights])


colours, shapes = draw(mixed_words("red", "blue"), dice(1)), draw(mixed_words("circle", "star"), dice(1))
lesson.pictures(
    [*to_pil(colours), *to_pil(shapes)],
    alt="Seven circles from red to blue; below seven objects from circle to star; the change is abrupt.",
    title="Between two words: one or the other, and a sudden change",
    columns=len(weights),
    labels=[f"{w:g}" for w in weights],
    rows=["red to\nblue", "circle to\nstar"],
)
print("red to blue:   ", ", ".join(named(colours)))
print("circle to star:", ", ".join(named(shapes)))
lesson.claim("the ends are the two words", "red" in named(colours)[0] and "blue" in named(colours)[-1])
found = {*named(colours), *named(shapes)}
lesson.claim("and nothing is between them", found == {"red circle", "blue circle", "red star"})

# %% [markdown]
# <details><summary>Answer</summary>
#
# Red or blue, nothing between: at one share of the way the circle changes from the one to the other, and the circle
# becomes a star as suddenly. Nothing tells the encoder that a vector between two words means an object between two
# objects. It was trained on the words alone, and whatever it makes of the space between them, it was never corrected
# for. (In the large models, with far more words in the table, half a puppy and half a skunk do give a strange animal.)
#
# </details>
#
# ## What the table has learnt
#
# The rows of the table began as random numbers. Which of them now have similar directions?

# %%
vocabulary = sd.defaults.words.split()
rows = torch.stack([vector(word) for word in vocabulary])


def nearest(x, count=4):
    likeness = torch.nn.functional.cosine_similarity(rows, x[None])
    return ", ".join(f"{vocabulary[k]} {likeness[k]:.2f}" for k in likeness.topk(count).indices.tolist())


for word in ("circle", "star", "above", "under", "red"):
    print(f"{word:7}: {nearest(vector(word))}")
print("circles - circle + star:", nearest(vector("circles") - vector("circle") + vector("star")))
plural = torch.cosine_similarity(vector("circle"), vector("circles"), dim=0)
lesson.claim(
    "circle is nearer to circles than to star",
    plural > torch.cosine_similarity(vector("circle"), vector("star"), dim=0),
)

# %% [markdown]
# Words that are **used alike** have moved together: a noun and its plural, "above" and "over". Colours much less: for
# the encoder they are different answers to one question, and it must keep them apart.
#
# ## Mix after the encoder
#
# The other place to cut is after the encoder. The Deep Dive mixes the states of "a mouse" and "a leopard" with the
# shares 0.35 and 0.65. The same here, and all the way from one prompt to the other as a filmstrip:

# %%
first, second = sd.encode_prompt(["a red circle"]), sd.encode_prompt(["a blue star"])
course = 0.35 * first + 0.65 * second
lesson.claim("that is text_vectors.lerp", torch.allclose(course, text_vectors.lerp(first, second, 0.65), atol=1e-5))

shares = [0, 0.2, 0.35, 0.5, 0.65, 0.8, 1]
film = torch.cat([lerp(first, second, w) for w in shares])
strips = [draw(film, dice(seed)) for seed in (1, 2)]
lesson.pictures(
    [image for strip in strips for image in to_pil(strip)],
    alt="Two rows of seven images from a red circle to a blue star; colour and shape change at different shares.",
    title="From prompt to prompt: colour and shape may change at different moments",
    columns=len(shares),
    labels=[f"{w:g}" for w in shares],
    rows=["noise 1", "noise 2"],
)
for strip in strips:
    print(", ".join(named(strip)))

# %% [markdown]
# ## From noise to noise: not straight
#
# A filmstrip can also keep the prompt and walk from one noise to another. The straight way should fail
# here, because it leads through noise that is too quiet:
#
# **Predict, then run**: two noises, each with a deviation of 1. What is the deviation halfway between them?

# %%
a, b = dice(3), dice(4)
for w in (0, 0.25, 0.5, 0.75, 1):
    print(f"weight {w:4}: deviation {float(lerp(a, b, w).std()):.2f}")
print(f"square root of one half: {0.5**0.5:.2f}")
lesson.claim("halfway it is about 0.71", abs(lerp(a, b, 0.5).std() - 0.5**0.5) < 0.05)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The lengths of independent vectors do not add up: the variances of $\tfrac12 a$ and $\tfrac12 b$ are a quarter each,
# together one half. In high dimensions two noises are at right angles, on a sphere around zero. The straight line
# between them cuts through the inside of the sphere, where random noise never is.
#
# </details>
#
# The way along the sphere is *slerp* (Shoemake 1985). With the angle $\theta$ between $a$ and $b$:
#
# $$\text{slerp}(a, b, w) = \frac{\sin((1-w)\,\theta)\;a + \sin(w\,\theta)\;b}{\sin\theta}$$


# %%
def slerp(first, second, weight):
    angle = torch.acos((first * second).sum() / (first.norm() * second.norm()))
    return (torch.sin((1 - weight) * angle) * first + torch.sin(weight * angle) * second) / torch.sin(angle)


ways = torch.linspace(0, 1, 6).tolist()
gap = max(float((slerp(a, b, w) - text_vectors.slerp(a, b, w, dims=(1, 2, 3))).abs().max()) for w in ways)
lesson.claim("our slerp is text_vectors.slerp", gap < 1e-4)
print(f"deviation halfway: {float(slerp(a, b, 0.5).std()):.2f}")

text = sd.encode_prompt(["a green star"])
straight, round_way = (draw(text, torch.cat([way(a, b, w) for w in ways])) for way in (lerp, slerp))
lesson.pictures(
    [*to_pil(straight), *to_pil(round_way)],
    alt="Six images by lerp and six by slerp on the way from one noise to the other, with green stars.",
    title="From noise to noise: the star wanders",
    columns=len(ways),
    labels=[f"{w:.1f}" for w in ways],
    rows=["lerp", "slerp"],
)

# %% [markdown]
# It does not fail: both rows show the same stars. This model forgives a noise that is a little too quiet. How quiet may
# it be? The mean of 4 noises has a deviation of 0.5, the mean of 16 one of 0.25, and so on:

# %%
right_at = {}
for deviation in (1, 0.71, 0.5, 0.25, 0.1):
    images = draw(text, deviation * dice(10, 6))
    right_at[deviation] = sum(check(image, "a green star").exact for image in images)
    print(f"deviation {deviation:4}: {right_at[deviation]} of 6 are a green star")
lesson.claim("proper noise does at least as well as the quietest", right_at[1] >= right_at[0.1])

# %% [markdown]
# Large models are less forgiving: their images from too quiet a noise come out flat, with little detail. Slerp costs
# nothing, so take it.

# %% [markdown]
# ## Red circle - red + blue
#
# Word vectors are said to allow calculations: king - man + woman = queen. Try it after the encoder, with prompts that
# differ in one word. The word "shape" leaves the kind of object open:


# %%
def states_of(text):
    return sd.encode_prompt([text])


answer = states_of("a red circle") - states_of("a red shape") + states_of("a blue shape")
words = slice(0, 5)  # start, three words, end
for colour in ("red", "yellow", "green", "cyan", "blue", "purple", "pink"):
    apart = float((answer - states_of(f"a {colour} circle"))[:, words].norm())
    print(f"from the states of 'a {colour} circle': {apart:4.1f}")

images = draw(answer, dice(5, 6))
right = sum(check(image, "a blue circle").exact for image in images)
print(f"{right} of 6 images are exactly a blue circle")
lesson.pictures(
    to_pil(images),
    alt="Six images drawn from the calculated states, with blue circles in them.",
    title="Red circle - red + blue, drawn from six noises",
    size=1.2,
)
lesson.claim("most are blue circles", right >= 4)

# %% [markdown]
# So the encoder keeps colour and shape apart: the step from red to blue is about the same for every object.
#
# ## What order carries
#
# "a red circle above a blue square" and "a blue square above a red circle" have the same words. The encoder learns
# about their order in two ways: from the places that are added to the vectors, and from the rule that a token sees only
# what comes before it.
#
# **Predict, then run**: if the places are left out, is the order lost?

# %%
long, other = "a red circle above a blue square", "a blue square above a red circle"
noises = dice(7, 8)


def score(states, text):
    """How many of eight images are exactly what the text says."""
    return sum(check(image, text).exact for image in draw(states, noises))


lesson.claim("the two have the same words", sorted(long.split()) == sorted(other.split()))
same = torch.isclose(states_of(long), states_of("a red circle above a blue star"), atol=1e-5).all(dim=2)[0]
print(f"with another last word, the first {int(same.int().cumprod(0).sum())} states stay as they are")
lesson.claim("a state knows only what comes before it", bool(same[:7].all()) and not same[7])

no_places = encoder.transform(table[sd.tokenizer(long)]).detach()
results = {
    "as it is": score(states_of(long), long),
    "the other order": score(states_of(other), long),
    "places left out": score(no_places, long),
}
for name, count in results.items():
    print(f"{name:16}: {count} of 8 show {long!r}")
lesson.claim("the order counts", results["the other order"] < results["as it is"])
lesson.claim("without places it is still read", results["places left out"] == results["as it is"])

# %% [markdown]
# <details><summary>Answer</summary>
#
# Not by the places alone: without them all images are still right. A token sees only the tokens before it, and it can
# count them: so this rule also carries the order, and the places make it easier to read.
#
# </details>
#
# ## What padding carries
#
# The prompt has 9 tokens with start and end; the other 68 rows are padding. The UNet reads them as well, and they are
# not empty: they come after the words, so they have seen all of them.
#
# **Predict, then run**: the words' states with the padding of the empty prompt, and the reverse. Which of the two
# still draws the prompt?

# %%
count = len(long.split()) + 2
empty, full = states_of(""), states_of(long)
words_only, padding_only = full.clone(), empty.clone()
words_only[:, count:] = empty[:, count:]
padding_only[:, count:] = full[:, count:]
print(f"{count} tokens, {77 - count} of padding")
padded = {"all": score(full, long), "words only": score(words_only, long), "padding only": score(padding_only, long)}
for name, right in padded.items():
    print(f"{name:13}: {right} of 8")
lesson.claim("here the words carry the prompt, not the padding", padded["words only"] > padded["padding only"])

# %% [markdown]
# <details><summary>Answer</summary>
#
# The words. But test this again for every model: this one was trained with short texts, so it has had little reason to
# look at the padding. In Stable Diffusion the padding is part of what the UNet was trained with from the start, and
# much of a prompt can be read from there.
#
# </details>

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why is a prompt with an exchanged token vector exactly the other prompt?</summary>
#
# After the table only the vector of a word is left. The encoder has no way to know from which word a vector came.
#
# </details>
#
# <details><summary>Why need a vector between two words not mean an object between two objects?</summary>
#
# The encoder was trained on the vectors of words alone. Whatever it makes of the space between them, no loss ever
# corrected it.
#
# </details>
#
# <details><summary>Why does the straight way between two noises lead through too little noise?</summary>
#
# Two independent noises are nearly at right angles and have the same length. The straight line between them passes
# nearer to zero, so the deviation in its middle is smaller.
#
# </details>
#
# <details><summary>How can a text encoder know the order of words without their places?</summary>
#
# A token sees only the tokens before it. So a word gets another state when other words come before it.
#
# </details>
#
# <details><summary>Why can text states be calculated with, as in red circle - red + blue?</summary>
#
# The encoder keeps colour and shape apart: the step from red to blue is about the same for every object. So the same
# difference can be added to the states of another prompt.
#
# </details>
#
# ## Your turn
#
# [The exercises](../minisd/exercises/README.md) belong to other lessons. Try these experiments in the cells above;
# where a claim becomes false, its cell stops, and that is a finding as well.
#
# - Exchange the vector of "above" for that of "below" in a prompt with two objects, and see whether the objects change
#   places.
# - Calculate with sizes in place of colours, small circle - small shape + large shape, and look how large the circles
#   are.
# - Walk from noise to noise with the prompt of your choice, and look where the image jumps.

# %% [markdown]
# ## Summary
#
# - Words become **token vectors** (a table), then **text states** (the encoder). Both can be changed:
#   `text_vectors.encode_vectors(sd, vectors)`, `sd(prompt_embeds=states)`.
# - An exchanged vector *is* the other word. A mixture of two is an input that the encoder was not trained on.
# - States can be mixed and calculated with: red circle - red + blue draws blue circles.
# - Walk between noises by **slerp**; the straight way leaves the sphere of the noise, and gets too quiet.
# - Order is in the places and in which token may look at which; test what padding carries before you throw it away.
#
# **Code**: [text_vectors.py](../minisd/interpret/text_vectors.py), the encoder in [clip.py](../minisd/models/clip.py),
# `prompt_embeds` in [stable_diffusion.py](../minisd/pipeline/stable_diffusion.py). **Next**: [20 · Guidance by a
# loss](20_loss_guidance.ipynb).
