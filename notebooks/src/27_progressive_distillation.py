# %% [markdown]
# # 27 · Progressive distillation
#
# **You will** see why a sampler fails at few steps; derive what a student must predict so that one step of it ends
# where two steps of its teacher end; train a student for one halving; and say why it predicts $v$ and not the noise.
#
# **Needs** notebooks 05 (DDIM, $v$), 08 (guidance) and 13 (a training loop).
#
# **Takes** 20 minutes to read, about a minute and a half to run.

# %% [markdown]
# ## Few steps are not enough
#
# DDIM is deterministic: a starting noise and a prompt determine the image. Fewer steps solve the same equation with
# larger errors. The embedded model shows it, with 32, 8, 4 and 2 steps from the same six noises.
#
# For a model that predicts $v$, a step of DDIM is a turn (notebook 17). The noise level is an angle $\varphi$ with
# $\cos\varphi = \sqrt{\bar\alpha}$ and $\sin\varphi = \sqrt{1-\bar\alpha}$, and a step from the angle of $t$ to that
# of $s$ turns by their difference $\Delta$:
#
# $$x_s = \cos\Delta\;x_t - \sin\Delta\;v(x_t, t)$$

# %%
import math
from copy import deepcopy
from itertools import pairwise

import lesson
import torch

import weights_loader
from minisd.images import to_pil
from minisd.sticker.evaluation.prompt_suites import suite_examples
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.render import render

sd = weights_loader.load("sticker")
sd.unet.requires_grad_(False)
schedule, scheduler = sd.scheduler.schedule, sd.scheduler
empty = sd.encode_prompt([""])
SCALE = 3.0  # of the guidance


def angle(t):
    """Of the noise level of timestep t; t below 0 is the clean image."""
    return math.acos(schedule.alpha_bar(t) ** 0.5)


def turn(x, v, delta):
    return math.cos(delta) * x - math.sin(delta) * v


def teacher(x, t, text):
    """The guided prediction: two calls of the UNet, in one batch."""
    both = sd.unet(x, torch.tensor(t), torch.cat([empty.expand_as(text), text]))
    without, given = both.chunk(2)
    return without + SCALE * (given - without)


@torch.no_grad()
def land(predict, x, text, times):
    """Where DDIM ends that calls `predict` at each of the times but the last."""
    for t, s in pairwise(times):
        x = turn(x, predict(x, t, text), angle(t) - angle(s))
    return x


def timesteps(n):
    """n evenly spaced timesteps from pure noise on, and -1 for the clean image."""
    return [round(1000 - k * 1000 / n) - 1 for k in range(n)] + [-1]


def apart(one, other):
    """The mean distance of latents, image by image: the root of the mean square."""
    return float((one - other).square().mean((1, 2, 3)).sqrt().mean())


prompts = [example.prompt for example in suite_examples("single", 24, seed=0, words=sd.defaults.words)]
text = sd.encode_prompt(prompts)
noise = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(7))
print(prompts[:6])
landed = {n: land(teacher, noise[:6], text[:6], timesteps(n)) for n in (32, 8, 4, 2)}
library = sd(prompts[:2], latents=noise[:2], num_inference_steps=4, guidance_scale=SCALE, output_type="latent").images
lesson.claim("turning is the library's DDIM", torch.allclose(landed[4][:2], library, atol=1e-2))

# %% [markdown]
# **Predict, then run**: what is still right at 4 steps, and what at 2: the place, the size, the colour?

# %%
for n, latents in landed.items():
    print(f"{n:2} steps: distance to the latents of 32 steps {apart(latents, landed[32]):.2f}")
