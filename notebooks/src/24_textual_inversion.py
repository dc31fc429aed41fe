# %% [markdown]
# # 24 · Textual inversion
#
# **You will** teach the model a new word from a few images while all of its weights stay frozen: add one row to the
# table of word vectors, write the loss and the loop that train this row, watch where the vector moves, use the word in
# new prompts, and find out what such a word cannot learn.
#
# **Needs** notebook 10 (tokens), notebook 13 (the loss of a diffusion model), notebook 19 (word vectors).
#
# **Takes** 20 minutes to read, about a minute to run.

# %% [markdown]
# ## Images without a word
#
# We have eight images of an object, and no word for it. The captions call it `<candy>`. They describe everything else
# in the images with words that the model knows. (The object is a pink star. So the model is able to draw it, and the
# exact checker is able to judge it.)

# %%
import json
import tempfile
from copy import deepcopy
from importlib.resources import files
from pathlib import Path

import lesson
import torch
from torch import nn

import weights_loader
from minisd.adapters import add_embeddings
from minisd.images import to_pil
from minisd.pipeline.conditioning import Condition
from minisd.sticker.training.examples import candy_examples
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.palette import COLOURS
from minisd.sticker.world.render import render
from minisd.sticker.world.subject import find_subject, subject_images
from minisd.training.denoising import denoising_losses, encode_images

sd = weights_loader.load("sticker")
encoder, unet, schedule = sd.text_encoder, sd.unet, sd.scheduler.schedule

examples = candy_examples(8)
captions = [caption for _, caption in examples]
pixels = render([scene for scene, _ in examples], size=128)
lesson.pictures(
    to_pil(pixels),
    alt="Eight images, each with a pink star; seven also have another object, and some a black, gray or beige ground.",
    title="The training images",
    columns=4,
    size=1.3,
)
for caption in captions:
    print(caption)

# %% [markdown]
# **Predict, then run**: the tokenizer does not know `<candy>`. What does it make of the word, and what will the model
# draw for "a &lt;candy&gt;"?

# %%
TOKEN = "<candy>"
pieces = sd.tokenizer.encode(TOKEN, padding=False).ids[0, 1:-1]
names = {row: piece for piece, row in sd.tokenizer.vocab.items()}
print("pieces:", *(names[int(piece)] for piece in pieces))


def noises(count, seed=1):
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def draw(states, noise):
    """Text states (one prompt or one for each noise) and noises -> images."""
    states = states.expand(len(noise), -1, -1)
    return sd(prompt_embeds=states, latents=noise, num_inference_steps=10, output_type="pt").images


def exact(images, prompts):
    """How many images show exactly what their prompts say, where <candy> is a pink star."""
    meant = [prompt.replace(f"three {TOKEN}", "three pink stars").replace(TOKEN, "pink star") for prompt in prompts]
    return sum(check(image, text).exact for image, text in zip(images, meant, strict=True))


