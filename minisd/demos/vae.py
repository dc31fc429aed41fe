"""The autoencoder: its channels, how many times smaller they are than the image, and what is lost."""

import torch

from minisd._internal.image_quality import psnr
from minisd.demos.demo import Demo, Panel, Table, row_of
from minisd.demos.drawing import decoded, grey_map, heat_map, pictures
from minisd.demos.inputs import check_task, pixels_of
from minisd.images import Picture
from minisd.pipeline import StableDiffusion


def show(sd: StableDiffusion, image: Picture | None = None) -> Demo:
    """An image encoded and decoded: channels, sizes, errors; and decoded with one channel flat. Raises InputError."""
    check_task(sd, "text", "inpainting", "depth", "upscaling")
    vae = sd.vae
    pixels = pixels_of(sd, image)
    weight = vae.from_latents.weight
    with torch.no_grad():
        gauss = vae.encode(pixels.to(weight.device, weight.dtype))
        z = vae.scaled(gauss.mean.float()).cpu()
    back = sd.decode(z).cpu()
    error = (pixels - back).abs().mean(1)[0] / 2
    quality = float(psnr(pixels, back))
    numbers, kept = pixels[0].numel(), z[0].numel()
    flat = [_without(z, k) for k in range(z.shape[1])]
    changed = [sd.decode(each).cpu() for each in flat]
    limit = float(z.abs().max())
    (_, height, width), (channels, h, w) = pixels.shape[1:], z.shape[1:]
    return Demo(
        "Autoencoder: a small image for the UNet",
        (
            f"{width} x {height} pixels in 3 colours are {numbers:,} numbers; {channels} channels of {w} x {h} cells "
            f"are {kept:,}: {numbers / kept:.3g} times fewer, {vae.config.downscale} times smaller along each side.",
            f"The way there and back loses little: {quality:.1f} dB PSNR, {100 * float(error.mean()):.2f} % of the "
            f"range on average and {100 * float(error.max()):.0f} % at the worst pixel.",
            f"The latents are multiplied by {vae.config.scaling_factor:g}; their deviation is {float(z.std()):.2f} "
            f"then. The encoder is sure of them: its own deviation is {_spread(sd, gauss.std):.3f}.",
        ),
        (
            row_of(
                "There and back",
                [
                    Panel("the image", pictures(pixels)[0], "the image before the autoencoder"),
                    Panel(f"decoded, {quality:.1f} dB", pictures(back)[0], "the image after encoding and decoding"),
                    Panel(
                        f"the error, 0 to {100 * float(error.max()):.0f} %",
                        heat_map(error, float(error.max())),
                        "a map of the error: dark in even areas, bright where the image was changed",
                    ),
                ],
            ),
            row_of(
                f"The {channels} channels; black is {-limit:.1f} and white {limit:.1f}",
                [
                    Panel(
                        f"channel {k}",
                        grey_map(channel, -limit, limit),
                        f"channel {k} of the latents in grey: the objects are where they are in the image",
                    )
                    for k, channel in enumerate(z[0])
                ],
            ),
            row_of(
                "Decoded with one channel set to its mean everywhere",
                [
                    Panel(f"without channel {k}", shown, f"the image without what channel {k} says")
                    for k, shown in enumerate(decoded(sd, torch.cat(flat)))
                ],
            ),
        ),
        Table(
            ("channel", "mean", "deviation", "PSNR without it (dB)"),
            tuple(
                (k, float(z[0, k].mean()), float(z[0, k].std()), float(psnr(pixels, each)))
                for k, each in enumerate(changed)
            ),
        ),
        ("minisd/models/vae.py",),
        "09",
    )


def _without(z: torch.Tensor, channel: int) -> torch.Tensor:
    """Latents (1, C, h, w) with one channel set to its mean."""
    flat = z.clone()
    flat[:, channel] = z[:, channel].mean()
    return flat


def _spread(sd: StableDiffusion, std: torch.Tensor) -> float:
    """The mean deviation of the encoder's distribution, at the scale of the UNet."""
    std = std.float()
    return float((sd.vae.scaled(std) - sd.vae.scaled(torch.zeros_like(std))).mean())
