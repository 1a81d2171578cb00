"""QuantizeLinear and DequantizeLinear with straight-through gradients (Bengio, Leonard and Courville 2013, arXiv 1308.3432).

Codes stay floating-point tensors that hold whole numbers: an integer tensor would end every gradient. Rounding passes the
gradient on unchanged, clipping passes it where the code is within its range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeopt.training.operators.call import Call
from edgeopt.training.operators.elementwise import torch_type

_UINT8 = 2


def quantize(call: Call, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """QuantizeLinear: codes as floats; per tensor, per channel or in blocks along ``axis``."""
    number = call.integer("output_dtype") or _UINT8
    kind = torch_type(call, number) if zero_point is None else zero_point.dtype
    if kind.is_floating_point:
        raise call.refusal("to a floating-point type is not replayed")
    limits = torch.iinfo(kind)
    real = x / _spread(call, scale, x)
    code = real + (torch.round(real) - real).detach()
    if zero_point is not None:
        code = code + _spread(call, zero_point.to(x.dtype), x)
    return code.clamp(limits.min, limits.max)


def dequantize(call: Call, code: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """DequantizeLinear: ``(code - zero_point) * scale``."""
    real = code.to(scale.dtype)
    if zero_point is not None:
        real = real - _spread(call, zero_point.to(scale.dtype), real)
    return real * _spread(call, scale, real)


def _spread(call: Call, parameter: Tensor, x: Tensor) -> Tensor:
    """A parameter in a shape that broadcasts over ``x``."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    axis = call.integer("axis", 1) % x.dim()
    if block := call.integer("block_size"):
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return parameter.reshape([-1 if index == axis else 1 for index in range(x.dim())])
