"""What goes wrong with the daemon itself: killed, told to end, a lost database, a full disk, a busy port, a wrong configuration."""

from __future__ import annotations

import errno
import json
import signal
import socket
import time
from functools import partial
from pathlib import Path

from edgeopt.daemon import processes
from edgeopt.daemon.jobs import JobStore
from edgeopt.daemon.shelf import rollback
from tests.integration.daemon import Daemon
from tests.published import check_whole, versions


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


def test_second_daemon_on_the_same_state_or_inbox_is_refused_and_told_by_whom(daemon: Daemon, in_memory: Path) -> None:
    daemon.start()
    assert daemon.process is not None
    for other in (Daemon(in_memory / "a"), Daemon(in_memory / "b")):
        other.inbox = daemon.inbox
        if other.root.name == "a":
            other.state = daemon.state
        other.configure()
        assert other.start(ready=False).wait_for_end() == 1
        assert f"is in use by process {daemon.process.pid}" in other.said()


def test_port_in_use_is_said_and_jobs_go_on(in_memory: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Daemon(in_memory, http=f"127.0.0.1:{port}") as daemon:
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


def test_pause_file_keeps_jobs_from_starting(daemon: Daemon, in_memory: Path) -> None:
    pause = in_memory / "pause"
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


def test_disk_that_fills_to_the_last_byte_in_a_job_loses_nothing(small_disk: Path) -> None:
    with Daemon(small_disk) as daemon:
        daemon.start()
        daemon.drop("m", "slow")
        daemon.wait_for_state("running")
        with (small_disk / "ballast").open("wb", buffering=0) as ballast:
            try:
                while ballast.write(b"\0" * 4096):
                    pass
            except OSError as full:
                assert full.errno == errno.ENOSPC
        daemon.wait(lambda: daemon.get("/readyz")[0] == 503 or daemon.jobs("held") or daemon.jobs("queued"))
        assert not daemon.ended()
        (small_disk / "ballast").unlink()
        assert daemon.wait_for_state("published")[0]["version"] == 1
        daemon.wait(lambda: daemon.waiting() == [])
        check_whole(daemon.published / "m" / "current")


def test_full_disk_holds_everything_and_goes_on_once_there_is_space(small_disk: Path) -> None:
    with Daemon(small_disk) as daemon:
        daemon.start()
        ballast = small_disk / "ballast"
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
