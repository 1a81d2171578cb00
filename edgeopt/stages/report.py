"""The evidence that goes with a published version: manifest.json, schema 1, and the artifact's files.

Input: the verdict and what led to it. Output: the job's ``out/`` folder. ``version`` stays 0 and ``created`` empty; the
publisher knows them. What was not measured is absent, never guessed.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt import __version__, device, fingerprint, wire
from edgeopt.integrity import model_files, sha256_of
from edgeopt.layout import ARTIFACT_FILE, ENGINE_FILE, MANIFEST_FILE, REPORT_FILE
from edgeopt.orders import JobOrder
from edgeopt.records import Artifact, Latency, Measurement, Quality, Recipe, Target, Trial, Verdict
from edgeopt.stages import report_page
from edgeopt.stages.data import Data

_LIBRARIES = ("numpy", "onnx", "onnx-ir", "onnxscript", "torch")
_RUNTIMES = {"onnxruntime": "onnxruntime", "tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
"""Under which name each runtime stands in a manifest's ``environment``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that the manifest tells."""

    order: JobOrder
    target: Target
    data: Data
    verdict: Verdict
    judged_in: Artifact | None = None
    """How ONNX files were opened that were judged in the place of their engines; None where what serves was judged itself."""
    prepared: Mapping[str, Any] = field(default_factory=dict)
    """Where the candidates come from, if not from here; see ``acceptance``."""
    frailty: Sequence[Mapping[str, Any]] = ()
    """What each family of channels can give up, where pruning was searched for; see ``frailty``."""


def write(findings: Findings, out: Path) -> None:
    """Fill ``out`` with the winner's files, manifest.json and report.html."""
    artifact = findings.verdict.winner.artifact
    assert artifact is not None  # noqa: S101  # the winner and the baseline always have one
    for file in model_files(Path(artifact.path)):
        shutil.copyfile(file, out / _published_name(file, artifact))
    document = manifest(findings)
    (out / MANIFEST_FILE).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (out / REPORT_FILE).write_text(report_page.render(document), encoding="utf-8")


def _published_name(file: Path, artifact: Artifact) -> str:
    """An engine and the model beside it keep their names; the original may have any."""
    return file.name if artifact.engine is not None else file.name.replace(Path(artifact.path).name, ARTIFACT_FILE)


def manifest(findings: Findings) -> dict[str, Any]:
    """The manifest of the contract as plain JSON values."""
    order, verdict, target = findings.order, findings.verdict, findings.target
    winner, baseline = verdict.winner, verdict.baseline
    artifact = winner.artifact
    assert artifact is not None  # noqa: S101  # see write
    return {
        "schema": 1,
        "name": order.name,
        "version": 0,
        "created": "",
        "edgeopt": __version__,
        "source": wire.encode(order.source),
        "artifact": _artifact(artifact, judged_in=findings.judged_in if _standing(winner, target) else None),
        "target": {
            "name": target.name,
            "device": target.device,
            "arch": target.arch,
            "features": list(target.features),
            "threads": target.threads,
            **({"compute_capability": list(target.compute_capability)} if target.compute_capability else {}),
        },
        "goal": wire.encode(order.policy.goal),
        "recipe": _recipe(winner.recipe),
        "verdict": verdict.reason,
        **_standing(winner, target),
        **({"prepared": dict(findings.prepared)} if findings.prepared else {}),
        "result": _result(winner.measurement),
        "baseline": _baseline(baseline.measurement, beside=winner.measurement),
        "candidates": [_candidate(trial) for trial in verdict.trials],
        **({"pruning": {"families": [dict(row) for row in findings.frailty]}} if findings.frailty else {}),
        "data": {
            "calibration": wire.encode(findings.data.calibration.origin),
            "eval": wire.encode(findings.data.eval.origin),
        },
        "environment": _environment(artifact, target),
    }


def _standing(winner: Trial, target: Target) -> dict[str, Any]:
    """What stands between an artifact that was made for a device elsewhere and its service; nothing for what was measured."""
    if winner.measurement is None or winner.measurement.measured:
        return {}
    engine = winner.artifact is not None and winner.artifact.engine is not None
    here = f"the same model.onnx in onnxruntime on {platform.machine()}, whose integer kernels are others than {target.arch}'s"
    return {
        "status": "unverified",
        "verification": {
            "latency": {
                "measured": False,
                "reason": f"the device that the {'engine' if engine else 'model'} is for is not here",
            },
            "quality": {
                "measured": True,
                "on": "the same model.onnx in onnxruntime, not the engine" if engine else here,
            },
        },
    }


def _environment(artifact: Artifact, target: Target) -> dict[str, Any]:
    """Versions for people, and the fingerprint that is held against later days (``edgeopt.fingerprint``)."""
    taken = fingerprint.here(artifact.runtime)
    driver: dict[str, Any] = {"driver": taken.driver} if taken.driver else {}
    if driver and (uuids := device.gpu_uuids()):
        driver["gpu_uuids"] = list(uuids)  # for people: which of several alike it was
    known = {name: value for name, value in wire.encode(taken).items() if value is not None}
    people = {"python": platform.python_version(), "cpu": taken.device or target.device}
    return {**versions(), **driver, **people, "fingerprint": known | {"runtime_version": artifact.runtime_version}}


