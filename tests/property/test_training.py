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
from edgeopt.calibrate.regression import is_held_out  # noqa: E402
from edgeopt.training import checkpoint, schedule  # noqa: E402
from edgeopt.training.fake_quantize import FakeQuantizer  # noqa: E402
from edgeopt.training.inputs import drawn, held_out  # noqa: E402

FLOATS = st.floats(-100, 100, width=32)


@given(st.integers(1, 5000), st.floats(1e-6, 1.0), st.sampled_from(schedule.SCHEDULES))
def test_rate_rises_to_its_peak_and_never_above_and_stays_positive(steps: int, peak: float, kind: str) -> None:
    rates = [schedule.rate(step, steps=steps, peak=peak, schedule=kind) for step in range(steps)]
    assert all(0.0 < rate <= peak for rate in rates)
    warmup = int(steps * schedule.WARMUP_SHARE)
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[warmup] == pytest.approx(peak)


@given(st.integers(0, len(schedule.RATES) - 1), st.integers(0, 20), st.floats(0.1, 2.0))
def test_rate_is_found_where_losses_fall_to_one_and_rise_behind_it(best: int, flat: int, depth: float) -> None:
    asked = []

    def held(peak: float) -> float:
        asked.append(peak)
        distance = abs(schedule.RATES.index(peak) - best)
        return 1.0 if distance > flat else 1.0 - depth * (1 - distance / (flat + 1)) ** 2

    assert schedule.found_rate(held, nothing=1.0, runaway=3.0) == schedule.RATES[best]
    assert len(asked) == len(set(asked)) and (flat < 2 or len(asked) <= 2 + max(1, abs(best - 3)) + (best < 3))


@given(st.integers(0, len(schedule.RATES)))
def test_rate_is_the_lowest_where_none_gains_and_one_that_runs_away_is_not_surpassed(runs_away_from: int) -> None:
    asked = []

    def held(peak: float) -> float:
        asked.append(peak)
        return float("inf") if schedule.RATES.index(peak) >= runs_away_from else 1.1

    assert schedule.found_rate(held, nothing=1.0, runaway=3.0) == schedule.RATES[0]
    assert max(schedule.RATES.index(peak) for peak in asked) <= max(3, runs_away_from)


@given(st.integers(1, 5000), st.integers(1, 64), st.integers(1, 64))
def test_looks_take_no_longer_than_a_third_of_the_steps_unless_they_would_be_fewer_than_five(
    steps: int, held_out: int, batch: int
) -> None:
    every = schedule.steps_between_looks(steps, held_out=held_out, batch=batch)
    assert 1 <= every <= steps
    looks = steps // every
    assert looks <= 39
    assert held_out * looks <= steps * batch or looks < 2 * 5


@given(st.integers(1, 3000), st.integers(1, 100))
def test_held_out_samples_are_not_trained_on_and_none_is_lost(count: int, most: int) -> None:
    training, judging = held_out(range(count), most=most)
    assert 1 <= len(judging) <= most
    assert training and (count == 1 or not set(training) & set(judging))
    if count > 1:
        assert sorted((*training, *judging)) == list(range(count))
        assert len(judging) <= max(1, count // 2)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 1000))
def test_draw_of_samples_has_the_number_wished_and_leaves_some_to_train_on_and_some_to_judge_by(
    count: int, most: int, seed: int
) -> None:
    numbers = drawn(count, most, seed=seed)
    assert len(numbers) == min(count, most)
    assert list(numbers) == sorted(set(numbers)) and set(numbers) <= set(range(count))
    assert numbers == drawn(count, most, seed=seed)
    training, judging = held_out(numbers)
    assert training and judging
    if count >= 4 and len(numbers) > 1:
        assert all(is_held_out(numbers[position]) for position in judging)


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
    rounding = FakeQuantizer(axes={"w": axis}, reduced_range=reduced)
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
