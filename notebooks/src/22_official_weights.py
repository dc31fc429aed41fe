# %% [markdown]
# # 22 · How official weights get in
#
# **You will** read a weight file by hand, translate the names of the official files into those of the library and
# back, and make a loader that refuses what does not fit instead of drawing noise.
#
# **Needs** notebook 00; a look at notebook 11 helps.
#
# **Takes** 20 minutes to read, some seconds to run.

# %% [markdown]
# ## What is a model file?
#
# A trained network is its code and some hundred tensors. Only the tensors are in the file: a long list of **names**,
# each with numbers. Code and file find each other by the names alone, and here the trouble begins. The same weights
# of Stable Diffusion are published under two sets of names: the **original** one of the authors (one large file), and
# that of the library *diffusers* (a folder with a file for each network). minisd's own modules have a third.
#
# The embedded model can be written in both official layouts. The files are made in a folder that vanishes later:

# %%
import hashlib
import json
import tempfile
from pathlib import Path

import lesson
import torch

import weights_loader
from weights_loader.formats.weight_file import open_weights

sd = weights_loader.load("sticker")
folder = Path(tempfile.mkdtemp())
weights_loader.save(sd, folder / "sticker", dtype=torch.float16)
weights_loader.save(sd, folder / "sticker.safetensors", layout="ldm", dtype=torch.float16)
for path in sorted(folder.rglob("*.safetensors")):
    print(f"{path.stat().st_size / 1e6:6.2f} MB  {path.relative_to(folder)}")

# %% [markdown]
# ## Reading a file by hand
#
# The format is *safetensors*. It is simple enough to be read without any library: 8 bytes that say how long the
# header is; the header, a JSON text with name, type, shape and place of every tensor; then the numbers, one tensor
# after the other.

# %%
one_file = folder / "sticker.safetensors"
raw = one_file.read_bytes()
length = int.from_bytes(raw[:8], "little")
header = json.loads(raw[8 : 8 + length])
notes = header.pop("__metadata__")
print(f"{length:,} bytes of header, {len(header)} tensors; the first three:")
for name, entry in list(header.items())[:3]:
    print(" ", name, entry)


def read_tensor(name):
    """A tensor of half-precision numbers, straight from the bytes."""
    begin, end = header[name]["data_offsets"]
    numbers = torch.frombuffer(bytearray(raw[8 + length + begin : 8 + length + end]), dtype=torch.float16)
    return numbers.reshape(header[name]["shape"])


opened = open_weights(one_file)
same = all(torch.equal(read_tensor(name), opened.tensor(name)) for name in header)
lesson.claim(f"read by hand, all {len(header)} tensors are those that the library reads", same)

# %% [markdown]
# Why not simply `torch.load`? The older format, `.ckpt`, is a *pickle*: a small program that is run to make the
# objects. If you open one from a stranger, you run the stranger's program. The library reads such files too, but never
# runs what is in them. In a safetensors file there is nothing to run.
#
# And the tensors are not read before they are needed: the file is *mapped*, its bytes are fetched when they are used.
# That is why gigabytes open in a moment.
#
# ## The Rosetta table
#
# One module, three names. The library has a table for each layout, computed from the configuration of the network:

# %%
from weights_loader.names import diffusers, expand, ldm, openclip

config = sd.unet.config
to_diffusers, to_original = diffusers.unet(config), ldm.unet(config)
for module in (
    "conv_in",
    "time.linear1",
    "down.0.resnets.0.conv1",
    "down.1.transformers.0.blocks.0.attention2.k",
    "down.1.resample.conv",
    "middle.resnets.0.time",
    "up.0.resnets.1.skip",
):
    print(f"minisd     {module}\ndiffusers  {to_diffusers[module]}\noriginal   {to_original[module]}\n")

# %% [markdown]
# Most differences are only spelling: `resnets` or `in_layers`, `to_k` or `k`. One is arithmetic. The original layout
# does not know levels; it numbers all blocks of the way down in one row, `input_blocks.0`, `input_blocks.1`, ...
#
# **Predict, then run**: in Stable Diffusion 1, block 0 is the first convolution. Each level has 2 residual blocks and
# then one block that halves the size. At which number does the third level begin?

# %%
from minisd.configs import SD1_UNET, SD2_UNET
from minisd.models import UNet

with torch.device("meta"):  # shapes without numbers: built at once, takes no memory
    unet = UNet(SD1_UNET)
