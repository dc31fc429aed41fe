"""The subject of DreamBooth: it is found where it was drawn, and nothing else is taken for it."""

from dataclasses import replace

import pytest
import torch

import weights_loader
from minisd.sticker.world.captions import parse_caption
from minisd.sticker.world.palette import COLOURS, PALETTE_LAB, delta_e, lab
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Object, Scene
from minisd.sticker.world.subject import (
    BROWN,
    SUBJECT_COLOUR,
    Context,
    Subject,
    contexts,
    coverage,
    draw_subject,
    find_subject,
    shows_context,
    subject_images,
)
from minisd.training.denoising import encode_images

SQUARE = Object("square", "blue", "medium", 0.7, 0.3, 0.13)
SIDES = pytest.mark.parametrize("size", [64, 128])


def test_brown_is_far_from_all_colours() -> None:
    assert delta_e(lab(torch.tensor(BROWN) / 127.5 - 1), PALETTE_LAB).min() > 20


@SIDES
@pytest.mark.parametrize("background", ["white", "black", "gray", "beige"])
@pytest.mark.parametrize("subject", [Subject(0.3, 0.6, 0.19), Subject(0.6, 0.4, 0.09)])
def test_it_is_found_where_it_is(subject: Subject, background: str, size: int) -> None:
    found = find_subject(draw_subject(Scene((), background), subject, size))
    assert found is not None
    for name in ("x", "y", "radius"):
        assert getattr(found, name) == pytest.approx(getattr(subject, name), abs=0.015)


@SIDES
def test_the_training_images_show_it(size: int) -> None:
    pixels = subject_images(size)
    assert pixels.shape == (5, 3, size, size)
    assert all(shows_context(image, Context("")) for image in pixels)


@SIDES
@pytest.mark.parametrize("name", COLOURS)
def test_a_crescent_of_a_known_colour_is_found_by_that_colour(name: str, size: int) -> None:
    pixels = subject_images(size, COLOURS[name])
    assert all(shows_context(image, Context(""), COLOURS[name]) for image in pixels)
    assert not any(find_subject(image, BROWN) for image in pixels)
    assert not any(find_subject(image, COLOURS[other]) for image in pixels for other in COLOURS if other != name)


@SIDES
@pytest.mark.parametrize("shape", ["circle", "square", "star", "heart", "ring", "cross"])
def test_another_shape_of_its_colour_is_not_it(shape: str, size: int) -> None:
    (drawn,) = render([Scene((Object(shape, "red", "large", 0.5, 0.5, 0.19),))], size)
    (white,) = render([Scene(())], size)
    paint = torch.tensor(SUBJECT_COLOUR).view(3, 1, 1) / 127.5 - 1
    share = (drawn - white)[1:2] / (drawn - white)[1].min()
    image = torch.lerp(white, paint.expand_as(white), share)
    assert (image == paint).all(0).any()
    assert find_subject(image) is None


@SIDES
def test_two_of_it_another_colour_and_nothing_are_not_it(size: int) -> None:
    one, two = Subject(0.3, 0.3, 0.13), Subject(0.7, 0.7, 0.13)
    image = draw_subject(Scene(()), one, size)
    both = torch.where(coverage(two, size) > 0.5, draw_subject(Scene(()), two, size), image)
    assert find_subject(both) is None
    assert find_subject(image[[1, 0, 2]]) is None  # red
    assert find_subject(image.flip(1)) is None  # the other way up
    assert find_subject(render([Scene(())], size)[0]) is None


@SIDES
def test_contexts(size: int) -> None:
    context = Context("", "a blue square", "left of")
    right = draw_subject(Scene((SQUARE,)), Subject(0.3, 0.4, 0.13), size)
    assert shows_context(right, context)
    assert not shows_context(right, replace(context, relation="above"))
    assert not shows_context(right, replace(context, other="a red square"))
    assert not shows_context(right, Context(""))
    assert not shows_context(render([Scene((SQUARE,))], size)[0], context)
    on_gray = draw_subject(Scene((), "gray"), Subject(0.5, 0.5, 0.19), size)
    assert shows_context(on_gray, Context("", background="gray"))
    assert not shows_context(on_gray, Context(""))


@SIDES
@pytest.mark.parametrize("change", [{"radius": 0.118}, {"x": 0.305, "radius": 0.138}])
def test_a_crescent_of_slightly_another_shape_leaves_nothing_over(change: dict[str, float], size: int) -> None:
    """What of it lies outside of the best crescent is not another object."""
    subject = Subject(0.3, 0.4, 0.13)
    image, other = (draw_subject(Scene((SQUARE,)), each, size) for each in (subject, replace(subject, **change)))
    image = torch.where(coverage(replace(subject, **change), size) > 0.5, other, image)
    assert shows_context(image, Context("", "a blue square", "left of"))


@SIDES
def test_a_dot_of_its_colour_is_another_object(size: int) -> None:
    subject, dot = Subject(0.3, 0.4, 0.16), Object("circle", "green", "small", 0.75, 0.8, 0.035)
    image = draw_subject(Scene((SQUARE, dot)), subject, size)
    assert find_subject(image) is not None
    assert not shows_context(image, Context("", "a blue square", "left of"))
    assert shows_context(draw_subject(Scene((SQUARE,)), subject, size), Context("", "a blue square", "left of"))


@SIDES
def test_what_almost_touches_it_is_not_painted_over(size: int) -> None:
    near = replace(SQUARE, x=0.57, y=0.4)
    image = draw_subject(Scene((near,)), Subject(0.3, 0.4, 0.13), size)
    assert shows_context(image, Context("", "a blue square", "left of"))


def test_there_are_50_prompts() -> None:
    prompts = [each.prompt for each in contexts()]
    assert len(set(prompts)) == len(prompts) == 50
    assert all("sks" in prompt for prompt in prompts)
    for each in contexts():
        if each.other is not None:
            assert "green" not in each.other  # or it could not be told from the subject
            assert len(parse_caption(each.prompt.replace("sks shape", "red circle")).objects) == 2


def test_the_embedded_autoencoder_keeps_its_colour_and_shape() -> None:
    """Otherwise nothing could teach the embedded model this subject."""
    sd = weights_loader.load("sticker")
    again = sd.decode(encode_images(sd, subject_images(128))).detach()
    assert all(find_subject(image) for image in again)
    brown = sd.decode(encode_images(sd, subject_images(128, BROWN))).detach()
    assert not any(find_subject(image, BROWN) for image in brown)
