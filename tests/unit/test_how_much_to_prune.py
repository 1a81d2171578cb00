"""The search for how much to prune, without a model: what it refuses, and how far it goes."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from builders import TARGET, FakeEvidence, Net

from edgeopt.calibrate.removal import PruneScheme
from edgeopt.calibrate.scheme import read_settings
from edgeopt.errors import MeasureFailed, PassFailed
from edgeopt.policy import Goal
from edgeopt.records import Recipe, Step, Trial
from edgeopt.stages import pruning
from edgeopt.stages.allotment import Share

SHARE = Share(name="conv", units=100, step=1, cost=1.0, damages=tuple(0.001 * count for count in range(1, 80)))
LATER = 3600.0


class Rehearsed:
    """Right up to a share of the units removed, and ``wrong`` beyond it."""

    def __init__(self, right_up_to: float, wrong: float = 0.5) -> None:
        self.right_up_to, self.wrong, self.asked = right_up_to, wrong, []

    def quality(self, recipe: Recipe) -> Any:
        gone = _removed(recipe)
        self.asked.append(gone)
        if gone > 90:
            raise MeasureFailed("nothing is left")
        return SimpleNamespace(
            metric="nsr", samples=64, ci95=(0.0, 0.0 if gone <= self.right_up_to * 100 else self.wrong)
        )


def _removed(recipe: Recipe) -> int:
    return int(json.loads(dict(recipe.steps[1].settings)["removed"])["conv"])


def _pruning(right_up_to: float, wrong: float = 0.5) -> pruning.Pruning:
    return pruning.Pruning(
        bench=SimpleNamespace(goal=Goal()),  # type: ignore[arg-type]  # the search asks for the goal only
        rehearsal=Rehearsed(right_up_to, wrong),  # type: ignore[arg-type]
        before=(Step.of("tidy"),),
        after=(Step.of("quantize_static"),),
        shares=(SHARE,),
        whole=1.0,
    )


def _search(prepared: pruning.Pruning, *, within_s: float = LATER) -> list[Trial]:
    def attempt(recipe: Recipe) -> Trial:
        quality = SimpleNamespace(ci95=(0.0, 0.0))
        return Trial(recipe=recipe, measurement=SimpleNamespace(quality=quality))  # type: ignore[arg-type]

    def refuse(recipe: Recipe, reason: str) -> Trial:
        return Trial(recipe=recipe, refused=reason)

    return list(pruning.search(prepared, attempt, refuse, deadline_s=time.monotonic() + within_s))


def test_what_is_wrong_at_the_least_share_is_one_refused_trial_that_says_by_how_much() -> None:
    (trial,) = _search(_pruning(right_up_to=0.0))
    assert trial.refused == "not timed: nsr may drop by up to 0.5 on 64 calibration samples"
    assert [step.technique for step in trial.recipe.steps] == ["tidy", "prune_channels", "quantize_static"]


def test_half_of_it_is_tried_where_the_least_share_narrowly_fails() -> None:
    refused, attempted = _search(_pruning(right_up_to=0.05, wrong=0.0111))
    assert refused.refused == "not timed: nsr may drop by up to 0.0111 on 64 calibration samples"
    assert _removed(refused.recipe) == 11
    assert attempted.refused is None and _removed(attempted.recipe) == 5


def test_half_of_it_that_is_wrong_as_well_is_a_second_refused_trial() -> None:
    trials = _search(_pruning(right_up_to=0.0, wrong=0.0111))
    assert [_removed(trial.recipe) for trial in trials] == [11, 5]
    assert all(trial.refused for trial in trials)


@pytest.mark.parametrize(("wrong", "within_s"), [(0.0161, LATER), (0.0111, -1.0)], ids=["far off", "no time left"])
def test_half_of_it_is_not_tried_where_it_could_not_be_right_or_the_time_is_over(wrong: float, within_s: float) -> None:
    (trial,) = _search(_pruning(right_up_to=0.05, wrong=wrong), within_s=within_s)
    assert _removed(trial.recipe) == 11


def test_units_that_go_in_coarse_steps_are_not_tried_twice() -> None:
    coarse = replace(SHARE, step=10, damages=(0.001, 0.002))
    prepared = replace(_pruning(right_up_to=0.0, wrong=0.0111), shares=(coarse,))
    assert len(_search(prepared)) == 1


def test_recipe_says_which_rule_chose_the_units_and_which_end_of_it_goes() -> None:
    recipe = _pruning(right_up_to=1.0).recipe(0.1)
    assert recipe is not None
    settings = dict(recipe.steps[1].settings)
    assert settings == {"criterion": "obs", "direction": "low", "removed": '{"conv": 11}'}
    read_settings(PruneScheme, settings, technique="prune_channels").check()


@pytest.mark.parametrize("right_up_to", [0.15, 0.3, 0.5])
def test_search_goes_nearly_as_far_as_is_right_and_never_further(right_up_to: float) -> None:
    prepared = _pruning(right_up_to)
    (trial,) = _search(prepared)
    assert 0.85 * right_up_to * 100 <= _removed(trial.recipe) <= right_up_to * 100
    assert len(prepared.rehearsal.asked) <= 7  # type: ignore[attr-defined]


def test_what_rehearsed_right_is_attempted_even_when_the_time_is_used_up() -> None:
    prepared = _pruning(right_up_to=0.5)
    (trial,) = _search(prepared, within_s=-1.0)
    assert trial.recipe == prepared.recipe(0.1)
    assert trial.refused is None


def test_nothing_is_pruned_without_real_samples_or_for_what_cannot_be_timed_here() -> None:
    cnn = SimpleNamespace(refuse=lambda signature, target: None)

    def bench(*, samples: int, synthetic: bool, capability: tuple[float, ...], arch: str = platform.machine()) -> Any:
        return SimpleNamespace(
            evidence=SimpleNamespace(sample_count=samples, synthetic=synthetic),
            target=SimpleNamespace(compute_capability=capability, arch=arch),
            passes={pruning.TECHNIQUE: cnn},
            signature=None,
        )

    assert "no real samples" in str(pruning.refusal(bench(samples=16, synthetic=True, capability=())))
    assert "no real samples" in str(pruning.refusal(bench(samples=0, synthetic=False, capability=())))
    assert "cannot be timed" in str(pruning.refusal(bench(samples=16, synthetic=False, capability=(8.6,))))
    assert "cannot be timed" in str(pruning.refusal(bench(samples=16, synthetic=False, capability=(), arch="vax")))
    assert pruning.refusal(bench(samples=16, synthetic=False, capability=())) is None


def test_model_in_which_no_family_can_be_judged_is_told_which_reader_is_not_understood() -> None:
    net = Net(seed=3)
    weights = (net.weight(1, 128, 5), net.weight(1, 128, 32), net.weight(1, 256))
    cells = net.op("Squeeze", net.op("LSTM", "frames", *weights, hidden_size=32), net.ints(1))
    net.op("MatMul", cells, net.weight(32, 3), output="out")
    model = net.build({"frames": ["T", 1, 5]}, {"out": ["T", 1, 3]})
    bench: Any = SimpleNamespace(target=TARGET, evidence=FakeEvidence(model, samples=8))
    with pytest.raises(PassFailed, match=r"none of 1 families .* w_2 \(LSTM\) reads it, and obs judges only"):
        pruning._shares(model, {}, bench)


def test_whole_number_does_for_a_number_and_a_word_does_not() -> None:
    assert read_settings(PruneScheme, {"ratio": 0}, technique="prune_channels").ratio == 0.0
    with pytest.raises(PassFailed, match="ratio is 'much', not a number"):
        read_settings(PruneScheme, {"ratio": "much"}, technique="prune_channels")