per_level = SD1_UNET.layers_per_block + 1
for level in range(len(SD1_UNET.channels)):
    ours = f"down.{level}.resnets.0.conv1"
    print(f"{ours}  ->  {ldm.unet(SD1_UNET)[ours]:26} by hand: {1 + per_level * level}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# At 7: one for the first convolution, and three for each of the two levels before it.
#
# </details>
#
# With that, the whole translation fits into one function. Inside a block, slot 0 is the residual block, slot 1 the
# transformer, if there is one, and an upsampling comes last:

# %%
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}
OUTSIDE = {"time.linear1": "time_embed.0", "time.linear2": "time_embed.2", "conv_in": "input_blocks.0.0"}
OUTSIDE |= {"norm_out": "out.0", "conv_out": "out.2"}
SPELLING = {"attention1.": "attn1.to_", "attention2.": "attn2.to_", "to_out": "to_out.0"}
SPELLING |= {"feed_forward.expand": "ff.net.0.proj", "feed_forward.contract": "ff.net.2"}


def in_transformer(rest):
    rest = rest.replace("blocks.", "transformer_blocks.", 1)
    for ours, theirs in SPELLING.items():
        rest = rest.replace(ours, theirs)
    return rest


def original_name(module, config):
    """Our module -> the module of the original file, for a UNet."""
    if module in OUTSIDE:
        return OUTSIDE[module]
    way, *rest = module.split(".")
    if way == "middle":
        kind, rest = rest[0], rest[1:]
        if kind == "transformer":
            return "middle_block.1." + in_transformer(".".join(rest))
        return f"middle_block.{2 * int(rest[0])}.{RESNET[rest[1]]}"
    level, kind, stride = int(rest[0]), rest[1], config.layers_per_block + 1
    if kind == "resample" and way == "down":
        return f"input_blocks.{stride * (level + 1)}.0.op"
    if kind == "resample":
        behind = 2 if config.depths[::-1][level] else 1
        return f"output_blocks.{stride * (level + 1) - 1}.{behind}.conv"
    i, inner = int(rest[2]), ".".join(rest[3:])
    block = f"input_blocks.{1 + stride * level + i}" if way == "down" else f"output_blocks.{stride * level + i}"
    return f"{block}.0.{RESNET[inner]}" if kind == "resnets" else f"{block}.1.{in_transformer(inner)}"


for name, each in (("Stable Diffusion 1", SD1_UNET), ("Stable Diffusion 2", SD2_UNET), ("the embedded model", config)):
    with torch.device("meta"):
        modules = {parameter.rsplit(".", 1)[0] for parameter in UNet(each).state_dict()}
    right = all(original_name(module, each) == ldm.unet(each)[module] for module in modules)
    lesson.claim(f"our function names all {len(modules)} modules of {name} as the library does", right)

# %% [markdown]
# ## Is that the official file?
#
# Our function and the library could be wrong together. So here is a fingerprint from outside: all names and shapes of
# the UNet in the original file of Stable Diffusion 1.5, sorted, as one hash. The list behind it was written down
# without minisd, and the published file has, to the byte, the size that the list gives it. One wrong letter in one
# name would give another fingerprint.

# %%
PUBLISHED = "31a978d7173d3cc6898d83c8e552a8fc1db603678aa324407a48a2a39681126c"


