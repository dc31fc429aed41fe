# %% [markdown]
# # 01 · Matrix multiplication from foundations
#
# **You will** write the product of two matrices in five ways, from three loops to one sign, measure how much faster
# each is, predict what broadcasting does, and count the multiplications of a real Stable Diffusion network.
#
# **Needs** Python, and to have seen a NumPy array. Nothing of deep learning.
#
# **Takes** 20 minutes to read, less than a minute to run.

# %% [markdown]
# ## One operation
#
# A model that draws images sounds like a box full of secrets. Inside there are tables of numbers, and nearly all the
# work is one operation on them: the product of two matrices. So we begin there, and slowly.
#
# A matrix has rows and columns. The product `c = a @ b` has one number for each row of `a` and each column of `b`:
# multiply the two number by number, and add up. That is called their **dot product**. We compute with PyTorch. Its
# arrays are called **tensors**, and they work much like NumPy's.

# %%
import statistics
import time

import lesson
import torch

a = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
b = torch.tensor([[10.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
print("a", tuple(a.shape), "times b", tuple(b.shape), "gives", tuple((a @ b).shape))
print(a @ b)
lesson.claim("row 0 of a with column 0 of b: 1*10 + 2*0 + 3*1 = 13", (a @ b)[0, 0] == 1 * 10 + 2 * 0 + 3 * 1)

# %% [markdown]
# A row of `a` must be as long as a column of `b`: the inner numbers of the two shapes, here 3 and 3, are the same and
# vanish. The outer ones stay.
#
# **Predict, then run**: which of these products exist, and of what shape are they?
#
# 1. shape (5, 3) times (3, 2)
# 2. shape (3, 2) times (5, 3)
# 3. shape (1, 4) times (4, 1)
# 4. shape (4, 1) times (1, 4)

# %%
for left, right in (((5, 3), (3, 2)), ((3, 2), (5, 3)), ((1, 4), (4, 1)), ((4, 1), (1, 4))):
    try:
        print(left, "times", right, "gives", tuple((torch.ones(left) @ torch.ones(right)).shape))
    except RuntimeError:
        print(left, "times", right, "does not exist:", left[1], "is not", right[0])

# %% [markdown]
# <details><summary>Answer</summary>
#
# The second does not exist: a row of 2 numbers meets a column of 5. The third is a single number, a dot product and
# nothing else. The fourth is a whole table, each number of the column times each of the row. So the order matters: `a @
# b` and `b @ a` give different results.
#
# </details>
#
# ## First rung: three loops
#
# Written as described: for each row, for each column, walk along both.


# %%
def loops(a, b):
    rows, inner, columns = a.shape[0], a.shape[1], b.shape[1]
    c = torch.zeros(rows, columns)
    for i in range(rows):
        for j in range(columns):
            for k in range(inner):
                c[i, j] += a[i, k] * b[k, j]
    return c


lesson.claim("three loops give the same four numbers", torch.equal(loops(a, b), a @ b))

# %% [markdown]
# Now with numbers of a real network. The repository holds a small, trained Stable Diffusion, the embedded model. In its
# UNet, the part that removes noise from images, we take the weights of one layer: a matrix of 64 by 64. What the layer
# is for, you will see in notebook 03. The other matrix is random.

# %%
import weights_loader

sd = weights_loader.load("sticker")
layer = sd.unet.down[1].transformers[0].blocks[0].attention1.q
x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
w = layer.weight.detach().T.contiguous()  # detach: only the numbers, as notebook 02 explains
print("x", tuple(x.shape), "times w", tuple(w.shape))

medians = {}


def timed(name, product, calls):
    """Time that the processor spends on one call, in microseconds: the median of three rounds. Returns the product."""
    times = []
    for _ in range(3):
        began = time.process_time()
        for _ in range(calls):
            result = product(x, w)
        times.append(1e6 * (time.process_time() - began) / calls)
    medians[name] = statistics.median(times)
    print(f"{name}: {medians[name]:,.1f} microseconds")
    return result


expected = timed("three loops", loops, 1)
print(f"multiplications: {16 * 64 * 64:,}")

# %% [markdown]
# A processor can do billions of multiplications in a second. Ours took so long because for each single one Python
# looks up two numbers, wraps each in a tensor, multiplies, and unwraps. The remedy is the same on every rung: say
# more with one command, so that the loop runs inside the library, in machine code.
#
# ## Second rung: a row at a time
#
# Operators on tensors work on all their numbers at once, **elementwise**. That replaces the innermost loop.


# %%
def rows(a, b):
    c = torch.zeros(a.shape[0], b.shape[1])
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            c[i, j] = (a[i, :] * b[:, j]).sum()
    return c


print(torch.tensor([1.0, 2.0, 3.0]) * torch.tensor([10.0, 0.0, 1.0]))
lesson.claim("rows gives what the loops give", torch.allclose(timed("rows", rows, 5), expected, atol=1e-5))

# %% [markdown]
# (Why "allclose" with a tolerance, and not "equal"? Computers round each sum. Adding in another order rounds
# elsewhere, in the seventh digit. Throughout these lessons, equal means: up to this rounding.)
#
# ## Third rung: broadcasting
#
# To get rid of the second loop, one row of `a` must meet *all* columns of `b` at once. But their shapes differ: how
# can a row be multiplied elementwise with a whole matrix? By **broadcasting**, two rules that PyTorch shares with
# NumPy:
#
# 1. Write the shapes below each other, aligned **at the right**. Where one has no number, put a 1.
# 2. At each place the numbers must be equal, or one of them is 1. An axis of length 1 is read again and again, as if
#    it were repeated.
#
# `x[:, None]` puts in an axis of length 1 where we want one. Here a column times a row becomes a multiplication table:

# %%
column, row = torch.arange(1, 6)[:, None], torch.arange(1, 8)
table = column * row
print(tuple(column.shape), "*", tuple(row.shape), "->", tuple(table.shape))
figure, panels = lesson.axes(1, 3, width=2.2, height=2)
for panel, numbers in zip(panels, (column, row[None], table), strict=True):
    panel.imshow(numbers, cmap="Blues", vmin=0, vmax=60)
    for i, line in enumerate(numbers.tolist()):
        for j, number in enumerate(line):
            panel.text(j, i, number, ha="center", va="center", fontsize=9)
    panel.set_title(tuple(numbers.shape), fontsize=10)
    panel.axis("off")
lesson.show(
    figure,
    alt="A column of the numbers 1 to 5, a row of the numbers 1 to 7, and their multiplication table.",
    title="A column and a row, each repeated along the other, fill a table",
)

# %% [markdown]
# **Predict, then run**: what shape has each of these, or does it fail?
#
# 1. (3,) and (4, 3)
# 2. (4,) and (4, 3)
# 3. (4, 1) and (4, 3)
# 4. (8, 1, 6) and (7, 1)
# 5. (2, 64, 16, 16) and (2, 64, 1, 1)


# %%
def broadcast(one, other):
    """The two rules -> the shape of the result. Raises ValueError where there is none."""
    length = max(len(one), len(other))
    one, other = (1,) * (length - len(one)) + one, (1,) * (length - len(other)) + other
    if any(m != n and 1 not in (m, n) for m, n in zip(one, other, strict=True)):
        raise ValueError("the shapes do not fit")
    return tuple(n if m == 1 else m for m, n in zip(one, other, strict=True))


agree = True
for one, other in (
    ((3,), (4, 3)),
    ((4,), (4, 3)),
    ((4, 1), (4, 3)),
    ((8, 1, 6), (7, 1)),
    ((2, 64, 16, 16), (2, 64, 1, 1)),
):
    try:
        shape = broadcast(one, other)
        agree &= shape == tuple((torch.ones(one) * torch.ones(other)).shape)
    except ValueError as error:
        shape = error
        try:
            torch.ones(one) * torch.ones(other)
            agree = False
        except RuntimeError:
            pass
    print(one, "and", other, "->", shape)
lesson.claim("our two rules are PyTorch's", agree)

# %% [markdown]
# <details><summary>Answer</summary>
#
# 1. (4, 3): the same row for each of the 4 rows.
# 2. It fails: aligned at the right, the 4 is below the 3. This is the most frequent mistake of all. `[:, None]` repairs
#    it, as in the next case.
# 3. (4, 3).
# 4. (8, 7, 6): all three axes come from somewhere.
# 5. (2, 64, 16, 16): one number for each image and channel, the same at each of its positions. The UNet adds the noise
#    level to its feature maps in just this way.
#
# </details>
#
# With this, a row of `a`, turned into a column, meets all of `b`: number `k` of the row multiplies row `k` of `b`. Then
# we add up along `k`.


# %%
def broadcasting(a, b):
    c = torch.zeros(a.shape[0], b.shape[1])
    for i in range(a.shape[0]):
        c[i] = (a[i, :, None] * b).sum(dim=0)  # (inner, 1) * (inner, columns), summed over inner
    return c


result = timed("broadcasting", broadcasting, 200)
lesson.claim("broadcasting gives what the loops give", torch.allclose(result, expected, atol=1e-5))

# %% [markdown]
# Why not the last loop, too? It works, and shows what is wrong with going on like this: the table of all products
# has to be written into memory before it is added up.

# %%
everything = x[:, :, None] * w[None, :, :]
print("x, w and the result hold", f"{x.numel() + w.numel() + expected.numel():,} numbers,")
print("the table between them  ", f"{everything.numel():,}, of shape", tuple(everything.shape))
lesson.claim("summed up it is the product", torch.allclose(everything.sum(dim=1), expected, atol=1e-5))

# %% [markdown]
# ## Fourth rung: einsum
#
# We want to say *what* is to be multiplied and summed, and leave the how to the library. `einsum` is a language for
# that: give each axis a letter; a letter that is missing behind the arrow is summed over. Every loop of the first
# rung is one letter.


# %%
def einsum(a, b):
    return torch.einsum("ik,kj->ij", a, b)


result = timed("einsum", einsum, 5000)
lesson.claim("einsum gives what the loops give", torch.allclose(result, expected, atol=1e-5))

# %% [markdown]
# ## Last rung: one sign
#
# The product of matrices is so frequent that Python has a sign for it, `@`. It calls a routine that people have tuned
# for half a century: it never writes the big table, uses the processor's widest instructions, and cuts the matrices
# into blocks that fit its fastest memory.


# %%
def sign(a, b):
    return a @ b


lesson.claim("@ gives what the loops give", torch.allclose(timed("@", sign, 10_000), expected, atol=1e-5))

figure, panel = lesson.axes(width=6.5, height=2.6)
names = list(medians)
panel.barh(names, [medians[name] for name in names])
panel.invert_yaxis()
panel.set(xscale="log", xlabel="microseconds, each line ten times the one before", xlim=(1, None))
panel.grid(axis="x", alpha=0.3)
lesson.show(
    figure,
    alt="Five bars on a logarithmic scale: three loops are by far the longest, then rows, broadcasting, einsum and @.",
    title="The same numbers, thousands of times faster",
)
for name in names:
    print(f"{name:12} {medians['three loops'] / medians[name]:10,.0f} times as fast as three loops")
lesson.claim("rows is faster than three loops", medians["rows"] < medians["three loops"])
lesson.claim("@ is more than 1000 times faster than three loops", 1000 * medians["@"] < medians["three loops"])

# %% [markdown]
# So the rule for all code that follows: no Python loop over numbers. Loops over layers or over denoising steps are
# harmless, because each iteration does a lot of work.
#
# ## A linear layer
#
# What is such a product good for? Take an image of four pixels as a row of four numbers. Multiplied with a column of
# four weights it gives one number: a weighted sum, an *answer to a question*. Weights of 1/4 ask how bright the image
# is. Positive weights at the left and negative ones at the right ask whether light comes from the left. Several
# questions at once are several columns, and several images are several rows. This is a **linear layer**. It also adds
# one number for each question, the **bias**.
#
# PyTorch stores a question as a row, so the matrix has the shape (outputs, inputs), and `.T` turns it round:


# %%
def linear(x, weight, bias=None):
    """x (..., inputs), weight (outputs, inputs) -> (..., outputs)."""
    y = x @ weight.T
    return y if bias is None else y + bias


questions = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, -0.5, 0.5, -0.5], [0.5, 0.5, -0.5, -0.5]])
four_pixels = {
    "all light": [1.0, 1.0, 1.0, 1.0],
    "light at the left": [1.0, 0.0, 1.0, 0.0],
    "light at the right": [0.0, 1.0, 0.0, 1.0],
    "light above": [1.0, 1.0, 0.0, 0.0],
}
answers = linear(torch.tensor(list(four_pixels.values())), questions)
print(" " * 20, "bright?  left?  above?")
for name, (bright, left, above) in zip(four_pixels, answers.tolist(), strict=True):
    print(f"{name:20} {bright:7.2f} {left:6.2f} {above:7.2f}")
