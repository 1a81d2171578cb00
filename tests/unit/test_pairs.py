"""Several pairs of processes: what an interval over pairs must see and one over rounds cannot."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.records import Artifact
from edgeopt.stages import measure, pairs
from edgeopt.stages.measure import Effort


def _artifact(path: str) -> Artifact:
    return Artifact(path=path, format="onnx", sha256="", bytes=0, runtime="onnxruntime", runtime_version="", session=())


class Luck:
    """Starts runners whose process has a luck of its own, the same for all of its inferences."""

    def __init__(self, seconds: dict[str, float], spread: float, seed: int) -> None:
        self.seconds, self.spread, self.random = seconds, spread, np.random.default_rng(seed)
        self.started: list[str] = []

    def start(self, artifact: Artifact) -> Any:
        self.started.append(artifact.path)
        return LuckyRunner(self.seconds[artifact.path] * math.exp(self.random.normal(0.0, self.spread)))


class LuckyRunner:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def hold(self, feeds: Any) -> None:
        return None

    def durations_s(self, count: int) -> list[float]:
        return [self.seconds] * count

    def peak_memory_bytes(self) -> int:
        return 100


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted runners take no time, so neither may warming up and pausing."""
    monkeypatch.setattr(measure, "_WARM_UP_S", 0.0)
    monkeypatch.setattr(measure, "_PAUSE_S", 0.0)


def _compare(luck: Luck, bar: float | None = None) -> pairs.PairTiming:
    return pairs.compare(_artifact("a"), _artifact("b"), {}, Effort(longest_s=0.6, bar=bar), start=luck.start)


def test_close_race_gets_as_many_pairs_again_and_a_decided_one_does_not() -> None:
    close = Luck({"a": 0.0103, "b": 0.01}, spread=0.03, seed=1)
    assert _compare(close, bar=1.02).timing.rounds == 2 * pairs.PAIRS
    assert _compare(Luck({"a": 0.02, "b": 0.01}, spread=0.03, seed=1), bar=1.02).timing.rounds == pairs.PAIRS


def test_every_second_pair_starts_the_candidate_first() -> None:
    luck = Luck({"a": 0.01, "b": 0.005}, spread=0.0, seed=0)
    found = _compare(luck)
    assert luck.started == ["a", "b", "b", "a"] * 3
    assert found.timing.speedup.value == pytest.approx(2.0)
    assert found.timing.original.p50_ms == pytest.approx(10.0)
    assert found.timing.candidate.p50_ms == pytest.approx(5.0)


def test_process_luck_rarely_makes_an_identical_file_a_winner() -> None:
    intervals = [_compare(Luck({"a": 0.01, "b": 0.01}, spread=0.03, seed=seed)).timing.speedup for seed in range(30)]
    holding = sum(interval.low <= 1.0 <= interval.high for interval in intervals)
    winning = sum(interval.low > 1.02 for interval in intervals)
    assert holding >= 25
    assert winning <= 1


def test_real_gain_is_found_through_the_luck() -> None:
    interval = _compare(Luck({"a": 0.013, "b": 0.01}, spread=0.03, seed=1)).timing.speedup
    assert interval.low > 1.1


@given(st.lists(st.floats(0.1, 10.0), min_size=2, max_size=12))
def test_interval_holds_the_geometric_mean_and_turns_with_the_ratios(ratios: list[float]) -> None:
    interval = pairs.geometric_interval(ratios)
    turned = pairs.geometric_interval([1 / ratio for ratio in ratios])
    assert interval.low <= interval.value <= interval.high
    assert interval.value * turned.value == pytest.approx(1.0)
    assert interval.low * turned.high == pytest.approx(1.0)
