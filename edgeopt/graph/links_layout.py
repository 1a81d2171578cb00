"""What operators promise that move, join or cut tensors without computing anything.

Called by ``links``. Where an operator names lengths or places as numbers (the sizes of a Split, the bounds of a Slice), those numbers are noted, to be rewritten when the axis
is cut; where it computes them at run time, the axis freezes.
"""

from __future__ import annotations

import numpy as np

from edgeopt.graph.atoms import Axis
from edgeopt.graph.links_layers import Layouts
from edgeopt.graph.links_ledger import Operation, Size
from edgeopt.graph.links_pointwise import passed
from edgeopt.graph.links_reshape import follow_size


def transpose(op: Operation) -> Layouts:
    """Transpose: the axes in another order."""
    perm = op.integers("perm") or list(range(op.rank(0)))[::-1]
    return [tuple(op.axis(0, axis) for axis in perm)]


def concat(op: Operation) -> Layouts:
    """Concat: channels side by side; the other axes are one and the same."""
    rank = op.rank(0)
    if not rank:
        return None
    joined, layout = op.integer("axis", 1) % rank, []
    places = range(len(op.node.inputs))
    for axis in range(rank):
        axes = [op.axis(place, axis) for place in places]
        known = [ids for ids in axes if ids is not None]
        if axis != joined:
            for other in axes[1:]:
                op.unite(axes[0], other)
            layout.append(next(iter(known), None))
        elif len(known) == len(axes):
            layout.append(np.concatenate(known))
        else:
            for ids in known:
                op.freeze(ids, "joins it with something of unknown length")
            layout.append(None)
    return [tuple(layout)]


