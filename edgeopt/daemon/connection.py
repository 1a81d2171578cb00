"""The job store's one connection, shared by the daemon's threads: a commit a transaction, a question at a time.

Stands between ``database``, which opens the file, and ``jobs``, which says what is written. What SQLite raises leaves
as the errors that ``database`` translates it to.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from edgeopt.daemon import database


class SharedConnection:
    """An open ``connection`` behind a lock; safe to use from several threads.

    Every method but :meth:`close` raises :class:`~edgeopt.errors.EnvironmentFault` where the disk refuses and
    :class:`~edgeopt.errors.CorruptState` where the file is broken.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._lock = threading.RLock()

    def close(self) -> None:
        with self._lock:
            self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One commit; inside another transaction of this thread it joins that one."""
        with self._lock, database.sqlite_errors():
            if self.connection.in_transaction:
                yield self.connection
                return
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
            except BaseException:
                self.connection.execute("ROLLBACK")
                raise
            self._commit()

    def fetch(self, query: str, values: tuple[object, ...] = ()) -> list[sqlite3.Row]:
        """All rows that answer a question."""
        with self._lock, database.sqlite_errors():
            return self.connection.execute(query, values).fetchall()

    def _commit(self) -> None:
        try:
            self.connection.execute("COMMIT")
        except sqlite3.Error:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise
