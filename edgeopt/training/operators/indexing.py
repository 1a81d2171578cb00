"""Operators that pick and place entries: Slice, Gather, Scatter and their kin. Negative indices count from the end."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeopt.training.operators.call import Call, whole

_ENDLESS = (2**31 - 1, 2**63 - 1)


def slices(
    call: Call, x: Tensor, starts: Tensor | None = None, ends: Tensor | None = None, *more: Tensor | None
) -> Tensor:
    """Slice; starts, ends and axes are attributes before opset 10."""
    begin, until = call.axes(starts, "starts") or [], call.axes(ends, "ends") or []
    axes = call.axes(more[0] if more else None) or list(range(len(begin)))
    strides = whole(more[1]) if len(more) > 1 and more[1] is not None else [1] * len(begin)
    for axis, first, last, stride in zip(axes, begin, until, strides, strict=True):
        places = _places(x.shape[axis], first, last, stride)
        if stride < 0:
            x = x.index_select(axis, torch.tensor(places, dtype=torch.int64))
        elif len(places) < x.shape[axis]:
            before = [slice(None)] * (axis % x.dim())
            x = x[(*before, slice(places.start, max(places.start, places.stop), stride))]
    return x


def _places(length: int, first: int, last: int, stride: int) -> range:
    """The entries of one axis that a slice takes; both bounds are brought into the axis first."""
    endless = last in _ENDLESS
    first, last = (bound + length if bound < 0 else bound for bound in (first, last))
    if stride > 0:
        return range(min(max(first, 0), length), min(max(last, 0), length), stride)
    # walking backwards, the largest number means "as far as there is", too
    return range(min(max(first, 0), length - 1), -1 if endless else min(max(last, -1), length - 1), stride)


def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Gather entries of one axis; the shape of ``indices`` takes the axis' place."""
    axis = call.integer("axis") % x.dim()
    flat = _from_start(indices, x.shape[axis]).reshape(-1)
    return x.index_select(axis, flat).reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """GatherElements."""
    axis = call.integer("axis")
    return torch.gather(x, axis, _from_start(indices, x.shape[axis]))


def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """GatherND: the last axis of ``indices`` addresses axes of ``x`` behind the shared batch axes."""
    shared = call.integer("batch_dims")
    depth = indices.shape[-1]
    rows = x.reshape(-1, *x.shape[shared:])
    addresses = indices.reshape(rows.shape[0], -1, depth)
    batch = torch.arange(rows.shape[0])[:, None].expand(addresses.shape[:2])
    places = [_from_start(addresses[..., level], rows.shape[1 + level]) for level in range(depth)]
    return rows[(batch, *places)].reshape((*indices.shape[:-1], *x.shape[shared + depth :]))


def scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """ScatterElements that replace or add."""
    axis = call.integer("axis")
    places = _from_start(indices, x.shape[axis])
    return x.scatter_add(axis, places, updates) if _adds(call) else x.scatter(axis, places, updates)


def scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """ScatterND that replaces or adds."""
    places = tuple(_from_start(indices[..., level], x.shape[level]) for level in range(indices.shape[-1]))
    return x.index_put(places, updates, accumulate=_adds(call))


def compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    """Compress: the entries of an axis, or of the flat tensor, whose condition holds."""
    places = torch.nonzero(condition).reshape(-1)
    return x.index_select(call.integer("axis"), places) if "axis" in call.attributes else x.reshape(-1)[places]


def nonzero(call: Call, x: Tensor) -> Tensor:
    """NonZero: [axes, entries]."""
    del call
    return torch.nonzero(x).t()


def one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """OneHot with its ``off`` and ``on`` values; an index out of range is off everywhere."""
    length = int(depth.item())
    axis = call.integer("axis", -1) % (indices.dim() + 1)
    hot = _from_start(indices, length).unsqueeze(-1) == torch.arange(length)
    return torch.where(hot.movedim(-1, axis), values[1], values[0])


def trilu(call: Call, x: Tensor, diagonal: Tensor | None = None) -> Tensor:
    """Trilu: the upper or the lower triangle of the last two axes."""
    offset = 0 if diagonal is None else int(diagonal.item())
    return torch.triu(x, offset) if call.integer("upper", 1) else torch.tril(x, offset)


def array_feature_extractor(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """ai.onnx.ml ArrayFeatureExtractor: columns of the last axis; a vector counts as one row."""
    del call
    rows = x if x.dim() > 1 else x.unsqueeze(0)
    return rows.index_select(-1, indices.reshape(-1).to(torch.int64))


def _from_start(indices: Tensor, length: int) -> Tensor:
    places = indices.to(torch.int64)
    return torch.where(places < 0, places + length, places)


def _adds(call: Call) -> bool:
    reduction = call.text("reduction", "none")
    if reduction not in ("none", "add"):
        raise call.refusal(f"with reduction {reduction!r} is not replayed")
    return reduction == "add"