lesson.claim(
    "only the third image says that its light is not at the left", (answers[:, 1] < 0).tolist() == [0, 0, 1, 0]
)

# %% [markdown]
# In a network the questions are not written by hand. They are learnt (notebook 02). The library's layers are the same
# formula:

# %%
positions = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(1))  # images, positions, numbers of each
second = sd.unet.middle.transformer.blocks[0].attention1.out  # has a bias, layer has none
with torch.no_grad():
    mine, theirs = linear(positions, second.weight, second.bias), second(positions)
    first, expected_first = linear(x, layer.weight), layer(x)
print("input", tuple(positions.shape), "weight", tuple(second.weight.shape), "output", tuple(mine.shape))
lesson.claim("our linear layer is the UNet's, with a bias", torch.allclose(mine, theirs, atol=1e-5))
lesson.claim("and without one", torch.allclose(first, expected_first, atol=1e-5))

# %% [markdown]
# The input had three axes. `@` works on the last two, and broadcasts over all before them: every image of the batch
# goes through the same layer, without a loop.
#
# ## Counting
#
# For `n` rows, a linear layer from `inputs` to `outputs` numbers needs `n * inputs * outputs` multiplications. Let us
# count a whole **attention** layer. You need not know yet what it is for (notebook 03). It consists of four linear
# layers and two further products: all positions with all positions, twice.


