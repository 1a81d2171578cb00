"""What Reshape and its kin promise: where the channels of a tensor lie after its axes were merged or split.

Called by ``links``. Both shapes are laid side by side and cut into the smallest segments of equal size, from the right and then from the left, which is how the elements
lie in memory. A merged axis holds each channel several times over (one channel of a flattened map is many columns of the next layer); a split
axis is cut along one of its parts, so that a projection split into heads and places is cut by whole heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from edgeopt.graph.atoms import Axis, Layout
from edgeopt.graph.links_layers import Layouts
from edgeopt.graph.links_ledger import Operation, Size

_FEW = 3
"""An axis of so few parts is no choice of heads: query, key and value, or the two halves of a channel shuffle."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Axes before and after that hold the same elements."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def reshape(op: Operation) -> Layouts:
    """Reshape with any target; the lengths that came out when the model ran say what it means."""
    after = op.ledger.lengths(op.node.outputs[0])
    if after is None or not op.has(1):
        return None
    layout = _linked(op, after)
    sizes = op.sizes(1)
    if sizes is None or len(sizes) != len(layout):
        for axis in layout:
            op.freeze(axis, "has a computed shape that is not understood")
        return [layout]
    copies, inferred = not op.integer("allowzero", 0), any(size.number == -1 for size in sizes)
    for entry, (size, axis) in enumerate(zip(sizes, layout, strict=True)):
        source = op.layout(0)[entry] if copies and size.number == 0 and entry < op.rank(0) else None
        known = Size(axis=source) if source is not None else size
        if known.number is None and not _counts(known, axis) and not inferred and op.ledger.atoms.is_live(axis):
            # a number that is computed with (the batch times the heads) is left to the runtime to work out
            op.rewrite("inferred", axis, position=1, entry=entry)
            inferred = True
        else:
            follow_size(op, known, axis, entry=entry)
    return [layout]


def _counts(size: Size, axis: Axis) -> bool:
    """True where the number is the length of this very axis, and shrinks with it."""
    return axis is not None and size.axis is not None and np.array_equal(axis, size.axis)


def follow_size(op: Operation, size: Size, axis: Axis, *, entry: int, position: int = 1) -> None:
    """See to it that one number of a target stays true when ``axis`` is cut."""
    atoms = op.ledger.atoms
    if size.number is not None:
        if size.number > 0 and atoms.is_live(axis):
            op.rewrite("target", axis, position=position, entry=entry)
        return
    if not _counts(size, axis):
        op.freeze(axis, "computes the length of it")
        op.freeze(size.axis, "uses its length for something else")


def flatten(op: Operation) -> Layouts:
    """Flatten into a matrix: nothing to rewrite."""
    after = op.ledger.lengths(op.node.outputs[0])
    if after is None:
        axis = op.integer("axis", 1)
        axis = axis + op.rank(0) if axis < 0 else axis
        after = [_size(op.lengths(0)[:axis]), _size(op.lengths(0)[axis:])]
    return [_linked(op, after)]


def _size(lengths: Sequence[int | None]) -> int | None:
    known = [length for length in lengths if length is not None]
    return prod(known) if len(known) == len(lengths) else None


def squeeze(op: Operation) -> Layouts:
    """Squeeze with given axes; without, a channel axis cut down to one would vanish."""
    axes, rank = _axes(op), op.rank(0)
    if axes is None or not rank:
        return None
    gone = {axis % rank for axis in axes}
    return [tuple(op.axis(0, axis) for axis in range(rank) if axis not in gone)]


def unsqueeze(op: Operation) -> Layouts:
    """Unsqueeze: new axes of one."""
    axes = _axes(op)
    if axes is None:
        return None
    rank = op.rank(0) + len(axes)
    new = {axis % rank for axis in axes}
    old = iter(range(op.rank(0)))
    one = op.ledger.atoms.frozen(1, f"{op.label} adds it")
    return [tuple(one if axis in new else op.axis(0, next(old)) for axis in range(rank))]


def _axes(op: Operation) -> list[int] | None:
    return op.integers("axes") or (op.numbers(1) if op.has(1) else None)


def _linked(op: Operation, after: Sequence[int | None]) -> Layout:
    found: dict[int, Axis] = {}
    for segment in segments(op.lengths(0), after):
        found.update(_across(op, segment, after))
    rest = f"{op.label} mixes it with its neighbours"
    return tuple(
        found[axis] if axis in found else op.ledger.atoms.frozen(length, rest) for axis, length in enumerate(after)
    )


def _across(op: Operation, segment: Segment, after: Sequence[int | None]) -> dict[int, Axis]:
    """The atoms of one segment's axes afterwards; those not named are frozen."""
    if len(segment.before) == len(segment.after) == 1:
        return {segment.after[0]: op.axis(0, segment.before[0])}
    lengths = op.lengths(0)
    before = [axis for axis in segment.before if lengths[axis] != 1]
    here = [axis for axis in segment.after if after[axis] != 1]
    if any(lengths[axis] is None for axis in before) or any(after[axis] is None for axis in here):
        return {}
    if len(before) == 1:
        return _split(op, before[0], {axis: int(after[axis] or 0) for axis in here})
    if len(here) == 1:
        return {here[0]: _merged(op, before)}
    if not before or not here:
        return {}
    return _regrouped(op, before, {axis: int(after[axis] or 0) for axis in here})


