"""What the lessons show, in which shares, as the model card says."""

from minisd.sticker.training.dataset import lessons
from minisd.sticker.world.shapes import THINGS
from minisd.sticker.world.splits import held_out
from minisd.sticker.world.styles import STYLES


def test_lessons_show_everything_but_what_is_held_out() -> None:
    scenes = lessons(1000, seed=3)
    assert not any(map(held_out, scenes))
    pairs = [scene for scene in scenes if scene.relation]
    several = [scene for scene in scenes if len(scene.things) > 1 and not scene.relation]
    assert 0.45 < len(pairs) / 1000 < 0.55
    assert 0.3 < len(several) / 1000 < 0.4
    assert {len(scene.things) for scene in several} == {2, 3, 4, 5}
    assert 0.45 < sum(scene.overlapping for scene in pairs) / len(pairs) < 0.58
    assert 0.15 < sum(any(thing.style != "flat" for thing in scene.things) for scene in scenes) / 1000 < 0.26
    assert {thing.style for scene in scenes for thing in scene.things} == set(STYLES)
    assert {thing.shape for scene in scenes for thing in scene.things} == set(THINGS)
    assert 0.6 < sum(scene.background == "white" for scene in scenes) / 1000 < 0.7


def test_lessons_are_those_of_their_seed() -> None:
    assert lessons(20, seed=4) == lessons(30, seed=4)[:20]
    assert lessons(20, seed=4) != lessons(20, seed=5)