distances = [apart(landed[n], landed[32]) for n in landed]
lesson.pictures(
    to_pil(sd.decode(torch.cat(list(landed.values())))),
    alt="Six objects in four rows: alike with 32 and 8 steps, a little off with 4, fragments in wrong colours with 2.",
    title=lesson.claim("The fewer the steps, the farther from the image of 32 steps", distances == sorted(distances)),
    columns=6,
    rows=[f"{n} steps" for n in landed],
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# At 4 steps place and colour are right, and some sizes and edges are not. At 2 steps most objects are fragments, and
# some have another colour. The reason: the first call sees pure noise, so its answer is an average of many images, with
# objects at many places (notebook 05). With many steps that answer counts for a short way only, and the next call
# corrects it. With 2 steps it counts for half of the way.
#
# </details>
#
# In the formula: a step treats $v$ as if it were constant from $t$ to $s$. How constant is it?

# %%
x, seen = noise[:2], []
for t, s in pairwise(timesteps(32)):
    seen.append(teacher(x, t, text[:2]))
    x = turn(x, seen[-1], angle(t) - angle(s))
changes = {k: apart(seen[k], seen[0]) / float(seen[0].square().mean().sqrt()) for k in (1, 4, 8, 16)}
for k, change in changes.items():
    print(f"after {k:2} of 32 steps, v has changed by {change:.0%} of its size")
lesson.claim("v changes more over 16 steps than over one", changes[16] > 2 * changes[1])

# %% [markdown]
# ## The idea: a student that knows where two steps lead
#
# No sampler can know at the beginning of a large step how $v$ will change on the way. A **network** can learn it.
# Salimans and Ho 2022 train a student:
#
# 1. The student is a copy of the teacher.
# 2. A training image is mixed with noise, and the teacher takes **two** steps from there.
# 3. The student learns the prediction with which **one** step ends at the same point.
# 4. The student becomes the teacher of the next student, which takes half as many steps again.
#
# From 32 to 4 steps are three students: 16, 8, 4.
#
# ## The target, derived
#
# Let $z$ be the point at $t$, and $z_s$ the point at $s$ where the teacher ends after two steps, with the timestep $m$
# between them. The student takes one turn by $\Delta = \varphi_t - \varphi_s$. It should end at $z_s$:
#
# $$z_s = \cos\Delta\;z - \sin\Delta\;v^* \qquad\Rightarrow\qquad v^* = \frac{\cos\Delta\;z - z_s}{\sin\Delta}$$
#
# That is all. The paper writes the same as a target for the clean image $\tilde x$ (its appendix G). A step of DDIM
# keeps the noise $\epsilon$ and changes the shares. So two equations hold, with $\alpha = \sqrt{\bar\alpha}$ and
# $\sigma = \sqrt{1-\bar\alpha}$:
#
# $$z = \alpha_t\,\tilde x + \sigma_t\,\epsilon, \qquad z_s = \alpha_s\,\tilde x + \sigma_s\,\epsilon$$
#
# Multiply the first one by $r = \sigma_s/\sigma_t$ and subtract it from the second. The noise vanishes:
#
# $$\tilde x = \frac{z_s - r\,z}{\alpha_s - r\,\alpha_t}$$


# %%
def target_v(z, end, t, s):
    """The v with which one step from t to s leads from z to `end`."""
    delta = angle(t) - angle(s)
    return (math.cos(delta) * z - end) / math.sin(delta)


def target_image(z, end, t, s):
    """The clean image that belongs to it, as the paper writes it."""
    ratio = math.sin(angle(s)) / math.sin(angle(t))
    return (end - ratio * z) / (math.cos(angle(s)) - ratio * math.cos(angle(t)))


HALVED = 2  # steps of the student; the teacher takes twice as many
times = timesteps(2 * HALVED)
for k in range(HALVED):
    t, middle, s = times[2 * k : 2 * k + 3]
    print(f"step {k} of the student: from t = {t} to {s}; the teacher stops at {middle}")

# %% [markdown]
# The check: the student's step with $v^*$ ends where the teacher ends, both targets are one, and they are those of the
# library and of the exercise.

# %%
from minisd.exercises.tasks.progressive_target import progressive_target
from minisd.training.distillation import halvings, step_loss, teacher_grid, two_step_target

grid = teacher_grid(scheduler, HALVED)
for k in range(HALVED):
    t, middle, s = times[2 * k : 2 * k + 3]
    z, words = noise[:4], text[:4]
    end = land(teacher, z, words, [t, middle, s])
    v, image = target_v(z, end, t, s), target_image(z, end, t, s)
    print(f"from t = {t}:")
    lesson.claim(
        "one step with the target ends where two steps end",
        torch.allclose(turn(z, v, angle(t) - angle(s)), end, atol=1e-4),
    )
    both = math.cos(angle(t)) * z - math.sin(angle(t)) * v
    lesson.claim("the two targets are one", torch.allclose(both, image, atol=1e-4))
    theirs = two_step_target(lambda x, t, words=words: teacher(x, int(t), words), scheduler, grid, k, z)
    lesson.claim("and that of the library", torch.allclose(image, theirs, atol=1e-3))
    levels = schedule.alpha_bar(t), schedule.alpha_bar(s)
    lesson.claim("and that of the exercise", torch.allclose(image, progressive_target(z, end, *levels), atol=1e-4))
lesson.claim("from 32 to 4 are three students", halvings(32, 4) == [16, 8, 4])

# %% [markdown]
# ## Why the student predicts v
#
# A student of two steps is called twice, and one of the two calls sees pure noise. What does a prediction of the noise
# say there? The best answer is the input itself, whatever the image: its error is zero, and it says nothing.
#
# Put differently: the prediction becomes a clean image, and an error of the prediction becomes an error of the image.
# By which factor? For $v$, $\hat x = \cos\varphi\,z - \sin\varphi\,v$, so the factor is $\sin\varphi$. For the noise,
# $\hat x = (z - \sin\varphi\,\epsilon)/\cos\varphi$, so it is $\tan\varphi$.
#
# **Predict, then run**: how large are the two factors at $t = 999$, where $\varphi$ is a right angle in this model?

# %%
at = torch.arange(1000)
phi = schedule.alpha_bars.sqrt().acos()
figure, panel = lesson.axes(width=5.2, height=2.7)
panel.plot(at, phi.tan().clamp(max=100), linestyle="--", label="prediction of the noise: tan φ")
panel.plot(at, phi.sin(), label="prediction of v: sin φ")
panel.set(xlabel="timestep t", ylabel="error of the image", ylim=(0, 12))
panel.legend(fontsize=8)
lesson.show(
    figure,
    alt="Over the timestep, the factor for v rises to 1; that for the noise grows without limit towards t = 999.",
    title="What an error of 1 in the prediction does to the clean image",
)
for late in (250, 500, 750, 998):
    print(f"t = {late}: factor {float(phi[late].tan()):6.1f} for the noise, {float(phi[late].sin()):.2f} for v")
lesson.claim("at t = 999 the factor of v is 1", abs(float(phi[999].sin()) - 1) < 1e-6)
lesson.claim("that of the noise divides by zero", schedule.alpha_bar(999) == 0)

# %% [markdown]
# <details><summary>Answer</summary>
#
# 1 for $v$: there the answer is the negative image. Infinite for the noise: one would divide by $\cos\varphi = 0$. With
# many steps that hardly matters, as the following steps repair what the first one did. A student of one or two steps
# has nothing that repairs it.
#
# </details>
#
# The paper's loss measures the error of the clean image, and weights it by SNR + 1, which is $1/\sin^2\varphi$. The
# factor above, squared, cancels it: what remains is the plain squared error of $v$.


# %%
def student_loss(student, z, t, words, v):
    return (student(z, torch.tensor(t), words) - v).square().mean()


with torch.no_grad():
    ours = student_loss(sd.unet, z, t, words, v)
    theirs = step_loss(lambda x, t: sd.unet(x, t, words), scheduler, grid, k, z, image)
print(f"our loss {float(ours):.4f}, the library's {float(theirs):.4f}")
lesson.claim("SNR + 1 times the error of the image is the error of v", torch.allclose(ours, theirs, rtol=1e-3))

# %% [markdown]
# ## One halving, live: 4 steps become 2
#
# A minute is short, so the world is small again: single objects on white. The training images are rendered and encoded
# once. Three details of the training below:
#
# - **The teacher is the guided prediction.** It costs two calls of the UNet a step. The student gives its answer in one
#   call, so it learns guidance as well, for one scale. (In notebook 28 the student can read the scale.)
# - **Random noise, but the timesteps of the sampler.** The student is only ever called at the beginnings of its steps,
#   so it only learns these, in turn.
# - **The rate falls to zero** over the second half, as notebook 13 does it, and a moving average draws.

# %%
examples = suite_examples("single", 160, seed=1, words=sd.defaults.words)
with torch.no_grad():
    clean = torch.cat(
        [sd.vae.encode(render([e.scene for e in examples[i : i + 20]], 128)).mean for i in range(0, 160, 20)]
    )
clean = clean * sd.vae.config.scaling_factor
known = sorted({example.prompt for example in examples})
rows = torch.tensor([known.index(example.prompt) for example in examples])
states = sd.encode_prompt(known)[rows]
print(f"{len(examples)} images, {len(known)} different prompts")

# %%
STEPS, BATCH, RATE = 60, 8, 5e-4
dice = torch.Generator().manual_seed(0)
student = deepcopy(sd.unet).requires_grad_(True)  # the student begins as its teacher
average = deepcopy(student).requires_grad_(False)
optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, betas=(0.9, 0.99))


