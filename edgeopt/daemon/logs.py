"""The daemon's log: a constant event name and fields, one line each, whatever the fields hold.

INFO is a job's change of state, WARNING is something an operator may act on, ERROR something an operator must. Text for
people, JSON for collectors, journal with systemd's ``<N>`` priority in front.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal, TextIO, TypeAlias

from edgeopt.daemon.printable import printable

Level: TypeAlias = Literal["debug", "info", "warning", "error"]
Format: TypeAlias = Literal["text", "json", "journal"]
Value: TypeAlias = str | int | float | bool | None

_ORDER: dict[Level, int] = {"debug": 0, "info": 1, "warning": 2, "error": 3}
_PRIORITY: dict[Level, int] = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_FIELD_CHARACTERS = 1000


class Log:
    """Writes lines to ``stream``; safe to use from several threads."""

    def __init__(
        self,
        stream: TextIO,
        *,
        level: Level = "info",
        shape: Format = "text",
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._stream = stream
        self._shape = shape
        self._wall_s = wall_s
        self._lock = threading.Lock()
        self.level: Level = level

    def debug(self, event: str, **fields: Value) -> None:
        self._write("debug", event, fields)

    def info(self, event: str, **fields: Value) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Value) -> None:
        self._write("warning", event, fields)

    def alert(self, event: str, **fields: Value) -> None:
        """Level error: an operator must act."""
        self._write("error", event, fields)

    def _write(self, level: Level, event: str, fields: Mapping[str, Value]) -> None:
        if _ORDER[level] < _ORDER[self.level]:
            return
        line = render(self._shape, level, event, fields, at_s=self._wall_s())
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                return  # a closed or full stderr must not end the daemon


def render(shape: Format, level: Level, event: str, fields: Mapping[str, Value], *, at_s: float) -> str:
    """One line, without its end."""
    given = {name: value for name, value in fields.items() if value is not None and value != ""}
    if shape == "json":
        return json.dumps({"at": _time(at_s), "level": level, "event": event, **given}, allow_nan=True)
    words = " ".join([event, *(f"{name}={_value(value)}" for name, value in given.items())])
    if shape == "journal":
        return f"<{_PRIORITY[level]}>{words}"
    return f"{_time(at_s)} {level.upper()} {words}"


def choose(wanted: str, *, environment: Mapping[str, str], descriptor: int) -> Format:
    """``auto`` is the journal's format where stderr goes to the journal, else text."""
    if wanted in ("text", "json", "journal"):
        return wanted  # type: ignore[return-value]  # narrowed by the test above
    try:
        status = os.fstat(descriptor)
    except OSError:
        return "text"
    return "journal" if environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}" else "text"


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _value(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = printable(str(value), limit=_FIELD_CHARACTERS)
    # a value with spaces, quotes or an equals sign could pass for more fields
    return text if text and not set(text) & set(' "=\\') else json.dumps(text, ensure_ascii=False)
