"""Fourth step: all artifacts of a model, in turns with the original, in passes over all models.

In each pass every artifact (in an order drawn anew) gets a fresh process and takes ABBA turns with a fresh process of the
original, through edgeopt's own ``stages.measure``. A pass gives one ratio; the value is the median of the passes, the
interval spans what fresh processes differ by, which is more than the rounds of one process do. The original runs against
itself as one more row: how far that is from 1 is how far to trust the others.

What cannot be the fastest is timed in fewer passes (``rows.passes_worth``), and the table says in how many. Passes are
kept (``timings/MODEL.json``), so a measurement that was broken off goes on where it was.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeopt.errors import EdgeoptError
from edgeopt.stages import measure
from edgeopt.stages.measure import Effort
from edgeopt.stages.runners import Runner

from .judge import Bench, artifact_of
from .rows import SEED, Row, passes_worth, with_passes

_LONGEST_S = 1.0


def one_pass(rows: Sequence[Row], bench: Bench, turn: int, most: int) -> list[Row]:
    """The rows with pass ``turn`` (from 0) of ``most``, where they lack it and it is worth it.

    An artifact that dies on the way becomes a failure.
    """
    timed, started = list(rows), time.monotonic()
    due = [index for index, row in enumerate(rows) if len(row.passes) == turn < passes_worth(row, most)]
    if not due:
        return timed
    with Runner(bench.original) as original:
        original.hold(bench.timed)
        for index in np.random.default_rng((SEED, turn)).permutation(due):
            timed[index] = _timed(rows[index], original, bench, turn)
    told = f"pass {turn + 1} of {most}: {bench.given.name}, {len(due)} artifacts in {time.monotonic() - started:.0f} s"
    print(told, file=sys.stderr, flush=True)
    return timed


def _timed(row: Row, original: Runner, bench: Bench, turn: int) -> Row:
    assert row.record is not None  # what was judged has a record
    try:
        with Runner(artifact_of(row.entry, row.record, bench.original)) as candidate:
            candidate.hold(bench.timed)
            timing = measure.compare(original, candidate, Effort(longest_s=_LONGEST_S, seed=turn))
    except EdgeoptError as error:
        return replace(row, failure=error.message, speedup=None, passes=())
    return with_passes(row, (*row.passes, timing.speedup.value))


# ---------------------------------------------------------------- kept
def keep(rows: Sequence[Row], file: Path, threads: int) -> None:
    """Write the rows' passes."""
    passes = {_name(row): row.passes for row in rows if row.passes}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"threads": threads, "passes": passes}, indent=1))


def resumed(rows: Sequence[Row], file: Path, threads: int) -> list[Row]:
    """The rows with the passes that were kept for the very same artifacts and as many threads."""
    kept = json.loads(file.read_text()) if file.exists() else {}
    passes = kept["passes"] if kept.get("threads") == threads else {}
    return [row if row.failure else with_passes(row, passes.get(_name(row), ())) for row in rows]


def _name(row: Row) -> str:
    """The artifact's path names everything that it was made of."""
    return row.record.model if row.record else ""
