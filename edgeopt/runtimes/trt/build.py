"""One engine built in a process of its own, within a time limit, with progress and cancellation.

In comes an ``order.Order``, out comes the ``order.Answer`` of a finished build. Closing the child's input asks it to stop at the builder's next step; one
that does not stop in time, or runs over the limit, is killed by its own process id. A crash is an ordinary failure here.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

from edgeopt import wire
from edgeopt.errors import CompileFailed
from edgeopt.runtimes.trt import faults
from edgeopt.runtimes.trt.order import Answer, Order, Progress, partial_of

COMMAND: tuple[str, ...] = (sys.executable, "-m", "edgeopt.runtimes.trt.child")
_GRACE_S = 3.0
_LOOK_S = 0.1
_TAIL = 500

OnProgress = Callable[[Progress], None]


def build(
    order: Order,
    *,
    limit_s: float = 1800.0,
    on_progress: OnProgress = lambda _progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    command: Sequence[str] = COMMAND,
) -> Answer:
    """The answer of a build that made ``order.engine``; no engine is left behind by one that did not.

    Raises :class:`~edgeopt.errors.CompileFailed` with TensorRT's own reason as one sentence.
    """
    engine, answer = Path(order.engine), None
    try:
        answer = _run(order, limit_s, on_progress, should_stop, command)
    finally:
        if answer is None or answer.stage != "built":
            for left in (engine, partial_of(engine)):
                left.unlink(missing_ok=True)
    if answer.stage != "built":
        raise faults.translate(answer, gpus=order.gpus)
    return answer


def _run(
    order: Order, limit_s: float, on_progress: OnProgress, should_stop: Callable[[], bool], command: Sequence[str]
) -> Answer:
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=printed)
        try:
            answer = _converse(process, order, _Watch(limit_s, should_stop), on_progress)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):  # its other end may be gone
                    cast("IO[bytes]", stream).close()
        return answer or _crashed(process.returncode, _tail(printed), order)


class _Watch:
    """When a build must end: at its limit, or when somebody asks; then a little later by force."""

    def __init__(self, limit_s: float, should_stop: Callable[[], bool]) -> None:
        self._limit_s, self._should_stop = limit_s, should_stop
        self._started_s = time.monotonic()
        self._asked_s: float | None = None
        self.timed_out = False

    def must_ask(self) -> bool:
        """True once: the child is to be asked to stop."""
        if self._asked_s is not None:
            return False
        self.timed_out = time.monotonic() - self._started_s > self._limit_s
        if self.timed_out or self._should_stop():
            self._asked_s = time.monotonic()
            return True
        return False

    def must_kill(self) -> bool:
        return self._asked_s is not None and time.monotonic() - self._asked_s > _GRACE_S

    def refusal(self) -> CompileFailed | None:
        """The failure that this watch has caused."""
        if self.timed_out:
            return CompileFailed(
                f"TensorRT took longer than {self._limit_s:g} s to build the engine", hint="Allow a longer build."
            )
        if self._asked_s is not None:
            return CompileFailed("the engine's build was cancelled", hint="Start it again.")
        return None


def _converse(process: subprocess.Popen[bytes], order: Order, watch: _Watch, on_progress: OnProgress) -> Answer | None:
    """Send the order and read until the answer; None where the process ended without one."""
    with suppress(BrokenPipeError):
        _write(cast("IO[bytes]", process.stdin), wire.dumps(order) + "\n")
    lines = _Lines(cast("IO[bytes]", process.stdout))
    try:
        while True:
            if watch.must_ask():
                cast("IO[bytes]", process.stdin).close()
            if watch.must_kill():
                process.kill()
            line = lines.next(_LOOK_S)
            if line is None:
                continue
            if refusal := watch.refusal():
                if not line or "answer" in json.loads(line):
                    raise refusal
                continue
            if not line:
                return None
            message = json.loads(line)
            if "answer" in message:
                return wire.decode(Answer, message["answer"])
            on_progress(wire.decode(Progress, message["progress"]))
    finally:
        lines.close()


def _write(stream: IO[bytes], text: str) -> None:
    stream.write(text.encode())
    stream.flush()


class _Lines:
    """Lines of a pipe with a time limit for each look."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._descriptor = stream.fileno()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._descriptor, selectors.EVENT_READ)
        self._buffer = bytearray()

    def next(self, wait_s: float) -> bytes | None:
        """A whole line; None where none came in time; empty at the end."""
        if b"\n" not in self._buffer:
            if not self._selector.select(wait_s):
                return None
            chunk = os.read(self._descriptor, 1 << 20)
            if not chunk:
                return b""
            self._buffer += chunk
        line, found, rest = bytes(self._buffer).partition(b"\n")
        if not found:
            return None
        self._buffer = bytearray(rest)
        return line

    def close(self) -> None:
        self._selector.close()


def _crashed(code: int, printed: str, order: Order) -> Answer:
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    last = printed.strip().splitlines()[-1:] or ["nothing"]
    raise CompileFailed(
        f"the process that builds {Path(order.engine).name} ended by {how}; it last said: {last[0]:.200}",
        hint="Use the target cpu for this model.",
    )


def _tail(stream: Any) -> str:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _TAIL))
    return str(stream.read().decode(errors="replace"))
