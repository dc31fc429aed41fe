# %% [markdown]
# # 18 · Inpainting, depth and upscaling
#
# **You will** give the UNet more to read than noisy latents: an image with a hole, a depth map, a small image. You put
# its input together by hand for three tasks, use three embedded models, and measure what they do; and you fill a hole
# with a model that was never taught to.
#
# **Needs** notebook 08 (guidance), notebook 09 (autoencoder), notebook 17 (image to image).
#
# **Takes** 20 minutes to read, less than a minute to run.

# %% [markdown]
# ## One layer has to change
#
# The UNet of text to image reads the 4 channels of the noisy latents. Suppose it should also know an image around a
# hole, or how near objects are. The simplest way to tell it is to lay more channels beside the latents, as further
# layers of the same "image". Only the first convolution has to be wider; all later layers keep their shape. The model
# is then trained on, with the new channels filled, until it has learnt to use them.

# %%
import lesson
import torch
import torch.nn.functional as F

import weights_loader
from minisd.images import to_pil

plain = weights_loader.load("sticker")
inpainting, depth_model, upscaler = (
    weights_loader.load(f"sticker-{name}") for name in ("inpainting", "depth", "upscaling")
)
for sd in (plain, inpainting, depth_model, upscaler):
    first = sd.unet.conv_in.weight
    print(f"{sd.task:10} first layer {tuple(first.shape)}: {first.shape[1] - 4} channels beside the latents")

# %% [markdown]
# | task | read beside the 4 channels of latents | in all |
# |---|---|---|
# | inpainting | the mask (1), the latents of the image with the hole (4) | 9 |
# | depth | the depth map (1) | 5 |
# | upscaling | the small image itself (3) | 7 |
#
# The official models of Stable Diffusion read the same channels in the same order. The weights for the new channels
# start at zero, so before the further training such a model draws exactly what the old one drew.
#
# To see what really arrives at the first layer, we catch its input:


# %%
def first_layer_input(sd, prompt, **arguments):
    """What the first layer reads at the first call of a run of the library."""
    caught = []
    handle = sd.unet.conv_in.register_forward_pre_hook(lambda module, args: caught.append(args[0].clone()))
    next(iter(sd.denoise(prompt, **arguments)))
    handle.remove()
    return caught[0]


print("plain:", tuple(first_layer_input(plain, "a red circle", seed=0).shape), "= (images, channels, rows, columns)")

# %% [markdown]
# ## Inpainting: nine channels
#
# Six scenes of one object each, a box around the object as the hole, and a prompt for something else in its place:

# %%
from minisd.sticker.evaluation import psnr
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.render import depth, masks, render
from minisd.sticker.world.scene import Object, Scene


def scene(*things, background="white"):
    """Each object: shape, colour, x, y."""
    return Scene(tuple(Object(*kind, "medium", x, y, radius=0.13) for *kind, x, y in things), background)


scenes = [
    scene(("circle", "red", 0.3, 0.3)),
    scene(("star", "green", 0.6, 0.4), background="beige"),
    scene(("heart", "purple", 0.5, 0.65)),
    scene(("square", "blue", 0.35, 0.6), background="black"),
    scene(("triangle", "orange", 0.65, 0.6)),
    scene(("ring", "pink", 0.45, 0.35)),
]
prompts = [
    "a blue star",
    "a red heart on a beige background",
    "a green circle",
    "an orange triangle on a black background",
    "a cyan square",
    "a red circle",
]


def boxes(scenes, side, margin=6):
    """1 in a box around the object, with some pixels more on each side: (B, 1, H, W)."""
    cover = masks(scenes, side).amax(1, keepdim=True) > 0
    hidden = torch.zeros(cover.shape)
    for hole, thing in zip(hidden[:, 0], cover[:, 0], strict=True):
        rows, columns = thing.nonzero().T
        top, left = (max(int(each.min()) - margin, 0) for each in (rows, columns))
        hole[top : int(rows.max()) + margin + 1, left : int(columns.max()) + margin + 1] = 1
    return hidden


