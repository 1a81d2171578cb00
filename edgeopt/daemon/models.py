"""The published models as the daemon sees them: what /metrics and /api/v1/models say of each.

Read from ``published/`` after every publish and whenever ``current`` was moved by the command line. A manifest is what
a worker wrote, so nothing in it is believed to have the right type. A version is stale where today's conditions are not
those it was measured under (``edgeopt.fingerprint``), or where it was marked since (``marks``). Conditions are kept in
memory, each of them once, so that holding them against today's costs no disk.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from edgeopt import fingerprint
from edgeopt.daemon import shelf as shelves
from edgeopt.daemon.metrics import ModelFacts
from edgeopt.daemon.pages import Row
from edgeopt.daemon.shelf import Shelf
from edgeopt.daemon.storage import storage_errors
from edgeopt.errors import BadOutput
from edgeopt.fingerprint import Fingerprint

_QUANTILES = {"p50": "0.5", "p90": "0.9", "p99": "0.99"}
_KINDS = ("accuracy", "agreement", "synthetic")

Conditions: TypeAlias = Callable[[str | None], Fingerprint]
"""Today's conditions for artifacts of a runtime: ``fingerprint.here``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One name: its shelf, and what its current version's manifest says."""

    shelf: Shelf
    facts: ModelFacts
    row: Row
    then: Fingerprint = Fingerprint()  # noqa: RUF009 - frozen
    """The conditions that the current version was measured under."""


class Models:
    """Every published model; the loop refreshes, other threads read ``rows`` and ``facts``."""

    def __init__(self, published: Path, conditions: Conditions = fingerprint.here) -> None:
        self._published = published
        self._conditions = conditions
        self._today: dict[str | None, Fingerprint] = {}
        self._known: dict[str, Model] = {}
        self._times: dict[str, int] = {}
        self._alike: dict[Fingerprint, Fingerprint] = {}
        self._unwell: tuple[Model, ...] | None = None

    def refresh(self, name: str) -> Shelf:
        """Read one name again; a name that is gone is forgotten."""
        self._today = {}  # a runtime may have been replaced under the running daemon: its next worker has the new one
        return self._read(name)

    def compare(self) -> list[str]:
        """Hold every model's conditions against today's; the names whose staleness changed."""
        self._today = {}
        fresh = {name: self._judged(model) for name, model in self._known.items()}
        changed = [name for name, model in fresh.items() if model.facts.stale != self._known[name].facts.stale]
        self._known, self._unwell = fresh, None
        return sorted(changed)

    def unwell(self) -> tuple[Model, ...]:
        """The models that are stale or bear a mark, by name; asked often, so it is remembered until something is read again."""
        if self._unwell is None:
            unwell = (model for model in self._known.values() if model.facts.stale or model.shelf.marks)
            self._unwell = tuple(sorted(unwell, key=lambda model: model.shelf.name))
        return self._unwell

    def _read(self, name: str) -> Shelf:
        with storage_errors(f"reading what is published of {name}"):
            shelf = shelves.read(self._published, name)
        known = {other: model for other, model in self._known.items() if other != name}
        if shelf.current:
            model = describe(shelf)
            before = self._known.get(name)
            seen = before.facts.seen_stale if before else ()
            model = replace(
                model,
                then=self._alike.setdefault(model.then, model.then),
                facts=replace(model.facts, seen_stale=seen),
            )
            known[name] = self._judged(model)
        self._known, self._unwell = known, None
        return shelf

    def _judged(self, model: Model) -> Model:
        """The model with its staleness as of today; a reason that was there once stays known, for its series to fall to 0."""
        marked = tuple(mark.kind for number, mark in model.shelf.marks.items() if mark.bad and _leads(model, number))
        unread = ("manifest",) if model.then == Fingerprint() and "manifest" in model.facts.stale else ()
        stale = (*unread, *dict.fromkeys(marked), *fingerprint.reasons(model.then, self._now(model.then.runtime)))
        seen = tuple(dict.fromkeys((*model.facts.seen_stale, *stale)))
        facts = replace(model.facts, stale=stale, seen_stale=seen)
        return replace(model, facts=facts, row={**model.row, "stale": ",".join(stale) or None})

    def _now(self, runtime: str | None) -> Fingerprint:
        if runtime not in self._today:
            self._today[runtime] = self._conditions(runtime)
        return self._today[runtime]

    def refresh_moved(self) -> list[Shelf]:
        """Read again what the command line (or a hand) has changed since; the shelves that lead elsewhere now.

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
        self._today = {} if changed else self._today
        return [shelf for name in sorted(changed) if _led(shelf := self._read(name)) != _led(known.get(name))]

    def rows(self) -> list[Row]:
        return [model.row for _, model in sorted(self._known.items())]

    def facts(self) -> dict[str, ModelFacts]:
        return {name: model.facts for name, model in self._known.items()}

    def is_current_enough(self, name: str, number: int) -> bool:
        """Whether a version is on disk and was measured under today's conditions: what a duplicate may be told."""
        shelf = shelves.read(self._published, name)
        if number not in shelf.good:
            return False
        try:
            then = fingerprint.of_manifest(shelves.read_manifest(shelf.folder / str(number)))
            return not fingerprint.changes(then, self._conditions(then.runtime))
        except (BadOutput, OSError):
            return False


def describe(shelf: Shelf) -> Model:
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
    )
    return Model(shelf=shelf, facts=facts, row=_row(shelf, manifest, facts), then=fingerprint.of_manifest(manifest))


def _led(shelf: Shelf | None) -> tuple[int, int]:
    return (shelf.current, shelf.pinned) if shelf is not None else (0, 0)


def _leads(model: Model, number: int) -> bool:
    """Whether a version is, or but for its mark would be, what is served."""
    return number == model.shelf.current or number == model.shelf.versions[-1]


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
