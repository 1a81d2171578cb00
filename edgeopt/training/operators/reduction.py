"""Operators that take axes away: sums, means, extremes, norms, and where the largest entries lie."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgeopt.training.operators.call import Call, Operator

Reducer = Callable[[Tensor, list[int], bool], Tensor]


def over(reducer: Reducer) -> Operator:
    """A Reduce operator: axes as an attribute or, in newer opsets, an input; without any, all axes."""

    def operator(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = call.axes(axes)
        if not chosen:
            if call.integer("noop_with_empty_axes"):
                return x
            chosen = list(range(x.dim()))
        return reducer(x, chosen, bool(call.integer("keepdims", 1))).to(x.dtype) if chosen else x

    return operator


def mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.mean(axes, keep)


def total(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keep)


def largest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.amax(axes, keep)


def smallest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.amin(axes, keep)


def product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keep)
    return x


def norm_1(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.abs().sum(axes, keep)


def norm_2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    # its gradient at zero is zero, which that of a square root is not
    norm: Tensor = torch.linalg.vector_norm(x, 2, axes, keep)
    return norm


def sum_of_squares(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return (x * x).sum(axes, keep)


def log_of_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.log(x.sum(axes, keep))


def log_of_sum_of_exponentials(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keep)


def arg_largest(call: Call, x: Tensor) -> Tensor:
    """ArgMax; the first of equals, or with ``select_last_index`` the last."""
    return _position(call, x, torch.argmax)


def arg_smallest(call: Call, x: Tensor) -> Tensor:
    """ArgMin, in the same way."""
    return _position(call, x, torch.argmin)


def _position(call: Call, x: Tensor, find: Callable[..., Tensor]) -> Tensor:
    axis, keep = call.integer("axis"), bool(call.integer("keepdims", 1))
    if call.integer("select_last_index"):
        return x.shape[axis] - 1 - find(x.flip(axis), axis, keep)
    return find(x, axis, keep)


def top(call: Call, x: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """TopK: values and indices along one axis."""
    number = call.integer("k") if count is None else int(count.item())
    found = torch.topk(
        x, number, call.integer("axis", -1), bool(call.integer("largest", 1)), bool(call.integer("sorted", 1))
    )
    return found.values, found.indices


def running_total(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    """CumSum, from either end, with or without the entry itself."""
    side = int(axis.item())
    turned = x.flip(side) if call.integer("reverse") else x
    totals = turned.cumsum(side, dtype=x.dtype)
    if call.integer("exclusive"):
        totals = totals - turned
    return totals.flip(side) if call.integer("reverse") else totals
