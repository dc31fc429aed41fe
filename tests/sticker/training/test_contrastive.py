"""CLIP's training: untrue captions are untrue, the loss is InfoNCE, the text half stays locked, measures measure."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy

from minisd.errors import MismatchError
from minisd.models import CLIP, CLIPTextTransformer
from minisd.sticker.training import contrastive
from minisd.sticker.training import retrieval as measures
from minisd.sticker.training.clip_image import seen
from minisd.sticker.training.contrastive import IMAGE_CONFIG, contrast, draw_batch, new_clip, train_clip
from minisd.sticker.training.dataset import lessons, new_tokenizer
from minisd.sticker.training.hard_negatives import NEGATIVES, caption_and_negatives, could_both_be_true, hard_negatives
from minisd.sticker.training.retrieval import distinct_scenes, full_caption, hard_negative_accuracy, retrieval
from minisd.sticker.training.text_encoder import OF_A_NOUN, OF_A_THING, QUESTIONS, Reader
from minisd.sticker.training.unet import text_config
from minisd.sticker.world.captions import Expectation, expectation, expectation_of, mention
from minisd.sticker.world.checker.check import judge
from minisd.sticker.world.checker.recognise import Found
from minisd.sticker.world.checker.segment import find
from minisd.sticker.world.render import masks, render
from minisd.sticker.world.scene import INVERSE, SIZES, Scene, Thing
from minisd.tokenizer import Tokenizer

SCENES = lessons(400, seed=5)


@cache
def findings() -> list[tuple[tuple[Found, ...], str | None]]:
    """What the exact checker sees in the pictures of SCENES."""
    return [(tuple(found), background) for found, background in map(find, render(SCENES, 64))]


@cache
def tokenizer() -> Tokenizer:
    return new_tokenizer()


def text_encoder(seed: int = 0) -> CLIPTextTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Reader(text_config(len(tokenizer()))).text_encoder.eval()


def negatives_of(caption: str, seed: int = 0) -> list[Expectation]:
    return hard_negatives(expectation(caption), torch.Generator().manual_seed(seed))


# Untrue captions.


def test_no_negative_is_true_of_the_picture() -> None:
    """By the exact checker, of what it finds in the rendered picture; the true caption is."""
    generator, tried = torch.Generator().manual_seed(0), 0
    for scene, (found, background) in zip(SCENES, findings(), strict=True):
        for wrong in hard_negatives(mention(scene, generator), generator):
            assert not judge(found, background, wrong).exact, (scene, wrong)
            tried += 1
        caption, untrue = caption_and_negatives(scene, generator)
        assert judge(found, background, expectation(caption)).exact, (scene, caption)
        for text in untrue:
            assert not judge(found, background, expectation(text)).exact, (scene, caption, text)
    assert tried > 20 * len(SCENES)


def test_every_caption_has_its_negatives_and_they_differ() -> None:
    generator = torch.Generator().manual_seed(1)
    for scene in lessons(1500, seed=6):
        caption, untrue = caption_and_negatives(scene, generator, NEGATIVES)
        assert len({caption, *untrue}) == 1 + NEGATIVES, (caption, untrue)


def test_of_two_things_the_first_negatives_swap_colours_and_relation() -> None:
    generator, words = torch.Generator().manual_seed(2), 0
    colours, relation, *others = negatives_of("a red circle left of a blue square on a white background")
    assert colours == expectation("a blue circle left of a red square on a white background")
    assert relation == expectation("a red circle right of a blue square on a white background")
    changed = {
        expectation(f"a red circle {relation} a blue square on a white background") for relation in ("above", "below")
    }
    changed |= {expectation(f"a red circle left of a blue square on a {bg} background") for bg in ("black", "gray")}
    changed |= {expectation("a red square left of a blue circle on a white background")}
    changed |= {expectation("a red star left of a blue square on a white background")}
    changed |= {expectation("a red circle left of a pink square on a white background")}
    assert changed <= set(others)
    assert len(set(others)) == len(others)
    for scene in [scene for scene in SCENES if scene.relation is not None]:
        caption, untrue = caption_and_negatives(scene, generator)
        differences = [len(set(caption.split()) ^ set(text.split())) for text in untrue]
        words += min(differences) == 0  # colours or things swapped: the same bag of words
    assert words > 100


def test_of_places_the_swap_is_a_negative() -> None:
    first, second, *_ = negatives_of("a red circle on the left and a blue square at the top")
    assert first == expectation("a blue circle on the left and a red square at the top")
    assert second == expectation("a red circle at the top and a blue square on the left")


@pytest.mark.parametrize(
    ("caption", "may_be_true"),
    [
        ("a red shape and a blue circle", "a blue shape and a red circle"),  # the shape may be a circle
        ("a red circle and a square", "a circle and a red square"),  # the square may be red, too
        ("a red circle and a shape", "a blue circle and a shape"),  # the shape may be a blue circle
        ("a small star and a star", "a large star and a star"),
        ("a red shape left of a circle", "a shape left of a red circle"),
        ("a red circle and a blue square", "a red circle right of a blue square"),  # how they stand is left open
        ("a red circle and a blue square", "a blue square and a red circle"),
        ("a red circle left of a blue square", "a blue square right of a red circle"),
        ("a circle", "a red circle"),
        ("two shapes", "two circles"),
        ("a red circle", "a red circle on a black background"),
        ("a shape left of a red shape", "a shape above a shape on a white background"),
    ],
)
def test_what_a_caption_leaves_open_makes_no_negative(caption: str, may_be_true: str) -> None:
    if may_be_true != "a shape above a shape on a white background":
        assert could_both_be_true(expectation(caption), expectation(may_be_true))
        assert could_both_be_true(expectation(may_be_true), expectation(caption))
    assert expectation(may_be_true) not in negatives_of(caption)


@pytest.mark.parametrize(
    ("caption", "other"),
    [
        ("a red circle and a blue square", "a blue circle and a red square"),
        ("a red circle left of a blue shape", "a blue circle left of a red shape"),
        ("a red circle left of a blue square", "a blue square left of a red circle"),
        ("a red shape left of a red shape", "a red shape above a red shape"),
        ("two red circles", "three red circles"),
        ("two red circles", "a red circle"),
        ("a circle", "a square"),
        ("a circle at the top", "a circle in the top left"),
        ("a red circle and a blue square", "two circles"),
        ("a star on a white background", "a star on a gray background"),
    ],
)
def test_what_contradicts(caption: str, other: str) -> None:
    assert not could_both_be_true(expectation(caption), expectation(other))
    assert not could_both_be_true(expectation(other), expectation(caption))


def test_whether_both_could_be_true_is_what_the_checker_says() -> None:
    """Of pictures and other pictures' captions; where a thing is close to a border between places, it cannot know."""
    generator = torch.Generator().manual_seed(3)
    captions = [expectation(caption_and_negatives(scene, generator)[0]) for scene in SCENES]
    both = 0
    for i, (found, background) in enumerate(findings()):
        shown = expectation_of(SCENES[i])
        for said in captions[::4]:
            true, possible = judge(found, background, said).exact, could_both_be_true(shown, said)
            assert possible or not true, (SCENES[i], said)
            both += true
            if possible and not true:
                assert any(thing.position is None for thing in shown.things), (SCENES[i], said)
    assert both > 120  # more than the hundred that are each one's own


