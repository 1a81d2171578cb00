"""One artifact, alone in its process: opened with the settings that will serve it, run and timed on request.

``python -m edgeopt.worker.runner`` is started by ``stages.runners`` inside the worker's sandbox and answers the frames
of ``stages.frames`` on its standard streams:

==========  =====================================================  ==========================================
request     fields                                                 answer
==========  =====================================================  ==========================================
``open``    artifact                                               ``inputs``, ``outputs`` (names)
``run``     names; one array for each                              one array for each output, ``absent`` none
``hold``    names; one array for each: the feeds that are timed     nothing
``time``    count                                                  ``durations_ns``
``memory``  -                                                      ``peak_bytes``: high-water mark since before ``open``
``tell``    -                                                      ``conditions``: how the last timing went, where a device tells
==========  =====================================================  ==========================================

A session on a GPU (``protocols.GpuSession``) times itself by the GPU's own clock and counts the GPU's memory as well.
An error is answered as ``{"error": sentence, "hint": sentence}``; a crash is seen as the end of the stream.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from edgeopt import catalogue, wire
from edgeopt.errors import EdgeoptError
from edgeopt.protocols import GpuSession, Session
from edgeopt.records import Artifact
from edgeopt.stages.frames import read_frame, write_frame


class Runner:
    """State of one runner process: at most one open session and one set of held feeds."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._session: Session | None = None
        self._held: dict[str, Any] = {}
        self._floor_bytes = 0

    def answer(self, request: dict[str, Any], arrays: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        kind = request["kind"]
        if kind == "open":
            return self._open(wire.decode(Artifact, request["artifact"])), []
        session = self._session
        if session is None:
            raise ValueError(f"{kind} before open")
        if kind == "run":
            return {}, [_plain(output) for output in session.run(dict(zip(request["names"], arrays, strict=True)))]
        if kind == "hold":
            self._held = dict(zip(request["names"], arrays, strict=True))
            return {}, []
        if kind == "time":
            return {"durations_ns": self._time(session, int(request["count"]))}, []
        if kind == "memory":
            own = session.device_bytes() if isinstance(session, GpuSession) else 0
            return {"peak_bytes": own + max(0, _status_bytes("VmHWM") - self._floor_bytes)}, []
        if kind == "tell":
            return {"conditions": session.conditions() if isinstance(session, GpuSession) else {}}, []
        raise ValueError(f"unknown request {kind}")

    def _open(self, artifact: Artifact) -> dict[str, Any]:
        runtime = catalogue.find_runtime(artifact.runtime)
        runtime.load()  # the library's own pages are not the artifact's memory
        _reset_peak()
        self._floor_bytes = _status_bytes("VmRSS")
        self._session = self._stack.enter_context(runtime.open(artifact))
        return {"inputs": list(self._session.input_names), "outputs": list(self._session.output_names)}

    def _time(self, session: Session, count: int) -> list[int]:
        if isinstance(session, GpuSession):
            return session.durations_ns(self._held, count)
        clock, run, feeds = time.perf_counter_ns, session.run, self._held
        durations = []
        for _ in range(count):
            start = clock()
            run(feeds)
            durations.append(clock() - start)
        return durations


def _plain(output: Any) -> Any:
    """Strings become unicode arrays, sequences and maps their text: no pickles on the wire."""
    import numpy as np

    array = np.asarray(output) if not isinstance(output, list | dict) else np.asarray(repr(output))
    return array.astype(str) if array.dtype == object else array


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # hardened kernels and sandboxes refuse it; the mark then includes the start of the process


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer frames until the other side closes."""
    with ExitStack() as stack:
        runner = Runner(stack)
        while True:
            try:
                request, arrays = read_frame(requests)
            except EOFError:
                return
            try:
                header, outputs = runner.answer(request, arrays)
            except (EdgeoptError, ValueError, KeyError, TypeError) as error:
                header, outputs = {"error": str(error), "hint": getattr(error, "hint", "")}, []
            write_frame(answers, header, outputs)


def main() -> int:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up between the frames
    serve(sys.stdin.buffer, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
