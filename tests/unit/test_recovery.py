"""Distillation in the search, without a model: what is taught, for how long, and what ends it."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import builders
import numpy as np
import pytest

from edgeopt.catalogue import find_pass
from edgeopt.errors import PassFailed
from edgeopt.policy import Goal
from edgeopt.records import Interval, Latency, Measurement, Quality, Recipe, Step, Trial
from edgeopt.stages import pruning, recovery
from edgeopt.stages.allotment import Share
from edgeopt.stages.asked import before_distillation
from edgeopt.stages.recovery import Doors, Lesson, teach

SHARE = Share(name="conv", units=100, step=1, cost=1.0, damages=tuple(0.001 * count for count in range(1, 80)))
LESSON = Lesson(before=(Step.of("tidy"), Step.of("prune_channels")), after=(Step.of("quantize_static"),))
FOREVER = 1e9


class Stage:
    """A rehearsal whose bounds and times are given by the number of steps (0: untaught), and the search's doors."""

    def __init__(self, bounds: dict[int, float], *, seconds_a_step: float = 1.0, known: tuple[int, ...] = ()) -> None:
        self.bounds, self.known, self.now_s, self.each_s = bounds, known, 0.0, seconds_a_step
        self.evidence = SimpleNamespace(deadline_s=None)
        self.deadlines: list[float | None] = []
        self.bench = SimpleNamespace(goal=Goal(max_drop=0.01), evidence=self.evidence, emit=lambda _event: None)
        self.attempted: list[int] = []

    def quality(self, recipe: Recipe) -> Any:
        steps = steps_of(recipe)
        if steps:
            self.now_s += steps * self.each_s
            self.deadlines.append(self.evidence.deadline_s)
        bound = self.bounds[steps]
        if bound < 0:
            raise PassFailed("the loss is nan at step 3 with a learning rate of 1")
        return SimpleNamespace(metric="nsr", samples=64, ci95=(0.0, bound))

    def trials(self, *, within_s: float = FOREVER) -> list[Trial]:
        def attempt(recipe: Recipe) -> Trial:
            self.attempted.append(steps_of(recipe))
            if steps_of(recipe) in self.known:
                return Trial(recipe=recipe, refused="not timed: seen in an earlier run")
            return Trial(recipe=recipe, measurement=SimpleNamespace())  # type: ignore[arg-type]

        doors = Doors(
            attempt=attempt,
            refuse=lambda recipe, reason: Trial(recipe=recipe, refused=reason),
            known=lambda recipe: steps_of(recipe) in self.known,
            begin=lambda _recipe: None,
            clock=lambda: self.now_s,
        )
        return list(teach(LESSON, self, doors, deadline_s=within_s))  # type: ignore[arg-type]


def steps_of(recipe: Recipe) -> int:
    return next((int(dict(step.settings)["steps"]) for step in recipe.steps if step.technique == "distill"), 0)


def test_first_training_that_is_right_is_attempted_and_ends_it() -> None:
    stage = Stage({0: 0.02, 64: 0.012, 256: 0.007})
    refused, attempted = stage.trials()
    assert refused.refused == "not timed: nsr may drop by up to 0.012 on 64 calibration samples"
    assert attempted.refused is None and steps_of(attempted.recipe) == 256
    assert [step.technique for step in attempted.recipe.steps] == [
        "tidy",
        "prune_channels",
        "distill",
        "quantize_static",
    ]
    assert stage.attempted == [256]


def test_what_is_far_beyond_the_budget_is_not_taught_at_all() -> None:
    stage = Stage({0: 0.05})
    (trial,) = stage.trials()
    assert "not taught: nsr may drop by up to 0.05" in str(trial.refused)
    assert stage.now_s == 0.0


def test_training_that_gains_next_to_nothing_is_the_last() -> None:
    (trial,) = Stage({0: 0.02, 64: 0.0195}).trials()
    assert steps_of(trial.recipe) == 64


def test_longer_training_is_not_begun_where_the_time_would_end_it() -> None:
    stage = Stage({0: 0.03, 64: 0.02, 256: 0.015}, seconds_a_step=1.0)
    assert len(stage.trials(within_s=64 + 4.5 * 64 + 1)) == 2
    assert len(Stage({0: 0.03, 64: 0.02}).trials(within_s=200.0)) == 1


def test_training_is_told_when_the_time_is_over_and_the_job_keeps_its_own_deadline() -> None:
    stage = Stage({0: 0.02, 64: 0.005})
    stage.trials(within_s=90.0)
    assert stage.deadlines == [90.0]
    assert stage.evidence.deadline_s is None


def test_student_that_cannot_be_made_is_refused_for_that_and_not_for_its_reach() -> None:
    (trial,) = Stage({0: -1.0}).trials()
    assert str(trial.refused).startswith("not taught: pass-failed: the loss is nan")
    assert "beyond the reach" not in str(trial.refused)


def test_loss_that_diverges_is_the_reason_of_the_refusal() -> None:
    (trial,) = Stage({0: 0.02, 64: -1.0}).trials()
    assert trial.refused == "not timed: pass-failed: the loss is nan at step 3 with a learning rate of 1"


def test_what_an_earlier_run_finished_is_not_taught_again() -> None:
    stage = Stage({0: 0.02, 256: 0.005}, known=(64,))
    first, second = stage.trials()
    assert first.refused == "not timed: seen in an earlier run"
    assert second.refused is None and stage.attempted == [64, 256]
    assert stage.now_s == 256.0


