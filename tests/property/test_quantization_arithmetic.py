"""Scales, zero points and 32-bit biases."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeopt.calibrate import qparams, saturation
from edgeopt.calibrate.bias import mean_shift
from edgeopt.calibrate.ranges import Range

magnitudes = st.floats(0.0, 1e6, width=32)
ranges = st.builds(lambda low, high: Range(-low, high), magnitudes, magnitudes)
dtypes = st.sampled_from(["int8", "uint8"])
reals = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32))
weights = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3)),
    elements=st.floats(-50, 50, width=32),
)


@given(ranges, dtypes, st.booleans())
def test_zero_is_represented_exactly(covered: Range, dtype: str, symmetric: bool) -> None:
    found = qparams.activation_qparams(covered, dtype=dtype, symmetric=symmetric)
    codes = qparams.quantize(np.zeros(1, np.float32), found)
    assert codes[0] == found.zero_point
    assert qparams.dequantize(codes, found)[0] == 0.0


@given(ranges, dtypes, st.booleans(), st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20))
def test_error_inside_the_range_is_half_a_step_at_most(
    covered: Range, dtype: str, symmetric: bool, places: list[float]
) -> None:
    values = np.array([covered.low + (covered.high - covered.low) * place for place in places], np.float32)
    found = qparams.activation_qparams(covered, dtype=dtype, symmetric=symmetric)
    error = np.abs(qparams.dequantize(qparams.quantize(values, found), found) - values)
    # The zero point is rounded too: at the very ends of an asymmetric range another half step is clipped.
    ends = (values - covered.low < found.scale) | (covered.high - values < found.scale)
    assert (error <= np.where(ends, 1.0, 0.5) * found.scale * 1.001 + 1e-30).all()


@given(ranges, dtypes, reals)
def test_codes_never_leave_their_type_and_keep_the_order(covered: Range, dtype: str, values: np.ndarray) -> None:
    found = qparams.activation_qparams(covered, dtype=dtype)
    codes = qparams.quantize(np.sort(values), found).astype(int)
    assert codes.min() >= np.iinfo(dtype).min
    assert codes.max() <= np.iinfo(dtype).max
    assert (np.diff(codes) >= 0).all()


@given(weights, st.booleans(), st.sampled_from([None, 0, 1, 2]), dtypes)
def test_weights_come_back_within_half_a_step(weight: np.ndarray, reduced: bool, axis: int | None, dtype: str) -> None:
    found = qparams.weight_qparams(weight, dtype=dtype, axis=axis, reduced_range=reduced)
    codes = qparams.quantize(weight, found)
    assert codes.shape == weight.shape
    centred = codes.astype(int) - found.zero_point.ravel()[0].astype(int)
    assert np.abs(centred).max() <= (63 if reduced and axis is None else 127)
    if reduced and axis is not None:
        assert not saturation.crowded(*qparams.rows_and_taps(centred.astype(np.float32), axis)).any()
    steps = found.scale if axis is None else found.scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    assert (np.abs(qparams.dequantize(codes, found) - weight) <= steps * 0.501 + 1e-30).all()


@given(weights, st.floats(1e-6, 10.0), st.floats(0.0, 1e5))
def test_a_bias_always_fits_into_32_bits(weight: np.ndarray, input_scale: float, size: float) -> None:
    bias = np.linspace(-size, size, weight.shape[0]).astype(np.float32)
    smallest = qparams.smallest_weight_scale(bias, input_scale)
    found = qparams.weight_qparams(weight, axis=0, smallest=smallest)
    codes, scale = qparams.quantize_bias(bias, input_scale, found.scale)
    assert np.abs(codes.astype(np.int64)).max() <= 2**30 + 2**10
    assert np.allclose(codes * scale.astype(np.float64), bias, atol=float(scale.max()) * 0.51, rtol=1e-6)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 5))
def test_mean_shift_is_the_mean_of_the_added_error(groups: int, inputs: int, outputs: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    error = random.standard_normal((groups * outputs, inputs, 1, 1))
    samples = random.standard_normal((50, groups * inputs))
    added = np.concatenate(
        [
            samples[:, g * inputs : (g + 1) * inputs] @ error[g * outputs : (g + 1) * outputs, :, 0, 0].T
            for g in range(groups)
        ],
        axis=1,
    )
    assert np.allclose(mean_shift(error, samples.mean(axis=0), output_axis=0), added.mean(axis=0))


def test_a_tensor_that_is_always_zero_has_a_usable_scale() -> None:
    assert qparams.activation_qparams(Range(0.0, 0.0), dtype="uint8").scale == 1.0
    assert qparams.weight_qparams(np.zeros((2, 3), np.float32), axis=0).scale.min() >= qparams.SMALLEST_SCALE


def test_a_subnormal_range_does_not_give_a_subnormal_scale() -> None:
    scale = qparams.activation_qparams(Range(0.0, 1e-42), dtype="uint8").scale
    assert scale >= np.finfo(np.float32).tiny
    assert np.isfinite(np.float32(1.0) / scale)


def test_rounding_is_half_to_even() -> None:
    found = qparams.activation_qparams(Range(-128.0, 127.0), dtype="int8")
    assert qparams.quantize(np.array([0.5, 1.5, 2.5, -0.5], np.float32), found).tolist() == [0, 2, 2, 0]
