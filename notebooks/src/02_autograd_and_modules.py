# %% [markdown]
# # 02 · Autograd and modules in a nutshell
#
# **You will** write the machine that finds out how every weight of a network should change, and a `Module` that knows
# its weights; train a network to follow a curve; and find both of them in the UNet of Stable Diffusion.
#
# **Needs** notebook 01 (matrix products, broadcasting). You need not have calculated with derivatives lately.
#
# **Takes** 25 minutes to read, less than a minute to run.

# %% [markdown]
# ## Turning many knobs
#
# A network is a formula with numbers in it that can be chosen: its **weights**. How well they are chosen is measured
# by one number, the **loss**; small is good. To learn is to turn the weights so that the loss falls. A large network
# has a billion of them. Which way should each be turned?
#
# One way is to try. Turn one weight a little, and look what the loss does. How much the loss changes for each unit
# that the weight is turned is called the **derivative**, and all derivatives together are the **gradient**.

# %%
import lesson
import torch

import weights_loader
from minisd.images import to_pil


def loss_of(w, b, x=2.0, y=7.0):
    """The network is w * x + b. It should return y."""
    d = w * x + b - y
    return d * d


w, b, nudge = 1.5, 0.5, 1e-4
print("loss", loss_of(w, b))
by_trying = [
    (loss_of(w + nudge, b) - loss_of(w - nudge, b)) / (2 * nudge),
    (loss_of(w, b + nudge) - loss_of(w, b - nudge)) / (2 * nudge),
]
print(f"the loss changes by {by_trying[0]:.3f} for each unit of w, by {by_trying[1]:.3f} for each unit of b")

# %% [markdown]
# Both are negative: to make the loss smaller, make `w` and `b` larger. But trying needs two runs of the network for
# *each* weight. With a billion weights that is hopeless. There is a way to get all derivatives for about the price of
# three runs, and all of deep learning is built on it.
#
# ## The chain rule
#
# Cut the formula into steps, one operation each: `p = w * x`, `s = p + b`, `d = s - y`, `loss = d * d`. For a single
# step it is easy to say how its result depends on its inputs:
#
# - `a + b`: result and input move alike; the derivative is 1 for each.
# - `a * b`: if `a` moves by a little, the result moves by `b` times that; and the other way round.
#
# The **chain rule** says how steps in a row go together: multiply. If the loss changes 4 times as fast as `d`, and `d`
# 2 times as fast as `w`, then the loss changes 8 times as fast as `w`. So we start at the loss, whose derivative by
# itself is 1, and walk **backwards** through the steps. Each step takes the derivative of its result and hands to each
# input its share. One walk reaches every weight.
#
# ## The machine, in forty lines
#
# A `Node` holds numbers, a tensor of any shape. It also remembers which nodes it was made from, and how to hand a
# gradient back to them. That is all that is needed. Each of the six operations has its backward rule beside it. The
# rule of the matrix product, with $L$ for the loss, says that learning costs two more matrix products:
#
# $$C = AB: \qquad \frac{\partial L}{\partial A} = \frac{\partial L}{\partial C}\,B^{\mathsf T}, \qquad
# \frac{\partial L}{\partial B} = A^{\mathsf T}\,\frac{\partial L}{\partial C}$$
#
# (It is `a * b` from above, for each number of the table. The shapes help to remember it: the gradient of $A$ must have
# the shape of $A$, and there is only one way to multiply the other two to get that.)


