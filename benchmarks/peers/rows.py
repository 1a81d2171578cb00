"""What is known of one artifact: the line of a model's table that judging, measuring and showing pass on and fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeopt.policy import Goal
from edgeopt.records import Interval, Quality
from edgeopt.stages.bounds import median_interval

from .field import OWN, Entry
from .produce import Record

CONTROL = Entry(tool="original", recipe="itself", label="the original against itself")
BUDGET = Goal().max_drop
SEED = 0
_HOPELESS = 4.0
"""Wrong as seen, and with a bound this many times beyond the budget: timed in one pass only."""
_SLOW = 0.8
"""Slower than this against the original, in every one of the first passes: no more passes make it the fastest."""
_FIRST_PASSES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a model's table. ``speedup`` and ``bytes_ratio`` are the original's over the candidate's."""

    entry: Entry
    record: Record | None
    is_current: bool = True
    """False where the artifact was made by an earlier state of its sources."""
    recipe: str = ""
    """What edgeopt chose."""
    bytes_ratio: float | None = None
    quality: Quality | None = None
    confident_agreement: float | None = None
    """Of the eval samples on which the original's first class has p > 0.5, how many keep it."""
    speedup: Interval | None = None
    passes: tuple[float, ...] = ()
    """The speedup in each pass."""
    failure: str = ""


def is_right(row: Row) -> bool:
    """Whether the row was judged and meets the budget at its bound."""
    return not row.failure and row.quality is not None and row.quality.ci95[1] <= BUDGET


def seems_right(row: Row) -> bool:
    """Whether the drop that was seen meets the budget, whatever its bound."""
    return not row.failure and row.quality is not None and row.quality.drop <= BUDGET


def passes_worth(row: Row, most: int) -> int:
    """How many of ``most`` passes a row is timed in: all that may be the fastest, fewer where nothing hangs on it."""
    if row.failure or row.quality is None:
        return 0
    if row.entry is CONTROL or row.entry.tool == OWN:
        return most
    if not seems_right(row):
        return min(1 if row.quality.ci95[1] > _HOPELESS * BUDGET else _FIRST_PASSES, most)
    is_slow = len(row.passes) >= _FIRST_PASSES and max(row.passes) < _SLOW
    return min(_FIRST_PASSES, most) if is_slow else most


def with_passes(row: Row, ratios: Sequence[float]) -> Row:
    """The row with its passes' speedups: the median, and the 95 % interval of what fresh processes differ by."""
    if not ratios:
        return row
    values = np.asarray(ratios)
    low, high = median_interval(values, seed=SEED)
    speedup = Interval(value=float(np.median(values)), low=low, high=high)
    return replace(row, speedup=speedup, passes=tuple(ratios))


def bytes_of(model: Path) -> int:
    """On disk, with external data."""
    return sum(file.stat().st_size for file in files_of(model))


def files_of(model: Path) -> tuple[Path, ...]:
    """An artifact's files: external data is called ``model.onnx.data`` by one tool, ``model.onnx_data`` by another."""
    return (model, *sorted(file for file in model.parent.glob(f"{model.name}?*") if file.suffix != model.suffix))
