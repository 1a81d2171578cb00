"""Which values an 8-bit tensor has to cover: five answers from one state of fixed size.

Stands between ``collect`` (which feeds it sample by sample) and ``qparams`` (which turns a range into a scale and a zero
point). :class:`TensorStats` is all that is kept of a tensor, about 64 KiB whatever the number of samples: the exact
extremes, the sums of the samples' extremes and a histogram. Every method reads the same state, so recipes that differ only in the
method share one pass over the data.

Methods, by the names that recipes use:

- ``min_max``         the extremes of all samples; nothing is clipped
- ``moving_average``  the mean of the samples' extremes: one odd sample does not widen the range
- ``percentile``      leaves out the outermost 0.01 % on either side
- ``entropy``         the clip that loses least information (S. Migacz, "8-bit Inference with TensorRT", GTC 2017)
- ``mse``             the clip that gives the smallest mean squared rounding and clipping error

The last three read a sample of each tensor's values (see ``collect``), the first two every value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate.histogram import Histogram
from edgeopt.errors import PassFailed

PERCENTILE = 99.99
_CLIP_STEPS = 96
_SMALLEST_CLIP = 0.05
_TINY = 1e-6


@dataclass(frozen=True, slots=True)
class Range:
    """Finite, ``low <= 0 <= high``: zero (padding, ReLU) must be representable."""

    low: float
    high: float


@dataclass(slots=True)
class TensorStats:
    """What is remembered of one tensor; grows with nothing."""

    low: float = np.inf
    high: float = -np.inf
    low_sum: float = 0.0
    high_sum: float = 0.0
    samples: int = 0
    histogram: Histogram = field(default_factory=Histogram)

    def add(self, low: float, high: float, *, name: str = "") -> None:
        """Take in one sample's exact extremes; :class:`~edgeopt.errors.PassFailed` where one is NaN or infinite."""
        if not (isfinite(low) and isfinite(high)):
            raise not_finite(name)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.low_sum += low
        self.high_sum += high
        self.samples += 1

    def add_each(self, lows: NDArray[np.floating], highs: NDArray[np.floating], *, name: str = "") -> None:
        """Take in several samples' exact extremes, [samples] each; raises as :meth:`add` does."""
        if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
            raise not_finite(name)
        self.low, self.high = min(self.low, float(lows.min())), max(self.high, float(highs.max()))
        self.low_sum += float(lows.sum(dtype=np.float64))
        self.high_sum += float(highs.sum(dtype=np.float64))
        self.samples += len(lows)

    def add_values(self, values: NDArray[np.floating], *, name: str = "") -> None:
        """Take in some (or all) of the values of one or several samples; raises as :meth:`add` does."""
        try:
            self.histogram.add(values)
        except ValueError as error:
            raise not_finite(name) from error

    def merge(self, other: TensorStats) -> TensorStats:
        """The statistics of both sets of samples; neither operand changes, order does not matter."""
        return TensorStats(
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            low_sum=self.low_sum + other.low_sum,
            high_sum=self.high_sum + other.high_sum,
            samples=self.samples + other.samples,
            histogram=self.histogram.merge(other.histogram),
        )