# %%
class Node:
    """Numbers that remember where they came from."""

    def __init__(self, data, parents=(), back=lambda g: ()):
        self.data = torch.as_tensor(data, dtype=torch.float32)
        self.grad = torch.zeros_like(self.data)
        self.parents, self.back = parents, back  # back: gradient of this node -> one for each parent

    def __add__(self, other):
        return Node(self.data + other.data, (self, other), lambda g: (g, g))

    def __sub__(self, other):
        return Node(self.data - other.data, (self, other), lambda g: (g, -g))

    def __mul__(self, other):
        return Node(self.data * other.data, (self, other), lambda g: (g * other.data, g * self.data))

    def __matmul__(self, other):
        return Node(self.data @ other.data, (self, other), lambda g: (g @ other.data.T, self.data.T @ g))

    def tanh(self):
        y = self.data.tanh()
        return Node(y, (self,), lambda g: (g * (1 - y * y),))

    def mean(self):
        return Node(self.data.mean(), (self,), lambda g: (g.expand(self.data.shape) / self.data.numel(),))

    def backward(self):
        """Fill in .grad of this node and of all that it was made from."""
        self.grad = torch.ones_like(self.data)
        for node in reversed(in_order(self)):
            for parent, grad in zip(node.parents, node.back(node.grad), strict=True):
                parent.grad = parent.grad + grad.sum_to_size(parent.data.shape)


def in_order(node):
    """A node and all that it was made from, inputs first."""
    order, seen = [], set()

    def visit(node):
        if node not in seen:
            seen.add(node)
            for parent in node.parents:
                visit(parent)
            order.append(node)

    visit(node)
    return order


# %% [markdown]
# Two lines deserve a second look. `in_order` makes sure that a node passes its gradient on only when it has received
# all of it. And `sum_to_size` undoes broadcasting: where a bias was repeated for many rows on the way forward, the
# gradients of all those rows are added up on the way back.
#
# Our small formula as a diagram, each step with its value and its gradient:


# %%
def draw(nodes, edges, alt, title):
    """nodes: name -> (node, x, y)."""
    figure, panel = lesson.axes(width=8.4, height=2.6)
    for start, end in edges:
        (_, x0, y0), (_, x1, y1) = nodes[start], nodes[end]
        panel.annotate(
            "", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "-|>", "color": "gray", "shrinkA": 28, "shrinkB": 28}
        )
    for name, (node, x, y) in nodes.items():
        text = f"{name}\nvalue {node.data.item():.2f}\ngradient {node.grad.item():.2f}"
        panel.text(x, y, text, ha="center", va="center", fontsize=8, bbox={"boxstyle": "round", "fc": "white"})
    panel.set(xlim=(-0.6, 4.6), ylim=(-0.6, 2.6))
    panel.axis("off")
    lesson.show(figure, alt, title)


w, x, b, y = Node(1.5), Node(2.0), Node(0.5), Node(7.0)
p = w * x
s = p + b
d = s - y
loss = d * d
loss.backward()
draw(
    {
        "w": (w, 0, 2),
        "x": (x, 0, 0),
        "p = w * x": (p, 1, 2),
        "b": (b, 1, 0),
        "s = p + b": (s, 2, 2),
        "y": (y, 2, 0),
        "d = s - y": (d, 3, 2),
        "loss = d * d": (loss, 4, 2),
    },
    [
        ("w", "p = w * x"),
        ("x", "p = w * x"),
        ("p = w * x", "s = p + b"),
        ("b", "s = p + b"),
        ("s = p + b", "d = s - y"),
        ("y", "d = s - y"),
        ("d = s - y", "loss = d * d"),
    ],
    alt="A chain of boxes from w and x over p, s and d to the loss, each with a value and a gradient.",
    title="Values are computed from left to right, gradients from right to left",
)
lesson.claim("the gradient of w is what trying gave", abs(w.grad.item() - by_trying[0]) < 1e-3)
lesson.claim("and that of b", abs(b.grad.item() - by_trying[1]) < 1e-3)
lesson.claim("chain rule: gradient of w = gradient of p, times x", w.grad == p.grad * x.data)

# %% [markdown]
# **Predict, then run**: in `backward`, the gradient of a parent is *added* to what it has already: `parent.grad +
# grad`. What would the gradient of `w` be without the addition? (Look where `d` goes.)

# %%
lazy = dict.fromkeys(in_order(loss), 0.0)
lazy[loss] = 1.0
for node in reversed(in_order(loss)):
    for parent, grad in zip(node.parents, node.back(torch.tensor(lazy[node])), strict=True):
        lazy[parent] = float(grad)  # replaced, not added
