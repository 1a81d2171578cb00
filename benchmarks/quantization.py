"""Our quantization against onnxruntime.quantization's on the same clean model and the same samples.

    python benchmarks/quantization.py CORPUS [MODEL ...] [--samples 64] [--peer]

Signal-to-noise of the outputs on eval samples with the real integer kernels, cosine of the last output, its top-1 agreement, latency and size over the
original's. Latency is interleaved with the float model's in blocks; it is a first look, ``edgeopt bench`` measures properly.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from corpus_models import CorpusModel, corpus_parser, each_model, signal_to_noise_db

from edgeopt.passes import QuantizeDynamic, QuantizeStatic

MODELS = ("efficientnet_lite0", "all_minilm_l6_v2", "ppocr_v4_det", "ddddocr_det", "magika_v3_3")
STATIC = [
    {"method": method, "bias_correction": corrected}
    for method in ("min_max", "moving_average", "percentile", "entropy", "mse")
    for corrected in (False, True)
] + [{"method": "min_max", "bias_correction": True, "reduced_range": True}]
DYNAMIC = [{}, {"reduced_range": True}, {"embeddings": True}]
_BLOCKS, _RUNS = 8, 4


def candidates(model: CorpusModel, folder: Path, samples: int) -> Iterator[tuple[str, Path, float]]:
    """Label, file and seconds of everything that can be made."""
    evidence = model.evidence(folder, samples=samples)
    for technique, wishes in ((QuantizeStatic(), STATIC), (QuantizeDynamic(), DYNAMIC)):
        if technique.refuse(model.signature, model.target):
            continue
        for settings in wishes:
            before = time.monotonic()
            made = technique.apply(model.clean, settings, evidence)
            file = folder / "candidate.onnx"
            ir.save(made, file)
            shown = ", ".join(f"{name}={value}" for name, value in settings.items())
            yield f"{technique.name}({shown})", file, time.monotonic() - before


class Reader:
    """onnxruntime.quantization's way to get samples."""

    def __init__(self, samples: Iterator[Any]) -> None:
        self._samples = iter(samples)

    def get_next(self) -> Any:
        return next(self._samples, None)


def peers(model: CorpusModel, clean: Path, folder: Path, samples: int) -> Iterator[tuple[str, Path, float]]:
    """The same with onnxruntime.quantization; its min-max keeps memory in bounds, the other methods do not."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static

    for label, kind in (("U8S8 per channel", QuantType.QUInt8), ("default S8S8", QuantType.QInt8)):
        before, file = time.monotonic(), folder / "peer.onnx"
        try:
            quantize_static(
                str(clean),
                str(file),
                Reader(model.evidence(folder, samples=samples).samples()),
                quant_format=QuantFormat.QDQ,
                activation_type=kind,
                weight_type=QuantType.QInt8,
                per_channel=kind is QuantType.QUInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
        except (ValueError, RuntimeError, TypeError, AttributeError, onnx.checker.ValidationError) as error:
            print(f"| onnxruntime static {label} | fails: {str(error)[:60]} | | | | | |")
            continue
        yield f"onnxruntime static {label}", file, time.monotonic() - before
    before, file = time.monotonic(), folder / "peer.onnx"
    quantize_dynamic(str(clean), str(file), per_channel=True)
    yield "onnxruntime dynamic per channel", file, time.monotonic() - before


def session(file: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def ratio(ours: ort.InferenceSession, theirs: ort.InferenceSession, feeds: Any) -> float:
    """CPU time over the float model's, blocks taken in turns, the median of the blocks' ratios."""

    def block(which: ort.InferenceSession) -> float:
        before = time.process_time()
        for _ in range(_RUNS):
            which.run(None, feeds)
        return time.process_time() - before

    block(ours), block(theirs)
    return statistics.median(block(ours) / block(theirs) for _ in range(_BLOCKS))


def likeness(pairs: list[tuple[Any, Any]]) -> tuple[float, float, float]:
    """Signal-to-noise in dB of the worst output; cosine and top-1 agreement of the last one. Pairs are (right, got)."""
    floats = [index for index, array in enumerate(pairs[0][0]) if array.dtype.kind == "f"]
    worst = min(signal_to_noise_db([r[i] for r, _ in pairs], [g[i] for _, g in pairs]) for i in floats)
    last = floats[-1]
    rows = [(right[last].ravel(), got[last].ravel()) for right, got in pairs]
    cosine = statistics.fmean(float(r @ g / (np.linalg.norm(r) * np.linalg.norm(g) + 1e-30)) for r, g in rows)
    top = statistics.fmean(float(r.argmax() == g.argmax()) for r, g in rows)
    return worst, cosine, top


def judge(label: str, file: Path, seconds: float, *, clean: Path, feeds: list[Any]) -> None:
    try:
        made, original = session(file), session(clean)
        pairs = [(original.run(None, each), made.run(None, each)) for each in feeds]
    except Exception as error:  # noqa: BLE001 - a peer's model that does not load is a result
        print(f"| {label} | does not run: {str(error)[:60]} | | | | | |")
        return
    worst, cosine, top = likeness(pairs)
    print(
        f"| {label} | {worst:.1f} | {cosine:.4f} | {top:.3f} | {ratio(made, original, feeds[0]):.2f} "
        f"| {file.stat().st_size / clean.stat().st_size:.2f} | {seconds:.1f} |",
        flush=True,
    )


def main() -> None:
    parser = corpus_parser(__doc__, MODELS, samples=64, evaluation=48)
    parser.add_argument("--peer", action="store_true", help="also onnxruntime.quantization, which takes minutes")
    given = parser.parse_args()
    for model, folder, clean, feeds in each_model(given):
        print(
            f"\n### {model.name}\n\n| recipe | SNR dB | cosine | top-1 | latency | size | seconds |\n|---|---|---|---|---|---|---|"
        )
        for label, file, seconds in candidates(model, folder, given.samples):
            judge(label, file, seconds, clean=clean, feeds=feeds)
        for label, file, seconds in peers(model, clean, folder, given.samples) if given.peer else ():
            judge(label, file, seconds, clean=clean, feeds=feeds)


if __name__ == "__main__":
    main()
