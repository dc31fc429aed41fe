# %% [markdown]
# # 28 · Guided distillation
#
# **You will** write a UNet that reads the guidance scale, train it to predict in one call what guidance makes of two,
# and compare images and times of one call and of two.
#
# **Needs** notebooks 07 (the UNet reads the time), 08 (guidance) and 13 (a training loop).
#
# **Takes** 15 minutes to read, about a minute and a half to run.

# %% [markdown]
# ## Two calls for one prediction
#
# Classifier-free guidance asks the UNet twice at every step: with the empty prompt and with the prompt. With $c$ for
# the prompt and $s$ for the scale, the guided prediction is
#
# $$v_s(x_t, t, c) = v(x_t, t, \varnothing) + s\,\big(v(x_t, t, c) - v(x_t, t, \varnothing)\big)$$
#
# It is a function of four inputs: the latents, the time, the words and the scale. A network could learn this function
# and answer in **one** call. Meng et al. 2023 train such a network: a student that is told the scale. They write the
# scale as $w = s - 1$, so that $w = 0$ means no guidance:
#
# $$v_s = (1 + w)\,v(x_t, t, c) - w\,v(x_t, t, \varnothing)$$

# %%
import json
import math
import tempfile
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import lesson
import torch
from torch import nn

import weights_loader
from minisd.images import to_pil
from minisd.models import UNet
from minisd.pipeline import StableDiffusion
from minisd.sticker.evaluation.prompt_suites import suite_examples
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.render import render

sd = weights_loader.load("sticker")
teacher = sd.unet.requires_grad_(False)
schedule, scheduler = sd.scheduler.schedule, sd.scheduler
empty = sd.encode_prompt([""])


@torch.no_grad()
def two_predictions(x, t, text):
    """The teacher's, without the prompt and with it: two calls in one batch."""
    return teacher(torch.cat([x, x]), torch.cat([t, t]), torch.cat([empty.expand_as(text), text])).chunk(2)


def mix(without, given, scales):
    """The guided prediction, with a scale for each image."""
    w = scales[:, None, None, None] - 1
    return (1 + w) * given - w * without


def guided(x, t, text, scales):
    return mix(*two_predictions(x, t, text), scales)


from minisd.exercises.tasks.guided_target import guided_target
from minisd.training.guidance_distillation import guided_prediction

dice = torch.Generator().manual_seed(0)
x, t, scales = torch.randn(3, 4, 16, 16, generator=dice), torch.tensor([100, 500, 999]), torch.tensor([1.0, 3.0, 6.0])
words = sd.encode_prompt(["a red star", "a blue ring", "a green heart"])
without, given = two_predictions(x, t, words)
ours = guided(x, t, words, scales)
lesson.claim(
    "w = s - 1: that is guidance of notebook 08", torch.allclose(ours, guided_target(without, given, scales), atol=1e-4)
)
lesson.claim(
    "and the library's target", torch.allclose(ours, guided_prediction(teacher, x, t, words, empty, scales), atol=1e-4)
)

# %% [markdown]
# ## How the UNet reads a number
#
# The UNet reads the time already (notebook 07). A number becomes a vector of sines and cosines, a small network makes
# an embedding of it, and every residual block adds that to its channels. The scale takes the same way. Its sinusoids go
# through one linear layer, and the result is added to the sinusoids of the time, before the small network:
#
# $$\text{embedding} = \text{MLP}\big(\text{sinusoids}(t) + W\,\text{sinusoids}(1000\,w)\big)$$
#
# Diffusers has the same layout: the width of the sinusoids of $w$ is called `time_cond_proj_dim`, and $W$ is the weight
# `time_embedding.cond_proj`. The published latent consistency models read their guidance so.
#
# $W$ begins at **zero**. Then the scale changes nothing, and the student begins as exactly the teacher. All other
# weights are the teacher's.

# %%
WIDTH = 32  # of the sinusoids of w; 256 in the published models


