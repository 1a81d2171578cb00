"""A histogram of fixed size that needs no range in advance.

Stands under ``ranges``: one per observed tensor. In come the values of one sample at a time, out go counts on a grid that
is symmetric about zero and whose limit is a power of two. The limit doubles when a larger value arrives and neighbouring
bins are added up, so one pass over the data is enough and memory stays at :data:`BINS` counters whatever the number of
samples. Because limits are powers of two, two histograms always share a grid: merging is exact and order does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

import numpy as np
from numpy.typing import NDArray

BINS = 8192
"""Even, and four times the 2,048 that are usual: the grid spans both signs and up to twice the largest value."""

_SMALLEST_EXPONENT = -100
_HALF = BINS // 2
_BLOCK = 1 << 15
"""Values counted at a time: with what is computed of them they stay in the cache, four times as fast as all at once."""


@dataclass(slots=True)
class Histogram:
    """Counts of values in ``[-limit, limit)`` with ``limit = 2 ** exponent``."""

    exponent: int = _SMALLEST_EXPONENT
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    @property
    def width(self) -> float:
        """Width of a bin, in the tensor's own unit."""
        return float(2.0**self.exponent / _HALF)

    def centres(self) -> NDArray[np.float64]:
        """Middle of each bin, ascending."""
        centres: NDArray[np.float64] = (np.arange(BINS, dtype=np.float64) - _HALF + 0.5) * self.width
        return centres

    def add(self, values: NDArray[np.floating]) -> None:
        """Count values of any shape; :class:`ValueError` where one is NaN or infinite."""
        flat = np.asarray(values).ravel()
        if not flat.size:
            return
        limit = float(max(flat.max(), -flat.min()))  # NaN goes through both
        if not isfinite(limit):
            raise ValueError("a histogram counts finite values only")
        # The grid is half open: a value at its upper end would move to another bin when the grid grows.
        self._grow(exponent_of(limit) + int(flat.max() == 2.0 ** exponent_of(limit)))
        for start in range(0, flat.size, _BLOCK):
            # In float32 the tiniest negative value would become zero, which is another bin.
            scaled = np.multiply(flat[start : start + _BLOCK], 1.0 / self.width, dtype=np.float64)
            places = np.floor(scaled, out=scaled).astype(np.intp)
            places += _HALF
            self.counts += np.bincount(places, minlength=BINS)

    def merge(self, other: Histogram) -> Histogram:
        """The histogram that would have seen both sets of values; neither operand changes."""
        merged = Histogram(self.exponent, self.counts.copy())
        merged._grow(other.exponent)
        merged.counts += _coarsened(other.counts, merged.exponent - other.exponent)
        return merged

    def magnitudes(self) -> NDArray[np.int64]:
        """Counts of ``abs(value)``: ``BINS // 2`` bins from zero up."""
        return self.counts[_HALF:] + self.counts[:_HALF][::-1]

    def _grow(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.counts = _coarsened(self.counts, exponent - self.exponent)
            self.exponent = exponent


def exponent_of(magnitude: float) -> int:
    """The smallest exponent whose power of two is not below ``magnitude``."""
    mantissa, exponent = np.frexp(magnitude)
    return max(_SMALLEST_EXPONENT, int(exponent) - int(mantissa == 0.5))


def _coarsened(counts: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    """The counts on a grid that reaches ``2 ** doublings`` times as far; one bin on either side of zero is the least."""
    together = 1 << min(doublings, _HALF.bit_length() - 1)
    kept = BINS // together
    coarse = np.zeros(BINS, np.int64)
    coarse[_HALF - kept // 2 : _HALF + kept // 2] = counts.reshape(kept, together).sum(axis=1)
    return coarse
