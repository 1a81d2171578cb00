"""Mixed precision: the fewest and cheapest layers kept in float so that a quantization meets the quality budget.

Runs after the fixed recipes were tried. It takes the quantization that is fast enough and least wrong, ranks its layers
by damage per time (``sensitivity``), and bisects how many of the worst must stay float, judged on calibration samples
through the target's kernels. Only then is a candidate attempted like any other, on the eval samples. Anytime: what is
yielded is always a whole recipe, and ending early loses nothing but the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from edgeopt.errors import CandidateError
from edgeopt.protocols import Quantizer
from edgeopt.records import Recipe, Step, Trial
from edgeopt.stages import attempt, sensitivity
from edgeopt.stages.attempt import Workbench
from edgeopt.stages.events import staged
from edgeopt.stages.rehearsal import Rehearsal, spread_samples
from edgeopt.stages.sensitivity import Group

TECHNIQUES = ("quantize_static", "quantize_dynamic")
_BASES = 2
_SENSITIVITY_SAMPLES = 8
_SENSITIVITY_RUNS_S = 15.0
"""Inferences of one sensitivity scan take about this long: slow models get fewer samples, at least one."""
_MARGIN = 0.8
"""The calibration samples must be served better than the budget, for the eval samples will be a little worse."""
_RETRIES = 3
_STEP_BACK = 1.35
"""Each retry keeps this many times more groups in float."""


def bases(trials: Iterable[Trial], bench: Workbench) -> list[Trial]:
    """Quantizations worth repairing: faster than the original, and wrong by more than the budget; least wrong first."""
    goal = bench.goal
    worth = [
        trial
        for trial in trials
        if trial.measurement is not None
        and trial.recipe.steps
        and trial.recipe.steps[-1].technique in TECHNIQUES
        and trial.measurement.quality.ci95[1] > goal.max_drop
        and (trial.measurement.speedup.value > goal.min_speedup or goal.objective != "latency")
    ]
    best: dict[str, Trial] = {}
    for trial in sorted(worth, key=_wrongness):
        best.setdefault(trial.recipe.steps[-1].technique, trial)
    return list(best.values())[:_BASES]


def search(
    base: Trial, rehearsal: Rehearsal, attempt_one: Callable[[Recipe], Trial], *, deadline_s: float
) -> Iterator[Trial]:
    """Trials of ``base``'s recipe with some layers in float, better ones later; ends at ``deadline_s`` (monotonic)."""
    bench = rehearsal.bench
    with staged("sensitivity", bench.emit):
        try:
            repair = _prepare(base, bench, rehearsal)
        except CandidateError:
            return
    ranked = sorted(repair.groups, key=lambda group: -group.worth)
    kept = _fewest(repair, ranked, deadline_s)
    for _ in range(_RETRIES):
        if kept is None or kept >= len(ranked) or time.monotonic() > deadline_s:
            return
        trial = attempt_one(repair.recipe(ranked[:kept]))
        yield trial
        if trial.measurement is not None and trial.measurement.quality.ci95[1] <= bench.goal.max_drop:
            return
        kept = max(kept + 1, round(kept * _STEP_BACK))


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """One quantization under repair."""

    bench: Workbench
    prefix: tuple[Step, ...]
    step: Step
    groups: tuple[Group, ...]
    rehearsal: Rehearsal

    def recipe(self, kept: Iterable[Group]) -> Recipe:
        """The recipe with the layers of ``kept`` in float, named in graph order."""
        names = {name for group in kept for name in group.layers}
        ordered = [name for group in self.groups for name in group.layers if name in names]
        return Recipe(steps=(*self.prefix, sensitivity.skipping(self.step, ordered)))


def _prepare(base: Trial, bench: Workbench, rehearsal: Rehearsal) -> Repair:
    *prefix, step = base.recipe.steps
    model = attempt.compress(Recipe(steps=tuple(prefix)), bench)
    float_artifact = attempt.compile_recipe(model, Recipe(steps=tuple(prefix)), bench)
    seconds = bench.runtime.node_seconds(Path(float_artifact.path), bench.timed, threads=bench.target.threads)
    few = replace(bench.evidence, calibration=spread_samples(bench, _affordable(bench)))
    quantizer = cast("Quantizer", bench.passes[step.technique])
    found = sensitivity.groups(model, step, quantizer, few, seconds)
    return Repair(
        bench=bench,
        prefix=tuple(prefix),
        step=step,
        groups=tuple(found),
        rehearsal=rehearsal,
    )


def _affordable(bench: Workbench) -> int:
    """How many samples a scan over all groups may run."""
    measured = bench.baseline.measurement
    once_s = measured.latency.p50_ms / 1e3 if measured is not None else 0.0
    runs = _SENSITIVITY_RUNS_S / max(once_s, 1e-6) / sensitivity.MOST_GROUPS
    return max(1, min(_SENSITIVITY_SAMPLES, int(runs)))


def _fewest(repair: Repair, ranked: list[Group], deadline_s: float) -> int | None:
    """How many of the ranked groups must stay float; None where not even all but one suffice in time."""
    low, high = 0, len(ranked)
    while high - low > 1 and time.monotonic() < deadline_s:
        middle = (low + high) // 2
        if _is_right(repair, repair.recipe(ranked[:middle])):
            high = middle
        else:
            low = middle
    return high if high < len(ranked) else None


def _is_right(repair: Repair, recipe: Recipe) -> bool:
    try:
        found = repair.rehearsal.quality(recipe)
    except CandidateError:
        return False
    return found.ci95[1] <= _MARGIN * repair.bench.goal.max_drop


def _wrongness(trial: Trial) -> float:
    return trial.measurement.quality.ci95[1] if trial.measurement is not None else float("inf")