def fingerprint(shapes):
    """Of names and shapes, whatever their order."""
    lines = [f"{name} {tuple(shape)}" for name, shape in sorted(shapes.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


state = unet.state_dict()
named = {
    f"model.diffusion_model.{original_name(name.rsplit('.', 1)[0], SD1_UNET)}.{name.rsplit('.', 1)[1]}": tensor.shape
    for name, tensor in state.items()
}
print(f"Stable Diffusion 1.5: {sum(each.numel() for each in state.values()):,} parameters in {len(state)} tensors")
lesson.claim("859,520,964 parameters", sum(tensor.numel() for tensor in state.values()) == 859_520_964)
lesson.claim("no two of our tensors have the same name", len(named) == len(state) == 686)
lesson.claim("all 686 names and shapes are those of the published file", fingerprint(named) == PUBLISHED)

# %% [markdown]
# ## The same numbers in another shape
#
# Names are not all. In three cases the numbers agree and the *shape* does not:
#
# - Stable Diffusion 1 projects into its transformers by a **1 x 1 convolution**, Stable Diffusion 2 by a **linear**
#   layer. Over the channels of one position both are the same sum.
# - The original autoencoder writes its attention as 1 x 1 convolutions, too.
# - OpenCLIP, the text encoder of Stable Diffusion 2, stacks the matrices of query, key and value into one.
#
# So the library's tables do not give a name alone, but a `TensorSource`: the name of the stored tensor, and which view
# of it is the parameter.

# %%
for name, each in (("SD 1", SD1_UNET), ("SD 2", SD2_UNET)):
    with torch.device("meta"):
        print(name, "proj_in:", tuple(UNet(each).state_dict()["middle.transformer.proj_in.weight"].shape))

convolution = torch.nn.Conv2d(8, 8, 1)
linear = torch.nn.Linear(8, 8)
linear.load_state_dict({"weight": convolution.weight[:, :, 0, 0], "bias": convolution.bias})
picture = torch.randn(1, 8, 5, 5, generator=torch.Generator().manual_seed(0))
apart = (linear(picture.movedim(1, -1)).movedim(-1, 1) - convolution(picture)).abs().max()
lesson.claim("a 1 x 1 convolution is a linear layer at every position", apart < 1e-5)

for parameter in ("encoder.middle.attention.attention.q.weight", "encoder.conv_in.weight"):
    place = ldm.vae(sd.vae.config, [parameter])[parameter]
    here = tuple(sd.vae.state_dict()[parameter].shape)
    print(
        f"{parameter}: {tuple(sd.vae.state_dict()[parameter].shape)} here, {opened.shapes[ldm.VAE + place.name]} there"
    )

stacked = torch.randn(3 * 8, 8, generator=torch.Generator().manual_seed(0))
places = openclip.text_encoder([f"layers.0.attention.{part}.weight" for part in "qkv"])
pieces = [place.read(stacked) for place in places.values()]
print(*places.values(), sep="\n")
lesson.claim("query, key and value are the thirds of one tensor, not copies", torch.equal(torch.cat(pieces), stacked))
lesson.claim("reading them copies nothing", pieces[0].data_ptr() == stacked.data_ptr())

# %% [markdown]
# ## What happens if a name is wrong
#
# PyTorch can be asked to be generous: `strict=False` takes what fits and leaves the rest as it is.
#
# **Predict, then run**: below, a UNet is loaded generously from a dictionary with the *diffusers* names. The names of
# the first and the last convolution are the same in both, most others are not. No error appears. What will be drawn?

# %%
from minisd.pipeline import StableDiffusion

theirs = open_weights(folder / "sticker" / "unet" / "diffusion_pytorch_model.safetensors")
torch.manual_seed(0)
generous = UNet(config).eval()
answer = generous.load_state_dict({name: theirs.tensor(name).float() for name in theirs.shapes}, strict=False)
print(f"{len(answer.missing_keys)} of {len(generous.state_dict())} parameters were left as they were: random")

broken = StableDiffusion(sd.tokenizer, sd.text_encoder, sd.vae, generous, sd.scheduler)
lesson.pictures(
    [model("a red star", seed=seed).images[0] for model in (sd, broken) for seed in (1, 2, 3)],
    alt="Above three images of a red star; below three images of noise from the generously loaded UNet.",
    title="Loaded generously: no error, no image",
    columns=3,
    labels=["seed 1", "seed 2", "seed 3"],
    rows=["loaded\nstrictly", "loaded\ngenerously"],
)
lesson.claim("most parameters were silently left out", len(answer.missing_keys) > len(generous.state_dict()) / 2)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Noise: the UNet was never loaded. Here you see it at once. With a single wrong name among 686, the images are a bit
# worse, and the reason is hard to find. So a loader must be **strict**: every parameter filled exactly once, every
# tensor of the file used, every shape as expected, or nothing is loaded.
#
# </details>
#
# The check needs no numbers, only names and shapes, so it comes before any weight is read:


# %%
def problems(expected, stored):
    """What is wrong with a file; both are {name: shape}."""
    found = [f"{name} is missing" for name in expected if name not in stored]
    found += [f"{name} is unexpected" for name in stored if name not in expected]
    wrong = [name for name in expected if name in stored and tuple(expected[name]) != tuple(stored[name])]
    return found + [f"{name} is {tuple(stored[name])}, expected {tuple(expected[name])}" for name in wrong]


state = sd.unet.state_dict()
expected = {f"{original_name(n.rsplit('.', 1)[0], config)}.{n.rsplit('.', 1)[1]}": t.shape for n, t in state.items()}
stored = {n.removeprefix(ldm.UNET): shape for n, shape in opened.shapes.items() if n.startswith(ldm.UNET)}
lesson.claim("nothing is wrong with the file that we wrote", problems(expected, stored) == [])

damaged = dict(stored)
del damaged["out.2.bias"]
damaged["out.3.bias"] = (4,)
damaged["time_embed.0.bias"] = (100,)
print(*problems(expected, damaged), sep="\n")

# %% [markdown]
# The library says the same in one sentence. Here are three damaged files, and what happens to each:

# %%
from minisd.errors import MismatchError
from weights_loader.formats.safetensors import save_safetensors

tensors = {name: opened.tensor(name) for name in opened.shapes}
damages = {
    "missing": {n: t for n, t in tensors.items() if n != "model.diffusion_model.out.2.bias"},
    "extra": {**tensors, "model.diffusion_model.conv.weight": torch.zeros(4)},
    "misshapen": {**tensors, "model.diffusion_model.out.2.bias": torch.zeros(5)},
}
refused = []
for name, contents in damages.items():
    save_safetensors(contents, folder / f"{name}.safetensors", opened.metadata)
    try:
        weights_loader.load(folder / f"{name}.safetensors", tokenizer=sd.tokenizer)
    except MismatchError as error:
        refused.append(name)
        print(f"- {error}")
lesson.claim("all three were refused", refused == list(damages))

# %% [markdown]
# ## There and back
#
# The best test of a translation is the way back. Both layouts are loaded and compared with each other, bit by bit:

# %%
from_folder = weights_loader.load(folder / "sticker")
from_file = weights_loader.load(one_file, tokenizer=sd.tokenizer)
exact = True
for part in ("unet", "vae", "text_encoder"):
    one, other = (getattr(model, part).state_dict() for model in (from_folder, from_file))
    exact = exact and one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
lesson.claim("both layouts hold the same model, to the last bit", exact)

weights_loader.save(from_file, folder / "again.safetensors", layout="ldm", dtype=torch.float16)
lesson.claim("written again, the file is the same, byte for byte", (folder / "again.safetensors").read_bytes() == raw)

# %% [markdown]
# ## Which model is it?
#
# An original file comes without a configuration. But shapes tell nearly everything: how wide the text is, how many
# channels come in, whether a projection is a convolution.
#
# **Predict, then run**: the inpainting models get the noisy latents (4 channels), the latents of the masked image (4)
# and the mask (1). Which one shape gives them away?

# %%
from dataclasses import replace

from minisd.configs import SDXL_UNET
from weights_loader import detect
from weights_loader.names import write


def original_shapes(config):
    """{name: shape} of the UNet in an original file of that configuration."""
    with torch.device("meta"):
        state = UNet(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in write(expand(ldm.unet(config), state), state).items()}


seen = ("channels", "depths", "context_width", "in_channels", "layers_per_block", "linear_projection")
known = []
for made in (SD1_UNET, replace(SD1_UNET, in_channels=9), SD2_UNET, replace(SD2_UNET, in_channels=5), SDXL_UNET, config):
    shapes = original_shapes(made)
    found = detect.unet_config(shapes)
    print(
        f"{found.family:17} first convolution {shapes['input_blocks.0.0.weight']!s:17}"
        f" text width {found.context_width:4}  proj_in {len(shapes['middle_block.1.proj_in.weight'])} axes"
    )
    known.append(all(getattr(found, name) == getattr(made, name) for name in seen))
lesson.claim("for all six, these sizes were found from the shapes", all(known) and len(known) == 6)

# %% [markdown]
# <details><summary>Answer</summary>
#
# That of the first convolution: 9 channels in. Some settings cannot be seen: the number of heads (a matrix looks the
# same for 8 heads or for 5; a rule for each family decides), and what the UNet was trained to predict. For SD 2, noise
# and $v$ have the same shapes; the library asks instead of guessing. Files that minisd writes say it in their header.
#
# </details>

# %%
print("in the header of our file:", ", ".join(json.loads(notes["minisd.configs"])))

# %% [markdown]
# ## Parity: the numbers, too
#
# Names and shapes can be right and the code wrong: a forgotten norm, the wrong activation. So the library keeps
# numbers that the **reference implementation** gave, and must give the same. Some need no weights, and can be checked
# here and now. The repository has the noise levels and timesteps of diffusers on file:

# %%
import minisd
from minisd.schedulers import NoiseSchedule, Scheduler

recorded = json.loads((Path(minisd.__file__).parents[1] / "tests/data/schedulers_official.json").read_text())
print(recorded["about"])
bars = recorded["alpha_bars"]
error = max(abs(NoiseSchedule().alpha_bar(t) - bar) for t, bar in zip(bars["index"], bars["sd"], strict=True))
print(f"alpha_bar of Stable Diffusion 1: largest difference {error:.1e}")
lesson.claim("the noise schedule agrees to 1e-5", error < 1e-5)

samplers = Scheduler.samplers
worst = 0.0
for key, facts in recorded["spacings"].items():
    name, spacing, steps, offset = key.split("/")
    grid = samplers[name](timestep_spacing=spacing, steps_offset=int(offset)).grid(int(steps))
    for want, got in zip(facts["timesteps"], grid.timesteps.tolist(), strict=True):
        worst = max(worst, abs(got - want) / max(want, 1))
print(f"{len(recorded['spacings'])} lists of timesteps, largest relative difference {worst:.1e}")
lesson.claim("samplers visit the timesteps of the reference", worst < 1e-5)

# %% [markdown]
# Others need the official weights: the size of each network, the ids of prompts, rows of the tables, states of the text
# encoder, corners of images. They are collected as *facts*; those on sizes can be checked without weights:

# %%
from types import SimpleNamespace

from minisd.configs import SD1_TEXT, SD1_VAE, SD2_TEXT
from minisd.models import VAE, CLIPTextTransformer
from minisd.parity.verification import FACTS

with torch.device("meta"):
    first = SimpleNamespace(unet=UNet(SD1_UNET), vae=VAE(SD1_VAE), text_encoder=CLIPTextTransformer(SD1_TEXT))
    second = SimpleNamespace(unet=UNet(SD2_UNET), vae=VAE(SD1_VAE), text_encoder=CLIPTextTransformer(SD2_TEXT))
print(len(FACTS), "facts in all")
for family, networks in (("SD 1.x", first), ("SD 2.x", second)):
    for fact in FACTS:
        if family in fact.families and fact.name.endswith("parameters, tensors"):
            got = tuple(fact.measure(SimpleNamespace(sd=networks)))
            lesson.claim(f"{family} {fact.name}: {got[0]:,} in {got[1]}", got == fact.expected)

# %% [markdown]
# If you have the real files, one command checks all of them. It loads the weights as this lesson did, and prints a line
# for each fact:
#
# ```
# minisd verify sd15
# minisd inspect v1-5-pruned-emaonly.safetensors
# ```

# %%
import shutil

shutil.rmtree(folder)

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why is a .ckpt file of a stranger dangerous, and a safetensors file not?</summary>
#
# A `.ckpt` file is a pickle, a program that is run to make the objects in it. A safetensors file has a header and
# numbers, so there is nothing to run.
#
# </details>
#
# <details><summary>Why is a loader that takes what fits worse than one that refuses?</summary>
#
# A wrong name leaves a parameter random, and no error appears. With one wrong name of many the images are only a bit
# worse, and the reason is hard to find.
#
# </details>
#
# <details><summary>Why can the same weights be stored as a convolution and as a linear layer?</summary>
#
# A convolution of 1 x 1 sums over the channels of one position, as a linear layer does. So the numbers agree, and the
# shapes differ by two axes of length 1.
#
# </details>
#
# <details><summary>What can the shapes in a file not tell about its model?</summary>
#
# Settings that no shape depends on: the number of heads, and whether the UNet predicts noise or $v$. A rule for the
# family or the user must say it.
#
# </details>
#
# <details><summary>Why does our function need a fingerprint from outside, if it agrees with the library?</summary>
#
# Both could contain the same mistake. The list behind the fingerprint was written down without minisd, so it agrees
# only if the names are right.
#
# </details>
#
# ## Your turn
#
# Write this function yourself. `start` makes a file for it, and `minisd exercises check` compares your results with the
# reference and says what differs ([the exercises](../minisd/exercises/README.md)).
#
# - `minisd exercises start weight_names`: translate the place of a block from the numbering of the original files.

# %% [markdown]
# ## Summary
#
# - A weight file is names, shapes and numbers. safetensors: 8 bytes, a JSON header, the numbers; nothing to run.
# - A table of names for each layout, computed from the configuration, translates in both directions. Some tensors are
#   looked at in another shape: convolution or linear, stacked or apart.
# - Loading is strict: missing, unexpected or misshapen, one sentence, nothing loaded.
# - Shapes tell the family. Whether the numbers come out right is a separate question: recorded numbers decide it.
#
# **Code**: the tables in [names](../weights_loader/names/ldm.py), the strict check in
# [build.py](../weights_loader/build.py), the header in [safetensors.py](../weights_loader/formats/safetensors.py), the
# facts in `FACTS` of [facts.py](../minisd/parity/verification/facts.py). **Next**:
# [23 · Tricks with one model](23_tricks_with_one_model.ipynb).
