"""What training never shows, so that composing can be told from remembering; fixed here for good.

Everything held out contains a shape or a colour that came late into the world, so that no model shipped so far has seen
it. Each part is seen in other company: only the combination is new.
"""

from minisd.sticker.world.scene import INVERSE, Scene

PAIRS = {  # (shape, colour): one in eight, each shape once, each colour at most twice
    ("circle", "cyan"),
    ("square", "pink"),
    ("triangle", "cyan"),
    ("star", "pink"),
    ("heart", "orange"),
    ("ring", "purple"),
    ("cross", "green"),
    ("diamond", "yellow"),
}
TRIPLES = {  # (shape, relation, shape): one in sixteen, and each the other way round, too
    ("heart", "left of", "ring"),
    ("ring", "left of", "cross"),
    ("cross", "left of", "diamond"),
    ("diamond", "left of", "circle"),
    ("heart", "above", "cross"),
    ("ring", "above", "diamond"),
    ("cross", "above", "circle"),
    ("diamond", "above", "square"),
}
COUNTS = {(4, "star"), (4, "ring")}


def held_out(scene: Scene) -> bool:
    """Whether a scene has a pair, a triple or a number of things that training must not see."""
    if any((thing.shape, thing.colour) in PAIRS for thing in scene.things):
        return True
    if scene.alike:
        return (len(scene.things), scene.things[0].shape) in COUNTS
    if scene.relation is None:
        return False
    first, second = (thing.shape for thing in scene.things)
    return (first, scene.relation, second) in TRIPLES or (second, INVERSE[scene.relation], first) in TRIPLES
