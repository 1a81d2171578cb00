"""``python -m edgeopt.worker.inspect PATH [WORK]``: what a model or an artifact is, as one JSON document on standard output.

``edgeopt inspect`` starts this program, since the command line opens no models: it runs in the worker's sandbox, with
sight of the model and its folder only. PATH is an ONNX file, or the folder of a published version, whose manifest is
then part of the answer. Of an engine its first bytes are read and the ``model.onnx`` beside it, where that is; it is never opened. With WORK, an
empty folder of the caller's, the model is also run on made-up inputs to tell what pruning could take from it. Exit code 0; or 1 with
``{"error": {code, message, hint}}``.
"""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeopt import wire
from edgeopt.errors import EdgeoptError, NotAModel, UsageError
from edgeopt.layout import ARTIFACT_FILE, ENGINE_FILE, MANIFEST_FILE
from edgeopt.policy import WorkerLimits
from edgeopt.worker import sandbox

_MANIFEST_BYTES = 16 << 20
ENGINE_SUFFIX = Path(ENGINE_FILE).suffix


def main(arguments: Sequence[str]) -> int:
    """Confine this process, then look at the path that is the only argument."""
    try:
        if len(arguments) not in (1, 2):
            raise UsageError("one path is needed", hint="Name an ONNX file or an artifact's folder.")
        path, work = Path(arguments[0]).absolute(), Path(arguments[1]).absolute() if arguments[1:] else None
        report = sandbox.apply(read=_readable(path), write=[work] if work else (), limits=WorkerLimits(nice=0))
        answer = {**inspect(path, work), "sandbox": wire.encode(report)}
    except EdgeoptError as error:
        answer = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
    except OSError as error:
        message = f"{arguments[0]!r} cannot be read: {error.strerror}"
        answer = {
            "error": {"code": "unreadable", "message": message, "hint": "Name a file that exists and may be read."}
        }
    sys.stdout.write(json.dumps(answer, allow_nan=False, ensure_ascii=True) + "\n")
    return 1 if "error" in answer else 0


def inspect(path: Path, work: Path | None = None) -> dict[str, Any]:
    """The facts about a model file or an artifact folder; raises what ``graph.load`` raises. ``work``: for ``channels``, which are told with it alone."""
    from edgeopt.graph import describe
    from edgeopt.graph.load import load
    from edgeopt.stages.signature import signature_of

    if path.suffix == ENGINE_SUFFIX:
        return _inspect_engine(path, work)
    folder = path if path.is_dir() else None
    file = path / ARTIFACT_FILE if folder else path
    model = load(file)
    signature = signature_of(model)
    facts: dict[str, Any] = {
        "path": str(path),
        "file_bytes": file.stat().st_size,
        **wire.encode(signature),
        "operators": dict(signature.operators),
        "ir_version": model.ir_version,
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "opsets": {domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        "nodes": sum(number for _, number in signature.operators),
        "precision_bytes": describe.precisions(model),
        "layers": describe.layers(model),
        "external_data": describe.external_files(model),
        "manifest": _manifest(folder) if folder else None,
    }
    if folder and (folder / ENGINE_FILE).is_file():
        facts["engine"] = _engine(folder / ENGINE_FILE)
    if work is not None:
        from edgeopt.worker import channels

        facts["channels"] = channels.channels(model, signature, work)
    return facts


def _inspect_engine(path: Path, work: Path | None) -> dict[str, Any]:
    """An engine, with all that the version's folder says where it is part of one."""
    folder = path.parent
    if path.name == ENGINE_FILE and (folder / ARTIFACT_FILE).is_file():
        return {**inspect(folder, work), "path": str(path), "file_bytes": path.stat().st_size}
    if work is not None:
        raise UsageError("an engine tells of no channels", hint="Name the ONNX model that it was built from.")
    return {"path": str(path), "file_bytes": path.stat().st_size, "engine": _engine(path), "manifest": None}


def _engine(path: Path) -> dict[str, Any]:
    """What the first bytes tell; ``header`` is null where they are of no layout that is known."""
    from edgeopt.runtimes.trt import header

    return {"file": path.name, "bytes": path.stat().st_size, "header": wire.encode(header.read(path))}


def _manifest(folder: Path) -> Any:
    try:
        with (folder / MANIFEST_FILE).open("rb") as file:
            return json.loads(file.read(_MANIFEST_BYTES))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise NotAModel(
            f"the manifest in {str(folder)!r} is not JSON", hint="Run edgeopt verify on the folder."
        ) from error


def _readable(path: Path) -> list[Path]:
    """The path; for a file also the plain files beside it, where its external data may lie, but no folder below."""
    if stat.S_ISDIR(path.stat().st_mode):
        return [path.resolve()]
    return [path, *(each for each in path.parent.iterdir() if stat.S_ISREG(each.lstat().st_mode))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
