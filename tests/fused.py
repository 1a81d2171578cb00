"""What ONNX Runtime makes of a model: the operators that are left after all of its graph optimizations."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import builders
import onnx
import onnx_ir as ir


def operators(model: ir.Model, folder: Path) -> Counter[str]:
    """How often each operator occurs in the graph that is really executed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(builders.to_bytes(model), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(options.optimized_model_filepath)
    return Counter(node.op_type for node in optimized.graph.node)


def noise_ratio(model: ir.Model, changed: ir.Model, *, seeds: int = 4) -> float:
    """Noise-to-signal power of ``changed`` over all outputs and a few inputs, with ONNX Runtime's own kernels."""
    signal = noise = 0.0
    for seed in range(seeds):
        arrays = builders.feeds(model, seed=seed)
        for right, got in zip(
            builders.run(model, arrays, optimized=True), builders.run(changed, arrays, optimized=True), strict=True
        ):
            signal += float((right.astype(float) ** 2).sum())
            noise += float(((right - got).astype(float) ** 2).sum())
    return noise / max(signal, 1e-30)
