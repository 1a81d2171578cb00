"""A worker's process tree as /proc shows it: who belongs to it, how much memory it holds, how it is ended.

A worker leads its own session and process group, and its measuring processes inherit both. A process that left the
group is still found as a descendant, or because it was seen as one before its parent died. Everything is identified
by (pid, start time), so a reused pid is never killed.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """One line of /proc/PID/stat, in the kernel's own units (``started`` in clock ticks since boot)."""

    pid: int
    parent: int
    group: int
    session: int
    started: int


def read(pid: int, *, proc: Path = PROC) -> Process | None:
    """The process, or None where it is gone (a zombie is gone: it holds nothing and cannot be killed)."""
    try:
        text = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # the command's name is in brackets and may hold spaces and brackets itself
    values = text[text.rfind(")") + 2 :].split()
    if values[0] in "ZX":
        return None
    return Process(pid, parent=int(values[1]), group=int(values[2]), session=int(values[3]), started=int(values[19]))


class Tree:
    """The processes of one worker, followed from its start; ``root`` is the worker's pid."""

    def __init__(self, root: int, *, proc: Path = PROC) -> None:
        self._proc = proc
        self._root = root
        self._seen: dict[int, int] = {}
        """pid to start time of every process that was found to belong here."""
        if (found := read(root, proc=proc)) is not None:
            self._seen[root] = found.started

    def refresh(self) -> list[Process]:
        """Every living process of the tree, looked up now."""
        alive = {process.pid: process for process in self._all()}
        members = {
            pid
            for pid, process in alive.items()
            if self._root in (process.session, process.group) or self._seen.get(pid) == process.started
        }
        while grown := {pid for pid, process in alive.items() if process.parent in members} - members:
            members |= grown
        self._seen = {pid: alive[pid].started for pid in members}
        return [alive[pid] for pid in sorted(members)]

    def resident_bytes(self) -> int:
        """Memory that only this tree holds: anonymous and shared-memory pages; mapped files are not counted."""
        return sum(_resident_bytes(self._proc / str(process.pid) / "status") for process in self.refresh())

    def kill(self, number: signal.Signals) -> int:
        """Send a signal to every process of the tree; returns to how many."""
        members = self.refresh()
        for process in members:
            send(process, number, proc=self._proc)
        return len(members)

    def _all(self) -> list[Process]:
        pids = [int(entry.name) for entry in self._proc.iterdir() if entry.name.isdecimal()]
        return [process for pid in pids if (process := read(pid, proc=self._proc)) is not None]


def send(process: Process, number: signal.Signals, *, proc: Path = PROC) -> None:
    """Signal exactly this process; nothing happens where it is gone or its pid belongs to another by now."""
    if process.pid == os.getpid():
        return
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        # the descriptor pins the pid, so that what is checked is what is signalled
        found = read(process.pid, proc=proc)
        if found is not None and found.started == process.started:
            signal.pidfd_send_signal(descriptor, number)
    except (ProcessLookupError, PermissionError):
        pass
    finally:
        os.close(descriptor)


def _resident_bytes(status: Path) -> int:
    total_kib = 0
    try:
        with status.open("rb") as lines:
            for line in lines:
                if line.startswith((b"RssAnon:", b"RssShmem:")):
                    total_kib += int(line.split()[1])
    except OSError:
        return 0
    return total_kib * 1024
