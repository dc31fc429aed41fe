# %% [markdown]
# # 25 · DreamBooth and LoRA
#
# **You will** teach the model an object that it cannot draw, with five images: draw and keep images of its class, write
# the loss with prior preservation, train the UNet without it and with it, and see what is forgotten; then build LoRA by
# hand, a change of the UNet that fits into a small file and has a strength.
#
# **Needs** notebook 03 (attention), notebook 13 (the loss of a diffusion model), notebook 24 (textual inversion).
#
# **Takes** 25 minutes to read, about a minute and a half to run.

# %% [markdown]
# ## Step 1: the images, a rare word and a class
#
# Notebook 24 has ended with a crescent, which no word vector can make the frozen UNet draw. DreamBooth (Ruiz et
# al. 2022) trains the UNet itself. We follow the notebook of Hugging Face's DreamBooth hackathon step by step: images,
# settings, loop, gallery. That notebook only describes prior preservation. Here it is built.
#
# The hackathon takes 10 to 20 photos of one dog and calls each of them "a photo of ccorgi dog": a rare word, and the
# class. Here five drawings are "a sks shape". The word is rare, so it means nothing yet. The class is known, so the
# model need not learn everything anew.

# %%
import tempfile
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from statistics import mean

import lesson
import torch
from PIL import Image
from torch import nn

import weights_loader
from minisd.adapters import Lora, LowRank
from minisd.adapters.lora import by_layer
from minisd.images import from_pil, save, to_pil
from minisd.models.layers import Attention
from minisd.pipeline import StableDiffusion
from minisd.pipeline.conditioning import Condition
from minisd.sticker.training.examples import night_examples
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.palette import COLOURS
from minisd.sticker.world.render import render
from minisd.sticker.world.subject import BROWN, contexts, find_subject, shows_context, subject_images
from minisd.training.captioned_images import CaptionedImages
from minisd.training.denoising import denoising_losses, encode_images
from minisd.training.fine_tuning import Settings
from minisd.training.full_fine_tuning import train_full
from minisd.training.trainer import Recipe, TrainingBudget, TrainingRun, train

sd = weights_loader.load("sticker")
schedule, GREEN = sd.scheduler.schedule, COLOURS["green"]
for part in (sd.vae, sd.text_encoder, sd.unet):
    part.requires_grad_(False)
SUBJECT, CLASS = "a sks shape", "a shape"

pixels = subject_images(128, GREEN)
again, brown = sd.decode(encode_images(sd, pixels)), sd.decode(encode_images(sd, subject_images(128, BROWN)))
kept = {"green": sum(find_subject(image, GREEN) is not None for image in again)}
kept["brown"] = sum(find_subject(image, BROWN) is not None for image in brown)
lesson.pictures(
    [*to_pil(pixels), *to_pil(again), *to_pil(brown)],
    alt="Five green crescents; the same after the autoencoder; below, brown ones after it, which are red and purple.",
    title=lesson.claim(
        f"After the autoencoder {kept['green']} of 5 green crescents are left, {kept['brown']} of 5 brown ones",
        kept["green"] == 5 and kept["brown"] == 0,
    ),
    columns=5,
    rows=["images", "encoded,\ndecoded", "brown ones,\nthe same"],
)

# %% [markdown]
# Look at what the autoencoder makes of your images **before** you train: DreamBooth changes the UNet, not the
# autoencoder. This one was trained on eight colours. Brown is none of them, so it cannot be taught, and the crescents
# are green. What is new is the shape.
#
# **Predict, then run**: what does the model draw for "a sks shape" before any training?


# %%
def noises(count, seed):
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def model_with(unet):
    """The pipeline with another UNet."""
    return StableDiffusion(sd.tokenizer, sd.text_encoder, sd.vae, unet, sd.scheduler)


def draw(unet, prompts, noise):
    """An image (3, 128, 128) for each prompt and noise."""
    states = sd.encode_prompt(list(prompts))
    options = {"num_inference_steps": 10, "output_type": "pt"}
    return model_with(unet)(prompt_embeds=states, latents=noise, **options).images


