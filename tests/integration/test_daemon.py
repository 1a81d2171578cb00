"""The daemon as a process, with a real inbox, a real database and a worker program that only pretends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeopt.daemon.jobs import JobStore
from tests.integration.daemon import Daemon
from tests.published import check_whole, versions


# ---------------------------------------------------------------- the main path
def test_dropped_model_is_published_and_leaves_the_inbox(daemon: Daemon) -> None:
    daemon.start()
    daemon.drop("digits", "publish")
    (job,) = daemon.wait_for_state("published")
    assert (job["name"], job["version"], job["message"]) == ("digits", 1, "it is faster")
    daemon.wait(lambda: daemon.waiting() == [])
    manifest = check_whole(daemon.published / "digits" / "current")
    assert manifest["version"] == 1
    (model,) = json.loads(daemon.get("/api/v1/models")[1])["models"]
    assert (model["name"], model["version"], model["speedup"]) == ("digits", 1, 1.5)
    assert daemon.metric('edgeopt_jobs_total{reason="none",result="published"}') == 1
    assert daemon.metric('edgeopt_model_speedup_ratio{model="digits"}') == 1.5
    assert daemon.metric('edgeopt_stage_duration_seconds_count{stage="measure"}') == 1
    assert daemon.metric('edgeopt_candidates_total{outcome="measured"}') == 1
    assert daemon.get("/models/digits/report")[1].startswith("<!doctype html>")
    assert list((daemon.state / "staging").iterdir()) == []
    assert daemon.stop() == 0


def test_same_content_again_names_the_version_and_does_no_work(daemon: Daemon) -> None:
    daemon.start()
    daemon.drop("digits", "publish")
    daemon.wait_for_state("published")
    daemon.wait(lambda: daemon.waiting() == [])
    daemon.drop("digits", "publish")
    (job,) = daemon.wait_for_state("duplicate")
    assert (job["version"], job["message"]) == (1, "the same content is published as digits version 1")
    daemon.wait(lambda: daemon.waiting() == [])
    assert versions(daemon.published / "digits") == [1]


def test_same_name_with_new_content_is_the_next_version(daemon: Daemon) -> None:
    daemon.start()
    for number in (1, 2):
        daemon.drop("digits", "publish", seed=number)
        daemon.wait_for_state("published", number)
    assert versions(daemon.published / "digits") == [1, 2]
    assert check_whole(daemon.published / "digits" / "current")["version"] == 2


def test_two_drops_of_one_content_are_worked_on_once(daemon: Daemon) -> None:
    for name in ("a", "b"):
        daemon.drop(name, "slow")
    daemon.start()
    daemon.wait_for_state("published")
    (duplicate,) = daemon.wait_for_state("duplicate")
    assert duplicate["message"] == "the same content is published as a version 1"
    daemon.wait(lambda: daemon.waiting() == [])


def test_once_works_the_inbox_off_and_ends(daemon: Daemon) -> None:
    daemon.drop("a", "publish", seed=1)
    daemon.drop("b", "publish", seed=2)
    (daemon.inbox / "README.txt").write_text("not a drop")
    assert daemon.start("--once").wait_for_end() == 0
    assert daemon.waiting() == ["README.txt"]
    assert [versions(daemon.published / name) for name in ("a", "b")] == [[1], [1]]


def test_once_says_by_its_exit_code_that_something_was_refused(daemon: Daemon) -> None:
    daemon.drop("a", "publish", seed=1)
    daemon.drop("b", "refuse", seed=2)
    assert daemon.start("--once").wait_for_end() == 1
    assert versions(daemon.published / "a") == [1]


# ---------------------------------------------------------------- what goes wrong with a job
@pytest.mark.parametrize(
    ("behaviour", "code", "attempts"),
    [
        ("refuse", "unsupported-model", 1),
        ("limit", "out-of-memory", 2),
        ("crash", "worker-crashed", 3),
        ("liar", "bad-output", 2),
    ],
)
def test_job_that_cannot_work_ends_in_rejected_with_its_drop_and_reason(
    daemon: Daemon, behaviour: str, code: str, attempts: int
) -> None:
    daemon.start()
    daemon.drop("m", behaviour)
    (job,) = daemon.wait_for_state("rejected")
    daemon.wait(lambda: daemon.waiting() == [] and list(daemon.rejected.glob("m@*-1")))
    reason = daemon.reason("m@*-1")
    assert (reason["code"], reason["job"]) == (code, job["id"])
    assert set(reason) >= {"code", "message", "hint", "stage", "at"}
    (folder,) = daemon.rejected.glob("m@*-1")
    assert {entry.name for entry in folder.iterdir()} == {"m.onnx", "m.yaml", "reason.json"}
    assert daemon.said().count("job-started") == attempts
    assert daemon.metric(f'edgeopt_jobs_total{{reason="{code}",result="rejected"}}') == 1


def test_file_that_is_no_model_is_rejected_and_the_next_one_published(daemon: Daemon) -> None:
    daemon.start()
    (daemon.inbox / "bad.onnx").write_bytes(b"this is text" * 10)
    daemon.wait_for_state("rejected")
    daemon.wait(lambda: list(daemon.rejected.glob("bad@*-1")))
    assert daemon.reason("bad@*-1")["code"] == "not-a-model"
    daemon.drop("good", "publish")
    daemon.wait_for_state("published")


def test_job_that_crashed_once_is_tried_again(daemon: Daemon) -> None:
    daemon.start()
    daemon.drop("m", "crash_once")
    (job,) = daemon.wait_for_state("published")
    assert job["attempts"] == 1


def test_devices_trouble_holds_the_job_and_quarantines_nothing(daemon: Daemon) -> None:
    daemon.start()
    daemon.drop("m", "hold")
    (job,) = daemon.wait_for_state("published")
    assert job["attempts"] == 0
    assert "job-held" in daemon.said()
    assert list(daemon.rejected.iterdir()) == []


def test_cancelled_job_leaves_its_drop_alone_until_it_is_retried(daemon: Daemon) -> None:
    daemon.start()
    daemon.drop("m", "hang")
    (job,) = daemon.wait_for_state("running")
    store = JobStore(daemon.state / "jobs.sqlite", create=False)
    store.ask(job["id"], "cancel")
    daemon.wait_for_state("cancelled")
    daemon.drop("other", "publish", seed=5)
    daemon.wait_for_state("published")
    daemon.wait(lambda: daemon.waiting() == ["m.onnx", "m.yaml"])  # the drop leaves after its outcome is durable
    store.ask(job["id"], "retry")
    store.close()
    assert daemon.wait_for_state("running")[0]["id"] != job["id"]


def test_rejected_drop_is_put_back_when_it_is_retried(daemon: Daemon) -> None:
    daemon.start()
    daemon.drop("m", "refuse")
    (job,) = daemon.wait_for_state("rejected")
    daemon.wait(lambda: list(daemon.rejected.glob("m@*-1")))
    store = JobStore(daemon.state / "jobs.sqlite", create=False)
    store.ask(job["id"], "retry")
    store.close()
    daemon.wait_for_state("rejected", 2)
    daemon.wait(lambda: len(list(daemon.rejected.glob("m@*"))) == 1 and daemon.waiting() == [])


def test_drop_replaced_during_its_job_is_worked_on_as_well(daemon: Daemon) -> None:
    daemon.start()
    daemon.drop("m", "slow", seed=1)
    daemon.wait_for_state("running")
    daemon.drop("m", "slow", seed=2)
    daemon.wait_for_state("published", 2)
    daemon.wait(lambda: daemon.waiting() == [])
    assert versions(daemon.published / "m") == [1, 2]


# ---------------------------------------------------------------- what it is like
def test_idle_daemon_is_small_and_has_no_heavy_library(daemon: Daemon) -> None:
    daemon.start()
    daemon.get("/metrics")
    daemon.get("/")
    assert daemon.process is not None
    proc = Path(f"/proc/{daemon.process.pid}")
    maps = (proc / "maps").read_text()
    assert [library for library in ("numpy", "onnx", "torch", "tensorrt") if library in maps] == []
    resident_kib = next(
        int(line.split()[1]) for line in (proc / "status").read_text().splitlines() if line.startswith("VmRSS")
    )
    assert resident_kib < 40 * 1024


def test_idle_daemon_uses_no_processor(daemon: Daemon) -> None:
    daemon.start()
    assert daemon.process is not None
    stat = Path(f"/proc/{daemon.process.pid}/stat")

    def ticks() -> int:
        fields = stat.read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    time.sleep(0.5)
    before = ticks()
    time.sleep(2.0)
    assert ticks() - before <= 4


def test_importing_the_daemon_imports_nothing_heavy() -> None:
    code = (
        "import sys, edgeopt.daemon.app, edgeopt.daemon.loop\n"
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'onnxscript', 'torch', 'tensorrt', 'jinja2', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_systemd_is_told_ready_status_reload_watchdog_and_stopping(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        name = f"edgeopt-test-{os.getpid()}"
        supervisor.bind("\0" + name)
        supervisor.settimeout(10)
        daemon.environment = {"NOTIFY_SOCKET": "@" + name, "WATCHDOG_USEC": "2000000"}
        daemon.start()
        heard = ""

        def hear(what: str) -> None:
            nonlocal heard
            while what not in heard:
                heard += supervisor.recv(4096).decode() + "\n"

        hear("READY=1")
        assert "WATCHDOG=1" not in heard
        hear("WATCHDOG=1")
        daemon.drop("m", "slow")
        hear("STATUS=m: measure")
        heard = ""
        daemon.signal(signal.SIGHUP)
        hear("RELOADING=1\nMONOTONIC_USEC=")
        hear("READY=1")
        daemon.signal(signal.SIGTERM)
        hear("STOPPING=1")
        assert daemon.wait_for_end() == 0
