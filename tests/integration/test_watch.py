"""The watcher against the real kernel; the tests wait for its wake-up, never for a time."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inbox import names_in
from watchdog.observers.inotify_c import InotifyFD

from edgeopt.daemon.watch import Watcher

PATIENCE_S = 20.0


class Alarm:
    """A wake-up that can be waited for."""

    def __init__(self) -> None:
        self._rung = threading.Event()

    def __call__(self) -> None:
        self._rung.set()

    def rings(self, within_s: float = PATIENCE_S) -> bool:
        rung = self._rung.wait(within_s)
        self._rung.clear()
        return rung


@pytest.fixture
def alarm() -> Alarm:
    return Alarm()


@pytest.fixture
def watcher(inbox: Path, alarm: Alarm) -> Iterator[Watcher]:
    made = Watcher(inbox, backend="inotify", wake=alarm, poll_s=0.05)
    made.start()
    yield made
    made.stop()


def settle_down(alarm: Alarm) -> None:
    while alarm.rings(0.3):
        pass


def until_armed_on(watcher: Watcher, inbox: Path, alarm: Alarm) -> None:
    """Wait until the watcher sees this very folder, then let its wake-ups fade."""
    for _ in range(200):
        events = watcher._events
        if events is not None and events.still_watches(inbox):
            break
        alarm.rings(0.1)
    else:
        pytest.fail("the inbox was not watched again")
    settle_down(alarm)


def test_a_written_a_renamed_and_a_removed_file_wake(watcher: Watcher, inbox: Path, alarm: Alarm) -> None:
    assert (watcher.backend, watcher.fallback_reason) == ("inotify", None)
    (inbox / "a.onnx.part").write_bytes(b"x")
    assert alarm.rings()
    settle_down(alarm)
    (inbox / "a.onnx.part").rename(inbox / "a.onnx")
    assert alarm.rings()
    settle_down(alarm)
    (inbox / "a.onnx").unlink()
    assert alarm.rings()


def test_a_late_file_inside_a_folder_drop_wakes(watcher: Watcher, inbox: Path, alarm: Alarm) -> None:
    (inbox / "a" / "calibration").mkdir(parents=True)
    assert alarm.rings()
    settle_down(alarm)
    (inbox / "a" / "model.onnx").write_bytes(b"x")
    assert alarm.rings()
    settle_down(alarm)
    (inbox / "a" / "calibration" / "1.png").write_bytes(b"x")
    assert alarm.rings()


def test_looking_at_the_inbox_wakes_nobody(watcher: Watcher, inbox: Path, alarm: Alarm) -> None:
    (inbox / "a.onnx").write_bytes(b"x")
    settle_down(alarm)
    assert names_in(inbox) == ["a.onnx"]
    (inbox / "a.onnx").read_bytes()
    assert not alarm.rings(0.3)


def test_a_deleted_and_remade_inbox_is_watched_again(watcher: Watcher, inbox: Path, alarm: Alarm) -> None:
    shutil.rmtree(inbox)
    assert alarm.rings()
    for _ in range(200):
        if (watcher.fallback_reason or "").startswith("the inbox cannot be watched"):
            break
        alarm.rings(0.1)
    assert watcher.backend == "poll"
    inbox.mkdir()
    until_armed_on(watcher, inbox, alarm)
    assert watcher.fallback_reason is None
    (inbox / "a.onnx").write_bytes(b"x")
    assert alarm.rings()


def test_a_moved_away_and_replaced_inbox_is_watched_again(watcher: Watcher, inbox: Path, alarm: Alarm) -> None:
    inbox.rename(inbox.with_name("old"))
    inbox.mkdir()
    assert alarm.rings()
    until_armed_on(watcher, inbox, alarm)
    (inbox / "a.onnx").write_bytes(b"x")
    assert alarm.rings()


def test_lost_events_are_counted_and_wake(inbox: Path, alarm: Alarm) -> None:
    held = threading.Event()

    def wake() -> None:
        held.wait(PATIENCE_S)  # the reading thread stands still, so that the kernel's queue fills up
        alarm()

    watcher = Watcher(inbox, backend="inotify", wake=wake)
    watcher.start()
    first, second = inbox / "a", inbox / "b"
    first.touch()
    second.touch()
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for _ in range(queue // 2 + 2000):
        os.utime(first)
        os.utime(second)
    held.set()
    for _ in range(200):
        if watcher.overflows:
            break
        alarm.rings(0.1)
    watcher.stop()
    assert watcher.overflows >= 1


def test_exhausted_limits_fall_back_to_polling_and_say_so(
    inbox: Path, alarm: Alarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted() -> int:
        raise OSError(errno.EMFILE, "inotify instance limit reached")

    monkeypatch.setattr(InotifyFD, "_create_inotify_fd", staticmethod(exhausted))
    watcher = Watcher(inbox, backend="auto", wake=alarm, poll_s=0.05)
    watcher.start()
    assert watcher.backend == "poll"
    assert "max_user_instances" in (watcher.fallback_reason or "")
    assert alarm.rings()
    assert alarm.rings()
    watcher.stop()


def test_an_older_watchdog_is_no_crash_but_polling(inbox: Path, alarm: Alarm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchdog.observers.inotify_c", None)
    watcher = Watcher(inbox, backend="inotify", wake=alarm, poll_s=0.05)
    watcher.start()
    assert watcher.backend == "poll"
    assert "watchdog is older" in (watcher.fallback_reason or "")
    assert alarm.rings()
    watcher.stop()


def test_polling_that_was_asked_for_is_no_fallback(inbox: Path, alarm: Alarm) -> None:
    watcher = Watcher(inbox, backend="poll", wake=alarm, poll_s=0.05)
    watcher.start()
    assert (watcher.backend, watcher.fallback_reason) == ("poll", None)
    assert alarm.rings()
    watcher.stop()


def test_nothing_is_left_over_after_many_starts_and_failures(tmp_path: Path, alarm: Alarm) -> None:
    def count() -> tuple[int, int]:
        return len(names_in(Path("/proc/self/fd"))), threading.active_count()

    before = count()
    for number in range(20):
        folder: Any = tmp_path / "missing" if number % 2 else tmp_path
        watcher = Watcher(folder, backend="inotify", wake=alarm)
        watcher.start()
        watcher.stop()
    assert count() == before
