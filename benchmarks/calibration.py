"""What calibrating costs: time against plain inference, and peak memory for 32 and for 1,024 samples.

    python benchmarks/calibration.py CORPUS [MODEL ...]

Every row is a process of its own, so that its peak memory is its own. "plain" runs the same samples through the same
model in ONNX Runtime; the ratio is CPU time, session creation included on both sides.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from corpus_models import CorpusModel, open_model

MODELS = ("efficientnet_lite0", "all_minilm_l6_v2", "ppocr_v4_det", "ddddocr_det", "magika_v3_3")


def plain(model: CorpusModel, folder: Path, samples: int) -> None:
    outputs = [str(value.name) for value in model.clean.graph.outputs]
    for _ in model.evidence(folder, samples=samples, repeat=True).observe(model.clean, outputs):
        pass


def calibrate(model: CorpusModel, folder: Path, samples: int) -> None:
    from edgeopt.passes.quantize_static import observe

    observe(model.clean, model.evidence(folder, samples=samples, repeat=True))


def child(corpus: Path, name: str, what: str, samples: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = open_model(corpus, name, Path(folder))
        before = time.process_time()
        {"plain": plain, "calibrate": calibrate}[what](model, Path(folder), samples)
        seconds = time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak}))


def measure(corpus: Path, name: str, what: str, samples: int) -> dict[str, float]:
    command = [sys.executable, __file__, str(corpus), name, "--child", what, str(samples)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "SAMPLES"))
    parser.add_argument("--samples", type=int, nargs=2, default=(32, 1024))
    given = parser.parse_args()
    if given.child:
        child(given.corpus, given.models[0], given.child[0], int(given.child[1]))
        return
    few, many = given.samples
    print(
        f"| model | plain, {many} samples s | calibrate s | ratio | peak MiB, {few} | peak MiB, {many} | plain peak MiB |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in given.models:
        small = measure(given.corpus, name, "calibrate", few)
        large, bare = (measure(given.corpus, name, what, many) for what in ("calibrate", "plain"))
        print(
            f"| {name} | {bare['seconds']:.1f} | {large['seconds']:.1f} | {large['seconds'] / bare['seconds']:.2f} "
            f"| {small['peak_mib']:.0f} | {large['peak_mib']:.0f} | {bare['peak_mib']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
