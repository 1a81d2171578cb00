from __future__ import annotations

import io

import pytest

from edgeopt import wire
from edgeopt.cli import progress
from edgeopt.cli.progress import Tracker
from edgeopt.orders import Event
from edgeopt.records import Interval, Latency, Measurement, Quality, Recipe, Step, Trial


def measured(technique: str, speedup: float) -> Event:
    quality = Quality(kind="agreement", metric="expected_drop", value=0.99, drop=0.001, ci95=(0.0, 0.004), samples=64)
    measurement = Measurement(
        latency=Latency(p50_ms=1.0, p90_ms=1.1, p99_ms=1.2),
        speedup=Interval(value=speedup, low=speedup - 0.1, high=speedup + 0.1),
        bytes=10,
        bytes_ratio=2.0,
        peak_memory_bytes=1,
        memory_ratio=1.0,
        quality=quality,
    )
    trial = Trial(recipe=Recipe(steps=(Step.of(technique),)), measurement=measurement)
    return Event(kind="candidate", fields={"trial": wire.encode(trial), "outcome": "measured"})


def refused(technique: str, reason: str) -> Event:
    trial = Trial(recipe=Recipe(steps=(Step.of(technique),)), refused=reason)
    return Event(kind="candidate", fields={"trial": wire.encode(trial), "outcome": "refused"})


def test_best_so_far_is_the_fastest_measured_candidate() -> None:
    tracker = Tracker(started_s=0.0)
    for event in (measured("tidy", 1.1), measured("quantize_static", 1.9), measured("cast_fp16", 0.7)):
        tracker.observe(event)
    assert (tracker.best, tracker.best_speedup) == ("quantize_static", 1.9)


def test_refused_candidate_says_why() -> None:
    line = Tracker(started_s=0.0).observe(refused("quantize_dynamic", "there is no MatMul"))
    assert line == "candidate quantize_dynamic: refused: there is no MatMul"


def test_time_left_comes_from_the_ratio_and_never_out_of_the_first_percents() -> None:
    tracker = Tracker(started_s=10.0)
    tracker.observe(Event(kind="progress", fields={"ratio": 0.05}))
    assert tracker.left_s(20.0) is None
    tracker.observe(Event(kind="progress", fields={"ratio": 0.25, "trial": 1, "trials": 4}))
    assert tracker.left_s(20.0) == pytest.approx(30.0)
    assert tracker.summary() == "starting, trial 1/4"


def test_ratio_never_goes_back() -> None:
    tracker = Tracker(started_s=0.0)
    for ratio in (0.5, 0.3, 7.0):
        tracker.observe(Event(kind="progress", fields={"ratio": ratio}))
    assert tracker.ratio == 1.0


def test_without_a_terminal_events_are_plain_lines() -> None:
    out, now = io.StringIO(), iter([0.0, 61.0, 62.0, 63.0])
    with progress.shown(out, name="digits", clock=lambda: next(now)) as observe:
        observe(Event(kind="stage", fields={"stage": "measure"}))
        observe(Event(kind="note", fields={"text": "hostile \x1b[2J text"}))
    assert out.getvalue() == "[1:01] stage measure\n[1:02] note: hostile \\x1b[2J text\n"


def test_on_a_terminal_the_bar_shows_the_trial_and_ends() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with progress.shown(out, name="digits") as observe:
        observe(Event(kind="progress", fields={"ratio": 0.5, "trial": 2, "trials": 4}))
        observe(measured("tidy", 1.5))
    assert "candidate tidy: 1.50 times as fast" in out.getvalue()
