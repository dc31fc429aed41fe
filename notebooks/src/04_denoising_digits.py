# %% [markdown]
# # 04 · Denoising digits
#
# **You will** build a whole diffusion model that fits into this page and learns in half a minute: it learns to take
# noise away from images of digits, draws new digits out of nothing but noise, and draws a 7 when you ask for a 7.
#
# **Needs** notebooks 01 to 03 (linear layer, training, convolution, normalisation).
#
# **Takes** 25 minutes to read, about a minute to run.

# %% [markdown]
# ## Images to learn from
#
# Everything about Stable Diffusion is here in small: the noise, the network that removes it, the loop that draws, the
# condition that says *what* to draw. We only replace photographs by digits, and sentences by a label from 0 to 9. The
# digits are drawn here, in twelve fonts that come with matplotlib, each a little shifted, turned and resized, so no two
# are alike. They have 16 by 16 pixels, with values from -1, black, to 1, white.

# %%
import copy
import math
from pathlib import Path

import lesson
import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import nn

folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
fonts = [path for path in sorted(folder.glob("DejaVu*.ttf")) if "Display" not in path.name]
random = np.random.default_rng(0)


def draw_digit(digit):
    """Drawn four times as large, then made smaller: that smooths the edges."""
    font = ImageFont.truetype(str(random.choice(fonts)), int(random.integers(52, 66)))
    image = Image.new("L", (64, 64))
    x, y = 32 + random.uniform(-4, 4, 2)
    ImageDraw.Draw(image).text((x, y), str(digit), fill=255, font=font, anchor="mm")
    return image.rotate(random.uniform(-10, 10), Image.Resampling.BILINEAR).resize((16, 16), Image.Resampling.BOX)


labels = torch.arange(6000) % 10
pixels = np.stack([np.asarray(draw_digit(int(label)), dtype=np.float32) for label in labels])
digits = torch.from_numpy(pixels / 127.5 - 1)[:, None]
learn, unseen = slice(0, 5000), slice(5000, 6000)  # the last thousand are kept apart
print(len(fonts), "fonts; digits", tuple(digits.shape), "= (images, channels, height, width)")


def sheet(x, columns=10):
    """Many digits as one image."""
    rows = [torch.cat(list(row), dim=1) for row in x[:, 0].clamp(-1, 1).split(columns)]
    return torch.cat(rows)


lesson.pictures(
    [sheet(digits[:100])],
    alt="Ten rows of the digits 0 to 9 in white on black, upright and slanted, thin and bold.",
    title="What the network sees: 100 of the digits",
    size=4.6,
)

# %% [markdown]
# ## Add noise
#
# We mix a digit with noise: random numbers, drawn for each pixel on its own from the normal distribution. Twenty
# **levels** say how much. At level 0 there is nearly only image, at level 19 nearly only noise. The two shares are the
# cosine and the sine of an angle, whose squares sum to 1: image is exchanged for noise, and the numbers keep about the
# same size. (The picture still grows brighter, because the digits are mostly black and noise is gray on average.
# Notebook 05 shows what Stable Diffusion takes instead.)

# %%
levels = 20
angles = torch.linspace(0.02, 0.98, levels) * math.pi / 2


def shares(level):
    """How much image and how much noise, shaped to be multiplied with images."""
    return angles[level].cos().reshape(-1, 1, 1, 1), angles[level].sin().reshape(-1, 1, 1, 1)


def add_noise(clean, noise, level):
    signal, amount = shares(level)
    return signal * clean + amount * noise


dice = torch.Generator().manual_seed(0)
seven = digits[7:8]
noise = torch.randn(seven.shape, generator=dice)
shown = [0, 4, 7, 10, 12, 14, 16, 19]
lesson.pictures(
    [add_noise(seven, noise, torch.tensor([level]))[0, 0].clamp(-2, 2) for level in shown],
    alt="A 7 under more and more noise from left to right, in the end only noise.",
    title="Somewhere on the way you stop seeing the 7",
    labels=[f"level {level}" for level in shown],
)

# %% [markdown]
# ## What the network is asked
#
# The task: here is a noisy image and its level; **what in it is noise?** If you know the noise, you can take it away,
# and the digit is left. And the other way round: if you know the digit, you know the noise, because the noise is what
# is left over:


# %%
def noise_in(noisy, clean, level):
    """The rest, when the digit is taken away."""
    signal, amount = shares(level)
    return (noisy - signal * clean) / amount


