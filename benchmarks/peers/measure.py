"""Third step: all artifacts of a model, in turns with the original, in one run; and the same judgement for all.

Speed: several passes; in each, every artifact (in an order drawn anew) gets a fresh process and takes ABBA turns with a
fresh process of the original, through edgeopt's own ``stages.measure``. A pass gives one ratio; the value is the median of the passes,
the interval spans what fresh processes differ by, which is more than the rounds of one process do. The original runs
against itself as one more row: how far that is from 1 is how far to trust the others.

Quality: edgeopt's own ``stages.quality`` on all eval samples, with labels where there are any.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeopt import device
from edgeopt.calibrate.samples import open_samples
from edgeopt.cli.optimize import read_recipe
from edgeopt.errors import EdgeoptError
from edgeopt.graph import endings
from edgeopt.graph.load import load
from edgeopt.layout import MANIFEST_FILE
from edgeopt.policy import Goal, TargetRequest
from edgeopt.records import Artifact, Interval, Quality, Recipe
from edgeopt.runtimes.ort import OnnxRuntime
from edgeopt.stages import baseline, judges, measure, quality, reference
from edgeopt.stages.bounds import median_interval
from edgeopt.stages.measure import Effort
from edgeopt.stages.reference import Reference
from edgeopt.stages.runners import Runner
from edgeopt.stages.signature import signature_of

from .field import OWN, Entry
from .prepare import Prepared
from .produce import Record

if TYPE_CHECKING:
    from edgeopt.protocols import Array, Feeds

CONTROL = Entry(tool="original", recipe="itself", label="the original against itself")
_SEED = 0
_LONGEST_S = 1.0
_HOPELESS = 4.0
"""A bound this many times beyond the budget: timed in one pass only."""
_FEWEST_PASSES = 1
_CONFIDENT = 0.5
Found = tuple[Entry, Record | None, bool]


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
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Bench:
    """What one model's rows are measured with."""

    reference: Reference
    original: Artifact
    original_bytes: int
    timed: Feeds
    threads: int


# ---------------------------------------------------------------- one model
def rows(given: Prepared, found: Sequence[Found], *, threads: int, passes: int) -> list[Row]:
    """Judge and time everything that was found, the control row first."""
    with tempfile.TemporaryDirectory() as folder:
        bench = _bench(given, Path(folder), threads)
        control = Record(model=str(given.model), wall_s=0.0, cpu_s=0.0, peak_memory_bytes=0)
        judged = [
            _judged(entry, record, current, bench) for entry, record, current in ((CONTROL, control, True), *found)
        ]
        return _timed(judged, bench, passes)


def _bench(given: Prepared, folder: Path, threads: int) -> Bench:
    model = load(given.model)
    signature = signature_of(model)
    target = device.detect(TargetRequest(threads=threads))
    original = OnnxRuntime().compile(given.model, Recipe(), target)
    samples = open_samples(given.eval, signature, unpack_to=folder)
    with Runner(original) as runner:
        judged = reference.make(runner, samples, signature, endings.final_operators(model), folder)
    return Bench(judged, original, given.model.stat().st_size, baseline.typical(judged), threads)


def artifact_of(entry: Entry, record: Record, original: Artifact) -> Artifact:
    """The artifact as it is served: edgeopt's with the settings of its manifest, others with the original's."""
    session = original.session
    if entry.tool == OWN:
        manifest = json.loads(Path(record.model).with_name(MANIFEST_FILE).read_text())
        threads = dict(original.session)["intra_op_num_threads"]
        session = tuple(sorted({**manifest["artifact"]["session"], "intra_op_num_threads": threads}.items()))
    return replace(original, path=record.model, session=session)


def _judged(entry: Entry, record: Record | None, is_current: bool, bench: Bench) -> Row:
    row = Row(entry=entry, record=record, is_current=is_current)
    if record is None:
        return replace(row, failure="not produced")
    if record.failure:
        return replace(row, failure=record.failure)
    _tell(f"judging {entry.key}")
    recipe = _recipe(record) if entry.tool == OWN else ""
    row = replace(row, recipe=recipe, bytes_ratio=bench.original_bytes / bytes_of(Path(record.model)))
    kept: list[list[Array]] = []
    try:
        with Runner(artifact_of(entry, record, bench.original)) as candidate:

            def run(feeds: Feeds) -> list[Array]:
                kept.append(candidate.run(feeds))
                return kept[-1]

            verdict = quality.judge(bench.reference, run, Goal(), seed=_SEED)
    except EdgeoptError as error:
        return replace(row, failure=error.message)
    return replace(row, quality=verdict, confident_agreement=confident_agreement(bench.reference, kept))


def confident_agreement(judged: Reference, outputs: Sequence[Sequence[Array]]) -> float | None:
    """Share of positions with the original's p > 0.5 that keep their first class; None without class outputs."""
    form = next((form for form in judged.forms if form.kind == "classes"), None)
    if form is None:
        return None
    kept: list[bool] = []
    for right, got in zip(judged.outputs(), outputs, strict=True):
        first = judges.class_probabilities(right[form.index], form.scores)
        second = judges.class_probabilities(got[form.index], form.scores)
        sure = first.max(axis=1) > _CONFIDENT
        kept += (first.argmax(axis=1) == second.argmax(axis=1))[sure].tolist()
    return float(np.mean(kept)) if kept else None


def bytes_of(model: Path) -> int:
    """On disk, with external data: ``model.onnx.data`` by one tool, ``model.onnx_data`` by another."""
    data = [file for file in model.parent.glob(f"{model.name}?*") if file.suffix != model.suffix]
    return sum(file.stat().st_size for file in (model, *data))


def _recipe(record: Record) -> str:
    return read_recipe(str(Path(record.model).with_name(MANIFEST_FILE))).label


# ---------------------------------------------------------------- in turns
def _timed(judged: list[Row], bench: Bench, passes: int) -> list[Row]:
    """Time what was judged, pass by pass; an artifact that dies on the way becomes a failure."""
    order = np.random.default_rng(_SEED)
    ratios: dict[str, list[float]] = {row.entry.key: [] for row in judged}
    failures: dict[str, str] = {}
    for turn in range(passes):
        _tell(f"pass {turn + 1} of {passes}")
        with Runner(bench.original) as original:
            original.hold(bench.timed)
            for index in order.permutation(len(judged)):
                row = judged[int(index)]
                if row.failure or row.entry.key in failures or (turn >= _FEWEST_PASSES and _is_hopeless(row)):
                    continue
                try:
                    ratios[row.entry.key].append(_one_pass(row, original, bench, turn))
                except EdgeoptError as error:
                    failures[row.entry.key] = error.message
    return [_concluded(row, ratios[row.entry.key], failures.get(row.entry.key, "")) for row in judged]


def _is_hopeless(row: Row) -> bool:
    return row.quality is None or row.quality.ci95[1] > _HOPELESS * Goal().max_drop


def _one_pass(row: Row, original: Runner, bench: Bench, turn: int) -> float:
    assert row.record is not None  # what was judged has a record
    with Runner(artifact_of(row.entry, row.record, bench.original)) as candidate:
        candidate.hold(bench.timed)
        return measure.compare(original, candidate, Effort(longest_s=_LONGEST_S, seed=turn)).speedup.value


def _concluded(row: Row, ratios: list[float], failure: str) -> Row:
    if failure or not ratios:
        return replace(row, failure=row.failure or failure)
    values = np.asarray(ratios)
    low, high = median_interval(values, seed=_SEED)
    return replace(row, speedup=Interval(value=float(np.median(values)), low=low, high=high), passes=tuple(ratios))


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
