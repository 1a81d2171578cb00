"""Writing a bundle: right candidates, the original, samples to judge by, in one file for another device to choose from.

Stands in the place of ``select`` and ``report`` where the order says ``prepare``. In come the trials of a search with the samples they
were judged on; out goes ``NAME.edgeopt``, a plain zip of uncompressed members whose folders are named after their content
(``bundle`` has its document). It holds no latency, since that is the device's to measure, and no time or path of where it
was made: the same candidates give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import stat
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt import __version__, device, wire
from edgeopt.integrity import content_address, model_files, sha256_of
from edgeopt.layout import (
    ARTIFACT_DATA_FILE,
    ARTIFACT_FILE,
    BUNDLE_FILE,
    BUNDLE_SUFFIX,
    BUNDLE_VERSION,
    CANDIDATES_FOLDER,
    CHECKSUMS_FILE,
    SAMPLES_FOLDER,
)
from edgeopt.orders import JobOrder
from edgeopt.policy import Goal
from edgeopt.records import Artifact, DataOrigin, Measurement, Quality, Target, Trial
from edgeopt.stages import reference, report
from edgeopt.stages.bundle import Bundle, Candidate
from edgeopt.stages.reference import Reference

MOST_SAMPLE_BYTES = 256 << 20
"""Beyond this, fewer samples go along: a bundle is copied over slow links and kept on small disks."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MODE = (stat.S_IFREG | 0o644) << 16
_UNIX = 3
_PLAIN_KINDS = "biuf"
_DIGITS = 6

Content: TypeAlias = Path | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All that a search found out, for :func:`write`."""

    order: JobOrder
    target: Target
    calibration: DataOrigin
    reference: Reference
    baseline: Artifact
    trials: Sequence[Trial]
    goal: Goal
    """What counts as right: ``order``'s goal, or the lenient one of a taught student."""
    harmless: Collection[str]
    """Ids of the recipes that are lossless."""
    teacher: Path | None = None


def write(prepared: Prepared, out: Path, *, scratch: Path) -> Bundle:
    """Write ``out/NAME.edgeopt`` and, beside it for whoever asks, the bundle's document; ``scratch`` holds samples meanwhile."""
    contents: dict[str, Content] = {}
    original = add_model(_model_of(prepared.baseline), contents)
    teacher = None if prepared.teacher is None else add_model(prepared.teacher, contents)
    order, found = prepared.order, _candidates(prepared, {original}, contents)
    bundle = Bundle(
        edgeopt=__version__,
        name=order.name,
        source=order.source,
        target=prepared.target,
        machine=f"{device.describe()} ({platform.machine()})",
        policy=order.policy,
        calibration=prepared.calibration,
        eval=replace(prepared.reference.origin, samples=len(prepared.reference.indices)),
        original=original,
        teacher=teacher,
        candidates=tuple(found),
        environment=report.versions(),
    )
    contents[BUNDLE_FILE] = text = document(bundle)
    (out / BUNDLE_FILE).write_bytes(text)
    pack(contents | _samples(prepared.reference, scratch), out / f"{order.name}{BUNDLE_SUFFIX}")
    return bundle


def document(bundle: Bundle) -> bytes:
    """The member that says what the others are."""
    return (json.dumps({"bundle": BUNDLE_VERSION, **wire.encode(bundle)}, indent=1, allow_nan=False) + "\n").encode()


# ---------------------------------------------------------------- what goes in
def _candidates(prepared: Prepared, taken: set[str], contents: dict[str, Content]) -> Iterator[Candidate]:
    """The right ones, each content once, ranked by what is known without timing.

    That is bytes on disk for objective size; else the bytes that one inference moves, where those were counted, or the order in
    which candidates were planned, which is the planner's own promise. A timing from here would rank for this processor, and
    differ from run to run.
    """
    right = [trial for trial in prepared.trials if _is_right(trial, prepared.goal)]
    for trial in sorted(right, key=partial(_rank, objective=prepared.goal.objective)):
        assert trial.artifact is not None  # noqa: S101  # see _is_right
        assert trial.measurement is not None  # noqa: S101
        model = _model_of(trial.artifact)
        address = add_model(model, contents)
        if address in taken:
            continue
        taken.add(address)
        yield Candidate(
            recipe=trial.recipe,
            address=address,
            bytes=sum(file.stat().st_size for file in model_files(model)),
            lossless=trial.recipe.id in prepared.harmless,
            quality=_rounded(trial.measurement.quality),
            traffic_ratio=_traffic_ratio(trial.measurement),
        )