def sinusoids_of_scale(scales):
    """Scales (B,) -> (B, WIDTH): sines, then cosines, of frequencies from 1 to 1/10000."""
    half = WIDTH // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half) / (half - 1))
    angles = 1000 * (scales[:, None] - 1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sinusoids_of_time(t, width):
    half = width // 2
    angles = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def embedding(unet, t, scales):
    """What the residual blocks read of the time and the scale."""
    return unet.time(sinusoids_of_time(t, unet.config.channels[0]) + unet.guidance(sinusoids_of_scale(scales)))


student = UNet(replace(teacher.config, guidance_width=WIDTH))
missing = student.load_state_dict(teacher.state_dict(), strict=False).missing_keys
print("the only new weight:", missing, tuple(student.guidance.weight.shape))

with torch.no_grad():
    nn.init.normal_(student.guidance.weight)  # for the comparison alone
    same = torch.allclose(embedding(student, t, scales), student.embed_time(t, x, guidance=scales), atol=1e-4)
    lesson.claim("our embedding is the library's", same)
    nn.init.zeros_(student.guidance.weight)
    exact = torch.equal(student(x, t, words, guidance=scales), teacher(x, t, words))
    lesson.claim("with W = 0 the student is exactly the teacher, at every scale", exact)

# %%
figure, panel = lesson.axes(width=5.4, height=2.4)
waves = sinusoids_of_scale(torch.linspace(1, 6, 600)).T
panel.imshow(waves, cmap="gray", aspect="auto", extent=(1, 6, WIDTH, 0))
panel.set(xlabel="guidance scale", ylabel="sinusoid")
lesson.show(
    figure,
    alt="A map of stripes over the scale: fine grain for the first sinusoids, broad stripes for later ones, twice.",
    title="What the student sees of the scale: sines above, cosines below",
)

# %% [markdown]
# Fast waves tell near scales apart; slow waves say whether the scale is small or large. The linear layer chooses what
# it needs.
#
# **Predict, then run**: at which scale is the untrained student already perfect, and how does its error grow from
# there?

# %%
examples = suite_examples("single", 184, seed=1, words=sd.defaults.words)
parts = [[example.scene for example in examples[i : i + 23]] for i in range(0, len(examples), 23)]
with torch.no_grad():
    clean = torch.cat([sd.vae.encode(render(part, 128)).mean for part in parts]) * sd.vae.config.scaling_factor
known = sorted({example.prompt for example in examples})
states = sd.encode_prompt(known)[torch.tensor([known.index(example.prompt) for example in examples])]
clean, states, clean_test, states_test = clean[24:], states[24:], clean[:24], states[:24]
t_test = torch.arange(len(clean_test)) * 1000 // len(clean_test) + 20
noisy_test = schedule.add_noise(clean_test, torch.randn(clean_test.shape, generator=dice), t_test)
SCALES = (1.0, 2.0, 3.0, 4.5, 6.0)


@torch.no_grad()
def relative_errors(unet):
    """The mean square of the error at each scale, as a share of that of the guided prediction."""
    errors = {}
    for scale in SCALES:
        scales = torch.full((len(noisy_test),), scale)
        target = guided(noisy_test, t_test, states_test, scales)
        error = unet(noisy_test, t_test, states_test, guidance=scales) - target
        errors[scale] = float(error.square().mean() / target.square().mean())
    return errors


before = relative_errors(student)
for scale, error in before.items():
    print(f"scale {scale:3}: relative error {error:.1%}")
lesson.claim("no error at scale 1", before[1.0] < 1e-6)
lesson.claim("and more with every scale", list(before.values()) == sorted(before.values()))

# %% [markdown]
# <details><summary>Answer</summary>
#
# At scale 1, where guidance is the plain prediction. From there the student lacks $w$ times the difference of the two
# predictions, so its squared error grows with $w^2$ (the share grows a little less, because the target grows as well).
#
# </details>
#
# ## The loss and the loop
#
# A step of the training: images, noise, a random time for each, and a **random scale for each**. The target is the
# guided prediction of the teacher, two calls. The student gets the same latents, time and words, and the scale; the
# loss is the squared error. No sampler is run: the student learns a function, point by point.
#
# One detail: the new layer has a larger rate than the rest. Its weights begin at zero, and a minute has few steps to
# make them as large as others are.


# %%
LOW, HIGH = 1.0, 6.0
dice = torch.Generator().manual_seed(0)


def distillation_loss(student, rows):
    t = torch.randint(1000, (len(rows),), generator=dice)
    scales = LOW + (HIGH - LOW) * torch.rand(len(rows), generator=dice)
    x = schedule.add_noise(clean[rows], torch.randn(clean[rows].shape, generator=dice), t)
    target = guided(x, t, states[rows], scales)
    return (student(x, t, states[rows], guidance=scales) - target).square().mean()


STEPS, BATCH, RATE, NEW_RATE = 90, 8, 5e-4, 1e-2
student.requires_grad_(True)
average = deepcopy(student).requires_grad_(False)
new = [student.guidance.weight]
old = [weight for weight in student.parameters() if weight is not new[0]]
optimizer = torch.optim.AdamW([{"params": old}, {"params": new}], lr=RATE, betas=(0.9, 0.99))
losses = []
for step in range(STEPS):
    for group, rate in zip(optimizer.param_groups, (RATE, NEW_RATE), strict=True):
        group["lr"] = rate * min(1, (step + 1) / 10, (1 - step / STEPS) / 0.5)
    loss = distillation_loss(student, torch.randint(len(clean), (BATCH,), generator=dice))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), student.parameters(), strict=True):
            slow.lerp_(fast, 1 - min(0.95, (step + 1) / (step + 10)))
    losses.append(loss.item())

