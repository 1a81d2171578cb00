"""How much to prune, and where: found by measuring, after the planned recipes were tried.

Takes the best candidate so far and puts ``prune_channels`` behind its clean-up. What a family of channels costs is the time that this device
spends in its layers (for objective size: its bytes), what it is worth is what its readers lose by the second-order criterion; ``allotment``
makes counts of the two. How far to go is bisected, judged on calibration samples through the target's kernels; only then is a candidate
attempted like any other, on the eval samples. Where even the smallest step worth its time is wrong, the report says by how much.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeopt import device
from edgeopt.calibrate import importance, removal
from edgeopt.calibrate.importance import Ranking, Scores
from edgeopt.calibrate.removal import PruneScheme
from edgeopt.calibrate.shapes import observed_shapes
from edgeopt.errors import CandidateError
from edgeopt.graph import groups, quantizable, shrink, tensors
from edgeopt.graph.groups import Family
from edgeopt.records import Recipe, Step, Trial
from edgeopt.stages import attempt, select, sensitivity
from edgeopt.stages.allotment import Share, allot
from edgeopt.stages.attempt import Workbench
from edgeopt.stages.events import staged
from edgeopt.stages.rehearsal import Rehearsal

if TYPE_CHECKING:
    from edgeopt.protocols import Model

TECHNIQUE = "prune_channels"
CLEAN_UP = ("tidy", "fold_batch_norm")
_DEEPEST = 0.5
"""Share of a family that may go at most: beyond it the ranking costs more than such a candidate is worth."""
LEAST, MOST = 0.1, 0.6
"""Shares of the layers' cost that pruning may be asked to save: less is not worth the minutes that it takes."""
_BISECTIONS = 5
MARGIN = 0.8
"""The calibration samples must be served better than the budget, for the eval samples will be a little worse."""
_WEIGHTS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "MatMul": (0, 1), "LSTM": (1, 2), "GRU": (1, 2)}
"""Where the inputs lie whose size decides what the layer costs."""
_RETRIES = 2
_STEP_BACK = 0.75


def base(trials: Iterable[Trial], bench: Workbench) -> Trial | None:
    """The candidate that pruning starts from: the best of those that may win, or the cleaned-up original."""
    measured = [trial for trial in trials if trial.measurement is not None and trial.recipe.steps]
    admitted = [
        trial
        for trial in measured
        if trial.measurement is not None and select.shortcoming(trial.measurement, bench.goal) is None
    ]
    if admitted:
        return max(admitted, key=lambda trial: select.rank(trial, bench.goal))
    return next((trial for trial in measured if all(step.technique in CLEAN_UP for step in trial.recipe.steps)), None)


def refusal(bench: Workbench) -> str | None:
    """Why nothing is pruned here, in one sentence; None where something may be."""
    if bench.evidence.synthetic or not bench.evidence.sample_count:
        return "no real samples were given, and without them a pruned model may not win"
    if bench.target.compute_capability or not device.is_here(bench.target):
        return (
            "what pruning gains is measured, and what this target takes cannot be timed here; "
            "settings of techniques.prune, such as ratio: 0.3, are tried all the same"
        )
    return bench.passes[TECHNIQUE].refuse(bench.signature, bench.target)


def clean_up(trial: Trial) -> tuple[Step, ...]:
    """The steps of ``trial`` that come before pruning."""
    kept = sum(step.technique in CLEAN_UP for step in trial.recipe.steps)
    return trial.recipe.steps[:kept]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """One recipe with pruning put behind its clean-up."""

    bench: Workbench
    rehearsal: Rehearsal
    before: tuple[Step, ...]
    after: tuple[Step, ...]
    shares: tuple[Share, ...]
    whole: float
    """Cost of all layers, in the shares' unit."""

    def recipe(self, share: float) -> Recipe | None:
        """The recipe that saves ``share`` of the whole cost; None where nothing would go."""
        removed = allot(self.shares, share * self.whole)
        if not removed:
            return None
        step = Step.of(TECHNIQUE, removed=json.dumps(dict(sorted(removed.items()))))
        return Recipe(steps=(*self.before, step, *self.after))

    def shortcoming(self, recipe: Recipe) -> str | None:
        """Why ``recipe`` is not right enough on calibration samples, with a margin; None where it is."""
        try:
            found = self.rehearsal.quality(recipe)
        except CandidateError as error:
            return error.refusal
        if found.ci95[1] <= MARGIN * self.bench.goal.max_drop:
            return None
        return f"not timed: {found.metric} may drop by up to {found.ci95[1]:.3g} on {found.samples} calibration samples"


