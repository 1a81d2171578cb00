"""Mixed precision: the fewest and cheapest layers kept in float so that a quantization meets the quality budget.

Runs after the fixed recipes were tried. It takes the quantization that is fast enough and least wrong, ranks its layers
by damage per time (``sensitivity``), and bisects how many of the worst must stay float, judged on calibration samples
through the target's kernels. Those layers are then offered what lies between integers and float (``ladder``). Only then is a candidate
attempted like any other, on the eval samples. Anytime: what is yielded is always a whole recipe, and ending early loses nothing but
the rest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgeopt.errors import CandidateError
from edgeopt.orders import Event
from edgeopt.policy import Goal
from edgeopt.protocols import Quantizer
from edgeopt.records import Measurement, Recipe, Step, Trial
from edgeopt.stages import attempt, ladder, select, sensitivity
from edgeopt.stages.attempt import Workbench
from edgeopt.stages.events import staged
from edgeopt.stages.ladder import Request
from edgeopt.stages.rehearsal import Rehearsal, spread_samples
from edgeopt.stages.sensitivity import Group

if TYPE_CHECKING:
    from edgeopt.protocols import Model

TECHNIQUES = ("quantize_static", "quantize_dynamic")
_ROUNDING = ("round_weights", "learn_rounding")
"""Passes that put weights on the grid of a quantization behind them."""
_BASES = 2
_HEADROOM = 1.02
"""A repair starts this much above what is right already, for the layers that it keeps in float will cost something."""
_SENSITIVITY_SAMPLES = 8
_SENSITIVITY_RUNS_S = 15.0
"""Inferences of one sensitivity scan take about this long: slow models get fewer samples, at least one."""
_MARGIN = 0.8
"""The calibration samples must be served better than the budget, for the eval samples will be a little worse."""
_RETRIES = 3
_STEP_BACK = 1.35
"""Each retry keeps this many times more groups in float."""


def bases(trials: Sequence[Trial], bench: Workbench) -> list[Trial]:
    """Quantizations worth repairing, least wrong first: better than the original, wrong by more than the budget, and able to win.

    Layers in float make nothing faster or smaller: what is right already and as good as a wrong one cannot lose to its repair.
    """
    goal = bench.goal
    right = [
        trial.measurement
        for trial in trials
        if trial.measurement is not None and trial.recipe.steps and select.shortcoming(trial.measurement, goal) is None
    ]
    reached = max((_reach(measurement, goal) for measurement in right), default=0.0)
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
        if trial.measurement is not None and _reach(trial.measurement, goal) > _HEADROOM * reached:
            best.setdefault(trial.recipe.steps[-1].technique, trial)
    if worth and not best:
        words = f"no layers are kept in float: a candidate that is right has reached {reached:.2f} times already"
        bench.emit(Event(kind="note", fields={"text": words}))
    return list(best.values())[:_BASES]


def _reach(measurement: Measurement, goal: Goal) -> float:
    """What the objective gained, at its best guess."""
    if goal.objective == "latency":
        return measurement.speedup.value
    return measurement.bytes_ratio if goal.objective == "size" else measurement.memory_ratio


def search(
    base: Trial,
    rehearsal: Rehearsal,
    attempt_one: Callable[[Recipe], Trial],
    refuse: Callable[[Recipe, str], Trial],
    *,
    deadline_s: float,
) -> Iterator[Trial]:
    """Trials of ``base``'s recipe with some layers in float or between; ends at ``deadline_s`` (monotonic).

    ``refuse`` makes a trial out of a recipe that is not worth one, and the reason.
    """
    bench = rehearsal.bench
    with staged("sensitivity", bench.emit):
        try:
            repair = _prepare(base, bench, rehearsal)
        except CandidateError:
            return
    ranked = sorted(repair.groups, key=lambda group: -group.worth)
    kept = _fewest(repair, ranked, deadline_s)
    if kept is not None and time.monotonic() < deadline_s:
        yield from _between(repair, ranked[:kept], attempt_one, refuse)
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
    model: Model
    """What the step is applied to, its weights not rounded yet."""

    def recipe(self, kept: Iterable[Group]) -> Recipe:
        """The recipe with the layers of ``kept`` in float, named in graph order."""
        names = {name for group in kept for name in group.layers}
        ordered = [name for group in self.groups for name in group.layers if name in names]
        return Recipe(steps=(*self.before(ordered), sensitivity.skipping(self.step, ordered)))

    def before(self, floats: Sequence[str]) -> tuple[Step, ...]:
        """The steps before the quantization; what stays float is not rounded to the integers' grid either."""
        return tuple(
            sensitivity.skipping(step, floats) if step.technique in _ROUNDING and floats else step
            for step in self.prefix
        )


