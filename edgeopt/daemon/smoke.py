"""The smoke test: a fresh version is opened and run once, in the sandbox, where it will be served from.

After ``publish``. The published files go to ``edgeopt.worker.probe``, a process of its own, with a sample of the drop where
there is one. An artifact that does not run while the original runs on the very same input has failed, and so has one
whose output is not finite where the original's is. Inputs that the original does not take either prove nothing.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt import device
from edgeopt.daemon import processes, shelf, supervise
from edgeopt.daemon.printable import printable
from edgeopt.daemon.processes import Tree
from edgeopt.errors import BadOutput, JobCancelled
from edgeopt.layout import BUNDLE_FORMAT, JobFolder
from edgeopt.orders import JobOrder

LIMIT_S = 300.0
_TICK_S = 0.1
_KILL_TICKS = 300
_ANSWER_BYTES = 16 << 20
_PROBED = {"onnxruntime": False, "tensorrt": True, "tensorrt-rtx": True}
"""Runtimes that the probe opens, and whether they need a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prober:
    """How the probe is started and when it is given up; the defaults are the daemon's."""

    work: Path
    """Where a temporary folder may be made."""
    should_stop: Callable[[], bool] = lambda: False
    command: Sequence[str] = (sys.executable, "-P", "-m", "edgeopt.worker.probe")
    limit_s: float = LIMIT_S
    clock: Callable[[], float] = time.monotonic


def failure_of(version: Path, source: JobFolder, order: JobOrder, prober: Prober) -> str:
    """Why a version's folder cannot serve, in one sentence; empty where it can or nothing can be said.

    ``source`` holds the ``input/`` that it was made of. Raises :class:`~edgeopt.errors.JobCancelled` where
    ``prober.should_stop`` said so, :class:`~edgeopt.errors.EnvironmentFault` where no process can be started.
    """
    try:
        artifact = _artifact(version)
    except BadOutput as fault:
        return fault.message
    if not _can_be_probed(artifact):
        return ""
    files = order.files
    data = next((str(source.input / name) for name in (files.eval, files.calibration) if name), None)
    request: dict[str, Any] = {"data": data} if data is not None and order.source.format != BUNDLE_FORMAT else {}
    found = _probe(request | {"artifacts": [artifact]}, prober)
    if found is None or not _wrong(found):
        return ""
    if order.source.format == BUNDLE_FORMAT:
        return _wrong(found)
    control = _probe(request | {"artifacts": [str(source.input / files.model)]}, prober)
    return _wrong(found) if control is not None and not _wrong(control) else ""


def _artifact(version: Path) -> dict[str, Any]:
    """The manifest's artifact as the probe takes it, with the status that says whether it may run here at all."""
    manifest = shelf.read_manifest(version)
    told = manifest["artifact"]
    kept = ("format", "sha256", "bytes", "runtime", "runtime_version")
    try:
        return {
            "path": str(version / Path(told["file"]).name),
            **{name: told[name] for name in kept},
            "session": [list(pair) for pair in sorted(told["session"].items())],
            "status": manifest.get("status"),
        }
    except (KeyError, TypeError, AttributeError) as fault:
        raise BadOutput(f"the manifest does not describe its artifact: {fault!r}", hint="Retry the job.") from fault


def _can_be_probed(artifact: dict[str, Any]) -> bool:
    """Not what waits for its device, nor a runtime that needs a GPU where there is none."""
    waits = artifact.pop("status") == "unverified"
    needs_gpu = _PROBED.get(artifact["runtime"])
    return not waits and needs_gpu is not None and (not needs_gpu or device.gpu_present())


def _wrong(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return f"it does not run: {answer['error']['message']}"
    broken = [str(output["name"]) for output in answer["outputs"][0] if not output["finite"]]
    return f"its output {', '.join(broken)} is not finite" if broken else ""


def _probe(request: dict[str, Any], prober: Prober) -> dict[str, Any] | None:
    """What the probe answers; None where it did not, for want of time, memory or a sane answer."""
    with tempfile.TemporaryDirectory(prefix="smoke-", dir=prober.work) as folder:
        work = Path(folder)
        (work / "request").write_text(json.dumps(request), encoding="utf-8")
        with (work / "request").open("rb") as question, (work / "answer").open("w+b") as answer:
            code = _run(work, question.fileno(), answer.fileno(), prober)
            answer.seek(0)
            text = answer.read(_ANSWER_BYTES)
    if code is None:
        return None
    if code < 0:
        name = signal.Signals(-code).name
        return {"error": {"message": f"its process was ended by {name}"}} if -code != signal.SIGKILL else None
    try:
        return _checked(json.loads(text))
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _run(work: Path, question: int, answer: int, prober: Prober) -> int | None:
    """The probe's exit code; None where it ran out of time."""
    process = subprocess.Popen(
        [*prober.command, str(work)],
        stdin=question,
        stdout=answer,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=work,
        env=supervise.environment(work),
    )
    tree = Tree(process.pid)
    deadline_s = prober.clock() + prober.limit_s
    try:
        while process.poll() is None and prober.clock() < deadline_s:
            if prober.should_stop():
                raise JobCancelled("the smoke test was stopped")
            time.sleep(_TICK_S)
        return process.poll()
    finally:
        _end(process, tree)


def _end(process: subprocess.Popen[bytes], tree: Tree) -> None:
    """Nothing of the probe is left: neither itself nor the runners it started."""
    for _ in range(_KILL_TICKS):
        if not tree.kill(signal.SIGKILL):
            break
        time.sleep(0.01)
    if processes.read(process.pid) is None:
        process.wait()


def _checked(answer: Any) -> dict[str, Any]:
    """An answer of the shape that is asked for; the probe opened a model, so it is not believed."""
    if "error" in answer:
        message = printable(str(answer["error"]["message"]))[:400]
        return {"error": {"message": message, "usage": bool(answer["error"].get("usage"))}}
    outputs = [
        {"name": printable(str(output["name"]))[:100], "finite": output["finite"] is True}
        for output in answer["outputs"][0]
    ]
    return {"outputs": [outputs]}
