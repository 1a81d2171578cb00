"""Weights as wide as two products in 16 bits allow: never beyond, never narrower than 7 bits, and the scale is found again."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeopt.calibrate import qparams, saturation
from edgeopt.calibrate.rounding import grid, learned_codes

convolutions = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3)),
    elements=st.floats(-50, 50, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3),
)


def codes_of(weight: np.ndarray) -> np.ndarray:
    return qparams.quantize(weight, qparams.weight_qparams(weight, axis=0, reduced_range=True)).astype(np.int64)


@given(convolutions)
def test_no_two_neighbours_leave_16_bits_whatever_the_activations_are(weight: np.ndarray) -> None:
    codes = codes_of(weight)
    for walked in (codes.transpose(0, 2, 1), codes):  # channels last, and as it lies
        rows = walked.reshape(len(codes), -1)
        rows = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
        first, second = rows[:, 0::2], rows[:, 1::2]
        for left, right in ((255, 255), (255, 0), (0, 255), (1, 255)):
            sums = left * first + right * second
            assert sums.max(initial=0) <= 32767
            assert sums.min(initial=0) >= -32768


@given(convolutions)
def test_steps_lie_between_those_of_7_and_of_8_bits(weight: np.ndarray) -> None:
    found = qparams.weight_qparams(weight, axis=0, reduced_range=True).scale
    peak = np.abs(weight).max(axis=(1, 2))
    assert (found <= np.maximum(peak / 63, qparams.SMALLEST_SCALE) * 1.001).all()
    assert (found >= peak / 127).all()


@given(convolutions, st.integers(0, 3))
def test_whoever_rounds_by_learning_leaves_a_scale_that_is_found_again(weight: np.ndarray, seed: int) -> None:
    found = grid(weight, 0, reduced_range=True)
    rows, taps = qparams.rows_and_taps(weight, 0)
    inputs = np.random.default_rng(seed).standard_normal((20, 2)) @ np.ones((2, rows.shape[1]))
    codes = learned_codes(rows, found, (inputs.T @ inputs).astype(np.float32), sweeps=2)
    assert not saturation.crowded(codes, taps).any()
    assert (np.abs(codes - rows / found.scale[:, None]) <= 1.001).all()
    made = (codes * found.scale[:, None]).astype(np.float32).reshape(weight.shape)
    again = grid(made, 0, reduced_range=True)
    is_zero = ~rows.any(axis=1)
    assert (np.isclose(again.scale, found.scale, rtol=1e-5) | is_zero).all()
    assert (np.rint(made.reshape(rows.shape) / again.scale[:, None]) == codes).all()


def test_small_weights_beside_large_ones_leave_nearly_all_eight_bits() -> None:
    weight = np.tile(np.array([1.0, 0.01], np.float32), (1, 8))
    assert np.isclose(qparams.weight_qparams(weight, axis=0, reduced_range=True).scale[0], 1.01 / 126)


def test_equal_neighbours_leave_seven_bits() -> None:
    found = qparams.weight_qparams(np.ones((1, 8), np.float32), axis=0, reduced_range=True)
    assert np.isclose(found.scale[0], 1 / 63)


def test_neighbours_of_other_sign_do_not_count() -> None:
    weight = np.tile(np.array([1.0, -1.0], np.float32), (1, 8))
    assert np.isclose(qparams.weight_qparams(weight, axis=0, reduced_range=True).scale[0], 1 / 126)
