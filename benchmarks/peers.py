"""edgeopt's picks against the field's tools: one table a model, all artifacts measured in one interleaved run.

    python benchmarks/peers.py CORPUS [--only MODEL ...] [--peer NAME ...] [--work DIR] [--produce-only | --judge-only | --measure-only]

Every tool gets a virtual environment of its own under --work, the same at most 128 calibration samples, and a limit of
CPU seconds. What was made or judged is not made or judged again. Measuring is a phase of its own, for a machine with
nothing else to do: run with --produce-only and --judge-only first, then with --measure-only, which goes pass by pass over
all models, can be broken off and goes on with the passes that lack. Tables go to stdout and, after every pass, with
everything behind them as results/MODEL.json and results.md into --work. Failures are rows with their reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from peers import field, judge, measure, produce, table
from peers.prepare import Prepared, prepare
from peers.rows import Row


def main() -> int:
    options = _arguments()
    work = options.work.resolve()
    names = options.only or sorted(item.parent.name for item in options.corpus.glob("*/model.onnx"))
    models = [prepare((options.corpus / name).resolve(), work / "models" / name) for name in names]
    if not (options.judge_only or options.measure_only):
        _produce_all(models, work, options)
    if not options.produce_only:
        _judge_and_measure(models, work, options)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="these models (default: all)")
    parser.add_argument("--peer", nargs="+", default=[], metavar="NAME", help="these tools, or TOOL-RECIPE")
    parser.add_argument("--work", type=Path, default=Path("peers-work"), help="environments, artifacts and results")
    parser.add_argument("--limit", type=float, default=600.0, metavar="S", help="CPU seconds to make one artifact")
    parser.add_argument("--retry", action="store_true", help="try once more what failed")
    parser.add_argument("--threads", type=int, default=2, help="threads that artifacts are measured with")
    parser.add_argument("--passes", type=int, default=5, help="fresh processes that each artifact is timed in")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no pass over a model after these")
    phase = parser.add_mutually_exclusive_group()
    phase.add_argument("--produce-only", action="store_true")
    phase.add_argument("--judge-only", action="store_true")
    phase.add_argument("--measure-only", action="store_true")
    return parser.parse_args()


def _produce_all(models: list[Prepared], work: Path, options: argparse.Namespace) -> None:
    """Tool by tool, so that every model has the cheap ones early."""
    for entry in field.FIELD:
        for model in models:
            if entry in field.chosen(model.facts, options.peer):
                made = produce.produce(entry, model, work, limit_s=options.limit, again=options.retry)
                told = made.failure or f"{made.wall_s:.0f} s, {made.cpu_s:.0f} CPU s"
                print(f"{model.name} {entry.key}: {told}", file=sys.stderr, flush=True)


def _judge_and_measure(models: list[Prepared], work: Path, options: argparse.Namespace) -> None:
    benches: dict[str, judge.Bench] = {}
    rows: dict[str, list[Row]] = {}
    with ExitStack() as stack:
        for model in models:
            bench = stack.enter_context(judge.opened(model, options.threads))
            found = [(entry, *produce.find(entry, model, work)) for entry in field.chosen(model.facts, options.peer)]
            judged = judge.rows(found, bench, work / "judged" / model.name)
            benches[model.name] = bench
            rows[model.name] = measure.resumed(judged, _timings(work, model.name), options.threads)
        if not options.judge_only:
            _measure_all(benches, rows, work, options)
    for text in _show(rows, work):
        print(text, end="\n\n", flush=True)


def _measure_all(
    benches: dict[str, judge.Bench], rows: dict[str, list[Row]], work: Path, options: argparse.Namespace
) -> None:
    """Pass by pass over all models, so that what is broken off leaves all with as many."""
    until_s = time.monotonic() + 60.0 * options.minutes
    for turn in range(options.passes):
        for name, bench in benches.items():
            if time.monotonic() > until_s:
                return
            rows[name] = measure.one_pass(rows[name], bench, turn, options.passes)
            measure.keep(rows[name], _timings(work, name), options.threads)
        _show(rows, work)


def _timings(work: Path, name: str) -> Path:
    return work / "timings" / f"{name}.json"


def _show(rows: dict[str, list[Row]], work: Path) -> list[str]:
    """Write the tables as they stand and everything behind them; the tables by model."""
    results = work / "results"
    results.mkdir(exist_ok=True)
    for name, lines in rows.items():
        (results / f"{name}.json").write_text(json.dumps([table.as_json(row) for row in lines], indent=1))
    tables = [f"### {name}\n\n{table.markdown(lines)}" for name, lines in rows.items()]
    (work / "results.md").write_text("\n\n".join(tables) + "\n")
    return tables


if __name__ == "__main__":
    sys.exit(main())
