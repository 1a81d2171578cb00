from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgeopt.errors import PassFailed
from edgeopt.records import Quality, Recipe, Step
from edgeopt.stages import contest

TIDY = Step.of("tidy")


def _static(method: str, *, narrow: bool = False, corrects: bool = True) -> Recipe:
    step = Step.of("quantize_static", method=method, reduced_range=narrow, bias_correction=corrects)
    return Recipe(steps=(TIDY, step))


class ScriptedRehearsal:
    """Gives each method the drop that it is told."""

    def __init__(self, drops: dict[str, float | None]) -> None:
        self.drops = drops

    def quality(self, recipe: Recipe) -> Quality:
        drop = self.drops[str(dict(recipe.steps[-1].settings)["method"])]
        if drop is None:
            raise PassFailed("nothing to quantize")
        return Quality(kind="agreement", metric="nsr", value=1 - drop, drop=drop, ci95=(0.0, 2 * drop), samples=64)


def test_variants_of_the_same_kernels_are_one_family() -> None:
    recipes = [_static("mse"), _static("mse", narrow=True), _static("entropy"), Recipe(steps=(TIDY,))]
    assert contest.families(recipes) == [recipes[:3], [recipes[3]]]


@given(st.lists(st.sampled_from(["mse", "min_max", "entropy"]), unique=True))
def test_families_lose_no_recipe(methods) -> None:
    recipes = [_static(method) for method in methods]
    assert [recipe for family in contest.families(recipes) for recipe in family] == recipes


def test_least_wrong_variant_stays_and_the_others_hear_why_not() -> None:
    family = [_static("mse"), _static("min_max"), _static("entropy")]
    lost = contest.losers(family, ScriptedRehearsal({"mse": 0.02, "min_max": 0.01, "entropy": 0.5}))
    assert set(lost) == {family[0], family[2]}
    assert "method=min_max" in lost[family[0]]
    assert "nsr 0.02" in lost[family[0]]


def test_variant_that_cannot_be_made_loses_with_its_own_reason() -> None:
    family = [_static("mse"), _static("min_max")]
    lost = contest.losers(family, ScriptedRehearsal({"mse": None, "min_max": 0.3}))
    assert lost == {family[0]: "pass-failed: nothing to quantize"}


def test_where_none_can_be_made_one_is_left_to_tell() -> None:
    family = [_static("mse"), _static("min_max")]
    assert set(contest.losers(family, ScriptedRehearsal({"mse": None, "min_max": None}))) == {family[0]}


def test_once_the_time_is_over_nobody_else_is_rehearsed_and_the_best_so_far_stays() -> None:
    family = [_static("mse"), _static("min_max"), _static("entropy")]
    calls = iter([False, True])
    lost = contest.losers(
        family, ScriptedRehearsal({"mse": 0.02, "min_max": 0.01, "entropy": 0.0}), is_over=lambda: next(calls)
    )
    assert set(lost) == {family[0], family[2]}
    assert lost[family[2]].startswith("not rehearsed")
    always = contest.losers(family, ScriptedRehearsal({"mse": 0.02}), is_over=lambda: True)
    assert set(always) == set(family[1:])
