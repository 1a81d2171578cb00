"""The supervisor with real processes: every way a worker can end, and that nothing of it is left."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgeopt.daemon import processes
from edgeopt.daemon.chatter import LOG_BYTES
from edgeopt.daemon.supervise import Outcome, Wish, end_leftover, run_worker
from edgeopt.layout import JobFolder
from edgeopt.orders import Event
from edgeopt.policy import WorkerLimits

COMMAND = [sys.executable, str(Path(__file__).parent / "fake_worker.py")]


class Run:
    """One supervised run of the fake worker."""

    def __init__(self, root: Path, behaviour: str) -> None:
        self.folder = JobFolder(root / "job1")
        self.folder.create()
        self.cache = root / "cache"
        (self.folder.input / "model.onnx").write_bytes(b"model")
        (self.folder.input / "job.yaml").write_text(behaviour)
        order = {
            "name": "m",
            "files": {"model": "model.onnx", "job_file": "job.yaml"},
            "source": {"file": "m.onnx", "format": "onnx", "sha256": "0" * 64, "bytes": 5},
            "policy": {"goal": {}},
        }
        self.folder.order.write_text(json.dumps(order))
        self.events: list[Event] = []
        self.wish: Wish | None = None

    def go(self, **limits: float) -> Outcome:
        return run_worker(
            self.folder,
            self.cache,
            WorkerLimits(**limits),  # type: ignore[arg-type]
            on_event=self.events.append,
            should_stop=lambda: self.wish,
            command=COMMAND,
        )

    def left_over(self) -> list[int]:
        """Processes that still have something to do with the job's folder."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and processes.read(int(entry.name)) is not None:
                try:
                    line = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if str(self.folder.root).encode() in line:
                    found.append(int(entry.name))
        return found


def test_worker_that_finishes_is_believed(tmp_path: Path) -> None:
    run = Run(tmp_path, "publish")
    outcome = run.go()
    assert (outcome.kind, outcome.message) == ("finished", "it is faster")
    assert [event.fields["stage"] for event in run.events if event.kind == "stage"] == [
        "ingest",
        "plan",
        "measure",
        "report",
    ]
    assert (run.folder.out / "manifest.json").is_file()


def test_worker_that_fails_says_why(tmp_path: Path) -> None:
    outcome = Run(tmp_path, "refuse").go()
    assert (outcome.kind, outcome.code, outcome.disposition) == ("failed", "unsupported-model", "quarantine")
    assert (outcome.message, outcome.hint, outcome.stage) == ("it is unsupported-model", "Mend it.", "ingest")


def test_crash_names_the_signal_and_what_was_said_last(tmp_path: Path) -> None:
    outcome = Run(tmp_path, "crash").go()
    assert (outcome.kind, outcome.code, outcome.signal) == ("crashed", "worker-crashed", 11)
    assert "SIGSEGV" in outcome.message
    assert outcome.tail == "about to crash\\x1b[31m"


def test_exit_without_a_last_word_is_a_crash(tmp_path: Path) -> None:
    outcome = Run(tmp_path, "silent").go()
    assert (outcome.kind, outcome.message) == ("crashed", "the worker exited with code 0 without a last word")


@pytest.mark.parametrize(("behaviour", "words"), [("garbage", "this is no event"), ("endless", "more than 256 KiB")])
def test_garbage_on_the_pipe_ends_the_worker(tmp_path: Path, behaviour: str, words: str) -> None:
    run = Run(tmp_path, behaviour)
    outcome = run.go()
    assert outcome.kind == "crashed"
    assert words in outcome.message
    assert run.left_over() == []


def test_time_limit_ends_the_worker(tmp_path: Path) -> None:
    run = Run(tmp_path, "hang")
    started_s = time.monotonic()
    outcome = run.go(job_timeout_s=0.5)
    assert (outcome.kind, outcome.code, outcome.stage) == ("timeout", "timeout", "measure")
    assert time.monotonic() - started_s < 4.0
    assert run.left_over() == []


def test_memory_limit_ends_the_worker(tmp_path: Path) -> None:
    run = Run(tmp_path, "eat")
    outcome = run.go(memory_bytes=100 << 20)
    assert (outcome.kind, outcome.code) == ("out-of-memory", "out-of-memory")
    assert "its limit is 100 MiB" in outcome.message
    assert run.left_over() == []


@pytest.mark.parametrize(("wish", "kind"), [("stop", "stopped"), ("cancel", "cancelled")])
def test_wish_ends_the_worker(tmp_path: Path, wish: Wish, kind: str) -> None:
    run = Run(tmp_path, "hang")
    run.wish = wish
    assert run.go().kind == kind
    assert run.left_over() == []


def test_child_in_its_own_session_that_ignores_sigterm_is_found_and_killed(tmp_path: Path) -> None:
    run = Run(tmp_path, "stubborn")

    def stop_once_the_child_runs() -> None:
        while not any(event.kind == "stage" for event in run.events):
            time.sleep(0.05)
        run.wish = "stop"

    thread = threading.Thread(target=stop_once_the_child_runs)
    thread.start()
    started_s = time.monotonic()
    assert run.go().kind == "stopped"
    thread.join()
    assert time.monotonic() - started_s < 9.0
    child = int((run.folder.work / "child").read_text())
    assert processes.read(child) is None
    assert run.left_over() == []


def test_flood_of_output_is_cut_off_in_the_log(tmp_path: Path) -> None:
    run = Run(tmp_path, "flood")
    assert run.go().kind == "finished"
    assert run.folder.log.stat().st_size == LOG_BYTES


def test_worker_sees_no_secret_of_the_daemons_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "canary")
    program = tmp_path / "show.py"
    program.write_text("import os,sys\nsys.stdout.write(' '.join(os.environ) + ' '.join(os.environ.values()))\n")
    run = Run(tmp_path, "publish")
    outcome = run_worker(
        run.folder,
        run.cache,
        WorkerLimits(),
        on_event=run.events.append,
        should_stop=lambda: None,
        command=[sys.executable, str(program)],
    )
    assert "PATH" in outcome.tail
    assert "SECRET" not in outcome.tail
    assert "canary" not in outcome.tail


def test_worker_that_outlived_its_daemon_is_ended_at_the_next_start(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        found = processes.read(process.pid)
        assert found is not None
        (tmp_path / "worker.pid").write_text(f"{found.pid} {found.started - 1}\n")
        assert end_leftover(folder) is False  # the pid belongs to another process by now
        (tmp_path / "worker.pid").write_text(f"{found.pid} {found.started}\n")
        assert end_leftover(folder) is True
        assert process.wait(timeout=5) == -9
    finally:
        process.kill()
        process.wait()


def test_no_descriptor_is_left_open_by_a_run(tmp_path: Path) -> None:
    Run(tmp_path / "warm", "publish").go()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number, behaviour in enumerate(("publish", "crash", "garbage")):
        Run(tmp_path / str(number), behaviour).go()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
