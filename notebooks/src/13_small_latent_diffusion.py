# %% [markdown]
# # 13 · A whole latent diffusion model, trained small
#
# **You will** train a latent diffusion model from nothing until its colours follow the words, in about a minute; write
# its training loop line by line; watch the images form; and measure whether they follow the words.
#
# **Needs** notebooks 05 (what the UNet predicts), 08 (guidance), 09 (latents).
#
# **Takes** 25 minutes to read, about a minute to run.

# %% [markdown]
# ## Three networks, and one is trained here
#
# Stable Diffusion was trained in this order. First the autoencoder, on images alone. The text encoder was taken from
# CLIP. Then both were **frozen**, and the UNet learnt to remove noise from latents, with the words as a second input
# (Rombach et al. 2022). We do the third step. Frozen parts are taken from the embedded model; the UNet begins with
# random weights.
#
# A minute is short, so the world must be small: one large object, of three shapes and four colours.

# %%
from copy import deepcopy

import lesson
import torch

import weights_loader
from minisd.images import to_pil
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Object, Scene

sd = weights_loader.load("sticker")
vae, text_encoder = sd.vae.requires_grad_(False), sd.text_encoder.requires_grad_(False)

colours, shapes = ("red", "yellow", "green", "blue"), ("circle", "square", "triangle")
taught = [f"a {colour} {shape}" for colour in colours for shape in shapes]
dice = torch.Generator().manual_seed(0)


def draw_scene(prompt):
    """A scene that the prompt describes; size and place are chance."""
    _, colour, shape = prompt.split()
    size, x, y = torch.rand(3, generator=dice).tolist()
    return Scene((Object(shape, colour, "large", 0.28 + 0.44 * x, 0.28 + 0.44 * y, 0.175 + 0.03 * size),))


captions = torch.randint(len(taught), (2000,), generator=dice)  # each image's caption, as its place in `taught`
pixels = render([draw_scene(taught[k]) for k in captions.tolist()], size=64)
lesson.pictures(
    to_pil(pixels[:8]),
    alt="Eight small images, each of one coloured circle, square or triangle on white.",
    title=f"The world: {len(pixels):,} images of {pixels.shape[-1]} x {pixels.shape[-1]} pixels",
    labels=[taught[k].removeprefix("a ") for k in captions[:8].tolist()],
)

# %% [markdown]
# ## Latents: encode once, use often
#
# The autoencoder is frozen, so an image has the same latents in every round of training: they are computed once, for
# all images. From then on no pixels are needed. This is the point of *latent* diffusion: the UNet works on far fewer
# numbers.

# %%
with torch.no_grad():
    x0 = torch.cat([vae.encode(part).mean for part in pixels.split(100)]) * vae.config.scaling_factor
    again = vae.decode(x0[:8] / vae.config.scaling_factor)

print(f"an image: {tuple(pixels[0].shape)}, {pixels[0].numel():,} numbers")
print(f"its latents: {tuple(x0[0].shape)}, {x0[0].numel()} numbers")
print(f"deviation of the latents: {float(x0.std()):.2f}")
error = float((again - pixels[:8]).abs().mean() / 2)
print(f"mean error of a decoded pixel: {error:.1%} of the range from black to white")
lesson.claim("48 times fewer numbers", pixels[0].numel() == 48 * x0[0].numel())
lesson.claim("and the images come back", error < 0.05)

# %% [markdown]
# ## Words: states of the frozen text encoder
#
# The texts are few, so their states are computed once, too. Row 0 is the **empty** prompt: guidance will need a model
# that can also draw without a prompt (notebook 08), so it must see empty prompts in training.

# %%
texts = ["", *taught]
with torch.no_grad():
    states = text_encoder(sd.tokenizer(texts))
print("text states:", tuple(states.shape), "= (prompts, tokens, width)")

# %% [markdown]
# ## The UNet
#
# The library's class, with a small configuration: two resolutions, attention to the words at the lower one. Its last
# layer begins at zero, so its first answer is zero and not noise.

# %%
from minisd.configs import SD1_UNET, UNetConfig
from minisd.models import UNet

