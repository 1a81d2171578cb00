"""status, jobs, explain, retry, cancel, pin, rollback and gc on a state folder as a daemon leaves it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeopt.cli.main import main
from edgeopt.daemon.jobs import Job, JobStore


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "edgeopt.yaml").write_text("inbox: inbox\npublished: published\nrejected: rejected\nstate: state\n")
    for name in ("inbox", "published", "rejected", "state"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def store(home: Path) -> Iterator[JobStore]:
    opened = JobStore(home / "state" / "jobs.sqlite")
    yield opened
    opened.close()


def add(store: JobStore, job_id: str, name: str, state: str = "queued", **fields: object) -> None:
    store.add(Job(job_id=job_id, name=name, key=job_id * 2, state=state, source_file=f"{name}.onnx", **fields))  # type: ignore[arg-type]


def version(home: Path, name: str, number: int) -> Path:
    folder = home / "published" / name / str(number)
    folder.mkdir(parents=True)
    result = {"speedup": {"value": 1.5, "ci95": [1.4, 1.6]}}
    manifest = {
        "schema": 1,
        "version": number,
        "source": {},
        "artifact": {},
        "recipe": [{"technique": "tidy"}],
        "verdict": "tidy: faster",
        "result": result,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    current = folder.parent / "current"
    current.unlink(missing_ok=True)
    current.symlink_to(str(number))
    return folder


def run(home: Path, *words: str) -> int:
    return main([*words, "-c", str(home / "edgeopt.yaml")])


def run_json(home: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert run(home, *words, "--json") == 0
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def test_status_tells_the_running_daemon_from_none(
    home: Path, store: JobStore, capsys: pytest.CaptureFixture[str]
) -> None:
    add(store, "aaaa1111", "digits")
    assert run_json(home, capsys, "status")["running"] is False
    with (home / "state" / "lock").open("w+") as lock:
        lock.write("4711\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        document = run_json(home, capsys, "status")
    assert (document["running"], document["pid"]) == (True, 4711)
    assert document["jobs"]["queued"] == 1  # type: ignore[index]


def test_jobs_lists_the_newest_first_and_filters(
    home: Path, store: JobStore, capsys: pytest.CaptureFixture[str]
) -> None:
    add(store, "aaaa1111", "old", "rejected", message="it is no model")
    add(store, "bbbb2222", "new")
    assert run(home, "jobs") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[1:]] == ["new", "old"]
    assert run(home, "jobs", "--state", "rejected") == 0
    assert "it is no model" in capsys.readouterr().out.splitlines()[1]


def test_explain_says_why_a_file_waits_in_the_inbox(
    home: Path, store: JobStore, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("digits.onnx.part", "notes.txt"):
        (home / "inbox" / name).write_text("x")
    assert run(home, "explain", "digits.onnx.part") == 0
    assert "until it is renamed" in capsys.readouterr().out
    assert run(home, "explain", str(home / "inbox" / "notes.txt")) == 0
    assert "no model by its name" in capsys.readouterr().out


def test_explain_tells_rejections_and_versions(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / "rejected" / "digits@0123456789ab-1"
    folder.mkdir()
    (folder / "reason.json").write_text(json.dumps({"code": "not-a-model", "message": "HTML", "hint": "Load it."}))
    version(home, "digits", 1)
    assert run(home, "explain", "digits.onnx") == 0
    said = capsys.readouterr().out
    assert "not-a-model" in said
    assert "1.50 [1.40, 1.60]" in said


def test_unknown_things_are_explained_with_exit_code_1(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(home, "explain", "ghost") == 1
    assert "nothing is known of 'ghost'" in capsys.readouterr().err


def test_retry_and_cancel_leave_a_wish_for_the_daemon(
    home: Path, store: JobStore, capsys: pytest.CaptureFixture[str]
) -> None:
    add(store, "aaaa1111", "bad", "failed")
    add(store, "bbbb2222", "waiting")
    assert run(home, "retry", "bad") == 0
    assert run(home, "cancel", "bbbb") == 0
    assert {job.job_id: job.request for job in store.requests()} == {"aaaa1111": "retry", "bbbb2222": "cancel"}
    assert "when it starts" in capsys.readouterr().out


def test_what_does_not_fit_the_state_of_a_job_is_wrong_usage(home: Path, store: JobStore) -> None:
    add(store, "aaaa1111", "done", "published")
    add(store, "aaaa2222", "open")
    assert run(home, "cancel", "done") == 2
    assert run(home, "retry", "open") == 2
    assert run(home, "cancel", "ghost") == 2
    assert run(home, "cancel", "aaaa") == 2  # begins two ids
    assert store.requests() == []


def test_pin_holds_and_rollback_goes_one_back(home: Path, store: JobStore, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2, 3):
        version(home, "digits", number)
    current = home / "published" / "digits" / "current"
    assert run_json(home, capsys, "rollback", "digits")["version"] == 2
    assert current.readlink() == Path("2")
    assert run_json(home, capsys, "pin", "digits", "1")["version"] == 1
    assert current.readlink() == Path("1")
    assert [(row.version, row.pinned) for row in store.models()] == [(1, 1)]
    assert run_json(home, capsys, "pin", "digits", "--off")["version"] == 3
    assert run(home, "rollback", "digits", "9") == 2


def test_gc_removes_old_versions_and_leftovers_but_nothing_in_use(
    home: Path, store: JobStore, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1, 6):
        version(home, "digits", number)
    add(store, "aaaa1111", "digits", source_sha256="c" * 64)
    for name in ("staging/aaaa1111", "staging/dead", "cache/" + "c" * 32, "cache/" + "d" * 32):
        (home / "state" / name).mkdir(parents=True)
    planned = run_json(home, capsys, "gc", "--dry-run")["removed"]
    assert (home / "published" / "digits" / "1").exists()
    assert run_json(home, capsys, "gc")["removed"] == planned
    assert sorted(path.name for path in (home / "published" / "digits").iterdir()) == ["3", "4", "5", "current"]
    assert [path.name for path in (home / "state" / "staging").iterdir()] == ["aaaa1111"]
    assert [path.name for path in (home / "state" / "cache").iterdir()] == ["c" * 32]
    assert run_json(home, capsys, "gc") == {"removed": [], "bytes": 0, "dry_run": False}


def test_gc_leaves_a_running_daemons_folders_alone(
    home: Path, store: JobStore, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "state" / "staging" / "dead").mkdir(parents=True)
    with (home / "state" / "lock").open("w+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_json(home, capsys, "gc")["removed"] == []
    assert (home / "state" / "staging" / "dead").is_dir()
