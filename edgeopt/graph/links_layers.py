"""What layers with weights promise: rows of the weight make channels, columns read them.

Called by ``links`` with one :class:`~edgeopt.graph.links_ledger.Operation` each; every function returns the layouts of the node's outputs and leaves
alone what it does not understand, which freezes it. Contraction with a constant is what makes cutting possible at all: without the column that
reads it, nobody can tell a channel from zero. A product of two activations contracts as well, but has no column to take away, so that axis stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from edgeopt.graph.atoms import Axis, Ids, Layout
from edgeopt.graph.links_ledger import Operation

Layouts: TypeAlias = Sequence[Layout | None] | None
"""One layout an output; None gives up on the node."""


def conv(op: Operation) -> Layouts:
    """Conv: weight [out, in / group, ...]."""
    if not op.is_constant(1) or op.rank(0) < 3:
        return None
    if op.integer("group", 1) != 1:
        return _grouped(op, rows=0)
    op.unite(op.axis(0, 1), op.axis(1, 1))
    op.mark(op.axis(1, 1), "consumer")
    return _convolved(op, op.axis(1, 0))


def conv_transpose(op: Operation) -> Layouts:
    """ConvTranspose: weight [in, out / group, ...]."""
    if not op.is_constant(1) or op.rank(0) < 3:
        return None
    if op.integer("group", 1) != 1:
        return _grouped(op, rows=1)
    op.unite(op.axis(0, 1), op.axis(1, 0))
    op.mark(op.axis(1, 0), "consumer")
    return _convolved(op, op.axis(1, 1))


def _convolved(op: Operation, out: Axis) -> Layouts:
    op.mark(out, "producer")
    op.kind(out, "channels")
    _add_bias(op, 2, out)
    return [op.made({0: op.axis(0, 0), 1: out}, rank=op.rank(0))]


def _add_bias(op: Operation, position: int, out: Axis) -> None:
    if op.has(position):
        bias = op.axis(position, -1)
        if bias is None or len(bias) > 1:
            op.unite(out, bias)
            op.mark(bias, "follower")


def _grouped(op: Operation, *, rows: int) -> Layouts:
    """Whole groups go, or one channel of every group: whichever leaves more to choose from, the latter where the inputs stay."""
    groups, data, weight = op.integer("group", 1), op.axis(0, 1), op.lengths(1)
    if data is None or weight[0] is None or weight[1] is None or len(data) % groups:
        return None
    wide = len(data) // groups
    deep = weight[0] // groups if rows == 0 else weight[1]
    if groups < min(wide, deep) or (deep > 1 and not op.ledger.atoms.is_live(data)):
        return _evenly(op, data.reshape(groups, wide), deep, rows=rows)
    own = op.axis(1, 0)
    if own is None:
        return None
    lines = own.reshape(groups, -1)
    op.ledger.atoms.tie(data.reshape(groups, wide))
    op.ledger.atoms.tie(lines)
    op.unite(lines[:, 0], data.reshape(groups, wide)[:, 0])
    op.mark(own, "follower" if wide == deep == 1 else "producer")
    op.rewrite("group", lines[:, 0])
    # a transposed weight holds its rows by input channel: the outputs of a group are named after its first input
    out = own if rows == 0 else np.repeat(lines[:, 0], deep)
    _add_bias(op, 2, out)
    return [op.made({0: op.axis(0, 0), 1: out}, rank=op.rank(0))]


def _evenly(op: Operation, data: Ids, deep: int, *, rows: int) -> Layouts:
    """The same places of every group, so that the number of groups stays."""
    op.ledger.atoms.tie(data.T)
    long, short = op.axis(1, 0), op.axis(1, 1)
    if long is None or short is None:
        return None
    lines = long.reshape(len(data), -1)
    op.ledger.atoms.tie(lines.T)
    reads, makes = (short, lines[0]) if rows == 0 else (lines[0], short)
    op.unite(reads, data[0])
    op.mark(short if rows == 0 else long, "consumer")
    op.mark(long if rows == 0 else short, "producer")
    out = long if rows == 0 else np.tile(makes, len(data))
    op.kind(out, "channels")
    _add_bias(op, 2, out)
    if len(out) != len(data) * deep:
        return None
    return [op.made({0: op.axis(0, 0), 1: out}, rank=op.rank(0))]


def gemm(op: Operation) -> Layouts:
    """Gemm on matrices, either side transposed."""
    flips = op.integer("transA", 0), op.integer("transB", 0)
    rows, columns = _product(op, ((1, 0) if flips[0] else (0, 1)), ((1, 0) if flips[1] else (0, 1)))
    if op.has(2):
        for place, axis in enumerate((columns, rows)[: op.rank(2)]):
            if op.lengths(2)[-1 - place] != 1:
                bias = op.axis(2, -1 - place)
                op.unite(axis, bias)
                op.mark(bias, "follower")
    return [(rows, columns)]


def matmul(op: Operation) -> Layouts:
    """MatMul with one constant side, or of two activations (attention), whose batch axes may be heads."""
    one, other = op.rank(0), op.rank(1)
    if one < 2 or other < 2:
        return None
    rows, columns = _product(op, (one - 2, one - 1), (other - 2, other - 1))
    batch = broadcast(op, {0: one, 1: other}, places=range(2, max(one, other)))
    if not op.is_constant(0) and not op.is_constant(1):
        for axis in batch:
            op.kind(axis, "heads")
    return [(*batch, rows, columns)]


def _product(op: Operation, one: tuple[int, int], other: tuple[int, int]) -> tuple[Axis, Axis]:
    """Link a matrix product whose (row, column) axes are given; returns the rows and columns of what comes out."""
    for weight, axis, data, met in ((1, other[0], 0, one[1]), (0, one[1], 1, other[0])):
        if op.is_constant(weight) and not op.is_constant(data):
            op.unite(op.axis(weight, axis), op.axis(data, met))
            op.mark(op.axis(weight, axis), "consumer")
    rows, columns = op.axis(0, one[0]), op.axis(1, other[1])
    for position, made in ((0, rows), (1, columns)):
        if op.is_constant(position):
            op.mark(made, "producer")
            op.kind(made, "neurons")
    return rows, columns


def broadcast(op: Operation, ranks: dict[int, int], *, places: range) -> list[Axis]:
    """Unite the inputs' axes under numpy's broadcasting; ``places`` count from the right, and the result from the left."""
    merged: list[Axis] = []
    for place in reversed(places):
        axes = [op.axis(position, own - 1 - place) for position, own in ranks.items() if own > place]
        long = [axis for axis in axes if axis is None or len(axis) > 1] or axes[:1]
        for axis in axes:
            if axis is not None and len(axis) == 1:
                op.freeze(axis, "stretches it over others")
        for axis in long[1:]:
            op.unite(long[0], axis)
        merged.append(next((axis for axis in long if axis is not None), None))
    return merged


def batch_normalization(op: Operation) -> Layouts:
    """Scale, bias, mean and variance of a channel go with it."""
    if op.integer("training_mode", 0) or len(op.node.outputs) > 1 or op.rank(0) < 2:
        return None
    return _per_channel(op, range(1, 5))


def instance_normalization(op: Operation) -> Layouts:
    """Normalizes each channel over its own places."""
    return _per_channel(op, range(1, 3)) if op.rank(0) > 2 else None


def _per_channel(op: Operation, followers: range) -> Layouts:
    channels = op.axis(0, 1)
    for position in followers:
        op.unite(channels, op.axis(position, 0))
        op.mark(op.axis(position, 0), "follower")
    return [tuple(op.axis(0, axis) for axis in range(op.rank(0)))]


def lstm(op: Operation) -> Layouts:
    """LSTM: gates iofc, so unit h owns rows h, H + h, 2H + h and 3H + h of W and R."""
    return _recurrent(op, gates=4, peepholes=7)


def gru(op: Operation) -> Layouts:
    """GRU: gates zrh."""
    return _recurrent(op, gates=3, peepholes=None)


def rnn(op: Operation) -> Layouts:
    """A plain recurrent layer: one gate."""
    return _recurrent(op, gates=1, peepholes=None)


def _recurrent(op: Operation, *, gates: int, peepholes: int | None) -> Layouts:
    """W [D, gates * H, I], R [D, gates * H, H], B [D, 2 * gates * H], states [D, N, H], P [D, 3 * H]."""
    if op.integer("layout", 0) or not (op.is_constant(1) and op.is_constant(2)):
        return None
    op.unite(op.axis(0, 2), op.axis(1, 2))
    op.mark(op.axis(1, 2), "consumer")
    units = op.axis(2, 2)
    if units is None:
        return None
    op.mark(units, "consumer")
    op.kind(units, "hidden")
    packed = [(1, gates), (2, gates), (3, 2 * gates), *([(peepholes, 3)] if peepholes else [])]
    for position, times in packed:
        if op.has(position):
            op.unite(op.axis(position, 1), np.tile(units, times))
            op.mark(op.axis(position, 1), "producer" if position < 3 else "follower")
    for position in (5, 6) if gates == 4 else (5,):
        if op.has(position):
            op.unite(op.axis(position, 2), units)
            op.mark(op.axis(position, 2), "follower")
            op.axis(position, 1)
    op.rewrite("hidden_size", units)
    batch = op.axis(0, 1)
    states = [op.made({1: batch, 2: units}, output=index, rank=3) for index in range(1, len(op.node.outputs))]
    return [op.made({0: op.axis(0, 0), 2: batch, 3: units}, rank=4), *states]
