"""The job store: states, order, duplicates, crashes, wishes, and a file that is broken."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeopt.daemon.jobs import CRASH_LIMIT, Job, JobStore
from edgeopt.errors import CorruptState, StorageFault


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    opened = JobStore(tmp_path / "jobs.sqlite", wall_s=lambda: 100.0)
    yield opened
    opened.close()


def queued(store: JobStore, job_id: str, *, name: str = "", key: str = "", size: int = 0) -> Job:
    store.add(Job(job_id=job_id, name=name or job_id, key=key or job_id, bytes=size))
    return store.get(job_id)


def test_job_goes_from_queued_over_running_to_published(store: JobStore) -> None:
    queued(store, "a", name="digits", key="k")
    store.start("a")
    store.finish("a", "published", version=1)
    assert (store.get("a").state, store.get("a").version) == ("published", 1)
    assert store.find_by_key("k") == [("digits", 1)]
    assert store.highest_version("digits") == 1


@pytest.mark.parametrize("state", ["published", "rejected", "cancelled"])
def test_finished_job_cannot_start_again(store: JobStore, state: str) -> None:
    queued(store, "a")
    store.start("a")
    store.finish("a", state)  # type: ignore[arg-type]
    with pytest.raises(CorruptState, match="cannot become running"):
        store.start("a")


def test_small_job_overtakes_a_big_one_but_not_for_ever(store: JobStore) -> None:
    queued(store, "big", size=1 << 30)
    order = []
    for number in range(60):
        queued(store, f"small{number}")
        job = store.next_queued()
        assert job is not None
        store.start(job.job_id)
        store.finish(job.job_id, "published", version=1)
        order.append(job.job_id)
    assert order[0] == "small0"
    assert "big" in order


def test_later_drop_of_a_name_waits_for_the_earlier_one(store: JobStore) -> None:
    queued(store, "old", name="digits", size=1 << 30)
    queued(store, "new", name="digits")
    assert (job := store.next_queued()) is not None
    assert job.job_id == "old"
    store.start("old")
    assert store.next_queued() is None
    store.finish("old", "published", version=1)
    assert (job := store.next_queued()) is not None
    assert job.job_id == "new"


def test_jobs_that_wait_are_left_out(store: JobStore) -> None:
    queued(store, "a")
    queued(store, "b")
    assert (job := store.next_queued(but={"a"})) is not None
    assert job.job_id == "b"
    assert store.next_queued(but={"a", "b"}) is None


def test_daemon_that_dies_in_a_job_counts_an_attempt_and_a_crash(store: JobStore) -> None:
    queued(store, "a", key="k")
    for died in range(1, CRASH_LIMIT):
        store.start("a")
        assert store.recover() == []
        assert (store.get("a").state, store.get("a").attempts) == ("queued", died)
    store.start("a")
    assert [job.job_id for job in store.recover()] == ["a"]


def test_stopped_job_is_not_counted_as_an_attempt(store: JobStore) -> None:
    queued(store, "a")
    store.start("a")
    store.requeue("a", count=False)
    assert (store.get("a").state, store.get("a").attempts) == ("queued", 0)


def test_crash_queues_the_job_again_until_the_limit(store: JobStore) -> None:
    queued(store, "a", key="k")
    for crashes in range(1, CRASH_LIMIT + 1):
        store.start("a")
        assert store.crashed("a") == crashes
    assert (store.get("a").state, store.get("a").attempts) == ("running", CRASH_LIMIT - 1)


def test_outcome_said_twice_is_one_outcome(store: JobStore) -> None:
    queued(store, "a")
    store.start("a")
    for _ in range(2):
        store.finish("a", "rejected", reason=("code", "message", "", ""))
    assert store.get("a").code == "code"


def test_outcome_forgets_the_crashes_of_its_content(store: JobStore) -> None:
    queued(store, "a", key="k")
    store.start("a")
    assert store.record_crash("k") == 1
    store.finish("a", "published", version=1)
    assert store.record_crash("k") == 1


def test_held_jobs_are_queued_again_at_a_start(store: JobStore) -> None:
    queued(store, "a")
    store.hold("a", code="disk-full", message="no space")
    assert store.counts()["held"] == 1
    store.recover()
    assert (store.get("a").state, store.get("a").attempts) == ("queued", 0)


def test_wish_of_another_process_is_seen_and_answered(store: JobStore, tmp_path: Path) -> None:
    queued(store, "a")
    other = JobStore(tmp_path / "jobs.sqlite", create=False)
    other.ask("a", "cancel")
    other.close()
    assert [(job.job_id, job.request) for job in store.requests()] == [("a", "cancel")]
    store.ask("a", "")
    assert store.requests() == []
    with pytest.raises(KeyError):
        store.ask("nobody", "cancel")


def test_wish_for_a_job_survives_a_daemon_that_dies(store: JobStore) -> None:
    queued(store, "a")
    store.start("a")
    store.ask("a", "cancel")
    store.recover()
    assert [job.job_id for job in store.requests()] == ["a"]
    store.finish("a", "cancelled")
    assert store.requests() == []


def test_pruning_keeps_unfinished_jobs_and_drops_still_in_the_inbox(store: JobStore) -> None:
    queued(store, "active")
    queued(store, "unsettled")
    store.finish("unsettled", "rejected")
    for number in range(20):
        queued(store, f"done{number}")
        store.finish(f"done{number}", "rejected")
        store.settle_drop(f"done{number}")
    store.prune(keep=5)
    left = {job.job_id for job in store.jobs()}
    assert left == {"active", "unsettled", *(f"done{number}" for number in range(15, 20))}


def test_version_number_is_never_used_twice(store: JobStore) -> None:
    store.add_version("digits", 7, "k")
    store.set_current("digits", 3, pinned=0)
    assert store.highest_version("digits") == 7
    store.forget_model("digits")
    assert store.models() == []
    assert store.highest_version("digits") == 7


def test_versions_that_are_gone_from_disk_are_named_to_no_duplicate(store: JobStore) -> None:
    store.add_version("digits", 1, "old")
    store.add_version("digits", 2, "new")
    store.forget_versions("digits", keep=[2])
    assert store.find_by_key("old") == []
    assert store.find_by_key("new") == [("digits", 2)]


def test_broken_file_is_moved_aside_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    store = JobStore(path)
    for number in range(200):
        queued(store, f"job{number}")
    store.close()
    data = bytearray(path.read_bytes())
    data[4096 : 3 * 4096] = os.urandom(2 * 4096)
    path.write_bytes(data)
    again = JobStore(path)
    assert again.moved_aside == tmp_path / "jobs.sqlite.corrupt-1"
    assert again.jobs() == []
    queued(again, "works")
    again.close()


def test_command_line_never_moves_a_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    path.write_bytes(b"this is no database" * 500)
    with pytest.raises(CorruptState):
        JobStore(path, create=False)
    assert list(tmp_path.glob("*corrupt*")) == []


def test_database_of_a_newer_edgeopt_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    JobStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(CorruptState, match="schema 99"):
        JobStore(path)
    assert path.exists()


def test_locked_database_is_the_devices_trouble(tmp_path: Path, store: JobStore) -> None:
    store._database.connection.execute("PRAGMA busy_timeout=10")
    other = sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageFault):
        queued(store, "a")
    other.execute("ROLLBACK")
    other.close()
    assert queued(store, "a").state == "queued"


def test_what_the_loop_asks_at_every_turn_never_reads_the_whole_table(store: JobStore) -> None:
    with store._database.transaction():
        for number in range(2000):
            store.add(
                Job(job_id=f"j{number}", name=f"j{number}", key=f"k{number}", state="published", drop_settled=True)
            )
    asked: list[str] = []
    store._database.connection.set_trace_callback(asked.append)
    store.find_active("k5")
    store.find_by_key("k5")
    store.requests()
    store.unsettled()
    store.next_queued(but={"j1"})
    store.jobs(states=("running",))
    store.highest_version("j5")
    store._database.connection.set_trace_callback(None)
    assert len(asked) == 7
    for question in asked:
        plan = [
            row["detail"] for row in store._database.connection.execute(f"EXPLAIN QUERY PLAN {question}").fetchall()
        ]
        assert not any(detail.startswith("SCAN") for detail in plan), (question, plan)
