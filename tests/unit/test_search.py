from __future__ import annotations

from types import SimpleNamespace

from edgeopt import policy
from edgeopt.errors import PassFailed
from edgeopt.records import Recipe, Step
from edgeopt.stages.cache import CandidateCache
from edgeopt.stages.search import Search

RECIPES = [Recipe(steps=(Step.of(f"pass{number}"),)) for number in range(4)]


class FailingPass:
    """Every application takes a while on the clock and fails."""

    def __init__(self, clock: list[float], seconds: float, hint: str) -> None:
        self.clock, self.seconds, self.applied, self.hint = clock, seconds, 0, hint

    def apply(self, model, settings, evidence):
        self.applied += 1
        self.clock[0] += self.seconds
        raise PassFailed("no pattern matched", hint=self.hint)


def _search(tmp_path, *, seconds: float = 1.0, budget_s: float = 100.0, hint: str = ""):
    clock, events = [0.0], []
    failing = FailingPass(clock, seconds, hint)
    bench = SimpleNamespace(
        model=None,
        made={},
        passes={step.technique: failing for recipe in RECIPES for step in recipe.steps},
        evidence=SimpleNamespace(progress=None),
        emit=events.append,
        goal=policy.Goal(),
    )
    techniques = policy.Techniques(prune="off", distill="off")
    limits = policy.Search(budget_s=budget_s)
    search = Search(bench, CandidateCache(tmp_path, {}), limits, techniques=techniques, clock=lambda: clock[0])
    return search, failing, events


def test_every_recipe_is_tried_and_told_in_order(tmp_path) -> None:
    search, failing, events = _search(tmp_path)
    trials = search.run(RECIPES)
    assert [trial.recipe for trial in trials] == RECIPES
    assert {trial.refused for trial in trials} == {"pass-failed: no pattern matched"}
    assert failing.applied == len(RECIPES)
    told = [event.fields["trial"] for event in events if event.kind == "progress"]
    assert told == [1, 2, 3, 4]


def test_refused_candidate_tells_what_to_do_about_it_and_still_counts_as_failed(tmp_path) -> None:
    search, _, events = _search(tmp_path, hint="Leave it out.")
    trials = search.run(RECIPES[:1])
    assert trials[0].refused == "pass-failed: no pattern matched. Leave it out."
    (told,) = [event.fields for event in events if event.kind == "candidate"]
    assert (told["outcome"], told["trial"]["refused"]) == ("failed", trials[0].refused)


def test_budget_ends_the_search_but_never_the_first_trial(tmp_path) -> None:
    search, failing, _ = _search(tmp_path, seconds=60.0, budget_s=50.0)
    trials = search.run(RECIPES)
    assert failing.applied == 1
    assert "50 s of the budget of 50 s were used up" in str(trials[1].refused)


def test_what_the_budget_cut_off_is_tried_in_the_next_run(tmp_path) -> None:
    _search(tmp_path, seconds=60.0, budget_s=50.0)[0].run(RECIPES)
    search, failing, events = _search(tmp_path)
    search.run(RECIPES)
    assert failing.applied == len(RECIPES) - 1
    assert [event.fields["result"] for event in events if event.kind == "cache"] == ["hit", "miss", "miss", "miss"]


def test_an_error_is_told_as_failed_and_a_lost_rehearsal_as_refused(tmp_path) -> None:
    search, _, events = _search(tmp_path)
    search.run(RECIPES[:1])
    search._lost(RECIPES[1], "another setting of the same kernels was less wrong")
    told = [event.fields["outcome"] for event in events if event.kind == "candidate"]
    assert told == ["failed", "refused"]


def test_what_rehearsals_found_right_is_attempted_after_the_budget_too(tmp_path) -> None:
    search, failing, _ = _search(tmp_path, seconds=60.0, budget_s=50.0)
    search.run(RECIPES[:1])
    assert search._attempt(RECIPES[1]).refused == "50 s of the budget of 50 s were used up before its turn"
    assert search._attempt_owed(RECIPES[1]).refused == "pass-failed: no pattern matched"
    assert failing.applied == 2