# %%
def attention_products(positions, width):
    """Multiplications of an attention layer, by what they are for."""
    return {
        "three linear layers in front": 3 * positions * width * width,
        "all positions with all": positions * width * positions,
        "the mixture": positions * positions * width,
        "a linear layer behind": positions * width * width,
    }


for name, count in attention_products(positions=64, width=64).items():
    print(f"{name:30} {count:>9,}")

# %% [markdown]
# PyTorch can count while a network runs. It counts multiplications and additions, so we halve its number. Its count
# must be ours; we let it watch the same attention, written with `@`:

# %%
from torch.utils.flop_counter import FlopCounterMode

from minisd.models.layers import readable_attention


def counted(run):
    """Multiplications in all matrix products and convolutions while run() runs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() // 2


attention = sd.unet.down[1].transformers[0].blocks[0].attention1
tokens = torch.randn(1, 64, 64)


def written_out():
    q, k, v = (attention._split(project(tokens)) for project in (attention.q, attention.k, attention.v))
    mixed, _ = readable_attention(q, k, v)
    return attention.out(mixed.transpose(1, 2).flatten(2))


total = counted(written_out)
print(f"PyTorch counts {total:,}")
lesson.claim("our count of one attention layer is exact", total == sum(attention_products(64, 64).values()))

# %% [markdown]
# **Predict, then run**: an image of twice the height and twice the width has 4 times as many positions. How many times
# more does each of the four parts cost?

# %%
small, large = attention_products(64, 64), attention_products(4 * 64, 64)
for name in small:
    print(f"{name:30} {large[name] / small[name]:.0f} times")
lesson.claim(
    "the linear layers cost 4 times as much", large["a linear layer behind"] == 4 * small["a linear layer behind"]
)
lesson.claim("all positions with all cost 16 times as much", large["the mixture"] == 16 * small["the mixture"])

# %% [markdown]
# <details><summary>Answer</summary>
#
# The linear layers work on each position alone: 4 times. In the products of all positions with all, both sides grow: 16
# times. That is one reason why Stable Diffusion works on a small compressed image, the latents (notebook 09), and not
# on pixels.
#
# </details>
#
# ## The whole network
#
# One call of the embedded UNet, and one of Stable Diffusion 1. For counting, the official one needs no weights: on
# the device "meta", PyTorch keeps only the shapes of tensors.

# %%
from minisd.configs import UNetConfig
from minisd.models.unet import UNet

size = sd.unet.config.sample_size
words = sd.encode_prompt(["a red star"])
calls = {"embedded model": counted(lambda: sd.unet(torch.randn(1, 4, size, size), torch.tensor(500), words))}
with torch.device("meta"):
    official = UNet(UNetConfig())
    latents, states = torch.empty(1, 4, 64, 64), torch.empty(1, 77, official.config.context_width)
    calls["Stable Diffusion 1"] = counted(lambda: official(latents, torch.tensor(500.0), states))
for name, count in calls.items():
    print(f"{name:20} {count:>18,} multiplications in one call, in 50 calls {50 * count:.1e}")

big = torch.randn(512, 512)
began = time.process_time()
for _ in range(100):
    big @ big
rates = {"@": 100 * 512**3 / (time.process_time() - began), "three loops": 1e6 * 16 * 64 * 64 / medians["three loops"]}
for name, rate in rates.items():
    minutes = 50 * calls["Stable Diffusion 1"] / rate / 60
    print(f"{name}: {rate:.0e} multiplications a second, 50 calls of Stable Diffusion 1 in {minutes:,.0f} minutes")
lesson.claim(
    "the official UNet multiplies more than 1000 times as much",
    calls["Stable Diffusion 1"] > 1000 * calls["embedded model"],
)

# %% [markdown]
# So three loops are too slow to draw with. And it is clear why all of this began with graphics processors: there is
# nothing that they do better than this product.
#
# ## Why everything later is this
#
# - *Learning* (notebook 02) asks how each weight should change. For `x @ w` the answer is again two matrix products.
# - A *convolution* (notebook 03) looks at each neighbourhood of an image: cut out all neighbourhoods as rows, and it is
#   a matrix product.
# - *Attention* (notebook 03), which lets words steer the image, is two products between its linear layers.
# - Looking up the vector of a word (notebook 04) is the product with a row that is 1 at one place and 0 elsewhere.

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why are three loops slow, although a processor multiplies fast?</summary>
#
# For every single multiplication Python looks up two numbers and wraps each in a tensor. This work takes far longer
# than the multiplication itself.
#
# </details>
#
# <details><summary>Why do the shapes (4,) and (4, 3) not fit, and what repairs them?</summary>
#
# Shapes are aligned at the right, so the 4 of the first is below the 3 of the second. `[:, None]` makes the first (4,
# 1), and its axis of length 1 is then repeated along the 3.
#
# </details>
#
# <details><summary>Why is broadcasting over all three axes not the best way to multiply matrices?</summary>
#
# It writes all single products into memory before they are added up. The routine behind `@` adds them up at once and
# never writes this table.
#
# </details>
#
# <details><summary>How can one linear layer serve a whole batch of images without a loop?</summary>
#
# `@` works on the last two axes, and broadcasting repeats the weights over all axes before them. So every image meets
# the same weights.
#
# </details>
#
# <details><summary>Why does attention cost more than four times as much for four times the positions?</summary>
#
# Its linear layers work on each position alone, so they cost four times as much. But in its other two products each
# position meets each position, so their cost grows with the square of the number of positions.
#
# </details>
#
# ## Your turn
#
# [The exercises](../minisd/exercises/README.md) begin with notebook 03. Try these experiments in the cells above; where
# a claim becomes false, its cell stops, and that is a finding as well.
#
# - In the cell with the multiplication table, compute `column + row`, and predict the table first.
# - Write `torch.einsum("ik,kj->ji", a, b)`, and say how the result differs from `a @ b`.
# - Count an attention layer with `attention_products(positions=64, width=128)`: which of the four parts double, and
#   which grow fourfold?

# %% [markdown]
# ## Summary
#
# - `c = a @ b`: each row of `a` with each column of `b`, multiplied number by number and added up.
# - A loop in Python spends most of its time on overhead; elementwise operators, broadcasting, `einsum` and `@` give the
#   same numbers faster, each by saying more at once.
# - Broadcasting: align shapes at the right; equal, or 1.
# - A linear layer is `x @ weight.T + bias`: every row of the weights is a question, every output an answer.
#
# **Code**: the layers made of it in [layers.py](../minisd/models/layers.py), and the network made of those in
# [unet.py](../minisd/models/unet.py). **Next**: [02 · Autograd and modules](02_autograd_and_modules.ipynb).