# The loss and the training.


class Fixed(CLIP):
    """CLIP with given vectors."""

    def __init__(self, texts: Tensor, scale: float) -> None:
        torch.nn.Module.__init__(self)
        self.texts = texts
        self.logit_scale = torch.nn.Parameter(torch.tensor(scale).log())

    def embed_texts(self, ids: Tensor) -> Tensor:
        return self.texts


def test_the_loss_is_infonce_with_negatives_of_ones_own() -> None:
    """Written out, picture by picture and text by text."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (4, 16))
    also_true = torch.zeros(4, 4, dtype=torch.bool)
    also_true[0, 2] = also_true[3, 1] = True
    got = contrast(Fixed(texts, 5.0), images, torch.empty(0), also_true)
    total = 0.0
    for i in range(4):
        own = [4 + 3 * i, 5 + 3 * i, 6 + 3 * i]
        others = [j for j in range(4) if not also_true[i, j]]
        logits = 5 * texts[others + own] @ images[i]
        total -= logits.log_softmax(0)[others.index(i)].item()
        pictures = [j for j in range(4) if not also_true[j, i]]
        logits = 5 * images[pictures] @ texts[i]
        total -= logits.log_softmax(0)[pictures.index(i)].item()
    assert got.item() == pytest.approx(total / 8, abs=1e-5)


def test_what_is_seen_answers_the_questions() -> None:
    """The answers, read back, are what the scene shows: of two things the left or upper one is the first."""
    for scene, row in zip(SCENES, seen(SCENES, 8).answers.tolist(), strict=True):
        told = {question: possible[i] for i, (question, possible) in zip(row, QUESTIONS.items(), strict=True)}
        assert told["number"] == len(scene.things)
        assert told["background"] == scene.background
        things = list(scene.things)  # of two that overlap the first is behind
        if not scene.overlapping:
            things.sort(key=lambda thing: thing.x if told["relation"] == "left of" else thing.y)
        first, second = (*things, None)[:2]
        assert (told["relation"] is None) == (scene.relation is None)
        assert (told["first shape"], told["first colour"]) == (first.shape, first.colour)
        assert told["first size"] == (None if first.size == "medium" else first.size)
        assert told["first style"] == (None if first.style == "flat" else first.style)
        if scene.relation is None:
            assert told["second shape"] is None
        else:
            assert second is not None
            assert (told["second shape"], told["second colour"]) == (second.shape, second.colour)
            assert told["relation"] in (scene.relation, INVERSE[scene.relation])


def test_each_thing_is_asked_about_where_it_is_seen() -> None:
    """Most of its patch, or of any, is its own, not that of a thing in front; and so are the attributes."""
    shown, cover = seen(SCENES, 8), masks(SCENES, 64)
    things = [(row, thing) for row, scene in enumerate(SCENES) for thing in scene.things]
    assert len(things) == len(shown.at) == len(shown.attributes)
    for (row, thing), (at, patch), numbers in zip(things, shown.at.tolist(), shown.attributes.tolist(), strict=True):
        assert at == row
        k = SCENES[row].things.index(thing)
        shares = avg_pool2d(cover[row], 8).flatten(1)
        assert shares[k, patch - 1] == shares[k].max() > 0.3
        assert shares[k, patch - 1] >= shares[:, patch - 1].max()
        shape, colour, size, style = (OF_A_THING[name][i] for name, i in zip(OF_A_NOUN, numbers, strict=True))
        assert (shape, colour) == (thing.shape, thing.colour)
        assert size == (None if thing.size == "medium" else thing.size)
        assert style == (None if thing.style == "flat" else thing.style)


def test_positions_begin_as_waves_in_which_neighbours_are_alike() -> None:
    positions = new_clip(text_encoder()).image_encoder.position_embedding.weight.detach()
    assert torch.equal(positions[0], torch.zeros(128))
    grid = positions[1:].view(8, 8, 128)
    likeness = torch.nn.functional.cosine_similarity(grid[3, 3], grid, dim=2)
    assert likeness[3, 3] == likeness.max()
    assert torch.allclose(likeness[2:5, 3], likeness[3, 2:5])
    for near, far in (((3, 4), (3, 5)), ((2, 3), (1, 3)), ((3, 5), (3, 7)), ((4, 4), (7, 7))):
        assert likeness[near] > likeness[far] + 0.02
    assert len(positions.unique(dim=0)) == 65


def test_training_on_takes_what_another_clip_sees() -> None:
    """With a text encoder of other words; its projections are those of the other, too."""
    words = replace(text_config(9), projection_width=128)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        start = CLIP(words, IMAGE_CONFIG)
    clip = new_clip(text_encoder(), start=start)
    pixels = render(SCENES[:2], 64)
    with torch.no_grad():
        assert torch.equal(clip.embed_images(pixels), start.embed_images(pixels))
    assert torch.equal(clip.text_encoder.text_projection.weight, start.text_encoder.text_projection.weight)
    assert clip.logit_scale == start.logit_scale
    assert len(clip.text_encoder.token_embedding.weight) == len(tokenizer())
    other = CLIP(words, replace(IMAGE_CONFIG, layers=1))
    with pytest.raises(MismatchError, match="other sizes"):
        new_clip(text_encoder(), start=other)


def test_both_losses_are_trained_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(
        contrastive,
        "train",
        lambda model, loss, *others: made.extend([model, loss]) or deepcopy(model).requires_grad_(False),
    )
    train_clip(text_encoder(), tokenizer(), 1, tmp_path / "run.pt", lambda line: None, batch=6)
    seer, loss = made
    with torch.no_grad():
        got = loss(torch.Generator().manual_seed(2), 0.0).item()
        scenes, ids, also_true = draw_batch(tokenizer(), 6, torch.Generator().manual_seed(2))
        clip, pixels = seer.clip, render(scenes, IMAGE_CONFIG.image_size)
        states, right = clip.image_encoder(pixels), seen(scenes, 8)
        class_token = clip.image_encoder.post_norm(states[:, 0])
        logits = (class_token @ seer.answer.weight.T + seer.answer.bias).split([len(p) for p in QUESTIONS.values()], 1)
        answering = sum(cross_entropy(a, right.answers[:, i]).item() for i, a in enumerate(logits))
        middles = torch.stack([states[row, patch] for row, patch in right.at.tolist()])
        each = (middles @ seer.of_thing.weight.T + seer.of_thing.bias).split([len(OF_A_THING[n]) for n in OF_A_NOUN], 1)
        answering += sum(cross_entropy(a, right.attributes[:, i]).item() for i, a in enumerate(each))
        expected = contrast(clip, clip.embed_images(pixels), ids, also_true).item() + 0.3 * answering
    assert got == pytest.approx(expected, rel=1e-5)


def test_a_batch_fits_together() -> None:
    scenes, ids, also_true = draw_batch(tokenizer(), 40, torch.Generator().manual_seed(0))
    assert ids.shape[0] == 40 * (1 + NEGATIVES)
    texts = [tokenizer().decode(row, skip_special=True) for row in ids]
    found = [(tuple(found), background) for found, background in map(find, render(scenes, 64))]
    for i, (things, background) in enumerate(found):
        assert judge(things, background, expectation(texts[i])).exact
        for text in texts[40 + NEGATIVES * i :][:NEGATIVES]:
            assert not judge(things, background, expectation(text)).exact
        for j, caption in enumerate(texts[:40]):
            if i != j and judge(things, background, expectation(caption)).exact:
                assert also_true[i, j]
    assert not also_true.diagonal().any()
    assert 0 < also_true.sum() < 40  # some are, most are not


def test_a_few_steps_lower_the_loss_and_leave_the_text_half_alone(tmp_path: Path) -> None:
    encoder = text_encoder(seed=3)  # not that of a fresh CLIP
    before = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    lines: list[str] = []
    clip = train_clip(encoder, tokenizer(), 0, tmp_path / "clip.pt", lines.append, batch=8, steps=100)
    assert "%" in lines[-1]
    assert not clip.training
    start = new_clip(encoder)
    scenes, ids, also_true = draw_batch(tokenizer(), 24, torch.Generator().manual_seed(9))
    pixels = render(scenes, IMAGE_CONFIG.image_size)
    with torch.no_grad():
        first, last = (contrast(each, each.embed_images(pixels), ids, also_true).item() for each in (start, clip))
    assert last < first - 0.15
    for name, weight in clip.text_encoder.state_dict().items():
        if name == "text_projection.weight":
            assert not torch.equal(weight, start.text_encoder.text_projection.weight)
        else:
            assert torch.equal(weight, before[name]), name
    assert all(torch.equal(weight, before[name]) for name, weight in encoder.state_dict().items())
    assert all(p.requires_grad for p in encoder.parameters())
    trained = {name for name, p in start.named_parameters() if p.requires_grad}
    assert {name for name in trained if name.startswith("text_encoder")} == {"text_encoder.text_projection.weight"}
    moved = {n for n, p in clip.named_parameters() if not torch.equal(p, start.get_parameter(n))}
    assert moved == trained


def test_the_scale_stays_below_100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hot(encoder: CLIPTextTransformer, start: None) -> CLIP:
        clip = new_clip(encoder)
        clip.logit_scale.data.fill_(9.0)
        return clip

    monkeypatch.setattr(contrastive, "new_clip", hot)
    clip = train_clip(text_encoder(), tokenizer(), 0, tmp_path / "clip.pt", lambda line: None, batch=2, steps=3)
    assert clip.logit_scale.exp().item() <= 100.001


# The measures.


def test_full_captions_say_all_there_are_words_for() -> None:
    generator = torch.Generator().manual_seed(4)
    for scene in SCENES:
        whole, said = expectation_of(scene), expectation(full_caption(scene, generator))
        assert could_both_be_true(whole, said)
        assert said.background == scene.background
        assert (said.relation is None) == (scene.relation is None)
        for thing in said.things:
            assert thing.shape is not None
            assert thing.colour is not None
        assert sorted(t.size or "medium" for t in said.things) == sorted(t.size for t in scene.things)
        if len(scene.things) == 1:
            assert said.things[0].position == whole.things[0].position


def test_distinct_scenes_have_captions_of_their_own() -> None:
    scenes, captions = distinct_scenes(60, seed=1)
    said = [expectation(caption) for caption in captions]
    for i, (found, background) in enumerate(map(find, render(scenes, 64))):
        assert [j for j in range(60) if judge(tuple(found), background, said[j]).exact] == [i]


@pytest.mark.parametrize("order", [("medium", "small"), ("small", "medium")])
def test_a_caption_that_is_true_of_two_scenes_is_not_distinct(
    monkeypatch: pytest.MonkeyPatch, order: tuple[str, str]
) -> None:
    """A medium size is not said, so its caption is true of a small one, too: whichever comes first, it stays alone."""
    things = [Thing("circle", "red", size, 0.5, 0.5, SIZES[size][0]) for size in order]
    scenes = [Scene((each,)) for each in (*things, Thing("star", "blue", "large", 0.5, 0.5, 0.19))]
    rest = iter(scenes)
    monkeypatch.setattr(measures, "sample_lesson", lambda generator: next(rest))
    assert distinct_scenes(2, seed=0)[0] == [scenes[0], scenes[2]]


def test_retrieval_tells_the_two_ways_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = new_clip(text_encoder())
    monkeypatch.setattr(measures, "embed_scenes", lambda clip, scenes: torch.eye(20))
    monkeypatch.setattr(measures, "embed_captions", lambda clip, tokenizer, captions: torch.eye(20))
    assert retrieval(clip, tokenizer(), 20, seed=1) == {"text to image": 1.0, "image to text": 1.0}
    texts = torch.eye(20)
    texts[0] = 2  # the text that every picture takes for its own, though each text finds its picture
    texts[0, 0] = 3
    monkeypatch.setattr(measures, "embed_captions", lambda clip, tokenizer, captions: texts)
    result = retrieval(clip, tokenizer(), 20, seed=1)
    assert result == {"text to image": 1.0, "image to text": pytest.approx(1 / 20)}


@pytest.mark.parametrize("sign", [1, -1])
def test_hard_negative_accuracy_of_one_who_knows(monkeypatch: pytest.MonkeyPatch, sign: int) -> None:
    seen: list[Scene] = []

    def scenes_as_ones(clip: CLIP, scenes: list[Scene]) -> Tensor:
        seen[:] = scenes
        return torch.ones(len(scenes), 1)

    def truth(clip: CLIP, tokenizer: Tokenizer, captions: list[str]) -> Tensor:
        found = [(tuple(found), background) for found, background in map(find, render(seen, 64))]
        right = [judge(*each, expectation(text)).exact for each, text in zip(found, captions, strict=True)]
        return sign * torch.tensor(right).float()[:, None]

    monkeypatch.setattr(measures, "embed_scenes", scenes_as_ones)
    monkeypatch.setattr(measures, "embed_captions", truth)
    accuracy = hard_negative_accuracy(new_clip(text_encoder()), tokenizer(), 40, seed=2)
    assert accuracy == (1.0 if sign == 1 else 0.0)


def test_an_untrained_clip_knows_nothing() -> None:
    clip = new_clip(text_encoder())
    assert 0.3 < hard_negative_accuracy(clip, tokenizer(), 100) < 0.7
    assert max(retrieval(clip, tokenizer(), 50).values()) < 0.15
