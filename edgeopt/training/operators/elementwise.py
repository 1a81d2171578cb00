"""Operators that work number by number: arithmetic with broadcasting, comparisons, activations, casts.

float16 and bfloat16 become float32 wherever they appear: gradients of a few thousand steps do not fit into them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.training.operators.call import Call, Operator

_FLOAT, _FLOAT16, _STRING, _DOUBLE, _BFLOAT16 = 1, 10, 8, 11, 16
TYPES: dict[int, torch.dtype] = {
    _FLOAT: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    _FLOAT16: torch.float32,
    _DOUBLE: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    _BFLOAT16: torch.float32,
}
"""ONNX' number of a type to the type that it is computed in."""


def unary(function: Callable[[Tensor], Tensor]) -> Operator:
    """An operator of one tensor without attributes."""
    return lambda call, x: function(x)  # noqa: ARG005 - every operator is told of its node, not every one asks


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of two tensors that broadcast, without attributes."""
    return lambda call, left, right: function(left, right)  # noqa: ARG005 - as above


def variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of one or more tensors that broadcast: Sum, Max, Min."""
    return lambda call, *tensors: reduce(function, tensors)  # noqa: ARG005 - as above


def mean(call: Call, *tensors: Tensor) -> Tensor:
    """Mean of one or more tensors that broadcast."""
    del call
    return reduce(torch.add, tensors) / len(tensors)


def divide(call: Call, left: Tensor, right: Tensor) -> Tensor:
    """Div; integers are cut towards zero, as the C++ of every runtime does."""
    del call
    if left.is_floating_point() or right.is_floating_point():
        return left / right
    return torch.div(left, right, rounding_mode="trunc")


def modulo(call: Call, left: Tensor, right: Tensor) -> Tensor:
    """Mod: the divisor's sign, or with ``fmod`` the dividend's."""
    return torch.fmod(left, right) if call.integer("fmod") else torch.remainder(left, right)


def power(call: Call, base: Tensor, exponent: Tensor) -> Tensor:
    """Pow in the type of the base."""
    del call
    if exponent.numel() == 1 and exponent.dim() <= base.dim() and not exponent.requires_grad:
        return torch.pow(base, exponent.item()).to(base.dtype)  # the gradient of x ** 2 needs no logarithm this way
    return torch.pow(base, exponent).to(base.dtype)


def root(x: Tensor) -> Tensor:
    """The square root whose gradient at zero is zero: an infinite one there turns a silent frame into NaN weights."""
    if not x.requires_grad:
        return torch.sqrt(x)
    zero = x == 0
    return torch.where(zero, torch.zeros_like(x), torch.sqrt(torch.where(zero, torch.ones_like(x), x)))


def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Clip; the bounds are inputs, attributes before opset 11. The upper one wins where they cross."""
    least = call.attributes.get("min") if low is None else low.detach().item()
    most = call.attributes.get("max") if high is None else high.detach().item()
    if least is None and most is None:
        return x
    if least is not None and most is not None and least < most and x.is_floating_point():
        return functional.hardtanh(x, least, most)  # its gradient takes one pass over memory, clamp's takes four
    return torch.clamp(x, least, most)


def cast(call: Call, x: Tensor) -> Tensor:
    """Cast; float16 and bfloat16 are computed in float32."""
    return x.to(torch_type(call, call.integer("to")))


def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    """CastLike."""
    del call
    return x.to(like.dtype)


def torch_type(call: Call, number: int) -> torch.dtype:
    """The type that an ONNX type is computed in; raises where torch has none."""
    if number not in TYPES:
        raise call.refusal(f"with the type {number} is not replayed")
    return TYPES[number]


def is_infinite(call: Call, x: Tensor) -> Tensor:
    """IsInf; one of the signs may be left out."""
    negative, positive = call.integer("detect_negative", 1), call.integer("detect_positive", 1)
    return (torch.isposinf(x) & bool(positive)) | (torch.isneginf(x) & bool(negative))


def where(call: Call, condition: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """Where."""
    del call
    return torch.where(condition, chosen, other)


# ---------------------------------------------------------------- activations with settings
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, call.number("alpha", 0.01))


def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    """PRelu; the slope broadcasts from the right, as everything in ONNX."""
    del call
    return torch.where(x >= 0, x, slope * x)


def elu(call: Call, x: Tensor) -> Tensor:
    return functional.elu(x, call.number("alpha", 1.0))


def celu(call: Call, x: Tensor) -> Tensor:
    return functional.celu(x, call.number("alpha", 1.0))


def selu(call: Call, x: Tensor) -> Tensor:
    gamma = call.number("gamma", 1.0507009873554805)
    return gamma * functional.elu(x, call.number("alpha", 1.6732632423543772))


def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(x * call.number("alpha", 0.2) + call.number("beta", 0.5), 0.0, 1.0)


def hard_swish(call: Call, x: Tensor) -> Tensor:
    del call
    return x * torch.clamp(x / 6 + 0.5, 0.0, 1.0)


def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    return torch.where(x > call.number("alpha", 1.0), x, torch.zeros_like(x))


def shrink(call: Call, x: Tensor) -> Tensor:
    bias, edge = call.number("bias", 0.0), call.number("lambd", 0.5)
    return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, torch.zeros_like(x)))


def gelu(call: Call, x: Tensor) -> Tensor:
    """Gelu of ai.onnx and of com.microsoft."""
    return functional.gelu(x, approximate=call.text("approximate", "none"))


def swish(call: Call, x: Tensor) -> Tensor:
    """Swish, and com.microsoft's QuickGelu: ``x * sigmoid(alpha * x)``."""
    default = 1.702 if call.kind.endswith("QuickGelu") else 1.0
    return x * torch.sigmoid(call.number("alpha", default) * x)
