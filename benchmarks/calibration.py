"""What calibrating costs: time against plain inference, and peak memory for 32 and for 1,024 samples.

    python benchmarks/calibration.py CORPUS [MODEL ...]

"plain" runs the same samples through the same model in ONNX Runtime, one thread. Both are timed in one process, in turns, as CPU time,
with everything that happens once (graph copies, session creation) on both sides. Calibrating is one pass over the data that serves all
methods; what a method then adds to find its ranges is in the columns behind. Peak memory is that of a process that only
calibrates; samples start again when the corpus has no more.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from corpus_models import CorpusModel, open_model

MODELS = ("efficientnet_lite0", "all_minilm_l6_v2", "ppocr_v4_det", "ddddocr_det", "magika_v3_3", "digits_mlp")
ROUNDS = 3


def plain(model: CorpusModel, folder: Path, samples: int) -> None:
    outputs = [str(value.name) for value in model.clean.graph.outputs]
    for _ in model.evidence(folder, samples=samples, repeat=True).observe(model.clean, outputs):
        pass


def calibrate(model: CorpusModel, folder: Path, samples: int) -> dict[str, object]:
    from edgeopt.passes.quantize_static import observe

    return observe(model.clean, model.evidence(folder, samples=samples, repeat=True))


def cpu_seconds(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def compare(model: CorpusModel, folder: Path, samples: int) -> dict[str, object]:
    """Both in turns; the ratio is the median over rounds, after a round that only warms up."""
    from edgeopt.calibrate.ranges import METHODS, range_of

    plain(model, folder, 2)
    observed = calibrate(model, folder, 2)
    pairs = []
    for _ in range(ROUNDS):
        bare = cpu_seconds(lambda: plain(model, folder, samples))
        observed, before = {}, time.process_time()
        observed = calibrate(model, folder, samples)
        pairs.append((bare, time.process_time() - before))
    ranges = {
        method: cpu_seconds(lambda method=method: [range_of(seen.stats, method) for seen in observed.values()])
        for method in METHODS
    }
    return {
        "plain_s": statistics.median(bare for bare, _ in pairs),
        "calibrate_s": statistics.median(full for _, full in pairs),
        "ratio": statistics.median(full / bare for bare, full in pairs),
        "tensors": len(observed),
        "ranges_s": ranges,
    }


def child(corpus: Path, name: str, what: str, samples: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = open_model(corpus, name, Path(folder))
        work = {"plain": plain, "calibrate": calibrate, "compare": compare}[what]
        answer = work(model, Path(folder), samples)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak_mib": peak} | (answer if what == "compare" else {})))


def measure(corpus: Path, name: str, what: str, samples: int) -> dict[str, object]:
    command = [sys.executable, __file__, str(corpus), name, "--child", what, str(samples)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "SAMPLES"))
    parser.add_argument("--samples", type=int, default=128, help="how many are timed")
    parser.add_argument("--memory", type=int, nargs=2, default=(32, 1024))
    given = parser.parse_args()
    if given.child:
        child(given.corpus, given.models[0], given.child[0], int(given.child[1]))
        return
    few, many = given.memory
    print(
        f"| model | tensors | plain, {given.samples} samples s | calibrate s | ratio | then: moving_average s | percentile s "
        f"| entropy s | mse s | peak MiB, {few} samples | peak MiB, {many} samples |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name in given.models:
        told = measure(given.corpus, name, "compare", given.samples)
        peaks = [measure(given.corpus, name, "calibrate", samples)["peak_mib"] for samples in (few, many)]
        later = [told["ranges_s"][method] for method in ("moving_average", "percentile", "entropy", "mse")]
        print(
            f"| {name} | {told['tensors']} | {told['plain_s']:.2f} | {told['calibrate_s']:.2f} | {told['ratio']:.2f} | "
            f"{' | '.join(f'{seconds:.2f}' for seconds in later)} | {peaks[0]:.0f} | {peaks[1]:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
