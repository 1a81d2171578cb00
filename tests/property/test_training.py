"""The arithmetic of a training: schedules, the split of the samples, checkpoints, int8's rounding."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

torch = pytest.importorskip("torch", reason="needs torch: pip install 'edgeopt[train]'")

from edgeopt.calibrate import qparams  # noqa: E402 - torch may be missing
from edgeopt.calibrate.ranges import Range  # noqa: E402
from edgeopt.training import checkpoint, schedule  # noqa: E402
from edgeopt.training.fake_quantize import FakeQuantizer  # noqa: E402
from edgeopt.training.inputs import held_out  # noqa: E402

FLOATS = st.floats(-100, 100, width=32)


@given(st.integers(1, 5000), st.floats(1e-6, 1.0), st.sampled_from(schedule.SCHEDULES))
def test_rate_rises_to_its_peak_and_never_above_and_stays_positive(steps: int, peak: float, kind: str) -> None:
    rates = [schedule.rate(step, steps=steps, peak=peak, schedule=kind) for step in range(steps)]
    assert all(0.0 < rate <= peak for rate in rates)
    warmup = int(steps * schedule.WARMUP_SHARE)
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[warmup] == pytest.approx(peak)


@given(st.integers(1, 3000), st.integers(1, 100))
def test_held_out_samples_are_not_trained_on_and_none_is_lost(count: int, most: int) -> None:
    training, judging = held_out(count, most=most)
    assert 1 <= len(judging) <= most
    assert training and (count == 1 or not set(training) & set(judging))
    if count > 1:
        assert sorted((*training, *judging)) == list(range(count))
        assert len(judging) <= max(1, count // 2)


@given(
    st.dictionaries(
        st.text(max_size=20), arrays.arrays(st.sampled_from([np.float32, np.int64]), arrays.array_shapes(min_dims=0))
    ),
    st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(max_size=8), st.floats(allow_nan=False))),
)
def test_checkpoint_keeps_whatever_a_weight_is_called(weights, facts) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.npz"
        checkpoint.save(file, checkpoint.State(facts=facts, arrays={"weights": weights}))
        found = checkpoint.load(file)
    assert found is not None and found.facts == facts
    assert found.arrays.get("weights", {}).keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(found.arrays["weights"][name], array)
        assert found.arrays["weights"][name].dtype == array.dtype


@given(arrays.arrays(np.float32, (5, 3), elements=FLOATS), st.sampled_from([0, 1]), st.booleans())
def test_fake_quantized_weight_is_the_one_that_the_quantizer_will_write(weight, axis: int, reduced: bool) -> None:
    found = qparams.weight_qparams(weight, axis=axis, reduced_range=reduced)
    expected = qparams.dequantize(qparams.quantize(weight, found), found)
    rounding = FakeQuantizer(axes={"w": axis}, half=63 if reduced else 127)
    made = rounding.weight("w", torch.from_numpy(weight)).numpy()
    step = found.scale.reshape((-1, 1) if axis == 0 else (1, -1))
    # torch multiplies by the reciprocal: a value in the middle of two codes may take the other one
    different = np.abs(made - expected) > 1e-3 * step
    halves = np.abs(np.abs(weight / step) % 1.0 - 0.5) < 1e-3
    assert (np.abs(made - expected) <= 1.001 * step).all()
    assert not (different & ~halves).any()


@given(arrays.arrays(np.float32, 12, elements=FLOATS), st.floats(-50, 0), st.floats(0.01, 50))
def test_fake_quantized_activation_stays_in_its_range_and_lets_gradients_through_there(values, low, high) -> None:
    parameters = qparams.activation_qparams(Range(low, high), dtype="uint8")
    scale, zero_point = float(parameters.scale), int(parameters.zero_point)
    rounding = FakeQuantizer(scales={"x": (scale, zero_point)})
    tensor = torch.from_numpy(values).requires_grad_(True)
    made = rounding.value("x", tensor)
    made.sum().backward()
    inside = (values > low + scale) & (values < high - scale)
    assert (np.abs(made.detach().numpy() - values)[inside] <= 0.51 * scale).all()
    assert (tensor.grad.numpy()[inside] == 1.0).all()
    outside = (values < low - scale) | (values > high + scale)
    assert (tensor.grad.numpy()[outside] == 0.0).all()
    assert rounding.value("other", tensor) is tensor
