"""The published models as the daemon sees them: what /metrics and /api/v1/models say of each.

Read from ``published/`` after every publish and whenever ``current`` was moved by the command line. A manifest is what
a worker wrote, so nothing in it is believed to have the right type. A version is stale where today's runtime or device
is not the one it was measured with.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgeopt.daemon import shelf as shelves
from edgeopt.daemon.metrics import ModelFacts
from edgeopt.daemon.pages import Row
from edgeopt.daemon.shelf import Shelf
from edgeopt.daemon.storage import storage_errors
from edgeopt.errors import BadOutput
from edgeopt.records import Target

_QUANTILES = {"p50": "0.5", "p90": "0.9", "p99": "0.99"}
_KINDS = ("accuracy", "agreement", "synthetic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One name: its shelf, and what its current version's manifest says."""

    shelf: Shelf
    facts: ModelFacts
    row: Row


class Models:
    """Every published model; the loop refreshes, other threads read ``rows`` and ``facts``."""

    def __init__(self, published: Path, target: Target) -> None:
        self._published = published
        self._target = target
        self._known: dict[str, Model] = {}
        self._times: dict[str, int] = {}

    def refresh(self, name: str) -> Shelf:
        """Read one name again; a name that is gone is forgotten."""
        with storage_errors(f"reading what is published of {name}"):
            shelf = shelves.read(self._published, name)
        known = {other: model for other, model in self._known.items() if other != name}
        if shelf.current:
            known[name] = describe(shelf, self._target)
        self._known = known
        return shelf

    def refresh_moved(self) -> list[Shelf]:
        """Read again what the command line (or a hand) has changed since; returns those shelves.

        Versions, pins and ``current`` all come and go by renames in the name's folder, so its time of change tells.
        """
        times: dict[str, int] = {}
        with (
            storage_errors("reading what is published"),
            suppress(FileNotFoundError),
            os.scandir(self._published) as homes,
        ):
            for home in homes:
                if home.is_dir(follow_symlinks=False) and shelves.is_name(home.name):
                    times[home.name] = home.stat(follow_symlinks=False).st_mtime_ns
        changed = [name for name in {*times, *self._times} if times.get(name) != self._times.get(name)]
        self._times = times
        known = {name: model.shelf for name, model in self._known.items()}
        return [shelf for name in sorted(changed) if (shelf := self.refresh(name)) != known.get(name)]

    def rows(self) -> list[Row]:
        return [model.row for _, model in sorted(self._known.items())]

    def facts(self) -> dict[str, ModelFacts]:
        return {name: model.facts for name, model in self._known.items()}

    def is_current_enough(self, name: str, number: int) -> bool:
        """Whether a version is on disk and was measured under today's conditions: what a duplicate may be told."""
        shelf = shelves.read(self._published, name)
        if number not in shelf.versions:
            return False
        try:
            return not stale(shelves.read_manifest(shelf.folder / str(number)), self._target)
        except (BadOutput, OSError):
            return False


def describe(shelf: Shelf, target: Target) -> Model:
    """What the current version's manifest says; an unreadable one says nothing but the version."""
    try:
        manifest = shelves.read_manifest(shelf.folder / str(shelf.current))
    except (BadOutput, OSError):
        facts = ModelFacts(name=shelf.name, version=shelf.current, stale=("manifest",))
        return Model(shelf=shelf, facts=facts, row=_row(shelf, {}, facts))
    result, baseline = _part(manifest, "result"), _part(manifest, "baseline")
    quality = _part(result, "quality")
    kind = quality.get("kind")
    sizes = {"original": _number(baseline.get("bytes")), "published": _number(_part(manifest, "artifact").get("bytes"))}
    latencies = {"original": _latency(baseline), "published": _latency(result)}
    facts = ModelFacts(
        name=shelf.name,
        version=shelf.current,
        latency_s={variant: quantiles for variant, quantiles in latencies.items() if quantiles},
        size_bytes={variant: size for variant, size in sizes.items() if size is not None},
        speedup_ratio=_number(_part(result, "speedup").get("value")),
        quality_ratio=_number(quality.get("value")) if kind in _KINDS else None,
        quality_kind=kind if kind in _KINDS else "",
        stale=stale(manifest, target),
    )
    return Model(shelf=shelf, facts=facts, row=_row(shelf, manifest, facts))


def stale(manifest: Mapping[str, Any], target: Target) -> tuple[str, ...]:
    """Why a version no longer holds here: ``runtime`` for another version of it, ``device`` for another device."""
    artifact, measured = _part(manifest, "artifact"), _part(manifest, "target")
    reasons = []
    runtime = artifact.get("runtime")
    if isinstance(runtime, str) and (installed := _installed(runtime)) and installed != artifact.get("runtime_version"):
        reasons.append("runtime")
    there = (measured.get("device"), measured.get("arch"), measured.get("features"))
    if measured and there != (target.device, target.arch, list(target.features)):
        reasons.append("device")
    return tuple(reasons)


def _installed(runtime: str) -> str | None:
    """The installed version of a runtime, read from its package, which is not imported."""
    if runtime not in ("onnxruntime", "tensorrt"):
        return None
    try:
        return version(runtime)
    except PackageNotFoundError:
        return None


def _row(shelf: Shelf, manifest: Mapping[str, Any], facts: ModelFacts) -> Row:
    created = manifest.get("created")
    return {
        "name": shelf.name,
        "version": shelf.current,
        "versions": len(shelf.versions),
        "pinned": bool(shelf.pinned),
        "created": created if isinstance(created, str) else None,
        "folder": str(shelf.folder / str(shelf.current)),
        "speedup": facts.speedup_ratio,
        "bytes_ratio": _number(_part(manifest, "result").get("bytes_ratio")),
        "quality": facts.quality_ratio,
        "quality_kind": facts.quality_kind or None,
        "stale": ",".join(facts.stale) or None,
    }


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def _latency(measured: Mapping[str, Any]) -> dict[str, float]:
    latency = _part(measured, "latency_ms")
    values = {quantile: _number(latency.get(name)) for name, quantile in _QUANTILES.items()}
    return {quantile: value / 1000.0 for quantile, value in values.items() if value is not None}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
