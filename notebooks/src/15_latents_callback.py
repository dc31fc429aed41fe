# %% [markdown]
# # 15 · The latents callback: watching an image come out of noise
#
# **You will** run the callback of the fast.ai lesson unchanged, on a pipeline that you have put together from its
# components; make a filmstrip and an animation of the latents beside what the UNet predicts; and know the traps: when a
# callback fires, and why looking must not change the image.
#
# **Needs** notebook 14 (the components), notebook 05 (what $x_t$ and $x_0$ are).
#
# **Takes** 20 minutes to read, less than a minute to run.

# %% [markdown]
# ## From components to a pipeline that takes a callback
#
# A callback is a function that the pipeline calls on its way. The lesson passes one to a finished, pretrained
# pipeline; the question that it leaves open is how to get there when you have the parts in your hands. Like this:

# %%
import lesson
import torch

import weights_loader
from minisd.course import StableDiffusionPipeline

parts = weights_loader.load("sticker")  # only for its parts; your own will do

pipe = StableDiffusionPipeline(
    vae=parts.vae,
    text_encoder=parts.text_encoder,
    tokenizer=parts.tokenizer,
    unet=parts.unet,
    scheduler=parts.scheduler,
)

# %% [markdown]
# Now the callback, word for word as in the lesson. It gets the index `i` of the call, the timestep `t`, and the latents
# after that step. It undoes the scaling, decodes, and keeps the image.
#
# **Predict, then run**: 50 steps, and `callback_steps=12`. How many images will there be, the finished one included?

# %%
vae = pipe.vae
images = []


def latents_callback(i, t, latents):
    latents = 1 / 0.18215 * latents
    image = vae.decode(latents).sample[0]
    image = (image / 2 + 0.5).clamp(0, 1)
    image = image.cpu().permute(1, 2, 0).numpy()
    images.extend(pipe.numpy_to_pil(image))


prompt = "a red circle above a blue square"
torch.manual_seed(3)
final_image = pipe(
    prompt, num_inference_steps=50, guidance_scale=3.0, callback=latents_callback, callback_steps=12
).images[0]
images.append(final_image)

lesson.pictures(
    images,
    alt="Six images from noise at the left to a red circle above a blue square at the right.",
    title="The callback of the lesson, unchanged",
    labels=["i = 0", "i = 12", "i = 24", "i = 36", "i = 48", "finished"],
)
lesson.claim("six images", len(images) == 6)
lesson.claim("0.18215 is this model's scaling factor, too", vae.config.scaling_factor == 0.18215)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Six. The callback fires at every call with `i % callback_steps == 0`, counted from 0: at 0, 12, 24, 36 and 48; and the
# lesson appends the finished image itself. (Programs differ here. Later releases of diffusers skip the first call of
# PLMS, and show five.)
#
# </details>

# %%
fired = []
pipe(prompt, callback=lambda i, t, latents: fired.append((i, int(t))), callback_steps=12)
print("fired at (i, t):", fired)
lesson.claim("it fires at 0, 12, 24, 36 and 48", [i for i, _ in fired] == [0, 12, 24, 36, 48])

# %% [markdown]
# ## The same without a callback
#
# In minisd the loop is an iterator, so what is a callback elsewhere is the body of a `for` loop here. And a step
# carries more: besides the latents $x_t$ there is `x0`, the image that the UNet predicts at that moment. `Film` keeps
# both:

# %%
from minisd.images import image_grid, to_pil
from minisd.interpret.film import Film

film = Film(parts, every=2)
for step in film.watch(parts.denoise(prompt, seed=3, num_inference_steps=20)):
    last = step  # here is the place for whatever you like to do with a step

print(f"kept {len(film.steps)} of {last.i + 1} steps")
shown = [film.steps[k] for k in (0, 1, 2, 3, 4, 6, 8, 10)]


def decoded(latents):
    return to_pil(parts.decode(latents))[0]


lesson.pictures(
    [decoded(s.latents) for s in shown] + [decoded(s.x0) for s in shown],
    alt="Above x_t, noise until late; below the predicted x0, vague at first, then early a circle above a square.",
    title="Blurry, then it snaps: the prediction is there while $x_t$ is still noise",
    columns=len(shown),
    labels=[f"t = {int(s.t)}" for s in shown],
    rows=["$x_t$", "predicted\n$x_0$"],
)

# %% [markdown]
# And as an animation, $x_t$ at the left and $x_0$ at the right (`film.gif("film.gif")` writes a file):