print(f"with addition {w.grad.item():.1f}, without {lazy[w]:.1f}")
lesson.claim("without the addition it is half of the right one", 2 * lazy[w] == w.grad.item())

# %% [markdown]
# <details><summary>Answer</summary>
#
# Half of it. `d` enters the last step twice, and the loss depends on it through both. Whatever is used in several
# places gets a gradient from each, and they add up. In a UNet, where the feature maps of the way down are used a
# second time on the way up, that happens all the time.
#
# </details>
#
# ## Against PyTorch
#
# PyTorch has the same machine, with a rule for every operation, written in C++. It is called **autograd**. On a network
# of two layers, both must find the same gradients. Between the layers is `tanh`, a curved function: without such a
# function, two linear layers would be only one (a matrix times a matrix is a matrix).

# %%
dice = torch.Generator().manual_seed(0)
numbers = {
    "weight1": torch.randn(3, 16, generator=dice),
    "bias1": torch.randn(16, generator=dice),
    "weight2": torch.randn(16, 1, generator=dice),
    "bias2": torch.randn(1, generator=dice),
}
inputs, targets = torch.randn(8, 3, generator=dice), torch.randn(8, 1, generator=dice)


def two_layers(x, y, weight1, bias1, weight2, bias2):
    """The loss: the mean squared error of two layers."""
    d = (x @ weight1 + bias1).tanh() @ weight2 + bias2 - y
    return (d * d).mean()


ours = {name: Node(value) for name, value in numbers.items()}
two_layers(Node(inputs), Node(targets), **ours).backward()
theirs = {name: value.clone().requires_grad_() for name, value in numbers.items()}
two_layers(inputs, targets, **theirs).backward()
for name, value in numbers.items():
    apart = float((ours[name].grad - theirs[name].grad).abs().max())
    print(f"{name}: gradient {tuple(value.shape)!s:8} differs by at most {apart:.0e}")
    lesson.claim(f"our gradient of {name} is PyTorch's", torch.allclose(ours[name].grad, theirs[name].grad, atol=1e-5))

# %% [markdown]
# The function `two_layers` was the same for both: it only uses operators, and works with every class that defines them.
# In PyTorch, every tensor can be a node; `requires_grad_()` says that we want its gradient.
#
# ## A Module knows its weights
#
# Four weights can be handed over one by one; a thousand cannot. So we want objects that hold weights, and objects
# that hold such objects, and a way to find all weights in them. Python keeps an object's attributes in a dictionary,
# `vars(self)`. That is enough: look through the attributes, take the nodes, and go on into the modules.


# %%
class Module:
    def parameters(self, prefix=""):
        """All weights in this module, as pairs of name and node."""
        for name, value in vars(self).items():
            if isinstance(value, Node):
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from value.parameters(f"{prefix}{name}.")


class Linear(Module):
    def __init__(self, inputs, outputs, dice):
        self.weight = Node(torch.randn(inputs, outputs, generator=dice) / inputs**0.5)  # keeps the size of numbers
        self.bias = Node(torch.zeros(outputs))

    def __call__(self, x):
        return x @ self.weight + self.bias


class Network(Module):
    def __init__(self, width, dice):
        self.first = Linear(1, width, dice)
        self.second = Linear(width, width, dice)
        self.third = Linear(width, 1, dice)

    def __call__(self, x):
        return self.third(self.second(self.first(x).tanh()).tanh())


for name, node in Network(32, dice).parameters():
    print(f"{name:15} {tuple(node.data.shape)}")

# %% [markdown]
# The names come for free: each is the path through the attributes to the weight.
#
# ## Learning
#
# We want a network whose output follows a curve. It sees only some noisy points of the curve. Four lines, again and
# again: compute the loss, clear the old gradients, walk backwards, and turn each weight a little **against** its
# gradient. The **learning rate** says how much "a little" is. This is called gradient descent; it is named SGD, with an
# S for stochastic, when each step looks at a random part of the data.