level = torch.tensor([12])
noisy = add_noise(seven, noise, level)
lesson.claim(
    "digit taken away, what is left is the noise", torch.allclose(noise_in(noisy, seven, level), noise, atol=1e-5)
)
for level in (2, 10, 19):
    signal, amount = shares(level)
    print(f"level {level:2}: a digit wrong by 1 means a noise wrong by {float(signal / amount):.2f}")

# %% [markdown]
# The two questions have the same answer, but not the same *score*. At the highest level, a digit that is all wrong
# hardly spoils the noise, as the last line says. So a network that is scored on its noise learns very late to decide
# there which digit to draw. Many large models are trained on the noise all the same; they have weeks for it. We have
# seconds, so our network predicts the digit and is scored on the digit, and we compute the noise from it.
#
# ## The network
#
# It is a small relative of the UNet in notebook 07. Convolutions look at neighbourhoods: first on 8 by 8 positions, of
# 4 pixels each, then on 4 by 4; at the bottom one linear layer sees the whole image at once; then it goes back up,
# where the finer map of the way down is added again.
#
# It also needs to know the level, and later the label. Both are numbers, but not *amounts*: a 7 is not more than a 3.
# So each becomes a **one-hot** vector, with a 1 at its place and 0 elsewhere. A linear layer makes a vector of 64
# numbers out of it, and each block of the network adds its own view of that vector to its channels, the same at all
# positions.

# %%
print("label 7 as one-hot:", F.one_hot(torch.tensor(7), 10).tolist())