def _merged(op: Operation, axes: list[int]) -> Axis:
    """Several axes as one: the first that may be cut at all stays cuttable."""
    atoms = op.ledger.atoms
    chosen = next((axis for axis in axes if atoms.is_live(op.layout(0)[axis])), axes[0])
    lengths = [length or 0 for length in op.lengths(0)]
    inner = prod(lengths[axis] for axis in axes if axis > chosen)
    outer = prod(lengths[axis] for axis in axes if axis < chosen)
    axis = op.axis(0, chosen)
    return None if axis is None else np.tile(np.repeat(axis, inner), outer)


def _regrouped(op: Operation, axes: list[int], after: dict[int, int]) -> dict[int, Axis]:
    """The innermost axis made longer by a part of its neighbour, or shorter, with a part that joins the neighbour.

    Frames side by side are the one, the heads of a batch folded into its samples the other, and back.
    """
    outer, inner = list(after)[-2:]
    last = op.axis(0, axes[-1])
    if last is None:
        return {}
    if after[inner] % len(last) == 0:
        return {inner: _joined(op, axes, after[inner] // len(last))}
    times = len(last) // after[inner]
    if len(last) % after[inner] or after[outer] % times:
        op.freeze(last, "mixes it with its neighbours")
        return {}
    grid = last.reshape(times, -1)
    if times > _FEW:
        op.ledger.atoms.tie(grid)
        return {outer: np.tile(grid[:, 0], after[outer] // times)}
    op.ledger.atoms.tie(grid.T)
    return {inner: grid[0]}


def _joined(op: Operation, axes: list[int], times: int) -> Axis:
    """The innermost axis behind ``times`` indices of its neighbour; where only the neighbour can be cut, that one's channels."""
    atoms, last, beside = op.ledger.atoms, op.layout(0)[axes[-1]], op.layout(0)[axes[-2]]
    if last is None:
        return None
    if atoms.is_live(last) or beside is None or not atoms.is_live(beside) or len(beside) % times:
        return np.tile(last, times)
    parts = np.asarray(op.axis(0, axes[-2])).reshape(-1, times)
    atoms.tie(parts.T)
    return np.repeat(parts[0], len(last))


def _split(op: Operation, axis: int, parts: dict[int, int]) -> dict[int, Axis]:
    """One axis as several: one part is what is cut, and the others go along whole."""
    ids = op.axis(0, axis)
    if ids is None:
        return {}
    names, lengths = list(parts), list(parts.values())
    place = next((place for place, length in enumerate(lengths) if length > _FEW), 0)
    grid = np.moveaxis(ids.reshape(lengths), place, 0).reshape(lengths[place], -1)
    if op.ledger.atoms.is_live(ids):
        op.ledger.atoms.tie(grid)
    return {names[place]: grid[:, 0]}


def segments(before: Sequence[int | None], after: Sequence[int | None]) -> list[Segment]:
    """Cut two shapes of the same number of elements into the smallest pieces that hold the same elements.

    >>> segments([2, 6, 4], [2, 2, 3, 4])
    [Segment(before=(2,), after=(3,)), Segment(before=(1,), after=(1, 2)), Segment(before=(0,), after=(0,))]
    """
    right = _from_the_right(before, after)
    used_before, used_after = (sum(len(getattr(s, side)) for s in right) for side in ("before", "after"))
    head_before, head_after = before[: len(before) - used_before], after[: len(after) - used_after]
    mirrored = _from_the_right(head_before[::-1], head_after[::-1])
    left = [
        Segment(
            tuple(sorted(len(head_before) - 1 - axis for axis in piece.before)),
            tuple(sorted(len(head_after) - 1 - axis for axis in piece.after)),
        )
        for piece in mirrored
    ]
    # both walks number from an end; what a None keeps apart from both is one piece
    taken_before = {axis for piece in left for axis in piece.before}
    taken_after = {axis for piece in left for axis in piece.after}
    middle = Segment(
        tuple(axis for axis in range(len(head_before)) if axis not in taken_before),
        tuple(axis for axis in range(len(head_after)) if axis not in taken_after),
    )
    return [*right, *([middle] if middle.before or middle.after else []), *left]


def _from_the_right(before: Sequence[int | None], after: Sequence[int | None]) -> list[Segment]:
    found, one, other = [], len(before), len(after)
    while one and other:
        start, stop = one, other
        sizes = [before[one - 1], after[other - 1]]
        one, other = one - 1, other - 1
        while sizes[0] is not None and sizes[1] is not None and sizes[0] != sizes[1]:
            side = 0 if sizes[0] < sizes[1] else 1
            left = one if side == 0 else other
            factor = (before if side == 0 else after)[left - 1] if left else None
            size = sizes[side]
            sizes[side] = None if factor is None or size is None else size * factor
            one, other = one - (side == 0), other - (side == 1)
        if None in sizes or not sizes[0]:
            break
        found.append(Segment(tuple(range(one, start)), tuple(range(other, stop))))
    return found
