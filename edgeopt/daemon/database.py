"""The job store's SQLite file: opened, checked, and moved aside when it is broken.

WAL with ``synchronous=FULL``: a committed state survives a power cut (5.5 ms a commit). The folders are the truth and
the database is an index, so a file that fails its ``quick_check`` is kept beside as ``jobs.sqlite.corrupt-N`` for a
look, and recovery fills the new one from ``published/``. What SQLite raises is translated here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeopt.daemon import storage
from edgeopt.errors import CorruptState, DiskFull, EdgeoptError, StorageFault

SCHEMA = 1

_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  job_id TEXT NOT NULL UNIQUE,
  name TEXT NOT NULL,
  key TEXT NOT NULL,
  state TEXT NOT NULL,
  attempts INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  rank REAL NOT NULL,
  source_file TEXT NOT NULL,
  source_sha256 TEXT NOT NULL,
  stage TEXT NOT NULL,
  code TEXT NOT NULL,
  message TEXT NOT NULL,
  hint TEXT NOT NULL,
  version INTEGER NOT NULL,
  drop_json TEXT NOT NULL,
  drop_settled INTEGER NOT NULL,
  request TEXT NOT NULL,
  created_s REAL NOT NULL,
  updated_s REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, rank);
CREATE INDEX IF NOT EXISTS jobs_by_name ON jobs (name, state);
CREATE INDEX IF NOT EXISTS jobs_by_key ON jobs (key);
CREATE INDEX IF NOT EXISTS jobs_by_request ON jobs (request);
CREATE INDEX IF NOT EXISTS jobs_unsettled ON jobs (drop_settled) WHERE drop_settled = 0;
CREATE TABLE IF NOT EXISTS versions (
  name TEXT NOT NULL,
  version INTEGER NOT NULL,
  key TEXT NOT NULL,
  PRIMARY KEY (name, version)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS versions_by_key ON versions (key);
CREATE TABLE IF NOT EXISTS models (
  name TEXT PRIMARY KEY,
  version INTEGER NOT NULL,
  highest INTEGER NOT NULL,
  pinned INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS crashes (
  key TEXT PRIMARY KEY,
  count INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""


@contextmanager
def sqlite_errors() -> Iterator[None]:
    """Translate what SQLite raises: a full or failing disk holds the work, a malformed file ends the daemon."""
    try:
        yield
    except sqlite3.OperationalError as fault:
        if "full" in str(fault):
            raise DiskFull(
                f"the job database cannot be written: {fault}", hint="Free some space on the state folder's disk."
            ) from fault
        raise StorageFault(
            f"the job database: {fault}", hint="Check the state folder's disk and permissions."
        ) from fault
    except sqlite3.DatabaseError as fault:
        raise CorruptState(
            f"the job database: {fault}", hint="Restart the daemon; it rebuilds the database from the folders."
        ) from fault


def open_database(path: Path, *, create: bool = True) -> tuple[sqlite3.Connection, Path | None]:
    """A connection to a whole database, and where a broken one was moved to (None where it was whole).

    Raises :class:`~edgeopt.errors.CorruptState` for a schema of a newer edgeopt, or, without ``create``, where there is
    no database; :class:`~edgeopt.errors.EnvironmentFault` where the disk refuses.
    """
    if not create and not path.is_file():
        raise CorruptState(
            f"there is no job database at {path}", hint="Start the daemon once, or name its configuration."
        )
    moved = None
    with sqlite_errors():
        try:
            connection = _connect(path)
        except sqlite3.DatabaseError as fault:
            # OperationalError is the disk's trouble or a lock, not a broken file; another process' command line must
            # not move a running daemon's file away either
            if isinstance(fault, sqlite3.OperationalError) or not create:
                raise
            moved = _move_aside(path)
            connection = _connect(path)
    return connection, moved


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA cache_size=-1024")
        connection.execute("PRAGMA journal_size_limit=4194304")
        if (verdict := connection.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(verdict)
        _migrate(connection, path)
    except (sqlite3.Error, EdgeoptError):
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    schema = connection.execute("PRAGMA user_version").fetchone()[0]
    if schema > SCHEMA:
        raise CorruptState(
            f"{path} has schema {schema}; this edgeopt knows {SCHEMA}",
            hint="Install the newer edgeopt again, or move the file away to rebuild it from the folders.",
        )
    if schema < SCHEMA:
        connection.executescript(f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version={SCHEMA};COMMIT;")
    else:
        # a file whose tables were lost to damage that quick_check does not see
        connection.execute("SELECT count(*) FROM jobs, versions, models, crashes WHERE 0").fetchone()


def _move_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    with storage.storage_errors("moving a broken job database aside"):
        path.rename(aside)
        for suffix in ("-wal", "-shm"):
            # a log that belongs to the broken file would be replayed into the new one
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        storage.fsync_folder(path.parent)
    return aside