before = draw(sd.unet, [SUBJECT] * 6, noises(6, seed=1))
so_far = sum(find_subject(image, GREEN) is not None for image in before)
lesson.pictures(
    to_pil(before),
    alt="Six images that the model draws for the rare word before the training; none is a green crescent.",
    title=lesson.claim(f"Before the training: {so_far} of 6 images show a green crescent", so_far == 0),
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Other shapes, or nothing. The rare word is three pieces for the tokenizer, which the model has never seen. It is an
# empty name.
#
# </details>
#
# ## Step 2: images of the class, drawn once
#
# If a model is trained on five images alone, nothing tells it what it should keep. So the frozen model draws images of
# the class first, "a shape". They will be trained beside the five. They are kept in a folder, because drawing them
# costs time: what is there is not drawn again.


# %%
def class_images(folder, count):
    """Images of the class, drawn by the model as it is, and how many had to be drawn."""
    files = [folder / f"{k:02d}.png" for k in range(count)]
    missing = [file for file in files if not file.exists()]
    if missing:
        noise = torch.cat([noises(1, seed=1000 + int(file.stem)) for file in missing])
        for image, file in zip(to_pil(draw(sd.unet, [CLASS] * len(missing), noise)), missing, strict=True):
            save(image, file)
    return torch.cat([from_pil(Image.open(file)) for file in files]), len(missing)


folder = tempfile.TemporaryDirectory()
class_pixels, drawn = class_images(Path(folder.name), 24)
_, drawn_again = class_images(Path(folder.name), 24)
lesson.claim("24 images are drawn, and none at the second call", (drawn, drawn_again) == (24, 0))
good = [check(image, CLASS).exact for image in class_pixels]
lesson.pictures(
    to_pil(class_pixels),
    alt="Twenty-four images of the class: single shapes of several kinds and colours; some images are blank.",
    title=lesson.claim(f"{sum(good)} of {len(good)} images of the class show one known shape", sum(good) >= 8),
    columns=12,
    size=0.8,
)
class_pixels = class_pixels[good]

# %% [markdown]
# Look at these images, too. For so short a prompt this small model leaves some images blank, and such an image would
# teach that "a shape" is nothing. Only the images that show a known shape are kept.

# %% [markdown]
# ## Step 3: the settings
#
# The settings of the hackathon have the same names here. The numbers differ, because this UNet is much smaller and
# learns from larger steps:

# %%
STEPS, BATCH, RATE = 120, 4, 1e-3
PRIOR_WEIGHT, LARGEST_GRADIENT, LEFT_OUT = 1.0, 1.0, 0.0
hackathon = {
    "learning rate": ("2e-6", RATE),
    "steps": ("400", STEPS),
    "batch": ("1", f"{BATCH}, and {BATCH} of the class"),
    "largest gradient": ("1.0", LARGEST_GRADIENT),
    "gradient checkpointing": ("yes", "no, the model is small"),
    "optimiser": ("8-bit Adam", "AdamW"),
    "what is trained": ("the UNet", "the UNet"),
    "prior weight": ("only described", PRIOR_WEIGHT),
    "captions left out": ("none", LEFT_OUT),
    "seed": ("3434554", 0),
}
print(f"{'':24}{'hackathon':16} here")
for name, (theirs, ours) in hackathon.items():
    print(f"{name:24}{theirs:16} {ours}")

# %% [markdown]
# ## Step 4: the loss, with prior preservation
#
# The loss of notebook 13 on images of the subject, plus $\lambda$ times the same loss on images of the class:
#
# $$L = \mathbb E\,\left\|\text{unet}(x_t, t, \text{"a sks shape"}) - v\right\|^2
# + \lambda\;\mathbb E\,\left\|\text{unet}(x'_t, t, \text{"a shape"}) - v'\right\|^2$$
#
# The class images were drawn by the model as it was. So the second term says: for "a shape", keep drawing what you
# drew.

# %%
NO_CAPTION = sd.encode_prompt([""])


def encoded(pixels, captions):
    """A set of images: latents, and text states of the captions."""
    return encode_images(sd, pixels), sd.encode_prompt(captions)


def pick(images, generator):
    """Random images of a set; some captions may be left out."""
    latents, states = images
    chosen = torch.randint(len(latents), (BATCH,), generator=generator)
    left_out = torch.rand(BATCH, generator=generator) < LEFT_OUT
    return latents[chosen], torch.where(left_out[:, None, None], NO_CAPTION, states[chosen])


def training_loss(unet, generator, subject, others=None):
    """The loss on a batch of the subject, plus that on a batch of the class, if there is one."""
    batches = [pick(images, generator) for images in (subject, others) if images is not None]
    x0, states = (torch.cat(parts) for parts in zip(*batches, strict=True))
    t = torch.randint(1000, (len(x0),), generator=generator)
    noise = torch.randn(x0.shape, generator=generator)
    alpha_bar = schedule.alpha_bars[t].float()[:, None, None, None]
    noisy = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
    v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0
    errors = (unet(noisy, t, states) - v).square().mean((1, 2, 3))
    if others is None:
        return errors.mean()
    return errors[:BATCH].mean() + PRIOR_WEIGHT * errors[BATCH:].mean()


subject_set = encoded(pixels, [SUBJECT] * len(pixels))
class_set = encoded(class_pixels, [CLASS] * len(class_pixels))

# %% [markdown]
# Is it the library's? We compare the loss of one batch. And then the whole: the library's trainer makes two steps with
# our loss, and `train_full`, which `minisd train dreambooth` calls, makes its own two steps.

# %%
dice = torch.Generator().manual_seed(0)
(x0, states), (x0_class, states_class) = pick(subject_set, dice), pick(class_set, dice)
both = Condition(torch.cat([states, states_class]))
with torch.no_grad():
    errors = denoising_losses(schedule, sd.unet, torch.cat([x0, x0_class]), both, dice)
    ours = training_loss(sd.unet, torch.Generator().manual_seed(0), subject_set, class_set)
print(f"subject {float(errors[:BATCH].mean()):.4f} + class {float(errors[BATCH:].mean()):.4f} = {float(ours):.4f}")
lesson.claim(
    "the loss is the library's", torch.allclose(errors[:BATCH].mean() + errors[BATCH:].mean(), ours, rtol=1e-4)
)

two = TrainingBudget(minutes=0, steps=2)
recipe = Recipe(learning_rate=RATE, warmup_steps=20, decay_fraction=0.0, ema_decay=0.0)
with tempfile.TemporaryDirectory() as runs:
    ours = deepcopy(sd.unet).requires_grad_(True)

    def loss(generator, progress):
        return training_loss(ours, generator, subject_set, class_set)

    train(ours, loss, recipe, TrainingRun(Path(runs) / "a.pt", two))
    theirs = train_full(
        model_with(deepcopy(sd.unet)),
        CaptionedImages(pixels, [SUBJECT] * len(pixels)),
        TrainingRun(Path(runs) / "b.pt", two),
        Settings(learning_rate=RATE, batch=BATCH, prior_weight=PRIOR_WEIGHT, empty_prompts=LEFT_OUT),
        CaptionedImages(class_pixels, [CLASS] * len(class_pixels)),
    ).unet
ours, theirs, start = (
    torch.cat([weight.detach().flatten() for weight in unet.parameters()]) for unet in (ours, theirs, sd.unet)
)
change, gap = float((ours - start).abs().mean()), float((ours - theirs).abs().mean())
print(f"after two steps: mean change of a weight {change:.1e}, mean difference of the two {gap:.1e}")
lesson.claim("two steps with our loss give the weights of the library's DreamBooth", gap < 0.02 * change)

# %% [markdown]
# ## Step 5: the loop
#
# AdamW, as always. The gradients are clipped, and the rate rises at the beginning and falls at the end. We train two
# copies of the UNet: one on the five images alone, and one with the class beside them. The first gets half of the
# steps, which is more than enough to see what it forgets.


# %%
def fit(unet, parameters, rate, steps, *sets):
    """Train some parameters of a UNet on one or two sets of images; returns the loss of each step."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    generator, losses = torch.Generator().manual_seed(0), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 5, (1 - step / steps) / 0.4)
        loss = training_loss(unet, generator, *sets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
        optimizer.step()
        losses.append(loss.item())
    unet.requires_grad_(False)
    return losses


trained = {"before": sd.unet}
for name, steps, sets in (
    ("alone", STEPS // 2, [subject_set]),
    ("with the class", STEPS, [subject_set, class_set]),
):
    trained[name] = deepcopy(sd.unet).requires_grad_(True)
    losses = fit(trained[name], list(trained[name].parameters()), RATE, steps, *sets)
    print(
        f"{name:15} mean loss of the first ten steps {mean(losses[:10]):.3f}, of the last ten {mean(losses[-10:]):.3f}"
    )

# %% [markdown]
# ## Step 6: what was learnt, and what was forgotten
#
# **Predict, then run**: each of the three UNets draws "a sks shape", "a shape", and prompts with words that it knew.
# What will the UNet that was trained on the five images alone draw for "a shape", and what for "a red circle"?

# %%
known = ["a red circle", "a blue square", "a pink heart", "an orange triangle", "a purple cross", "a cyan diamond"]
prompts = [SUBJECT] * 6 + [CLASS] * 6 + known
scores, rows = {}, []
for name, unet in trained.items():
    images = draw(unet, prompts, noises(len(prompts), seed=2))
    scores[name] = {
        "green crescents for 'a sks shape'": sum(find_subject(image, GREEN) is not None for image in images[:6]),
        "known shapes for 'a shape'": sum(check(image, CLASS).exact for image in images[6:12]),
        "exact for known words": sum(check(i, text).exact for i, text in zip(images[12:], known, strict=True)),
    }
    rows += [to_pil(images)[k] for k in (0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15)]
lesson.pictures(
    rows,
    alt="Three rows: before, trained alone, trained with the class; images of the subject, the class and known words.",
    title="Four times 'a sks shape', four times 'a shape', and four prompts of known words",
    columns=12,
    labels=["sks"] * 4 + ["class"] * 4 + ["red\ncircle", "blue\nsquare", "pink\nheart", "orange\ntriangle"],
    rows=["before", "alone", "with the\nclass"],
    size=0.8,
)
for what in scores["before"]:
    print(f"{what:34}", ", ".join(f"{name} {score[what]} of 6" for name, score in scores.items()))
subject, shapes, words = ({name: score[what] for name, score in scores.items()} for what in scores["before"])
kept = {name: shapes[name] + words[name] for name in scores}
lesson.claim("with the class beside, the subject is learnt", subject["with the class"] >= 2 > subject["before"])
lesson.claim("alone, most of what it knew is forgotten", 2 * kept["alone"] < kept["before"])
lesson.claim("with the class beside, more is kept than alone", kept["with the class"] > kept["alone"])

# %% [markdown]
# <details><summary>Answer</summary>
#
# Green crescents for "a shape", too: five images were all that counted, and the rare word makes hardly a difference.
# With the class beside, "a shape" gives the shapes of before, and the crescent needs its word. But prior preservation
# protects what its images show, and not more: other words, such as "a red circle" and "a blue square", are damaged in
# both UNets.
#
# </details>
#
# ## Step 7: the gallery
#
# The hackathon ends with its dog in new places, such as "a photo of ccorgi dog in the Acropolis". Here the crescent is
# beside other objects and on other grounds. The checker says whether the crescent is there, and whether everything is
# as the prompt says.

# %%
wanted = contexts()[2::4]
images = draw(trained["with the class"], [each.prompt for each in wanted], noises(len(wanted), seed=3))
there = [find_subject(image, GREEN) is not None for image in images]
whole = [shows_context(image, each, GREEN) for image, each in zip(images, wanted, strict=True)]
for number, (each, subject, everything) in enumerate(zip(wanted, there, whole, strict=True), 1):
    print(f"{number:2}: {each.prompt:44}", "all right" if everything else "the crescent" if subject else "no crescent")
lesson.pictures(
    to_pil(images),
    alt="Twelve images for the prompts above, most with a green crescent or with green shapes that are like it.",
    title=f"The crescent is in {sum(there)} of {len(there)} images, everything is right in {sum(whole)}",
    columns=6,
    labels=[str(k + 1) for k in range(len(images))],
)

# %% [markdown]
# In its images the crescent was always alone, on white. So other objects become green or like a crescent, and in most
# images something is wrong. **A minute does not teach more than this.** The hackathon takes smaller steps, 400 at
# a rate of 2e-6, and its model has seen far more of the world. What helps are images of the crescent beside other
# objects, with captions that say so, and images of the class that show all kinds of scenes:
# [fine-tuning](../minisd/training/README.md#fine-tuning) measures it.
#
# ## LoRA: a small change
#
# What has the training changed? All weights of the UNet, so DreamBooth's result is a whole model, with
# official weights a file of gigabytes. LoRA (Hu et al. 2021) trains less. The weight $W$ of a layer stays frozen, and a
# product of two thin matrices is added:
#
# $$W' = W + s\,B A, \qquad A: r \times \text{in}, \quad B: \text{out} \times r$$
#
# $BA$ has the shape of $W$, but its rank is at most $r$. $A$ begins random and $B$ at zero, so at first nothing
# changes. $s$ is the strength. We put such a change around the four linear layers of each attention: queries, keys,
# values and output.

# %%
RANK = 8


class WithLora(nn.Module):
    """A frozen linear layer plus a change of low rank."""

    def __init__(self, layer, rank, scale=1.0):
        super().__init__()
        self.layer, self.scale = layer, scale
        self.A = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x):
        return self.layer(x) + self.scale * (x @ self.A.T) @ self.B.T


def add_lora(unet, rank):
    """Wrap queries, keys, values and output of each attention of a UNet; returns the wrappers by name."""
    torch.manual_seed(0)
    wrappers = {}
    for name, block in [each for each in unet.named_modules() if isinstance(each[1], Attention)]:
        for part in ("q", "k", "v", "out"):
            wrappers[f"{name}.{part}"] = WithLora(getattr(block, part), rank)
            setattr(block, part, wrappers[f"{name}.{part}"])
    return wrappers


wrapped = deepcopy(sd.unet)
wrappers = add_lora(wrapped, RANK)
small = [parameter for each in wrappers.values() for parameter in (each.A, each.B)]
t, text = torch.tensor([500]), sd.encode_prompt([SUBJECT])
with torch.no_grad():
    same = torch.equal(wrapped(noises(1, 1), t, text), sd.unet(noises(1, 1), t, text))
lesson.claim("at first nothing changes", same)
count, whole = sum(p.numel() for p in small), sum(p.numel() for p in sd.unet.parameters())
print(f"{len(wrappers)} layers; {count:,} numbers are trained, {count / whole:.1%} of the UNet's {whole:,}")

# %% [markdown]
# A LoRA can learn a subject, and a style as well. We teach it the night: images of single objects on black, under a
# moon. The captions mention neither. The loop is the same; only the list of parameters is another one. A LoRA takes a
# higher learning rate.

# %%
night = night_examples(16)
night_pixels = render([scene for scene, _ in night], size=128)
lesson.pictures(
    to_pil(night_pixels[:8]),
    alt="Eight images of single objects on black, each with a small yellow circle at the top right.",
    title="The images of the night",
    labels=[caption.removeprefix("there is ").removeprefix("a picture of ") for _, caption in night[:8]],
    columns=4,
    size=1.2,
)

LORA_RATE, LORA_STEPS = 1e-2, 40
losses = fit(wrapped, small, LORA_RATE, LORA_STEPS, encoded(night_pixels, [caption for _, caption in night]))
print(f"mean loss of the first ten steps {mean(losses[:10]):.3f}, of the last ten {mean(losses[-10:]):.3f}")

# %% [markdown]
# To draw faster, the change is added to the weights once. Then a step costs no more than before.
#
# **Predict, then run**: is a merged UNet, $W + sBA$, the same as one with wrappers? And what remains if the LoRA is
# removed?

# %%
parts = {f"{name}.weight": LowRank(each.A.detach(), each.B.detach()) for name, each in wrappers.items()}
merged = deepcopy(sd.unet)
with torch.no_grad():
    for name, each in wrappers.items():
        merged.get_submodule(name).weight += each.B @ each.A
    ours, by_wrappers = merged(noises(1, 1), t, text), wrapped(noises(1, 1), t, text)

library = deepcopy(sd.unet)
lora = Lora(by_layer(library, parts), scale=1.0)
with torch.no_grad():
    theirs = library(noises(1, 1), t, text)
lesson.claim("merged and wrapped predict the same", torch.allclose(ours, by_wrappers, atol=1e-4))
lesson.claim("our merge is the library's", torch.allclose(ours, theirs, atol=1e-5))
lora.remove()
lesson.claim(
    "after `remove` the weights are those of before, bit for bit",
    all(map(torch.equal, library.parameters(), sd.unet.parameters())),
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The same, up to rounding: $(W + sBA)\,x = Wx + sB(Ax)$. The library keeps the original weights while a
# LoRA is merged, so nothing is lost by rounding.
#
# </details>
#
# ## The strength
#
# **Predict, then run**: below, two prompts of the day, with the strengths from 0 to 1.5. A strength of 1 is as trained.
# The last row is of the LoRA that is shipped with the model. It was trained longer on such images.

# %%
strengths = (0, 0.25, 0.5, 0.75, 1, 1.5)


def slide(unet, lora, text):
    """An image of the same noise for each strength of a LoRA."""
    images = []
    for strength in strengths:
        lora.scale = strength
        images += to_pil(draw(unet, [text], noises(1, seed=4)))
    return images


lora = Lora(by_layer(library, parts), scale=0.0)
rows = [image for text in known[:2] for image in slide(library, lora, text)]
lora.remove()
shipped = weights_loader.load_lora(sd, files("minisd") / "assets/sticker/adapters/night.safetensors")
rows += slide(sd.unet, shipped, known[0])
shipped.remove()
lesson.pictures(
    rows,
    alt="Three rows by strength: a day on white becomes a night on black; the last row is of the LoRA trained longer.",
    title="From nothing to too much: the strength of the LoRA",
    columns=len(strengths),
    labels=[f"{strength:g}" for strength in strengths],
    rows=["a red\ncircle", "a blue\nsquare", "a red circle,\ntrained longer"],
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# At strength 0 the image is that of the model without the LoRA. Then the ground becomes black. Above 1 our LoRA spoils
# the objects: the change is larger than any that was trained. In forty steps it has learnt the dark, but not the moon;
# most of its nights have a second circle or square in place of it. In the last row there is a moon, from a strength of
# 0.75 on.
#
# </details>
#
# ## Why a low rank is enough
#
# The full training was free to change the weights in any direction. How many directions did it use? The singular values
# of its change $W' - W$ say so: their squares, in order, are the shares of the change that each further rank adds.


# %%
def spectrum(unet):
    """For each attention layer, the share of the change within the first ranks."""
    shares = []
    for name in wrappers:
        change = unet.get_submodule(name).weight - sd.unet.get_submodule(name).weight
        squares = torch.linalg.svdvals(change.detach()).square()
        shares.append((squares / squares.sum()).cumsum(0)[:32])
    return torch.stack([each for each in shares if len(each) == 32])


figure, panel = lesson.axes(1, 1, width=4.6, height=2.8)
shares = spectrum(trained["with the class"])
for row in shares:
    panel.plot(range(1, 33), row, color=lesson.COLOURS[0], linewidth=0.4, alpha=0.5)
panel.plot(range(1, 33), shares.mean(0), color=lesson.COLOURS[1], linewidth=2, label="mean of the layers")
panel.axvline(RANK, color="#888888", linestyle="--", label=f"rank {RANK}")
panel.set(xlabel="rank", ylabel="share of the change", ylim=(0, 1.02))
panel.legend()
at_rank = float(shares.mean(0)[RANK - 1])
lesson.show(
    figure,
    alt="The share of the change over the rank: most curves rise steeply at first and bend towards 1.",
    title=lesson.claim(f"Rank {RANK} holds {at_rank:.0%} of the change, in the mean of the layers", at_rank > 0.6),
)

# %% [markdown]
# The full training was free to use all directions, and a few of them hold most of the change. In some layers the change
# is spread more widely. So a LoRA of low rank gives up little.
#
# ## With official weights
#
# ```console
# $ minisd train dreambooth runs/dog --start-from sd15 --pictures photos \
#       --prompt "a photo of ccorgi dog" --class-prompt "a photo of a dog" --steps 400
# $ minisd train lora runs/small --start-from sd15 --pictures photos --rank 4 \
#       --prompt "a photo of ccorgi dog" --class-prompt "a photo of a dog" --steps 1000
# ```
#
# The command draws and keeps 100 images of the class first. **None of this was measured here**; memory and time are
# from the literature:

# %%
literature = {
    "DreamBooth paper": "3 to 5 images, prior weight 1",
    "diffusers script": "rate 5e-6, 100 images of the class, prior weight 1, AdamW, largest gradient 1",
    "DreamBooth, memory": "12.5 GB; 16 GB with 8-bit Adam, 8 with DeepSpeed; 24 or more with the text encoder",
    "DreamBooth, time": "15 to 20 minutes on an A10G",
    "LoRA of SD 1.5": "15000 steps in about 5 hours on an RTX 2080 Ti",
}
for name, value in literature.items():
    print(f"{name:20} {value}")

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why does DreamBooth use a rare word?</summary>
#
# The word should mean nothing yet, so that the training need not overwrite a meaning. The class beside it says what
# kind of object the word names.
#
# </details>
#
# <details><summary>What does prior preservation add to the loss, and where do its images come from?</summary>
#
# The same loss on images of the class, times a weight. The frozen model draws them before the training. So they show
# what the model should keep.
#
# </details>
#
# <details><summary>Why can this DreamBooth not teach a brown object?</summary>
#
# The autoencoder is not trained. It was trained on other colours, and what it cannot encode and decode, no UNet on its
# latents can show.
#
# </details>
#
# <details><summary>Why does the matrix B of a LoRA begin at zero?</summary>
#
# Then the product $BA$ is zero, and the training begins at the model as it is. $A$ is random, so that $B$ gets a
# gradient.
#
# </details>
#
# <details><summary>Why does a merged LoRA cost no time in drawing?</summary>
#
# $W + sBA$ is a matrix of the same shape as $W$. It is computed once, and each step uses it in place of $W$.
#
# </details>
#
# ## Your turn
#
# Write these functions yourself. `start` makes a file for each, and `minisd exercises check` compares your results with
# the reference and says what differs ([the exercises](../minisd/exercises/README.md)).
#
# - `minisd exercises start dreambooth_loss`: the loss with prior preservation.
# - `minisd exercises start lora_weight`: the weight of a layer with a LoRA merged in.
#
# And try this in the cells above: give the class other captions, such as "a red circle above a blue square", in
# `class_images` and `class_set`, and count in the gallery again.

# %% [markdown]
# ## Summary
#
# - DreamBooth trains the UNet on a few images of a subject with a rare word. It can teach what no word vector can.
# - Trained on these images alone, the model forgets what else the class is.
# - Prior preservation trains images of the class beside them, drawn by the frozen model. It protects what they show.
# - LoRA trains a change of low rank: few numbers, a small file, a strength, and it can be removed.
# - The autoencoder stays as it is. Check first whether it can show your images.
#
# **Code**: `fine_tune` in [fine_tuning.py](../minisd/training/fine_tuning.py), `train_full` in
# [full_fine_tuning.py](../minisd/training/full_fine_tuning.py), `train_lora` in
# [training/lora.py](../minisd/training/lora.py), the merge in [adapters/lora.py](../minisd/adapters/lora.py), the class
# images in [class_images.py](../minisd/training/class_images.py). **Next**: the lessons on Imagic,
# on distillation and on measuring; see [the list](README.md).
