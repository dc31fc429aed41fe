# %% [markdown]
# # 14 · Inside the pipeline, built from its components
#
# **You will** send a prompt through Stable Diffusion part by part and see the shape of everything on the way; write
# the pipeline yourself, in fifteen lines; and take parts away to see what each of them does.
#
# **Needs** notebooks 05 and 08 (the denoising step, guidance).
#
# **Takes** 25 minutes to read, less than a minute to run.

# %% [markdown]
# ## Five components
#
# A pipeline itself does little. All the knowledge is in three networks; a table of word pieces and a list of noise
# levels connect them. With the sizes of Stable Diffusion 1:
#
# ![A prompt goes through tokenizer and text encoder into the UNet; its predictions go through guidance and a step of
# the sampler back into it, again and again; at the end the decoder makes the image.](diagrams/pipeline.png)

# %%
import lesson
import torch

import weights_loader
from minisd.images import to_pil
from minisd.pipeline import StableDiffusion

sd = weights_loader.load("sticker")
tokenizer, text_encoder, unet, vae, scheduler = sd.tokenizer, sd.text_encoder, sd.unet, sd.vae, sd.scheduler
for part in (tokenizer, text_encoder, unet, vae, scheduler):
    count = sum(p.numel() for p in part.parameters()) if isinstance(part, torch.nn.Module) else 0
    print(f"{type(part).__name__:20} {count:>9,} parameters   {type(part).__module__}")

# %% [markdown]
# ## 1 · Tokenizer: words to numbers
#
# The prompt is cut into pieces of words, each with a number. A start and an end piece frame it, and the rest is
# padding: all prompts have the same length (notebook 10 shows how the pieces are found).

# %%
prompt = "a red circle above a blue square"
ids = tokenizer([prompt])
print("shape", tuple(ids.shape))
print("first ten:", [f"{int(i)} {tokenizer.id_to_token(int(i))}" for i in ids[0, :10]])

# %% [markdown]
# ## 2 · Text encoder: numbers to meaning
#
# A transformer gives every position a vector, its *state*. All of them, not only one for the whole sentence, go to
# the UNet. A position may look at those before it, never at those behind it.
#
# **Predict, then run**: change the last word, "square" to "star". Which positions' states change?

# %%
with torch.no_grad():
    states = text_encoder(ids)
    others = text_encoder(tokenizer([prompt.replace("square", "star")]))

print("states", tuple(states.shape), "= (prompts, positions, width)")
change = (states - others)[0].norm(dim=-1)
place = 1 + tokenizer.tokenize(prompt).index("square</w>")
names = {tokenizer.bos: "start", tokenizer.eos: "end"}
pieces = [tokenizer.id_to_token(int(i)) for i in ids[0, :16]]
figure, panel = lesson.axes(width=6.5, height=2.6)
panel.bar(range(16), change[:16])
panel.set_xticks(range(16), [names.get(piece, piece.removesuffix("</w>")) for piece in pieces])
panel.tick_params(axis="x", rotation=60)
panel.set_ylabel("change of the state")
lesson.show(
    figure,
    alt="Bars, one for each position: zero for all words before square, high from square on.",
    title="A word changes its own state and those behind it, none before it",
)
lesson.claim("all states before the changed word are the same", float(change[:place].max()) < 1e-5)
lesson.claim("all states from it on differ", float(change[place:].min()) > 1e-3)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Those of the changed word and of everything behind it, the end and the padding included. The padding therefore is
# not empty: it has read the whole prompt, and the UNet looks at it, too.
#
# </details>
#
# ## 3 · Latents: the small image in which everything happens
#
# The UNet never sees a pixel. It works on latents, which the autoencoder can turn into pixels (notebook 09).

# %%
from minisd.configs import VAEConfig


def reduction(config, size):
    """How many numbers an image has for each number in its latents; and the shape of the latents."""
    factor = 2 ** (len(config.channels) - 1)
    shape = (config.latent_channels, size // factor, size // factor)
    return 3 * size * size / (shape[0] * shape[1] * shape[2]), shape


times, shape = reduction(vae.config, vae.config.sample_size)
side = vae.config.sample_size
print(f"embedded model: 3 x {side} x {side} pixels, latents {shape}: {times:.0f} times fewer numbers")
times, official = reduction(VAEConfig(), 512)
print(f"SD 1 and 2:     3 x 512 x 512 pixels, latents {official}: {times:.0f} times fewer numbers")
lesson.claim("SD's latents are 48 times smaller", times == 48)

x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(3))

