"""What repair before int8 gains, on real models and the target's own integer kernels.

    python benchmarks/repair.py CORPUS [MODEL ...] [--samples 64] [--eval 48]

Each row is a quantization behind no repair, or behind one, of the same clean model with the same calibration samples: signal-to-noise of the
worst output on eval samples (20 dB is an nsr of 0.01), cosine of the last output, its top-1 agreement, latency and size over the float model's, and the seconds
it took. ``reduced_range`` rows have 7-bit weights, what x86 without VNNI needs; where this runs with VNNI, they show that loss but not that latency.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
from corpus_models import CorpusModel, corpus_parser, each_model
from quantization import judge

from edgeopt.errors import PassFailed
from edgeopt.passes import EqualizeLayers, MigrateOutliers, QuantizeDynamic, QuantizeStatic, RoundWeights

Steps = tuple[tuple[Any, dict[str, Any]], ...]
MODELS = ("all_minilm_l6_v2", "efficientnet_lite0")
NARROW = {"reduced_range": True}
CORRECTED = {"bias_correction": True}
STATIC, DYNAMIC = QuantizeStatic(), QuantizeDynamic()
MIGRATE, ROUND, EQUALIZE = MigrateOutliers(), RoundWeights(), EqualizeLayers()


def wishes(model: CorpusModel) -> Iterator[Steps]:
    """The comparisons that make sense for a model: outliers for matrices, equalization for convolutions."""
    if not model.signature.count("Conv"):
        for last in ((DYNAMIC, {}), (STATIC, CORRECTED)):
            yield (last,)
            yield ((MIGRATE, {"alpha": 0.5, "lift": 0, "min_gain": 1.0}), last)
            yield ((MIGRATE, {"lift": 0}), last)
            yield ((MIGRATE, {}), last)
            yield ((MIGRATE, {}), (ROUND, {}), last)
        yield ((MIGRATE, {}), (DYNAMIC, NARROW))
        yield ((MIGRATE, {}), (ROUND, NARROW), (DYNAMIC, NARROW))
        return
    for settings in ({}, NARROW):
        last = (STATIC, {**CORRECTED, **settings})
        yield (last,)
        yield ((ROUND, settings), last)
        yield ((EQUALIZE, {}), last)
    for repair in ((), ((EQUALIZE, {}),), ((EQUALIZE, {"bounds": True}),)):
        yield (*repair, (STATIC, {**CORRECTED, "per_channel": False}))


def label(steps: Steps) -> str:
    """As in the candidates' table."""
    return " + ".join(
        f"{technique.name}({', '.join(f'{name}={value}' for name, value in settings.items())})"
        for technique, settings in steps
    )


def main() -> None:
    given = corpus_parser(__doc__, MODELS, samples=64, evaluation=48).parse_args()
    for model, folder, clean, feeds in each_model(given):
        file = folder / "candidate.onnx"
        evidence = model.evidence(folder, samples=given.samples)
        print(
            f"\n### {model.name}, features {' '.join(f for f in model.target.features if 'vnni' in f) or 'without VNNI'}"
        )
        print("\n| recipe | SNR dB | cosine | top-1 | latency | size | seconds |\n|---|---|---|---|---|---|---|")
        for steps in wishes(model):
            before, made = time.monotonic(), model.clean
            try:
                for technique, settings in steps:
                    made = technique.apply(made, settings, evidence)
            except PassFailed as error:
                print(f"| {label(steps)} | {error.message} | | | | | |")
                continue
            ir.save(made, file)
            judge(label(steps), file, time.monotonic() - before, clean=clean, feeds=feeds)


if __name__ == "__main__":
    main()
