from __future__ import annotations

import sys
from dataclasses import replace

import builders
import numpy as np
import pytest

from edgeopt.errors import MeasureFailed
from edgeopt.graph import save
from edgeopt.records import Artifact
from edgeopt.stages import measure
from edgeopt.stages.measure import Effort
from edgeopt.stages.runners import Runner


class ScriptedRunner:
    """Takes as long as it is told, on a clock that both runners share."""

    def __init__(self, seconds: float, clock: list[float], drift: float = 0.0) -> None:
        self.seconds, self.clock, self.drift = seconds, clock, drift
        self.random = np.random.default_rng(int(seconds * 1e6))

    def durations_s(self, count: int) -> list[float]:
        taken = []
        for _ in range(count):
            once = self.seconds * (1 + self.drift * self.clock[0]) * self.random.uniform(0.98, 1.02)
            self.clock[0] += once
            taken.append(once)
        return taken


def _compare(original: float, candidate: float, *, drift: float = 0.0, longest_s: float = 6.0):
    clock = [0.0]
    runners = [ScriptedRunner(seconds, clock, drift) for seconds in (original, candidate)]
    return measure.compare(*runners, Effort(longest_s=longest_s), clock=lambda: clock[0], sleep=lambda seconds: None)


def test_twice_as_fast_is_a_speedup_of_two() -> None:
    timing = _compare(0.010, 0.005)
    assert timing.speedup.low <= 2.0 <= timing.speedup.high
    assert timing.candidate.p50_ms == pytest.approx(5.0, rel=0.02)


def test_machine_that_slows_down_all_the_time_does_not_bend_the_ratio() -> None:
    timing = _compare(0.010, 0.010, drift=0.2)
    assert timing.speedup.value == pytest.approx(1.0, abs=0.02)


def test_slow_models_still_get_a_few_rounds() -> None:
    assert _compare(3.0, 2.0, longest_s=1.0).rounds == 4


def test_quiet_machine_ends_early() -> None:
    assert _compare(0.001, 0.001).rounds < 200


@pytest.mark.parametrize(
    ("ratios", "spent_s", "enough"),
    [
        ([0.95, 1.05, 1.15, 1.0, 1.1, 1.06] * 2, 3.0, False),  # above the bar, its interval not yet
        ([0.95, 1.05, 1.15, 1.0, 1.1, 1.06] * 2, 6.1, True),  # patience ends
        ([0.7, 0.8, 0.9, 0.75] * 3, 2.1, True),  # lost: nothing hangs on it
        ([1.5, 1.6, 1.7, 1.55] * 3, 2.1, True),  # won
    ],
)
def test_only_a_close_race_gets_more_time(ratios, spent_s, enough) -> None:
    assert measure._enough(ratios, spent_s, Effort(longest_s=2.0, bar=1.02)) is enough


def _artifact(path: str) -> Artifact:
    return Artifact(path=path, format="onnx", sha256="", bytes=0, runtime="onnxruntime", runtime_version="", session=())


def test_runner_that_dies_is_a_failed_measurement_that_names_the_signal() -> None:
    killed = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(MeasureFailed, match="SIGSEGV"), Runner(_artifact("m"), command=killed):
        pass


def test_runner_that_prints_rubbish_is_a_failed_measurement() -> None:
    with pytest.raises(MeasureFailed), Runner(_artifact("m"), command=(sys.executable, "-c", "print('hello')")):
        pass


def test_model_that_does_not_open_is_refused_with_the_runtimes_reason(tmp_path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"rubbish")
    with pytest.raises(MeasureFailed, match="does not open"), Runner(_artifact(str(tmp_path / "m.onnx"))):
        pass


def test_hint_of_what_failed_in_the_runner_s_process_comes_through() -> None:
    artifact = replace(_artifact("m"), runtime="onnxruntim")
    with pytest.raises(MeasureFailed, match="there is no runtime called 'onnxruntim'") as caught, Runner(artifact):
        pass
    assert caught.value.refusal.endswith("called 'onnxruntim'. Use one of onnxruntime, tensorrt, tensorrt-rtx.")


def test_runner_runs_times_and_weighs_a_real_model(tmp_path) -> None:
    file = tmp_path / "model.onnx"
    save.save(builders.mlp(), file)
    with Runner(_artifact(str(file))) as runner:
        feeds = builders.feeds(builders.mlp())
        first, second = runner.run(feeds), runner.run(feeds)
        assert all(np.array_equal(one, two) for one, two in zip(first, second, strict=True))
        runner.hold(feeds)
        assert len(runner.durations_s(5)) == 5
        assert runner.peak_memory_bytes() > 0
