"""Try candidates in order until the budget ends: first the planned recipes, then repairs of what came close.

Each attempt goes through the cache, so a restart goes on after the last finished trial. The first recipe is always
tried: without it there would be no cleaned-up original to fall back on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from edgeopt import records, wire
from edgeopt.records import Event, Recipe, Trial
from edgeopt.stages import attempt, mixed
from edgeopt.stages.attempt import Workbench
from edgeopt.stages.cache import CandidateCache


class Search:
    """The trials of one job."""

    def __init__(
        self,
        bench: Workbench,
        cache: CandidateCache,
        limits: records.Search,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bench = bench
        self._cache = cache
        self._budget_s = limits.budget_s
        self._clock = clock
        self._started_s = clock()
        self._tried = 0
        self._planned = 0

    def run(self, recipes: Iterable[Recipe]) -> list[Trial]:
        """Trials of the planned recipes and of the repairs that they call for."""
        trials = self.fixed(recipes)
        deadline_s = self._started_s + self._budget_s
        for base in mixed.bases(trials, self._bench):
            if self._clock() < deadline_s:
                trials.extend(mixed.search(base, self._bench, self._attempt, deadline_s=deadline_s))
        return trials

    def fixed(self, recipes: Iterable[Recipe]) -> list[Trial]:
        """Trials of these recipes and no others."""
        wanted = list(recipes)
        self._planned += len(wanted)
        return [self._attempt(recipe) for recipe in wanted]

    def _attempt(self, recipe: Recipe) -> Trial:
        self._tried += 1
        self._planned = max(self._planned, self._tried)
        progress = {
            "ratio": (self._tried - 1) / self._planned,
            "trial": self._tried,
            "trials": self._planned,
            "text": recipe.label,
        }
        self._bench.emit(Event(kind="progress", fields=progress))
        trial = self._cache.find(recipe)
        self._bench.emit(Event(kind="cache", fields={"result": "hit" if trial else "miss"}))
        if trial is None:
            if self._tried > 1 and self._clock() - self._started_s > self._budget_s:
                return Trial(recipe=recipe, refused=f"the budget of {self._budget_s:g} s was used up before its turn")
            trial = attempt.attempt(recipe, self._bench)
            self._cache.keep(trial)
        outcome = "refused" if trial.measurement is None else "measured"
        self._bench.emit(Event(kind="candidate", fields={"outcome": outcome, "trial": wire.encode(trial)}))
        return trial