def _artifact(artifact: Artifact, *, judged_in: Artifact | None) -> dict[str, Any]:
    """The artifact; with ``judged_in``, an engine's quality is that of the model beside it, opened as this one was."""
    document = {
        "file": ENGINE_FILE if artifact.engine is not None else ARTIFACT_FILE,
        "format": artifact.format,
        "sha256": artifact.sha256,
        "bytes": artifact.bytes,
        "runtime": artifact.runtime,
        "runtime_version": artifact.runtime_version,
        "session": dict(artifact.session),
    }
    if artifact.engine is None:
        return document
    document["engine"] = wire.encode(artifact.engine)
    if judged_in is not None:
        # what was found right may stand in for the engine where that does not run
        model = Path(artifact.path).with_name(ARTIFACT_FILE)
        files = model_files(model)
        document["fallback"] = {
            "file": ARTIFACT_FILE,
            "format": "onnx",
            "sha256": sha256_of(model),
            "bytes": sum(file.stat().st_size for file in files),
            "runtime": judged_in.runtime,
            "runtime_version": judged_in.runtime_version,
            "session": dict(judged_in.session),
        }
    return document


def _recipe(recipe: Recipe) -> list[dict[str, Any]]:
    return [{"technique": step.technique, **dict(step.settings)} for step in recipe.steps]


def _result(measurement: Measurement | None) -> dict[str, Any]:
    if measurement is None:
        return {}
    if not measurement.measured:
        return _built(measurement)
    speedup = measurement.speedup
    return {
        "speedup": {"value": _rounded(speedup.value), "ci95": [_rounded(speedup.low), _rounded(speedup.high)]},
        "latency_ms": _latency(measurement.latency),
        "bytes": measurement.bytes,
        "bytes_ratio": _rounded(measurement.bytes_ratio),
        "peak_memory_bytes": measurement.peak_memory_bytes,
        "quality": _quality(measurement.quality),
        **_conditions(measurement),
    }


def _conditions(measurement: Measurement) -> dict[str, Any]:
    """What the device told of the timing; nothing where it has no clock of its own."""
    told = {name: _rounded(value) for name, value in measurement.conditions}
    return {"conditions": told} if told else {}


def _built(measurement: Measurement) -> dict[str, Any]:
    """Of an artifact that did not run on its device: no latency, and memory as its builder states it."""
    return {
        "latency": {"measured": False},
        "traffic_ratio": _rounded(measurement.speedup.value),
        "bytes": measurement.bytes,
        "bytes_ratio": _rounded(measurement.bytes_ratio),
        "peak_memory_bytes": measurement.peak_memory_bytes,
        "quality": _quality(measurement.quality),
    }


def _baseline(measurement: Measurement | None, *, beside: Measurement | None) -> dict[str, Any]:
    """The original's row; its latency is the one taken in turns with the winner's, where there was such a race."""
    if measurement is None:
        return {}
    if not measurement.measured:
        return _built(measurement)
    raced = beside.original_latency if beside is not None else None
    return {
        "latency_ms": _latency(raced or measurement.latency),
        "bytes": measurement.bytes,
        "peak_memory_bytes": measurement.peak_memory_bytes,
        "quality": _quality(measurement.quality),
    }


def _candidate(trial: Trial) -> dict[str, Any]:
    row: dict[str, Any] = {
        "recipe": _recipe(trial.recipe),
        "label": trial.recipe.label,
        "seconds": _rounded(trial.seconds),
    }
    if trial.measurement is not None:
        row["result"] = _result(trial.measurement)
    if trial.refused is not None:
        row["refused"] = trial.refused
    return row


def _latency(latency: Latency) -> dict[str, float]:
    return {"p50": _rounded(latency.p50_ms), "p90": _rounded(latency.p90_ms), "p99": _rounded(latency.p99_ms)}


def _quality(quality: Quality) -> dict[str, Any]:
    return {
        "kind": quality.kind,
        "metric": quality.metric,
        "value": _rounded(quality.value),
        "drop": _rounded(quality.drop),
        "ci95": [_rounded(end) for end in quality.ci95],
        "samples": quality.samples,
        "details": {name: _rounded(value) for name, value in quality.details},
    }


def _rounded(value: float) -> float:
    """Six significant digits: more would claim a precision that no clock has."""
    return float(f"{value:.6g}")


def versions() -> dict[str, str]:
    """What is installed of the libraries that shape a result."""
    found = {name: fingerprint.version_of(name) for name in _LIBRARIES}
    found |= {name: fingerprint.installed(runtime) for name, runtime in _RUNTIMES.items()}
    return {name: version for name, version in found.items() if version is not None}
