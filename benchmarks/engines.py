"""Real TensorRT for RTX engines of every corpus model, built on this machine without a GPU.

    python benchmarks/engines.py CORPUS [MODEL ...] [--gpus 8.6 8.9 12.0] [--samples 16]

Needs the extra ``tensorrt-rtx``. Each row is one ONNX file and its engine for each GPU: the model cleaned up (fp32), computing in float16, in symmetric int8 with depthwise convolutions
left float, and with int4 weights; seconds that the build took, bytes of the engine and of the weights inside it, bytes that one inference moves by the engine's own
layer table, how many of the layers that multiply by weights do so in int8, and the signal-to-noise of the same ONNX file in ONNX Runtime, in float
arithmetic on the same codes. A refusal is
named instead. Nothing here says anything of latency.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from corpus_models import CorpusModel, open_model, signal_to_noise_db

from edgeopt import device
from edgeopt.errors import CompileFailed, MeasureFailed, PassFailed
from edgeopt.passes import CastFp16, QuantizeStatic, QuantizeWeights
from edgeopt.policy import TargetRequest
from edgeopt.records import EngineFacts, Recipe, Target
from edgeopt.runtimes.ort import OnnxRuntime
from edgeopt.runtimes.trt.runtime import gpu_name, rtx
from edgeopt.stages import ahead

INT8 = {"activation": "int8", "symmetric": True, "depthwise": False, "bias_correction": True, "method": "percentile"}
FORMS: dict[str, tuple[Any, dict[str, Any]] | None] = {
    "fp32": None,
    "fp16": (CastFp16(), {"mode": "full"}),
    "int8": (QuantizeStatic(), INT8),
    "int8, depthwise too": (QuantizeStatic(), {**INT8, "depthwise": True}),
    "int4 weights": (QuantizeWeights(), {"form": "portable", "bits": 4, "block": 32}),
}
JUDGED = 16
HERE = device.detect(TargetRequest())


def rows(model: CorpusModel, folder: Path, *, gpus: list[float], samples: int) -> Iterator[str]:
    evidence = dataclasses.replace(model.evidence(folder, samples=samples), target=aimed(model.target, gpus[0]))
    feeds = [model.evaluation.feeds(index) for index in range(min(JUDGED, len(model.evaluation)))]
    right = list(outputs(model.original, feeds, folder))
    for form, step in FORMS.items():
        try:
            made = model.clean if step is None else step[0].apply(model.clean, step[1], evidence)
            noise = f"{min(ratios(right, list(outputs(made, feeds, folder)))):.0f}" if step else ""
        except (PassFailed, MeasureFailed) as error:
            yield f"| {model.name} | {form} | not made: {error.message} | | | | | |"
            continue
        file = folder / "model.onnx"
        ir.save(made, file)
        built = [engine(file, model, gpu) for gpu in gpus]
        yield f"| {model.name} | {form} | {' | '.join(map(merged, zip(*built, strict=True)))} | {noise} |"


def merged(cells: tuple[str, ...]) -> str:
    """One cell for all GPUs where they agree."""
    return cells[0] if len(set(cells)) == 1 else " / ".join(cells)


def engine(file: Path, model: CorpusModel, gpu: float) -> tuple[str, ...]:
    shapes = [model.calibration.feeds(index) for index in range(min(8, len(model.calibration)))]
    seen = [{name: tuple(array.shape) for name, array in feeds.items()} for feeds in shapes]
    try:
        artifact = rtx().taking(model.signature.inputs, seen).compile(file, Recipe(), aimed(model.target, gpu))
    except CompileFailed as error:
        return (f"refused: {error.message.replace(gpu_name(gpu), 'each')}", "", "", "", "")
    facts = artifact.engine
    assert facts is not None
    sizes = (facts.weights_bytes, facts.traffic_bytes)
    return (f"{facts.build_s:.1f}", f"{artifact.bytes / 1e6:.1f}", *map(megabytes, sizes), coverage(facts))


def coverage(facts: EngineFacts) -> str:
    return "unknown" if facts.products is None else f"{facts.int8_products}/{facts.products}"


def megabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:.1f}"


def aimed(target: Target, gpu: float) -> Target:
    return dataclasses.replace(target, name="tensorrt-rtx", compute_capability=(gpu,))


def outputs(model: ir.Model, feeds: list[Any], folder: Path) -> Iterator[list[np.ndarray]]:
    file = folder / "judged.onnx"
    ir.save(model, file)
    runtime = OnnxRuntime()
    # as engines are judged: x86 without VNNI saturates where no engine does
    artifact = ahead.judged(runtime.compile(file, Recipe(), dataclasses.replace(HERE, threads=2)))
    with runtime.open(artifact) as session:
        for each in feeds:
            yield [array for array in session.run(each) if array.dtype.kind == "f"]


def ratios(right: list[list[np.ndarray]], got: list[list[np.ndarray]]) -> list[float]:
    """Signal-to-noise of each floating-point output in dB."""
    columns = zip(zip(*right, strict=True), zip(*got, strict=True), strict=True)
    return [signal_to_noise_db(list(ours), list(theirs)) for ours, theirs in columns]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--gpus", type=float, nargs="+", default=[8.6, 8.9, 12.0])
    parser.add_argument("--samples", type=int, default=16)
    given = parser.parse_args()
    print(f"tensorrt-rtx {rtx().version}\n")
    print(f"GPUs: {' / '.join(gpu_name(gpu).lower() for gpu in given.gpus)}, one number where they agree\n")
    print("| model | form | build s | engine MB | weights MB | traffic MB | int8 | SNR dB |")
    print("|---|---|---|---|---|---|---|---|")
    for name in given.models or sorted(path.parent.name for path in given.corpus.glob("*/model.onnx")):
        with tempfile.TemporaryDirectory() as folder:
            model = open_model(given.corpus, name, Path(folder), threads=2)
            for row in rows(model, Path(folder), gpus=given.gpus, samples=given.samples):
                print(row, flush=True)


if __name__ == "__main__":
    main()
