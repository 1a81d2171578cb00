"""Allotting removed units: what greedy must keep to whatever the curves look like."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.stages.allotment import Share, allot, damage


@st.composite
def _families(draw: st.DrawFn, *, convex: bool = False) -> list[Share]:
    found = []
    for number in range(draw(st.integers(1, 3))):
        step = draw(st.sampled_from([1, 4]))
        rises = draw(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5))
        rises = sorted(rises) if convex else rises
        damages = tuple(sum(rises[: end + 1]) for end in range(len(rises)))
        units = step * (len(rises) + 1)
        found.append(Share(name=f"f{number}", units=units, step=step, cost=draw(st.floats(0.1, 10)), damages=damages))
    return found


def _saved(families: list[Share], removed: dict[str, int]) -> float:
    return sum(family.saved(removed.get(family.name, 0) // family.step) for family in families)


@given(_families(), st.floats(0.0, 1.0))
def test_counts_are_whole_steps_leave_something_and_reach_what_can_be_reached(families, share) -> None:
    most = sum(family.saved(len(family.damages)) for family in families)
    removed = allot(families, share * most)
    for family in families:
        count = removed.get(family.name, 0)
        assert count % family.step == 0
        assert count < family.units
    assert _saved(families, removed) >= share * most * (1 - 1e-9)


@given(_families(), st.floats(0.0, 0.9), st.floats(0.0, 0.1))
def test_wanting_more_never_saves_less(families, share, more) -> None:
    most = sum(family.saved(len(family.damages)) for family in families)
    assert (
        _saved(families, allot(families, (share + more) * most))
        >= _saved(families, allot(families, share * most)) - 1e-9
    )


@given(_families(convex=True), st.floats(0.05, 0.95))
def test_on_convex_curves_nothing_that_saves_as_much_does_less_damage(families, share) -> None:
    wanted = share * sum(family.saved(len(family.damages)) for family in families)
    removed = allot(families, wanted)
    reached = _saved(families, removed)
    for counts in product(*(range(len(family.damages) + 1) for family in families)):
        other = {family.name: count * family.step for family, count in zip(families, counts, strict=True) if count}
        if _saved(families, other) >= reached:
            assert damage(families, other) >= damage(families, removed) - 1e-9


def test_expensive_family_goes_before_a_cheap_one_with_the_same_damage() -> None:
    cheap = Share(name="cheap", units=10, step=1, cost=1.0, damages=(0.1,) * 5)
    dear = Share(name="dear", units=10, step=1, cost=9.0, damages=(0.1,) * 5)
    assert set(allot([cheap, dear], 0.5)) == {"dear"}


def test_family_that_takes_no_time_is_left_alone() -> None:
    free = Share(name="free", units=8, step=1, cost=0.0, damages=(0.0,) * 7)
    assert allot([free], 1.0) == {}
    assert damage([free], {}) == pytest.approx(0.0)
