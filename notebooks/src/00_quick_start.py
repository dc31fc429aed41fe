# %% [markdown]
# # 00 · Quick start: an image from words
#
# **You will** draw images from a prompt, watch one come out of noise step by step, and see what the three knobs do that
# every Stable Diffusion program has: seed, steps and guidance.
#
# **Needs** nothing but `pip install -e ".[notebooks]"` in a clone of this repository: a small model is part of the
# package. No download, no account, no GPU.
#
# **Takes** 10 minutes to read, less than a minute to run.

# %% [markdown]
# ## An image in two lines
#
# `"sticker"` is the embedded model. It is a whole Stable Diffusion: it has the same parts as the official models, and
# the same code loads it. But it is small, and it was trained on Sticker World only: coloured shapes on plain
# backgrounds. Give `load` an official checkpoint instead, and the rest of this notebook runs unchanged.

# %%
import lesson

import weights_loader

sd = weights_loader.load("sticker")
picture = sd("a red circle", seed=1).images[0]

lesson.pictures([picture], alt="A red circle on a white background, 128 pixels wide.", size=1.8)

# %% [markdown]
# The first two lines after the imports were the whole program. It has four parts, each a plain PyTorch module (or,
# the first, a table) that later notebooks take apart:


# %%
def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


print(f"tokenizer     {len(sd.tokenizer)} pieces of words")
print(f"text encoder  {millions(sd.text_encoder):.2f} million parameters: what does the prompt mean?")
print(f"unet          {millions(sd.unet):.2f} million parameters: what in here is noise?")
print(f"vae           {millions(sd.vae):.2f} million parameters: from latents to pixels and back")

# %% [markdown]
# This is how the parts work together. The sizes are those of Stable Diffusion 1; the embedded model is smaller. The
# loop at the bottom, in orange, is the subject of this notebook.
#
# ![A prompt goes through tokenizer and text encoder into the UNet; its predictions go through guidance and a step of
# the sampler back into it, again and again; at the end the decoder makes the image.](diagrams/pipeline.png)
#
# ## Seeds: one prompt, many images
#
# An image begins as pure noise, and the seed chooses this noise. Everything after that is arithmetic.
#
# **Predict, then run**: four images of seeds 1, 2, 3 and 4, and then seed 3 alone. Will this single image look like the
# third of the four?

# %%
prompt = "a green star"
four = sd(prompt, num_images_per_prompt=4, seed=1)
alone = sd(prompt, seed=3)
lesson.pictures(
    [*four.images, alone.images[0]],
    alt="Five images of a green star at different places, the last one the same as the third.",
    title="The seed decides what the prompt left open: place and size",
    labels=[*(f"seed {s}" for s in four.seeds), "seed 3, alone"],
)

# %%
import numpy as np

difference = np.abs(np.asarray(four.images[2], dtype=int) - np.asarray(alone.images[0], dtype=int)).max()
print("largest difference of a pixel value:", difference)
lesson.claim("image k of a batch is the image of seed + k, to within one step of 8 bits", difference <= 1)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Yes. Each image has a random generator of its own, so its noise does not depend on how many other images are drawn
# with it. (In many programs it does: there you cannot get the third image again without drawing the first two.)
#
# </details>

# %% [markdown]
# ## Inside: the denoising loop
#
# `sd(...)` hides a loop, and `sd.denoise(...)` is that loop: an ordinary Python iterator. Each step asks the UNet
# what in the latents is noise, and takes some of it away. A step carries
#
# - `step.t`, the timestep: how noisy the latents were, from 999 (nothing but noise) down to 0 (clean),
# - `step.latents`, the latents after the step, called $x_t$,
# - `step.x0`, the finished image, as the UNet predicts it **at this moment**.
#
# **Predict, then run**: look at the upper row only, from the left. In which column can you name the objects? And in the
# lower row?

# %%
from minisd.images import to_pil

