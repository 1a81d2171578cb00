"""Scale and zero-point arithmetic: float32 to 8 bits and back, biases to 32 bits.

Stands under the quantization passes: in come a range or a weight tensor, out go the arrays that QuantizeLinear and
DequantizeLinear carry. ``real = (quantized - zero_point) * scale``; rounding is half to even, as in the ONNX operators, so
what is computed here is what the runtime computes. Zero always maps to ``zero_point`` exactly, since padding and ReLU
put exact zeros everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate import saturation
from edgeopt.calibrate.ranges import Range

Float32s: TypeAlias = NDArray[np.float32]
Int8s: TypeAlias = NDArray[np.int8] | NDArray[np.uint8] | NDArray[np.uint16]
DtypeName: TypeAlias = Literal["int8", "uint8"]
ActivationName: TypeAlias = Literal["int8", "uint8", "uint16"]

SMALLEST_SCALE = float(np.finfo(np.float32).tiny) * 2**20
"""A zero or subnormal scale makes x / scale infinite; this leaves room for the product of two scales as well."""

_BIAS_LIMIT = 2**30
"""Half of int32: the other half is for what the integer kernel accumulates."""


@dataclass(frozen=True, slots=True)
class QParams:
    """``scale`` and ``zero_point`` are 0-d, or 1-d along ``axis``; quantized values stay in ``[qmin, qmax]``."""

    scale: Float32s
    zero_point: Int8s
    qmin: int
    qmax: int
    axis: int | None = None


def activation_qparams(covered: Range, *, dtype: ActivationName, symmetric: bool = False) -> QParams:
    """Per-tensor parameters that cover a range; ``symmetric`` puts zero into the middle of the codes."""
    info = np.iinfo(dtype)
    if symmetric:
        middle = (info.min + info.max + 1) // 2
        scale = max(-covered.low / (middle - info.min), covered.high / (info.max - middle))
        return _per_tensor(scale, middle, dtype)
    scale = _safe_scale((covered.high - covered.low) / (info.max - info.min))
    zero_point = int(np.clip(np.rint(info.min - covered.low / scale), info.min, info.max))
    return _per_tensor(scale, zero_point, dtype)


def weight_qparams(
    weight: Float32s,
    *,
    dtype: DtypeName = "int8",
    axis: int | None = None,
    reduced_range: bool = False,
    smallest: NDArray[np.floating] | float = 0.0,
) -> QParams:
    """Symmetric parameters for a weight; one scale for each index of ``axis``, or one for the whole tensor.

    ``reduced_range`` is for x86 kernels without VNNI, which add two products in 16 bits and saturate: a channel's codes are then as wide as its
    worst pair of neighbours allows (``saturation``), a whole tensor's are 7 bits wide. ``smallest`` is a lower bound of the
    scales, see :func:`smallest_weight_scale`.
    """
    narrow = reduced_range and axis is None
    half = 63 if narrow else 127
    middle = 0 if dtype == "int8" else 128
    others = tuple(index for index in range(weight.ndim) if index != axis) if axis is not None else None
    needed = np.abs(weight).max(axis=others, initial=0.0).astype(np.float64) / half
    if reduced_range and axis is not None:
        needed = saturation.pair_peaks(*rows_and_taps(weight, axis)) / saturation.WIDEST_PAIR
    scale = np.maximum(np.maximum(needed, np.max(smallest) if axis is None else smallest), SMALLEST_SCALE)
    zero_point = np.full(scale.shape, middle, dtype)
    return QParams(scale.astype(np.float32), zero_point, middle - half, middle + half, axis)


def rows_and_taps(weight: Float32s, axis: int) -> tuple[Float32s, int]:
    """The weight as (outputs, inputs * taps), and how many taps its kernel has: 1 for a matrix."""
    first = np.moveaxis(weight, axis, 0)
    taps = math.prod(first.shape[2:])
    return np.ascontiguousarray(first.reshape(len(first), -1)), max(1, taps)


def smallest_weight_scale(bias: Float32s, input_scale: float) -> NDArray[np.float64]:
    """The weight scales below which a bias would leave the int32 that ``input_scale * weight_scale`` gives it."""
    smallest: NDArray[np.float64] = np.abs(bias.astype(np.float64)) / (max(input_scale, SMALLEST_SCALE) * _BIAS_LIMIT)
    return smallest


def quantize(values: NDArray[np.floating], qparams: QParams) -> Int8s:
    """Saturating, half to even; the shape of ``values``."""
    scale, zero_point = _broadcast(qparams, values.ndim)
    # In float32 and by division, since that is what QuantizeLinear does: a reciprocal rounds differently.
    codes = np.rint(values.astype(np.float32) / scale) + zero_point.astype(np.float32)
    quantized: Int8s = np.clip(codes, qparams.qmin, qparams.qmax).astype(qparams.zero_point.dtype)
    return quantized


def dequantize(codes: Int8s, qparams: QParams) -> Float32s:
    """What DequantizeLinear makes of the codes."""
    scale, zero_point = _broadcast(qparams, codes.ndim)
    real: Float32s = (codes.astype(np.int32) - zero_point.astype(np.int32)).astype(np.float32) * scale
    return real


def quantize_bias(bias: Float32s, input_scale: float, weight_scale: Float32s) -> tuple[NDArray[np.int32], Float32s]:
    """An int32 bias and its scale ``input_scale * weight_scale``: what the kernel's accumulator counts in."""
    scale = (np.float32(input_scale) * weight_scale).astype(np.float32)
    codes = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    limits = np.iinfo(np.int32)
    return np.clip(codes, limits.min, limits.max).astype(np.int32), scale


def _per_tensor(scale: float, zero_point: int, dtype: ActivationName) -> QParams:
    info = np.iinfo(dtype)
    return QParams(np.array(_safe_scale(scale), np.float32), np.array(zero_point, dtype), int(info.min), int(info.max))


def _safe_scale(scale: float) -> float:
    """A tensor that is always zero has no scale of its own; 1 keeps it exactly zero."""
    return float(np.float32(scale)) if scale > SMALLEST_SCALE else (SMALLEST_SCALE if scale > 0 else 1.0)


def _broadcast(qparams: QParams, rank: int) -> tuple[Float32s, Int8s]:
    if qparams.axis is None:
        return qparams.scale, qparams.zero_point
    shape = [1] * rank
    shape[qparams.axis] = -1
    return qparams.scale.reshape(shape), qparams.zero_point.reshape(shape)
