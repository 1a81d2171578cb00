"""``python -m edgeopt.worker.probe WORK``: opens artifacts in the sandbox, runs or times them; the hands of `edgeopt verify` and `bench`.

One JSON request comes on stdin, one JSON document goes to stdout. WORK is a folder of the caller's for temporary files::

    {"artifacts": [Artifact or path, ...], "data": path or null, "threads": n or null, "seconds": s, "compare": bool}

An artifact is opened with its own session settings; the path of a plain ONNX file is compiled for this device first.
Everything runs with made-up inputs unless ``data`` names an .npz file. A refusal is ``{"error": {"message", "hint"}}``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt import device, wire
from edgeopt.errors import EdgeoptError, UsageError
from edgeopt.layout import ARTIFACT_FILE
from edgeopt.policy import InputHint, Policy, TargetRequest, WorkerLimits
from edgeopt.records import Artifact, Recipe, Signature, Target
from edgeopt.worker import sandbox

if TYPE_CHECKING:
    from edgeopt.protocols import Array, Feeds
    from edgeopt.stages.runners import Runner

_RUNS_ALONE = 400
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks."""

    artifacts: tuple[Artifact | str, ...]
    data: str | None = None
    threads: int | None = None
    seconds: float = 6.0
    compare: bool = False


def answer(request: Request, work: Path) -> dict[str, Any]:
    """Open everything, run it once; time it where ``compare`` asks for it."""
    target = device.detect(TargetRequest(threads=request.threads))
    artifacts = [_compiled(Path(item), target) if isinstance(item, str) else item for item in request.artifacts]
    signature = _signature(_model_of(artifacts[0]))
    feeds = _feeds(signature, request.data, work)
    with ExitStack() as stack:
        runners = [stack.enter_context(_runner(artifact)) for artifact in artifacts]
        outputs = [_shapes(runner.output_names, runner.run(feeds)) for runner in runners]
        document: dict[str, Any] = {
            "inputs": wire.encode(signature.inputs),
            "data": request.data or "synthetic",
            "outputs": outputs,
            "sessions": [dict(artifact.session) for artifact in artifacts],
        }
        if request.compare and len(runners) == 1:
            document |= _timed_alone(runners[0], feeds, request.seconds)
    return document | _compared(artifacts, feeds, request.seconds) if request.compare and artifacts[1:] else document


def _timed_alone(runner: Runner, feeds: Feeds, seconds: float) -> dict[str, Any]:
    from edgeopt.stages import measure

    runner.hold(feeds)
    runner.durations_s(3)
    latency = measure.latency(runner.durations_s(_runs_within(runner, seconds)))
    return {"latency_ms": [wire.encode(latency)], "peak_memory_bytes": [runner.peak_memory_bytes()]}


def _compared(artifacts: Sequence[Artifact], feeds: Feeds, seconds: float) -> dict[str, Any]:
    from edgeopt.stages import measure, pairs

    first, second = artifacts
    found = pairs.compare(first, second, feeds, measure.Effort(longest_s=seconds, seed=_SEED))
    return {
        "latency_ms": [wire.encode(found.timing.original), wire.encode(found.timing.candidate)],
        "speedup": wire.encode(found.timing.speedup),
        "pairs": found.timing.rounds,
        "peak_memory_bytes": [found.original_peak_bytes, found.candidate_peak_bytes],
    }


def _runs_within(runner: Runner, seconds: float) -> int:
    pace_s = max(1e-6, min(runner.durations_s(5)))
    return max(5, min(int(seconds / pace_s), 100 * _RUNS_ALONE))


def _runner(artifact: Artifact) -> Runner:
    from edgeopt.stages.runners import Runner

    return Runner(artifact)


def _compiled(model: Path, target: Target) -> Artifact:
    from edgeopt import catalogue

    return catalogue.find_runtime("onnxruntime").compile(model, Recipe(), target)


def _model_of(artifact: Artifact) -> Path:
    """The ONNX file that tells the inputs: the artifact, or what lies beside an engine."""
    path = Path(artifact.path)
    return path if artifact.format == "onnx" else path.with_name(ARTIFACT_FILE)


def _signature(model: Path) -> Signature:
    from edgeopt.graph.limits import GraphLimits
    from edgeopt.graph.load import load_checked
    from edgeopt.stages.signature import signature_of

    return signature_of(load_checked(model, limits=GraphLimits()))


def _feeds(signature: Signature, data: str | None, work: Path) -> dict[str, Array]:
    from edgeopt.calibrate import samples

    if data is None:
        hints: tuple[tuple[str, InputHint], ...] = Policy().inputs
        return samples.synthetic(signature, hints, seed=_SEED, count=1).feeds(0)
    return samples.open_samples(Path(data), signature, unpack_to=work).feeds(0)


def _shapes(names: Sequence[str], outputs: Sequence[Array]) -> list[dict[str, Any]]:
    import numpy as np

    return [
        {
            "name": name,
            "dtype": str(output.dtype),
            "shape": list(output.shape),
            "finite": bool(np.all(np.isfinite(output))) if np.issubdtype(output.dtype, np.floating) else True,
        }
        for name, output in zip(names, outputs, strict=True)
    ]


def _gpu(request: Request) -> tuple[Path, ...]:
    """The GPU's device files, where an engine is among what is to be opened."""
    given = [item for item in request.artifacts if not isinstance(item, str)]
    return device.gpu_nodes() if any(artifact.format != "onnx" for artifact in given) else ()


def main(argv: Sequence[str]) -> int:
    """Answer one request; the exit code is 1 for a refusal."""
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not end up in the document
    work = Path(argv[0])
    try:
        request = wire.loads(Request, sys.stdin.read())
        paths = [Path(item if isinstance(item, str) else item.path).parent for item in request.artifacts]
        paths += [Path(path) for path in filter(None, [request.data])]
        report = sandbox.apply(read=paths, write=[work], limits=WorkerLimits(nice=0), gpu=_gpu(request))
        document = answer(request, work) | {"sandbox": wire.encode(report)}
    except ValueError as error:
        document = {"error": {"message": str(error), "hint": "Report this."}}
    except EdgeoptError as error:
        document = {"error": {"message": error.message, "hint": error.hint, "usage": isinstance(error, UsageError)}}
    json.dump(document, stdout, allow_nan=False)
    stdout.close()
    return 1 if "error" in document else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
