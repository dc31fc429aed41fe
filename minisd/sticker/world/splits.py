"""Combinations held out of training, to measure whether a model composes what it has learned. The lists never change.

Each held-out combination contains a shape or a colour that was added to the world late, so that no released model has
seen it. Training shows each part in other combinations.
"""

from minisd.sticker.world.scene import INVERSE_RELATION, Scene

HELD_OUT_PAIRS = {  # (shape, colour): one in eight, each shape once, each colour at most twice
    ("circle", "cyan"),
    ("square", "pink"),
    ("triangle", "cyan"),
    ("star", "pink"),
    ("heart", "orange"),
    ("ring", "purple"),
    ("cross", "green"),
    ("diamond", "yellow"),
}
HELD_OUT_TRIPLES = {  # (shape, relation, shape): one in sixteen; the inverse of each is held out, too
    ("heart", "left of", "ring"),
    ("ring", "left of", "cross"),
    ("cross", "left of", "diamond"),
    ("diamond", "left of", "circle"),
    ("heart", "above", "cross"),
    ("ring", "above", "diamond"),
    ("cross", "above", "circle"),
    ("diamond", "above", "square"),
}
HELD_OUT_COUNTS = {(4, "star"), (4, "ring")}


def held_out(scene: Scene) -> bool:
    """Whether a scene contains a held-out pair, triple or count."""
    if any((obj.shape, obj.colour) in HELD_OUT_PAIRS for obj in scene.objects):
        return True
    if scene.alike:
        return (len(scene.objects), scene.objects[0].shape) in HELD_OUT_COUNTS
    if scene.relation is None:
        return False
    first, second = (obj.shape for obj in scene.objects)
    triples = {(first, scene.relation, second), (second, INVERSE_RELATION[scene.relation], first)}
    return not triples.isdisjoint(HELD_OUT_TRIPLES)
