"""Matrix products: Gemm, MatMul, Einsum and ONNX Runtime's FusedMatMul."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeopt.training.operators.call import Call


def matmul(call: Call, left: Tensor, right: Tensor) -> Tensor:
    """MatMul: numpy's, with broadcasting over what lies before the last two axes."""
    del call
    return left @ right


def gemm(call: Call, left: Tensor, right: Tensor, added: Tensor | None = None) -> Tensor:
    """Gemm: ``alpha * A' @ B' + beta * C``, all of them matrices."""
    left = left.t() if call.integer("transA") else left
    right = right.t() if call.integer("transB") else right
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    product = left @ right
    product = product if alpha == 1.0 else product * alpha
    if added is None:
        return product
    return product + (added if beta == 1.0 else added * beta)


def einsum(call: Call, *operands: Tensor) -> Tensor:
    """Einsum."""
    return torch.einsum(call.text("equation", "").replace(" ", ""), *operands)


def fused_matmul(call: Call, left: Tensor, right: Tensor) -> Tensor:
    """com.microsoft FusedMatMul: MatMul with the last two axes swapped on demand, and a factor."""
    if call.integer("transBatchA") or call.integer("transBatchB"):
        raise call.refusal("with transposed batch axes is not replayed")
    left = left.transpose(-1, -2) if call.integer("transA") and left.dim() > 1 else left
    right = right.transpose(-1, -2) if call.integer("transB") and right.dim() > 1 else right
    return (left @ right) * call.number("alpha", 1.0)