after = relative_errors(average)
for scale in SCALES:
    print(f"scale {scale:3}: relative error {before[scale]:6.1%} before, {after[scale]:6.1%} after")
lesson.claim(
    "at scales 3 and 6 the error falls by a quarter and more", all(after[s] < 0.75 * before[s] for s in (3.0, 6.0))
)

with torch.no_grad():
    six, one_told, six_told = (torch.full((len(noisy_test),), scale) for scale in (6.0, 1.0, 6.0))
    target = guided(noisy_test, t_test, states_test, six)
    wrong, right = (
        float((average(noisy_test, t_test, states_test, guidance=told) - target).square().mean())
        for told in (one_told, six_told)
    )
print(f"error to the target of scale 6: told 1, {wrong:.3f}; told 6, {right:.3f}")
lesson.claim("the student reads the scale: told the right one, it is nearer", right < 0.95 * wrong)

# %% [markdown]
# The error at scale 1 was zero, and now it is not. A minute teaches mostly the guidance of a middle scale, and only a
# part of what depends on the scale: told 6, the student is nearer to the target of scale 6 than told 1, but it is still
# far from it. More training has to do the rest.
#
# The curve of the loss hardly shows that anything is learned. A batch has few images, and their times and scales differ
# from batch to batch, so the loss jumps by more than it falls. The errors above compare the same images before and
# after.

# %%
figure, (left, right) = lesson.axes(1, 2, width=3.8, height=2.7)
smooth = torch.tensor(losses).unfold(0, 10, 1).mean(1)
left.plot(losses, linewidth=0.6, alpha=0.5, label="each batch")
left.plot(range(5, 5 + len(smooth)), smooth, label="mean of 10")
left.set(xlabel="step of the training", ylabel="loss", ylim=(0, None))
left.legend(fontsize=8)
for name, errors, style in (("before", before, "--o"), ("after", after, "-o")):
    right.plot(SCALES, [100 * errors[scale] for scale in SCALES], style, markersize=4, label=name)
