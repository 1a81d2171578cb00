"""The search for the fewest bits a weight, without a model: where it ends, and what it does when the eval samples disagree."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import builders
import pytest

from edgeopt.calibrate.scheme import read_settings
from edgeopt.calibrate.weight_scheme import WeightScheme
from edgeopt.passes import QuantizeWeights
from edgeopt.policy import Goal
from edgeopt.records import Recipe, Step, Trial
from edgeopt.stages import bits

CLEAN_UP = (Step.of("tidy"),)
LATER = 3600.0


class Rehearsed:
    """Right from ``least`` bits on."""

    def __init__(self, least: float) -> None:
        self.bench = SimpleNamespace(goal=Goal(objective="size"), emit=lambda _event: None)
        self.least, self.asked = least, []

    def quality(self, recipe: Recipe) -> Any:
        self.asked.append(_mean(recipe))
        bound = 0.0 if self.asked[-1] >= self.least else 0.5
        return SimpleNamespace(metric="nsr", samples=64, ci95=(0.0, bound))


def _mean(recipe: Recipe) -> float:
    return float(dict(recipe.steps[-1].settings)["mean_bits"])


def _search(rehearsal: Rehearsed, *, right_from: float = 0.0, within_s: float = LATER) -> list[Trial]:
    def attempt(recipe: Recipe) -> Trial:
        quality = SimpleNamespace(ci95=(0.0, 0.0 if _mean(recipe) >= right_from else 0.5))
        return Trial(recipe=recipe, measurement=SimpleNamespace(quality=quality))  # type: ignore[arg-type]

    def refuse(recipe: Recipe, reason: str) -> Trial:
        return Trial(recipe=recipe, refused=reason)

    deadline_s = time.monotonic() + within_s
    return list(bits.search(CLEAN_UP, rehearsal, attempt, refuse, deadline_s=deadline_s))  # type: ignore[arg-type]


@pytest.mark.parametrize("least", bits.MEANS)
def test_fewest_bits_that_rehearse_right_are_attempted_after_few_rehearsals(least: float) -> None:
    rehearsal = Rehearsed(least)
    trials = _search(rehearsal)
    assert [_mean(trial.recipe) for trial in trials] == [least]
    assert len(rehearsal.asked) <= 5


def test_more_bits_are_tried_where_the_eval_samples_disagree() -> None:
    trials = _search(Rehearsed(4.0), right_from=4.5)
    assert [_mean(trial.recipe) for trial in trials] == [4.0, 4.25, 4.5]


def test_reason_is_told_where_no_bits_are_few_enough_and_right() -> None:
    (trial,) = _search(Rehearsed(7.0))
    assert trial.measurement is None
    assert "nsr may drop by up to 0.5 on 64 calibration samples" in str(trial.refused)


def test_budget_that_ended_leaves_one_refused_trial_and_no_rehearsal() -> None:
    rehearsal = Rehearsed(3.0)
    (trial,) = _search(rehearsal, within_s=-1.0)
    assert rehearsal.asked == []
    assert "budget" in str(trial.refused)


@pytest.mark.parametrize("mean_bits", bits.MEANS)
def test_every_recipe_has_settings_that_the_pass_takes(mean_bits: float) -> None:
    step = bits.recipe(CLEAN_UP, mean_bits).steps[-1]
    read_settings(WeightScheme, dict(step.settings), technique=step.technique).check()


def test_bits_are_searched_for_where_bytes_are_the_goal_and_samples_are_there() -> None:
    def bench(objective: str, *, samples: int, target: str = "cpu") -> Any:
        return SimpleNamespace(
            goal=Goal(objective=objective),  # type: ignore[arg-type]
            target=SimpleNamespace(name=target),
            evidence=SimpleNamespace(synthetic=False, sample_count=samples),
            signature=builders.signature(builders.mlp()),
            passes={"quantize_weights": QuantizeWeights()},
        )

    assert bits.refusal(bench("size", samples=8)) is None
    assert "save bytes" in str(bits.refusal(bench("latency", samples=8)))
    assert "no real samples" in str(bits.refusal(bench("size", samples=0)))
    assert "TensorRT" in str(bits.refusal(bench("size", samples=8, target="tensorrt")))