prompt = "a red circle above a blue square"
steps = list(sd.denoise(prompt, seed=3))
shown = [*steps[::3], steps[-1]]


def decoded(latents):
    """Latents (1, 4, h, w) as an image."""
    return to_pil(sd.decode(latents))[0]


lesson.pictures(
    [decoded(s.latents) for s in shown] + [decoded(s.x0) for s in shown],
    alt="Above, noise turns into an image late; below, the predicted image is there early.",
    title="The prediction knows early what the noisy image shows late",
    columns=len(shown),
    labels=[f"t = {int(s.t)}" for s in shown],
    rows=["$x_t$", "predicted\n$x_0$"],
)
print(len(steps), "steps, from t =", int(steps[0].t), "to t =", int(steps[-1].t))
lesson.claim("the loop begins at t = 999, pure noise", int(steps[0].t) == 999)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The prediction $x_0$ has colours and a rough layout in its first columns, while $x_t$ still looks like noise to us;
# the later steps sharpen it. At the first step the UNet sees nothing but noise: all it can draw from are the words.
# Notebook 15 makes a film of this.
#
# </details>
#
# The loop is yours, so you can do in it whatever you want. A progress bar is `tqdm(sd.denoise(...))`, an early stop is
# `break`:

# %%
for step in sd.denoise(prompt, seed=3):
    if step.i == 9:
        break

lesson.pictures(
    [decoded(step.latents), decoded(step.x0), decoded(steps[-1].latents)],
    alt="Left a noisy image, in the middle the image predicted from it, right the finished one of the same layout.",
    title="Stopped half way, the prediction is already an image",
    labels=["$x_t$ after 10 steps", "$x_0$ predicted there", f"after all {len(steps)}"],
    size=1.5,
)

# %% [markdown]
# ## Steps: how fine the path is
#
# `num_inference_steps` says in how many steps the noise goes away. More steps cost more time, one call of the UNet
# each.
#
# **Predict, then run**: what will one single step give, if at the first step there is nothing to see but noise?

# %%
counts = [1, 2, 3, 5, 10, 20, 50]
by_count = [sd("a blue star", seed=4, num_inference_steps=n).images[0] for n in counts]
lesson.pictures(
    by_count,
    alt="A pale blur with one step, fragments with 2 and 3, a small blue star with 5, a larger one from 10 on.",
    title="One step gives an average, two and three give fragments, ten give the image",
    labels=[f"{n} step" + "s" * (n > 1) for n in counts],
)


def distance(a, b):
    """Mean difference of two images' pixel values, 0 to 255."""
    return np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean()


far = [distance(image, by_count[-1]) for image in by_count]
for n, each in zip(counts[:-1], far[:-1], strict=True):
    print(f"{n:3} steps: differs from 50 steps by {each:5.1f} of 255")
lesson.claim("from 10 steps on the image hardly changes", max(far[4:]) < 2)
lesson.claim("the blur of one step is nearer to the end than the fragments of two", far[0] < far[1])

# %% [markdown]
# <details><summary>Answer</summary>
#
# A pale smear. The best single guess for all the images that might be hidden in pure noise is their average: a little
# of a star everywhere that a star could be, and nowhere sharply. Each further step has more information for its guess.
# Two and three steps are sharper, but sharp in the wrong places, so they are further from the finished image than the
# blur is or about as far: a pale average is never very wrong.
#
# </details>
#
# ## Guidance: how much the words count
#
# At each step the UNet is asked twice: what is noise, **given the prompt**, and what is noise, given no prompt at all?
# The difference between the two answers is what the words change, and guidance exaggerates it. At scale 0 the prompt
# has no effect, at 1 it counts as it is, above 1 its effect is amplified.