before = draw(sd.encode_prompt([f"a {TOKEN}"]), noises(6))
known = exact(before, [f"a {TOKEN}"] * 6)
lesson.pictures(
    to_pil(before),
    alt="Six images that the model draws for the unknown word; none is a single pink star.",
    title=lesson.claim(f"An unknown word: {known} of 6 images show one pink star", known <= 1),
    size=1.3,
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The tokenizer breaks the word into pieces, down to single letters. The model has seen none of them in its training, so
# their vectors are still random numbers, and they mean nothing.
#
# </details>
#
# ## One more row
#
# Notebook 19 has shown that after the table nothing knows which word a vector belongs to. So a new word needs a new id
# and one more row in the table. The row must begin somewhere. We begin with a copy of the row of "star", a known word
# that is near to what we mean. All other numbers of the model are frozen.

# %%
encoder.requires_grad_(False)
unet.requires_grad_(False)
sd.vae.requires_grad_(False)
tokenizer = deepcopy(sd.tokenizer)
NEW = tokenizer.add_token(TOKEN)
table, places = encoder.token_embedding.weight, encoder.position_embedding.weight


def row_of(word):
    """The row of a known word."""
    return table[sd.tokenizer(word)[0, 1]]


def encode(ids, vector):
    """Ids (B, 77) -> text states; the new id has `vector` as its row, the others have theirs."""
    is_new = ids == NEW
    rows = torch.where(is_new[..., None], vector, table[ids.where(~is_new, 0)])
    return encoder.transform(rows + places)


vector = nn.Parameter(row_of("star").clone())
frozen = sum(p.numel() for part in (unet, encoder, sd.vae) for p in part.parameters())
print(f"{TOKEN} is id {NEW}; trained: {vector.numel()} numbers; frozen: {frozen:,} numbers")

prompt = f"a {TOKEN} above a blue square"
ours = encode(tokenizer(prompt), vector)
lesson.claim("at first the word means 'star'", torch.equal(ours, sd.encode_prompt(["a star above a blue square"])))

theirs = deepcopy(sd.text_parts[0])
add_embeddings({TOKEN: [(theirs, vector.detach()[None])]})
lesson.claim(
    "our states are those of the library, which adds a row to the table",
    torch.allclose(ours, theirs.encoder(theirs.tokenizer(prompt)), atol=1e-5),
)

# %% [markdown]
# ## The loss is that of the training
#
# The loss is that of notebook 13: mix the latents with noise, let the UNet predict $v$, take the square error. Only the
# sought quantity is another one. There the UNet was trained, for all captions. Here the vector $w$ is trained, for a
# few images (Gal et al. 2022):
#
# $$w^* = \arg\min_w\ \mathbb E_{x_0,\,\epsilon,\,t}\,\left\| \text{unet}(x_t, t, \text{states}(w)) - v \right\|^2$$
#
# The gradient passes through the UNet and through the text encoder, and changes neither.

# %%
BATCH = 8
x0, ids = encode_images(sd, pixels), tokenizer(captions)


def inversion_loss(vector, x0, ids, generator):
    """The loss on a random batch of images."""
    chosen = torch.randint(len(x0), (BATCH,), generator=generator)
    t = torch.randint(1000, (BATCH,), generator=generator)
    noise = torch.randn(x0[chosen].shape, generator=generator)
    alpha_bar = schedule.alpha_bars[t].float()[:, None, None, None]
    noisy = alpha_bar.sqrt() * x0[chosen] + (1 - alpha_bar).sqrt() * noise
    v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0[chosen]
    return (unet(noisy, t, encode(ids[chosen], vector)) - v).square().mean()


first = inversion_loss(vector, x0, ids, torch.Generator().manual_seed(0))
(gradient,) = torch.autograd.grad(first, vector)

dice = torch.Generator().manual_seed(0)
chosen = torch.randint(len(x0), (BATCH,), generator=dice)
with torch.no_grad():
    states = Condition(encode(ids[chosen], vector))
    theirs = denoising_losses(schedule, unet, x0[chosen], states, dice).mean()
print(f"loss of the first batch: {float(first.detach()):.4f}")
lesson.claim("the loss is the library's", torch.allclose(first.detach(), theirs, rtol=1e-4))

# %% [markdown]
# The training code of the courses does not have a separate vector. It trains the **whole table**, and after each
# backward pass it sets the gradients of all rows but the new one to zero.
#
# **Predict, then run**: how many rows of the table have a gradient before that? And is the gradient of the new row the
# same as ours?

# %%
whole = torch.cat([table, vector.detach()[None]]).requires_grad_()


def loss_of_table(whole, generator):
    """The same loss, with the whole table as the input."""
    chosen = torch.randint(len(x0), (BATCH,), generator=generator)
    states = Condition(encoder.transform(whole[ids[chosen]] + places))
    return denoising_losses(schedule, unet, x0[chosen], states, generator).mean()


lesson.claim("the new row is the last one", len(table) == NEW)
(of_all,) = torch.autograd.grad(loss_of_table(whole, torch.Generator().manual_seed(0)), whole)
used = int((of_all.norm(dim=1) > 0).sum())
print(f"rows with a gradient: {used} of {len(whole)}")
lesson.claim("the gradient of the new row is ours", torch.allclose(of_all[NEW], gradient, rtol=1e-2, atol=1e-6))

# %% [markdown]
# <details><summary>Answer</summary>
#
# Every row that a caption of the batch uses has a gradient: the words beside `<candy>`, the start token, and the end
# token, which is also the padding. Without the zeros the training would change the meaning of "above" and "blue", too.
# There is one more trap: AdamW's weight decay makes rows smaller even where the gradient is zero. With a separate
# vector neither can happen.
#
# </details>
#
# ## The loop
#
# Only 128 numbers are trained, so the steps may be large: the learning rate is more than ten times that of notebook 13.
# It rises over the first steps, and falls to zero at the end. The vectors on the way are kept, to look at them
# afterwards.

# %%
STEPS, RATE = 80, 0.06


def invert(x0, ids, start, steps=STEPS):
    """Train a vector from `start`; returns the vectors before and after each step, and the losses."""
    vector = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([vector], lr=RATE, betas=(0.9, 0.99), weight_decay=0)
    generator = torch.Generator().manual_seed(0)
    path, losses = [start.clone()], []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 5, (1 - step / steps) / 0.4)
        loss = inversion_loss(vector, x0, ids, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        path.append(vector.detach().clone())
        losses.append(loss.item())
    return torch.stack(path), losses


weights_before = [p.clone() for p in (*unet.parameters(), *encoder.parameters())]
path, losses = invert(x0, ids, row_of("star"))
lesson.claim(
    "no number of the UNet and of the text encoder has changed",
    all(map(torch.equal, weights_before, (*unet.parameters(), *encoder.parameters()))),
)

# %% [markdown]
# The loss of a step depends mostly on the timesteps and the noise that were drawn, so its curve hides what is learnt. A
# fair comparison has the same noise and the same timesteps for all vectors:

# %%
EXAM = torch.linspace(400, 999, 24).long()


@torch.no_grad()
def exam(x0, states):
    """The loss for fixed noise, at the timesteps that decide what is drawn; one prompt for each image."""
    which = torch.arange(len(EXAM)) % len(x0)
    noise = torch.randn(len(EXAM), *x0.shape[1:], generator=torch.Generator().manual_seed(7))
    prediction = unet(schedule.add_noise(x0[which], noise, EXAM), EXAM, states[which])
    return float((prediction - schedule.velocity(x0[which], noise, EXAM)).square().mean())


looks = [0, 10, 20, 40, STEPS]
with torch.no_grad():
    marks = [exam(x0, encode(ids, path[k])) for k in looks]
marks_of_words = exam(x0, sd.encode_prompt([caption.replace(TOKEN, "pink star") for caption in captions]))

figure, (left, right) = lesson.axes(1, 2, width=3.8, height=2.7)
left.plot(losses, linewidth=0.8)
left.set(xlabel="step", ylabel="loss", ylim=(0, None), title="Each batch: mostly chance")
right.plot(looks, marks, marker="o", label=TOKEN)
right.axhline(marks_of_words, color=lesson.COLOURS[1], linestyle="--", label='"pink star"')
right.set(xlabel="step", ylabel="loss, fixed noise", title="Fixed noise: it falls")
right.legend()
lesson.show(
    figure,
    alt="Left, the losses of the batches jump. Right, the loss for fixed noise falls to a dashed line and below it.",
)
print(f"loss for fixed noise: {marks[0]:.4f} as 'star', {marks[-1]:.4f} trained, {marks_of_words:.4f} with 'pink star'")
lesson.claim(
    "it falls at least half of the way to the loss with 'pink star'",
    marks[0] - marks[-1] > 0.5 * (marks[0] - marks_of_words),
)

# %% [markdown]
# At the end the loss is lower than with the words "pink star". The vector has also learnt what is special to these
# eight images.
#
# **Predict, then run**: below, two prompts with the vector as it was after more and more steps, from the same noise. At
# the left end `<candy>` still means "star". What happens on the way?

# %%
watched = [f"a {TOKEN}", prompt]
rows = []
for text, noise in zip(watched, noises(2, seed=4).split(1), strict=True):
    with torch.no_grad():
        states = torch.cat([encode(tokenizer(text), path[k]) for k in looks])
    rows += to_pil(draw(states, noise.expand(len(looks), -1, -1, -1)))
lesson.pictures(
    rows,
    alt="Two rows of five images by training step: a star becomes pink; in the second row the blue square stays.",
    title="The same noise, after more and more steps",
    columns=len(looks),
    labels=[f"{k} steps" for k in looks],
    rows=["alone", "above a\nblue square"],
    size=1.3,
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# First the colour changes: the star becomes pink. It stays a star, because the vector began as one. Size and place
# change as well, because every number of the states changes with the vector. The blue square stays a blue square: its
# words have kept their rows.
#
# </details>
#
# ## Where the vector moves
#
# The vector begins at "star". We compare its direction with the rows of all words that the model knows, after each
# step:

# %%
vocabulary = sd.defaults.words.split()
rows = torch.stack([row_of(word) for word in vocabulary])
likeness = torch.cosine_similarity(path[:, None], rows[None], dim=2)
nearest = [vocabulary[k] for k in likeness[-1].topk(4).indices.tolist()]
lengths = path.norm(dim=1)
usual = float(rows.norm(dim=1).mean())

figure, (left, right) = lesson.axes(1, 2, width=3.8, height=2.7)
for word in ("star", "pink", "red", "circle"):
    left.plot(likeness[:, vocabulary.index(word)], label=word)
left.set(xlabel="step", ylabel="cosine to the row of", title="Its direction")
left.legend()
right.plot(lengths, label=TOKEN)
right.axhline(usual, color=lesson.COLOURS[1], linestyle="--", label="words, mean")
right.set(xlabel="step", ylabel="length", ylim=(0, None), title="Its length")
right.legend()
lesson.show(
    figure,
    alt="Left, the cosine to star falls from 1 while that to pink rises. Right, the length grows beyond that of words.",
)
print("nearest words at the end:", ", ".join(f"{word} {likeness[-1, vocabulary.index(word)]:.2f}" for word in nearest))
print(f"length: {lengths[0]:.1f} at first, {lengths[-1]:.1f} at the end; of a word {usual:.1f}")
lesson.claim("the nearest words are 'star' and 'pink'", set(nearest[:2]) == {"star", "pink"})
lesson.claim("and it is longer than a word", lengths[-1] > 1.5 * usual)

# %% [markdown]
# Nobody has told the vector that "pink" exists. It has moved towards the row of "pink" because that direction makes the
# predictions better. But most of the vector is in directions that no word has. This is usual: the embedding
# `<birb-style>`, which the fast.ai course uses, has a length of 3.01, and ordinary rows of CLIP are far shorter.
#
# ## The word in new prompts
#
# The word was trained in eight captions. Here are twelve other prompts: other objects beside it, sizes, places, three
# of it.

# %%
prompts = [
    f"a {TOKEN} above a blue square",
    f"a red circle to the left of a {TOKEN}",
    f"a green heart above a {TOKEN}",
    f"a {TOKEN} right of a cyan cross",
    f"a purple ring below a {TOKEN}",
    f"a yellow square left of a {TOKEN}",
    f"a small {TOKEN}",
    f"a large {TOKEN}",
    f"a {TOKEN} in the top left",
    f"a {TOKEN} on a black background",
    f"three {TOKEN}",
    f"a {TOKEN}",
]
wording = [each.replace(f"three {TOKEN}", "three pink stars").replace(TOKEN, "pink star") for each in prompts]
with torch.no_grad():
    ours = draw(encode(tokenizer(prompts), path[-1]), noises(12, seed=3))
in_words = draw(sd.encode_prompt(wording), noises(12, seed=3))
right, possible = exact(ours, prompts), exact(in_words, prompts)
for number, (text, image) in enumerate(zip(prompts, ours, strict=True), 1):
    print(f"{number:2}: {text:38}", "exact" if exact([image], [text]) else "not exact")
lesson.pictures(
    to_pil(ours),
    alt="Twelve images for twelve prompts with the new word: pink stars beside other objects, or small, large, three.",
    title=lesson.claim(f"{right} of 12 images are exact; with the words 'pink star' {possible}", right >= 6),
    columns=6,
    labels=[str(number) for number in range(1, 13)],
    size=1.3,
)

# %% [markdown]
# The model is shipped with a word that was trained longer, on more images. It was measured with other prompts of two
# objects (by `minisd eval --tasks`), with these results:

# %%
measured = json.loads((files("minisd") / "assets/sticker/tasks.json").read_text())["adapters"]
for name in (TOKEN, "pink star"):
    rate = measured[name]
    print(
        f"{name:9}: {rate['rate']:.1%} of {rate['count']} images exact (95 %: {rate['low']:.1%} to {rate['high']:.1%})"
    )

# %% [markdown]
# ## What it cannot learn
#
# Now the same loop for another object: a green crescent. The model knows the colour, but no image of its training had
# this shape. The captions give the colour, "a green &lt;candy&gt;", so the word has to learn the shape alone.
#
# **Predict, then run**: what will the model draw after such a training?

# %%
green = COLOURS["green"]
crescents = subject_images(128, green)
called = [f"a green {TOKEN}"] * len(crescents)
far = encode_images(sd, crescents)
far_ids = tokenizer(called)
far_path, _ = invert(far, far_ids, row_of("shape"), steps=40)
with torch.no_grad():
    after = draw(encode(far_ids[:1], far_path[-1]), noises(6, seed=5))
    far_marks = [exam(far, encode(far_ids, far_path[k])) for k in (0, -1)]
found = [find_subject(image, green) is not None for image in after]
lesson.pictures(
    [*to_pil(crescents), *to_pil(after[:5])],
    alt="Above five images of a green crescent; below five objects, mostly green, that mix parts of known shapes.",
    title=lesson.claim(f"A green crescent is in {sum(found)} of {len(found)} images", sum(found) == 0),
    columns=5,
    rows=["to be\nlearnt", "drawn"],
    size=1.3,
)
print(f"loss for fixed noise: {far_marks[0]:.4f} as 'shape', {far_marks[1]:.4f} trained")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Green shapes, but no crescent: most are mixtures of the shapes that the model knows, joined in one object. The loss
# falls a little, because such a mixture is nearer to a crescent than a random shape is. But the UNet has never drawn a
# crescent, so no vector can ask for one. The vector can only select among what the UNet draws.
#
# </details>
#
# Textual inversion finds a name for something that the model can already draw. An object that the UNet has never drawn
# needs a change of the UNet. That is notebook 25.
#
# ## A file of one vector
#
# Everything that was learnt is one row, so the file is small, and everybody who has the model can use it:

# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "candy.safetensors"
    weights_loader.save_embedding(TOKEN, path[-1:], file)
    fresh = weights_loader.load("sticker")
    words = weights_loader.load_embedding(fresh, file)
    print(f"{file.name}: {file.stat().st_size} bytes; new words: {', '.join(words)}")
again = fresh(prompt, latents=noises(12, seed=3)[:1], num_inference_steps=10, output_type="pt").images
lesson.claim("a fresh model with the file draws our image", torch.allclose(again, ours[:1], atol=1e-3))

# %% [markdown]
# ## With official weights
#
# The same on Stable Diffusion 1.5, with a folder of photos and their captions, each with the new word:
#
# ```console
# $ minisd train embedding runs/toy --pictures photos --token "<toy>" --like teddy --start-from sd15 --steps 3000
# ```
#
# The settings of the published notebooks, for comparison. **None of this was measured here**; the times are from the
# literature:

# %%
settings = {
    "here": f"{STEPS} steps of {BATCH}, rate {RATE}, {vector.numel()} numbers",
    "fast.ai course": "3000 steps of 1 x 4 accumulated, rate 2e-3 (5e-4 x 4), 768 numbers, 512 x 512 pixels, seed 42",
    "diffusers script": "5000 steps, rate 1e-4",
    "time": "about 1 hour on a V100",
    "file": "3,819 bytes for <birb-style>, whose vector has the length 3.01",
}
for name, value in settings.items():
    print(f"{name:17} {value}")

# %% [markdown]
# There the captions come from templates, such as "a photo of a {}" and "a rendering of a {}", one of them at random for
# each step. The word must not be tied to one sentence.

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Which numbers does textual inversion train, and through what does their gradient pass?</summary>
#
# One row of the table of word vectors (or a few rows). The gradient passes from the loss through the UNet and the text
# encoder, which stay as they are.
#
# </details>
#
# <details><summary>Why must the gradients of all other rows be set to zero if the whole table is trained?</summary>
#
# The captions contain known words, too, and their rows get gradients. Otherwise the training on a few images would
# change what these words mean in every prompt.
#
# </details>
#
# <details><summary>Why does the curve of the training loss say so little?</summary>
#
# The loss of a batch depends mostly on its timesteps and noise. The word changes it only a little. With fixed noise and
# timesteps the difference shows.
#
# </details>
#
# <details><summary>Why does the vector become longer than that of a word?</summary>
#
# Nothing keeps it among the words. The loss only asks for good predictions, and the vector may use directions and
# lengths that no word has.
#
# </details>
#
# <details><summary>What can a new word not teach the model?</summary>
#
# What the UNet cannot draw. The word only selects among the images that the frozen UNet can make; a new colour or a new
# shape needs a change of the UNet.
#
# </details>
#
# ## Your turn
#
# [The exercises](../minisd/exercises/README.md) belong to other lessons. Try these experiments in the cells above;
# where a claim becomes false, its cell stops, and that is a finding as well.
#
# - Begin with `row_of("circle")` in place of `row_of("star")`, and count the exact images again.
# - Do not train at all: use `row_of("star") + row_of("pink")` in place of `path[-1]`.
# - Train with the first three images alone: `invert(x0[:3], ids[:3], row_of("star"))`.

# %% [markdown]
# ## Summary
#
# - A new word is a new id and one more row in the table. The row begins as the copy of a known word.
# - The loss is that of the training. Only the row is trained; UNet and text encoder stay frozen.
# - The vector moves towards the words that describe the object, and becomes longer than a word.
# - The word works in prompts that it was not trained in, and it is a file of some hundred bytes.
# - It cannot teach what the UNet cannot draw.
#
# **Code**: `train_embedding` in [textual_inversion.py](../minisd/training/textual_inversion.py), `add_embeddings` in
# [textual_inversion.py](../minisd/adapters/textual_inversion.py). **Next**: [25 · DreamBooth and
# LoRA](25_dreambooth_and_lora.ipynb).