# %%
whole = Film(parts)
for _ in whole.watch(parts.denoise(prompt, seed=3, num_inference_steps=20)):
    pass

frames = [image_grid([decoded(s.latents), decoded(s.x0)], 2, gap=2).resize((208, 104)) for s in whole.steps]
lesson.animation(
    frames, alt="At the left noise turns slowly into two objects, at the right the prediction sharpens early."
)

# %% [markdown]
# ## How early is it right?
#
# "Early" can be measured. At each step we ask two questions about the prediction: how far is it from the final image,
# and would the checker of Sticker World already accept it?
#
# **Predict, then run**: of 20 steps, after how many is the *predicted* image right, and after how many is $x_t$?

# %%
from minisd.sticker.world.checker.check import check

asked, count = "a yellow star", 8
run = list(parts.denoise(asked, num_images_per_prompt=count, seed=0, num_inference_steps=20))  # all eight at once


def share(field):
    """For each step, the share of the images that are right."""
    pictures = [to_pil(parts.decode(getattr(step, field))) for step in run]
    return [sum(check(each, asked).exact for each in row) / count for row in pictures]


def error(field):
    """For each step, the distance to the final latents."""
    return [float((getattr(step, field) - run[-1].latents).square().mean().sqrt()) for step in run]


x0_right, xt_right = share("x0"), share("latents")
figure, (left, right_panel) = lesson.axes(1, 2, width=3.7, height=2.7)
for panel, name, (of_x0, of_xt) in (
    (left, "distance to the end", (error("x0"), error("latents"))),
    (right_panel, "share right", (x0_right, xt_right)),
):
    panel.plot(range(1, 21), of_x0, marker="o", markersize=3, label="predicted $x_0$")
    panel.plot(range(1, 21), of_xt, marker="s", markersize=3, linestyle="--", label="$x_t$")
    panel.set(xlabel="after step", ylabel=name, xticks=(1, 5, 10, 15, 20))
left.legend(loc="upper right")
lesson.show(
    figure,
    alt="Left, the distance of x0 to the end falls earlier than that of x_t. Right, x0 is right many steps before x_t.",
    title="The prediction is right long before the latents are",
)


def half(shares):
    """The first step after which at least half of the images are right."""
    return next(i + 1 for i, value in enumerate(shares) if value >= 0.5)


print(f"half of the images are right after step {half(x0_right)} by x0, after step {half(xt_right)} by x_t")
lesson.claim("x0 is right in the first half of the steps, x_t in the second", half(x0_right) <= 10 < half(xt_right))

# %% [markdown]
# <details><summary>Answer</summary>
#
# In the first half of the run, when $x_t$ is still noise. The first steps decide *what* and *where*; the later ones
# take away noise that no longer misleads the prediction, and sharpen edges. So a preview of $x_0$ tells early whether a
# run is worth its time, and `break` ends one that is not.
#
# </details>
#
# ## Trap 1: a preview must not change the image
#
# In some versions of a well-known notebook the preview called the sampler's `step` a second time. Samplers that
# remember earlier answers (PLMS, LMS) then count each answer twice, and the image changes because someone looked. Here
# a step is a pure function: equal inputs give equal outputs, and its memory is passed in and returned. And a callback
# gets a copy.
#
# **Predict, then run**: a callback that sets all latents to zero. What will the image be?


# %%
def vandal(i, t, latents):
    latents.zero_()


quiet = pipe(prompt, generator=torch.Generator().manual_seed(3), num_inference_steps=20, guidance_scale=3.0).images[0]
loud = pipe(
    prompt, generator=torch.Generator().manual_seed(3), num_inference_steps=20, guidance_scale=3.0, callback=vandal
).images[0]
lesson.claim("the image is the same, bit for bit", quiet.tobytes() == loud.tobytes())

# %%
from minisd.schedulers import PNDM

sampler = PNDM()
grid, memory = sampler.grid(10), None
generator = torch.Generator().manual_seed(0)
x = y = torch.randn(1, 4, 8, 8, generator=generator)
other_memory = None
for i in range(len(grid)):
    answer = torch.randn(x.shape, generator=generator)  # any model will do
    x, _, memory = sampler.step(grid, i, x, answer, memory)
    sampler.step(grid, i, y, answer, other_memory).x0  # a preview: step once more, and throw it away
    y, _, other_memory = sampler.step(grid, i, y, answer, other_memory)
