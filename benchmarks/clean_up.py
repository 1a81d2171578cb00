"""Compare graph clean-up libraries on real models: ``python benchmarks/clean_up.py [CORPUS] [--only A,B] [--seconds 2]``.

For each model and library: nodes left, bytes, seconds to produce, whether the interface stayed as it was, the largest
difference of an output relative to the output's largest value, and the ratios of load time and inference time to the
original's (below 1 is faster), with ONNX Runtime's default graph optimizations on and one thread. Both are CPU time of
that thread, taken in turns, candidate and original, so that other work on the machine disturbs them least. CORPUS
defaults to the environment variable EDGEOPT_CORPUS.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from edgeopt.graph import check, edit
from edgeopt.passes import FoldBatchNorm, Tidy

Feeds = dict[str, np.ndarray]


def session(file: Path, *, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def feeds(folder: Path, count: int) -> list[Feeds]:
    arrays = np.load(folder / "calib.npz")
    stacked = json.loads((folder / "meta.json").read_text())["npz_layout"] == "stacked"
    names = [value.name for value in session(folder / "model.onnx").get_inputs()]
    return [{n: np.asarray(arrays[n][i]) if stacked else arrays[n][i : i + 1] for n in names} for i in range(count)]


# ---------------------------------------------------------------- the libraries; each writes its result to a file
def by_edgeopt(source: Path, out: Path) -> None:
    onnx.save(ir.to_proto(Tidy().apply(ir.load(source), {}, None)), out)  # the pass looks at no evidence


def by_edgeopt_folded(source: Path, out: Path) -> None:
    model = Tidy().apply(ir.load(source), {}, None)
    onnx.save(ir.to_proto(FoldBatchNorm().apply(model, {}, None)), out)


def by_onnxscript(source: Path, out: Path) -> None:
    from onnxscript.optimizer import optimize

    onnx.save(ir.to_proto(optimize(ir.load(source))), out)


def by_onnxslim(source: Path, out: Path) -> None:
    import onnxslim

    onnx.save(onnxslim.slim(str(source)), out)


def by_onnxruntime(level: str) -> Callable[[Path, Path], None]:
    def optimize(source: Path, out: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath, options.log_severity_level = str(out), 3
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])

    return optimize


LIBRARIES: dict[str, Callable[[Path, Path], None]] = {
    "edgeopt tidy": by_edgeopt,
    "edgeopt tidy + fold_batch_norm": by_edgeopt_folded,
    "onnxscript optimize": by_onnxscript,
    "onnxslim": by_onnxslim,
    "ONNX Runtime offline, basic": by_onnxruntime("BASIC"),
    "ONNX Runtime offline, extended": by_onnxruntime("EXTENDED"),
}


# ---------------------------------------------------------------- what is measured
def largest_difference(original: Path, candidate: Path, samples: list[Feeds]) -> float:
    ours, theirs = session(candidate), session(original)
    worst = 0.0
    for sample in samples:
        for a, b in zip(ours.run(None, sample), theirs.run(None, sample), strict=True):
            wide = np.asarray(b, dtype=np.float64)
            worst = max(
                worst, float(np.abs(np.asarray(a, dtype=np.float64) - wide).max() / max(np.abs(wide).max(), 1e-30))
            )
    return worst


def load_ratio(original: Path, candidate: Path, *, rounds: int = 5) -> float:
    def load_s(file: Path) -> float:
        began = time.thread_time()
        session(file)
        return time.thread_time() - began

    pairs = [(load_s(candidate), load_s(original)) for _ in range(rounds)]
    return min(a for a, _ in pairs) / min(b for _, b in pairs)


def run_ratio(original: Path, candidate: Path, samples: list[Feeds], seconds: float) -> float:
    """Median of the paired ratios, the order turned round each time."""
    ours, theirs = session(candidate), session(original)
    ratios: list[float] = []
    deadline = time.perf_counter() + seconds
    number = 0
    while time.perf_counter() < deadline or number < 12:
        sample, number = samples[number % len(samples)], number + 1
        took = {}
        for name, opened in (
            (("ours", ours), ("theirs", theirs)) if number % 2 else (("theirs", theirs), ("ours", ours))
        ):
            began = time.thread_time()
            opened.run(None, sample)
            took[name] = time.thread_time() - began
        if number > 4:  # the first ones warm up
            ratios.append(took["ours"] / took["theirs"])
    return statistics.median(ratios)


def row(folder: Path, library: str, out: Path, seconds: float) -> str:
    source, samples = folder / "model.onnx", feeds(folder, 4)
    began = time.perf_counter()
    try:
        LIBRARIES[library](source, out)
        took = time.perf_counter() - began
        model, before = ir.load(out), ir.load(source)
        difference = largest_difference(source, out, samples)
    except Exception as error:  # noqa: BLE001 - a library's failure, whatever it is, is a row of the table
        return f"| {library} | failed: {type(error).__name__}: {str(error)[:80]} | | | | | | |"
    kept = "yes" if check.interface(model) == check.interface(before) else "no"
    cells = [
        library,
        f"{edit.count(model)}",
        f"{out.stat().st_size / source.stat().st_size:.3f}",
        f"{took:.2f}",
        kept,
        f"{difference:.0e}" if difference else "0",
        f"{load_ratio(source, out):.2f}",
        f"{run_ratio(source, out, samples, seconds):.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", nargs="?", default=os.environ.get("EDGEOPT_CORPUS"))
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each latency ratio")
    given = parser.parse_args()
    if not given.corpus:
        parser.error("say where the corpus is, or set EDGEOPT_CORPUS")
    wanted = set(filter(None, given.only.split(",")))
    folders = [file.parent for file in sorted(Path(given.corpus).glob("*/model.onnx"))]
    for folder in folders:
        if wanted and folder.name not in wanted:
            continue
        print(f"\n### {folder.name} ({edit.count(ir.load(folder / 'model.onnx'))} nodes)\n")
        print("| library | nodes | bytes | seconds | interface kept | difference | load | inference |")
        print("|---|---|---|---|---|---|---|---|")
        for library in LIBRARIES:
            with tempfile.TemporaryDirectory() as scratch:
                print(row(folder, library, Path(scratch) / "model.onnx", given.seconds), flush=True)


if __name__ == "__main__":
    main()