def prepare(base: Trial, rehearsal: Rehearsal) -> Pruning:
    """Measure what every family costs and is worth; raises :class:`~edgeopt.errors.CandidateError` where nothing can be pruned."""
    bench = rehearsal.bench
    before = clean_up(base)
    after = base.recipe.steps[len(before) :]
    with staged("sensitivity", bench.emit):
        model = attempt.compress(Recipe(steps=before), bench)
        costs, whole = _costs(model, Recipe(steps=before), bench)
        return Pruning(
            bench=bench,
            rehearsal=rehearsal,
            before=before,
            after=after,
            shares=tuple(_shares(model, costs, bench)),
            whole=whole,
        )


def search(
    pruning: Pruning,
    attempt_one: Callable[[Recipe], Trial],
    refuse: Callable[[Recipe, str], Trial],
    *,
    deadline_s: float,
) -> Generator[Trial, None, float | None]:
    """Trials, the furthest that rehearses right first, or one refused by ``refuse``; ends at ``deadline_s`` (monotonic).

    Returns the share that came out right on the eval samples too; None where none did.
    """
    least = pruning.recipe(LEAST)
    if least is None:
        return None
    if reason := pruning.shortcoming(least):
        yield refuse(least, reason)
        return None
    share = _furthest(pruning, deadline_s)
    for _ in range(_RETRIES):
        # owed even when the rehearsals took all the time
        trial = attempt_one(pruning.recipe(share) or least)
        yield trial
        if _is_within(trial, pruning.bench):
            return share
        if share <= LEAST or time.monotonic() > deadline_s:
            break
        share = max(LEAST, share * _STEP_BACK)
    return None


def _furthest(pruning: Pruning, deadline_s: float) -> float:
    """The largest share that rehearses right, to a bisection's width; ``LEAST`` is known to."""
    low, high = LEAST, MOST
    for _ in range(_BISECTIONS):
        if time.monotonic() > deadline_s:
            break
        middle = (low * high) ** 0.5
        recipe = pruning.recipe(middle)
        if recipe is not None and pruning.shortcoming(recipe) is None:
            low = middle
        else:
            high = middle
    return low


def _is_within(trial: Trial, bench: Workbench) -> bool:
    return trial.measurement is not None and trial.measurement.quality.ci95[1] <= bench.goal.max_drop


# ---------------------------------------------------------------- what a family costs
def _costs(model: Model, recipe: Recipe, bench: Workbench) -> tuple[dict[str, float], float]:
    """By a weight's name what the layer that reads it costs, and what all layers do."""
    readers = {
        str(value.name): quantizable.layer_name(node)
        for node in model.graph
        for value in (node.inputs[place] for place in _WEIGHTS.get(node.op_type, ()))
        if value is not None and tensors.constant(value) is not None
    }
    if bench.goal.objective != "latency":
        sizes = {name: _bytes(model, name) for name in readers}
        return sizes, sum(sizes.values())
    artifact = attempt.compile_recipe(model, recipe, bench)
    seconds = bench.runtime.node_seconds(Path(artifact.path), bench.timed, threads=bench.target.threads)
    layers = list(dict.fromkeys(readers.values()))
    # rounded, so that clocks do not decide ties: the same model should give the same recipe
    parts = sensitivity.shares(sensitivity.layer_seconds(model, layers, seconds))
    return {name: parts[layer] for name, layer in readers.items()}, sum(parts.values())


def _bytes(model: Model, name: str) -> float:
    value = model.graph.initializers.get(name)
    tensor = tensors.constant(value) if value is not None else None
    return float(tensor.nbytes) if tensor is not None else 0.0


def _family_cost(family: Family, costs: Mapping[str, float]) -> float:
    """What all units of the family cost together: a layer counts once for its rows and once for its columns."""
    weights = {(slot.constant, slot.axis) for slot in family.slots}
    return sum(costs.get(constant, 0.0) for constant, _ in weights)


# ---------------------------------------------------------------- what a family is worth
def _shares(model: Model, costs: Mapping[str, float], bench: Workbench) -> Iterator[Share]:
    scheme = PruneScheme(ratio=_DEEPEST, families="inner").fitted(bench.target)
    plain = shrink.unshared(model)  # as the pass itself does: the names of the families must be the same
    families = removal.candidates(groups.find(plain, observed_shapes(model, bench.evidence)).families, scheme)
    depths = removal.depths(families, scheme)
    scores = importance.scores(plain, families, Ranking(criterion="obs", depths=depths), bench.evidence)
    for family in families:
        step = removal.block(family, scheme)
        if family.name in scores and depths[family.name] >= step:
            yield Share(
                name=family.name,
                units=family.units,
                step=step,
                cost=_family_cost(family, costs),
                damages=_damages(scores[family.name], step, depths[family.name]),
            )


def _damages(scores: Scores, step: int, depth: int) -> tuple[float, ...]:
    """Damage to the readers once 1, 2, 3 ... steps of the least important units are gone, relative to their outputs."""
    summed = np.cumsum(np.sort(scores))
    return tuple(float(summed[count - 1]) for count in range(step, depth + 1, step))
