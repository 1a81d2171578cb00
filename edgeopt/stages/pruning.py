"""How much to prune, and where: found by measuring, after the planned recipes were tried.

Takes the best candidate so far and puts ``prune_channels`` behind its clean-up. What a family of channels costs is the time that this device
spends in its layers (for objective size: its bytes), what it is worth is what its readers lose by the second-order criterion; ``allotment``
makes counts of the two. How far to go is bisected, judged on calibration samples through the target's kernels; only then is a candidate
attempted like any other, on the eval samples. Where even the smallest step worth its time is wrong, the report says by how much.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeopt import device
from edgeopt.calibrate import importance, readers, removal
from edgeopt.calibrate.importance import Ranking, Scores
from edgeopt.calibrate.removal import PruneScheme
from edgeopt.calibrate.shapes import observed_shapes
from edgeopt.errors import CandidateError, PassFailed
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
CLEAN_UP = ("tidy", "cast_fp32", "fold_batch_norm")
_DEEPEST = 0.5
"""Share of a family that may go at most: beyond it the ranking costs more than such a candidate is worth."""
_CRITERION = "obs"
"""What an allotment goes by is what the recipe removes by."""
LEAST, MOST = 0.1, 0.6
"""Shares of the layers' cost that pruning may be asked to save: less is not worth the minutes that it takes."""
SMALLEST = 0.05
"""Asked for after all where ``LEAST`` narrowly fails."""
_NARROWLY = 2.0
"""Times what is allowed: the units that cost least go first, so half of the gain leaves half of the damage at most."""
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
        # what stands in the recipe also stands in the manifest: which rule chose the units, and which end of it
        counts = json.dumps(dict(sorted(removed.items())))
        step = Step.of(TECHNIQUE, criterion=_CRITERION, direction="low", removed=counts)
        return Recipe(steps=(*self.before, step, *self.after))

    def rehearsed(self, recipe: Recipe) -> tuple[float, str]:
        """How wrong ``recipe`` may be on calibration samples, over what is allowed with a margin (1 is just right), and the words for it."""
        try:
            found = self.rehearsal.quality(recipe)
        except CandidateError as error:
            return math.inf, error.refusal
        words = f"{found.metric} may drop by up to {found.ci95[1]:.3g} on {found.samples} calibration samples"
        return found.ci95[1] / (MARGIN * self.bench.goal.max_drop), f"not timed: {words}"


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
            shares=_shares(model, costs, bench),
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
    floor = yield from _smallest(pruning, refuse, deadline_s)
    if floor is None:
        return None
    share = _furthest(pruning, deadline_s) if floor == LEAST else floor
    for _ in range(_RETRIES):
        recipe = pruning.recipe(share)
        if recipe is None:
            break
        # owed even when the rehearsals took all the time
        trial = attempt_one(recipe)
        yield trial
        if _is_within(trial, pruning.bench):
            return share
        if share <= floor or time.monotonic() > deadline_s:
            break
        share = max(floor, share * _STEP_BACK)
    return None


def _smallest(
    pruning: Pruning, refuse: Callable[[Recipe, str], Trial], deadline_s: float
) -> Generator[Trial, None, float | None]:
    """``LEAST`` where it rehearses right, ``SMALLEST`` where that does and ``LEAST`` narrowly fails; None where nothing does."""
    before: Recipe | None = None
    for share in (LEAST, SMALLEST):
        recipe = pruning.recipe(share)
        if recipe is None or recipe == before:  # steps of units are as coarse as they are
            return None
        wrong, words = pruning.rehearsed(recipe)
        if wrong <= 1.0:
            return share
        yield refuse(recipe, words)
        if wrong > _NARROWLY or time.monotonic() > deadline_s:
            return None
        before = recipe
    return None


