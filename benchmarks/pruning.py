"""What pruning costs and what wins it back: criteria and torch-pruning against each other, as removed, refitted and distilled.

    python benchmarks/pruning.py CORPUS --work DIR --as-published [TABLE ...]
    python benchmarks/pruning.py CORPUS [--only MODEL ...] [--work DIR] [--measure-only]
        [--ratios 0.1,0.2,0.3,0.5] [--criteria l1,l2,...] [--scopes local,global] [--methods removed,refitted,distilled]
        [--taught obs,random] [--steps 400] [--curve 25,50,100,200,800]

The first makes the candidates of the tables of docs/results.md (all of them, or those named: see ``pruning/published.py``) and prints them as they stand there. The second asks freely.

Each candidate is one way to remove the same share of every family's units from the same clean model: the criterion chooses the units, the method says what is done for those who read them. ``distilled``
is the original teaching the refitted student on the unlabelled calibration samples and views of them (at most 500 samples: the corpus has 50 to 180 a model); ``--curve`` gives the courses of other
lengths that are taught to the students of one criterion and share, which shows from how many steps on teaching beats the least squares alone. All are judged on the eval samples, which nothing
else has seen. ``digits`` is the demo's model, judged by its labels too. All start with batch norms folded, as recipes do, but ``batch_norm``, which
is for models that still have them: the demo's.

What was made is kept in --work and not made again: candidates as MODEL/made/*.onnx, rows in MODEL/results.json, written as they are made, and results.md. Quality does not depend on the machine's
load, latency does: on a quiet machine, ``--measure-only`` measures the latency of what lies there, of the ratios, criteria and methods given or, with ``--as-published``, of the tables.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pruning import making, peer, published, table
from pruning.judging import Judge
from pruning.making import Lesson
from pruning.questions import DEMO, Question, Subject, find, open_subject, read, write

from edgeopt.calibrate.removal import grain
from edgeopt.errors import PassFailed

MODELS = (DEMO, "efficientnet_lite0", "all_minilm_l6_v2", "ppocr_v4_det", "ddddocr_det")
CRITERIA = ("obs", "random", "l1", "l2", "group_l2", "taylor", "entropy", "apoz", "variance", *peer.CRITERIA)
TAUGHT = ("obs", "random", "torch-pruning l2")
"""Teaching takes minutes: the best, the control and the peer."""
MOST_SAMPLES = 500


def main() -> int:
    options = _arguments()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if options.as_published is not None:
        for name in options.as_published or published.TABLES:
            print(_published(published.TABLES[name], work, options), end="\n\n", flush=True)
        return 0
    for name in options.only or MODELS:
        subject = open_subject(options.corpus.resolve(), name, work, samples=options.samples)
        judge = Judge(subject, samples=options.eval)
        if not options.measure_only:
            for question in _questions(subject, options):
                _answer(question, subject, judge, options)
        _measure(subject, judge, lambda question, row: _is_wanted(question, row, options), options)
        _show(work)
    print((work / "results.md").read_text())
    return 0


def _published(wanted: published.Published, work: Path, options: argparse.Namespace) -> str:
    """One table of docs/results.md, made where it is not there yet."""
    subject = open_subject(options.corpus.resolve(), wanted.model, work, samples=wanted.samples)
    judge, available = Judge(subject, samples=options.eval), subject.evidence.sample_count
    questions = list(wanted.questions(available))
    if not options.measure_only:
        for question in questions:
            _answer(question, subject, judge, options)
    timed = {column.method for column in wanted.columns if column.number == "latency"}
    keys = {question.key for question in questions if question.method in timed}

    def is_wanted(question: Question, row: dict[str, Any]) -> bool:
        return question.key in keys and (options.measure_only or "latency" not in row["numbers"])

    _measure(subject, judge, is_wanted, options)
    return table.pivoted(wanted, read(subject.folder), available)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--only", nargs="+", metavar="MODEL", help=f"of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--work", type=Path, default=Path("pruning-work"), help="candidates and results")
    parser.add_argument(
        "--as-published",
        nargs="*",
        choices=sorted(published.TABLES),
        metavar="TABLE",
        help=f"make and print tables of docs/results.md: {', '.join(published.TABLES)} (default: all)",
    )
    parser.add_argument("--ratios", type=_listed(float), default=(0.1, 0.2, 0.3, 0.5))
    parser.add_argument("--criteria", type=_listed(str), default=CRITERIA)
    parser.add_argument("--scopes", type=_listed(str), default=("local",), help="local, global or kind")
    parser.add_argument("--largest", type=int, default=0, help="multiple of the channels left; 0: the target's own")
    parser.add_argument("--methods", type=_listed(str), default=("removed", "refitted", "distilled"))
    parser.add_argument("--families", default="inner", help="inner: not the streams that residual blocks add to")
    parser.add_argument("--taught", type=_listed(str), default=TAUGHT, help="criteria whose students are taught")
    parser.add_argument("--steps", type=int, default=400, help="of a student's course")
    parser.add_argument("--curve", type=_listed(int), default=(25, 50, 100, 200, 800), help="further courses")
    parser.add_argument("--curve-of", type=_listed(str), default=("obs", "0.1"), metavar="CRITERION,RATIO")
    parser.add_argument("--batch", type=int, default=Lesson.batch)
    parser.add_argument("--learning-rate", type=float, default=0.0, help="0: searched for every student")
    parser.add_argument("--inputs", default=Lesson.inputs, help="what the teacher labels: calibration, mixed or noise")
    parser.add_argument("--samples", type=int, default=MOST_SAMPLES, help="unlabelled calibration samples, at most")
    parser.add_argument("--eval", type=int, default=600, help="eval samples, at most")
    parser.add_argument("--threads", type=int, default=1, help="that students are taught with")
    parser.add_argument("--retry", action="store_true", help="try once more what could not be made")
    parser.add_argument("--quality-only", action="store_true", help="measure no latency: the machine is busy")
    parser.add_argument(
        "--measure-only", action="store_true", help="measure the latencies of what was made again and make nothing"
    )
    return parser.parse_args()


def _listed(kind: Any) -> Any:
    return lambda text: tuple(kind(part) for part in text.split(",") if part)


def _questions(subject: Subject, options: argparse.Namespace) -> Iterator[Question]:
    """The cheap ones of all criteria first; among the taught, the curve last."""
    for is_cheap in (True, False):
        criteria = [each for each in options.criteria if is_cheap or each in options.taught]
        methods = [each for each in options.methods if (each in making.CHEAP) is is_cheap]
        for ratio, criterion, scope, method in itertools.product(options.ratios, criteria, options.scopes, methods):
            steps = options.steps if method in making.TAUGHT else 0
            parts = {"ratio": ratio, "criterion": criterion, "scope": scope, "method": method, "steps": steps}
            yield _question(subject, options, **parts)
    criterion, ratio = options.curve_of[0], float(options.curve_of[1])
    for method, steps in itertools.product(options.methods, options.curve):
        if method in making.TAUGHT:
            yield _question(subject, options, ratio=ratio, criterion=criterion, method=method, steps=steps)


def _question(subject: Subject, options: argparse.Namespace, **parts: Any) -> Question:
    return Question(
        model=subject.name,
        families=options.families,
        samples=subject.evidence.sample_count,
        largest=options.largest or grain(subject.evidence.target),
        **parts,
    )


def _answer(question: Question, subject: Subject, judge: Judge, options: argparse.Namespace) -> None:
    """Make and judge a candidate that has no row yet; what cannot be made is a row with its reason."""
    rows = read(subject.folder)
    known = find(rows, question)
    if known is not None and not (known["failure"] and options.retry):
        return
    lesson = Lesson(
        batch=options.batch, learning_rate=options.learning_rate, inputs=options.inputs, threads=options.threads
    )
    row: dict[str, Any] = {"question": asdict(question), "numbers": {}, "notes": {}, "failure": ""}
    began = time.process_time()
    try:
        made = making.make(question, subject, lesson)
    except PassFailed as error:
        row["failure"] = error.message
    else:
        row["notes"] = made.notes
        row["numbers"] = judge.numbers(subject.made(question)) | {"cpu_seconds": time.process_time() - began}
    write(subject.folder, [*(other for other in read(subject.folder) if other != known), row])
    print(f"{question.model} {question.key}: {row['failure'] or row['numbers']}", file=sys.stderr, flush=True)


def _is_wanted(question: Question, row: dict[str, Any], options: argparse.Namespace) -> bool:
    """Latencies that are not there; with ``measure_only`` those of all rows of the ratios, criteria and methods that were asked for."""
    is_asked = (
        question.ratio in options.ratios
        and question.criterion in options.criteria
        and question.method in options.methods
    )
    return is_asked if options.measure_only else "latency" not in row["numbers"]


def _measure(
    subject: Subject,
    judge: Judge,
    is_wanted: Callable[[Question, dict[str, Any]], bool],
    options: argparse.Namespace,
) -> None:
    rows = read(subject.folder)
    for row in [] if options.quality_only else rows:
        question = Question(**row["question"])
        if is_wanted(question, row) and subject.made(question).exists() and not row["failure"]:
            row["numbers"]["latency"] = judge.latency(subject.made(question))
            row["notes"]["latency_alone"] = options.measure_only
    write(subject.folder, rows)


def _show(work: Path) -> None:
    tables = [table.markdown(name, rows) for name in MODELS if (rows := read(work / name))]
    (work / "results.md").write_text("\n\n".join(tables) + "\n")


if __name__ == "__main__":
    sys.exit(main())