right.set(xlabel="guidance scale", ylabel="relative error in %", ylim=(0, None))
right.legend(fontsize=8)
lesson.show(
    figure,
    alt="Left, the loss jumps by batch, with hardly a trend. Right, the error by scale: once trained, lower from 3 on.",
    title="The student of one call against guidance of two",
)

# %% [markdown]
# ## Images of one call and of two
#
# The library's pipeline knows UNets that read the scale: it gives `guidance_scale` to the UNet and makes one call a
# step. So the trained student becomes a pipeline with one line.
#
# **Predict, then run**: the untrained student ignores the scale. What do its images look like at scale 6?

# %%
prompts = [example.prompt for example in suite_examples("single", 24, seed=0, words=sd.defaults.words)]
noise = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(7))
N = 8
one = StableDiffusion(sd.tokenizer, sd.text_encoder, sd.vae, average, scheduler)


def drawn(pipeline, scale):
    made = pipeline(prompts, latents=noise, num_inference_steps=N, guidance_scale=scale, output_type="latent")
    return made.images


def apart(one, other):
    """The mean distance of latents, image by image: the root of the mean square."""
    return float((one - other).square().mean((1, 2, 3)).sqrt().mean())


looks = (3.0, 6.0)
untrained = drawn(sd, 1.0)  # without guidance: what the untrained student draws at every scale
two_calls = {scale: drawn(sd, scale) for scale in looks}
one_call = {scale: drawn(one, scale) for scale in looks}
for scale in looks:
    far, near = apart(untrained, two_calls[scale]), apart(one_call[scale], two_calls[scale])
    print(f"scale {scale:g}: distance to the images of two calls: untrained {far:.2f}, trained {near:.2f}")
lesson.claim("at scale 6 the trained student is nearer", near < 0.9 * far)

# %%
rows = {"untrained,\n1 call": untrained}
for scale in looks:
    rows |= {f"scale {scale:g},\n2 calls": two_calls[scale], f"scale {scale:g},\n1 call": one_call[scale]}
pictures = []
for name, latents in rows.items():
    images = to_pil(sd.decode(latents[:12]))
    exact = sum(check(image, prompt).exact for image, prompt in zip(images, prompts, strict=False))
    print(f"{' '.join(name.split()):18} a step: {exact:2} of {len(images)} images are right")
    pictures += images[:6]
