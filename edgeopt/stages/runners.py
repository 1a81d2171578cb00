"""The client side of a runner process: ask one artifact, alone in its process, to run and to time itself.

Stands between ``measure``/``quality`` and ``worker.runner``. A runner that crashes, hangs or answers with an error makes
a :class:`MeasureFailed` that names what happened; the worker itself goes on.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, cast

from edgeopt import wire
from edgeopt.errors import MeasureFailed
from edgeopt.records import Artifact
from edgeopt.stages.frames import read_frame, write_frame

if TYPE_CHECKING:
    from edgeopt.protocols import Array, Feeds

COMMAND: tuple[str, ...] = (sys.executable, "-m", "edgeopt.worker.runner")
_OPEN_TIMEOUT_S = 300.0
_RUN_TIMEOUT_S = 120.0
_CLOSE_TIMEOUT_S = 2.0


class Runner:
    """One opened artifact in a process of its own; use it as a context manager."""

    def __init__(self, artifact: Artifact, *, command: Sequence[str] = COMMAND) -> None:
        self.artifact = artifact
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
        )
        self._answers = _Deadline(cast("IO[bytes]", self._process.stdout))
        self._input_names: tuple[str, ...] = ()
        self.output_names: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        try:
            header, _ = self._ask({"kind": "open", "artifact": wire.encode(self.artifact)}, timeout_s=_OPEN_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        self._input_names, self.output_names = tuple(header["inputs"]), tuple(header["outputs"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, feeds: Feeds) -> list[Array]:
        """One inference; outputs in the order of ``output_names``."""
        names = list(feeds)
        _, outputs = self._ask({"kind": "run", "names": names}, [feeds[name] for name in names])
        return outputs

    def hold(self, feeds: Feeds) -> None:
        """Set what :meth:`durations_s` runs."""
        names = list(feeds)
        self._ask({"kind": "hold", "names": names}, [feeds[name] for name in names])

    def durations_s(self, count: int) -> list[float]:
        """Wall seconds of ``count`` inferences of the held feeds, back to back."""
        header, _ = self._ask({"kind": "time", "count": count}, timeout_s=_RUN_TIMEOUT_S * max(1, count))
        return [nanoseconds / 1e9 for nanoseconds in header["durations_ns"]]

    def peak_memory_bytes(self) -> int:
        """High-water mark of the process' memory since just before the artifact was opened."""
        header, _ = self._ask({"kind": "memory"})
        return int(header["peak_bytes"])

    def conditions(self) -> tuple[tuple[str, float], ...]:
        """What the device said of the last timing: clocks, temperature, parts of an inference; empty where none does."""
        header, _ = self._ask({"kind": "tell"})
        return tuple(sorted(header["conditions"].items()))

    def close(self) -> None:
        """End the process, by force where it does not end by itself."""
        with suppress(OSError):
            cast("IO[bytes]", self._process.stdin).close()
        try:
            self._process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()

    def _ask(
        self, header: dict[str, Any], arrays: Sequence[Array] = (), *, timeout_s: float = _RUN_TIMEOUT_S
    ) -> tuple[dict[str, Any], list[Array]]:
        kind = header["kind"]
        self._answers.deadline_s = time.monotonic() + timeout_s
        try:
            write_frame(cast("Any", self._process.stdin), header, arrays)
            answer, outputs = read_frame(cast("Any", self._answers))
        except (EOFError, BrokenPipeError, ValueError) as error:
            raise MeasureFailed(f"the process that runs the candidate ended during {kind}: {self._end()}") from error
        except TimeoutError as error:
            self._process.kill()
            raise MeasureFailed(f"the candidate took longer than {timeout_s:.0f} s to {kind}") from error
        if "error" in answer:
            raise MeasureFailed(str(answer["error"]), hint=str(answer.get("hint", "")))
        return answer, outputs

    def _end(self) -> str:
        try:
            code = self._process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "it closed its streams"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class _Deadline:
    """A blocking reader of a pipe that raises :class:`TimeoutError` after ``deadline_s`` on the monotonic clock."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._descriptor = stream.fileno()
        os.set_blocking(self._descriptor, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._descriptor, selectors.EVENT_READ)
        self._buffer = bytearray()
        self.deadline_s = float("inf")

    def read(self, size: int) -> bytes:
        while len(self._buffer) < size and self._fill():
            pass
        return self._take(size)

    def readline(self, limit: int) -> bytes:
        while b"\n" not in self._buffer and len(self._buffer) < limit and self._fill():
            pass
        end = self._buffer.find(b"\n")
        return self._take(end + 1 if end >= 0 else limit)

    def close(self) -> None:
        self._selector.close()
        self._stream.close()

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _fill(self) -> bool:
        """Read what is there; False at the end of the stream."""
        if not self._selector.select(max(0.0, min(self.deadline_s - time.monotonic(), 3600.0))):
            raise TimeoutError
        chunk = os.read(self._descriptor, 1 << 20)
        self._buffer += chunk
        return bool(chunk)


def _environment() -> dict[str, str]:
    """The worker's environment without what makes numpy's own threads compete with the runtime's."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