def _furthest(pruning: Pruning, deadline_s: float) -> float:
    """The largest share that rehearses right, to a bisection's width; ``LEAST`` is known to."""
    low, high = LEAST, MOST
    for _ in range(_BISECTIONS):
        if time.monotonic() > deadline_s:
            break
        middle = (low * high) ** 0.5
        recipe = pruning.recipe(middle)
        if recipe is not None and pruning.rehearsed(recipe)[0] <= 1.0:
            low = middle
        else:
            high = middle
    return low


def _is_within(trial: Trial, bench: Workbench) -> bool:
    return trial.measurement is not None and trial.measurement.quality.ci95[1] <= bench.goal.max_drop


# ---------------------------------------------------------------- what a family costs
def _costs(model: Model, recipe: Recipe, bench: Workbench) -> tuple[dict[str, float], float]:
    """By a weight's name what the layer that reads it costs, and what all layers do."""
    layer_of = {
        str(value.name): quantizable.layer_name(node)
        for node in model.graph
        for value in (node.inputs[place] for place in _WEIGHTS.get(node.op_type, ()))
        if value is not None and tensors.constant(value) is not None
    }
    if bench.goal.objective != "latency":
        sizes = {name: _bytes(model, name) for name in layer_of}
        return sizes, sum(sizes.values())
    artifact = attempt.compile_recipe(model, recipe, bench)
    seconds = bench.runtime.node_seconds(Path(artifact.path), bench.timed, threads=bench.target.threads)
    layers = list(dict.fromkeys(layer_of.values()))
    # rounded, so that clocks do not decide ties: the same model should give the same recipe
    parts = sensitivity.shares(sensitivity.layer_seconds(model, layers, seconds))
    return {name: parts[layer] for name, layer in layer_of.items()}, sum(parts.values())


def _bytes(model: Model, name: str) -> float:
    value = model.graph.initializers.get(name)
    tensor = tensors.constant(value) if value is not None else None
    return float(tensor.nbytes) if tensor is not None else 0.0


def _family_cost(family: Family, costs: Mapping[str, float]) -> float:
    """What all units of the family cost together: a layer counts once for its rows and once for its columns."""
    weights = {(slot.constant, slot.axis) for slot in family.slots}
    return sum(costs.get(constant, 0.0) for constant, _ in weights)


# ---------------------------------------------------------------- what a family is worth
def _shares(model: Model, costs: Mapping[str, float], bench: Workbench) -> tuple[Share, ...]:
    """The families that may give something up; raises :class:`~edgeopt.errors.PassFailed` where no family may, with the reason."""
    scheme = PruneScheme(ratio=_DEEPEST, families="inner").fitted(bench.target)
    plain = shrink.unshared(model)  # as the pass itself does: the names of the families must be the same
    families = removal.candidates(groups.find(plain, observed_shapes(model, bench.evidence)).families, scheme)
    depths = removal.depths(families, scheme)
    scores = importance.scores(plain, families, Ranking(criterion=_CRITERION, depths=depths), bench.evidence)
    steps = {family.name: removal.block(family, scheme) for family in families}
    found = tuple(
        Share(
            name=family.name,
            units=family.units,
            step=steps[family.name],
            cost=_family_cost(family, costs),
            damages=_damages(scores[family.name], steps[family.name], depths[family.name]),
        )
        for family in families
        if family.name in scores and depths[family.name] >= steps[family.name]
    )
    if not found:
        reasons = (readers.unjudged(plain, family, _CRITERION) for family in families if family.name not in scores)
        why = next(
            (reason for reason in reasons if reason), "none has units enough" if families else "no layer has any"
        )
        raise PassFailed(
            f"none of {len(families)} families of channels, heads or neurons inside can be pruned: {why}",
            hint="Spell out techniques.prune with another criterion, or switch it off.",
        )
    return found


def _damages(scores: Scores, step: int, depth: int) -> tuple[float, ...]:
    """Damage to the readers once 1, 2, 3 ... steps of the least important units are gone, relative to their outputs."""
    summed = np.cumsum(np.sort(scores))
    return tuple(float(summed[count - 1]) for count in range(step, depth + 1, step))