# %% [markdown]
# ## 4 · UNet: what in here is noise?
#
# One call. It is given the latents, the timestep and the states, and answers in the shape of the latents. On the way
# the feature maps get smaller and smaller, then larger again; every map of the way down is kept and joined on the way
# up.

# %%
levels = [*((f"down {k}", s) for k, s in enumerate(unet.down)), *((f"up {k}", s) for k, s in enumerate(unet.up))]
watched = [("in", unet.conv_in, unet.conv_in), *((name, level.resnets[0], level) for name, level in levels)]
watched.insert(1 + len(unet.down), ("middle", unet.middle, unet.middle))
watched.append(("out", unet.conv_out, unet.conv_out))
seen = []


def note(name, whole):
    count = sum(p.numel() for p in whole.parameters())
    return lambda module, inputs, output: seen.append((name, tuple(output.shape[1:]), count))


handles = [module.register_forward_hook(note(name, whole)) for name, module, whole in watched]
with torch.no_grad():
    prediction = unet(x, torch.tensor(999), states)
for handle in handles:
    handle.remove()

most = max(count for *_, count in seen)
for name, feature, count in seen:
    bar = "█" * round(40 * count / most)
    print(f"{name:7} (channels, h, w) = {feature!s:14} {count:>9,} parameters  {bar}".rstrip())
lesson.claim("what comes out has the shape of what goes in", prediction.shape == x.shape)

# %% [markdown]
# ## 5 · Scheduler: from which noise level to which
#
# The scheduler holds no weights. It says at which timesteps to ask, and how to get from one to the next with the
# answer.

# %%
grid = scheduler.grid(20)
print(type(scheduler).__name__, "asks at t =", grid.timesteps.tolist())
print("what the model's answer is:", scheduler.schedule.prediction_type)

# %% [markdown]
# ## Together: the pipeline, by hand
#
# Now write it down. This is all of text to image: words in, loop, decode. The library has the same lines in
# [minimal.py](../minisd/minimal.py).


# %%
@torch.no_grad()
def text_to_image(prompt, seed, steps=20, scale=3.0):
    text = text_encoder(tokenizer(["", prompt]))  # (2, tokens, width): the empty prompt, and the prompt
    grid = scheduler.grid(steps)
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed)) * grid.init_noise_sigma
    memory = None
    for i, t in enumerate(grid.timesteps):
        seen = scheduler.scale_input(grid, i, x)
        uncond, cond = unet(torch.cat([seen, seen]), t, text).chunk(2)
        guided = uncond + scale * (cond - uncond)
        x, _, memory = scheduler.step(grid, i, x, guided, memory)
    pixels = vae.decode(x / vae.config.scaling_factor)  # the latents at the autoencoder's own scale
    return to_pil(pixels)[0]


mine = text_to_image(prompt, seed=3)
theirs = sd(prompt, seed=3, num_inference_steps=20, guidance_scale=3.0).images[0]
lesson.pictures(
    [mine, theirs],
    alt="Twice the same image of a red circle and a blue square.",
    title="Fifteen lines give the pipeline's image",
    labels=["our loop", "sd(...)"],
    size=1.6,
)

# %%
import numpy as np


def distance(a, b):
    """Largest difference of a pixel value, 0 to 255."""
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


print("largest difference of a pixel value:", distance(mine, theirs))
lesson.claim("our fifteen lines are the pipeline", distance(mine, theirs) <= 1)

from minisd import minimal  # the same lines as a file of the library

pixels = minimal.text_to_image(
    tokenizer, text_encoder, unet, vae, scheduler, prompt, seed=3, steps=20, guidance_scale=3.0
)
lesson.claim("minimal.py draws the same image", distance(to_pil(pixels)[0], theirs) == 0)

# %% [markdown]
# ## The pipeline as an object
#
# The class does the same with arguments checked and every task in one loop. It is built from the parts, which it
# shares and does not copy, so another pipeline from the same parts costs no memory:

