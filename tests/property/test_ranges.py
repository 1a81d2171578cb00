"""Streaming ranges: merging, fixed size, and what every method promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeopt.calibrate.histogram import BINS, Histogram, exponent_of
from edgeopt.calibrate.qparams import activation_qparams, dequantize, quantize
from edgeopt.calibrate.ranges import METHODS, Grid, Range, TensorStats, _divergences, range_of
from edgeopt.errors import PassFailed

values = arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e8, 1e8, width=32))
batches = st.lists(values, min_size=1, max_size=6)


def stats_of(samples: list[np.ndarray]) -> TensorStats:
    stats = TensorStats()
    for sample in samples:
        stats.add(float(sample.min()), float(sample.max()))
        stats.add_values(sample)
    return stats


@given(batches, batches)
def test_merging_is_the_same_as_seeing_everything_and_in_any_order(
    left: list[np.ndarray], right: list[np.ndarray]
) -> None:
    together = stats_of(left + right)
    for merged in (stats_of(left).merge(stats_of(right)), stats_of(right).merge(stats_of(left))):
        assert (merged.low, merged.high, merged.samples) == (together.low, together.high, together.samples)
        assert merged.low_sum == pytest.approx(together.low_sum)
        assert merged.histogram.exponent == together.histogram.exponent
        # A value on the edge of a bin may fall to either side when the grid was finer before.
        moved = np.abs(np.cumsum(merged.histogram.counts - together.histogram.counts)).max()
        assert moved == 0


@given(batches)
def test_the_state_never_grows_and_loses_no_value(samples: list[np.ndarray]) -> None:
    stats = stats_of(samples)
    assert stats.histogram.counts.shape == (BINS,)
    assert stats.histogram.counts.sum() == sum(sample.size for sample in samples)


@given(batches, st.sampled_from(sorted(METHODS)))
def test_a_range_holds_zero_and_nothing_that_was_not_seen(samples: list[np.ndarray], method: str) -> None:
    found = range_of(stats_of(samples), method)
    everything = np.concatenate(samples)
    assert found.low <= 0.0 <= found.high
    assert found.low >= min(0.0, float(everything.min()))
    assert found.high <= max(0.0, float(everything.max()))


@given(st.floats(1e-30, 1e30))
def test_a_histograms_limit_is_the_next_power_of_two(magnitude: float) -> None:
    exponent = exponent_of(magnitude)
    assert 2.0**exponent >= magnitude
    assert exponent == -100 or 2.0 ** (exponent - 1) < magnitude


@given(values, st.integers(0, 3))
def test_growing_moves_counts_to_the_bin_that_holds_their_value(sample: np.ndarray, doublings: int) -> None:
    coarse, direct = Histogram(), Histogram()
    largest = np.float32(2.0 ** (exponent_of(float(np.abs(sample).max())) + doublings))
    coarse.add(sample)
    coarse.add(np.array([largest]))
    direct.add(np.append(sample, largest))
    assert (coarse.counts == direct.counts).all()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_tensor_of_zeros_gives_an_empty_range(method: str) -> None:
    assert range_of(stats_of([np.zeros(5, np.float32)]), method) == Range(0.0, 0.0)


@pytest.mark.parametrize(("method", "limit"), [("percentile", 20.0), ("entropy", 20.0), ("mse", 59.0)])
def test_one_outlier_among_many_values_is_clipped(method: str, limit: float) -> None:
    normal = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    found = range_of(stats_of([normal, np.array([60.0], np.float32)]), method)
    assert found.high < limit
    assert found.high > 2.0


def test_percentile_cuts_the_tail_it_names() -> None:
    found = range_of(stats_of([np.linspace(-1, 1, 100_001).astype(np.float32)]), "percentile")
    assert found.high == pytest.approx(0.9998, abs=4e-4)
    assert found.low == pytest.approx(-0.9998, abs=4e-4)


def test_mse_finds_the_clip_that_exhaustive_search_finds() -> None:
    values = np.random.default_rng(1).laplace(size=50_000).astype(np.float32)
    found = range_of(stats_of([values]), "mse")

    def error(limit: float) -> float:
        low, high = max(-limit, float(values.min())), min(limit, float(values.max()))
        step = (high - low) / 255
        return float(np.mean((np.rint(np.clip(values, low, high) / step) * step - values) ** 2))

    best = min(error(limit) for limit in np.linspace(1.0, float(np.abs(values).max()), 300))
    assert error(max(-found.low, found.high)) <= best * 1.02


@pytest.mark.parametrize("low", [0.0, -0.2, -1.0])
@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_searches_on_the_grid_that_the_codes_will_have(low: float, symmetric: bool) -> None:
    values = np.maximum(np.random.default_rng(4).laplace(size=60_000), low).astype(np.float32)
    grid = Grid(symmetric=symmetric)
    stats = stats_of([values])

    def error(covered: Range) -> float:
        parameters = activation_qparams(covered, dtype="int8", symmetric=symmetric)
        found = dequantize(quantize(values, parameters), parameters)
        return float(np.square(found.astype(np.float64) - values).mean())

    limits = np.linspace(1.0, float(np.abs(values).max()), 200)
    best = min(error(Range(max(-limit, float(values.min())), min(limit, float(values.max())))) for limit in limits)
    assert error(range_of(stats, "mse", grid)) <= best * 1.05


def test_mse_clips_harder_where_half_of_the_codes_are_for_values_that_never_come() -> None:
    positive = np.abs(np.random.default_rng(5).laplace(size=60_000)).astype(np.float32)
    stats = stats_of([positive])
    assert range_of(stats, "mse", Grid(symmetric=True)).high < 0.97 * range_of(stats, "mse").high


def test_entropy_counts_the_steps_that_a_magnitude_has() -> None:
    """A ReLU's output has 256 of them; with zero in the middle it has 128, as a tensor of both signs always has."""
    both = np.random.default_rng(6).laplace(size=200_000).astype(np.float32)
    positive, grid = stats_of([np.abs(both)]), Grid(symmetric=True)
    counts = positive.histogram.magnitudes().astype(np.float64)
    counts[0] = counts[1]
    counts = np.trim_zeros(counts, "b")
    found = {}
    for levels, own in ((256, Grid()), (128, grid)):
        found[levels] = min(counts.size, round(range_of(positive, "entropy", own).high / positive.histogram.width))
        sizes = np.array([found[levels], *range(levels, counts.size, 5)])
        divergences = _divergences(counts, sizes, levels)
        assert divergences[0] <= 1.05 * divergences.min()
    assert found[256] != found[128]


