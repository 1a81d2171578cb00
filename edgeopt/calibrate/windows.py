"""What a convolution reads for each place of its output, as rows that meet its weight.

Stands under ``gram``, which picks the places. In comes a feature map (batch, channels, ...), out go vectors of (places, channels times kernel), in the order of the
weight's own axes, so that ``rows @ weight`` is what the layer gives there. A transposed convolution is read from its output too: each place takes the few inputs
whose kernels reach it, so any stride, overlap and padding is linear in the same way, and one bias serves all places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Map = NDArray[np.float32]
Places = NDArray[np.intp]
"""(places, 1 + rank): the sample, then where on the map."""
Pick = Callable[[Places], Places]
"""Chooses some of all places; the same ones for the same number."""


def convolved(data: Map, node: ir.Node, kernel: Sequence[int], pick: Pick) -> NDArray[np.float32]:
    """Of a Conv without groups."""
    rank = len(kernel)
    strides, dilations = (integers(node, name, [1] * rank) for name in ("strides", "dilations"))
    reach = [1 + (size - 1) * step for size, step in zip(kernel, dilations, strict=True)]
    padded = np.pad(data, [(0, 0), (0, 0), *_padding(node, data.shape[2:], reach, strides)])
    axes = tuple(range(2, 2 + rank))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
    taken = (slice(None), slice(None), *(slice(None, None, step) for step in strides))
    windows = windows[taken + tuple(slice(None, None, step) for step in dilations)]
    # (batch, channels, places ..., kernel ...) to (batch, places ..., channels, kernel ...): still a view.
    windows = np.moveaxis(windows, 1, 1 + rank)
    chosen = pick(_every(windows.shape[: 1 + rank]))
    vectors: NDArray[np.float32] = windows[tuple(chosen.T)].reshape(len(chosen), -1)
    return vectors


def transposed(data: Map, node: ir.Node, kernel: Sequence[int], pick: Pick) -> NDArray[np.float32]:
    """Of a ConvTranspose without groups: output place ``j`` meets tap ``t`` of input ``(j + pad - t * dilation) / stride``, where that is whole."""
    rank, sides = len(kernel), data.shape[2:]
    strides, dilations = (integers(node, name, [1] * rank) for name in ("strides", "dilations"))
    pads, extra = integers(node, "pads", [0] * (2 * rank)), integers(node, "output_padding", [0] * rank)
    made = [
        strides[axis] * (sides[axis] - 1) + extra[axis] + 1 + (kernel[axis] - 1) * dilations[axis]
        - pads[axis] - pads[rank + axis]
        for axis in range(rank)
    ]  # fmt: skip
    chosen = pick(_every((len(data), *made)))
    sources: list[Places] = []
    is_reached = np.ones((len(chosen), *kernel), np.bool_)
    for axis in range(rank):
        taps = np.arange(kernel[axis]) * dilations[axis]
        source, rest = np.divmod(chosen[:, 1 + axis, None] + pads[axis] - taps, strides[axis])
        is_inside = (rest == 0) & (source >= 0) & (source < sides[axis])
        along = [len(chosen), *([1] * axis), kernel[axis], *([1] * (rank - axis - 1))]
        is_reached &= is_inside.reshape(along)
        sources.append(np.clip(source, 0, sides[axis] - 1).reshape(along))
    batch = chosen[:, 0].reshape(-1, *([1] * rank))
    # an index on both sides of a slice puts the slice's axis, the channels, last
    index: tuple[Places | slice, ...] = (batch, slice(None), *sources)
    met = data[index] * is_reached[..., None]
    vectors: NDArray[np.float32] = np.moveaxis(met, -1, 1).reshape(len(chosen), -1)
    return vectors


def is_plain_transposed(node: ir.Node) -> bool:
    """Whether :func:`transposed` knows how large ``node``'s output is: its pads are written out, its shape is not."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    return mode in ("NOTSET", "VALID") and "output_shape" not in node.attributes


def integers(node: ir.Node, name: str, default: list[int]) -> list[int]:
    """An attribute of integers."""
    attribute = node.attributes.get(name)
    return default if attribute is None else list(attribute.as_ints())


def _every(sides: Sequence[int]) -> Places:
    return np.stack([side.reshape(-1) for side in np.indices(tuple(sides))], axis=1)


def _padding(
    node: ir.Node, sides: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """In front and behind on each axis; SAME makes as many places as a map of stride steps has."""
    rank = len(sides)
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        pads = [0] * (2 * rank) if mode == "VALID" else integers(node, "pads", [0] * (2 * rank))
        return list(zip(pads[:rank], pads[rank:], strict=True))
    totals = [
        max(0, (-(-side // step) - 1) * step + span - side)
        for side, span, step in zip(sides, reach, strides, strict=True)
    ]
    uneven = [(total // 2, total - total // 2) for total in totals]
    return uneven if mode == "SAME_UPPER" else [(behind, front) for front, behind in uneven]
