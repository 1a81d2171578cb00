"""``python -m edgeopt.runtimes.trt.child``: parses and builds one engine; the only process that imports TensorRT to build.

In: an ``order.Order`` as one line of JSON on standard input. Out: ``order.Progress`` lines and one ``order.Answer`` on standard output, and the engine's
file. What the library prints goes to standard error. The build is cancelled when standard input closes; where the library does not come to its next step
soon, the process ends itself, for whoever started it may be gone. An engine appears under its name only when it is whole.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, cast

from edgeopt import wire
from edgeopt.runtimes.trt.api import BuilderConfig, Library, Parser, RtxConfig
from edgeopt.runtimes.trt.order import Answer, Order, ParseFault, Progress, partial_of
from edgeopt.runtimes.trt.phases import Phases

_PROGRESS_EVERY_S = 0.2
_GRACE_S = 1.5
"""After standard input has closed: how long the library may take to its next step."""
_HERE = "CURRENT"
"""RTX's word for the GPU that is here."""
CANCELLED_EXIT = 75
"""Exit code of a process that ended itself because nobody waits for its answer, and the library did not hear."""
_MEMORY = re.compile(r"Total (Weights|Activation) Memory: (\d+) bytes|Max Scratch Memory: (\d+) bytes")
_MOST_LOG_LINES, _LONGEST_LINE, _MOST_TABLES = 200, 2000, 16


class Build:
    """One order under way; ``cancelled`` ends it at the next step."""

    def __init__(self, library: Library, order: Order, answers: IO[str]) -> None:
        self._library, self._order, self._answers = library, order, answers
        self.cancelled = threading.Event()
        self._errors: list[str] = []
        self._tables: list[str] = []
        self._memory: dict[str, int] = {}
        self._told_s = 0.0

    def run(self) -> Answer:
        """Parse, build, write the engine."""
        library, order = self._library, self._order
        logger = _logger(library, self._hear)
        builder = library.Builder(logger)
        network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = library.OnnxParser(network, logger)
        if not parser.parse_from_file(order.model):
            return self._answer("parse", faults=_faults(parser))
        config = builder.create_builder_config()
        config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
        config.progress_monitor = _monitor(library, self)
        # lets it take kernels that skip zeros where weights come in 2:4 and such a kernel is quicker; the numbers stay the same
        config.set_flag(library.BuilderFlag.SPARSE_WEIGHTS)
        if order.workspace_bytes:
            config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, order.workspace_bytes)
        _aim(library, config, order.gpus)
        for ranges in order.profiles:
            profile = builder.create_optimization_profile()
            for each in ranges:
                profile.set_shape(each.input, each.least, each.typical, each.most)
            if config.add_optimization_profile(profile) < 0:
                return self._answer("profile")
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            return self._answer("cancelled" if self.cancelled.is_set() else "build")
        part = partial_of(Path(order.engine))
        with part.open("wb") as stream:
            stream.write(memoryview(plan))
            stream.flush()
            os.fsync(stream.fileno())
        if self.cancelled.is_set():
            part.unlink()
            return self._answer("cancelled")
        part.replace(order.engine)
        return self._answer("built")

    def tell(self, progress: Progress) -> bool:
        """Pass on how far it is, a few times a second; False ends the build."""
        now_s = time.monotonic()
        if now_s - self._told_s >= _PROGRESS_EVERY_S:
            self._told_s = now_s
            self._write("progress", progress)
        return not self.cancelled.is_set()

    def sweep(self) -> None:
        """Take away what a build that was cut off has written."""
        partial_of(Path(self._order.engine)).unlink(missing_ok=True)

    def finish(self, answer: Answer) -> None:
        self._write("answer", answer)

    def _hear(self, severity: str, text: str) -> None:
        if "ERROR" in severity and len(self._errors) < _MOST_LOG_LINES:
            self._errors.append(text[:_LONGEST_LINE])
        elif text.lstrip().startswith("Layers:") and "LayerType: " in text and len(self._tables) < _MOST_TABLES:
            self._tables.append(text)
        for kind, size, scratch in _MEMORY.findall(text):
            self._memory[kind.lower() or "scratch"] = int(size or scratch)

    def _answer(self, stage: str, *, faults: tuple[ParseFault, ...] = ()) -> Answer:
        return Answer(
            stage=stage,
            version=str(self._library.__version__),
            faults=faults,
            log=tuple(self._errors),
            tables=tuple(self._tables),
            memory=tuple(sorted(self._memory.items())),
        )

    def _write(self, kind: str, record: Any) -> None:
        self._answers.write(json.dumps({kind: wire.encode(record)}) + "\n")
        self._answers.flush()


def _logger(library: Any, hear: Any) -> Any:
    class Logger(library.ILogger):  # type: ignore[misc]  # a base class that is only known here; tools/check_tensorrt.py holds it against each release
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            hear(str(severity), text)

    return Logger()


def _monitor(library: Any, build: Build) -> Any:
    class Monitor(library.IProgressMonitor):  # type: ignore[misc]  # as above
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self._phases = Phases()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._phases.start(phase, parent, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            done, steps = self._phases.step(phase, step)
            return build.tell(Progress(phase=phase, done=done, steps=steps, share=self._phases.share))

        def phase_finish(self, phase: str) -> None:
            self._phases.finish(phase)

    return Monitor()


def _aim(library: Library, config: BuilderConfig, gpus: tuple[str, ...]) -> None:
    """Name the GPUs, or the one that is here: where none is named, RTX takes models for all that some of them cannot run."""
    capabilities = getattr(library, "ComputeCapability", None)
    if capabilities is None:
        return  # TensorRT builds for the GPU that is here
    rtx, named = cast("RtxConfig", config), gpus or (_HERE,)
    rtx.num_compute_capabilities = len(named)
    for index, gpu in enumerate(named):
        rtx.set_compute_capability(getattr(capabilities, gpu), index)


def _faults(parser: Parser) -> tuple[ParseFault, ...]:
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    return tuple(
        ParseFault(
            code=str(fault.code()).rpartition(".")[2],
            node=fault.node_name() or "",
            operator=fault.node_operator() or "",
            text=(fault.desc() or "")[:_LONGEST_LINE],
        )
        for fault in found
    )


def _until_closed(stream: IO[str], build: Build) -> None:
    """Cancel ``build`` when ``stream`` closes, and end the process where it does not hear; without that engine's beginnings."""
    while stream.read(1):
        pass
    build.cancelled.set()
    time.sleep(_GRACE_S)
    build.sweep()
    os._exit(CANCELLED_EXIT)


def main() -> int:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the library prints must not end up between the answers
    order = wire.loads(Order, sys.stdin.readline())
    try:
        library = cast("Library", importlib.import_module(order.module))
    except (ImportError, OSError) as error:
        last = Answer(stage="import", log=(str(error)[:_LONGEST_LINE],))
        answers.write(json.dumps({"answer": wire.encode(last)}) + "\n")
        answers.close()
        return 1
    build = Build(library, order, answers)
    threading.Thread(target=_until_closed, args=(sys.stdin, build), daemon=True).start()
    try:
        answer = build.run()
    except (RuntimeError, TypeError, ValueError, AttributeError, MemoryError) as error:
        # the bindings raise these: a factory that returned nothing, a GPU that this release does not know
        answer = Answer(stage="build", version=str(library.__version__), log=(str(error)[:_LONGEST_LINE],))
    build.finish(answer)
    answers.close()
    os._exit(0)  # the thread that waits for the input would keep the interpreter


if __name__ == "__main__":
    sys.exit(main())
