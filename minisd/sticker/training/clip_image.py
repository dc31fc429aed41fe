"""Ask CLIP's image half what a picture shows, as `reading` asks the text half what a caption says."""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.models import CLIP
from minisd.sticker.training.text_encoder import OF_A_NOUN, OF_A_THING, QUESTIONS, answers
from minisd.sticker.world.captions import ThingExpectation, expectation_of
from minisd.sticker.world.render import masks
from minisd.sticker.world.scene import Scene


class Seen(NamedTuple):
    """What scenes show: answers (B, questions); for each of N things row and patch (N, 2) and attributes (N, 4).

    All int64. Patches are counted as image states are, where the class token is 0; each thing is asked about where most
    of it is seen.
    """

    answers: Tensor
    at: Tensor
    attributes: Tensor


class Seer(nn.Module):
    """CLIP and the linear layers that answer, from the states of its image half, what a picture shows: all of it from
    the class token's, what a thing is from the patch that shows most of it. See `reading.Reader`.
    """

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip
        width = clip.image_encoder.config.width
        self.answer = nn.Linear(width, sum(map(len, QUESTIONS.values())))
        self.of_thing = nn.Linear(width, sum(len(OF_A_THING[name]) for name in OF_A_NOUN))

    def loss(self, states: Tensor, right: Seen) -> Tensor:
        """Cross-entropy, summed over the questions: image states (B, 1 + N, width) -> ()."""
        whole = self.answer(self.clip.image_encoder.post_norm(states[:, 0])).float()
        things = self.of_thing(states[right.at[:, 0], right.at[:, 1]]).float()
        asked = zip(whole.split([len(possible) for possible in QUESTIONS.values()], 1), right.answers.T, strict=True)
        more = zip(things.split([len(OF_A_THING[name]) for name in OF_A_NOUN], 1), right.attributes.T, strict=True)
        return torch.stack([F.cross_entropy(logits, answer) for logits, answer in (*asked, *more)]).sum()


def seen(scenes: list[Scene], side: int) -> Seen:
    """What scenes show, in side x side patches; a size or a style without a name is none."""
    rows, at, attributes = [], [], []
    clearest = F.avg_pool2d(masks(scenes, 8 * side), 8).flatten(2).argmax(2).tolist()
    for row, scene in enumerate(scenes):
        whole = expectation_of(scene)
        named = tuple(map(_named, whole.things))
        rows.append(answers(replace(whole, things=named)))
        at += [(row, 1 + patch) for patch in clearest[row][: len(scene.things)]]
        attributes += [[OF_A_THING[name].index(getattr(thing, name)) for name in OF_A_NOUN] for thing in named]
    return Seen(torch.tensor(rows), torch.tensor(at), torch.tensor(attributes))


def _named(thing: ThingExpectation) -> ThingExpectation:
    return replace(thing, **{name: None for name, known in OF_A_THING.items() if getattr(thing, name) not in known})