lesson.claim("stepping twice changes nothing, with a sampler that remembers", torch.equal(x, y))

# %% [markdown]
# <details><summary>Answer</summary>
#
# The same as before: the callback set a copy to zero. There are other ways to *steer* a run: a guidance scale for each
# step, or a loss (notebook 20).
#
# </details>
#
# ## Trap 2: decoding costs more than you think
#
# Here a decode is cheap. On SD 1 at full size one takes longer than a guided step of the UNet, so a preview of every
# step would more than double the time. But latents are nearly colours already: a linear map from the 4 channels to red,
# green and blue gives a small preview at no cost. Fit it by least squares on a few images:

# %%
from minisd.sticker.world.render import render
from minisd.sticker.world.sampling import scene_from_seed

pixels = render([scene_from_seed(s) for s in range(64)], parts.vae.config.sample_size)
latents = parts.encode(pixels, torch.Generator().manual_seed(0))
small = torch.nn.functional.interpolate(pixels, size=latents.shape[2:], mode="area")

inputs = (
    torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1).movedim(1, -1).flatten(0, -2)
)  # a 1 for the constant
targets = small.movedim(1, -1).flatten(0, -2)
weights = torch.linalg.lstsq(inputs.double(), targets.double()).solution.float()  # (channels + 1, 3)


def fast(latents):
    """Latents (1, 4, h, w) -> an image (h, w), without the decoder."""
    return to_pil((latents.movedim(1, -1) @ weights[:-1] + weights[-1]).movedim(-1, 1))[0]


lesson.pictures(
    [fast(s.x0) for s in shown] + [decoded(s.x0) for s in shown],
    alt="Above coarse previews of few pixels, below decoded images: colours and places agree.",
    title="A linear map is enough to see what will come",
    columns=len(shown),
    labels=[f"t = {int(s.t)}" for s in shown],
    rows=["linear", "decoder"],
)
explained = 1 - float((inputs @ weights - targets).square().mean() / targets.var(dim=0).mean())
print(f"{weights.numel()} numbers explain {100 * explained:.0f} % of the variance of the small images")
lesson.claim("more than half of it", explained > 0.5)

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why is the predicted image right long before the latents are?</summary>
#
# The first steps decide what is drawn and where. After them $x_t$ still contains noise, but this noise no longer
# misleads the prediction, which leaves it out.
#
# </details>
#
# <details><summary>Why can a preview change the image in some programs, and not here?</summary>
#
# There a sampler keeps the UNet's earlier answers in itself, so a second call of its step counts an answer twice. Here
# the memory is passed to a step and returned by it, so an extra call changes nothing.
#
# </details>
#
# <details><summary>Why does a callback that erases the latents not change the image?</summary>
#
# It gets a copy of the latents. The loop goes on with its own.
#
# </details>
#
# <details><summary>Why can a linear map take the decoder's place in a preview?</summary>
#
# Latents are laid out like the image, and the four numbers of a place nearly determine its colour. The map computes
# this colour, one for each place, without fine edges.
#
# </details>
#
# <details><summary>When is the loop more useful than a callback?</summary>
#
# When you need more than the latents, or want to end the run. A step of the loop also carries the predicted image, and
# `break` ends the run.
#
# </details>
#
# ## Your turn
#
# [The exercises](../minisd/exercises/README.md) belong to other lessons. Try these experiments in the cells above;
# where a claim becomes false, its cell stops, and that is a finding as well.
#
# - Give the pipeline `callback_steps=5`, and predict how many images there will be.
# - Write a loop over `parts.denoise(...)` that ends with `break` as soon as the checker accepts the predicted image,
#   and print its step.
# - Fit the linear map on four scenes in place of `64`, and compare the previews.

# %% [markdown]
# ## Summary
#
# - `StableDiffusionPipeline(vae=..., text_encoder=..., ...)` takes parts and a callback: the lesson's runs unchanged.
# - A callback fires at `i % callback_steps == 0`, after the step; it gets a copy.
# - `for step in sd.denoise(...)` is the same with more: `step.x0` is the image to come. `Film` makes strips and GIFs.
# - Steps are pure, so looking changes nothing; a linear map gives previews for free.
#
# **Code**: `Film` in [film.py](../minisd/interpret/film.py), the courses' names in [course](../minisd/course),
# `denoise` in [stable_diffusion.py](../minisd/pipeline/stable_diffusion.py). **Next**: [16 · Schedulers and guidance
# compared](16_schedulers_and_guidance.ipynb).
