"""What distillation adds to the search: pruning further than the refit alone allows, and int8 that just misses the budget taught to live with its rounding.

Runs last, in the time that is left, where torch is installed and nobody spelled distillation out. In come the trials so far and what pruning measured; out come
trials of whole recipes with ``distill`` in them. A training of few steps comes first; only where it brought the candidate nearer to the budget, and the clock leaves room for one four times
as long, does that follow: so every recipe names its number of steps and gives the same again, and the best so far is always whole. Each is judged on calibration samples first,
which it was taught on in part; what is right there is attempted like any other candidate, on the eval samples. What is beyond the reach of minutes is not taught at all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from edgeopt.errors import CandidateError
from edgeopt.records import Quality, Recipe, Scalar, Step, Trial
from edgeopt.stages import asked, select
from edgeopt.stages.attempt import Workbench, hurried
from edgeopt.stages.events import staged
from edgeopt.stages.pruning import LEAST, MARGIN, MOST, Pruning
from edgeopt.stages.rehearsal import Rehearsal

TECHNIQUE = "distill"
STEPS = (64, 256, 1024)
"""Of a training, each tried where the one before it gained and the time allows."""
_PATIENCE = 20
"""Looks without a gain: a short training has hardly begun to fall after the usual six."""
_LONGER = 4.5
"""The next training takes so many times as long: four times the steps, and a better look for their rate."""
_REACH = 4.0
"""A bound so many times beyond what is allowed is not won back: on real nets a few hundred steps took off a quarter of it."""
_WORTH = 0.9
"""A training has to leave the bound at less than this share of what it was, or a longer one is not tried."""
_FURTHER = 1.4
"""What is asked of pruning with distillation behind, over what the refit alone allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """The search's own ways to end a candidate, and what it knows of earlier ones."""

    attempt: Callable[[Recipe], Trial]
    refuse: Callable[[Recipe, str], Trial]
    known: Callable[[Recipe], bool]
    """Whether an earlier run of the job finished this recipe."""
    begin: Callable[[Recipe], None]
    """Told before a recipe is rehearsed, so that its training is shown under its own name."""
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One student: the steps before and behind its training."""

    before: tuple[Step, ...]
    after: tuple[Step, ...]
    settings: tuple[tuple[str, Scalar], ...] = ()

    def untaught(self) -> Recipe:
        return Recipe(steps=(*self.before, *self.after))

    def taught(self, steps: int) -> Recipe:
        taught = Step.of(TECHNIQUE, steps=steps, patience=_PATIENCE, **dict(self.settings))
        return Recipe(steps=(*self.before, taught, *self.after))


def refusal(bench: Workbench) -> str | None:
    """Why nothing is taught here, in one sentence; None where something may be."""
    if bench.evidence.synthetic or not bench.evidence.sample_count:
        return "no real samples were given, and a student learns from nothing else"
    if bench.target.compute_capability:
        return "what is taught is judged on this device's kernels, and this target's engines cannot run here"
    if bench.reference.taught:
        return "the planned recipes are taught already"
    return bench.passes[TECHNIQUE].refuse(bench.signature, bench.target)


def near_misses(trials: Iterable[Trial], bench: Workbench) -> list[Lesson]:
    """The static int8 that is least wrong and beyond the budget, if it gains more than what is within; one at most."""
    gains = [(trial, select.gain(trial.measurement, bench.goal)) for trial in trials if trial.measurement is not None]
    best = max((gain for trial, gain in gains if _admits(trial, bench)), default=1.0)
    near = [
        trial
        for trial, gain in gains
        if trial.recipe.steps
        and trial.recipe.steps[-1].technique == "quantize_static"
        and all(step.technique != TECHNIQUE for step in trial.recipe.steps)
        and bench.goal.max_drop < _bound(trial) <= _REACH * bench.goal.max_drop
        and gain > best * bench.goal.min_speedup
    ]
    if not near:
        return []
    *before, last = min(near, key=_bound).recipe.steps
    narrow = bool(dict(last.settings).get("reduced_range", False))
    settings = (("fake_quantize", "int8"), ("reduced_range", narrow))
    return [Lesson(before=tuple(before), after=(last,), settings=settings)]


def pruned_further(pruning: Pruning, reached: float | None) -> Lesson | None:
    """More than the share ``reached`` that the refit alone allows, or the least where it allows none; None where nothing would go."""
    recipe = pruning.recipe(LEAST if reached is None else min(MOST, reached * _FURTHER))
    if recipe is None or recipe == pruning.recipe(reached or 0.0):
        return None
    split = len(recipe.steps) - len(pruning.after)
    return Lesson(before=tuple(map(asked.before_distillation, recipe.steps[:split])), after=recipe.steps[split:])


def teach(lesson: Lesson, rehearsal: Rehearsal, doors: Doors, *, deadline_s: float) -> Iterator[Trial]:
    """Trials of ever longer trainings until one is right, no more is gained, or the time is over (``deadline_s``, monotonic)."""
    goal = rehearsal.bench.goal
    doors.begin(lesson.untaught())
    bound, words = _rehearsed(lesson.untaught(), rehearsal)
    if bound > _REACH * goal.max_drop:
        reason = words if math.isinf(bound) else f"{words}, beyond the reach of a training of minutes"
        yield doors.refuse(lesson.taught(STEPS[0]), f"not taught: {reason}")
        return
    for steps in STEPS:
        recipe, started_s = lesson.taught(steps), doors.clock()
        if not doors.known(recipe):
            doors.begin(recipe)
            with hurried(rehearsal.bench, deadline_s):
                now, words = _rehearsed(recipe, rehearsal)
            is_last = now >= _WORTH * bound or doors.clock() + _LONGER * (doors.clock() - started_s) > deadline_s
            if now > MARGIN * goal.max_drop:
                yield doors.refuse(recipe, f"not timed: {words}")
                if is_last:
                    return
                bound = now
                continue
        trial = doors.attempt(recipe)
        yield trial
        if trial.measurement is not None:
            return


def _rehearsed(recipe: Recipe, rehearsal: Rehearsal) -> tuple[float, str]:
    """The bound of ``recipe`` on calibration samples, infinite where it fails, and the words for it."""
    try:
        with staged("rehearse", rehearsal.bench.emit):
            found: Quality = rehearsal.quality(recipe)
    except CandidateError as error:
        return math.inf, error.refusal
    return found.ci95[1], f"{found.metric} may drop by up to {found.ci95[1]:.3g} on {found.samples} calibration samples"


def _admits(trial: Trial, bench: Workbench) -> bool:
    return trial.measurement is not None and select.shortcoming(trial.measurement, bench.goal) is None


def _bound(trial: Trial) -> float:
    return trial.measurement.quality.ci95[1] if trial.measurement is not None else float("inf")