def _prepare(base: Trial, bench: Workbench, rehearsal: Rehearsal) -> Repair:
    *prefix, step = base.recipe.steps
    # Rounded weights lie on the grid already: against them the quantization would seem to cost next to nothing.
    unrounded = Recipe(steps=tuple(each for each in prefix if each.technique not in _ROUNDING))
    model = attempt.compress(unrounded, bench)
    float_artifact = attempt.compile_recipe(model, unrounded, bench)
    seconds = bench.runtime.node_seconds(Path(float_artifact.path), bench.timed, threads=bench.target.threads)
    quantizer = cast("Quantizer", bench.passes[step.technique])
    affordable = _affordable(bench, min(len(quantizer.layers(model)), sensitivity.MOST_GROUPS))
    few = replace(bench.evidence, calibration=spread_samples(bench, affordable))
    found = sensitivity.groups(model, step, quantizer, few, seconds)
    return Repair(
        bench=bench,
        prefix=tuple(prefix),
        step=step,
        groups=tuple(found),
        rehearsal=rehearsal,
        model=model,
    )


def _affordable(bench: Workbench, layers: int) -> int:
    """How many samples a scan over so many layers may run: all, half and a quarter of them on the first, the second and the others."""
    measured = bench.baseline.measurement
    once_s = measured.latency.p50_ms / 1e3 if measured is not None else 0.0
    runs = _SENSITIVITY_RUNS_S / max(once_s, 1e-6) / max(1, layers)
    return max(1, min(_SENSITIVITY_SAMPLES, 2 + math.floor((runs - 1.5) / 0.25)))


def _between(
    repair: Repair,
    kept: Sequence[Group],
    attempt_one: Callable[[Recipe], Trial],
    refuse: Callable[[Recipe, str], Trial],
) -> Iterator[Trial]:
    """Trials with the ``kept`` groups, or the less damaging half of them, on a rung between; refused ones say what was measured."""
    plain = repair.recipe(kept)
    for reason in ladder.no_kernels(repair.bench.target):
        repair.bench.emit(Event(kind="note", fields={"text": reason}))
    for rung in ladder.rungs():
        for floats, middle in (((), kept), (kept[: len(kept) // 2], kept[len(kept) // 2 :])):
            request = Request(
                model=repair.model,
                step=repair.step,
                floats=_names(floats),
                middle=_names(middle),
                bench=repair.bench,
            )
            try:
                offer = ladder.offer(rung, request, repair.before(_names(kept)), plain)
            except CandidateError:
                break
            if offer is None:
                break
            if not offer.pays:
                yield refuse(offer.recipe, offer.reason)
                break
            if _is_right(repair, offer.recipe):
                yield attempt_one(offer.recipe)
                break


def _names(groups: Iterable[Group]) -> tuple[str, ...]:
    return tuple(name for group in groups for name in group.layers)


def _fewest(repair: Repair, ranked: list[Group], deadline_s: float) -> int | None:
    """How many of the ranked groups must stay float; None where not even all but one suffice in time.

    A bisection that begins where the damages add up to the budget: they seldom add up exactly, but the answer lies near.
    """
    low, high, step = 0, len(ranked), max(1, len(ranked) // 8)
    middle = _foreseen(repair, ranked)
    while high - low > 1 and time.monotonic() < deadline_s:
        middle = min(max(middle, low + 1), high - 1)
        if _is_right(repair, repair.recipe(ranked[:middle])):
            high, middle = middle, middle - step
        else:
            low, middle = middle, middle + step
        step *= 2
        if low > 0 and high < len(ranked):
            middle = (low + high) // 2
    return high if high < len(ranked) else None


def _foreseen(repair: Repair, ranked: Sequence[Group]) -> int:
    """How many groups must stay float if noise-to-signal is what counts and the groups' damages add up."""
    left = sum(group.damage for group in ranked)
    for count, group in enumerate(ranked):
        if left <= _MARGIN * repair.bench.goal.max_drop:
            return count
        left -= group.damage
    return len(ranked)


def _is_right(repair: Repair, recipe: Recipe) -> bool:
    try:
        found = repair.rehearsal.quality(recipe)
    except CandidateError:
        return False
    return found.ci95[1] <= _MARGIN * repair.bench.goal.max_drop


def _wrongness(trial: Trial) -> float:
    return trial.measurement.quality.ci95[1] if trial.measurement is not None else float("inf")