class Block(nn.Module):
    """Norm, convolution, what is known; norm, convolution; all added to the input."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.known = nn.Linear(64, width)

    def forward(self, x, known):
        h = self.conv1(F.silu(self.norm1(x))) + self.known(known)[:, :, None, None]
        return x + self.conv2(F.silu(self.norm2(h)))


class Denoiser(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.describe = nn.Linear(levels + 10, 64, bias=False)
        nn.init.normal_(self.describe.weight)
        self.conv_in = nn.Conv2d(4, width, 3, padding=1)
        self.down, self.block1 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), Block(width)
        self.block2, self.block3 = Block(2 * width), Block(2 * width)
        self.all1, self.all2 = nn.Linear(16 * 2 * width + 64, 256), nn.Linear(256, 16 * 2 * width)
        self.up, self.block4 = nn.Conv2d(2 * width, width, 1), Block(width)
        self.conv_out = nn.Conv2d(width, 4, 3, padding=1)

    def vector(self, level, label):
        """What is known besides the image; label None: nothing about the digit, ten zeros."""
        digit = torch.zeros(len(level), 10) if label is None else F.one_hot(label, 10)
        return self.describe(torch.cat([F.one_hot(level, levels), digit], dim=1).float())

    def forward(self, noisy, level, label=None):
        """Noisy images (B, 1, 16, 16), level (B,), label (B,) or None -> what the digit may be, (B, 1, 16, 16)."""
        known = F.silu(self.vector(level, label))
        squares = F.pixel_unshuffle(noisy, 2)  # (B, 4, 8, 8): 2 by 2 pixels become 4 channels
        fine = self.block1(self.conv_in(squares), known)  # (B, width, 8, 8)
        x = self.block2(self.down(fine), known)  # (B, 2 * width, 4, 4)
        x = x + self.all2(F.silu(self.all1(torch.cat([x.flatten(1), known], dim=1)))).view_as(x)
        x = self.up(self.block3(x, known))
        x = self.block4(fine + F.interpolate(x, scale_factor=2), known)
        return F.pixel_shuffle(self.conv_out(x), 2)  # 4 channels become 2 by 2 pixels


print(f"{sum(p.numel() for p in Denoiser().parameters()):,} weights")

# %% [markdown]
# ## Training
#
# Take some digits, choose a random level and random noise for each, let the network predict the digits, and turn the
# weights so that the squared error falls (notebook 02). That is all: the drawing loop does not run in training. `Adam`
# is an optimiser that chooses the size of the step for each weight; the learning rate grows at the start and then falls
# to zero.


# %%
def train(network, steps, labelled, seed=0):
    """-> the loss at each step."""
    optimiser = torch.optim.Adam(network.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=steps, pct_start=0.15)
    dice, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        chosen = torch.randint(5000, (64,), generator=dice)
        level = torch.randint(levels, (64,), generator=dice)
        clean = digits[chosen]
        noisy = add_noise(clean, torch.randn(clean.shape, generator=dice), level)
        loss = (network(noisy, level, labels[chosen] if labelled else None) - clean).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
        losses.append(loss.item())
    return losses


torch.manual_seed(0)
plain = Denoiser()
losses = {"without label": train(plain, 480, labelled=False)}
for step in (10, 120, 240, 480):
    print(f"step {step:3}: loss {np.mean(losses['without label'][step - 10 : step]):.3f}")

# %% [markdown]
# ## One guess, or many
#
# **Predict, then run**: the network gets a 7 at levels 4, 10 and 14, and then at level 19, where there is nearly only
# noise. What does it predict each time?

# %%
asked = torch.tensor([4, 10, 14, 19])
noisy = add_noise(seven.expand(4, -1, -1, -1), noise, asked)
with torch.no_grad():
    guesses = plain(noisy, asked)
lesson.pictures(
    [*noisy[:, 0].clamp(-1, 1), *guesses[:, 0].clamp(-1, 1)],
    alt="Above a 7 under four amounts of noise, below the guesses: a clear 7 at first, a pale smudge at the end.",
    title="With much noise, the best single guess is a mean of all digits",
    columns=4,
    labels=[f"level {level}" for level in asked.tolist()],
    rows=["noisy", "guess"],
    size=1.4,
)
apart = (guesses - seven).square().mean(dim=(1, 2, 3))
lesson.claim("the guess gets worse with the noise", apart[0] < apart[1] < apart[3])

# %% [markdown]
# <details><summary>Answer</summary>
#
# With little noise a clear 7; with more, something hesitant; from pure noise a grey smudge in the middle. Any digit may
# be hidden in there, and what makes the squared error smallest is the mean of all of them.
#
# </details>
#
# A smudge is not a digit. But it is a beginning: it says where the bright pixels are likely to be. So we put noise on
# it again, **a little less** than before, and ask again. Now the network sees a hint, its own, and can be a little
# bolder. Twenty times, and the guess has become a digit. That is a sampler:


# %%
@torch.no_grad()
def draw(network, label, count, seed, fresh=True):
    """-> the finished images, and for each level (x, guess)."""
    dice = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 16, 16, generator=dice)
    way = []
    for level in reversed(range(levels)):
        clean = network(x, torch.full((count,), level), label).clamp(-1, 1)
        way.append((x, clean))
        noise = torch.randn(x.shape, generator=dice) if fresh else noise_in(x, clean, torch.tensor([level]))
        if level:
            x = add_noise(clean, noise, torch.tensor([level - 1]))
    return clean, way


by_chance, _ = draw(plain, None, 100, seed=1)
lesson.pictures(
    [sheet(by_chance)],
    alt="A hundred small images in which most look like digits, in no order.",
    title="Without a label, noise becomes any digit",
    size=4.6,
)

# %% [markdown]
# (With `fresh=False` it is not new noise that is put on the guess, but the noise that the network has found. Real
# samplers do so, or mix the two: notebook 05. The idea is the same.)
#
# ## Is it a 7?
#
# Looking is good, counting is better. A second network learns to read digits, from the same images, in a second. It is
# the judge. (`cross_entropy` is the usual loss for choosing one of several: it is small if the right one gets a high
# score.)

# %%
torch.manual_seed(1)
judge = nn.Sequential(
    nn.Conv2d(1, 16, 3, stride=2, padding=1),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3, stride=2, padding=1),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(32 * 4 * 4, 64),
    nn.ReLU(),
    nn.Linear(64, 10),
)
optimiser = torch.optim.Adam(judge.parameters(), lr=3e-3)
for _ in range(200):
    chosen = torch.randint(5000, (128,))
    loss = F.cross_entropy(judge(digits[chosen]), labels[chosen])
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


@torch.no_grad()
def read(pictures):
    return judge(pictures).argmax(dim=1)


right = float((read(digits[unseen]) == labels[unseen]).float().mean())
print(f"the judge reads {right:.1%} of digits that it has never seen")
lesson.claim("the judge can be trusted: more than 95 % right", right > 0.95)
print("what it reads in the images above:", torch.bincount(read(by_chance), minlength=10).tolist())
print(f"sevens: {int((read(by_chance) == 7).sum())} of 100")

# %% [markdown]
# ## Ask for a 7
#
# Now a network that gets the label in training: the ten zeros become a one-hot vector. Nothing else changes, not a
# line. Why should the network use the label? Because it helps: at high levels, knowing that this is a 7 makes the error
# smaller.

# %%
torch.manual_seed(0)
with_label = Denoiser()
losses["with label"] = train(with_label, 480, labelled=True)

figure, panel = lesson.axes(width=6, height=2.6)
for (name, curve), style in zip(losses.items(), ("--", "-"), strict=True):
    smooth = np.convolve(curve, np.ones(25) / 25, mode="valid")
    panel.plot(range(25, len(curve) + 1), smooth, style, label=name)
panel.set(xlabel="step", ylabel="loss, mean of 25 steps", ylim=(0.05, 0.3))
panel.legend()
lesson.show(
    figure,
    alt="Two falling curves of the loss over the steps; the one with the label ends lower.",
    title="Knowing the label makes the error smaller",
)
lesson.claim(
    "with the label the loss ends lower", np.mean(losses["with label"][-50:]) < np.mean(losses["without label"][-50:])
)

# %%
sevens, way = draw(with_label, torch.full((20,), 7), 20, seed=2)
steps = [0, 3, 6, 9, 12, 15, 19]
lesson.pictures(
    [way[k][part][0, 0].clamp(-1, 1) for part in (0, 1) for k in steps],
    alt="Above noise that turns into a 7, below the guesses: a blurred 7 from the first step on that grows sharp.",
    title="A 7 comes out of noise",
    columns=len(steps),
    labels=[f"level {levels - 1 - k}" for k in steps],
    rows=["noisy", "guess"],
)
print("twenty sevens, as the judge reads them:", read(sevens).tolist())
lesson.claim("most of the twenty are sevens", (read(sevens) == 7).float().mean() >= 0.6)

# %% [markdown]
# Compare the first guess with that of the network without label. It is a mean again, but a mean of sevens.

# %%
asked = torch.arange(100) % 10
drawn, _ = draw(with_label, asked, 100, seed=3)
lesson.pictures(
    [sheet(drawn)],
    alt="Ten rows of the digits 0 to 9 in order, drawn by the network, in many styles.",
    title="Asked for 0 to 9: within a column only the noise differs",
    size=4.6,
)
scores = {
    "without label": float((read(by_chance) == asked).float().mean()),
    "one-hot": float((read(drawn) == asked).float().mean()),
}
kept, _ = draw(with_label, asked, 100, seed=3, fresh=False)
print(f"with the noise that the network found, instead of new noise: {float((read(kept) == asked).float().mean()):.0%}")
for name, score in scores.items():
    print(f"{name:14} {score:.0%} are what was asked")
lesson.claim("asked for a digit, it mostly draws that one", scores["one-hot"] >= 0.6)
lesson.claim("without label it is near one in ten", scores["without label"] < 0.3)

# %% [markdown]
# ## Instead of one-hot: an embedding
#
# What does the linear layer do with a one-hot vector? It multiplies one row of weights by 1 and all others by 0, and
# adds up.
#
# **Predict, then run**: what is the product of a one-hot vector and a matrix?

# %%
table = with_label.describe.weight.detach().T  # (levels + 10, 64)
one_hot = F.one_hot(torch.tensor([levels + 7]), levels + 10).float()
lesson.claim("it is one row of the matrix", torch.equal(one_hot @ table, table[levels + 7 : levels + 8]))

# %% [markdown]
# <details><summary>Answer</summary>
#
# The row at the place of the 1. All that multiplying was only a way to look something up.
#
# </details>
#
# So leave the multiplication out, and keep a **table**: a vector for each label, learnt like any weight. That is called
# an **embedding**. For ten labels it saves little. But the words of Stable Diffusion come from a vocabulary of many
# thousand pieces:

# %%
from minisd.configs import CLIPTextConfig

text = CLIPTextConfig()
print(f"a prompt has 77 places, {text.vocab_size:,} pieces to choose from, vectors of {text.width} numbers")
print(f"as one-hot and matrix product: {77 * text.vocab_size * text.width:,} multiplications; as a table: none")


class WithTables(Denoiser):
    """The same network with embeddings."""

    def __init__(self):
        super().__init__()
        del self.describe
        self.level_table, self.digit_table = nn.Embedding(levels, 64), nn.Embedding(10, 64)

    def vector(self, level, label):
        return self.level_table(level) + self.digit_table(label)


def with_tables(network):
    """The embedding network that has the weights of a one-hot network."""
    made, weights = WithTables(), network.state_dict()
    rows = weights.pop("describe.weight").T
    weights |= {"level_table.weight": rows[:levels], "digit_table.weight": rows[levels:]}
    made.load_state_dict(weights)
    return made


embedded = with_tables(with_label)
drawn_by_table, _ = draw(embedded, asked, 100, seed=3)
scores["embedding"] = float((read(drawn_by_table) == asked).float().mean())
lesson.claim("with a table it draws the same images", torch.allclose(drawn, drawn_by_table, atol=1e-2))

torch.manual_seed(5)
one = Denoiser()
other = with_tables(one)
first, second = train(one, 25, labelled=True), train(other, 25, labelled=True)
apart = max(abs(a - b) for a, b in zip(first, second, strict=True))
lesson.claim("and trained from the same start, it learns the same", apart < 1e-2)
for name, score in scores.items():
    print(f"{name:14} {score:.0%} are what was asked")

# %% [markdown]
# A table has another advantage: its vectors are points in a space, and between two points there are others. No label
# says "half a 1, half a 7", but a vector can.
#
# **Predict, then run**: the network gets the mean of the vectors of two digits. It was never trained on such a vector.
# What will it draw?

# %%
pairs = [(1, 7), (3, 8), (5, 6), (4, 9)]
mixed = copy.deepcopy(embedded)
with torch.no_grad():
    for place, (a, b) in enumerate(pairs):
        mixed.digit_table.weight[place] = (embedded.digit_table.weight[a] + embedded.digit_table.weight[b]) / 2
between, _ = draw(mixed, torch.arange(4).repeat_interleave(8), 32, seed=4)
lesson.pictures(
    list(between[:, 0].clamp(-1, 1)),
    alt="Four rows of eight digits drawn from mean vectors: one of the two digits, or something between them.",
    title="Between two labels there is something, too",
    columns=8,
    rows=[f"{a} and {b}" for a, b in pairs],
    size=0.8,
)
for (a, b), row in zip(pairs, read(between).view(4, 8), strict=True):
    print(f"between {a} and {b}, the judge reads {row.tolist()}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Often one of the two, as the noise decides; often something that could pass for both; at times a smudge, because the
# network was not trained on vectors between two labels. Notebook 19 does this with the vectors of words.
#
# </details>
#
# ## From here to Stable Diffusion
#
# What is still missing is more of the same, and each has its notebook:
#
# | here | in Stable Diffusion | where |
# |---|---|---|
# | 20 levels, shares by cosine and sine | a thousand timesteps, a schedule | notebook 05 |
# | guess, add new noise | samplers that need fewer steps | notebooks 05 and 06 |
# | a network of four blocks | the UNet | notebook 07 |
# | the label counts as much as training made it count | guidance amplifies it | notebook 08 |
# | pixels | latents of an autoencoder | notebook 09 |
# | a table of ten labels | a text encoder; each position looks at each word | notebooks 10 and 11 |
# | a judge of digits | measures such as FID | notebook 29 |

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why does a digit appear in twenty steps, although each single guess is a mean?</summary>
#
# Each step puts less noise on the guess than before, so the next guess starts from a hint of what was decided already.
# The mean is then over fewer and fewer digits that are still possible.
#
# </details>
#
# <details><summary>Why do noise and digit have the same answer, but not the same score?</summary>
#
# Each follows from the other and the noisy image. But at high levels the noisy image contains very little of the digit,
# so even a digit that is all wrong changes the noise only a little.
#
# </details>
#
# <details><summary>Why does the network use the label, although no rule tells it to?</summary>
#
# At high levels, the label makes the squared error smaller. Training turns the weights so that the error falls, so it
# makes the network use what helps.
#
# </details>
#
# <details><summary>Why is a label not given to the network as one number?</summary>
#
# A number is an amount: 7 would be more than 3, and close to 8. A label is a name, so each label gets a place of its
# own in the one-hot vector.
#
# </details>
#
# <details><summary>Why does an embedding give the same result as a one-hot vector and a linear layer?</summary>
#
# The 1 of the one-hot vector selects one row of the weights, and all other rows are multiplied by 0. An embedding looks
# this row up and leaves the multiplications out.
#
# </details>
#
# ## Your turn
#
# [The exercises](../minisd/exercises/README.md) belong to other lessons. Try these experiments in the cells above;
# where a claim becomes false, its cell stops, and that is a finding as well.
#
# - Train the network with labels for `120` steps in place of `480`, and look which digits the judge reads.
# - In `draw`, exchange the label for another one half way down the levels, and see which of the two is drawn.
# - Draw the sheet of all ten digits with `fresh=False`, and look how much the digits of one column differ.

# %% [markdown]
# ## Summary
#
# - Training needs clean images only: add noise of a random level, let the network predict what is under it.
# - Noise and digit are two answers to one question; the one that is scored decides what the network takes care of.
# - One guess from noise is a mean. Guess, add less noise than before, guess again: this is how an image is drawn.
# - A label enters as a one-hot vector through a linear layer, or, which is the same, as a row of a table: an embedding.
#
# **Code**: the real schedule in [schedule.py](../minisd/schedulers/schedule.py), the real network in
# [unet.py](../minisd/models/unet.py), the table of word pieces in [clip.py](../minisd/models/clip.py).
# **Next**: [05 · The noise schedule](05_noise_schedule.ipynb).
