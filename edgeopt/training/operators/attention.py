"""The operators of com.microsoft that fusing a transformer leaves behind: Attention, normalized sums, gelus with a bias."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.training.operators.call import Call
from edgeopt.training.operators.normalization import rms_norm

_MASKED = -10000.0
"""What ONNX Runtime adds to the score of a masked place."""


def attention(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Tensor | None) -> Tensor:
    """Attention of one sequence with itself; ``weight`` [inputs, widths of query, key and value].

    What follows the bias are a mask of [batch, places], a past, and a bias of the scores, which broadcasts over
    [batch, heads, places, places].
    """
    mask, past, shift, *others = (*rest, None, None, None)
    usual = past is None and all(other is None for other in others) and (mask is None or mask.dim() == 2)
    if not usual or call.read > 1 or call.integer("do_rotary"):
        raise call.refusal("with a past or an unusual mask is not replayed")
    heads = call.integer("num_heads")
    product = x @ weight if bias is None else x @ weight + bias
    widths = call.integers("qkv_hidden_sizes") or [product.shape[-1] // 3] * 3
    parts = (part.reshape(*part.shape[:2], heads, -1).transpose(1, 2) for part in torch.split(product, widths, -1))
    query, key, value = parts
    scores: Tensor = (query @ key.transpose(-1, -2)) * (call.number("scale", 0.0) or query.shape[-1] ** -0.5)
    hidden = call.number("mask_filter_value", _MASKED)
    if mask is not None:
        scores = scores + (1 - mask.to(scores.dtype))[:, None, None] * hidden
    if call.integer("unidirectional"):
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), hidden)
    if shift is not None:
        scores = scores + shift
    return (torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(-2)


def skip_layer_norm(
    call: Call, x: Tensor, skip: Tensor, scale: Tensor, *shifts: Tensor | None
) -> Tensor | tuple[Tensor, ...]:
    """SkipLayerNormalization: the norm of a sum; shifts are the norm's bias and one inside the sum. The sum is output 3."""
    bias, inner = (*shifts, None, None)[:2]
    total = x + skip if inner is None else x + skip + inner
    normal = functional.layer_norm(total, total.shape[-1:], scale, bias, call.number("epsilon", 1e-12))
    return normal if call.read < 2 else (normal, *_statistics(total), total)


def skip_rms_norm(
    call: Call, x: Tensor, skip: Tensor, scale: Tensor, inner: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    """SkipSimplifiedLayerNormalization, in the same way."""
    total = x + skip if inner is None else x + skip + inner
    normal = rms_norm(call, total, scale)
    return normal if call.read < 2 else (normal, *_statistics(total), total)


def bias_gelu(call: Call, x: Tensor, bias: Tensor) -> Tensor:
    """BiasGelu: the exact gelu of a sum."""
    del call
    return functional.gelu(x + bias)


def fast_gelu(call: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """FastGelu: the tanh form of gelu, of a sum where there is a bias."""
    del call
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


def _statistics(total: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs 1 and 2, which runtimes fill in training only; nobody reads them."""
    empty = total.new_zeros(0)
    return empty, empty
