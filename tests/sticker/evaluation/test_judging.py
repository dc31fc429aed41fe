"""Rates and their intervals, for painters that are right, or wrong, on purpose."""

import pytest
import torch
from support.painter import Painter, Request, as_requested, in_other_colours

from minisd.images import from_pil
from minisd.sticker.evaluation.judging import Rate, asked_skills, judge_prompts, skill_rates, wilson_interval
from minisd.sticker.evaluation.prompt_suites import sample_prompts
from minisd.sticker.world.captions import parse_caption
from minisd.sticker.world.checker.check import check
from minisd.sticker.world.render import render
from minisd.sticker.world.scene import Scene

PROMPTS = sample_prompts(2, seed=0)


def test_intervals_are_those_of_wilson() -> None:
    assert wilson_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson_interval(1.0, 96) == pytest.approx((0.9615, 1.0), abs=1e-4)
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert Rate(96, 96).as_json() == {"rate": 1.0, "low": wilson_interval(1.0, 96)[0], "high": 1.0, "count": 96}


def test_a_painter_that_draws_what_is_requested_is_right_in_everything() -> None:
    for name, prompts in PROMPTS.items():
        judged = judge_prompts(Painter(), prompts, seed=0)  # type: ignore[arg-type]
        measured = skill_rates(prompts, judged.verdicts)
        assert {rate.value for rate in measured.values()} == {1.0}, name
        assert measured["exact"] == judged.exact == (2, 2)


def test_a_painter_that_uses_other_colours_is_wrong_in_those() -> None:
    for name, prompts in PROMPTS.items():
        if name == "partial":  # where a prompt may mention no colour
            continue
        verdicts = judge_prompts(Painter(in_other_colours), prompts, 0).verdicts  # type: ignore[arg-type]
        measured = {skill: rate.value for skill, rate in skill_rates(prompts, verdicts).items()}
        wrong = {"exact", "object", "colour"}
        assert measured == {skill: 0.0 if skill in wrong else 1.0 for skill in measured}, name


def test_rates_count_only_prompts_that_test_the_skill() -> None:
    prompts = ["a red circle above a blue star", "a red circle", "a shape", "two red stars"]
    empty = check(render([Scene(())])[0], "a red circle")
    measured = skill_rates(prompts, [empty] * 4)
    totals = {"exact": 4, "object": 3, "colour": 3, "shape": 3, "relation": 1, "count": 4}
    assert {skill: rate.total for skill, rate in measured.items()} == totals
    assert {skill: rate.right for skill, rate in measured.items() if rate.right} == {"relation": 1}  # of one object
    assert asked_skills(parse_caption("a shape in the top left on a black background")) == {
        "exact", "count", "position", "background",
    }  # fmt: skip


def test_images_do_not_depend_on_the_batch() -> None:
    painter = Painter()
    judged = judge_prompts(painter, ["a red circle"] * 20, seed=7)  # type: ignore[arg-type]
    assert [(len(prompts), seed) for prompts, seed in painter.calls] == [(16, 7), (4, 23)]
    assert len(judged.pictures) == len(judged.verdicts) == 20
    last = painter(["a red circle"], seed=26).images[0]
    assert torch.equal(from_pil(judged.pictures[19]), from_pil(last))


def test_the_painter_itself_varies() -> None:
    scenes = {as_requested(Request(prompt="a shape", seed=seed)) for seed in range(10)}
    assert len(scenes) == 10