# %%
scales = [0, 1, 3, 6, 12]
rows = [sd("a purple triangle", num_images_per_prompt=len(scales), seed=1, guidance_scale=s).images for s in scales]
lesson.pictures(
    [image for row in rows for image in row],
    alt="Five rows of five images: at guidance 0 any objects, from scale 1 on purple triangles.",
    title="At scale 0 anything may come; from 1 on, what the prompt asks for",
    columns=len(scales),
    rows=[f"scale {s}" for s in scales],
)

# %% [markdown]
# **Predict, then run**: the same noise, scale 0, but another prompt. Will the image change?

# %%
other = sd("a yellow square", seed=1, guidance_scale=0).images[0]
lesson.claim("at guidance 0 the prompt makes no difference", distance(other, rows[0][0]) < 0.5)

# %% [markdown]
# <details><summary>Answer</summary>
#
# No: at scale 0 only the answer without a prompt counts. Why it works this way, and why the UNet "returns two images"
# under guidance, is the subject of notebook 08.
#
# </details>
#
# ## Is it right? Ask the checker
#
# No large model can offer this: in Sticker World a program can say exactly whether an image shows what was asked.

# %%
from minisd.sticker.world.checker.check import check

prompts = ["a red circle", "a blue square", "a green star", "a yellow triangle"]
right = 0
for words in prompts:
    for image in sd(words, num_images_per_prompt=4, seed=0).images:
        right += check(image, words).exact
print(f"{right} of {4 * len(prompts)} images show exactly what was asked")
lesson.claim("most of them do", right > 8)

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why can you get the third image of a batch without drawing the first two?</summary>
#
# Each image has a random generator of its own, which begins with its own seed. So its noise does not depend on the
# other images, and after the noise everything is arithmetic.
#
# </details>
#
# <details><summary>What is the difference between the latents after a step and the predicted image?</summary>
#
# The latents $x_t$ still contain the noise that later steps take away. The prediction $x_0$ is the finished image as
# the UNet guesses it at this moment: it has no noise, but it is vague where the UNet is not sure yet.
#
# </details>
#
# <details><summary>Why is the image of one single step a pale blur?</summary>
#
# The only call of the UNet sees pure noise, so all images that fit the words are possible. Its best guess is their
# average, and an average of objects at many places has no sharp edges.
#
# </details>
#
# <details><summary>What would the guidance scale change, if the prompt made no difference to the prediction?</summary>
#
# Nothing. Guidance adds a multiple of the difference between the predictions with and without the prompt, and every
# multiple of 0 is 0.
#
# </details>
#
# <details><summary>Why can a program judge these images exactly, and not photographs?</summary>
#
# Sticker World has a few shapes and colours on plain backgrounds, so a program can find every object and compare it
# with the words. Photographs and free text have no such list.
#
# </details>
#
# ## Your turn
#
# [The exercises](../minisd/exercises/README.md) begin with notebook 03. Try these experiments in the cells above; where
# a claim becomes false, its cell stops, and that is a finding as well.
#
# - In the cell with four seeds, change one word of the prompt and keep the seeds: which of place, size and colour stay?
# - In the loop with `break`, stop at `step.i == 4` and at `step.i == 14`, and compare the predicted image with the
#   finished one.
# - In the cell with seven numbers of steps, take other seeds, and look from how many steps on the image hardly changes.

# %% [markdown]
# ## Summary
#
# - `weights_loader.load("sticker")` gives a pipeline, `sd(prompt, seed=...)` images, `sd.denoise(...)` the loop itself.
# - The **seed** chooses the noise, the **steps** how finely it is taken away, **guidance** how much the words count.
# - What the UNet predicts, $x_0$, is an image long before the latents are.
#
# **Code**: the loop is `denoising_loop` in [denoising.py](../minisd/pipeline/denoising.py); the checker is `check` in
# [check.py](../minisd/sticker/world/checker/check.py). **Next**: [05 · The noise schedule](05_noise_schedule.ipynb), or
# take the pipeline apart in [14 · Inside the pipeline](14_inside_the_pipeline.ipynb).