config = UNetConfig(
    channels=(32, 64),
    depths=(0, 1),
    heads=(2, 4),
    layers_per_block=1,
    context_width=states.shape[-1],
    sample_size=x0.shape[-1],
    norm_groups=8,
    only_cross_attention=(False, False),
)
torch.manual_seed(0)
unet = UNet(config).to(memory_format=torch.channels_last)
torch.nn.init.zeros_(unet.conv_out.weight)

with torch.device("meta"):
    official = UNet(SD1_UNET)
for name, network in (("ours", unet), ("Stable Diffusion 1", official)):
    print(f"{name:20} {sum(p.numel() for p in network.parameters()):12,} parameters")

# %% [markdown]
# ## What it predicts
#
# One round of training fits into a sentence: *take clean latents, mix them with noise of a random strength, and let the
# UNet predict, from the mixture, the strength and the words, what was mixed.* The UNet predicts $v =
# \sqrt{\bar\alpha}\,\epsilon - \sqrt{1-\bar\alpha}\,x_0$ (notebook 05), as in Stable Diffusion 2, because $v$ is well
# behaved at all strengths; the loss is a squared error:
#
# $$L = \mathbb E\,\left\| \text{unet}(x_t, t, \text{words}) - v \right\|^2$$
#
# Two details. In one of ten rounds the caption is replaced by the empty one. And the timesteps of a batch are spread
# evenly: one from each of 32 equal intervals, instead of 32 random ones. The loss depends on the timestep, and so it
# jumps less.

# %%
from minisd.schedulers import DDIM, NoiseSchedule

schedule = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
EMPTY_CAPTIONS = 0.1


def velocity(clean, noise, t):
    """What the UNet should predict, and the mixture that it gets."""
    alpha_bar = schedule.alpha_bars[t].float()[:, None, None, None]
    noisy = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean, noisy


def diffusion_loss(unet, rows):
    """The loss on some images, for fresh noise."""
    clean = x0[rows]
    caption_rows = torch.where(torch.rand(len(rows), generator=dice) < EMPTY_CAPTIONS, 0, 1 + captions[rows])
    t = ((torch.arange(len(rows)) + torch.rand(len(rows), generator=dice)) / len(rows) * 1000).long()
    noise = torch.randn(clean.shape, generator=dice)
    v, noisy = velocity(clean, noise, t)
    return (unet(noisy, t, states[caption_rows]) - v).square().mean()


t = torch.tensor([10, 500, 990])
noise = torch.randn(3, *x0.shape[1:], generator=torch.Generator().manual_seed(0))
v, noisy = velocity(x0[:3], noise, t)
lesson.claim("v is the library's", torch.allclose(v, schedule.velocity(x0[:3], noise, t), atol=1e-5))
lesson.claim("and so is the mixture", torch.allclose(noisy, schedule.add_noise(x0[:3], noise, t), atol=1e-5))

# %% [markdown]
# **Predict, then run**: the untrained UNet answers 0 to everything. The noise has variance 1, the latents a bit less
# (their deviation is printed above). About how large is the first loss?

# %%
with torch.no_grad():
    first = diffusion_loss(unet, torch.arange(200))
print(f"loss of the untrained UNet: {float(first):.2f}")
lesson.claim("between the mean square of the latents and that of the noise", x0.square().mean() < first < 1.05)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The mean of $v^2$. Since $v$ is a mixture of noise and image whose shares, squared, sum to 1, that lies between the
# mean squares of the two. It is good to know such a number **before** training: a first loss of 5 would mean a mistake
# in the scaling.
#
# </details>
#
# ## The loop
#
# AdamW makes the steps. The learning rate rises over the first steps, while nothing is known about the sizes of the
# gradients, and falls to zero at the end. And a second copy of the UNet follows the first slowly: its weights are a
# **moving average** (EMA) of those of the last steps. The trained copy jitters with every batch; the average does not,
# and draws better. Images are drawn with the average, here as in every Stable Diffusion.

# %%
STEPS, BATCH, RATE, DECAY = 320, 32, 4e-3, 0.98
optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE, betas=(0.9, 0.99))
average = deepcopy(unet).requires_grad_(False)


def learning_rate(step):
    return RATE * min(1, (step + 1) / 30, (1 - step / STEPS) / 0.4)