lesson.pictures(
    pictures,
    alt="Six objects in five rows: the untrained student; two calls at scale 3, one call; the same at scale 6.",
    title=f"The student draws in {N} calls, guidance in {2 * N}",
    columns=6,
    rows=list(rows),
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Like those of the first row: it is the teacher without guidance, at every scale. Single objects are easy, so it is
# mostly right even so; what guidance changes here is the place and the size of some objects. The trained student is
# nearer to guidance than the first row is, but not equal to it: compare each row of one call with the row above it.
#
# </details>

# %% [markdown]
# ## The time of a step
#
# One call instead of two: is it twice as fast? The batch of two shares what comes before the first attention to the
# words, and a small batch does not use the processor well. So measure it, in time of the processor, for eight images:

# %%
text = sd.encode_prompt(prompts[:8])
both, moment, scales = torch.cat([empty.expand_as(text), text]), torch.tensor(500), torch.full((8,), 3.0)


@torch.no_grad()
def seconds(call):
    """The best of several, of the processor's time."""
    best = math.inf
    for _ in range(6):
        began = time.process_time()
        call()
        best = min(best, time.process_time() - began)
    return best


pair = seconds(lambda: teacher(noise[:8], moment, both))
single = seconds(lambda: average(noise[:8], moment, text, guidance=scales))
print(f"a step of 8 images: {1000 * pair:.0f} ms with two calls, {1000 * single:.0f} ms with one")
print(f"one call is {pair / single:.2f} times as fast")

# %% [markdown]
# ## A file that others read
#
# The student is saved in the official layout. Diffusers reads it, and minisd reads the published models that have it.

# %%
with tempfile.TemporaryDirectory() as folder:
    weights_loader.save(one, Path(folder) / "guided")
    config = json.loads((Path(folder) / "guided" / "unet" / "config.json").read_text())
    again = weights_loader.load(Path(folder) / "guided")
print("time_cond_proj_dim:", config["time_cond_proj_dim"])
same = all(torch.equal(a, b) for a, b in zip(again.unet.parameters(), average.parameters(), strict=True))
lesson.claim("loaded again, it has the same weights", same)

# %% [markdown]
# ## The whole run, and the second stage
#
# The minute above used single objects on white. `minisd train distill --method guided` trains on all of Sticker World,
# or on your images. A student that reads the scale can be the teacher of notebook 27: then the scale is drawn at
# random for each image there, too, and both savings multiply: one call a step **and** few steps. That is the second
# stage of Meng et al.
#
# ```console
# $ minisd train distill runs/fast --start-from sticker --method guided --scales 1,6 --steps 2000
# $ minisd train distill runs/fast --start-from runs/fast/guided --from 32 --to 4 --scales 1,6 --steps 2000
# ```
#
# And for a model with the official sizes:
#
# ```console
# $ minisd train distill runs/fast --start-from MODEL --pictures FOLDER --method guided --scales 1,8 --minutes 600
# ```
#
# None of these was run for this lesson. The memory can be computed: teacher, student, its gradients, two moments of
# AdamW and the moving average are each a copy in float32. The activations come on top.

# %%
COPIES = ("teacher", "student", "gradients", "first moment", "second moment", "average")
print(f"Stable Diffusion 1: {859_520_964 * 4 * len(COPIES) / 1e9:.1f} GB and the activations (computed, not measured)")

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why can one network answer in one call what guidance makes of two calls?</summary>
#
# The guided prediction is a function of latents, time, words and scale. The network is given all four, so it can learn
# the function.
#
# </details>
#
# <details><summary>Why does the new linear layer begin at zero?</summary>
#
# Then the scale changes nothing, and the student begins as exactly the teacher. It is perfect at scale 1, and learns
# only what guidance adds.
#
# </details>
#
# <details><summary>Why is the scale turned into sinusoids, and not given as one number?</summary>
#
# A linear layer of one number could only add one direction, longer for larger scales. Sinusoids of several frequencies
# give each scale a vector of its own, as for the time.
#
# </details>
#
# <details><summary>Why does each training image get a random scale?</summary>
#
# The student shall be usable at every scale of the range, and the user chooses later. With one fixed scale it would
# learn that scale alone.
#
# </details>
#
# <details><summary>Does one call in place of two halve the time of a whole run?</summary>
#
# Only about that of the UNet. The text encoder and the decoder cost the same in both. And the two calls are one batch,
# which shares what comes before the first attention to the words.
#
# </details>
#
# ## Your turn
#
# Write this function yourself. `start` makes a file for it, and `minisd exercises check` compares your results with the
# reference and says what differs ([the exercises](../minisd/exercises/README.md)).
#
# - `minisd exercises start guided_target`: compute what the student should predict, with a scale for each image.
#
# And two experiments in the cells above:
#
# - Add `8.0` to `SCALES`. The student was never taught that scale. How large is its error there?
# - Set `WIDTH = 4`. How much does the error after the training change?

# %% [markdown]
# ## Summary
#
# - The guided prediction is a function of latents, time, words and scale; a student learns it, and needs one call.
# - The scale is read as the time is: sinusoids, a linear layer, added before the time's small network.
# - The new layer begins at zero, so the student begins as the teacher, which is right at scale 1.
# - Each image of a batch gets a time and a scale by chance; the target is the guided prediction of the teacher.
# - Progressive distillation comes on top, and keeps the scale.
#
# **Code**: [guidance_distillation.py](../minisd/training/guidance_distillation.py), `embed_time` in
# [unet.py](../minisd/models/unet.py). **Next**:
# [29 · Measuring](29_measuring.ipynb).
