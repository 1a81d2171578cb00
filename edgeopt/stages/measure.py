"""Latency and memory: a candidate against the original, each alone in its process, in turns.

Input: two started runners that hold the same feeds. Output: a :class:`Timing`. The two take turns in blocks, ABBA, so
that drift of the machine's speed hits both alike; one ABBA round gives one ratio; the speedup is the median of the
rounds' ratios with a bootstrap interval. A pause before each block lets the other process' spinning threads fall
asleep, and the first inference of each block is not counted, since it finds the other's data in the caches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgeopt.records import Interval, Latency
from edgeopt.stages.bounds import median_interval
from edgeopt.stages.runners import Runner

_BLOCK_S = 0.02
_PAUSE_S = 0.004
_WARM_UP_S = 0.3
_WARM_UP_RUNS = 3
_FEWEST_ROUNDS = 8
_MOST_ROUNDS = 200
_CLOSE_ENOUGH = 0.01
_ALONE_S = 0.5
_PATIENCE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What the turns gave. ``speedup`` is the original's latency over the candidate's: above 1 the candidate is faster."""

    original: Latency
    candidate: Latency
    speedup: Interval
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to measure: until the interval is narrow, at most ``longest_s`` where nothing hangs on it."""

    longest_s: float = 6.0
    seed: int = 0
    bar: float | None = None
    """A speedup to decide about: a candidate above it whose interval still reaches below gets up to three times as long."""
    slow_rounds: int = 4
    """Rounds that even the slowest model gets."""


def compare(
    original: Runner,
    candidate: Runner,
    effort: Effort,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Timing:
    """Time both in turns. Both must hold their feeds already."""
    pace = [_warm_up(runner, clock) for runner in (original, candidate)]
    counts = [max(1, min(1000, math.ceil(_BLOCK_S / seconds))) for seconds in pace]
    durations: tuple[list[float], list[float]] = ([], [])
    ratios: list[float] = []
    started = clock()
    while not _enough(ratios, clock() - started, effort):
        block = {0: 0.0, 1: 0.0}
        for turn in (0, 1, 1, 0):
            sleep(_PAUSE_S)
            timed = (original, candidate)[turn].durations_s(counts[turn] + 1)[1:]
            durations[turn].extend(timed)
            block[turn] += float(np.median(timed))
        ratios.append(block[0] / block[1])
    return Timing(
        original=latency(durations[0]),
        candidate=latency(durations[1]),
        speedup=_speedup(ratios, effort.seed),
        rounds=len(ratios),
    )


def alone(runner: Runner, *, clock: Callable[[], float] = time.monotonic) -> Latency:
    """Latency of one artifact with nothing to compare it to, over about ``_ALONE_S`` seconds."""
    pace = _warm_up(runner, clock)
    return latency(runner.durations_s(max(_WARM_UP_RUNS, min(1000, math.ceil(_ALONE_S / pace)))))


def latency(durations_s: Sequence[float]) -> Latency:
    """Percentiles of single inferences, in milliseconds."""
    p50, p90, p99 = (float(value) * 1e3 for value in np.percentile(np.asarray(durations_s), [50, 90, 99]))
    return Latency(p50_ms=p50, p90_ms=p90, p99_ms=p99)


def _warm_up(runner: Runner, clock: Callable[[], float]) -> float:
    """Seconds that one warm inference takes."""
    started, timed = clock(), runner.durations_s(_WARM_UP_RUNS)
    while clock() - started < _WARM_UP_S:
        timed = runner.durations_s(max(1, min(50, int(0.05 / max(1e-6, min(timed))))))
    return max(1e-6, float(np.median(timed)))


def _enough(ratios: Sequence[float], spent_s: float, effort: Effort) -> bool:
    if spent_s >= effort.longest_s and len(ratios) >= effort.slow_rounds:
        return spent_s >= _PATIENCE * effort.longest_s or not is_undecided(_speedup(ratios, effort.seed), effort.bar)
    if len(ratios) < _FEWEST_ROUNDS:
        return False
    if len(ratios) >= _MOST_ROUNDS:
        return True
    if len(ratios) % 4:
        return False
    interval = _speedup(ratios, effort.seed)
    return interval.high - interval.low < _CLOSE_ENOUGH * interval.value


def is_undecided(speedup: Interval, bar: float | None) -> bool:
    """The value clears ``bar`` and its interval does not."""
    return bar is not None and speedup.low <= bar < speedup.value


def _speedup(ratios: Sequence[float], seed: int) -> Interval:
    values = np.asarray(ratios, dtype=np.float64)
    low, high = median_interval(values, seed=seed)
    return Interval(value=float(np.median(values)), low=low, high=high)
