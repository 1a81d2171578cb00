"""What storing weights in fewer bits buys and costs on real models.

    python benchmarks/weights.py CORPUS [MODEL ...] [--samples 64] [--eval 48] [--only TEXT]

Bytes of the file over the clean float model's, signal-to-noise of the worst output on eval samples, cosine and top-1 agreement of the last output,
CPU time of an inference over the float model's (blocks in turns), CPU seconds to load over the float model's, seconds to make. Timings are a first
look; ``edgeopt bench`` measures properly.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
from corpus_models import corpus_parser, each_model
from quantization import likeness, ratio, session

from edgeopt.errors import PassFailed
from edgeopt.passes import QuantizeWeights

MODELS = ("efficientnet_lite0", "all_minilm_l6_v2", "ppocr_v4_det", "magika_v3_3")
GPTQ: dict[str, Any] = {"compensation": "gptq"}
SETTINGS: list[dict[str, Any]] = [
    {"bits": 8},
    {"bits": 8, **GPTQ},
    {"bits": 6, "levels": "palette"},
    *({"bits": bits, "levels": "palette", **GPTQ} for bits in (6, 5, 4, 3, 2)),
    *({"bits": 3, "levels": "palette", "mean_bits": bits, **GPTQ} for bits in (5.0, 4.5, 4.0)),
    {"bits": 4, "levels": "palette"},
    {"bits": 4, "block": 32},
    {"bits": 4, "block": 32, **GPTQ},
    {"bits": 4, "block": 32, "levels": "affine"},
    {"bits": 2, "levels": "ternary", "block": 32, **GPTQ},
    {"bits": 8, "form": "kernel", "accuracy_level": 4},
    {"bits": 4, "form": "kernel", **GPTQ},
    {"bits": 4, "form": "kernel", "accuracy_level": 4, **GPTQ},
    {"bits": 8, "form": "portable"},
]


def timed_session(file: Path) -> tuple[ort.InferenceSession, float]:
    """The session, and the CPU seconds that opening it took."""
    before = time.process_time()
    opened = session(file)
    return opened, time.process_time() - before


def judge(label: str, file: Path, seconds: float, *, clean: Path, feeds: list[Any]) -> None:
    (made, loaded), (original, loaded_before) = timed_session(file), timed_session(clean)
    pairs = [(original.run(None, each), made.run(None, each)) for each in feeds]
    worst, cosine, top = likeness(pairs)
    smaller = clean.stat().st_size / file.stat().st_size
    print(
        f"| {label} | {smaller:.2f} | {worst:.1f} | {cosine:.4f} | {top:.3f} | {ratio(made, original, feeds[0]):.2f} "
        f"| {loaded_before:.2f} > {loaded:.2f} | {seconds:.1f} |",
        flush=True,
    )


def main() -> None:
    parser = corpus_parser(__doc__, MODELS, samples=64, evaluation=48)
    parser.add_argument("--only", default="", help="only settings whose label holds this")
    given = parser.parse_args()
    for model, folder, clean, feeds in each_model(given):
        print(f"\n### {model.name}\n")
        print("| recipe | times smaller | SNR dB | cosine | top-1 | latency | load s | seconds |")
        print("|---|---|---|---|---|---|---|---|")
        evidence = model.evidence(folder, samples=given.samples)
        for settings in SETTINGS:
            label = ", ".join(f"{key}={value}" for key, value in settings.items())
            if given.only not in label:
                continue
            before = time.monotonic()
            try:
                made = QuantizeWeights().apply(model.clean, settings, evidence)
            except PassFailed as error:
                print(f"| {label} | {error} | | | | | | |")
                continue
            seconds = time.monotonic() - before
            file = folder / "candidate.onnx"
            ir.save(made, file)
            judge(label, file, seconds, clean=clean, feeds=feeds)


if __name__ == "__main__":
    main()