def split(op: Operation) -> Layouts:
    """Split: consecutive parts; their sizes are rewritten."""
    rank = op.rank(0)
    if not rank:
        return None
    axis = op.integer("axis", 0) % rank
    ids, outputs = op.axis(0, axis), len(op.node.outputs)
    if ids is None:
        return None
    sizes = op.integers("split") or (op.numbers(1) if op.has(1) else _evenly(len(ids), outputs))
    if sizes is None or len(sizes) != outputs or sum(sizes) != len(ids):
        return None
    ends = np.cumsum(sizes)
    parts: list[Axis] = [ids[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    for part in parts:
        if part is not None and len(part) == 1:
            op.freeze(part, "takes one of it alone")
    op.rewrite("split", *parts)
    others = {other: op.axis(0, other) for other in range(rank) if other != axis}
    return [tuple(part if place == axis else others[place] for place in range(rank)) for part in parts]


def _evenly(length: int, parts: int) -> list[int]:
    size = -(-length // parts)
    return [*[size] * (parts - 1), length - size * (parts - 1)]


def slice_(op: Operation) -> Layouts:
    """Slice: one stretch of an axis; its bounds are rewritten. Every other step needs the axis as it is."""
    rank, count = op.rank(0), len(op.node.inputs)
    starts, ends = (op.numbers(1), op.numbers(2)) if count > 2 else (None, None)
    axes = op.numbers(3) if op.has(3) else (list(range(len(starts))) if starts is not None else None)
    if not rank or axes is None:
        return None
    steps = op.numbers(4) if op.has(4) else [1] * len(axes)
    if starts is None or ends is None:
        # the axes that are not cut at run time are still told apart
        gone = {axis % rank for axis in axes}
        return [op.made({axis: op.axis(0, axis) for axis in range(rank) if axis not in gone}, rank=rank)]
    layout = {axis: op.axis(0, axis) for axis in range(rank) if axis not in {axis % rank for axis in axes}}
    for entry, axis in enumerate(axes):
        if steps is not None and steps[entry] == 1:
            layout[axis % rank] = _stretch(op, axis % rank, (starts[entry], ends[entry]), entry)
    return [op.made(layout, rank=rank)]


def _stretch(op: Operation, axis: int, bounds: tuple[int, int], entry: int) -> Axis:
    ids = op.axis(0, axis)
    if ids is None:
        return None
    low, high, _ = slice(*bounds).indices(len(ids))
    taken = ids[low:high]
    if len(taken) == 1:
        op.freeze(taken, "takes one of it alone")
    if op.ledger.atoms.is_live(ids):
        op.rewrite("slice", ids[:low], taken, entry=entry)
    return taken


def pad(op: Operation) -> Layouts:
    """Pad: an axis that nothing is added to stays what it is."""
    pads, rank = op.integers("pads") or op.numbers(1), op.rank(0)
    if pads is None or op.has(3) or len(pads) != 2 * rank:
        return None
    return [op.made({axis: op.axis(0, axis) for axis in range(rank) if not pads[axis] and not pads[axis + rank]})]


def resize(op: Operation) -> Layouts:
    """Resize and Upsample: places are resampled, samples and channels are not."""
    rank, given = op.rank(0), op.integers("axes")
    if rank < 3 or (given is not None and {axis % rank for axis in given} & {0, 1}):
        return None
    channels = op.axis(0, 1)
    after = op.ledger.lengths(op.node.outputs[0])
    if channels is None or after is None or after[1] != len(channels):
        return None
    if given is None and op.has(3):
        sizes = op.sizes(3)
        if sizes is None or len(sizes) != rank:
            return None
        for entry, size in enumerate(sizes):
            follow_size(op, size, channels if entry == 1 else None, entry=entry, position=3)
    return [op.made({0: op.axis(0, 0), 1: channels})]


def expand(op: Operation) -> Layouts:
    """Expand: an axis that is as long as before stays what it is; one that was of length one is the same at every index."""
    after, sizes = op.ledger.lengths(op.node.outputs[0]), op.sizes(1)
    if after is None or sizes is None or len(sizes) > len(after):
        return None
    skipped, shift = len(after) - len(sizes), len(after) - op.rank(0)
    layout: list[Axis] = []
    for axis, length in enumerate(after):
        before = op.layout(0)[axis - shift] if axis >= shift else op.ledger.atoms.frozen(1, f"{op.label} adds it")
        if before is not None and len(before) == length:
            layout.append(op.axis(0, axis - shift) if axis >= shift else before)
        else:
            layout.append(_filled(op, length) if before is not None and len(before) == 1 else None)
    for entry, size in enumerate(sizes):
        if size.number != 1:
            follow_size(op, size, layout[entry + skipped], entry=entry)
    return [tuple(layout)]


def constant_of_shape(op: Operation) -> Layouts:
    """ConstantOfShape: every axis is the same at every index."""
    sizes = op.sizes(0)
    if sizes is None:
        return None
    layout = [_filled(op, size.number) for size in sizes]
    for entry, (size, axis) in enumerate(zip(sizes, layout, strict=True)):
        follow_size(op, size, axis, entry=entry, position=0)
    return [tuple(layout)]


def _filled(op: Operation, length: int | None) -> Axis:
    """An axis along which nothing differs: any index may go as long as the number that says how many is known."""
    if length is None:
        return None
    return op.ledger.atoms.fresh(length) if length > 1 else op.ledger.atoms.frozen(length, f"{op.label} makes it")


def tile(op: Operation) -> Layouts:
    """Tile: an axis that is not repeated stays what it is."""
    repeats, rank = op.numbers(1), op.rank(0)
    if repeats is None or len(repeats) != rank:
        return None
    return [op.made({axis: op.axis(0, axis) for axis in range(rank) if repeats[axis] == 1})]


def gather(op: Operation) -> Layouts:
    """Gather: the axis that is looked up in stays, the others are channels of what comes out (an embedding table)."""
    rank = op.rank(0)
    if not rank:
        return None
    axis = op.integer("axis", 0) % rank
    indices = op.layout(1)
    middle = [op.axis(1, place) for place in range(len(indices))]
    sides = [op.axis(0, place) if place != axis else None for place in range(rank)]
    if op.is_constant(0):
        for ids in (*sides[:axis], *sides[axis + 1 :]):
            op.mark(ids, "producer")
            op.kind(ids, "neurons")
    return [(*sides[:axis], *middle, *sides[axis + 1 :])]


def depth_to_space(op: Operation) -> Layouts:
    """DepthToSpace: one channel out of block x block channels."""
    block, ids = op.integer("blocksize", 1), op.axis(0, 1)
    if ids is None or op.rank(0) != 4:
        return None
    deep = op.text("mode", "DCR") == "DCR"
    grid = ids.reshape(block * block, -1).T if deep else ids.reshape(-1, block * block)
    op.ledger.atoms.tie(grid)
    return [op.made({0: op.axis(0, 0), 1: grid[:, 0]}, rank=4)]


def space_to_depth(op: Operation) -> Layouts:
    """SpaceToDepth: a channel appears once for each place of a block."""
    ids = op.axis(0, 1)
    if ids is None or op.rank(0) != 4:
        return None
    return [op.made({0: op.axis(0, 0), 1: np.tile(ids, op.integer("blocksize", 1) ** 2)}, rank=4)]


def shape(op: Operation) -> Layouts:
    """Shape: its numbers count axes; who reads them must say what for."""
    rank = op.rank(0)
    start, end, _ = slice(op.integer("start", 0), op.integer("end", rank)).indices(rank)
    layout = passed(op, set())
    op.ledger.sizes[op.node.outputs[0]] = tuple(
        Size(axis=axis if op.ledger.atoms.is_live(axis) else None) for axis in layout[start:end]
    )
    return [op.made({}, rank=1)]