def train_step(step):
    """One step of the training; returns the loss."""
    k = step % HALVED
    t, middle, s = times[2 * k : 2 * k + 3]
    chosen = torch.randint(len(clean), (BATCH,), generator=dice)
    fresh = torch.randn(clean[chosen].shape, generator=dice)
    z = math.cos(angle(t)) * clean[chosen] + math.sin(angle(t)) * fresh
    end = land(teacher, z, states[chosen], [t, middle, s])  # two steps of the teacher
    loss = student_loss(student, z, t, states[chosen], target_v(z, end, t, s))

    for group in optimizer.param_groups:
        group["lr"] = RATE * min(1, (step + 1) / 10, (1 - step / STEPS) / 0.5)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), student.parameters(), strict=True):
            slow.lerp_(fast, 1 - min(0.95, (step + 1) / (step + 10)))
    return loss.item()


# %% [markdown]
# What is measured: from 24 noises and prompts that were not in the training, how far does the student land from the
# point where the teacher lands? Two numbers for comparison: the untrained student, and the teacher itself, if it has to
# do with 2 steps.
#
# **Predict, then run**: which of the two steps is harder to learn, that from pure noise or the second one?

# %%
few = timesteps(HALVED)
goal = land(teacher, noise, text, times)
hurried = land(teacher, noise, text, few)