# %%
points = torch.linspace(-3, 3, 60)[:, None]
curve = torch.sin(1.5 * points) + 0.3 * points
seen = curve + 0.1 * torch.randn(curve.shape, generator=dice)


def train(network, rate, steps, keep=()):
    """-> the loss at each step, and the network's curve at the steps to keep."""
    losses, curves = [], {}
    for step in range(steps + 1):
        output = network(Node(points))
        d = output - Node(seen)
        loss = (d * d).mean()
        losses.append(loss.data.item())
        if step in keep:
            curves[step] = output.data
        for _, node in network.parameters():
            node.grad = torch.zeros_like(node.data)
        loss.backward()
        for _, node in network.parameters():
            node.data = node.data - rate * node.grad
    return losses, curves


network = Network(32, torch.Generator().manual_seed(1))
losses, curves = train(network, rate=0.02, steps=6000, keep=(0, 20, 500, 6000))
figure, panels = lesson.axes(1, 4, width=2.3, height=2.2)
for panel, (step, output) in zip(panels, curves.items(), strict=True):
    panel.plot(points, seen, ".", markersize=3, color="gray")
    panel.plot(points, output, linewidth=2)
    panel.set(title=f"step {step}, loss {losses[step]:.3f}", ylim=(-2.2, 2.2))
    panel.title.set_fontsize(9)
lesson.show(
    figure,
    alt="Four panels of the same noisy wave of points; the network's line is flat at first and in the end follows it.",
    title="6000 small turns of all weights, and the line follows the points",
)
lesson.claim("the loss fell to less than a tenth", losses[-1] < losses[0] / 10)

# %% [markdown]
# **Predict, then run**: the same network, three learning rates: a hundredth of ours, ours, and 15 times ours. What
# will each of the losses do?

# %%
figure, panel = lesson.axes(width=6.5, height=2.8)
rates = {"small": 0.02 / 100, "ours": 0.02, "large": 15 * 0.02}
runs = {}
for (name, rate), style in zip(rates.items(), ("--", "-", ":"), strict=True):
    runs[name], _ = train(Network(32, torch.Generator().manual_seed(1)), rate, 300)
    panel.plot(runs[name], style, label=f"{name}: {rate}")
panel.set(yscale="log", ylim=(0.01, 1e4), xlabel="step", ylabel="loss")
panel.legend()
lesson.show(
    figure,
    alt="The loss over 300 steps: it falls slowly for the small rate, faster for ours, and shoots up for the large.",
    title="Too small a rate crawls, too large a rate climbs out of the valley",
)
lesson.claim("after 300 steps ours is better than the small one", runs["ours"][-1] < runs["small"][-1])
lesson.claim("the large one ends higher than it began, or in no number", not runs["large"][-1] < runs["large"][0])

# %% [markdown]
# <details><summary>Answer</summary>
#
# The gradient says which way is down *at this place*. With small steps that stays true, but the way is long. With large
# ones we land on the other side of the valley, higher up and where it is steeper, so the next step is larger still: the
# loss explodes. Real models are trained with optimisers such as Adam, which choose the step for each weight by the
# sizes of its past gradients.
#
# </details>
#
# ## The same in PyTorch
#
# `nn.Module` is our `Module`, and an optimiser is our last loop. Given the same start, it takes the same path.