# ---------------------------------------------------------------- who is taught
def measured(*steps: Step, bound: float, speedup: float) -> Trial:
    once = Latency(p50_ms=1.0, p90_ms=1.0, p99_ms=1.0)
    quality = Quality(kind="agreement", metric="nsr", value=0.0, drop=bound, ci95=(0.0, bound), samples=64)
    found = Measurement(
        latency=once,
        speedup=Interval(value=speedup, low=speedup, high=speedup),
        bytes=1,
        bytes_ratio=1.0,
        peak_memory_bytes=1,
        memory_ratio=1.0,
        quality=quality,
    )
    return Trial(recipe=Recipe(steps=steps), measurement=found)


BENCH = SimpleNamespace(goal=Goal(max_drop=0.01))
STATIC = Step.of("quantize_static", reduced_range=True)


def test_least_wrong_static_int8_beyond_the_budget_is_taught_to_live_with_its_rounding() -> None:
    trials = [
        measured(Step.of("tidy"), bound=0.0, speedup=1.0),
        measured(Step.of("tidy"), STATIC, bound=0.02, speedup=2.0),
        measured(Step.of("tidy"), Step.of("quantize_static"), bound=0.03, speedup=2.0),
    ]
    (lesson,) = recovery.near_misses(trials, BENCH)  # type: ignore[arg-type]
    taught = lesson.taught(64)
    assert [step.technique for step in taught.steps] == ["tidy", "distill", "quantize_static"]
    assert dict(taught.steps[1].settings) == {
        "steps": 64,
        "patience": 20,
        "fake_quantize": "int8",
        "reduced_range": True,
    }


@pytest.mark.parametrize(
    ("bound", "speedup", "winner"),
    [(0.005, 2.0, 1.0), (0.05, 2.0, 1.0), (0.02, 1.5, 1.6), (0.02, 1.0, 1.0)],
    ids=["right already", "out of reach", "slower than what is right", "not faster at all"],
)
def test_int8_is_not_taught_where_that_could_not_win(bound: float, speedup: float, winner: float) -> None:
    trials = [measured(Step.of("other"), bound=0.0, speedup=winner), measured(STATIC, bound=bound, speedup=speedup)]
    assert recovery.near_misses(trials, BENCH) == []  # type: ignore[arg-type]


@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch: pip install 'edgeopt[train]'")
def test_passes_take_the_recipe_that_the_search_writes_and_int8_comes_out_nearer() -> None:
    teacher = builders.conv_net()
    student = builders.nearby(teacher, seed=1, deviation=0.1)
    evidence = builders.FakeEvidence(teacher, samples=24)
    trials = [measured(Step.of("quantize_static"), bound=0.02, speedup=2.0)]
    (lesson,) = recovery.near_misses(trials, BENCH)  # type: ignore[arg-type]

    def missed(recipe: Recipe) -> float:
        made = student
        for step in recipe.steps:
            made = find_pass(step.technique).apply(made, dict(step.settings), evidence)
        pairs = [
            (builders.run(made, given)[0], builders.run(teacher, given)[0])
            for given in (builders.feeds(teacher, seed=seed) for seed in range(100, 108))
        ]
        return float(np.mean([np.square(ours - theirs).mean() for ours, theirs in pairs]))

    assert missed(lesson.taught(recovery.STEPS[0])) < 0.8 * missed(lesson.untaught())


def prepared() -> pruning.Pruning:
    return pruning.Pruning(
        bench=BENCH,  # type: ignore[arg-type]  # the recipes ask for nothing
        rehearsal=None,  # type: ignore[arg-type]
        before=(Step.of("tidy"),),
        after=(STATIC,),
        shares=(SHARE,),
        whole=1.0,
    )


@pytest.mark.parametrize(("reached", "asked"), [(None, pruning.LEAST), (0.2, 0.2 * 1.4), (0.5, pruning.MOST)])
def test_pruning_is_asked_for_more_than_the_refit_alone_allowed(reached: float | None, asked: float) -> None:
    lesson = recovery.pruned_further(prepared(), reached)
    assert lesson is not None
    plain = prepared().recipe(asked)
    assert plain is not None
    assert lesson.untaught().steps == tuple(map(before_distillation, plain.steps))
    assert dict(lesson.untaught().steps[1].settings)["apart"] is True
    assert [step.technique for step in lesson.taught(64).steps] == [
        "tidy",
        "prune_channels",
        "distill",
        "quantize_static",
    ]


def test_pruning_that_went_as_far_as_it_may_is_not_asked_for_more() -> None:
    assert recovery.pruned_further(prepared(), pruning.MOST) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"synthetic": True}, "no real samples"),
        ({"sample_count": 0}, "no real samples"),
        ({"compute_capability": (8.6,)}, "engines cannot run here"),
        ({"taught": True}, "taught already"),
        ({"missing": "needs torch"}, "needs torch"),
        ({}, None),
    ],
    ids=str,
)
def test_nothing_is_taught_where_it_makes_no_sense(change: dict[str, Any], words: str | None) -> None:
    given = {"synthetic": False, "sample_count": 8, "compute_capability": (), "taught": False, "missing": None} | change
    bench = SimpleNamespace(
        evidence=SimpleNamespace(synthetic=given["synthetic"], sample_count=given["sample_count"]),
        target=SimpleNamespace(compute_capability=given["compute_capability"]),
        reference=SimpleNamespace(taught=given["taught"]),
        passes={"distill": SimpleNamespace(refuse=lambda _signature, _target: given["missing"])},
        signature=None,
    )
    reason = recovery.refusal(bench)  # type: ignore[arg-type]
    assert (reason is None) if words is None else words in str(reason)
