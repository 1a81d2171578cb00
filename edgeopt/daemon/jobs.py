"""The job store: what became of every drop, and which versions exist, durable across crashes.

Between intake (:meth:`JobStore.add`) and the outcome's commit (:meth:`JobStore.finish`) stands one row a job::

    queued > running > published | rejected | failed | cancelled        duplicate: never ran
       ^       |
       +-------+ stopped, crashed, retried          held: the device is in trouble; queued again later

An outcome is committed first and the drop leaves the inbox afterwards; ``drop_settled`` is 0 in between, so that a
crash there is finished at the next start. Wall clock times are information only: order, backoff and time limits never
depend on them. Other processes (the command line) put wishes into ``request``; only the daemon changes states.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path

from edgeopt.daemon import database
from edgeopt.daemon.connection import SharedConnection
from edgeopt.daemon.rows import ACTIVE, CRASH_LIMIT, QUEUED, RUNNING, STATES, Job, ModelRow, Request, State
from edgeopt.errors import CorruptState

__all__ = ["ACTIVE", "CRASH_LIMIT", "QUEUED", "RUNNING", "STATES", "Job", "JobStore", "ModelRow", "Request", "State"]

KEPT_ROWS = 2000
_OVERTAKEN = 4.0
"""How many later jobs may overtake a job for each doubling of its size: small before big, yet nobody waits for ever."""
_COLUMNS = tuple(field.name for field in fields(Job))
_FIRST_OF_NAME = (
    "AND NOT EXISTS (SELECT 1 FROM jobs AS other WHERE other.state IN ('queued', 'running', 'held') "
    "AND other.name = job.name AND other.seq < job.seq)"
)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM jobs"  # noqa: S608 - names of our own dataclass


class JobStore:
    """The store at ``path``; safe to use from several threads, and from several processes for requests.

    Every method raises :class:`~edgeopt.errors.EnvironmentFault` where the disk refuses and
    :class:`~edgeopt.errors.CorruptState` where the file is broken. ``moved_aside`` names a broken file found at opening.
    """

    def __init__(self, path: Path, *, create: bool = True, wall_s: Callable[[], float] = time.time) -> None:
        self._wall_s = wall_s
        connection, self.moved_aside = database.open_database(path, create=create)
        self._database = SharedConnection(connection)

    def close(self) -> None:
        self._database.close()

    # ------------------------------------------------------------ the life of a job
    def add(self, job: Job) -> None:
        """A new job, in whatever state it starts in."""
        now_s = self._wall_s()
        names = (*_COLUMNS, "rank")
        with self._database.transaction() as database_:
            last = database_.execute("SELECT coalesce(max(seq), 0) FROM jobs").fetchone()[0]
            values = {name: getattr(job, name) for name in _COLUMNS} | {"created_s": now_s, "updated_s": now_s}
            values["rank"] = last + _OVERTAKEN * math.log2(1 + job.bytes / (1 << 20))
            database_.execute(
                f"INSERT INTO jobs ({', '.join(names)}) VALUES ({', '.join(':' + name for name in names)})",  # noqa: S608 - our own names
                values,
            )

    def start(self, job_id: str) -> None:
        self._move(job_id, "running", since=QUEUED, code="", message="", hint="", stage="")

    def requeue(self, job_id: str, *, count: bool) -> None:
        """Back to the queue: a stopped job (``count`` False), a bad attempt (True), or a held one whose wait is over."""
        with self._database.transaction():
            attempts = self.get(job_id).attempts + count
            self._move(job_id, "queued", since=ACTIVE, attempts=attempts)

    def hold(self, job_id: str, *, code: str, message: str, hint: str = "") -> None:
        """The device is in trouble: the job waits and its attempts are not counted."""
        self._move(job_id, "held", since=ACTIVE, code=code, message=message, hint=hint)

    def finish(
        self, job_id: str, state: State, *, version: int = 0, reason: tuple[str, str, str, str] = ("", "", "", "")
    ) -> None:
        """The outcome; ``reason`` is (code, message, hint, stage). The drop still stands in the inbox.

        Said again of a job that ended so already, it changes nothing: the caller met trouble after the commit.
        """
        code, message, hint, stage = reason
        with self._database.transaction() as database_:
            job = self.get(job_id)
            if job.state == state:
                return
            self._move(job_id, state, since=ACTIVE, code=code, message=message, hint=hint, stage=stage, version=version)
            database_.execute("DELETE FROM crashes WHERE key = ?", (job.key,))
            if state == "published":
                self._add_version(database_, job.name, version, job.key)

    def settle_drop(self, job_id: str) -> None:
        """The drop has left the inbox, or is to stay there."""
        with self._database.transaction() as database_:
            database_.execute("UPDATE jobs SET drop_settled = 1 WHERE job_id = ?", (job_id,))

    def note_stage(self, job_id: str, stage: str) -> None:
        """Where a running job is; information for the command line."""
        with self._database.transaction() as database_:
            database_.execute("UPDATE jobs SET stage = ? WHERE job_id = ? AND state = 'running'", (stage, job_id))

    def record_crash(self, key: str) -> int:
        """Count a crash of this content; kept across restarts, gone with the next outcome. Returns the count."""
        with self._database.transaction() as database_:
            database_.execute(
                "INSERT INTO crashes VALUES (?, 1) ON CONFLICT (key) DO UPDATE SET count = count + 1", (key,)
            )
            return int(database_.execute("SELECT count FROM crashes WHERE key = ?", (key,)).fetchone()[0])

    def crashed(self, job_id: str) -> int:
        """A crash of a running job: queued again, or at the :data:`CRASH_LIMIT` left for the caller to reject.

        Returns how often this content has crashed.
        """
        with self._database.transaction():
            crashes = self.record_crash(self.get(job_id).key)
            if crashes < CRASH_LIMIT:
                self.requeue(job_id, count=True)
            return crashes

    def recover(self) -> list[Job]:
        """After a start: what was running is queued again, one attempt and one crash the more.

        Returns the jobs whose content has now crashed :data:`CRASH_LIMIT` times; the caller rejects them.
        """
        with self._database.transaction() as database_:
            looping = []
            for job in self.jobs(states=RUNNING):
                crashes = self.record_crash(job.key)
                self.requeue(job.job_id, count=True)
                if crashes >= CRASH_LIMIT:
                    looping.append(self.get(job.job_id))
            # waits are kept on the monotonic clock, which a restart begins anew
            database_.execute("UPDATE jobs SET state = 'queued' WHERE state = 'held'")
            return looping

    # ------------------------------------------------------------ questions
    def get(self, job_id: str) -> Job:
        """The job; KeyError where there is none."""
        rows = self._rows(f"{_SELECT} WHERE job_id = ?", (job_id,))
        if not rows:
            raise KeyError(job_id)
        return rows[0]

    def jobs(self, *, states: Collection[State] = STATES, limit: int = 1_000_000) -> list[Job]:
        """Jobs in these states, newest first."""
        marks = ", ".join("?" * len(states))
        return self._rows(f"{_SELECT} WHERE state IN ({marks}) ORDER BY seq DESC LIMIT ?", (*states, limit))

    def next_queued(self, *, but: Collection[str] = ()) -> Job | None:
        """The job to run next: small before big, bounded, leaving out the ids in ``but``.

        Of one name the earlier drop comes first, or an older content would become the newer version.
        """
        marks = ", ".join("?" * len(but))
        query = f"{_SELECT} AS job WHERE state = 'queued' AND job_id NOT IN ({marks}) {_FIRST_OF_NAME} ORDER BY rank, seq LIMIT 1"
        return next(iter(self._rows(query, tuple(but))), None)

    def find_active(self, key: str) -> Job | None:
        """The unfinished job of this content."""
        return next(
            iter(self._rows(f"{_SELECT} WHERE key = ? AND state IN ('queued', 'running', 'held')", (key,))), None
        )

    def find_by_key(self, key: str) -> list[tuple[str, int]]:
        """(name, version) of what was published from this content, newest first."""
        rows = self._database.fetch("SELECT name, version FROM versions WHERE key = ? ORDER BY version DESC", (key,))
        return [(row["name"], row["version"]) for row in rows]

    def unsettled(self) -> list[Job]:
        """Jobs that are over while their drop may still stand in the inbox."""
        active = "('queued', 'running', 'held')"
        return self._rows(f"{_SELECT} WHERE drop_settled = 0 AND state NOT IN {active}", ())

    def counts(self) -> dict[State, int]:
        """Rows by state, every state named."""
        rows = self._database.fetch("SELECT state, count(*) AS number FROM jobs GROUP BY state", ())
        found = {row["state"]: row["number"] for row in rows}
        return {state: found.get(state, 0) for state in STATES}

    def oldest_queued_s(self) -> float | None:
        """Wall clock time at which the oldest waiting job was enqueued."""
        row = self._database.fetch("SELECT min(created_s) AS oldest FROM jobs WHERE state IN ('queued', 'held')", ())[0]
        return None if row["oldest"] is None else float(row["oldest"])

    # ------------------------------------------------------------ wishes of other processes
    def ask(self, job_id: str, request: Request) -> None:
        """Ask the daemon to cancel or retry a job; KeyError where there is no such job."""
        with self._database.transaction() as database_:
            changed = database_.execute("UPDATE jobs SET request = ? WHERE job_id = ?", (request, job_id)).rowcount
        if not changed:
            raise KeyError(job_id)

    def requests(self) -> list[Job]:
        """Jobs somebody wants something of; answer with ``ask(job_id, "")``."""
        return self._rows(f"{_SELECT} WHERE request IN ('cancel', 'retry')", ())

    # ------------------------------------------------------------ models
    def add_version(self, name: str, version: int, key: str) -> None:
        """A version that exists on disk."""
        with self._database.transaction() as database_:
            self._add_version(database_, name, version, key)

    def set_current(self, name: str, version: int, *, pinned: int) -> None:
        """What ``current`` points to; ``highest`` never falls, so that no version number is used twice."""
        with self._database.transaction() as database_:
            database_.execute(
                "INSERT INTO models VALUES (?1, ?2, ?2, ?3) ON CONFLICT (name) DO UPDATE SET "
                "version = ?2, pinned = ?3, highest = max(highest, ?2)",
                (name, version, pinned),
            )

    def forget_versions(self, name: str, *, keep: Collection[int]) -> None:
        """Versions that are no longer on disk cannot be named to a duplicate."""
        marks = ", ".join("?" * len(keep))
        with self._database.transaction() as database_:
            database_.execute(f"DELETE FROM versions WHERE name = ? AND version NOT IN ({marks})", (name, *keep))  # noqa: S608 - only marks

    def versions(self, name: str) -> set[int]:
        """The versions of a name that the store knows to be on disk."""
        return {row["version"] for row in self._database.fetch("SELECT version FROM versions WHERE name = ?", (name,))}

    def served_keys(self) -> dict[tuple[str, int], str]:
        """(name, version) to the content key of what every ``current`` points to, and of what is newer."""
        rows = self._database.fetch(
            "SELECT name, versions.version, key FROM versions JOIN models USING (name) "
            "WHERE models.version > 0 AND versions.version >= models.version AND key != ''",
            (),
        )
        return {(row["name"], row["version"]): row["key"] for row in rows}

    def forget_model(self, name: str) -> None:
        """Nothing of this name is published any more; only its highest version number stays known."""
        with self._database.transaction() as database_:
            database_.execute("DELETE FROM versions WHERE name = ?", (name,))
            database_.execute("UPDATE models SET version = 0, pinned = 0 WHERE name = ?", (name,))

    def models(self) -> list[ModelRow]:
        """The names with a current version."""
        rows = self._database.fetch("SELECT * FROM models WHERE version > 0 ORDER BY name", ())
        return [ModelRow(**dict(row)) for row in rows]

    def highest_version(self, name: str) -> int:
        """The highest version number this name ever had; 0 for a new name."""
        rows = self._database.fetch("SELECT highest FROM models WHERE name = ?", (name,))
        return int(rows[0]["highest"]) if rows else 0

    def prune(self, *, keep: int = KEPT_ROWS) -> None:
        """Drop the oldest finished rows beyond ``keep``, so that a question costs the same after years."""
        with self._database.transaction() as database_:
            database_.execute(
                "DELETE FROM jobs WHERE drop_settled = 1 AND state NOT IN ('queued', 'running', 'held') "
                "AND seq <= (SELECT seq FROM jobs ORDER BY seq DESC LIMIT 1 OFFSET ?)",
                (keep,),
            )

    # ------------------------------------------------------------ inside
    def _move(self, job_id: str, state: State, *, since: Collection[State], **changes: str | int) -> None:
        values: dict[str, str | int | float] = {"state": state, "updated_s": self._wall_s(), **changes}
        if state not in ACTIVE:
            values["request"] = ""  # there is nothing left to wish for
        assignments = ", ".join(f"{name} = ?" for name in values)
        with self._database.transaction() as database_:
            job = self.get(job_id)
            if job.state not in since:
                raise CorruptState(f"job {job_id} is {job.state} and cannot become {state}", hint="Restart the daemon.")
            database_.execute(f"UPDATE jobs SET {assignments} WHERE job_id = ?", (*values.values(), job_id))  # noqa: S608 - our own names

    @staticmethod
    def _add_version(connection: sqlite3.Connection, name: str, version: int, key: str) -> None:
        connection.execute("INSERT OR REPLACE INTO versions VALUES (?, ?, ?)", (name, version, key))
        connection.execute(
            "INSERT INTO models VALUES (?1, ?2, ?2, 0) ON CONFLICT (name) DO UPDATE SET highest = max(highest, ?2)",
            (name, version),
        )

    def _rows(self, query: str, values: tuple[object, ...]) -> list[Job]:
        return [_job(row) for row in self._database.fetch(query, values)]


def _job(row: sqlite3.Row) -> Job:
    values = dict(row)
    values["drop_settled"] = bool(values["drop_settled"])
    return Job(**values)
