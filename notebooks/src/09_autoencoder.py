# %% [markdown]
# # 09 · The autoencoder and its latents
#
# **You will** squeeze images into latents and get them back, look at the four channels one by one, measure what is
# lost, train two small autoencoders to see why the encoder gives a distribution, and learn what the odd factor 0.18215
# is for.
#
# **Needs** notebook 00. Notebook 05 helps with the last section.
#
# **Takes** 25 minutes to read, about a minute to run.

# %% [markdown]
# ## Why not pixels?
#
# Denoising is many calls of a large network, and the cost of each grows with the number of places in the image, that of
# attention with its square. So Stable Diffusion works on something smaller (Rombach et al. 2022): an autoencoder,
# trained first and then frozen, turns an image into a small stack of *latents*, and latents back into an image. That of
# Stable Diffusion 1:
#
# ![The encoder halves the side of an image of 512 x 512 three times, down to latents of 4 x 64 x 64, which are 48 times
# fewer numbers; the decoder doubles it three times.](diagrams/autoencoder.png)

# %%
import lesson
import torch

import weights_loader
from minisd.configs import SD1_VAE
from minisd.images import to_pil
from minisd.sticker.world.render import render
from minisd.sticker.world.sampling import scene_from_seed
from minisd.sticker.world.scene import Object, Scene

sd = weights_loader.load("sticker")
vae = sd.vae
side = vae.config.sample_size
pixels = render([scene_from_seed(s) for s in range(8)], side)  # (8, 3, 128, 128) in [-1, 1]
with torch.no_grad():
    gauss = vae.encode(pixels)
    back = vae.decode(gauss.mean).clamp(-1, 1)

lesson.pictures(
    [*to_pil(pixels), *to_pil(back)],
    alt="Eight scenes of Sticker World above, and below the same scenes after encoding and decoding, hardly different.",
    title="There and back again: hardly a visible difference",
    columns=8,
    rows=["images", "after the\nround trip"],
)
print("pixels ", tuple(pixels.shape[1:]))
print("latents", tuple(gauss.mean.shape[1:]))

# %% [markdown]
# **Predict, then run**: how many times fewer numbers are that? And for SD 1, where images of 512 x 512 become latents
# of 64 x 64?


# %%
def times_smaller(pixels, latents):
    """How many numbers of the image share one number of the latents."""
    (c, h, w), (d, i, j) = pixels, latents
    return (c * h * w) / (d * i * j)


