"""Third step: the same judgement for all artifacts, by edgeopt's own ``stages.quality`` on all eval samples.

Labels are used where there are any. Nothing here is timed, so a busy machine will do; what was judged is kept
(``judged/MODEL/TOOL-RECIPE.json``) under a key of the artifact, the eval samples and the code that judges, and is not
judged again.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeopt import device, wire
from edgeopt.calibrate.samples import open_samples
from edgeopt.cli.optimize import read_recipe
from edgeopt.errors import EdgeoptError
from edgeopt.graph import endings
from edgeopt.graph.load import load
from edgeopt.integrity import sha256_of
from edgeopt.layout import MANIFEST_FILE
from edgeopt.policy import Goal, TargetRequest
from edgeopt.records import Artifact, Quality, Recipe
from edgeopt.runtimes.ort import OnnxRuntime
from edgeopt.stages import baseline, bounds, forms, judges, metrics, quality, reference
from edgeopt.stages.reference import Reference
from edgeopt.stages.runners import Runner
from edgeopt.stages.signature import signature_of

from .field import OWN, Entry
from .prepare import Prepared
from .produce import Record
from .rows import CONTROL, SEED, Row, bytes_of, files_of

if TYPE_CHECKING:
    from edgeopt.protocols import Array, Feeds

_CONFIDENT = 0.5
Found = tuple[Entry, Record | None, bool]


@dataclass(frozen=True, slots=True)
class Bench:
    """What one model's rows are judged and measured with."""

    given: Prepared
    reference: Reference
    original: Artifact
    timed: Feeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What is kept of a judged artifact; ``quality`` is missing where it does not run, for the reason in ``failure``."""

    key: str
    quality: Quality | None = None
    confident_agreement: float | None = None
    failure: str = ""


@contextmanager
def opened(given: Prepared, threads: int) -> Iterator[Bench]:
    """The original with its outputs on the eval samples."""
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), load(given.model)
        signature = signature_of(model)
        original = OnnxRuntime().compile(given.model, Recipe(), device.detect(TargetRequest(threads=threads)))
        samples = open_samples(given.eval, signature, unpack_to=folder)
        with Runner(original) as runner:
            judged = reference.make(runner, samples, signature, endings.final_operators(model), folder)
        yield Bench(given, judged, original, baseline.typical(judged))


def artifact_of(entry: Entry, record: Record, original: Artifact) -> Artifact:
    """The artifact as it is served: edgeopt's with the settings of its manifest, others with the original's."""
    session = original.session
    if entry.tool == OWN:
        manifest = json.loads(Path(record.model).with_name(MANIFEST_FILE).read_text())
        threads = dict(original.session)["intra_op_num_threads"]
        session = tuple(sorted({**manifest["artifact"]["session"], "intra_op_num_threads": threads}.items()))
    return replace(original, path=record.model, session=session)


def rows(found: Sequence[Found], bench: Bench, kept: Path) -> list[Row]:
    """Everything that was found with its quality, the control row first; judgements are kept in the folder ``kept``."""
    control = Record(model=str(bench.given.model), wall_s=0.0, cpu_s=0.0, peak_memory_bytes=0)
    kept.mkdir(parents=True, exist_ok=True)
    code = _code()
    return [_row(each, bench, kept, code) for each in ((CONTROL, control, True), *found)]


def _row(found: Found, bench: Bench, kept: Path, code: str) -> Row:
    entry, record, is_current = found
    row = Row(entry=entry, record=record, is_current=is_current)
    if record is None:
        return replace(row, failure="not produced")
    if record.failure:
        return replace(row, failure=record.failure)
    judgement = _kept_or_new(entry, record, bench, kept / f"{entry.key}.json", code)
    return replace(
        row,
        recipe=read_recipe(str(Path(record.model).with_name(MANIFEST_FILE))).label if entry.tool == OWN else "",
        bytes_ratio=bytes_of(bench.given.model) / bytes_of(Path(record.model)),
        quality=judgement.quality,
        confident_agreement=judgement.confident_agreement,
        failure=judgement.failure,
    )


def _kept_or_new(entry: Entry, record: Record, bench: Bench, file: Path, code: str) -> Judgement:
    parts = [code, *(sha256_of(each) for each in (*files_of(Path(record.model)), bench.given.model, bench.given.eval))]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if file.exists():
        found = wire.loads(Judgement, file.read_text())
        if found.key == key:
            return found
    print(f"judging {bench.given.name} {entry.key}", file=sys.stderr, flush=True)
    made = _judgement(key, artifact_of(entry, record, bench.original), bench.reference)
    file.write_text(wire.dumps(made))
    return made


def _code() -> str:
    """Hash of what judges."""
    sources = (__file__, *(module.__file__ for module in (bounds, forms, judges, metrics, quality, reference)))
    return hashlib.sha256("".join(sha256_of(Path(file)) for file in sources).encode()).hexdigest()


def _judgement(key: str, artifact: Artifact, right: Reference) -> Judgement:
    outputs: list[list[Array]] = []
    try:
        with Runner(artifact) as candidate:

            def run(feeds: Feeds) -> list[Array]:
                outputs.append(candidate.run(feeds))
                return outputs[-1]

            verdict = quality.judge(right, run, Goal(), seed=SEED)
    except EdgeoptError as error:
        return Judgement(key=key, failure=error.message)
    return Judgement(key=key, quality=verdict, confident_agreement=confident_agreement(right, outputs))


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