# %%
class TorchNetwork(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = torch.nn.Linear(1, width)
        self.second = torch.nn.Linear(width, width)
        self.third = torch.nn.Linear(width, 1)

    def forward(self, x):
        return self.third(self.second(self.first(x).tanh()).tanh())


start = Network(32, torch.Generator().manual_seed(1))
twin = TorchNetwork(32)
twin.load_state_dict({name: node.data.t() for name, node in start.parameters()})  # t: (outputs, inputs) in PyTorch
optimiser = torch.optim.SGD(twin.parameters(), lr=0.02)
torch_losses = []
for _ in range(301):
    loss = (twin(points) - seen).square().mean()
    torch_losses.append(loss.item())
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

print(f"after 300 steps: ours {runs['ours'][-1]:.6f}, PyTorch's {torch_losses[-1]:.6f}")
apart = max(abs(one - other) for one, other in zip(runs["ours"], torch_losses, strict=True))
lesson.claim("our machine and PyTorch's learn the same, step by step", apart < 1e-3)

# %% [markdown]
# ## The UNet is nothing else
#
# Now the network that removes noise in Stable Diffusion. It is one module, which contains modules, which contain
# others. The weights are at the leaves.

# %%
sd = weights_loader.load("sticker")
unet = sd.unet


def tree(module, name, depth):
    """Print a module and those in it, with the number of weights in each."""
    count = sum(weight.numel() for weight in module.parameters())
    print(f"{'    ' * (3 - depth) + name:28} {type(module).__name__:20} {count:>9,}")
    if depth:
        for child_name, child in module.named_children():
            tree(child, child_name, depth - 1)


tree(unet.down[1], "down[1]", 3)
print(f"\nthe whole UNet: {sum(weight.numel() for weight in unet.parameters()):,} weights")

# %% [markdown]
# A weights file is a dictionary from such names to tensors, the **state dict**. To load one means: for each name, walk
# along the path, and put the tensor there. Files of other programs use other names for the same tensors, so loading
# Stable Diffusion is mostly a question of names (notebook 22).

# %%
state = unet.state_dict()
for name in list(state)[:3] + list(state)[-2:]:
    print(f"{name:24} {tuple(state[name].shape)}")


def walk(module, prefix=""):
    """Our Module.parameters, for PyTorch's modules."""
    for name, weight in module._parameters.items():
        if weight is not None:
            yield prefix + name, weight
    for name, child in module._modules.items():
        if child is not None:
            yield from walk(child, f"{prefix}{name}.")


path = "down.1.resnets.0.conv1.weight"
lesson.claim("a name is a path", torch.equal(state[path], unet.down[1].resnets[0].conv1.weight))
lesson.claim("our walk finds the same names in the same order", [name for name, _ in walk(unet)] == list(state))

# %% [markdown]
# And one walk backwards reaches all of them. We take one training step of the kind that made this model: it gets noisy
# latents and should predict the noise in them; the loss is the mean squared error. (Here latents and answer are only
# random numbers. For the walk that makes no difference.)

# %%
import copy

student = copy.deepcopy(unet).requires_grad_()
words = sd.encode_prompt(["a red star"])
draws = torch.Generator().manual_seed(3)
size = unet.config.sample_size
latents, answer = torch.randn(1, 4, size, size, generator=draws), torch.randn(1, 4, size, size, generator=draws)


def wrong():
    return (student(latents, torch.tensor(500), words) - answer).square().mean()


before = wrong()
before.backward()
reached = sum(weight.grad is not None and bool(weight.grad.abs().sum() > 0) for weight in student.parameters())
print(f"{reached} of {len(list(student.parameters()))} weight tensors have a gradient")
with torch.no_grad():
    for weight in student.parameters():
        weight -= 0.01 * weight.grad
    after = wrong()
print(f"loss before {before.item():.4f}, after one step {after.item():.4f}")
lesson.claim("one step against the gradient, and the loss is smaller", after < before)

# %% [markdown]
# ## When gradients are switched off
#
# To walk backwards, one needs the values of the way forward: look at `g * other.data` in `Node`. So every feature map
# of the UNet must be kept until the walk is over. How much is that?

# %%
kept = []


def note(tensor):
    kept.append(tensor.numel() * tensor.element_size())
    return tensor


with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
    wrong()
print(f"kept for the way back: {len(kept)} tensors, {sum(kept) / 1e6:.1f} MB")
count = len(kept)
with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.no_grad():
    wrong()
lesson.claim("within torch.no_grad() nothing is kept", len(kept) == count)

# %% [markdown]
# When we only draw, there is no walk back, and at each of the steps all of that would be kept for nothing. That is why
# the loops in these lessons run under `torch.no_grad()`: PyTorch then computes, and keeps nothing.
#
# There is one exception. A gradient need not be about weights. It tells how a number depends on *anything* that it was
# computed from, for instance how "this image is not blue enough" depends on the latents. Then we leave the weights
# alone, and turn the latents. Notebook 20 does so during drawing, as **guidance by a loss**. Here it is on a finished
# image:

# %%
z = sd("a red circle", seed=4, num_inference_steps=12, output_type="latent").images.clone().requires_grad_()


def not_blue(z):
    """How far the image of these latents is from being blue; the decoder turns latents into pixels."""
    pixels = sd.vae.decode(z / sd.vae.config.scaling_factor)
    return (pixels[:, 2] - 1).abs().mean() + (pixels[:, 0] + 1).abs().mean(), pixels


shown, missing = [], []
for step in range(25):
    loss, pixels = not_blue(z)
    missing.append(loss.item())
    if step % 8 == 0:
        shown.append(to_pil(pixels.detach())[0])
    (gradient,) = torch.autograd.grad(loss, z)
    z = (z - 0.03 * gradient / gradient.abs().mean()).detach().requires_grad_()
print("gradient", tuple(gradient.shape), "as the latents", tuple(z.shape))
lesson.pictures(
    shown,
    alt="Four images, the first of a red circle on white, the following ones bluer and bluer.",
    title="No weight is changed: here the latents follow the gradient",
    labels=[f"step {step}, loss {missing[step]:.2f}" for step in range(0, 25, 8)],
    size=1.7,
)
lesson.claim("in the end the image is nearer to blue", missing[-1] < missing[0])

# %% [markdown]
# ## What you can now explain
#
# <details><summary>Why does one walk backwards reach all weights, when trying needs two runs for each?</summary>
#
# The walk begins at the one loss, and at each step hands the derivative on to the inputs of that step. Every weight is
# the input of some step, so the same walk reaches it.
#
# </details>
#
# <details><summary>Why are the gradients of a value that is used twice added, and not replaced?</summary>
#
# The loss depends on the value through both uses. If the value changes a little, the loss changes by the sum of both
# effects.
#
# </details>
#
# <details><summary>What would happen if the old gradients were not cleared before each step?</summary>
#
# `backward` adds to the gradients of the weights that are there already. So each step would follow the sum of all
# gradients since the beginning, also of those that hold no longer.
#
# </details>
#
# <details><summary>Why are two linear layers useless without a curved function between them?</summary>
#
# The product of two matrices is a matrix, so both layers together are one linear layer. Such a network can draw a
# straight line only.
#
# </details>
#
# <details><summary>Why does a loop that only draws run under torch.no_grad()?</summary>
#
# The backward rules need values of the way forward, so PyTorch keeps every feature map for the walk back. A loop that
# only draws never walks back, and would keep them for nothing.
#
# </details>
#
# ## Your turn
#
# [The exercises](../minisd/exercises/README.md) begin with notebook 03. Try these experiments in the cells above; where
# a claim becomes false, its cell stops, and that is a finding as well.
#
# - In `Network`, leave out both calls of `.tanh()`, train again, and look at the form of the line.
# - Give `Node` a method `exp` with its backward rule, and compare its gradient with PyTorch's.
# - In `train`, do not clear the gradients, and look at the loss.

# %% [markdown]
# ## Summary
#
# - The gradient says for every weight how the loss depends on it. Trying needs two runs for each weight; the chain
#   rule, walked backwards from the loss, gets all of them in one go.
# - Autograd is values that remember where they came from, and a backward rule for each operation.
# - A Module is an object whose weights are found by walking through its attributes; the path is the weight's name.
# - Training is: loss, backward, a small turn against the gradient. Drawing needs no gradients and switches them off,
#   unless a loss guides it.
#
# **Code**: the modules of the UNet in [unet.py](../minisd/models/unet.py), the training loop of the embedded model in
# [trainer.py](../minisd/training/trainer.py). **Next**:
# [03 · Convolution, normalisation, attention](03_convolution_normalisation_attention.ipynb).
