"""What a worker says: its events, read within bounds, and its output, kept within bounds.

The pipe of events is read without blocking and by whole lines; a line that is no :class:`~edgeopt.orders.Event`, or
has no end within 256 KiB, is :class:`Garbage` and ends the worker. Output goes to a log file until that is full, and
its last bytes stay in memory for the reason of a crash.
"""

from __future__ import annotations

import os
import re
from collections import deque
from pathlib import Path

from edgeopt import wire
from edgeopt.daemon.printable import printable
from edgeopt.errors import Disposition
from edgeopt.orders import Event

LINE_BYTES = 256 << 10
LOG_BYTES = 1 << 20
_TAIL_BYTES = 2048
_CHUNK_BYTES = 64 << 10
_FIELD_CHARACTERS = 2048
_KINDS = frozenset({"stage", "stage_done", "progress", "candidate", "cache", "note", "failed", "finished"})
_CODE = re.compile(r"[a-z][a-z0-9-]{0,40}")
_DISPOSITIONS = frozenset(disposition.value for disposition in Disposition)


class Garbage(Exception):
    """What came down the pipe is no event; the message says what it was."""


class EventReader:
    """Events out of a pipe's read end, which it owns."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""
        os.set_blocking(descriptor, False)

    def fileno(self) -> int:
        return self._descriptor

    def fill(self) -> bool:
        """Read what is there, a bounded amount; True at the end of the pipe."""
        for _ in range(16):
            try:
                data = os.read(self._descriptor, _CHUNK_BYTES)
            except BlockingIOError:
                return False
            if not data:
                return True
            self._rest += data
        return False

    def events(self) -> list[Event]:
        """The whole events read so far."""
        *lines, self._rest = self._rest.split(b"\n")
        if max(map(len, (*lines, self._rest))) > LINE_BYTES:
            raise Garbage(f"the worker sent a line of more than {LINE_BYTES >> 10} KiB")
        return [_event(line) for line in lines if line.strip()]

    def close(self) -> None:
        os.close(self._descriptor)


def _event(line: bytes) -> Event:
    try:
        event = wire.loads(Event, line)
    except (ValueError, RecursionError) as fault:
        start = printable(line[:120].decode("utf-8", errors="replace"))
        raise Garbage(f"the worker sent {start!r}, which is no event: {printable(str(fault), limit=300)}") from fault
    if event.kind not in _KINDS:
        raise Garbage(f"the worker sent an event of the unknown kind {printable(event.kind, limit=80)!r}")
    return event


class LogKeeper:
    """A bounded log file of a process' output, and its tail."""

    def __init__(self, path: Path) -> None:
        # a fresh file, never one that a worker of an earlier attempt may have linked elsewhere
        path.unlink(missing_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._left = LOG_BYTES
        self._tail: deque[int] = deque(maxlen=_TAIL_BYTES)

    def copy_from(self, descriptor: int) -> bool:
        """Take what is there, a bounded amount; True at the end of the output."""
        for _ in range(16):
            try:
                data = os.read(descriptor, _CHUNK_BYTES)
            except BlockingIOError:
                return False
            if not data:
                return True
            self._tail.extend(data)
            self._write(data[: self._left])
        return False

    def _write(self, data: bytes) -> None:
        try:
            self._left -= os.write(self._descriptor, data) if data else 0
        except OSError:
            self._left = 0  # a full disk costs the log, not the job

    def tail(self) -> str:
        """The end of the output, printable, lines joined by `` | ``."""
        text = bytes(self._tail).decode("utf-8", errors="replace")
        return printable(" | ".join(line.strip() for line in text.splitlines() if line.strip()))

    def close(self) -> None:
        os.close(self._descriptor)


class Said:
    """What a worker has said so far that its supervisor needs."""

    def __init__(self) -> None:
        self.stage = ""
        self.last: Event | None = None
        """The ``finished`` or ``failed`` event; whatever follows does not replace it."""
        self.last_s = 0.0

    def note(self, event: Event, now_s: float) -> None:
        if event.kind == "stage":
            self.stage = field_text(event, "stage", limit=40)
        elif event.kind in ("finished", "failed") and self.last is None:
            self.last, self.last_s = event, now_s

    def text(self, name: str) -> str:
        return "" if self.last is None else field_text(self.last, name)

    def code(self) -> str:
        """The failure's stable name; a metric label, so anything odd becomes ``worker-crashed``."""
        code = self.text("code")
        return code if _CODE.fullmatch(code) else "worker-crashed"

    def disposition(self) -> str:
        disposition = self.text("disposition")
        return disposition if disposition in _DISPOSITIONS else Disposition.RETRY_ONCE.value


def field_text(event: Event, name: str, *, limit: int = _FIELD_CHARACTERS) -> str:
    """A text field of an event, printable; empty where it is missing or no text."""
    value = event.fields.get(name)
    return printable(value, limit=limit) if isinstance(value, str) else ""
