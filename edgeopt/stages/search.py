"""Try candidates in order until the budget ends: the planned recipes, repairs of what came close, pruning of the best, then distillation.

Each attempt goes through the cache, so a restart goes on after the last finished trial. The first recipe is always
tried: without it there would be no cleaned-up original to fall back on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from edgeopt import policy, wire
from edgeopt.errors import CandidateError, CompileFailed, MeasureFailed, PassFailed
from edgeopt.orders import Event
from edgeopt.records import Recipe, Step, Trial
from edgeopt.stages import attempt, bits, contest, frailty, mixed, planner, pruning, recovery
from edgeopt.stages.attempt import Workbench
from edgeopt.stages.cache import CandidateCache
from edgeopt.stages.events import staged, tell_trial
from edgeopt.stages.rehearsal import Rehearsal

_ERRORS = (CandidateError, PassFailed, CompileFailed, MeasureFailed)
_FAILURES = ("unexpected: ", *(f"{error.code}: " for error in _ERRORS))
"""How the reason of a trial begins that ended with an error; see :func:`~edgeopt.stages.attempt.attempt`."""


_PLANNED_SHARE = 0.7
"""Of the budget, for the planned recipes: what is found out by measuring must get its turn too."""
_TEACHING_SHARE = 0.3
"""Of the budget, for a training that was not asked for."""
_SHORTEST_S = 15.0
"""Loading torch and finding a learning rate takes about as long: with less time nothing would be learned."""
_FOR_TRAINING = 0.85
"""Of the time that is left: what was taught has to be measured as well."""
_PRUNING_SHARE = 0.3
"""Of the budget, for pruning: on lean networks it gains a few percent, and somebody waits for the version."""


class Search:
    """The trials of one job."""

    def __init__(
        self,
        bench: Workbench,
        cache: CandidateCache,
        limits: policy.Search,
        *,
        techniques: policy.Techniques | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bench = bench
        self._cache = cache
        self._budget_s = limits.budget_s
        self._trials = limits.trials
        self._turn_s = self._budget_s
        self._techniques = techniques or policy.Techniques()
        self._clock = clock
        self._started_s = clock()
        self._tried = 0
        self._planned = 0
        self.frailty: list[dict[str, Any]] = []
        """What each family of channels can give up; empty where pruning was not searched for."""
        self._further: recovery.Lesson | None = None
        """What pruning would go on with if distillation stood behind it."""

    def run(self, recipes: Iterable[Recipe]) -> list[Trial]:
        """Trials of the planned recipes and of the repairs that they call for."""
        families = contest.families(recipes)
        self._turn_s = self._budget_s * (_PLANNED_SHARE if self._may_prune() else 1.0)
        self._planned += sum(len(family) for family in families)
        rehearsal = Rehearsal(self._bench)
        trials: list[Trial] = []
        packed = {index for index, family in enumerate(families) if _packs(family[0])}
        last_packed = next((index for index in sorted(packed) if index + 1 not in packed), None)
        for index, family in enumerate(families):
            trials.extend(self._best_of(family, rehearsal))
            if index == last_packed:
                trials.extend(self._packed(trials, rehearsal))
        self._turn_s = self._budget_s
        deadline_s = self._started_s + self._budget_s
        for base in mixed.bases(trials, self._bench):
            if self._clock() < deadline_s:
                trials.extend(mixed.search(base, rehearsal, self._attempt_allowed, self._lost, deadline_s=deadline_s))
        trials.extend(self._pruned(trials, rehearsal, deadline_s))
        trials.extend(self._taught(trials, rehearsal, deadline_s))
        return trials

    def _may_prune(self) -> bool:
        return self._techniques.prune == "auto" and self._trials is None and pruning.refusal(self._bench) is None

    def _packed(self, trials: Sequence[Trial], rehearsal: Rehearsal) -> Iterator[Trial]:
        """Trials with as few bits a weight as are right, where bytes are the goal and the operator allows weights to be packed."""
        first = next((trial.recipe.steps for trial in trials if _packs(trial.recipe)), None)
        enough = self._trials is not None and self._tried >= self._trials
        deadline_s = self._started_s + self._budget_s * (_PLANNED_SHARE if self._may_prune() else 1.0)
        if first is None or enough or self._clock() > deadline_s or bits.refusal(self._bench) is not None:
            return
        yield from bits.search(first[:-1], rehearsal, self._attempt_owed, self._lost, deadline_s=deadline_s)

    def _pruned(self, trials: Sequence[Trial], rehearsal: Rehearsal, deadline_s: float) -> Iterator[Trial]:
        """Trials that prune the best so far; a model in which nothing can go is one refused trial with the reason."""
        enough = self._trials is not None and self._tried >= self._trials
        if self._techniques.prune != "auto" or enough or self._clock() > deadline_s:
            return
        base = pruning.base(trials, self._bench)
        if base is None:
            return
        started_s = self._clock()
        reason = pruning.refusal(self._bench)
        if reason is None:
            latest_s = min(deadline_s, started_s + _PRUNING_SHARE * self._budget_s)
            with attempt.hurried(self._bench, latest_s):
                try:
                    prepared = pruning.prepare(base, rehearsal)
                except CandidateError as error:
                    reason = error.refusal
                else:
                    self.frailty = frailty.rows(prepared.shares, prepared.whole)
                    reached = yield from pruning.search(prepared, self._attempt_owed, self._lost, deadline_s=latest_s)
                    self._further = recovery.pruned_further(prepared, reached)
                    return
        yield self._lost(Recipe(steps=(*pruning.clean_up(base), Step.of(pruning.TECHNIQUE))), reason)

    def _taught(self, trials: Sequence[Trial], rehearsal: Rehearsal, deadline_s: float) -> Iterator[Trial]:
        """Trials with distillation in them, in the time that is left: int8 that just missed, then pruning that goes further."""
        if self._techniques.distill != "auto" or recovery.refusal(self._bench) is not None:
            return
        lessons = recovery.near_misses(trials, self._bench)
        lessons += [self._further] if self._further is not None else []
        doors = recovery.Doors(
            attempt=self._attempt,
            refuse=self._lost,
            known=lambda recipe: self._cache.find(recipe) is not None,
            begin=lambda recipe: self._show(recipe, self._tried + 1),
            clock=self._clock,
        )
        now_s = self._clock()
        end_s = now_s + min(_FOR_TRAINING * (deadline_s - now_s), _TEACHING_SHARE * self._budget_s)
        for number, lesson in enumerate(lessons):
            enough = self._trials is not None and self._tried >= self._trials
            left_s = end_s - self._clock()
            if enough or left_s < _SHORTEST_S:
                return
            latest_s = self._clock() + left_s / (len(lessons) - number)
            yield from recovery.teach(lesson, rehearsal, doors, deadline_s=latest_s)

    def fixed(self, recipes: Iterable[Recipe]) -> list[Trial]:
        """Trials of these recipes and no others."""
        wanted = list(recipes)
        self._planned += len(wanted)
        return [self._attempt(recipe) for recipe in wanted]

    def _best_of(self, family: list[Recipe], rehearsal: Rehearsal) -> list[Trial]:
        """Trials of recipes that run the same kernels: only the one that is least wrong in rehearsal is measured."""
        unknown = [recipe for recipe in family if self._cache.find(recipe) is None]
        losers: dict[Recipe, str] = {}
        if len(unknown) > 1 and not self._is_over():
            with staged("rehearse", self._bench.emit):
                losers = contest.losers(unknown, rehearsal, is_over=self._is_over)
        attempt_one = self._attempt_owed if losers else self._attempt
        return [self._lost(recipe, losers[recipe]) if recipe in losers else attempt_one(recipe) for recipe in family]

    def _lost(self, recipe: Recipe, reason: str) -> Trial:
        self._tried += 1
        trial = Trial(recipe=recipe, refused=reason)
        self._cache.keep(trial)
        self._tell(trial)
        return trial

    def _is_over(self) -> bool:
        return self._tried > 0 and self._clock() - self._started_s > self._turn_s

    def _attempt_owed(self, recipe: Recipe) -> Trial:
        """Attempt what rehearsals found right, whatever time they took: else they were for nothing."""
        return self._attempt(recipe, over=False)

    def _attempt(self, recipe: Recipe, *, over: bool | None = None) -> Trial:
        over = self._is_over() if over is None else over
        self._tried += 1
        self._show(recipe, self._tried)
        trial = self._cache.find(recipe)
        self._bench.emit(Event(kind="cache", fields={"result": "hit" if trial else "miss"}))
        if trial is None:
            if over:
                return Trial(
                    recipe=recipe,
                    refused=f"{self._turn_s:g} s of the budget of {self._budget_s:g} s were used up before its turn",
                )
            trial = attempt.attempt(recipe, self._bench)
            self._cache.keep(trial)
        self._tell(trial)
        return trial

    def _show(self, recipe: Recipe, number: int) -> None:
        """From here on passes tell how far they are under the name of ``recipe``."""
        self._planned = max(self._planned, number)
        self._progress(recipe, number, 0.0, "")
        self._bench.evidence.progress = partial(self._progress, recipe, number)

    def _attempt_allowed(self, recipe: Recipe) -> Trial:
        """A trial of a recipe that was not planned: with techniques that the operator may have left out."""
        reason = planner.forbidden(recipe, self._techniques)
        return self._attempt(recipe) if reason is None else self._lost(recipe, reason)

    def _progress(self, recipe: Recipe, number: int, share: float, words: str) -> None:
        """Say how far the trial of ``recipe`` is; a pass that goes on for long calls it with its own share and words."""
        tell_trial(self._bench.emit, recipe.label, (number, self._planned), share, words)

    def _tell(self, trial: Trial) -> None:
        self._bench.emit(Event(kind="candidate", fields={"outcome": _outcome(trial), "trial": wire.encode(trial)}))


def _packs(recipe: Recipe) -> bool:
    return bool(recipe.steps) and recipe.steps[-1].technique == bits.TECHNIQUE


def _outcome(trial: Trial) -> str:
    """A candidate that an error ended has failed; one that a rule or a rival ended is refused."""
    if trial.measurement is not None:
        return "measured"
    return "failed" if (trial.refused or "").startswith(_FAILURES) else "refused"