def not_finite(name: str) -> PassFailed:
    """What calibration says of NaN and infinity: such a tensor has no range."""
    return PassFailed(
        f"activation {name!r} is not finite in the calibration samples",
        hint="Check that the calibration samples are preprocessed as the model expects.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The codes that a range will be spread over; what a method loses by rounding depends on them."""

    codes: int = 256
    symmetric: bool = False
    """Zero in the middle: a tensor of one sign has half of the codes."""

    def step(self, covered: Range) -> float:
        """From one code to the next, as :func:`~edgeopt.calibrate.qparams.activation_qparams` has it; 0 for an empty range."""
        if self.symmetric:
            return max(-covered.low / (self.codes // 2), covered.high / (self.codes // 2 - 1))
        return (covered.high - covered.low) / (self.codes - 1)


Method: TypeAlias = Callable[[TensorStats, Grid], Range]
EIGHT_BITS = Grid()


def range_of(stats: TensorStats, method: str, grid: Grid = EIGHT_BITS) -> Range:
    """The range ``method`` gives for codes on ``grid``; :class:`~edgeopt.errors.PassFailed` for an unknown method or no samples."""
    if method not in METHODS:
        raise PassFailed(f"{method!r} is no calibration method", hint=f"Use one of {', '.join(METHODS)}.")
    if not stats.samples:
        raise PassFailed("a tensor was never observed", hint="Provide at least one calibration sample.")
    return METHODS[method](stats, grid)


def min_max(stats: TensorStats, grid: Grid = EIGHT_BITS) -> Range:  # noqa: ARG001 - all methods are called alike
    """Everything that was seen."""
    return _with_zero(stats.low, stats.high)


def moving_average(stats: TensorStats, grid: Grid = EIGHT_BITS) -> Range:  # noqa: ARG001 - all methods are called alike
    """The mean over samples of each sample's extremes; a plain mean, so that the order of samples does not matter."""
    return _with_zero(stats.low_sum / stats.samples, stats.high_sum / stats.samples)


def percentile(stats: TensorStats, grid: Grid = EIGHT_BITS) -> Range:  # noqa: ARG001 - all methods are called alike
    """All but the outermost ``100 - PERCENTILE`` percent on either side."""
    counts, width = stats.histogram.counts, stats.histogram.width
    cumulative = np.cumsum(counts)
    tail = (100.0 - PERCENTILE) / 100.0 * float(cumulative[-1])
    first = int(np.searchsorted(cumulative, tail, side="right"))
    last = int(np.searchsorted(cumulative, cumulative[-1] - tail, side="left"))
    edges = (np.arange(counts.size + 1) - counts.size // 2) * width
    return _clipped(stats, float(edges[first]), float(edges[min(last, counts.size - 1) + 1]))


def entropy(stats: TensorStats, grid: Grid = EIGHT_BITS) -> Range:
    """The clip of magnitudes that minimises the KL divergence between the values and their version in the grid's steps."""
    whole = min_max(stats)
    # As many steps as a magnitude has: all codes where a tensor has one sign, half of them where it has both.
    levels = max(1, round(max(-whole.low, whole.high) / (grid.step(whole) or 1.0)))
    levels = min(grid.codes, max(grid.codes // 2, levels))
    counts = stats.histogram.magnitudes().astype(np.float64)
    # A ReLU puts a spike on exact zero, which every scale represents without error: it must not decide.
    counts[0] = counts[1]
    counts = np.trim_zeros(counts, "b")
    if counts.size <= levels:
        return min_max(stats)
    stride = max(1, (counts.size - levels) // (2 * _CLIP_STEPS))
    sizes = [*range(levels, counts.size, stride), counts.size]
    best = sizes[int(np.argmin(_divergences(counts, np.array(sizes), levels)))]
    limit = best * stats.histogram.width
    return min_max(stats) if best == counts.size else _clipped(stats, -limit, limit)


def mse(stats: TensorStats, grid: Grid = EIGHT_BITS) -> Range:
    """The clip of magnitudes that minimises the mean squared error of rounding to the grid."""
    whole = min_max(stats)
    limit = max(-whole.low, whole.high)
    seen = stats.histogram.counts > 0
    values, weights = stats.histogram.centres()[seen], stats.histogram.counts[seen].astype(np.float64)
    best, best_error = whole, np.inf
    for share in np.linspace(1.0, _SMALLEST_CLIP, _CLIP_STEPS):
        candidate = _clipped(stats, -limit * share, limit * share)
        error = float(weights @ _rounding_error(values, candidate, grid) ** 2)
        if error < best_error:
            best, best_error = candidate, error
    return best


METHODS: dict[str, Method] = {
    "min_max": min_max,
    "moving_average": moving_average,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def _with_zero(low: float, high: float) -> Range:
    return Range(min(0.0, float(low)), max(0.0, float(high)))


def _clipped(stats: TensorStats, low: float, high: float) -> Range:
    """A clip never reaches beyond what was seen: a wider range would only waste levels."""
    return _with_zero(max(low, stats.low), min(high, stats.high))


def _rounding_error(values: NDArray[np.float64], covered: Range, grid: Grid) -> NDArray[np.float64]:
    step = grid.step(covered)
    if step <= 0:
        return values
    rounded = np.rint(np.clip(values, covered.low, covered.high) / step) * step
    difference: NDArray[np.float64] = rounded - values
    return difference


def _divergences(counts: NDArray[np.float64], sizes: NDArray[np.int64], levels: int) -> NDArray[np.float64]:
    """For each of ``sizes``: KL divergence of that many bins, outliers in the last one, from the same bins in ``levels`` steps.

    A step gives each of its occupied bins the mean of their counts, so both sums of logarithms are sums over steps, and a
    step's sum is the difference of two running ones. Shapes: counts (bins,), the result that of ``sizes``.
    """
    running, logs, occupied = (_running(part) for part in (counts, _times_log(counts), counts > 0))
    edges = np.append(np.arange(levels) * sizes[:, None] // levels, sizes[:, None], axis=1)
    inside, filled = np.diff(running[edges], axis=1), np.diff(occupied[edges], axis=1)
    means = inside / np.maximum(filled, 1.0)
    kept, total, last = running[sizes], running[-1], counts[sizes - 1]
    outliers = total - kept
    # A bin that only outliers fill has no counterpart after rounding; a tiny one keeps the logarithm finite.
    tiny = np.where((outliers > 0) & (last == 0), _TINY, 0.0)
    exact = logs[sizes - 1] + _times_log(last + outliers) - total * np.log(total)
    coarse = (inside * _log(means)).sum(axis=1) + outliers * _log(np.where(tiny > 0, tiny, means[:, -1]))
    found = (exact - coarse + total * _log(kept + tiny)) / total
    return np.where(kept > 0, found, np.inf)


def _running(values: NDArray[Any]) -> NDArray[np.float64]:
    """What all entries before a place add up to; entry 0 is zero."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of zero it is zero: it is only ever multiplied by zero then."""
    logarithms: NDArray[np.float64] = np.log(np.where(values > 0, values, 1.0))
    return logarithms


def _times_log(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return counts * _log(counts)