shape = tuple(gauss.mean.shape[1:])
ours = times_smaller(tuple(pixels.shape[1:]), shape)
official = times_smaller((3, 512, 512), (4, 64, 64))
print(f"embedded model: {pixels[0].numel():,} numbers become {gauss.mean[0].numel():,}: {ours:.0f} times smaller")
print(f"SD 1:           {3 * 512 * 512:,} numbers become {4 * 64 * 64:,}: {official:.0f} times smaller")
lesson.claim("48 times, both", ours == official == 48)
lesson.claim("24 channels would make it 8 times only", times_smaller((3, 512, 512), (24, 64, 64)) == 8)
lesson.claim("8 times along each side, 64 times fewer places", 512 // 64 == 8 == 2 ** (len(SD1_VAE.channels) - 1))

# %% [markdown]
# <details><summary>Answer</summary>
#
# 48 for both: 64 times fewer places, but 4 channels in place of 3, so $64 \cdot 3/4 = 48$. (Some lecture notes say that
# the latents are 64 x 64 x 24; they are 4 x 64 x 64.)
#
# </details>
#
# ## What attention costs
#
# Each place looks at each other place, so twice the side means four times the places and sixteen times the pairs:

# %%
for n in (16, 32, 64, 512):
    print(f"{n:3} x {n:3}: {n**2:>7,} places, {n**4:>14,} pairs")
print(f"pixels of SD 1 against its latents: {512**4 // 64**4:,} times the pairs")
lesson.claim("twice the side costs 16 times as much", 32**4 // 16**4 == 16)

# %% [markdown]
# ## The four channels, looked at
#
# What do the four numbers of a place mean? The training did not prescribe it, so look:

# %%
scene = Scene(
    (Object("star", "orange", "large", 0.3, 0.35, 0.19), Object("circle", "blue", "medium", 0.72, 0.72, 0.13))
)
picture = render([scene], side)
with torch.no_grad():
    z = vae.encode(picture).mean[0] * vae.config.scaling_factor
lesson.pictures(
    [to_pil(picture)[0]],
    alt="One scene of Sticker World, at full size for comparison.",
    title="the image",
    size=1.6,
)
lesson.pictures(
    list(z),
    alt="Four grey maps of the same scene: the objects stand out at their places, in each map with another brightness.",
    title="Latents are still images: objects are where they were",
    labels=[f"channel {k}" for k in range(len(z))],
    size=1.6,
)

# %% [markdown]
# Each map shows the layout clearly. To find out what a channel *does*, change it and decode:
#
# **Predict, then run**: one channel is set to its mean, everywhere. Will places be lost, colours, or edges?

# %%
changed = []
for k in range(len(z)):
    without = z.clone()
    without[k] = z[k].mean()
    changed.append(to_pil(sd.decode(without[None]))[0])
lesson.pictures(
    [to_pil(sd.decode(z[None]))[0], *changed],
    alt="The decoded scene, then with one channel flat each: the objects stay in place, colours or edges change.",
    title="Flatten one channel: objects stay in place, but look different",
    labels=["all channels", *(f"no channel {k}" for k in range(len(z)))],
    size=1.5,
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Not places: those are held by the places of the latents themselves. What an object *looks like* there is shared among
# the channels: some carry more of the colour, others more of the edges (compare the images), and none is simply "red".
# A linear map from the channels to red, green and blue goes a long way, though: notebook 15 fits one.
#
# </details>
#
# Since latents are laid out like the image, what one does to latents happens to the image:

# %%
other = Scene(
    (Object("square", "green", "large", 0.72, 0.3, 0.18), Object("triangle", "purple", "medium", 0.3, 0.75, 0.13))
)
half = z.shape[-1] // 2
flipped = z.flip(-1)
shifted = z.roll(half // 2, dims=-1)
with torch.no_grad():
    second = vae.encode(render([other], side)).mean[0] * vae.config.scaling_factor
joined = torch.cat([z[:, :, :half], second[:, :, half:]], dim=-1)
mixed = (z + second) / 2
lesson.pictures(
    [to_pil(sd.decode(each[None]))[0] for each in (z, flipped, shifted, second, joined, mixed)],
    alt="A scene, mirrored, shifted, another scene, halves of both joined, and the mean of both.",
    title="Edit the latents, and the image follows, more or less",
    labels=["latents", "mirrored", "shifted", "another", "halves joined", "mean of both"],
    size=1.4,
)

# %% [markdown]
# Not perfectly: a mirrored edge may come out rough, because latents also say which way an edge faces. And the decoder
# looks at the whole image (it has attention and norms), so joined parts have to fit together. And the mean of two
# latents is no scene of the world: something like a double exposure. There is no path through *meaning* between
# latents; for that the UNet is needed.
#
# ## What is lost
#
# The round trip is measured in decibels (PSNR): ten times the logarithm of the squared range over the mean squared
# error. Each 10 dB more is a tenth of the error.


# %%
def psnr(a, b):
    """Of images (B, 3, H, W) in [-1, 1], each: dB."""
    error = ((a - b) / 2).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error)


many = render([scene_from_seed(s) for s in range(100, 164)], side)
with torch.no_grad():
    again = vae.decode(vae.encode(many).mean).clamp(-1, 1)
quality = psnr(many, again)
worst = int(quality.argmin())
print(f"{len(many)} scenes: {quality.mean():.1f} dB on average, {quality.min():.1f} at worst")
small = torch.nn.functional.interpolate(many, scale_factor=1 / 2, mode="area")
plain = psnr(many, torch.nn.functional.interpolate(small, scale_factor=2.0, mode="bilinear").clamp(-1, 1))
print(f"halving the size keeps {small[0].numel():,} numbers, and gives {plain.mean():.1f} dB")
lesson.claim(
    "fewer numbers than half the size has, and still better",
    gauss.mean[0].numel() < small[0].numel() and quality.mean() > plain.mean(),
)

error = (many[worst] - again[worst]).abs().mean(0)
lesson.pictures(
    [to_pil(many[worst][None])[0], to_pil(again[worst][None])[0]],
    alt="The worst scene of all, before and after the round trip, with blurred edges.",
    title="The worst of them",
    labels=["before", "after"],
    size=1.6,
)
lesson.pictures(
    [error],
    alt="The error as a map: black in the areas, bright along the edges of the objects.",
    title="The errors are along the edges",
    cmap="magma",
    size=1.8,
)

# %% [markdown]
# Nothing that the UNet does can repair this: what the autoencoder cannot represent, no latents can contain. (With SD 1
# it shows in small faces and letters.)
#
# ## A distribution, not a point
#
# `vae.encode` returns a normal distribution for each latent: a mean and a deviation. The training of a *variational*
# autoencoder draws from it, so that the decoder learns to tolerate small errors; that keeps the space between latents
# smooth, and the UNet's predictions will always be a little off.
#
# **Predict, then run**: how large are the deviations, compared with the latents themselves? Will two draws decode to
# two different images?

# %%
with torch.no_grad():
    gauss = vae.encode(many)
    draws = [vae.decode(gauss.sample(torch.Generator().manual_seed(s))[:1]).clamp(-1, 1) for s in (1, 2)]
print(f"deviation of the latents over images and places: {gauss.mean.std():.2f}")
print(f"deviation of a single latent, from the encoder:  {gauss.std.mean():.3f}")
print(f"two draws of the first scene: {psnr(*draws)[0]:.1f} dB apart")
lesson.claim("the encoder is sure of itself", gauss.std.mean() < 0.1 * gauss.mean.std())
lesson.source(type(gauss))

# %% [markdown]
# <details><summary>Answer</summary>
#
# Small, so that draws can hardly be told apart. In training, the pull towards wide distributions is very weak for
# latent diffusion: latents should be smooth, but first of all they should say what is in the image.
#
# </details>
#
# ## Train one yourself, with and without the pull
#
# How does one train through a random draw? The draw itself has no derivative with respect to the mean $m$ and the
# deviation $s$. But it can be written as
#
# $$z = m + s \cdot \epsilon, \quad \epsilon \sim \mathcal{N}(0, 1), \qquad \text{so} \quad
# \frac{\partial z}{\partial m} = 1, \quad \frac{\partial z}{\partial s} = \epsilon.$$
#
# Now the chance comes from outside, and $z$ is an ordinary function of $m$ and $s$. This is the *reparameterisation*
# (Kingma and Welling 2013).

# %%
mean, deviation = torch.tensor(0.7, requires_grad=True), torch.tensor(0.3, requires_grad=True)
torch.normal(mean, deviation).backward()
lesson.claim("a draw as it is has no gradient for the mean", mean.grad is None or mean.grad == 0)
mean.grad = deviation.grad = None

epsilon = torch.tensor(-1.3)
(mean + deviation * epsilon).backward()
lesson.claim("written with the noise outside, it has", mean.grad == 1 and deviation.grad == epsilon)

# %% [markdown]
# And why a pull? If only the reconstruction counted, the encoder would choose $s = 0$ and put the means anywhere. So
# the loss has a second part, the *Kullback-Leibler divergence* of each latent's distribution from $\mathcal{N}(0, 1)$.
# For two normal distributions the integral has a closed form:
#
# $$\mathrm{KL} = \tfrac{1}{2} \left( m^2 + s^2 - 1 - \log s^2 \right)$$
#
# It is 0 at $m = 0$, $s = 1$ only. It grows with the square of $m$, and without bound as $s$ goes to 0.


# %%
def kl(mean, log_variance):
    """Of N(mean, variance) from N(0, 1), for each number."""
    return (mean.square() + log_variance.exp() - 1 - log_variance) / 2


m, s = torch.randn(5, generator=torch.Generator().manual_seed(0)), torch.tensor([0.01, 0.1, 0.5, 1.0, 3.0])
expected = torch.distributions.kl_divergence(torch.distributions.Normal(m, s), torch.distributions.Normal(0.0, 1.0))
lesson.claim("the closed form is right", torch.allclose(kl(m, 2 * s.log()), expected, atol=1e-5))

# %% [markdown]
# Two small autoencoders, equal but for the weight of this part. An image of one object, 32 x 32 pixels, becomes no more
# than eight numbers. Each trains for 600 steps, some ten seconds.

# %%
import random

from torch import nn

from minisd.sticker.world.palette import COLOURS
from minisd.sticker.world.shapes import SHAPES

dice = random.Random(0)
things = [
    Object(dice.choice(list(SHAPES)), dice.choice(list(COLOURS)), "large", 0.5, 0.5, dice.uniform(0.18, 0.32))
    for _ in range(2000)
]
objects = torch.cat([render([Scene((thing,)) for thing in things[i : i + 250]], 32) for i in range(0, 2000, 250)])
learn, unseen = objects[:-200], objects[-200:]
numbers = 8


def half(inputs, outputs):
    return nn.Conv2d(inputs, outputs, kernel_size=4, stride=2, padding=1), nn.SiLU()


def double(inputs, outputs):
    return nn.SiLU(), nn.ConvTranspose2d(inputs, outputs, kernel_size=4, stride=2, padding=1)


def train_autoencoder(pull, steps=600):
    """An encoder to means and log variances, and a decoder. pull: the weight of the divergence; 0: no draws either."""
    torch.manual_seed(0)
    last = nn.Flatten(), nn.Linear(64 * 16, 2 * numbers)
    encoder = nn.Sequential(*half(3, 24), *half(24, 48), *half(48, 64), *last)
    first = nn.Linear(numbers, 64 * 16), nn.Unflatten(1, (64, 4, 4))
    decoder = nn.Sequential(*first, *double(64, 48), *double(48, 24), *double(24, 3))
    optimiser = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], 4e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for _ in range(steps):
        batch = learn[torch.randint(len(learn), (32,))]
        mean, log_variance = encoder(batch).chunk(2, dim=1)
        noise = torch.randn_like(mean) if pull else 0
        z = mean + (log_variance / 2).exp() * noise
        error = (decoder(z) - batch).square().sum((1, 2, 3)).mean()
        loss = error + pull * kl(mean, log_variance).sum(1).mean() if pull else error
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    return encoder, decoder


free, pulled = train_autoencoder(pull=0), train_autoencoder(pull=4)

# %% [markdown]
# **Predict, then run**: which one gives images back better? And what will each decoder draw from eight numbers of
# $\mathcal{N}(0, 1)$, instead of from an image?

# %%
fresh = torch.randn(200, numbers, generator=torch.Generator().manual_seed(1))
shown, quality, nearest = [*to_pil(unseen[:8])], {}, {}
with torch.no_grad():
    for name, (encoder, decoder) in {"free": free, "pulled": pulled}.items():
        z = encoder(unseen)[:, :numbers]
        decoded, drawn = decoder(z).clamp(-1, 1), decoder(fresh).clamp(-1, 1)
        quality[name] = float(psnr(unseen, decoded).mean())
        distances = torch.cdist(drawn.flatten(1), learn.flatten(1)).min(1).values.square() / learn[0].numel()
        nearest[name] = float(distances.mean())
        print(f"{name:6}  given back: {quality[name]:.1f} dB   deviation of the numbers: {z.std():.1f}")
        print(f"{'':6}  from N(0, 1): mean square {nearest[name]:.3f} to the nearest image of the training")
        shown += [*to_pil(decoded[:8]), *to_pil(drawn[:8])]
lesson.claim("without the pull, images come back better", quality["free"] > quality["pulled"] + 1)
lesson.claim("with it, random numbers decode to objects", nearest["pulled"] < nearest["free"] / 3)
lesson.pictures(
    shown,
    alt="Eight objects; given back without the pull, sharp, and fog from random numbers; given back with it, softer, "
    "and objects of one colour or two from random numbers.",
    title="The pull costs sharpness, and makes random numbers into objects",
    columns=8,
    rows=["images", "free:\ngiven back", "free: from\nN(0, 1)", "pulled:\ngiven back", "pulled: from\nN(0, 1)"],
    size=0.9,
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Without the pull the numbers may lie anywhere, so $\mathcal{N}(0, 1)$ hits places where no image ever was. With it
# the space is filled: near every point there is an object. This is a generative model already, a *variational
# autoencoder*. Its objects are soft, and no prompt says which one comes. Stable Diffusion divides the work: its
# autoencoder has hardly any pull and keeps the details, and the diffusion model learns where images lie.
#
# </details>
#
# The autoencoder of Stable Diffusion was trained with two more losses, because squared errors alone reward blur: a
# *perceptual* loss compares the features of a recognition network instead of pixels, and a small *discriminator* tells
# patches of decoded images from patches of real ones (Rombach et al. 2022, appendix G). On flat shapes neither is
# needed.
#
# ## The odd factor
#
# The noise of a diffusion model has deviation 1, and the schedule (notebook 05) assumes the same of the image. Latents
# come out of the autoencoder at an arbitrary scale, so they are multiplied by a constant: one over their deviation,
# measured once. For SD 1 that gave 0.18215, and every SD 1 and 2 program holds this number. In minisd it is applied in
# exactly one place, the pipeline; the autoencoder itself does not use it.

# %%
factor = vae.config.scaling_factor
print(f"factor {factor}: it stands for a deviation of 1 / {factor} = {1 / factor:.2f}")
print(f"deviation of the scaled latents of {len(many)} scenes: {(gauss.mean * factor).std():.2f}")
lesson.claim("near 1, as the noise schedule expects it", 0.5 < float((gauss.mean * factor).std()) < 2)
raw = vae.encode(many[:1]).mean
lesson.claim("sd.decode undoes it", torch.allclose(sd.decode(raw * factor), vae.decode(raw).clamp(-1, 1), atol=1e-4))

figure, panel = lesson.axes(width=5, height=2.6)
bins = torch.linspace(-4, 4, 81)
for k in range(gauss.mean.shape[1]):
    values = (gauss.mean[:, k] * factor).flatten()
    panel.plot(
        bins[:-1] + 0.05,
        torch.histogram(values, bins, density=True).hist,
        label=f"channel {k}",
        linestyle=["-", "--", "-.", ":"][k % 4],
    )
panel.set(xlabel="scaled latent", ylabel="density")
panel.legend()
lesson.show(
    figure,
    alt="Densities of the four channels: tall peaks, where the plain background is, with long tails to both sides.",
    title="A plain background is a sharp peak: no Gaussian",
)

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why does the UNet work on latents and not on pixels?</summary>
#
# Latents have far fewer places, and the cost of each of the UNet's many calls grows with their number. The cost of
# attention grows with the square of that number.
#
# </details>
#
# <details><summary>Why can no UNet repair what the autoencoder loses?</summary>
#
# The decoder makes every image from latents. What no latents can represent, the decoder never draws, whichever latents
# the UNet finds.
#
# </details>
#
# <details><summary>Why is the mean of two latents not a scene between two scenes?</summary>
#
# Latents say what each place looks like. So their mean mixes the two images place by place, and the result shows both
# objects at once and none of them well.
#
# </details>
#
# <details><summary>Why does the encoder give a distribution and not a point?</summary>
#
# In training the decoder gets latents that are drawn from this distribution, so it learns to tolerate small errors. The
# UNet's predictions are always a little off, so they need a tolerant decoder.
#
# </details>
#
# <details><summary>What would happen if the factor were forgotten before the noise is added?</summary>
#
# The latents would be several times larger than the schedule assumes. So the same timestep would hide less of the image
# than in training, and the UNet would see a mixture that does not belong to its timestep.
#
# </details>
#
# ## Your turn
#
# Write this function yourself. `start` makes a file for it, and `minisd exercises check` compares your results with the
# reference and says what differs ([the exercises](../minisd/exercises/README.md)).
#
# - `minisd exercises start sample_latents`: draw latents from the encoder's distribution, and scale them for the UNet.

# %% [markdown]
# ## Summary
#
# - The autoencoder makes the image small, SD 1's 48 times; denoising happens there, and attention becomes affordable.
# - Latents are laid out like the image: places stay places, and the channels share what is at each place.
# - What is lost is lost for good; it is lost along edges. The encoder gives a narrow distribution.
# - Training draws as $m + s \epsilon$, so that gradients pass. A strong pull to $\mathcal{N}(0, 1)$ makes an
#   autoencoder generative and soft; a weak one keeps details.
# - One factor brings latents to the scale of the noise.
#
# **Code**: [vae.py](../minisd/models/vae.py), `encode` and `decode` in
# [stable_diffusion.py](../minisd/pipeline/stable_diffusion.py). **Next**: [10 · Byte-pair
# encoding](10_byte_pair_encoding.ipynb).
