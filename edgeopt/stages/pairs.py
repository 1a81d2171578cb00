"""The speedup that is published: several pairs of fresh processes, and an interval over the pairs.

Stands between ``measure`` and the verdict. All rounds of one pair of processes share what the two happened to get: where
their pages lie, which core their threads prefer. An interval over rounds does not see that, and a file measured against
itself then "wins" now and then (decision 1). So a would-be winner meets the original in ``PAIRS`` pairs of fresh processes, each of
which gives one ratio; the interval is Student's for the mean of the logarithms of the ratios ("The Probable Error of a Mean",
Biometrika 6(1), 1908). In every second pair the candidate is started first and begins the turns, so that neither profits from the order.
Where the bar lies between the interval's low end and its value, as many pairs again are measured, once.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgeopt.records import Artifact, Interval, Latency
from edgeopt.stages import measure
from edgeopt.stages.measure import Effort, Timing
from edgeopt.stages.runners import Runner

if TYPE_CHECKING:
    from edgeopt.protocols import Feeds

PAIRS = 6
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201)
"""97.5 % quantiles of Student's distribution with 1, 2, 3 ... degrees of freedom."""
_SLOW_ROUNDS = 2
"""Of each pair, where one inference takes long; the pairs are what counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairTiming:
    """What the pairs gave; ``timing.rounds`` counts the pairs. Peaks are medians over the pairs, in bytes."""

    timing: Timing
    original_peak_bytes: int
    candidate_peak_bytes: int


def compare(
    original: Artifact,
    candidate: Artifact,
    feeds: Feeds,
    effort: Effort,
    *,
    start: Callable[[Artifact], Runner] = Runner,
) -> PairTiming:
    """Time both in fresh pairs; raises :class:`~edgeopt.errors.MeasureFailed` where one does not open or run."""
    each = replace(effort, longest_s=effort.longest_s / PAIRS, slow_rounds=_SLOW_ROUNDS, bar=None)
    taken: list[_Pair] = []
    for number in range(2 * PAIRS):
        if number == PAIRS and not measure.is_undecided(over([pair.timing for pair in taken]).speedup, effort.bar):
            break
        one = replace(each, seed=effort.seed + number)
        if number % 2:
            taken.append(_turned(_pair(candidate, original, feeds, one, start)))
        else:
            taken.append(_pair(original, candidate, feeds, one, start))
    return PairTiming(
        timing=over([pair.timing for pair in taken]),
        original_peak_bytes=int(statistics.median(pair.peaks[0] for pair in taken)),
        candidate_peak_bytes=int(statistics.median(pair.peaks[1] for pair in taken)),
    )


@dataclass(frozen=True, slots=True)
class _Pair:
    timing: Timing
    peaks: tuple[int, int]


def _pair(
    first: Artifact, second: Artifact, feeds: Feeds, effort: Effort, start: Callable[[Artifact], Runner]
) -> _Pair:
    with ExitStack() as stack:
        runners = [stack.enter_context(start(artifact)) for artifact in (first, second)]
        for runner in runners:
            runner.hold(feeds)
        timing = measure.compare(runners[0], runners[1], effort)
        return _Pair(timing, (runners[0].peak_memory_bytes(), runners[1].peak_memory_bytes()))


def over(timings: Sequence[Timing]) -> Timing:
    """One timing of several pairs: percentiles are the pairs' medians, the interval is over pairs."""
    return Timing(
        original=_middle([timing.original for timing in timings]),
        candidate=_middle([timing.candidate for timing in timings]),
        speedup=geometric_interval([timing.speedup.value for timing in timings]),
        rounds=len(timings),
    )


def geometric_interval(ratios: Sequence[float]) -> Interval:
    """Geometric mean of two to twelve positive ratios with Student's 95 % interval."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    margin = _STUDENT[len(logs) - 2] * statistics.stdev(logs) / math.sqrt(len(logs))
    return Interval(value=math.exp(mean), low=math.exp(mean - margin), high=math.exp(mean + margin))


def _turned(pair: _Pair) -> _Pair:
    """The pair with the roles exchanged."""
    timing, ratio = pair.timing, pair.timing.speedup
    speedup = Interval(value=1 / ratio.value, low=1 / ratio.high, high=1 / ratio.low)
    turned = replace(timing, original=timing.candidate, candidate=timing.original, speedup=speedup)
    return _Pair(turned, (pair.peaks[1], pair.peaks[0]))


def _middle(latencies: Sequence[Latency]) -> Latency:
    return Latency(
        p50_ms=statistics.median(each.p50_ms for each in latencies),
        p90_ms=statistics.median(each.p90_ms for each in latencies),
        p99_ms=statistics.median(each.p99_ms for each in latencies),
    )
