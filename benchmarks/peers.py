"""edgeopt's picks against the field's tools: one table a model, all artifacts measured in one interleaved run.

    python benchmarks/peers.py CORPUS [--only MODEL ...] [--peer NAME ...] [--work DIR] [--produce-only | --measure-only]

Every tool gets a virtual environment of its own under --work, the same at most 128 calibration samples, and a limit of
CPU seconds. What was made is not made again. Measuring is a phase of its own, for a machine with nothing else to do:
run with --produce-only first, then with --measure-only. Tables go to stdout and, with everything behind them, as
results/MODEL.json and results.md into --work. Failures are rows with their reason.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from peers import field, produce
from peers.prepare import Prepared, prepare


def main() -> int:
    options = _arguments()
    work = options.work.resolve()
    names = options.only or sorted(item.parent.name for item in options.corpus.glob("*/model.onnx"))
    models = [prepare((options.corpus / name).resolve(), work / "models" / name) for name in names]
    if not options.measure_only:
        _produce_all(models, work, options)
    if not options.produce_only:
        _measure_all(models, work, options)
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
    phase = parser.add_mutually_exclusive_group()
    phase.add_argument("--produce-only", action="store_true")
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


def _measure_all(models: list[Prepared], work: Path, options: argparse.Namespace) -> None:
    from peers import measure, table

    tables = []
    for model in models:
        found = [(entry, *produce.find(entry, model, work)) for entry in field.chosen(model.facts, options.peer)]
        rows = measure.rows(model, found, threads=options.threads, passes=options.passes)
        results = work / "results" / f"{model.name}.json"
        results.parent.mkdir(exist_ok=True)
        results.write_text(json.dumps([table.as_json(row) for row in rows], indent=1))
        tables.append(f"### {model.name}\n\n{table.markdown(rows)}")
        print(tables[-1], end="\n\n", flush=True)
    (work / "results.md").write_text("\n\n".join(tables) + "\n")


if __name__ == "__main__":
    sys.exit(main())
