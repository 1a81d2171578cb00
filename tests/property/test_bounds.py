from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeopt.stages import bounds

FLOATS = arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e3, 1e3))


@given(FLOATS)
def test_interval_of_the_mean_lies_within_the_values(values) -> None:
    low, high = bounds.mean_interval(values, seed=0)
    assert values.min() - 1e-9 <= low <= high <= values.max() + 1e-9


@given(FLOATS, st.integers(0, 5))
def test_same_seed_gives_the_same_interval(values, seed) -> None:
    assert bounds.median_interval(values, seed=seed) == bounds.median_interval(values, seed=seed)


def test_interval_narrows_with_more_samples() -> None:
    random = np.random.default_rng(0)
    few, many = (bounds.mean_interval(random.normal(size=count), seed=0) for count in (20, 2000))
    assert many[1] - many[0] < (few[1] - few[0]) / 5


@given(st.integers(1, 400), st.data())
def test_binomial_interval_holds_the_rate(trials, data) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = bounds.binomial_interval(successes, trials)
    assert 0.0 <= low <= successes / trials <= high <= 1.0


def test_binomial_interval_without_a_success_is_the_closed_form() -> None:
    assert bounds.binomial_interval(0, 120)[1] == pytest.approx(1 - 0.025 ** (1 / 120), abs=1e-9)


def test_no_trials_prove_nothing() -> None:
    assert bounds.binomial_interval(0, 0) == (0.0, 1.0)
