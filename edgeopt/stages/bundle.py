"""The document of a bundle: what one machine prepared for another to choose from, in records and back.

Between ``bundling``, which writes it on the machine that prepares, and ``acceptance``, which reads it on the device. What it says was written
elsewhere and is not trusted: :func:`read` holds it against the records and against what a configuration may wish.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from edgeopt import __version__, wire
from edgeopt.errors import BadBundle
from edgeopt.layout import ARTIFACT_FILE, CANDIDATES_FOLDER
from edgeopt.orders import JobOrder, Source
from edgeopt.policy import Policy
from edgeopt.records import DataOrigin, Quality, Recipe, Target

_MOST_SPEEDUP = 1000.0
_SEEDS = 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One model of a bundle; where it lies, how it was made, how right it was where it was prepared."""

    recipe: Recipe
    address: str
    """The folder below ``candidates/`` that holds it: its content's hash."""
    bytes: int
    lossless: bool
    """Its outputs differ by float rounding at most: it may be published where nothing proves faster."""
    quality: Quality
    traffic_ratio: float | None = None
    """Bytes that one inference moves, the original's over this one's, where that stood in for the time: an order, no promise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """The document of a bundle. ``candidates`` are in the order in which they are worth measuring."""

    edgeopt: str
    name: str
    source: Source
    target: Target
    """What it was prepared for: the preparing machine's own processor, unless another was asked for."""
    machine: str
    """What prepared it."""
    policy: Policy
    calibration: DataOrigin
    eval: DataOrigin
    """Of the samples that judged there; those that came along may be fewer."""
    original: str
    """Content address of the model as it was dropped."""
    teacher: str | None = None
    """Content address of the model whose answers are right, where that is not the original."""
    candidates: tuple[Candidate, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def read(path: Path) -> Bundle:
    """The document of an unpacked bundle; :class:`~edgeopt.errors.BadBundle` where it is not one of this version."""
    try:
        document = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
        if isinstance(document, dict):
            document.pop("bundle", None)  # the file's name says the same
        found = wire.decode(Bundle, document)
        _check(found)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadBundle(
            f"the bundle's document cannot be read by edgeopt {__version__}: {error!s:.300}",
            hint="Prepare the bundle with the same release of edgeopt as this device has.",
        ) from error
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}, which is no number")


def _check(found: Bundle) -> None:
    """What a configuration is held against when it is read, and what the report will show; ValueError or TypeError."""
    goal, seed = found.policy.goal, found.policy.search.seed
    if not 0.0 <= goal.max_drop <= 1.0 or not 0.0 <= goal.min_speedup <= _MOST_SPEEDUP or not 0 <= seed < _SEEDS:
        raise ValueError(f"its goal is max_drop {goal.max_drop:g}, min_speedup {goal.min_speedup:g}, its seed {seed}")
    for candidate in found.candidates:
        _ = candidate.recipe.label  # a setting may look like a list and be none


def with_policy(order: JobOrder, offered: Bundle) -> JobOrder:
    """The bundle's policy; how many threads and how long, this device's configuration says."""
    here, there = order.policy, offered.policy
    target = replace(there.target, threads=here.target.threads, compute_capability=())
    search = replace(there.search, budget_s=here.search.budget_s, trials=None)
    return replace(order, policy=replace(there, target=target, search=search, teacher=None))


def model_in(folder: Path, address: str) -> Path:
    """Where the model with this address lies below an unpacked bundle; :class:`~edgeopt.errors.BadBundle` where it does not."""
    path = folder / CANDIDATES_FOLDER / address / ARTIFACT_FILE
    if not address.isalnum() or not path.is_file():
        raise BadBundle(
            f"the bundle names the model {address!r:.80}, which it does not hold",
            hint="Prepare the bundle again; this one was put together by something else.",
        )
    return path


def provenance(made: Bundle) -> dict[str, object]:
    """Where the version was prepared, out of which model, and how right its candidates were there."""
    keys = ("name", "device", "arch", "features", "threads")
    return {
        "source": wire.encode(made.source),
        "edgeopt": made.edgeopt,
        "on": made.machine,
        "for": {key: value for key, value in wire.encode(made.target).items() if key in keys},
        "environment": dict(made.environment),
        "eval": wire.encode(made.eval),
        "found": [
            f"{each.recipe.label}: {each.quality.metric} drops by {each.quality.drop:.4g}, at most {each.quality.ci95[1]:.4g}"
            f" (95 %) on {each.quality.samples} samples"
            for each in made.candidates
        ],
    }
