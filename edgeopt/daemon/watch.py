"""Noticing that something happened in the inbox: a hint that calls ``wake``, never the truth (that is ``scan``).

Stands at the daemon's very front. inotify where it works; where it does not (a network file system, exhausted limits, a
missing inbox) a wake-up every ``poll_s``, and :attr:`Watcher.fallback_reason` says why. The kernel drops events when its
queue overflows, and watchdog's observers keep that to themselves, so its inotify layer is used directly: the overflow is
counted and wakes the loop, whose full scan makes up for what was lost. It also spares us the events of our own reading,
which watchdog's observers subscribe to. A keeper thread looks at the inbox every ``poll_s``: one that was deleted,
replaced, moved or mounted over is watched anew.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from edgeopt.daemon.backend import remote_filesystem
from edgeopt.daemon.names import is_waiting
from edgeopt.daemon.scan import Found, Listing, scan

if TYPE_CHECKING:
    from watchdog.observers.inotify_c import InotifyEvent, InotifyFD, WatchDescriptor

__all__ = ["Found", "Listing", "Watcher", "scan"]

Backend: TypeAlias = Literal["auto", "inotify", "poll"]

_WATCHED_DEPTH = 3
_WATCHED_FOLDERS = 512
_RETRY_ROUNDS = 30
"""Rounds of the keeper between two attempts to get inotify after its limits were exhausted."""
_EXHAUSTED = {
    errno.ENOSPC: "the limit fs.inotify.max_user_watches is used up",
    errno.EMFILE: "the limit fs.inotify.max_user_instances is used up",
    errno.ENOSYS: "the kernel has no inotify, or watchdog is older than 7.1",
}


class Watcher:
    """Calls ``wake`` from a thread of its own whenever the inbox may have changed."""

    def __init__(
        self, inbox: Path, *, backend: Backend = "auto", wake: Callable[[], None], poll_s: float = 2.0
    ) -> None:
        self.inbox = inbox
        self.overflows = 0
        """How often the kernel lost events; each one asks for a full scan."""
        self.fallback_reason: str | None = None
        """Why the inbox is polled although ``inotify`` or ``auto`` was asked for; None where it is not."""
        self._asked = backend
        self._wake = wake
        self._poll_s = poll_s
        self._events: _Events | None = None
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="edgeopt-watch", daemon=True)

    @property
    def backend(self) -> Literal["inotify", "poll"]:
        """What is in force now."""
        return "poll" if self._events is None else "inotify"

    def start(self) -> None:
        """Arm the watch before the first scan, so that nothing falls between the two; returns at once."""
        self._arm()
        self._keeper.start()

    def stop(self) -> None:
        """End the threads and give the descriptors back; a watcher is not started again."""
        self._stopping.set()
        if self._keeper.is_alive():
            self._keeper.join()
        self._disarm()

    def _keep(self) -> None:
        """The keeper's loop: poll where there are no events, and notice an inbox that is not the watched one any more."""
        rounds = 0
        while not self._stopping.wait(self._poll_s):
            rounds += 1
            events = self._events
            if events is not None and events.still_watches(self.inbox):
                continue
            if events is not None:
                self.fallback_reason = "the inbox was replaced"
                self._disarm()
                self._arm()
            elif self._may_arm(rounds):
                self._arm()
            self._wake()

    def _may_arm(self, rounds: int) -> bool:
        """A missing inbox is tried every round; exhausted limits and network mounts only now and then."""
        missing = self.fallback_reason is not None and self.fallback_reason.startswith("the inbox")
        return self._asked != "poll" and (missing or rounds % _RETRY_ROUNDS == 0)

    def _arm(self) -> None:
        if self._asked == "poll":
            return
        remote = remote_filesystem(self.inbox) if self._asked == "auto" else None
        if remote is not None:
            self.fallback_reason = f"the file system type {remote} raises no events for other machines' writes"
            return
        try:
            self._events = _Events(self.inbox, wake=self._wake, overflowed=self._overflowed)
        except OSError as error:
            self.fallback_reason = _EXHAUSTED.get(error.errno or 0, f"the inbox cannot be watched: {error.strerror}")
        else:
            self.fallback_reason = None

    def _disarm(self) -> None:
        events, self._events = self._events, None
        if events is not None:
            events.close()

    def _overflowed(self) -> None:
        self.overflows += 1
        self._wake()


class _Events:
    """inotify watches on the inbox and the folders in it; what watchdog's layer calls a WatchCallback."""

    def __init__(self, inbox: Path, *, wake: Callable[[], None], overflowed: Callable[[], None]) -> None:
        self._inbox = inbox
        self._wake = wake
        self._overflowed = overflowed
        self._lock = threading.Lock()
        self._watched: dict[tuple[int, int], WatchDescriptor] = {}
        """(device, inode) of every watched folder."""
        self._closed = False
        self._fd = _open_inotify()
        self._fd.start()  # before the first watch: only its thread gives the descriptors back
        try:
            self._home = self._watch(inbox)
        except OSError:
            self.close()
            raise
        self._watch_below()

    def still_watches(self, inbox: Path) -> bool:
        """Whether the folder at the inbox's path is the one that is watched."""
        try:
            status = inbox.stat()
        except OSError:
            return False
        with self._lock:
            return (status.st_dev, status.st_ino) == self._home and self._home in self._watched

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._fd.stop()
        self._fd.join()

    def on_event(self, event: InotifyEvent) -> None:
        if event.is_directory and not (event.is_delete or event.is_moved_from):
            self._watch_below()
        self._wake()

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        with self._lock:
            self._watched = {folder: known for folder, known in self._watched.items() if known != wd}
        self._wake()

    def on_queue_overflow(self) -> None:
        self._watch_below()  # a new folder's event may be among the lost ones
        self._overflowed()

    def _watch(self, folder: Path) -> tuple[int, int]:
        from watchdog.observers.inotify_c import CallbackId, InotifyConstants, Mask

        mask = Mask(
            InotifyConstants.IN_CREATE
            | InotifyConstants.IN_MODIFY
            | InotifyConstants.IN_ATTRIB
            | InotifyConstants.IN_CLOSE_WRITE
            | InotifyConstants.IN_MOVE
            | InotifyConstants.IN_DELETE
            | InotifyConstants.IN_DELETE_SELF
            | InotifyConstants.IN_MOVE_SELF
            | InotifyConstants.IN_ONLYDIR
        )
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        with self._lock:
            if identity not in self._watched and not self._closed:
                wd = self._fd.add_callback(os.fsencode(folder), mask, self, CallbackId(id(self)))
                if wd == -1:
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                self._watched[identity] = wd
        return identity

    def _watch_below(self) -> None:
        """Watch the folders of the inbox too; one that cannot be watched is left to the periodic scan."""
        pending = [(self._inbox, 1)]
        while pending and len(self._watched) < _WATCHED_FOLDERS:
            folder, depth = pending.pop()
            try:
                with os.scandir(folder) as entries:
                    below = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
                for path in below:
                    if depth > 1 or not is_waiting(path.name):
                        self._watch(path)
                        pending.append((path, depth + 1))
            except OSError:
                continue
            pending = [(path, level) for path, level in pending if level < _WATCHED_DEPTH]


def _open_inotify() -> InotifyFD:
    try:
        from watchdog.observers.inotify_c import InotifyFD
    except ImportError as error:  # a watchdog before 7.1, whose layer hides the overflow
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from error
    return InotifyFD()  # our own, not the process-wide one
