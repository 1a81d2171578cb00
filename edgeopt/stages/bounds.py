"""Confidence intervals: how far a measured number may be off. Pure numpy, seeded, no state.

Bootstrap percentile intervals: B. Efron, "Bootstrap Methods: Another Look at the Jackknife", The Annals of Statistics
7(1), 1979. Exact binomial interval: C. J. Clopper and E. S. Pearson, Biometrika 26(4), 1934.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_RESAMPLES = 2000
_CHUNK_VALUES = 1 << 20
_LOW, _HIGH = 2.5, 97.5


def mean_interval(values: Floats, *, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of ``values`` (shape [n]); equal ends for one value."""
    return _interval(values, lambda drawn: drawn.mean(axis=1), seed=seed)


def median_interval(values: Floats, *, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the median of ``values`` (shape [n])."""
    return _interval(values, lambda drawn: np.median(drawn, axis=1), seed=seed)


def binomial_interval(successes: int, trials: int, *, tail: float = 0.025) -> tuple[float, float]:
    """Clopper-Pearson interval of a rate; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    low = 0.0 if successes == 0 else _bisect(lambda rate: _at_least(successes, trials, rate) - tail)
    high = 1.0 if successes == trials else _bisect(lambda rate: tail - _at_most(successes, trials, rate))
    return low, high


def _interval(values: Floats, statistic: Callable[[Floats], Floats], *, seed: int) -> tuple[float, float]:
    drawn = np.concatenate([statistic(resampled) for resampled in _resampled(values, seed)])
    low, high = np.percentile(drawn, [_LOW, _HIGH])
    return float(low), float(high)


def _resampled(values: Floats, seed: int) -> Iterator[Floats]:
    """Resamples with replacement, in chunks of bounded memory."""
    random, count = np.random.default_rng(seed), len(values)
    rows = max(1, min(_RESAMPLES, _CHUNK_VALUES // max(1, count)))
    for start in range(0, _RESAMPLES, rows):
        yield values[random.integers(0, count, size=(min(rows, _RESAMPLES - start), count))]


def _at_most(successes: int, trials: int, rate: float) -> float:
    return math.fsum(_probability(k, trials, rate) for k in range(successes + 1))


def _at_least(successes: int, trials: int, rate: float) -> float:
    return math.fsum(_probability(k, trials, rate) for k in range(successes, trials + 1))


def _probability(k: int, trials: int, rate: float) -> float:
    if rate in (0.0, 1.0):
        return float(k == trials * rate)
    log_choose = math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
    return math.exp(log_choose + k * math.log(rate) + (trials - k) * math.log1p(-rate))


def _bisect(rising: Callable[[float], float]) -> float:
    """Root in (0, 1) of a function that rises through zero."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2
