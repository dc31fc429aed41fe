"""The UNet: what each skip, the time embedding, cross-attention and other parts contribute; switch one off and see."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from minisd._internal import validation
from minisd.demos.charts import draw_bars
from minisd.demos.demo import Demo, Panel, Table, row_of
from minisd.demos.drawing import pictures
from minisd.demos.inputs import PROMPT, check_task, moments, steps_of
from minisd.demos.unet_calls import Call, recorded_calls
from minisd.errors import InputError
from minisd.models import UNet
from minisd.models.layers import repeat_batch_to
from minisd.models.unet import TransformerBlock
from minisd.pipeline import StableDiffusion

PARTS = ("skips", "time", "cross-attention", "self-attention", "middle")
MEASURED = 4  # calls of a run at which predictions are compared


def show(
    sd: StableDiffusion,
    prompt: str = PROMPT,
    seed: int = 3,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Demo:
    """Images of the UNet without one part, and how far its predictions are off without it. Raises InputError."""
    check_task(sd, "text")
    steps, seed = steps_of(sd, num_inference_steps), validation.seed(seed)

    def draw() -> Tensor:
        given: dict[str, Any] = {"seed": seed, "num_inference_steps": steps, "guidance_scale": guidance_scale}
        pixels: Tensor = sd(prompt, output_type="pt", **given).images
        return pixels

    with recorded_calls(sd.unet) as calls:
        images = [draw()]
    for part in PARTS:
        with without(sd.unet, part):
            images.append(draw())
    chosen = [calls[k] for k in moments(len(calls), MEASURED)]
    missed = {part: _error(sd.unet, chosen, part) for part in PARTS}
    shapes = skip_shapes(sd.unet, chosen[0])
    by_skip = [_error(sd.unet, chosen, "skips", k) for k in range(len(shapes))]
    captions = ["all parts", *(f"no {part}: off by {100 * missed[part]:.0f} %" for part in PARTS)]
    names = [f"skip {k}: {width} x {h} x {w}" for k, (width, h, w) in enumerate(shapes)]
    most = max(range(len(by_skip)), key=by_skip.__getitem__)
    worst = max(PARTS, key=missed.__getitem__)
    return Demo(
        "UNet: leave one part out and see",
        (
            f"Without {_plain(worst)} the prediction is off by {100 * missed[worst]:.0f} % of its size, more than "
            f"without any other part (mean over {len(chosen)} calls of the run, with the latents of the whole UNet).",
            f"Of the {len(shapes)} skip connections number {most} is missed most: {100 * by_skip[most]:.0f} %.",
            "A skip carries a feature map of the way down to the way up; the time tells how much noise there is; the "
            "prompt enters by cross-attention alone.",
        ),
        (
            row_of(
                f"Drawn with one part switched off: {prompt!r}, seed {seed}, {steps} steps",
                [
                    Panel(caption, picture, f"the image of the UNet with {caption.partition(':')[0]}")
                    for caption, picture in zip(captions, pictures(torch.cat(images)), strict=True)
                ],
            ),
            row_of(
                "How far the prediction is off, in % of its size",
                [
                    Panel(
                        "without one part",
                        draw_bars([(part, 100 * missed[part]) for part in PARTS], " %", 440),
                        "a bar for each part that is left out",
                    ),
                    Panel(
                        "without one skip (channels x height x width), in the order of the way down",
                        draw_bars([(name, 100 * off) for name, off in zip(names, by_skip, strict=True)], " %", 440),
                        "a bar for each skip connection that is left out",
                    ),
                ],
            ),
        ),
        Table(
            ("left out", "prediction off by (%)"),
            (
                *((part, 100 * missed[part]) for part in PARTS),
                *((name, 100 * off) for name, off in zip(names, by_skip, strict=True)),
            ),
        ),
        ("minisd/models/unet.py", "minisd/models/layers.py"),
        "07",
    )


@contextmanager
def without(unet: UNet, part: str, skip: int | None = None) -> Iterator[None]:
    """Switch off a part of a UNet inside the block: what it would add is zero.

    part: one of PARTS. skip: only this skip connection, numbered in the order of the way down. Raises InputError.
    """
    if part not in PARTS:
        raise InputError(f"part is {part!r}, expected one of {', '.join(PARTS)}.")
    readers = _skip_readers(unet)
    with ExitStack() as undo:
        if part == "skips":
            for below, block in readers if skip is None else [readers[skip]]:
                undo.callback(block.register_forward_pre_hook(_mute_after(below)).remove)
        elif part == "middle":
            undo.callback(unet.middle.register_forward_hook(_pass_on).remove)
        else:
            modules: list[nn.Module] = [unet.time] if part == "time" else _attentions(unet, part)
            for module in modules:
                undo.callback(module.register_forward_hook(_zero).remove)
        yield


def skip_shapes(unet: UNet, call: Call) -> list[tuple[int, int, int]]:
    """Channels, height and width of each skip connection in a call, in the order of the way down."""
    shapes: dict[int, tuple[int, int, int]] = {}
    with ExitStack() as undo:
        for k, (below, block) in enumerate(_skip_readers(unet)):

            def look(module: nn.Module, args: tuple[Any, ...], k: int = k, below: int = below) -> None:
                shapes[k] = (args[0].shape[1] - below, args[0].shape[2], args[0].shape[3])

            undo.callback(block.register_forward_pre_hook(look).remove)
        call.again(unet)
    return [shapes[k] for k in range(len(shapes))]


def _skip_readers(unet: UNet) -> list[tuple[int, nn.Module]]:
    """The block that reads each skip, and how many of its input channels come from below; skips in their order."""
    readers, below = [], unet.config.channels[-1]
    for level, width in zip(unet.up, reversed(unet.config.channels), strict=True):
        resnets: Any = level.resnets
        for block in resnets:
            readers.append((below, block))
            below = width
    return readers[::-1]  # the way up reads the last skip first


def _attentions(unet: UNet, part: str) -> list[nn.Module]:
    """The attention layers that read the text, or those that read the image itself."""
    found: list[nn.Module] = []
    for block in unet.modules():
        if isinstance(block, TransformerBlock):
            reads_text = (block.attention1, block.only_cross_attention), (block.attention2, True)
            found += [layer for layer, text in reads_text if text == (part == "cross-attention")]
    return found


def _error(unet: UNet, calls: Sequence[Call], part: str, skip: int | None = None) -> float:
    """The distance of the predictions without a part from those of the whole UNet, in parts of their size."""
    with without(unet, part, skip):
        changed = [call.again(unet) for call in calls]
    off = [float((got - call.output).norm() / call.output.norm()) for got, call in zip(changed, calls, strict=True)]
    return sum(off) / len(off)


def _mute_after(channels: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def mute(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0].clone()
        x[:, channels:] = 0
        return (x, *args[1:])

    return mute


def _zero(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return torch.zeros_like(output)


def _pass_on(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return repeat_batch_to(args[0], output)


def _plain(part: str) -> str:
    return f"the {part}" if part in ("skips", "time", "middle") else part