side = inpainting.vae.config.sample_size
before, hidden = render(scenes, side), boxes(scenes, side)
print("images", tuple(before.shape), "masks", tuple(hidden.shape), "white where to paint")

# %% [markdown]
# The input of the first call, by hand. The mask shrinks to the size of the latents, and the image is encoded with the
# hole painted gray (zero, in values from -1 to 1), so that nothing of the old object can leak in.
#
# **Predict, then run**: nine channels go in at each of the steps. Which of them change from step to step?


# %%
@torch.no_grad()
def encoded(sd, pixels, draw):
    moments = sd.vae.encode(pixels)
    z = moments.mean + moments.std * torch.randn(moments.mean.shape, generator=draw)
    return z * sd.vae.config.scaling_factor


def inpainting_input(pixels, mask, seed):
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(pixels), 4, 16, 16, generator=draw)
    small_mask = F.interpolate(mask, size=(16, 16))
    holed = encoded(inpainting, pixels * (1 - mask), draw)
    return torch.cat([noise, small_mask, holed], dim=1)


mine = inpainting_input(before[:1], hidden[:1], seed=3)
theirs = first_layer_input(inpainting, prompts[0], image=before[:1], mask_image=hidden[:1], seed=3)
lesson.claim("nine channels", mine.shape[1] == 9)
lesson.claim("our input is the library's", torch.allclose(mine, theirs, atol=1e-5))
lesson.pictures(
    list(theirs[0]),
    alt="Nine small maps: four of noise, a mask with a white box, four in which the image around a hole shows.",
    title="What the inpainting UNet reads at its first step",
    columns=9,
    labels=["noise"] * 4 + ["mask"] + ["image\nwith hole"] * 4,
    size=0.95,
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Only the first four, the latents on their way from noise to image. The mask and the image with the hole are given once
# and laid beside the latents at every step. They also stay clean: the UNet need not guess the surroundings through the
# noise.
#
# </details>

# %%
run = {"num_inference_steps": 12, "output_type": "pt"}  # the same for all of this notebook
after = inpainting(prompts, image=before, mask_image=hidden, seed=0, **run).images


def right(images, prompts):
    """How many are exactly what the prompt says, by the checker."""
    return sum(check(image, prompt).exact for image, prompt in zip(images, prompts, strict=True))


def outside(images, mask=hidden):
    """How well the rest was kept, in dB (higher is better)."""
    return float(psnr(before * (1 - mask), images * (1 - mask)).mean())


with torch.no_grad():
    moments = inpainting.vae.encode(before).mean
    floor = inpainting.vae.decode(moments).clamp(-1, 1)
print(f"right: {right(after, prompts)} of 6; outside of the hole {outside(after):.1f} dB")
print(f"the autoencoder alone, without any painting: {outside(floor):.1f} dB")
lesson.pictures(
    [*to_pil(before), *to_pil(before * (1 - hidden)), *to_pil(after)],
    alt="Three rows of six: images, the same with a gray box, and what was painted in: other objects, same ground.",
    title="The hole is filled with what was asked, the ground goes on",
    columns=6,
    rows=["before", "with hole", "after"],
)
lesson.claim("most are exactly what was asked for", right(after, prompts) >= 4)
lesson.claim("what was outside is still there", outside(after) > 30)

# %% [markdown]
# ## The same with a model that knows no masks
#
# Must one train for this? A plain model can be *made* to keep the rest. After every step, throw away what it drew
# outside of the hole and put the old image there, with just as much noise as the latents have at that moment:
#
# $$x \leftarrow m\,x + (1-m)\,\bigl(\sqrt{\bar\alpha}\,z + \sqrt{1-\bar\alpha}\,\epsilon\bigr)$$
#
# with the mask $m$, the latents $z$ of the image, and always the same noise $\epsilon$. This is *latent blending*
# (Avrahami et al. 2023), and the older Stable Diffusion programs did it.


# %%
@torch.no_grad()
def blended(pixels, mask, prompt, seed, n=12, scale=3.0):
    draw = torch.Generator().manual_seed(seed)
    z = encoded(plain, pixels, draw)
    noise = torch.randn(z.shape, generator=draw)
    m = F.interpolate(mask, size=z.shape[2:])
    text = plain.encode_prompt(["", prompt])
    grid, x = plain.scheduler.grid(n), noise
    for i, t in enumerate(grid.timesteps):
        u, c = plain.unet(torch.cat([x, x]), t, text).chunk(2)
        x = plain.scheduler.step(grid, i, x, u + scale * (c - u)).x_prev
        s = grid.previous[i]  # the level that we have just reached; below 0 it is clean
        old = plain.scheduler.schedule.add_noise(z, noise, s) if s >= 0 else z
        x = m * x + (1 - m) * old
    return plain.decode(x)


mine = blended(before[:1], hidden[:1], prompts[0], seed=0)
forced = plain(prompts, image=before, mask_image=hidden, seed=0, **run).images
print(f"largest difference of a pixel: {float((mine - forced[:1]).abs().max()):.1e}")
lesson.claim("our blending is what sd(..., image=, mask_image=) does", torch.allclose(mine, forced[:1], atol=1e-2))

# %% [markdown]
# **Predict, then run**: which of the two keeps the outside better, and which fills the hole better? Think of what each
# one sees of the surroundings at the first steps, when the place of the new object is decided.

# %%
drawn_by = {"trained for it": [after], "blended": [forced]}
for name, sd in (("trained for it", inpainting), ("blended", plain)):  # six more of each
    drawn_by[name].append(sd(prompts, image=before, mask_image=hidden, seed=10, **run).images)
tally = {}
for name, rows in drawn_by.items():
    tally[name] = sum(right(images, prompts) for images in rows)
    print(f"{name:15} right: {tally[name]} of 12; outside {sum(map(outside, rows)) / 2:.1f} dB")
lesson.pictures(
    [*to_pil(after), *to_pil(forced)],
    alt="Above whole objects in the holes; below, by blending, some are cut off at the edge of the hole or missing.",
    title="Blending keeps the outside, but places the new object blindly",
    columns=6,
    rows=["trained", "blended"],
)
lesson.claim("the trained model is right more often", tally["trained for it"] > tally["blended"])

# %% [markdown]
# <details><summary>Answer</summary>
#
# Blending copies the old latents at the end, so outside it is nearly as good as the autoencoder, unless the content of
# the hole is so odd that the decoder, whose norms look at the whole image, spreads it. But at the first steps the plain
# model sees noise everywhere. It lays out a whole new image as it likes, and what falls outside of the hole is cut
# away. The trained model reads from the first step where the hole is, and puts the object into it.
#
# </details>
#
# ## Holes of other sizes
#
# Nothing forces the trained model to keep the rest: it draws the whole image and has learnt to copy. So what does it do
# where the hole is too small, and parts of the old object are outside of it? Here is the box around the object, shrunk
# and grown by some pixels.

# %%
sizes = []
for grow in (-10, 0, 20):
    window = 2 * abs(grow) + 1
    pooled = F.max_pool2d(hidden if grow > 0 else -hidden, window, stride=1, padding=abs(grow))
    hole = pooled if grow > 0 else -pooled
    images = inpainting(prompts, image=before, mask_image=hole, seed=0, **run).images
    sizes.append((grow, hole, images))
    print(
        f"box {grow:+3} pixels: {100 * float(hole.mean()):2.0f} % of the image; "
        f"right {right(images, prompts)} of 6; outside {outside(images, hole):.1f} dB"
    )
lesson.pictures(
    [image for _, _, images in sizes for image in to_pil(images)],
    alt="Three rows of six by size of the hole; in all of them there is a new object where the old one was.",
    title="With too small a hole the model changes what it should keep",
    columns=6,
    rows=[f"box {grow:+} px" for grow, *_ in sizes],
)
smallest, fitting = (outside(images, hole) for _, hole, images in sizes[:2])
lesson.claim("the smallest hole keeps the outside worst", smallest < fitting)

# %% [markdown]
# ## Depth: five channels
#
# A depth map says for each pixel how near it is. It fixes **outlines and places** and leaves colour and surface to the
# prompt. For photographs another network (MiDaS) estimates it; in Sticker World the renderer knows it. Official models
# shrink the map to the size of the latents and stretch each one to the range from -1 to 1, as only the order of near
# and far counts.

# %%
pairs = [
    scene(("circle", "red", 0.4, 0.28), ("square", "blue", 0.6, 0.72)),
    scene(("star", "green", 0.28, 0.4), ("heart", "orange", 0.72, 0.5)),
    scene(("ring", "purple", 0.5, 0.25), ("triangle", "cyan", 0.4, 0.7)),
]
recoloured = [
    "a green circle above an orange square",
    "a blue star left of a red heart",
    "a red ring above a green triangle",
]
near = depth(pairs, side)


def depth_input(near, seed):
    noise = torch.randn(len(near), 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    small = F.interpolate(near, size=(16, 16), mode="bicubic")
    low, high = small.amin((1, 2, 3), keepdim=True), small.amax((1, 2, 3), keepdim=True)
    return torch.cat([noise, 2 * (small - low) / (high - low) - 1], dim=1)


theirs = first_layer_input(depth_model, recoloured[0], depth_map=near[:1], seed=3)
lesson.claim("our five channels are the library's", torch.allclose(depth_input(near[:1], 3), theirs, atol=1e-5))

# %% [markdown]
# **Predict, then run**: one depth map, three seeds. What will be equal in the three images, what will differ?

# %%
drawn = depth_model(recoloured, depth_map=near, seed=0, **run).images
by_seed = depth_model("a circle above a square", depth_map=near[:1], seed=1, num_images_per_prompt=3, **run).images
free = plain(recoloured, seed=0, **run).images


def overlap(images):
    """Intersection over union of what is not white with where the objects should be, one for each image."""
    found, expected = (images - 1).abs().amax(1) > 0.5, masks(pairs, side).amax(1) > 0.5
    return (found & expected).sum((1, 2)) / (found | expected).sum((1, 2))


print(f"overlap with the map: {float(overlap(drawn).mean()):.2f}; without a map {float(overlap(free).mean()):.2f}")
print(f"right by the prompt: {right(drawn, recoloured)} of {len(pairs)}")
lesson.pictures(
    [*near[:, 0], *to_pil(drawn), *to_pil(by_seed)],
    alt="Three depth maps; drawings of other colours at the same places; one map with three seeds, places equal.",
    title="The map says where, the words say which colour",
    size=1.4,
    columns=3,
    rows=["map", "drawn", "map 1,\nthree seeds"],
)
lesson.claim("with the map, objects are where they should be", overlap(drawn).mean() > overlap(free).mean() + 0.2)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Places and sizes are equal, since the map holds them; colours differ, as these words leave them open. Outlines are
# held less well: the map was shrunk to the size of the latents, and where the words ask for something else, the words
# may win.
#
# </details>
#
# ## Upscaling: seven channels
#
# The last one reads a small image, here of 16 x 16 pixels, as large as the latents. It is put beside them as it is, in
# red, green and blue. One more detail is new: the small image may be **noised** a little on purpose. The artefacts of a
# real small image (blocks of JPEG, say) are hidden by that noise, and the model learns to invent what it cannot trust.
# The UNet gets the amount of this noise, `noise_level`, together with the timestep.


# %%
def upscaling_input(small, level, seed):
    draw = torch.Generator().manual_seed(seed)
    noised = upscaler.low_res.add_noise(small, torch.randn(small.shape, generator=draw), level)
    noise = torch.randn(len(small), 4, *small.shape[2:], generator=draw)
    return torch.cat([noise, noised], dim=1)


large = render(pairs, side)
small = F.interpolate(large, size=(16, 16), mode="area")
named = [
    "a red circle above a blue square",
    "a green star left of an orange heart",
    "a purple ring above a cyan triangle",
]
theirs = first_layer_input(upscaler, named[0], image=small[:1], noise_level=10, seed=3)
lesson.claim(
    "our seven channels are the library's", torch.allclose(upscaling_input(small[:1], 10, 3), theirs, atol=1e-5)
)

# %% [markdown]
# The alternative is *bicubic* interpolation, which lays a smooth surface through the pixels. It cannot know that a star
# has points.

# %%
smooth = F.interpolate(small, size=(side, side), mode="bicubic").clamp(-1, 1)
enlarged = {level: upscaler(named, image=small, noise_level=level, seed=0, **run).images for level in (0, 45)}
wordless = upscaler([""] * 3, image=small, noise_level=0, seed=0, **run).images
hiding = (1 - upscaler.low_res.alpha_bar(45)) ** 0.5
print(f"deviation of the noise at level 45: {hiding:.2f}, of values from -1 to 1")
for name, images in (
    ("bicubic", smooth),
    ("noise level 0", enlarged[0]),
    ("noise level 45", enlarged[45]),
    ("level 0, no words", wordless),
):
    print(f"{name:18} {float(psnr(large, images).mean()):.1f} dB, right {right(images, named)} of {len(named)}")
tiny = [image.resize((side, side), 0) for image in to_pil(small)]
lesson.pictures(
    [*tiny, *to_pil(smooth), *to_pil(enlarged[0]), *to_pil(large)],
    alt="Four rows of three: coarse pixels, blurred by bicubic interpolation, sharp by the model, and the original.",
    title="Interpolation blurs, the model draws edges",
    columns=3,
    size=1.4,
    rows=["small", "bicubic", "model", "original"],
)
lesson.claim(
    "the model is nearer to the original than bicubic", psnr(large, enlarged[0]).mean() > psnr(large, smooth).mean()
)

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why does only the first convolution change, when the UNet gets more channels?</summary>
#
# It turns its input, with however many channels, into a feature map of the old shape. All later layers see only this
# map.
#
# </details>
#
# <details><summary>Why do the weights of the new channels begin at zero?</summary>
#
# So the new channels have no effect at first, and the model draws what the old one drew. The further training starts
# from a model that works.
#
# </details>
#
# <details><summary>Why does blending often cut off the new object?</summary>
#
# At the first steps the plain model sees noise everywhere, so it does not know where the hole is. It places the object
# as it likes, and what falls outside of the hole is thrown away.
#
# </details>
#
# <details><summary>Why is the hole painted gray before the image is encoded?</summary>
#
# Else the latents would still contain the old object. The model could copy it, also from cells beside the hole, which
# the encoder computes from pixels of the hole.
#
# </details>
#
# <details><summary>Why does an upscaler add noise to the small image on purpose?</summary>
#
# The noise hides the faults of the small image. So the model learns to invent the details that it cannot trust, and
# `noise_level` tells it how much that is.
#
# </details>
#
# ## Your turn
#
# Write this function yourself. `start` makes a file for it, and `minisd exercises check` compares your results with the
# reference and says what differs ([the exercises](../minisd/exercises/README.md)).
#
# - `minisd exercises start mask_blend`: put the given image back outside of the mask.

# %% [markdown]
# ## Summary
#
# - More input is more **channels beside the latents**: 9 for inpainting, 5 for depth, 7 for upscaling. They are the
#   same at every step; only the latents change.
# - The mask and the image with its hole tell the UNet from the first step where to paint. Blending forces a plain model
#   to keep the rest, but the model does not know where the hole is.
# - A depth map holds places and outlines; the words decide the rest.
# - An upscaler reads the small image, and how much noise hides its faults.
#
# **Code**: `prepare_latents` in [initial_latents.py](../minisd/pipeline/initial_latents.py), the embedded task models
# in [task_variants.py](../minisd/adapters/task_variants.py), how they were
# [trained](../minisd/sticker/training/task_variants.py) and [measured](../minisd/sticker/evaluation/tasks.py).
# **Next**: [19 · Embedding surgery](19_embedding_surgery.ipynb).
