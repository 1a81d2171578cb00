"""Judging on calibration samples: a cheap first opinion that leaves the eval samples untouched.

Choosing among variants by the samples that later judge the winner would make the verdict too good; so variants and repairs
are compared here, and only what is attempted for good meets the eval samples.
"""

from __future__ import annotations

from dataclasses import replace

from edgeopt.records import Quality, Recipe
from edgeopt.stages import attempt, quality, reference
from edgeopt.stages.attempt import Workbench
from edgeopt.stages.data import Subset
from edgeopt.stages.reference import Reference

_SAMPLES = 64


class Rehearsal:
    """The original's outputs on some calibration samples, made when first asked for."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self._reference: Reference | None = None

    def quality(self, recipe: Recipe) -> Quality:
        """How right ``recipe`` is on calibration samples; raises :class:`~edgeopt.errors.CandidateError`."""
        bench = self.bench
        # accuracy needs labels, and calibration samples have none
        goal = replace(bench.goal, metric="auto") if bench.goal.metric == "accuracy" else bench.goal
        judged = self._made()
        artifact = attempt.compile_recipe(attempt.compress(recipe, bench), recipe, bench)
        with bench.start(artifact) as candidate:
            return quality.judge(judged, candidate.run, goal, seed=bench.seed)

    def _made(self) -> Reference:
        if self._reference is None:
            bench = self.bench
            folder = bench.folder / "rehearsal"
            folder.mkdir(exist_ok=True)
            samples = spread_samples(bench, _SAMPLES)
            made = reference.make(bench.original, samples, bench.signature, bench.ends, folder)
            self._reference = replace(made, forms=bench.reference.forms)
        return self._reference


def spread_samples(bench: Workbench, most: int) -> Subset:
    """At most ``most`` of the calibration samples, evenly spread, or the first ones of a model with states."""
    samples = bench.evidence.calibration
    chosen = reference.spread(len(samples), most, ordered=bool(bench.signature.states))
    return Subset(samples, chosen, samples.origin.origin)
