"""The image probe's answers are what the scenes show."""

from torch.nn.functional import avg_pool2d

from minisd.sticker.training.clip_image import clip_pixels, image_probe_batch
from minisd.sticker.training.dataset import training_scenes
from minisd.sticker.training.text_encoder import CAPTION_QUESTIONS, OBJECT_QUESTIONS
from minisd.sticker.world.render import masks, render
from minisd.sticker.world.scene import INVERSE_RELATION, Object, Scene

SCENES = training_scenes(400, seed=5)


def test_the_answers_are_what_the_scene_shows() -> None:
    """Of two objects the left, the upper or the rear one is the first."""
    for scene, row in zip(SCENES, image_probe_batch(SCENES, 8).answers.tolist(), strict=True):
        answers = {
            question: possible[i] for i, (question, possible) in zip(row, CAPTION_QUESTIONS.items(), strict=True)
        }
        assert answers["number"] == len(scene.objects)
        assert answers["background"] == scene.background
        objects = list(scene.objects)  # the first of two overlapping objects is behind
        if not scene.overlapping:
            objects.sort(key=lambda obj: obj.x if answers["relation"] == "left of" else obj.y)
        first, second = (*objects, None)[:2]
        assert (answers["relation"] is None) == (scene.relation is None)
        assert (answers["first shape"], answers["first colour"]) == (first.shape, first.colour)
        assert answers["first size"] == (None if first.size == "medium" else first.size)
        assert answers["first style"] == (None if first.style == "flat" else first.style)
        if scene.relation is None:
            assert answers["second shape"] is None
        else:
            assert second is not None
            assert (answers["second shape"], answers["second colour"]) == (second.shape, second.colour)
            assert answers["relation"] in (scene.relation, INVERSE_RELATION[scene.relation])


def test_each_object_is_asked_about_at_a_patch_that_shows_it() -> None:
    """The patch shows more of the object than any other patch, and more of it than of other objects."""
    shown, cover = image_probe_batch(SCENES, 8), masks(SCENES, 64)
    objects = [(row, obj) for row, scene in enumerate(SCENES) for obj in scene.objects]
    assert len(objects) == len(shown.patches) == len(shown.object_answers)
    answers = zip(objects, shown.patches.tolist(), shown.object_answers.tolist(), strict=True)
    for (row, obj), (at, patch), indices in answers:
        assert at == row
        k = SCENES[row].objects.index(obj)
        shares = avg_pool2d(cover[row], 8).flatten(1)
        assert shares[k, patch - 1] == shares[k].max() > 0.3
        assert shares[k, patch - 1] >= shares[:, patch - 1].max()
        shape, colour, size, style = (
            possible[i] for possible, i in zip(OBJECT_QUESTIONS.values(), indices, strict=True)
        )
        assert (shape, colour) == (obj.shape, obj.colour)
        assert size == (None if obj.size == "medium" else obj.size)
        assert style == (None if obj.style == "flat" else obj.style)


def test_clip_sees_images_of_the_models_size_resized() -> None:
    """A gray edge around pale objects, which only images of 128 pixels have, stays visible."""
    scene = Scene((Object("circle", "yellow", "large", 0.5, 0.5, 0.19),), "white")
    seen, plain = clip_pixels([scene], 64), render([scene], 64)
    assert seen.shape == plain.shape
    assert (seen - plain).abs().mean() < 0.02
    assert seen[0, 2].min() > plain[0, 2].min() - 0.2  # bicubic resizing overshoots a little
    edge = (plain[0, 2] > -0.9) & (plain[0, 2] < 0.9)
    assert seen[0, :2, edge].mean() < plain[0, :2, edge].mean() - 0.05
