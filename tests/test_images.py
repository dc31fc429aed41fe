"""Images: rounding, ranges, modes, grids, and files that are written completely or not at all."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from minisd import images
from minisd.errors import InputError, OutputError


def picture(color: tuple[int, int, int] = (10, 200, 30), size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new("RGB", size, color)


def test_minus_one_to_one_is_rounded_not_cut() -> None:
    """127.6 of 255 is 128."""
    pixels = torch.tensor([-1.0, 127.6 / 127.5 - 1, 127.4 / 127.5 - 1, 1.0, -3.0, 3.0]).reshape(1, 1, 1, 6)
    (image,) = images.to_pil(pixels.expand(1, 3, 1, 6))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 128, 127, 255, 0, 255]


def test_every_byte_survives_a_round_trip() -> None:
    array = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    pixels = images.from_pil(Image.fromarray(array))
    assert pixels.shape == (1, 3, 16, 16)
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert np.array_equal(np.asarray(images.to_pil(pixels)[0]), array)


def test_rows_are_height_and_columns_width() -> None:
    pixels = torch.zeros(2, 3, 4, 6)
    pixels[1, 0, 3, 5] = 1.0
    array = images.to_numpy(pixels)
    assert array.shape == (2, 4, 6, 3)
    assert array[1, 3, 5].tolist() == [1.0, 0.5, 0.5]
    assert images.to_pil(pixels)[1].size == (6, 4)
    assert images.to_pil(pixels)[1].getpixel((5, 3)) == (255, 128, 128)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_of_any_float(dtype: type) -> None:
    array = np.full((2, 3, 3), 0.25, dtype=dtype)
    (image,) = images.numpy_to_pil(array)
    assert np.asarray(image).tolist() == np.full((2, 3, 3), 64).tolist()


def test_grey_arrays() -> None:
    (image,) = images.numpy_to_pil(np.ones((2, 3, 1)))
    assert image.mode == "L"


@pytest.mark.parametrize("shape", [(3,), (4, 4), (4, 4, 2), (1, 1, 4, 4, 3), (3, 4, 4)])
def test_arrays_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="expected"):
        images.numpy_to_pil(np.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_does_not_become_black(value: float) -> None:
    array = np.zeros((4, 4, 3))
    array[1, 2, 0] = value
    with pytest.raises(InputError, match="NaN"):
        images.numpy_to_pil(array)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "CMYK", "RGBA", "LA"])
def test_images_of_any_mode(mode: str) -> None:
    pixels = images.from_pil(Image.new("RGB", (5, 3), "white").convert(mode))
    assert pixels.shape == (1, 3, 3, 5)
    torch.testing.assert_close(pixels, torch.ones(1, 3, 3, 5))


def test_transparency_is_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    pixels = images.from_pil(image)[0, :, 0]
    torch.testing.assert_close(pixels, torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, -1.0]]))


def test_grid() -> None:
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    grid = images.image_grid([picture(color) for color in colors], columns=2, gap=1)
    assert grid.size == (13, 9)
    assert [grid.getpixel(at) for at in ((0, 0), (12, 0), (0, 8))] == colors
    assert grid.getpixel((6, 0)) == grid.getpixel((12, 8)) == (255, 255, 255)
    assert images.image_grid([picture()] * 5).size == (18, 8)
    with pytest.raises(InputError, match="at least one"):
        images.image_grid([])


@pytest.mark.parametrize("suffix", [".png", ".webp", ".PNG", ".jpg", ".gif"])
def test_saved_and_read_again(tmp_path: Path, suffix: str) -> None:
    path = images.save(picture(), tmp_path / f"a{suffix}", settings={"prompt": "a — ½ 東京", "seed": 3})
    assert os.listdir(tmp_path) == [path.name]
    with Image.open(path) as read:
        assert read.size == (6, 4)
        if suffix.lower() == ".png":
            assert read.convert("RGB").tobytes() == picture().tobytes()
            assert read.text == {"prompt": "a — ½ 東京", "seed": "3"}
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_animations(tmp_path: Path) -> None:
    frames = [picture((value, 0, 0)) for value in (0, 90, 180)]
    path = images.save(frames[0], tmp_path / "a.gif", frames=frames[1:], milliseconds=50)
    with Image.open(path) as read:
        assert (read.n_frames, read.info["duration"], read.info["loop"]) == (3, 50, 0)


def test_existing_files_are_kept_unless_overwrite_is_given(tmp_path: Path) -> None:
    path = images.save(picture(), tmp_path / "a.png")
    with pytest.raises(OutputError, match="exists"):
        images.save(picture((0, 0, 0)), path)
    assert Image.open(path).getpixel((0, 0)) == (10, 200, 30)
    images.save(picture((0, 0, 0)), path, overwrite=True)
    assert Image.open(path).getpixel((0, 0)) == (0, 0, 0)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = images.save(picture(), tmp_path / "a.png")
    content = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        images.save(picture((0, 0, 0)), path, overwrite=True)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["a.png"]


def test_targets_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    for name, message in (
        ("a.txt", "suffix"),
        ("a", "suffix"),
        ("none/a.png", "none.*folder"),
        ("folder.png", "is a folder"),
        ("link.png", "is a link"),
    ):
        with pytest.raises(OutputError, match=message):
            images.check_target(tmp_path / name, overwrite=True)
    assert images.check_target(tmp_path / "new.png") == tmp_path / "new.png"


def test_free_names(tmp_path: Path) -> None:
    assert images.free_name(tmp_path, "cat").name == "cat.png"
    for expected in ("cat-2.png", "cat-3.png"):
        images.save(picture(), images.free_name(tmp_path, "cat"))
        assert images.free_name(tmp_path, "cat").name == expected


def test_every_mode_is_converted_as_by_pil() -> None:
    rgb = picture((200, 30, 90))
    for mode in ("RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB"):
        image = rgb if mode == "RGB" else Image.new("RGB", (6, 4), (128, 128, 128)).convert(mode)
        expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 127.5 - 1
        assert torch.allclose(images.from_pil(image), expected)


def test_sixteen_bits_and_floats_are_scaled_by_their_range() -> None:
    steps = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    kinds = [Image.fromarray((steps * 65535).astype(np.uint16)), Image.fromarray(steps), Image.fromarray(steps * 255)]
    for image in [*kinds, Image.fromarray((steps * 65535).astype(np.int32))]:
        assert torch.allclose(images.from_pil(image)[0, 0], torch.from_numpy(2 * steps - 1), atol=0.005)
        assert torch.allclose(images.to_map(image, "mask")[0, 0], torch.from_numpy(steps), atol=1e-4)


def test_files_are_rotated_by_their_exif_data(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert images.open_image(tmp_path / "a.jpg").size == (4, 6)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_cut_files_are_refused(tmp_path: Path, suffix: str) -> None:
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noisy.save(tmp_path / f"a{suffix}")
    content = (tmp_path / f"a{suffix}").read_bytes()
    for length in (0, 10, len(content) // 2):
        (tmp_path / f"b{suffix}").write_bytes(content[:length])
        with pytest.raises(InputError, match=rf"b\{suffix} cannot be read"):
            images.open_image(tmp_path / f"b{suffix}")
    with pytest.raises(InputError, match="cannot be read"):
        images.open_image(tmp_path)
    with pytest.raises(InputError, match=r"there is no file .*none\.png"):
        images.open_image(tmp_path / "none.png")


def test_maps_of_every_shape() -> None:
    values = torch.rand(4, 6)
    for given in (values, values[None], values[None, None], values.numpy()):
        assert torch.equal(images.to_map(given, "mask"), values[None, None])
    with pytest.raises(InputError, match="NaN"):
        images.to_map(values / 0 * 0, "mask")
    with pytest.raises(InputError, match=r"mask has the shape \(1, 3, 4, 6\)"):
        images.to_map(torch.zeros(1, 3, 4, 6), "mask")


@pytest.mark.parametrize("make", [
    lambda array: array[::-1, ::-1, ::-1], lambda array: array.astype(">f4"), lambda array: array.astype(np.longdouble),
    lambda array: np.asfortranarray(array), lambda array: np.broadcast_to(array[:1], array.shape),
    lambda array: array[::2],
])  # fmt: skip
def test_arrays_of_any_strides_and_byte_order(make: Callable[[np.ndarray], np.ndarray]) -> None:
    array = make(np.random.default_rng(0).random((8, 6, 3)))
    expected = torch.from_numpy(np.array(array, dtype=np.float32))
    assert torch.allclose(images.to_pixels(array), 2 * expected.permute(2, 0, 1)[None] - 1)
    assert torch.allclose(images.to_map(array[..., 0], "mask"), expected[..., 0][None, None])


def test_other_arrays_tensors_and_images_are_refused_in_one_sentence(tmp_path: Path) -> None:
    closed = picture()
    closed.save(tmp_path / "a.png")
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-30])
    square = np.zeros((4, 4, 3))
    for given in (
        square.astype(object), square.astype(complex), square.astype("U1"), square.astype("M8[s]"), closed,
        Image.open(tmp_path / "cut.png"), Image.new("RGB", (0, 4)),
        Image.fromarray(np.full((4, 4), np.nan, np.float32)),
        torch.zeros(1, 3, 4, 4, device="meta"), torch.zeros(1, 3, 4, 4).to_sparse(), torch.zeros(1, 3, 4, 4).cfloat(),
    ):  # fmt: skip
        for read in (images.to_pixels, images.to_map):
            with pytest.raises(InputError, match="expected") as caught:
                read(given, "image")
            assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="divide 8 bits by 255"):
        images.to_pixels(square.astype(np.uint8))


def masks() -> dict[str, object]:
    """One mask in many forms: a quarter is marked."""
    painted = Image.new("L", (8, 8), 0)
    painted.paste(255, (0, 0, 4, 4))
    array = np.array(painted)
    clear = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    clear.paste((255, 255, 255, 255), (0, 0, 4, 4))
    labels = (array > 0).astype(np.uint8)
    as_palette = painted.convert("P")
    as_palette.info["transparency"] = 77
    files = {"L": painted, "RGB": painted.convert("RGB"), "1": painted.convert("1"), "P with transparency": as_palette,
             "RGBA": clear, "LA": clear.convert("LA"), "La": clear.convert("LA").convert("La"),
             "labels": Image.fromarray(labels)}  # fmt: skip
    deep = {f"{kind.__name__} to {top}": Image.fromarray((labels * kind(top)).astype(kind))
            for kind in (np.uint16, np.int32, np.float32) for top in (1, 255, 65535)}  # fmt: skip
    arrays = {f"array of {kind.__name__} to {top}": (labels * kind(top)).astype(kind)
              for kind in (np.uint16, np.int64, np.float64) for top in (1, 255, 65535)}  # fmt: skip
    shapes = {"(H, W, 1)": labels[..., None] / 1.0, "(B, H, W, 1)": labels[None, ..., None] / 1.0, "bool": array > 0}
    return {**files, **deep, **arrays, **shapes}


@pytest.mark.parametrize("name", list(masks()))
def test_masks_of_any_kind(name: str) -> None:
    mask = images.to_mask(masks()[name], "mask_image", (8, 8))
    assert (mask >= 0.5).float().mean() == 0.25
    assert (mask.min(), mask.max()) == (0, 1)


def test_a_mask_that_is_enlarged_keeps_its_units() -> None:
    """Lanczos goes beyond white."""
    small = Image.new("L", (4, 4))
    small.paste(255, (0, 0, 2, 4))
    mask = images.to_mask(small, "mask_image", (64, 64))
    assert (mask >= 0.5).float().mean() == 0.5
    assert mask.max() == 1


def test_a_picture_that_is_too_large_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture().save(tmp_path / "a.png")
    monkeypatch.setattr("minisd._internal.image_files.LARGEST_PIXELS", 23)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match=r"a\.png is 6 x 4 pixels, expected at most 23"):
        images.open_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame_is_read_and_said(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    picture((255, 255, 255)).save(path, save_all=True, append_images=[picture((0, 0, 0))])
    with pytest.warns(UserWarning, match="has several frames; the first one is used"):
        assert images.from_pil(images.open_image(path)).min() > 0.9


@pytest.mark.skipif(os.name != "posix", reason="there are no named pipes")
def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (
        tmp_path / "pipe.png",
        "/dev/zero",
        tmp_path,
        tmp_path / ("y" * 300),
        "a\0b.png",
        None,
        tmp_path / "\udc80",
    ):
        with pytest.raises(InputError) as caught:
            images.open_image(path)  # type: ignore[arg-type]
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500


def test_a_caption_is_below_the_image_in_lines_of_its_width() -> None:
    image = Image.new("RGB", (100, 40), "blue")
    one, long = images.captioned(image, "a star"), images.captioned(image, "a small red star left of a large blue ring")
    assert one.size == (100, 54)
    assert long.size == (100, 40 + 14 * 2)
    assert list(one.crop((0, 0, 100, 40)).getdata()) == list(image.getdata())
    assert np.asarray(one)[40:].min() < 100 < np.asarray(one)[40:].max()
    cut = images.captioned(image, "a small red star left of a large blue ring", lines=1)
    assert cut.size == (100, 54)
    assert np.array_equal(np.asarray(cut), np.asarray(long)[:54])
    assert images.captioned(image, "a star", lines=2).size == (100, 68)
    assert images.captioned(image, "incomprehensibilities of words").size == (100, 68)