def test_entropy_keeps_a_uniform_distribution_whole() -> None:
    values = np.random.default_rng(2).uniform(-1, 1, 100_000).astype(np.float32)
    assert range_of(stats_of([values]), "entropy").high > 0.95


def test_moving_average_is_less_than_the_extreme_of_one_odd_sample() -> None:
    samples = [np.array([-1.0, 1.0], np.float32)] * 9 + [np.array([-1.0, 11.0], np.float32)]
    assert range_of(stats_of(samples), "moving_average") == Range(-1.0, 2.0)
    assert range_of(stats_of(samples), "min_max") == Range(-1.0, 11.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    with pytest.raises(PassFailed, match="'relu_3' is not finite"):
        TensorStats().add(0.0, bad, name="relu_3")
    with pytest.raises(PassFailed, match="'relu_3' is not finite"):
        TensorStats().add_values(np.array([0.0, bad]), name="relu_3")


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(PassFailed) as caught:
        range_of(stats_of([np.ones(1, np.float32)]), "median")
    assert "entropy" in caught.value.hint


def divergence_bin_by_bin(counts: np.ndarray, size: int, levels: int) -> float:
    """As the method is written down: both distributions, one entry a bin."""
    clipped = counts[:size].copy()
    clipped[-1] += counts[size:].sum()
    coarse = np.zeros(size)
    for step in range(levels):
        bins = np.arange(step * size // levels, (step + 1) * size // levels)
        occupied = bins[counts[bins] > 0]
        if occupied.size:
            coarse[occupied] = counts[occupied].mean()
    coarse[(clipped > 0) & (coarse <= 0)] = 1e-6
    used = clipped > 0
    p, q = clipped[used] / clipped.sum(), coarse[used] / coarse.sum()
    return float(np.sum(p * np.log(p / q)))


@given(arrays.arrays(np.int64, st.integers(9, 80), elements=st.integers(0, 50) | st.just(0)), st.data())
def test_the_divergence_by_steps_is_that_of_every_bin(drawn: np.ndarray, data: st.DataObject) -> None:
    counts = drawn.astype(np.float64)
    size = data.draw(st.integers(8, counts.size))
    if not counts.any():
        return  # the caller keeps at least one occupied bin
    (found,) = _divergences(counts, np.array([size]), 8)
    if counts[:size].any():
        assert found == pytest.approx(divergence_bin_by_bin(counts, size, 8), abs=1e-9)
    else:
        assert found == np.inf


@given(values, st.integers(-20, 20))
def test_a_value_stays_in_its_bin_when_the_grid_grows_even_on_the_old_limit(sample: np.ndarray, exponent: int) -> None:
    limit = np.float32(2.0**exponent)
    sample = np.append(np.clip(sample, -limit, limit), limit)
    grown, direct = Histogram(), Histogram()
    grown.add(sample)
    assert 2.0**grown.exponent > limit
    grown.add(np.array([limit * 8]))
    direct.add(np.append(sample, limit * 8))
    assert (grown.counts == direct.counts).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_histogram_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(PassFailed, match="'map' is not finite"):
        TensorStats().add_values(np.array([0.0, value, 1.0], np.float32), name="map")