# %%
built = StableDiffusion(tokenizer, text_encoder, vae, unet, scheduler)
again = built(prompt, seed=3, num_inference_steps=20, guidance_scale=3.0).images[0]
lesson.claim("built from its components, it draws the same image", distance(again, theirs) == 0)
lesson.claim("it shares the UNet", built.unet is sd.unet)

# %% [markdown]
# The names that the public courses use fit, too: `minisd.course` takes native components, or those of another
# pipeline.

# %%
from minisd.course import StableDiffusionPipeline

pipe = StableDiffusionPipeline(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
print(", ".join(name for name, part in pipe.components.items() if part is not None))
course = pipe(prompt, generator=torch.Generator().manual_seed(3), num_inference_steps=20, guidance_scale=3.0).images[0]
lesson.claim("and draws the same image", distance(course, theirs) == 0)

# %% [markdown]
# ## Another part in its place
#
# The parts depend only on each other's results, so one can be exchanged. Four samplers on the same noise schedule, with
# the same noise:

# %%
from minisd.schedulers import DPMSolverMultistep, EulerAncestral, Heun

samplers = {
    type(scheduler).__name__: scheduler,
    "DPM-Solver++": DPMSolverMultistep.in_place_of(scheduler),
    "Heun": Heun.in_place_of(scheduler),
    "Euler ancestral": EulerAncestral.in_place_of(scheduler),
}
drawn = []
for sampler in samplers.values():
    built.scheduler = sampler
    drawn.append(built(prompt, seed=3, num_inference_steps=15, guidance_scale=3.0).images[0])
built.scheduler = scheduler
lesson.pictures(
    drawn,
    alt="Four images by four samplers; the first three have about the same layout, the last may differ.",
    title="The sampler is a part like any other",
    labels=list(samplers),
    size=1.5,
)

# %% [markdown]
# ## Take a part away
#
# What does each part contribute? Leave it out and look.
#
# **Predict, then run**: five runs, each with one mistake. What will each look like?
#
# 1. the words are missing: both rows get the empty prompt,
# 2. the UNet gets t = 999 at every step,
# 3. the UNet's answer is read as the wrong quantity,
# 4. the latents go into the decoder without dividing by the scaling factor,
# 5. the UNet's skip connections are cut: zeros arrive where the maps of the way down should.

# %%
from contextlib import contextmanager
from dataclasses import replace


@torch.no_grad()
def broken(prompt, seed, words=True, time=True, reading=None, factor=True, steps=20, scale=3.0):
    sampler = (
        scheduler
        if reading is None
        else replace(scheduler, schedule=replace(scheduler.schedule, prediction_type=reading))
    )
    text = text_encoder(tokenizer(["", prompt if words else ""]))
    grid = sampler.grid(steps)
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
    for i, t in enumerate(grid.timesteps):
        uncond, cond = unet(torch.cat([x, x]), t if time else torch.tensor(999), text).chunk(2)
        x = sampler.step(grid, i, x, uncond + scale * (cond - uncond)).x_prev
    return to_pil(vae.decode(x / (vae.config.scaling_factor if factor else 1)))[0]


@contextmanager
def without_skips():
    """Inside, each stage of the way down hands zeros to the way up; only the path through the middle is left."""
    original = torch.cat

    def cut(tensors, dim=0, **rest):
        tensors = list(tensors)
        if dim == 1 and len(tensors) == 2 and tensors[0].ndim == 4:
            tensors[1] = torch.zeros_like(tensors[1])
        return original(tensors, dim=dim, **rest)

    torch.cat = cut
    try:
        yield
    finally:
        torch.cat = original


wrong_reading = "sample" if scheduler.schedule.prediction_type != "sample" else "v_prediction"
pictures = [
    broken(prompt, 3),
    broken(prompt, 3, words=False),
    broken(prompt, 3, time=False),
    broken(prompt, 3, reading=wrong_reading),
    broken(prompt, 3, factor=False),
]
with without_skips():
    pictures.append(broken(prompt, 3))
lesson.pictures(
    pictures,
    alt="Six images: the right one, and five with a part left out, each wrong in another way.",
    title="Each missing part shows in its own way",
    labels=["all parts", "1 · no words", "2 · no time", "3 · misread", "4 · no factor", "5 · no skips"],
    size=1.4,
)
blank = to_pil(vae.decode(torch.zeros(1, *shape)).detach())[0]
apart = np.abs(np.asarray(pictures[4], dtype=float) - np.asarray(blank, dtype=float)).mean()
lesson.claim("without the factor it is nearly the image of zeros: a few of 255 apart on average", apart < 5)
lesson.claim("without mistakes it is the image from before", distance(pictures[0], theirs) <= 1)
lesson.claim("each mistake shows", all(distance(picture, theirs) > 20 for picture in pictures[1:]))

# %% [markdown]
# <details><summary>Answer</summary>
#
# 1. An image all the same, of something else: the UNet can draw without a prompt (notebook 08).
# 2. It believes at each step that there is nothing but noise, so it keeps on giving its first, vague guess.
# 3. The steps lead elsewhere, and nothing that looks like an image comes out.
# 4. Nearly the image of latents that are all 0, a beige field: the decoder gets latents that are about five times too
#    small.
# 5. Nearly everything is lost: the way up needs the maps of the way down, because only these hold the exact places. The
#    few cells in the middle cannot hold that.
#
# </details>

# %%
print(f"1 / {vae.config.scaling_factor} = {1 / vae.config.scaling_factor:.1f}")

# %% [markdown]
# ## In and out of files
#
# Because all parts stand alone, a pipeline is saved as a folder with one subfolder a part: the official layout, which
# every other program reads.

# %%
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    weights_loader.save(sd, Path(folder) / "model")
    for path in sorted((Path(folder) / "model").rglob("*.safetensors")):
        print(path.relative_to(folder).as_posix())
    loaded = weights_loader.load(Path(folder) / "model")
    back = loaded(prompt, seed=3, num_inference_steps=20, guidance_scale=3.0).images[0]
lesson.claim("saved and loaded, it draws the same image", distance(back, theirs) == 0)

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Which part of the pipeline never sees a pixel, and which one never sees a word?</summary>
#
# The UNet never sees a pixel: it works on latents. The autoencoder never sees a word: it makes pixels of whatever
# latents it gets.
#
# </details>
#
# <details><summary>Why can the sampler be exchanged without any training?</summary>
#
# It has no weights. It only says at which timesteps to ask the UNet, and how to get from one noise level to the next
# with the answer.
#
# </details>
#
# <details><summary>Why does a second pipeline of the same parts need hardly any memory?</summary>
#
# Nearly all memory is in the weights of the networks. A pipeline shares its parts and does not copy them.
#
# </details>
#
# <details><summary>Why must the sampler know what the UNet was trained to predict?</summary>
#
# The answer has the shape of the latents, whether it is noise, the clean image or $v$. The sampler computes other
# latents from each of these, so a wrong reading leads every step elsewhere.
#
# </details>
#
# <details><summary>What does guidance need from the other parts of the pipeline?</summary>
#
# The text encoder reads the empty prompt as well as the prompt, and the UNet is called with the latents twice. One line
# makes one prediction of the two, so the sampler notices nothing.
#
# </details>
#
# ## Your turn
#
# Write this function yourself. `start` makes a file for it, and `minisd exercises check` compares your results with the
# reference and says what differs ([the exercises](../minisd/exercises/README.md)).
#
# - `minisd exercises start size_vector`: build the vector of sizes that SDXL's UNet reads beside the text, a part that
#   this lesson's pipeline does not have.

# %% [markdown]
# ## Summary
#
# - Words become ids, ids become states; noise becomes latents, latents become pixels. The UNet joins the two paths.
# - The pipeline is fifteen lines around five parts; yours and the library's draw the same image.
# - Parts can be shared, exchanged, left out and saved one by one.
#
# **Code**: the pipeline by hand is `text_to_image` in [minimal.py](../minisd/minimal.py), the one with all options is
# in [stable_diffusion.py](../minisd/pipeline/stable_diffusion.py). The parts: [tokenizer.py](../minisd/tokenizer.py),
# [clip.py](../minisd/models/clip.py), [unet.py](../minisd/models/unet.py), [vae.py](../minisd/models/vae.py),
# [schedulers](../minisd/schedulers). **Next**: [15 · The latents callback](15_latents_callback.ipynb).
