"""One worker process, watched from its start to its end: the border between the daemon and all heavy code.

In: a job's folder with its order. Out: an :class:`Outcome`; meanwhile, the worker's events. The worker is started by
exec in a session of its own, speaks JSON lines on a pipe, and is believed nothing: a line that is no event, a line
without end, a time or memory limit, all end it together with every process it started. Used by the daemon in a thread
and by the command line in the foreground.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import edgeopt
from edgeopt.daemon import processes
from edgeopt.daemon.chatter import EventReader, Garbage, LogKeeper, Said
from edgeopt.daemon.processes import Tree
from edgeopt.daemon.storage import replace_file, storage_errors
from edgeopt.layout import JobFolder
from edgeopt.orders import Event
from edgeopt.policy import WorkerLimits

Kind: TypeAlias = Literal["finished", "failed", "crashed", "timeout", "out-of-memory", "cancelled", "stopped"]
Wish: TypeAlias = Literal["stop", "cancel"]
Sink: TypeAlias = Callable[[Event], None]

_TICK_S = 0.2
_MEMORY_EVERY_S = 1.0
_TERM_GRACE_S = 4.0
"""Between SIGTERM and SIGKILL; with the rest of a stop it must fit into the daemon's 10 s."""
_KILL_WAIT_S = 3.0
_EXIT_GRACE_S = 30.0
"""How long a worker may live on after its last word."""
_PID_FILE = "worker.pid"
_PASSED_ON = ("PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_PASSED_ON_PREFIXES = ("LC_", "EDGEOPT_", "CUDA_", "NVIDIA_", "OMP_", "ORT_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a worker ended. For ``failed``, the worker's own words (made printable); else the supervisor's."""

    kind: Kind
    code: str = ""
    message: str = ""
    hint: str = ""
    stage: str = ""
    disposition: str = ""
    signal: int = 0
    tail: str = ""
    """The end of what the worker printed."""


def worker_command(folder: JobFolder, cache: Path, descriptor: int) -> list[str]:
    """The real worker; ``-P`` keeps its own working folder out of sys.path, since it can write there."""
    program = [sys.executable, "-P", "-m", "edgeopt.worker"]
    return [*program, "--job", str(folder.root), "--cache", str(cache), "--events-fd", str(descriptor)]


def run_worker(  # noqa: PLR0913 - the two last are seams for tests
    folder: JobFolder,
    cache: Path,
    limits: WorkerLimits,
    *,
    on_event: Sink,
    should_stop: Callable[[], Wish | None],
    command: Sequence[str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Run the worker of a staged job to its end; no process of it is left when this returns.

    ``command`` is a program that takes the worker's arguments instead of ``python -m edgeopt.worker``. Raises
    :class:`~edgeopt.errors.EnvironmentFault` where the worker cannot be started at all.
    """
    with storage_errors(f"starting the worker of {folder.root.name}"):
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        worker = _Worker(folder, cache, command)
    try:
        outcome = _watch(worker, limits, on_event, should_stop, clock)
    finally:
        worker.end(clock)
    return worker.with_tail(outcome)


def end_leftover(folder: JobFolder) -> bool:
    """Kill what an earlier daemon's worker of this job left running; True where there was something."""
    try:
        pid, started = (int(word) for word in (folder.root / _PID_FILE).read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return False
    found = processes.read(pid)
    if found is None or found.started != started:
        return False
    return Tree(pid).kill(signal.SIGKILL) > 0


class _Worker:
    """The process with its two pipes."""

    def __init__(self, folder: JobFolder, cache: Path, command: Sequence[str] | None) -> None:
        self.log = LogKeeper(folder.log)
        events, write_end = os.pipe2(os.O_CLOEXEC)
        self.reader = EventReader(events)
        arguments = worker_command(folder, cache, write_end)
        if command is not None:
            arguments = [*command, *arguments[4:]]
        try:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(write_end,),
                start_new_session=True,
                cwd=folder.work,
                env=environment(folder.work),
                bufsize=0,
            )
        except OSError:
            self.reader.close()
            self.log.close()
            raise
        finally:
            os.close(write_end)
        self.tree = Tree(self.process.pid)
        self._output = self.process.stdout
        assert self._output is not None  # noqa: S101 - PIPE was asked for above
        os.set_blocking(self._output.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.reader, selectors.EVENT_READ)
        self._selector.register(self._output, selectors.EVENT_READ)
        if (found := processes.read(self.process.pid)) is not None:
            replace_file(folder.root / _PID_FILE, f"{found.pid} {found.started}\n".encode(), mode=0o600)

    def listen(self, timeout_s: float) -> list[Event]:
        """The events that have come, after waiting for up to ``timeout_s``; raises :class:`Garbage`."""
        if not self._selector.get_map():
            time.sleep(timeout_s)  # both pipes closed while it lives on
        for key, _ in self._selector.select(timeout_s):
            finished = self.reader.fill() if key.fileobj is self.reader else self.log.copy_from(key.fd)
            if finished:
                self._selector.unregister(key.fileobj)
        return self.reader.events()

    def end(self, clock: Callable[[], float]) -> None:
        """SIGTERM, then SIGKILL, to the whole tree; then reap and close everything."""
        deadline_s = clock() + (_TERM_GRACE_S if self.process.poll() is None else 0.0)
        self.tree.kill(signal.SIGTERM)
        while clock() < deadline_s and self.tree.refresh():
            self._wait(0.02)
        deadline_s = clock() + _KILL_WAIT_S
        while self.tree.kill(signal.SIGKILL) and clock() < deadline_s:
            self._wait(0.01)
        self._wait(_KILL_WAIT_S)
        assert self._output is not None  # noqa: S101 - PIPE was asked for
        self.log.copy_from(self._output.fileno())
        self._selector.close()
        self._output.close()
        self.reader.close()
        self.log.close()

    def _wait(self, timeout_s: float) -> None:
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return

    def with_tail(self, outcome: Outcome) -> Outcome:
        if outcome.kind == "finished":
            return outcome
        values = {name: getattr(outcome, name) for name in Outcome.__dataclass_fields__}
        return Outcome(**values | {"tail": self.log.tail()})


def _watch(
    worker: _Worker,
    limits: WorkerLimits,
    on_event: Sink,
    should_stop: Callable[[], Wish | None],
    clock: Callable[[], float],
) -> Outcome:
    started_s = clock()
    next_memory_s = started_s
    said = Said()
    while True:
        exited = worker.process.poll() is not None
        try:
            for event in worker.listen(0.0 if exited else _TICK_S):
                said.note(event, clock())
                on_event(event)
        except Garbage as fault:
            return Outcome(kind="crashed", code="worker-crashed", message=str(fault), stage=said.stage)
        if exited:
            return _judge(worker.process.returncode, said)
        now_s = clock()
        if wish := should_stop():
            return Outcome(kind="stopped" if wish == "stop" else "cancelled", code="cancelled", stage=said.stage)
        if now_s - started_s > limits.job_timeout_s:
            return _timeout(limits.job_timeout_s, said)
        if now_s >= next_memory_s:
            next_memory_s = now_s + _MEMORY_EVERY_S
            # also without a limit: who was seen as a child is found when its parent is gone
            resident = worker.tree.resident_bytes()
            if 0 < limits.memory_bytes < resident:
                return _out_of_memory(resident, limits.memory_bytes, said)
        if said.last is not None and now_s - said.last_s > _EXIT_GRACE_S:
            message = f"the worker lived on for {_EXIT_GRACE_S:.0f} s after its last word"
            return Outcome(kind="crashed", code="worker-crashed", message=message, stage=said.stage)


def _judge(code: int, said: Said) -> Outcome:
    """What an exit means: only a last word with its own exit code is believed."""
    last = said.last
    if last is not None and last.kind == "finished" and code == 0:
        return Outcome(kind="finished", message=said.text("reason"), stage=said.stage)
    if last is not None and last.kind == "failed" and code == 1:
        return Outcome(
            kind="failed",
            code=said.code(),
            message=said.text("message"),
            hint=said.text("hint"),
            stage=said.text("stage") or said.stage,
            disposition=said.disposition(),
        )
    if code < 0:
        message = f"the worker was ended by {_signal_name(-code)}"
        if -code == signal.SIGKILL:
            message += ", by someone else than its supervisor: the kernel when memory is short, or a person"
    else:
        message = f"the worker exited with code {code} without a last word"
    return Outcome(kind="crashed", code="worker-crashed", message=message, stage=said.stage, signal=max(0, -code))


def _timeout(limit_s: float, said: Said) -> Outcome:
    return Outcome(
        kind="timeout",
        code="timeout",
        message=f"the job ran for longer than {limit_s:g} s",
        hint="Raise limits.job_timeout or lower search.budget.",
        stage=said.stage,
    )


def _out_of_memory(resident_bytes: int, limit_bytes: int, said: Said) -> Outcome:
    return Outcome(
        kind="out-of-memory",
        code="out-of-memory",
        message=f"the job held {resident_bytes >> 20} MiB of memory; its limit is {limit_bytes >> 20} MiB",
        hint="Raise limits.memory or use a smaller model.",
        stage=said.stage,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def environment(work: Path) -> dict[str, str]:
    """What a worker may know of the daemon's environment, where secrets may lie; ``work`` is its home."""
    passed = {
        name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
    }
    package = Path(edgeopt.__file__).resolve().parent.parent
    if package.name not in ("site-packages", "dist-packages"):
        # run from a checkout: -P would leave the worker without it
        passed["PYTHONPATH"] = os.pathsep.join(filter(None, (str(package), passed.get("PYTHONPATH", ""))))
    home = str(work)
    return passed | {"HOME": home, "TMPDIR": home, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
