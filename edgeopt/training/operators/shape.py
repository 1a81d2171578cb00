"""Operators that move numbers without computing: reshapes, transposes, padding, and the sizes they are driven by.

Sizes are int64 tensors, exact at every length.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.training.operators.call import Call, whole
from edgeopt.training.operators.elementwise import torch_type

_FLOAT = 1


def identity(call: Call, x: Tensor, *settings: Tensor | None) -> Tensor | tuple[Tensor, ...]:
    """Identity, and Dropout as inference runs it: everything is kept."""
    del settings
    return x if call.outputs < 2 else (x, torch.ones_like(x, dtype=torch.bool))


def reshape(call: Call, x: Tensor, sizes: Tensor) -> Tensor:
    """Reshape; 0 keeps the input's size unless ``allowzero`` says that it is meant."""
    wanted = whole(sizes)
    if not call.integer("allowzero"):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


def flatten(call: Call, x: Tensor) -> Tensor:
    """Flatten to a matrix whose rows are everything before ``axis``."""
    axis = call.integer("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


def transpose(call: Call, x: Tensor) -> Tensor:
    """Transpose; without ``perm``, all axes are reversed."""
    return x.permute(call.integers("perm", range(x.dim())[::-1]))


def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Squeeze; without axes, every axis of length 1."""
    chosen = call.axes(axes)
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


def unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Unsqueeze; the axes count in the result."""
    chosen = call.axes(axes) or []
    rank = x.dim() + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def concat(call: Call, *tensors: Tensor) -> Tensor:
    """Concat."""
    return torch.cat(tensors, call.integer("axis", 1 if call.opset < 4 else 0))


def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Split into the sizes of an attribute or input, or into equal parts of which the last may be smaller."""
    axis = call.integer("axis")
    lengths = call.axes(sizes, "split")
    if lengths is None:
        length = x.shape[axis]
        part = -(-length // call.outputs)
        lengths = [max(0, min(part, length - part * index)) for index in range(call.outputs)]
    return tuple(torch.split(x, lengths, axis))


def shape(call: Call, x: Tensor) -> Tensor:
    """Shape, or a slice of it."""
    return torch.tensor(list(x.shape)[call.integer("start") : call.attributes.get("end")], dtype=torch.int64)


def size(call: Call, x: Tensor) -> Tensor:
    """Size: the number of elements."""
    del call
    return torch.tensor(x.numel(), dtype=torch.int64)


def expand(call: Call, x: Tensor, sizes: Tensor) -> Tensor:
    """Expand: broadcasting both ways."""
    del call
    wanted = whole(sizes)
    rank = max(len(wanted), x.dim())
    have = [1] * (rank - x.dim()) + list(x.shape)
    wanted = [1] * (rank - len(wanted)) + wanted
    return x.expand([size if ours == 1 else ours for ours, size in zip(have, wanted, strict=True)])


def tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    """Tile."""
    del call
    return x.repeat(whole(repeats))


def constant_of_shape(call: Call, sizes: Tensor) -> Tensor:
    """ConstantOfShape; float zeros where no value is given."""
    value = call.attributes.get("value")
    filler = torch.zeros(1) if value is None else value
    return filler.reshape(()).expand(whole(sizes)).clone()


def steps(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Range."""
    del call
    if not start.is_floating_point():
        return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)
    count = max(0, int(torch.ceil((limit - start) / delta).item()))
    return start + delta * torch.arange(count, dtype=start.dtype)


def eye_like(call: Call, x: Tensor) -> Tensor:
    """EyeLike."""
    kind = torch_type(call, call.integer("dtype", 1)) if "dtype" in call.attributes else x.dtype
    offset = call.integer("k")
    rows, columns = x.shape
    return (torch.arange(columns) == torch.arange(rows)[:, None] + offset).to(kind)


def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """DepthToSpace, depth first (DCR) or columns and rows first (CRD)."""
    block = call.integer("blocksize")
    batch, channels, rows, columns = x.shape
    narrow = channels // block**2
    if call.text("mode", "DCR") == "CRD":
        split_up = x.reshape(batch, narrow, block, block, rows, columns).permute(0, 1, 4, 2, 5, 3)
    else:
        split_up = x.reshape(batch, block, block, narrow, rows, columns).permute(0, 3, 4, 1, 5, 2)
    return split_up.reshape(batch, narrow, rows * block, columns * block)


def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """SpaceToDepth."""
    block = call.integer("blocksize")
    batch, channels, rows, columns = x.shape
    split_up = x.reshape(batch, channels, rows // block, block, columns // block, block).permute(0, 3, 5, 1, 2, 4)
    return split_up.reshape(batch, channels * block**2, rows // block, columns // block)


def pad(call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, *axes: Tensor | None) -> Tensor:
    """Pad with a value, the edge, a reflection or the other end; a negative number cuts."""
    flat = call.axes(pads, "pads") or []
    chosen = range(x.dim()) if not axes or axes[0] is None else [axis % x.dim() for axis in whole(axes[0])]
    half = len(flat) // 2
    ends = {axis: (flat[index], flat[index + half]) for index, axis in enumerate(chosen)}
    mode = call.text("mode", "constant")
    if mode == "constant":
        if not any(flat):
            return x  # what TorchScript exports of a model that would pad where it must
        filler = call.number("value", 0.0) if value is None else value.item()
        pairs = [ends.get(axis, (0, 0)) for axis in range(x.dim())]
        return functional.pad(x, [end for pair in reversed(pairs) for end in pair], value=filler)
    for axis, (begin, end) in ends.items():
        if begin or end:
            x = x.index_select(axis, _sources(call, mode, x.shape[axis], (begin, end)))
    return x


def _sources(call: Call, mode: str, length: int, ends: tuple[int, int]) -> Tensor:
    """Which entry of one axis each entry of the padded axis shows."""
    places = torch.arange(-ends[0], length + ends[1])
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places.remainder(length)
    if mode != "reflect":
        raise call.refusal(f"with mode {mode!r} is not replayed")
    period = max(1, 2 * (length - 1))
    folded = places.remainder(period)
    return torch.where(folded < length, folded, period - folded)