def student_lands(unet):
    """With one call a step."""
    return land(lambda x, t, words: unet(x, torch.tensor(t), words), noise, text, few)


before = student_lands(average)
losses, distance = [], {0: apart(before, goal)}
for step in range(STEPS):
    losses.append(train_step(step))
    if step + 1 in (20, 40, STEPS):
        distance[step + 1] = apart(student_lands(average), goal)
after = student_lands(average)

for n, value in distance.items():
    print(f"after {n:2} steps of training: distance to the teacher's landing point {value:.3f}")
print(f"the teacher itself, with {HALVED} steps: {apart(hurried, goal):.3f}")
lesson.claim("the student lands nearer than before", distance[STEPS] < 0.9 * distance[0])
lesson.claim("and nearer than the teacher with as many steps", distance[STEPS] < 0.8 * apart(hurried, goal))

# %%
figure, (left, right) = lesson.axes(1, 2, width=3.8, height=2.7)
for k, marker in zip(range(HALVED), "o^", strict=True):
    left.plot(range(k, STEPS, HALVED), losses[k::HALVED], marker=marker, markersize=3, label=f"from t = {few[k]}")
left.set(xlabel="step of the training", ylabel="loss", ylim=(0, None))
left.legend(fontsize=8)
right.plot(list(distance), list(distance.values()), marker="o", label="student, 2 steps")
right.axhline(apart(hurried, goal), color=lesson.COLOURS[1], linestyle="--", label="teacher, 2 steps")
right.set(xlabel="step of the training", ylabel="distance", ylim=(0, None))
right.legend(fontsize=8, loc="lower left")
first, second = (sum(losses[k:10:HALVED]) for k in (0, 1))
lesson.show(
    figure,
    alt="Left, the loss of both steps: that from pure noise begins far higher, and falls. Right, the distance falls.",
    title=lesson.claim("The step from pure noise has more to learn: its loss begins far higher", first > 3 * second),
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The step from pure noise. There the student must tell from the noise alone which of all possible images the teacher
# will draw, and where. At the second step most of that is settled.
#
# </details>


# %%
def right_ones(images):
    """How many images are exactly what the prompt says."""
    return sum(check(image, prompt).exact for image, prompt in zip(images, prompts, strict=True))


runs = {"teacher, 4 steps": goal, "teacher, 2 steps": hurried, "student before": before, "student after": after}
calls = dict(zip(runs, (8, 4, 2, 2), strict=True))  # of the UNet; the teacher makes two a step
images = {name: to_pil(sd.decode(latents)) for name, latents in runs.items()}
right = {name: right_ones(drawn) for name, drawn in images.items()}
for name, count in right.items():
    print(f"{name:16} {calls[name]} UNet calls, {count:2} of {len(prompts)} images are right")
best, rest = right["student after"], max(right["student before"], right["teacher, 2 steps"])
lesson.pictures(
    [image for drawn in images.values() for image in drawn[:8]],
    alt="Eight objects in four rows: teacher with 4 steps and 2, student before and after; fragments in rows 2 and 3.",
    title=lesson.claim(f"In two calls the trained student draws {best} of {len(prompts)} right", best >= rest + 3),
    columns=8,
    rows=[name.replace(" ", "\n", 1) for name in runs],
)

# %% [markdown]
# Two calls of the UNet now do, in many images, what the teacher does in eight calls. Not in all: some have mixed
# colours, and many objects have another place or size than the teacher's. The distance hardly falls after the first 20
# steps of the training. So a minute teaches the student to draw clear objects in two calls. To land exactly where its
# teacher lands, it would need far more training.
#
# ## The whole method
#
# Now the student would become the teacher. It has learned guidance, so its prediction is one call, and its own student
# begins as its copy:
#
# ```python
# for steps in halvings(32, 4):  # 16, 8, 4
#     student = train(start=unet, teacher=predict, grid=teacher_grid(scheduler, steps))
#     unet, predict = student, one_call(student)
# ```
#
# `minisd train distill` runs it, on all of Sticker World or on your images, and keeps every student. For the embedded
# model, and for a model with the official sizes:
#
# ```console
# $ minisd train distill runs/fast --start-from sticker --from 32 --to 4 --steps 2000
# $ minisd train distill runs/fast --start-from MODEL --pictures FOLDER --from 32 --to 4 --guidance 7.5 --minutes 600
# ```
#
# Neither was run for this lesson. The memory can be computed: the method keeps the teacher, the student, its gradients,
# two moments of AdamW and the moving average, each a copy in float32. The activations come on top.

# %%
COPIES = ("teacher", "student", "gradients", "first moment", "second moment", "average")
print(f"Stable Diffusion 1: {859_520_964 * 4 * len(COPIES) / 1e9:.1f} GB and the activations (computed, not measured)")
print("the paper: CIFAR-10, from 8192 steps to 4, with an FID of 3.0 at 4 steps (not measured here)")

# %% [markdown]
# Stable Diffusion 1 predicts the noise. `minisd train distill` minimises the error of $v$ for it as well. But at $t =
# 999$ its schedule leaves little of the image, and the factor $\tan\varphi$ is large there. For one or two steps, take
# a model that predicts $v$, as the large Stable Diffusion 2 does.

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why does DDIM fail at two steps, although the model is the same?</summary>
#
# A step treats the prediction as constant. At pure noise the prediction is an average of many images, and with two
# steps it counts for half of the way.
#
# </details>
#
# <details><summary>How can one step of a student do what two steps of the teacher do?</summary>
#
# The student is trained to. Where the teacher ends is determined by the noisy latents and the words, so it can be
# learned. The target is the prediction with which one step of DDIM ends there.
#
# </details>
#
# <details><summary>Why is the target not simply the clean image of the training data?</summary>
#
# From one noisy input many clean images are possible, and the best prediction of them is an average. The teacher's end
# is one image for each input, so the student need not average.
#
# </details>
#
# <details><summary>Why does a prediction of the noise not suit a student of one or two steps?</summary>
#
# At pure noise the best prediction of the noise is the input, and it says nothing about the image. Half of all calls of
# a student of two steps see pure noise.
#
# </details>
#
# <details><summary>Why does the student begin as its teacher, and not with random weights?</summary>
#
# It must predict almost the same: at the second step the untrained copy is already near the target. Only the difference
# has to be learned, which takes few steps.
#
# </details>
#
# ## Your turn
#
# Write this function yourself. `start` makes a file for it, and `minisd exercises check` compares your results with the
# reference and says what differs ([the exercises](../minisd/exercises/README.md)).
#
# - `minisd exercises start progressive_target`: from the beginning and the end of a step, compute the clean latents
#   that the student should predict.
#
# And two experiments in the cells above:
#
# - Set `HALVED = 4` for the halving from 8 to 4 steps. Is the distance before the training larger or smaller?
# - Set `SCALE = 1.0`, so that the student learns the prediction without guidance. Which loss is smaller?

# %% [markdown]
# ## Summary
#
# - Few steps fail because a step treats the prediction as constant.
# - Two steps of the teacher end at a point; the student's target is the $v$ with which one step ends there.
# - The paper's target for the clean image is the same, and SNR + 1 makes its loss the squared error of $v$.
# - At pure noise a prediction of the noise says nothing; $v$ says the image.
# - The student is the next teacher: 32 steps become 16, 8, 4.
#
# **Code**: [distillation.py](../minisd/training/distillation.py). **Next**: [28 · Guided
# distillation](28_guided_distillation.ipynb).
