"""The daemon as a process, with a real inbox, a real database and a worker program that only pretends."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from edgeopt.daemon import processes
from edgeopt.daemon.jobs import JobStore
from edgeopt.daemon.shelf import rollback
from tests.integration.daemon import Daemon
from tests.published import check_whole, versions


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where possible: the daemon's many fsyncs are what these tests would wait for."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="edgeopt-", dir=memory if os.access(memory, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path) as made:
        yield made


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


# ---------------------------------------------------------------- what goes wrong with the daemon
def test_sigterm_puts_the_running_job_back_and_ends_with_0(daemon: Daemon) -> None:
    daemon.start()
    daemon.drop("m", "slow")
    daemon.wait_for_state("running")
    started_s = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - started_s < 10.0
    store = JobStore(daemon.state / "jobs.sqlite", create=False)
    (job,) = store.jobs()
    store.close()
    assert (job.state, job.attempts) == ("queued", 0)
    daemon.start()
    assert daemon.wait_for_state("published")[0]["version"] == 1


def test_sigint_ends_with_130(daemon: Daemon) -> None:
    daemon.start().signal(signal.SIGINT)
    assert daemon.wait_for_end() == 130


def test_kill_9_in_a_job_loses_nothing_and_leaves_no_worker(daemon: Daemon) -> None:
    daemon.start()
    daemon.drop("m", "slow")
    daemon.wait_for_state("running")
    pid_file = daemon.wait(lambda: list((daemon.state / "staging").glob("*/worker.pid")))[0]
    daemon.kill()
    worker = int(pid_file.read_text().split()[0])
    daemon.start()
    daemon.wait(lambda: processes.read(worker) is None or "job-started" in daemon.said())
    (job,) = daemon.wait_for_state("published")
    assert (job["version"], job["attempts"]) == (1, 1)
    daemon.wait(lambda: daemon.waiting() == [])
    assert versions(daemon.published / "m") == [1]


def _has_published(daemon: Daemon, least: int) -> bool:
    return len(list(daemon.published.glob("*/1"))) >= least


def test_kill_9_at_many_moments_publishes_everything_exactly_once(daemon: Daemon) -> None:
    for number in range(4):
        daemon.drop(f"m{number}", "publish", seed=number)
    for delays_s in ((0.0, 0.3), (0.1, 0.4), (0.2, 0.5), (0.35, 0.45)):
        for delay_s in delays_s:
            daemon.start()
            time.sleep(delay_s)
            daemon.kill()
        # a third kill in one and the same job would be a crash loop, which is another test's matter
        least = min(4, len(list(daemon.published.glob("*/1"))) + 1)
        daemon.start()
        daemon.wait(partial(_has_published, daemon, least))
        daemon.stop()
    daemon.start()
    daemon.wait(lambda: daemon.waiting() == [])
    for number in range(4):
        assert versions(daemon.published / f"m{number}") == [1]
        check_whole(daemon.published / f"m{number}" / "current")
    assert list(daemon.rejected.iterdir()) == []
    assert list((daemon.state / "staging").iterdir()) == []


def test_daemon_that_is_killed_three_times_in_one_job_rejects_it(daemon: Daemon) -> None:
    daemon.drop("m", "hang")
    for _ in range(3):
        daemon.start()
        daemon.wait_for_state("running")
        daemon.kill()
    daemon.start()
    (job,) = daemon.wait_for_state("rejected")
    assert job["code"] == "worker-crashed"
    daemon.wait(lambda: list(daemon.rejected.glob("m@*-1")))


def test_lost_database_is_rebuilt_from_the_folders(daemon: Daemon) -> None:
    daemon.start()
    daemon.drop("m", "publish")
    daemon.drop("bad", "refuse", seed=1)
    daemon.wait_for_state("published")
    daemon.wait_for_state("rejected")
    daemon.wait(lambda: daemon.waiting() == [])
    daemon.kill()
    for file in daemon.state.glob("jobs.sqlite*"):
        file.unlink()
    (daemon.state / "jobs.sqlite").write_bytes(b"garbage" * 1000)
    daemon.start()
    assert "database-rebuilt" in daemon.said()
    assert [model["name"] for model in json.loads(daemon.get("/api/v1/models")[1])["models"]] == ["m"]
    assert [job["code"] for job in daemon.jobs("rejected")] == ["unsupported-model"]
    daemon.drop("m", "publish")
    assert daemon.wait_for_state("duplicate")[0]["version"] == 1


def test_second_daemon_on_the_same_state_or_inbox_is_refused_and_told_by_whom(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start()
    assert daemon.process is not None
    for other in (Daemon(tmp_path / "a"), Daemon(tmp_path / "b")):
        other.inbox = daemon.inbox
        if other.root.name == "a":
            other.state = daemon.state
        other.configure()
        assert other.start(ready=False).wait_for_end() == 1
        assert f"is in use by process {daemon.process.pid}" in other.said()


def test_port_in_use_is_said_and_jobs_go_on(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Daemon(tmp_path, http=f"127.0.0.1:{port}") as daemon:
            daemon.start()
            assert "http-unavailable" in daemon.said()
            daemon.drop("m", "publish")
            daemon.wait((daemon.published / "m" / "1").is_dir)
            taken.close()
            daemon.wait(lambda: "http-listening" in daemon.said())
            assert daemon.get("/readyz") == (200, "ready\n")


def test_sighup_takes_the_new_configuration_and_keeps_the_old_one_where_it_is_wrong(daemon: Daemon) -> None:
    daemon.start()
    assert daemon.metric("edgeopt_config_last_reload_successful") == 1
    daemon.configure(log="{level: loud}")
    daemon.signal(signal.SIGHUP)
    daemon.wait(lambda: "reload-failed" in daemon.said())
    assert daemon.metric("edgeopt_config_last_reload_successful") == 0
    daemon.configure(log="{level: debug}", inbox=f"{daemon.root}/elsewhere")
    daemon.signal(signal.SIGHUP)
    daemon.wait(lambda: " reloaded" in daemon.said())
    assert "reload-needs-restart" in daemon.said()
    assert daemon.metric("edgeopt_config_last_reload_successful") == 1
    daemon.drop("m", "publish")
    daemon.wait_for_state("published")


def test_pause_file_keeps_jobs_from_starting(daemon: Daemon, tmp_path: Path) -> None:
    pause = tmp_path / "pause"
    pause.touch()
    daemon.configure(neighbour=f"{{pause_file: {pause}}}")
    daemon.start()
    daemon.drop("m", "publish")
    daemon.wait_for_state("queued")
    assert daemon.metric('edgeopt_paused{reason="pause_file"}') == 1
    time.sleep(0.5)
    assert daemon.jobs("running") == []
    pause.unlink()
    daemon.wait_for_state("published")
    assert daemon.metric('edgeopt_paused{reason="pause_file"}') == 0


def test_missing_inbox_is_not_ready_and_unpublishes_nothing(daemon: Daemon) -> None:
    daemon.start()
    daemon.drop("m", "publish")
    daemon.wait_for_state("published")
    daemon.wait(lambda: daemon.waiting() == [])
    daemon.inbox.rmdir()
    daemon.wait(lambda: daemon.get("/readyz")[0] == 503)
    assert versions(daemon.published / "m") == [1]
    daemon.inbox.mkdir()
    daemon.drop("n", "publish", seed=3)
    daemon.wait_for_state("published", 2)
    daemon.wait(lambda: daemon.get("/readyz")[0] == 200)


def test_rollback_by_another_process_is_noticed(daemon: Daemon) -> None:
    daemon.start()
    for number in (1, 2):
        daemon.drop("m", "publish", seed=number)
        daemon.wait_for_state("published", number)
    rollback(daemon.published, "m")
    daemon.wait(lambda: daemon.metric('edgeopt_model_version{model="m"}') == 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_disk_that_fills_to_the_last_byte_in_a_job_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "none", str(disk)], check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        with Daemon(disk) as daemon:
            daemon.start()
            daemon.drop("m", "slow")
            daemon.wait_for_state("running")
            with (disk / "ballast").open("wb", buffering=0) as ballast:
                try:
                    while ballast.write(b"\0" * 4096):
                        pass
                except OSError as full:
                    assert full.errno == errno.ENOSPC
            daemon.wait(lambda: daemon.get("/readyz")[0] == 503 or daemon.jobs("held") or daemon.jobs("queued"))
            assert not daemon.ended()
            (disk / "ballast").unlink()
            assert daemon.wait_for_state("published")[0]["version"] == 1
            daemon.wait(lambda: daemon.waiting() == [])
            check_whole(daemon.published / "m" / "current")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_full_disk_holds_everything_and_goes_on_once_there_is_space(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "none", str(disk)], check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        with Daemon(disk) as daemon:
            daemon.start()
            ballast = disk / "ballast"
            ballast.write_bytes(b"\0" * (60 << 20))
            daemon.drop("m", "publish")
            daemon.wait(lambda: daemon.metric('edgeopt_jobs{state="held"}') == 1)
            assert daemon.get("/readyz")[0] == 503
            ballast.unlink()
            daemon.wait_for_state("published")
            daemon.wait(lambda: daemon.waiting() == [])
            assert list(daemon.rejected.iterdir()) == []
            daemon.wait(lambda: daemon.get("/readyz")[0] == 200)
            assert daemon.stop() == 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


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
