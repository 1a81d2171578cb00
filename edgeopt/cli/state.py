"""``edgeopt status``, ``jobs`` and ``explain``: what the daemon's database and folders say. Nothing here changes anything.

They work beside a running daemon and after it, since they read the same files: the job database in ``state/``, the
manifests in ``published/``, the reasons in ``rejected/``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.cli import options, tables
from edgeopt.daemon.printable import printable
from edgeopt.errors import CorruptState, EnvironmentFault, UsageError

if TYPE_CHECKING:
    from edgeopt.cli.main import Subparsers
    from edgeopt.config.schema import Config
    from edgeopt.daemon.jobs import Job, JobStore, State

DATABASE_FILE = "jobs.sqlite"
_REASON_CHARACTERS = 120
_JOBS_COLUMNS = ("job", "state", "name", "version", "stage", "changed", "reason")


def add_parser(subparsers: Subparsers) -> None:
    """Arguments of the commands that read."""
    status = subparsers.add_parser(
        "status",
        help="the daemon's state in a few lines",
        description="Whether the daemon runs, how many jobs are in which state, and which models are published.",
    )
    jobs = subparsers.add_parser("jobs", help="the jobs, newest first", description="The jobs, newest first.")
    jobs.add_argument("--state", metavar="STATE", help="only jobs in this state, such as queued or rejected")
    jobs.add_argument("--limit", type=int, default=20, metavar="N", help="at most so many (default: 20)")
    explain = subparsers.add_parser(
        "explain",
        help="why a file or a model is where it is",
        description="Why a file is still in the inbox, was rejected, or came out as the version it did.",
    )
    explain.add_argument("what", metavar="FILE|NAME", help="a file that was dropped, or the name of a model")
    for parser in (status, jobs, explain):
        options.add_config(parser)
        options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what was asked for; 1 where nothing is known."""
    config = options.load_config(arguments.config)
    if arguments.command == "explain":
        from edgeopt.cli.explain import run_explain

        return run_explain(arguments, config)
    if arguments.command == "jobs":
        _check_jobs_arguments(arguments)
    with opened_store(config) as store:
        return _run_status(arguments, config, store) if arguments.command == "status" else _run_jobs(arguments, store)


@contextmanager
def opened_store(config: Config) -> Iterator[JobStore]:
    """The daemon's job database, which must exist; :class:`EnvironmentFault` says how it comes into being."""
    from edgeopt.daemon.jobs import JobStore

    path = Path(config.state) / DATABASE_FILE
    try:
        present = path.is_file()
    except PermissionError as error:
        raise EnvironmentFault(
            f"{path} may not be read by this user", hint="Run it as the daemon's user or with sudo."
        ) from error
    if not present:
        raise EnvironmentFault(
            f"there is no job database at {path}",
            hint="Start the daemon once with `edgeopt serve`, or name its configuration with -c FILE.",
        )
    store = JobStore(path, create=False)
    try:
        yield store
    finally:
        store.close()


def find_job(store: JobStore, wanted: str) -> Job:
    """The job with this id (or a beginning of it), else the newest of the model with this name."""
    jobs = store.jobs()
    by_id = [job for job in jobs if len(wanted) >= 4 and job.job_id.startswith(wanted)]
    found = by_id or [job for job in jobs if job.name == wanted]
    if not found:
        raise UsageError(f"there is no job or model {wanted!r:.80}", hint="Run `edgeopt jobs` to see the jobs.")
    if len(by_id) > 1:
        raise UsageError(f"{wanted!r:.80} begins {len(by_id)} job ids", hint="Write more of the id.")
    return found[0]


def _run_status(arguments: argparse.Namespace, config: Config, store: JobStore) -> int:
    pid = owner_pid(Path(config.state))
    running: tuple[State, ...] = ("running",)
    document: dict[str, Any] = {
        "running": pid is not None,
        "pid": pid,
        "jobs": store.counts(),
        "models": [asdict(model) for model in store.models()],
        "current": [job_document(job) for job in store.jobs(states=running)],
        "inbox": config.inbox,
        "published": config.published,
        "rejected": config.rejected,
        "state": config.state,
        "http": config.http.listen,
    }
    if arguments.json:
        options.print_json(document)
        return 0
    print(f"daemon    {f'running, process {pid}' if pid is not None else 'not running'}")
    counts = [f"{count} {state}" for state, count in document["jobs"].items() if count]
    print(f"jobs      {', '.join(counts) or 'none so far'}")
    for job in document["current"]:
        print(f"now       {job['name']}: {job['stage'] or 'starting'}")
    for key in ("inbox", "published", "rejected"):
        print(f"{key:<9} {document[key]}")
    if models := document["models"]:
        rows = [
            (model["name"], str(model["version"]), "pinned" if model["pinned"] else "follows the newest")
            for model in models
        ]
        print()
        tables.draw(("model", "version", "policy"), rows, to=sys.stdout)
    return 0


def _check_jobs_arguments(arguments: argparse.Namespace) -> None:
    from edgeopt.daemon.jobs import STATES

    if arguments.state not in (None, *STATES):
        raise UsageError(f"there is no state {arguments.state!r:.40}", hint=f"Use one of {', '.join(STATES)}.")
    if arguments.limit < 1:
        raise UsageError(f"--limit is {arguments.limit}, not 1 or more", hint="Give a positive number.")


def _run_jobs(arguments: argparse.Namespace, store: JobStore) -> int:
    from edgeopt.daemon.jobs import STATES

    wanted = [state for state in STATES if arguments.state in (None, state)]
    jobs = store.jobs(states=wanted, limit=arguments.limit)
    if arguments.json:
        options.print_json([job_document(job) for job in jobs])
        return 0
    rows = [
        (
            job.job_id,
            job.state,
            job.name,
            str(job.version or "-"),
            job.stage or "-",
            _ago(time.time() - job.updated_s),
            printable(job.message, limit=_REASON_CHARACTERS) or "-",
        )
        for job in jobs
    ]
    tables.draw(_JOBS_COLUMNS, rows, to=sys.stdout)
    return 0


def job_document(job: Job) -> dict[str, Any]:
    """A job for ``--json``: the row without what only the daemon needs."""
    inner = ("drop_json", "key", "drop_settled")
    return {key: value for key, value in asdict(job).items() if key not in inner}


def owner_pid(state: Path) -> int | None:
    """The process id of the daemon that holds the state folder's lock; None where nobody does."""
    import fcntl

    lock = state / "lock"
    try:
        with lock.open("rb") as stream:
            try:
                # a shared lock is refused exactly while a daemon holds its exclusive one
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                digits = "".join(
                    character for character in stream.read(64).decode("ascii", "replace") if character.isdigit()
                )
                return int(digits) if digits else 0
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorruptState(f"{lock} cannot be read: {error.strerror}", hint="Check its permissions.") from error
    return None


def _ago(seconds: float) -> str:
    for size_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size_s:
            return f"{int(seconds // size_s)} {unit} ago"
    return f"{max(0, int(seconds))} s ago"
