"""Names to passes and runtimes; the only place that lists them. Imports stay inside the functions.

The lists are literal: to add a pass, write its module in ``passes/`` and one line here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from edgeopt.errors import UsageError
from edgeopt.protocols import EngineBuilder, Evidence, Gradients, Pass, Runtime

if TYPE_CHECKING:
    from edgeopt.protocols import Array, Model

PASSES: dict[str, tuple[str, str]] = {
    "tidy": ("edgeopt.passes.tidy", "Tidy"),
    "cast_fp32": ("edgeopt.passes.cast_fp32", "CastFp32"),
    "fold_batch_norm": ("edgeopt.passes.fold_batch_norm", "FoldBatchNorm"),
    "fuse_transformer": ("edgeopt.passes.fuse_transformer", "FuseTransformer"),
    "prune_channels": ("edgeopt.passes.prune_channels", "PruneChannels"),
    "prune_weights": ("edgeopt.passes.prune_weights", "PruneWeights"),
    "cast_fp16": ("edgeopt.passes.cast_fp16", "CastFp16"),
    "equalize_layers": ("edgeopt.passes.equalize_layers", "EqualizeLayers"),
    "migrate_outliers": ("edgeopt.passes.migrate_outliers", "MigrateOutliers"),
    "round_weights": ("edgeopt.passes.round_weights", "RoundWeights"),
    "learn_rounding": ("edgeopt.training.learn_rounding", "LearnRounding"),
    "distill": ("edgeopt.training.distill", "Distill"),
    "quantize_dynamic": ("edgeopt.passes.quantize_dynamic", "QuantizeDynamic"),
    "quantize_static": ("edgeopt.passes.quantize_static", "QuantizeStatic"),
    "quantize_weights": ("edgeopt.passes.quantize_weights", "QuantizeWeights"),
}
RUNTIMES: dict[str, tuple[str, str]] = {
    "onnxruntime": ("edgeopt.runtimes.ort", "OnnxRuntime"),
    "tensorrt": ("edgeopt.runtimes.trt.runtime", "TensorRt"),
    "tensorrt-rtx": ("edgeopt.runtimes.trt.runtime", "rtx"),
}


def find_pass(name: str) -> Pass:
    """The pass called ``name``; :class:`UsageError` lists the known ones."""
    return cast("Pass", _make(name, PASSES, "pass"))


def find_runtime(name: str) -> Runtime:
    """The runtime called ``name``; :class:`UsageError` lists the known ones."""
    return cast("Runtime", _make(name, RUNTIMES, "runtime"))


def find_engines(target: str) -> EngineBuilder | None:
    """What builds the engines that ``target`` serves; None where it serves ONNX files."""
    return cast("EngineBuilder", find_runtime(target)) if target in RUNTIMES else None


def find_gradients() -> Gradients | None:
    """What differentiates models; None without the ``train`` extra. torch is loaded when the first gradient is asked for."""
    return _gradients if find_spec("torch") is not None else None


def _gradients(model: Model, names: Sequence[str], evidence: Evidence) -> Iterator[dict[str, Array]]:
    found = import_module("edgeopt.training.gradients").per_sample(model, names, evidence)
    return cast("Iterator[dict[str, Array]]", found)


def _make(name: str, known: dict[str, tuple[str, str]], what: str) -> object:
    if name not in known:
        raise UsageError(f"there is no {what} called {name!r}", hint=f"Use one of {', '.join(sorted(known))}.")
    module, attribute = known[name]
    return getattr(import_module(module), attribute)()
