from __future__ import annotations

from dataclasses import replace

import pytest

from edgeopt.policy import Goal
from edgeopt.records import Artifact, Interval, Latency, Measurement, Quality, Recipe, Step, Trial
from edgeopt.stages import select


def _trial(
    name: str, *, speedup: tuple[float, float, float] = (1.0, 1.0, 1.0), bound: float = 0.0, ratio: float = 1.0
) -> Trial:
    value, low, high = speedup
    measurement = Measurement(
        latency=Latency(p50_ms=1.0, p90_ms=1.0, p99_ms=1.0),
        speedup=Interval(value=value, low=low, high=high),
        bytes=100,
        bytes_ratio=ratio,
        peak_memory_bytes=100,
        memory_ratio=1.0,
        quality=Quality(
            kind="agreement", metric="expected_drop", value=1.0, drop=bound / 2, ci95=(0.0, bound), samples=100
        ),
    )
    artifact = Artifact(path="m", format="onnx", sha256="0", bytes=100, runtime="r", runtime_version="1", session=())
    steps = () if name == "original" else (Step.of(name),)
    return Trial(recipe=Recipe(steps=steps), artifact=artifact, measurement=measurement)


BASELINE = _trial("original")
TIDY = _trial("tidy")
HARMLESS = {TIDY.recipe.id}


def _choose(*trials: Trial, goal: Goal = Goal(), confirm=lambda trial: trial):  # noqa: B008
    return select.choose(trials, BASELINE, goal, harmless=HARMLESS, confirm=confirm)


def test_fastest_candidate_within_the_quality_budget_wins() -> None:
    quick, quicker = _trial("a", speedup=(1.3, 1.2, 1.4)), _trial("b", speedup=(1.5, 1.4, 1.6), bound=0.009)
    assert _choose(TIDY, quick, quicker).winner.recipe == quicker.recipe


def test_fast_but_wrong_candidate_loses_and_says_why() -> None:
    wrong = _trial("a", speedup=(3.0, 2.9, 3.1), bound=0.02)
    verdict = _choose(TIDY, wrong)
    assert verdict.winner.recipe == TIDY.recipe
    refused = next(trial.refused for trial in verdict.trials if trial.recipe == wrong.recipe)
    assert refused is not None
    assert "0.02" in refused
    assert "max_drop 0.01" in refused


def test_slower_int8_never_wins() -> None:
    verdict = _choose(TIDY, _trial("quantize_dynamic", speedup=(0.11, 0.1, 0.12)))
    assert verdict.winner.recipe == TIDY.recipe
    assert "Nothing beat the original" in verdict.reason


def test_speedup_whose_interval_reaches_below_the_least_does_not_win() -> None:
    assert _choose(TIDY, _trial("a", speedup=(1.2, 1.01, 1.4))).winner.recipe == TIDY.recipe


def test_original_is_published_when_even_the_clean_up_is_slower() -> None:
    slow = _trial("tidy", speedup=(0.9, 0.88, 0.92))
    verdict = _choose(slow)
    assert verdict.winner is BASELINE
    assert "as it was dropped" in verdict.reason


def test_winner_that_does_not_win_twice_is_refused_and_the_next_has_its_turn() -> None:
    lucky, steady = _trial("lucky", speedup=(2.0, 1.9, 2.1)), _trial("steady", speedup=(1.5, 1.4, 1.6))

    def confirm(trial: Trial) -> Trial:
        if trial.recipe != lucky.recipe or trial.measurement is None:
            return trial
        return replace(trial, measurement=replace(trial.measurement, speedup=Interval(value=1.0, low=0.9, high=1.1)))

    verdict = _choose(TIDY, lucky, steady, confirm=confirm)
    assert verdict.winner.recipe == steady.recipe
    assert "did not win again" in str(next(trial.refused for trial in verdict.trials if trial.recipe == lucky.recipe))


def test_candidate_that_crashes_when_confirmed_is_refused() -> None:
    fragile = _trial("a", speedup=(2.0, 1.9, 2.1))
    verdict = _choose(
        TIDY, fragile, confirm=lambda trial: replace(trial, measurement=None, refused="measure-failed: gone")
    )
    assert verdict.winner.recipe == TIDY.recipe


@pytest.mark.parametrize(
    ("ratio", "speedup", "wins"),
    [(4.0, (0.95, 0.9, 1.0), True), (4.0, (0.2, 0.1, 0.3), False), (1.01, (1.0, 1.0, 1.0), False)],
)
def test_objective_size_wants_fewer_bytes_without_a_collapse_in_speed(ratio, speedup, wins) -> None:
    small = _trial("a", speedup=speedup, ratio=ratio)
    assert (_choose(TIDY, small, goal=Goal(objective="size")).winner.recipe == small.recipe) is wins


def test_every_trial_is_in_the_verdict_with_the_baseline_first() -> None:
    refused = Trial(recipe=Recipe(steps=(Step.of("x"),)), refused="pass-failed: no")
    verdict = _choose(TIDY, refused)
    assert [trial.recipe for trial in verdict.trials] == [Recipe(), TIDY.recipe, refused.recipe]
