"""One daemon on one state folder, and one on one inbox.

``state/lock`` is locked and holds our process id for the command line. The inbox is locked as a folder, with nothing
written into it, so that two daemons with different state folders cannot both take the same drops; who holds it is read
from /proc/locks. Locks go with the process, whatever ends it, so there is nothing stale to clean up.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from edgeopt.daemon.storage import storage_errors
from edgeopt.errors import AlreadyRunning

LOCK_FILE = "lock"
_PATIENCE_S = 1.0
"""``edgeopt status`` looks whether the lock is held by taking it for a moment."""


class InstanceLock:
    """Held from :meth:`take` to :meth:`release`."""

    def __init__(self, state: Path, inbox: Path, *, locks: Path = Path("/proc/locks")) -> None:
        self._state = state
        self._inbox = inbox
        self._locks = locks
        self._descriptors: list[int] = []

    def take(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises :class:`~edgeopt.errors.AlreadyRunning`, which names the other process."""
        with storage_errors(f"locking {self._state}"):
            mine = os.open(self._state / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._descriptors.append(mine)
            self._hold(mine, f"the state folder {self._state}", clock)
            os.ftruncate(mine, 0)
            os.pwrite(mine, f"{os.getpid()}\n".encode(), 0)
            inbox = os.open(self._inbox, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._descriptors.append(inbox)
            self._hold(inbox, f"the inbox {self._inbox}", clock)

    def release(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def _hold(self, descriptor: int, what: str, clock: Callable[[], float]) -> None:
        deadline_s = clock() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as fault:
                if clock() < deadline_s:
                    time.sleep(0.05)
                    continue
                pid = _holder(descriptor, self._locks)
                self.release()
                raise AlreadyRunning(
                    f"{what} is in use by process {pid or 'unknown'}",
                    hint="Stop that daemon, or give this one its own inbox and state.",
                ) from fault
            except OSError:
                return  # network file systems without locks on folders: the state folder's lock has to do
            else:
                return


def _holder(descriptor: int, locks: Path) -> int:
    """The process that holds the lock, as the kernel says; 0 where it does not."""
    status = os.fstat(descriptor)
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = locks.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    for line in lines:
        words = line.split()
        if "FLOCK" in words and wanted in words:
            return int(words[words.index(wanted) - 1])
    return 0