def _is_right(trial: Trial, goal: Goal) -> bool:
    measurement = trial.measurement
    if trial.artifact is None or measurement is None or trial.refused is not None:
        return False
    return measurement.quality.ci95[1] <= goal.max_drop


def _rank(trial: Trial, *, objective: str) -> float:
    """Smaller is better; sorting keeps the planned order of equals."""
    assert trial.artifact is not None  # noqa: S101  # see _is_right
    assert trial.measurement is not None  # noqa: S101
    return float(trial.artifact.bytes) if objective == "size" else -(_traffic_ratio(trial.measurement) or 0.0)


def _traffic_ratio(measurement: Measurement) -> float | None:
    return None if measurement.measured else _round(measurement.speedup.value)


def _model_of(artifact: Artifact) -> Path:
    """The ONNX file; an engine is built again on the device from the one beside it."""
    path = Path(artifact.path)
    return path if artifact.engine is None else path.with_name(ARTIFACT_FILE)


def add_model(model: Path, contents: dict[str, Content]) -> str:
    """Put a model into a bundle; its address there."""
    files = model_files(model)
    address = content_address([sha256_of(file) for file in files])
    for file, name in zip(files, (ARTIFACT_FILE, ARTIFACT_DATA_FILE), strict=False):
        contents[f"{CANDIDATES_FOLDER}/{address}/{name}"] = file
    return address


def _rounded(quality: Quality) -> Quality:
    """Six digits: the last bits depend on how threads happened to add up."""
    low, high = (_round(end) for end in quality.ci95)
    details = tuple((name, _round(value)) for name, value in quality.details)
    return replace(quality, value=_round(quality.value), drop=_round(quality.drop), ci95=(low, high), details=details)


def _round(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


# ---------------------------------------------------------------- samples
def _samples(judged: Reference, scratch: Path) -> dict[str, Content]:
    """The samples that judged, one .npz each as files in ``scratch``, and their labels."""
    samples, scratch = judged.samples, scratch / SAMPLES_FOLDER
    scratch.mkdir(parents=True, exist_ok=True)
    each = sum(array.nbytes for array in samples.feeds(judged.indices[0]).values())
    most = max(1, MOST_SAMPLE_BYTES // max(1, each))
    chosen = reference.spread(len(judged.indices), most, ordered=bool(judged.signature.states))
    contents: dict[str, Content] = {}
    for position, index in enumerate(chosen):
        file = scratch / f"{position:05d}.npz"
        arrays = {f"{name}.npy": _npy(array) for name, array in samples.feeds(judged.indices[index]).items()}
        with file.open("wb") as stream:
            _write_zip(arrays, stream)
        contents[f"{SAMPLES_FOLDER}/{file.name}"] = file
    if (labels := judged.labels) is not None:
        contents[f"{SAMPLES_FOLDER}/labels.npy"] = _npy(np.asarray(labels[list(chosen)]))
    return contents


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    # types that the format has no name for (bfloat16, int4) come back from float32 without loss
    plain = array if array.dtype.kind in _PLAIN_KINDS and array.dtype.isbuiltin else array.astype(np.float32)
    np.lib.format.write_array(buffer, np.ascontiguousarray(plain).reshape(plain.shape), allow_pickle=False)
    return buffer.getvalue()


# ---------------------------------------------------------------- the archive
def pack(contents: Mapping[str, Content], path: Path) -> None:
    """Write the archive, with SHA256SUMS over everything in it; OSError where the disk does."""
    sums = "".join(f"{_digest(contents[name])}  {name}\n" for name in sorted(contents))
    first = {BUNDLE_FILE: contents[BUNDLE_FILE], CHECKSUMS_FILE: sums.encode()}
    rest = {name: contents[name] for name in sorted(contents) if name not in first}
    with path.open("wb") as stream:
        _write_zip(first | rest, stream)


def _write_zip(contents: Mapping[str, Content], stream: Any) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system, entry.external_attr = _UNIX, _MODE
            entry.file_size = content.stat().st_size if isinstance(content, Path) else len(content)
            with archive.open(entry, "w") as member:
                if isinstance(content, Path):
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, member, 1 << 20)
                else:
                    member.write(content)


def _digest(content: Content) -> str:
    return sha256_of(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
