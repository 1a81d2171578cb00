"""Normalizations and softmaxes. Batch normalization uses its running statistics, which training never changes."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.training.operators.call import Call


def batch_norm(call: Call, x: Tensor, *parameters: Tensor) -> Tensor:
    """BatchNormalization as inference runs it; parameters are scale, bias, mean and variance, each [channels]."""
    if call.integer("training_mode") or not call.integer("spatial", 1):
        raise call.refusal("in training mode, or of every element, is not replayed")
    scale, bias, mean, variance = parameters
    return functional.batch_norm(x, mean, variance, scale, bias, training=False, eps=call.number("epsilon", 1e-5))


def layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """LayerNormalization over the axes from ``axis`` on."""
    if call.read > 1:
        raise call.refusal("with its mean as a second output is not replayed")
    sides = x.shape[call.integer("axis", -1) % x.dim() :]
    normal = functional.layer_norm(x, sides, eps=call.number("epsilon", 1e-5)) * scale
    return normal if bias is None else normal + bias


def rms_norm(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """RMSNormalization, and SimplifiedLayerNormalization as ONNX Runtime called it."""
    axes = tuple(range(call.integer("axis", -1) % x.dim(), x.dim()))
    return x * torch.rsqrt((x * x).mean(axes, keepdim=True) + call.number("epsilon", 1e-5)) * scale


def instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """InstanceNormalization."""
    return functional.instance_norm(x, weight=scale, bias=bias, eps=call.number("epsilon", 1e-5))


def group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """GroupNormalization; scale and bias are one a group before opset 21, one a channel from then on."""
    groups, channels = call.integer("num_groups"), x.shape[1]
    if scale.numel() == groups != channels:
        scale, bias = (each.repeat_interleave(channels // groups) for each in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, call.number("epsilon", 1e-5))


def lp_norm(call: Call, x: Tensor) -> Tensor:
    """LpNormalization: divided by the norm along one axis; what is all zero stays zero."""
    norm = torch.linalg.vector_norm(x, call.integer("p", 2), call.integer("axis", -1), keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


def local_response_norm(call: Call, x: Tensor) -> Tensor:
    """LRN across channels."""
    size, alpha = call.integer("size"), call.number("alpha", 1e-4)
    return functional.local_response_norm(x, size, alpha, call.number("beta", 0.75), call.number("bias", 1.0))


def mean_variance_norm(call: Call, x: Tensor) -> Tensor:
    """MeanVarianceNormalization over ``axes``."""
    axes = call.integers("axes", (0, 2, 3))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (torch.sqrt((centred * centred).mean(axes, keepdim=True)) + 1e-9)


def softmax(call: Call, x: Tensor) -> Tensor:
    """Softmax; before opset 13 over everything from ``axis`` on."""
    if call.opset >= 13:
        return torch.softmax(x, call.integer("axis", -1))
    return torch.softmax(_rows(call, x), -1).reshape(x.shape)


def log_softmax(call: Call, x: Tensor) -> Tensor:
    """LogSoftmax, in the same way."""
    if call.opset >= 13:
        return torch.log_softmax(x, call.integer("axis", -1))
    return torch.log_softmax(_rows(call, x), -1).reshape(x.shape)


def _rows(call: Call, x: Tensor) -> Tensor:
    axis = call.integer("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), -1)