def train_step(step):
    """One step; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step)
    loss = diffusion_loss(unet, torch.randint(len(x0), (BATCH,), generator=dice))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), unet.parameters(), strict=True):
            slow.lerp_(fast, 1 - min(DECAY, (step + 1) / (step + 10)))
    return loss.item()


# %% [markdown]
# To draw, nothing new is needed. The library's pipeline takes any UNet whose sizes fit, so it gets ours, together with
# the frozen parts and a DDIM sampler with our schedule:

# %%
from minisd.pipeline import StableDiffusion

sampler = DDIM(schedule, timestep_spacing="trailing", steps_offset=0, set_alpha_to_one=True)
small = StableDiffusion(sd.tokenizer, text_encoder, vae, average, sampler)


def draw(prompts, seed=1, scale=3.0):
    """An image for each prompt, enlarged to be seen."""
    images = small(list(prompts), seed=seed, guidance_scale=scale, num_inference_steps=12).images
    return [image.resize((64, 64), 0) for image in images]


watched = ["a red circle", "a green triangle", "a yellow square"]
looks = [20, 50, 100, 180, STEPS]
losses, film = [], {0: draw(watched)}
for step in range(STEPS):
    losses.append(train_step(step))
    if step + 1 in looks:
        film[step + 1] = draw(watched)

print(f"{STEPS * BATCH:,} noisy latents seen; loss of the last fifty steps: {sum(losses[-50:]) / 50:.3f}")
lesson.claim("the loss fell to less than half", sum(losses[-50:]) / 50 < 0.5 * float(first))

# %%
smooth = torch.tensor(losses).unfold(0, 20, 1).mean(1)
figure, (left, right) = lesson.axes(1, 2, width=3.8, height=2.7)
left.plot(losses, linewidth=0.5, alpha=0.5, label="each batch")
left.plot(range(10, 10 + len(smooth)), smooth, label="mean of 20")
left.set(xlabel="step", ylabel="loss", ylim=(0, 1), title="Steep, then slow")
left.legend()

times = torch.arange(25, 1000, 95)
with torch.no_grad():
    bins = []
    for t in times.tolist():
        some = torch.arange(60)
        noise = torch.randn(x0[some].shape, generator=torch.Generator().manual_seed(1))
        at = torch.full((len(some),), t)
        guess = average(schedule.add_noise(x0[some], noise, at), at, states[1 + captions[some]])
        bins.append(float((guess - schedule.velocity(x0[some], noise, at)).square().mean()))
right.plot(times, bins, marker="o", color=lesson.COLOURS[1])
right.set(xlabel="timestep t", ylabel="loss", ylim=(0, None), title="What stays hard, by noise")
lesson.show(
    figure,
    alt="Left, the loss falls steeply and then slowly. Right, the loss after training over the timestep.",
)

# %% [markdown]
# The loss never goes to zero, and it cannot: pure noise does not say *where* the circle will be, so at the right end of
# the second curve the best answer is an average, with a squared error that no training removes. At the left end $v$ is
# nearly the noise, and there is so little of it that it is hard to see.
#
# **Predict, then run**: below, the same noise, drawn by the model as it was after more and more steps. What will be
# right first: the white background, the colour or the shape?

# %%
lesson.pictures(
    [film[k][row] for row in range(len(watched)) for k in film],
    alt="Three rows, six columns by training step: from mush to coloured blobs to shapes.",
    title="Learning to draw: the same noise, after more and more steps of training",
    columns=len(film),
    labels=[f"{k} steps" for k in film],
    rows=[each.removeprefix("a ").replace(" ", "\n") for each in watched],
    size=1.2,
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# What causes most of the squared error is learnt first: the background, which fills most of every image. Then a blob
# somewhere, then its colour, which is the same over many cells. The shape is decided by a few cells at the edge, and
# comes last. Large models learn in the same order, only that their "last" is hands and letters.
#
# </details>
#
# ## Does it follow the words?
#
# Looking is not measuring. Sticker World has an exact checker: it finds the objects in an image and says which of the
# words are right. Every prompt of the training, two images each, with and without guidance:

# %%
from minisd.sticker.world.checker.check import check


def share(prompts, scale, seed=10):
    """How often the colour is right, and how often the shape is right, too, where the colour is."""
    verdicts = [check(image, prompt) for image, prompt in zip(draw(prompts, seed, scale), prompts, strict=True)]
    coloured = [verdict for verdict in verdicts if verdict.colour]
    return len(coloured) / len(verdicts), sum(verdict.object for verdict in coloured) / max(1, len(coloured))


measured = {scale: share(taught * 2, scale) for scale in (0.0, 1.0, 3.0)}
for scale, (colour, shape) in measured.items():
    print(f"guidance {scale:g}: colour right {colour:4.0%}; of these images the shape {shape:4.0%}")
print(f"by chance: {1 / len(colours):.0%} and {len(colours) / len(taught):.0%}")
lesson.claim("with guidance, the colour is right in at least 60 %", measured[3.0][0] >= 0.6)
lesson.claim("without any words (scale 0) it is far from that", measured[0.0][0] < measured[3.0][0] - 0.2)
lesson.claim("the shapes are not learnt yet: right in less than half of them", measured[3.0][1] < 0.5)

# %% [markdown]
# The colours follow the words. The shapes are not learnt yet: after a minute of training corners are still rounded, so
# the checker recognises the right one no more often than guessing would name it. Guidance does not help them: it
# sharpens what was learnt, and cannot add what was not.
#
# ## What the shipped model does differently
#
# The embedded model is this lesson with more time. The same parts and the same kind of loss, and then:
#
# - **time**: hours instead of a minute, and many times as many images; its [README](../minisd/assets/sticker/README.md)
#   keeps the record;
# - **the whole world**: two objects, numbers, places, sizes and backgrounds, on images of twice the side, with captions
#   worded from many templates;
# - **weights for the timesteps**: each counts by the inverse of its usual loss, or the noisy end of the curve above
#   would get all the attention;
# - **a second loss** that teaches attention which place belongs to which word, because on a CPU, learning that from
#   images alone takes too long.
#
# And Stable Diffusion is the same once more, with a UNet of 859,520,964 parameters and the images of the internet.

# %%
count = sum(p.numel() for p in official.parameters())
lesson.claim("859,520,964 parameters", count == 859_520_964)

# %% [markdown]
# ## What you can now explain
#
# <details><summary>What does it save that the autoencoder is frozen?</summary>
#
# A frozen autoencoder gives an image the same latents in every round, so they are computed once. From then on the
# training needs neither the pixels nor the encoder.
#
# </details>
#
# <details><summary>Why does the loss not fall to zero, however long the training takes?</summary>
#
# Pure noise does not say where the object will be. So the best answer at the noisy end is an average, and its squared
# error stays.
#
# </details>
#
# <details><summary>Why does the training replace some captions by the empty one?</summary>
#
# Guidance also asks the UNet for a prediction without a prompt. The UNet can only answer if its training had empty
# prompts.
#
# </details>
#
# <details><summary>Why is it useful to know the first loss before the training begins?</summary>
#
# The untrained UNet answers 0, so its loss is the mean square of $v$, which follows from the noise and the latents.
# Another number means a mistake in the scaling, and it shows before any time is spent.
#
# </details>
#
# <details><summary>Why is the colour of an object learnt before its shape?</summary>
#
# The colour is the same over many cells, so a wrong colour causes much of the squared error. The shape is decided by a
# few cells at the edge.
#
# </details>
#
# ## Your turn
#
# Write this function yourself. `start` makes a file for it, and `minisd exercises check` compares your results with the
# reference and says what differs ([the exercises](../minisd/exercises/README.md)).
#
# - `minisd exercises start training_loss`: compute the loss of a training step, for a model that predicts the noise in
#   place of $v$.

# %% [markdown]
# ## Summary
#
# - Autoencoder and text encoder are frozen; the UNet alone is trained, on latents that are encoded once.
# - A round of training: clean latents, random noise, random timestep, the words or (one in ten) none; squared error
#   of $v$; a step of AdamW; a moving average that draws.
# - First the background is learnt, then colours, then shapes. The loss has a floor that is not zero.
# - What came out is a pipeline like any other: it can be guided, measured and saved.
#
# **Code**: `train_unet` in [unet.py](../minisd/sticker/training/unet.py), the loop around it, `train`, in
# [trainer.py](../minisd/training/trainer.py); `minisd train` runs them. **Next**: [14 · Inside the
# pipeline](14_inside_the_pipeline.ipynb).
