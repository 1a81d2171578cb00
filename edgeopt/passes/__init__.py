"""Passes: ONNX in, ONNX out, one a module; none knows another.

``from edgeopt.passes import Tidy`` loads that one pass and what it needs; importing this package loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeopt.passes.cast_fp16 import CastFp16 as CastFp16
    from edgeopt.passes.cast_fp32 import CastFp32 as CastFp32
    from edgeopt.passes.equalize_layers import EqualizeLayers as EqualizeLayers
    from edgeopt.passes.fold_batch_norm import FoldBatchNorm as FoldBatchNorm
    from edgeopt.passes.fuse_transformer import FuseTransformer as FuseTransformer
    from edgeopt.passes.migrate_outliers import MigrateOutliers as MigrateOutliers
    from edgeopt.passes.prune_channels import PruneChannels as PruneChannels
    from edgeopt.passes.prune_weights import PruneWeights as PruneWeights
    from edgeopt.passes.quantize_dynamic import QuantizeDynamic as QuantizeDynamic
    from edgeopt.passes.quantize_static import QuantizeStatic as QuantizeStatic
    from edgeopt.passes.quantize_weights import QuantizeWeights as QuantizeWeights
    from edgeopt.passes.round_weights import RoundWeights as RoundWeights
    from edgeopt.passes.tidy import Tidy as Tidy

_HOMES = {
    "CastFp16": "cast_fp16",
    "CastFp32": "cast_fp32",
    "EqualizeLayers": "equalize_layers",
    "FoldBatchNorm": "fold_batch_norm",
    "FuseTransformer": "fuse_transformer",
    "MigrateOutliers": "migrate_outliers",
    "PruneChannels": "prune_channels",
    "PruneWeights": "prune_weights",
    "QuantizeDynamic": "quantize_dynamic",
    "QuantizeStatic": "quantize_static",
    "QuantizeWeights": "quantize_weights",
    "RoundWeights": "round_weights",
    "Tidy": "tidy",
}

__all__ = [
    "CastFp16",
    "CastFp32",
    "EqualizeLayers",
    "FoldBatchNorm",
    "FuseTransformer",
    "MigrateOutliers",
    "PruneChannels",
    "PruneWeights",
    "QuantizeDynamic",
    "QuantizeStatic",
    "QuantizeWeights",
    "RoundWeights",
    "Tidy",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
