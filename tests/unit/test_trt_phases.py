"""How far a build is: phases that nest, as TensorRT for RTX 1.7 tells them, and the share of the whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.runtimes.trt.phases import Phases


def test_inner_phases_refine_the_step_of_the_outer_one() -> None:
    phases = Phases()
    phases.start("Building engine", None, 6)
    assert phases.share == 0.0
    phases.start("Cloning network graph", "Building engine", 4)
    assert phases.step("Cloning network graph", 1) == (2, 4)
    assert phases.share == pytest.approx(0.5 / 6)
    phases.finish("Cloning network graph")
    phases.step("Building engine", 0)
    assert phases.share == pytest.approx(1 / 6)
    phases.start("Building engine from subgraph", "Building engine", 1)
    phases.start("Optimizing graph", "Building engine from subgraph", 30)
    phases.step("Optimizing graph", 14)
    assert phases.share == pytest.approx(1.5 / 6)


def test_whole_build_reaches_one() -> None:
    phases = Phases()
    phases.start("Building engine", None, 2)
    for step in range(2):
        phases.step("Building engine", step)
    assert phases.share == 1.0


def test_step_of_a_phase_that_nobody_started_is_no_error() -> None:
    phases = Phases()
    assert phases.step("Timing", 3) == (4, 4)
    phases.finish("never seen")


NAMES = st.sampled_from(["a", "b", "c"])
TELLINGS = st.one_of(
    st.tuples(st.just("start"), NAMES, st.one_of(st.none(), NAMES), st.integers(0, 9)),
    st.tuples(st.just("step"), NAMES, st.integers(0, 12)),
    st.tuples(st.just("finish"), NAMES),
)


@given(st.lists(TELLINGS, max_size=40))
def test_share_never_falls_and_stays_a_share_whatever_is_told(tellings: list[tuple[object, ...]]) -> None:
    phases, last = Phases(), 0.0
    for kind, *told in tellings:
        getattr(phases, str(kind))(*told)
        assert last <= phases.share <= 1.0
        last = phases.share
