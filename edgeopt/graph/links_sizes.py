"""Arithmetic on shapes: which number of a computed shape counts which axis.

Called by ``links`` for nodes that read what a Shape node made. Exporters ask a tensor for its shape, pick numbers out of it and put a Reshape's target together; as long as
the numbers are only moved about, it is known what each counts. A number that is computed with (or lands anywhere but in a target) freezes its axis.
"""

from __future__ import annotations

from collections.abc import Callable

from edgeopt.graph.links_layers import Layouts
from edgeopt.graph.links_ledger import Operation, Size


def follow(op: Operation) -> bool:
    """Carry the sizes through ``op`` where it only moves them; False where it does something else."""
    mover = _MOVERS.get(op.node.op_type)
    if mover is None or op.node.domain not in ("", "ai.onnx") or not op.node.inputs:
        return False
    moved = mover(op)
    if moved is None:
        op.forget()
        return False
    op.ledger.sizes[op.node.outputs[0]] = moved
    return True


def layouts(op: Operation) -> Layouts:
    """What is said of the outputs of such a node: nothing may go."""
    return [op.made({}) for _ in op.node.outputs]


def _same(op: Operation) -> tuple[Size, ...] | None:
    return op.sizes(0)


def _concat(op: Operation) -> tuple[Size, ...] | None:
    parts = [op.sizes(position) for position in range(len(op.node.inputs))]
    return tuple(size for part in parts if part for size in part) if all(parts) else None


def _gather(op: Operation) -> tuple[Size, ...] | None:
    sizes, indices = op.sizes(0), op.numbers(1)
    if sizes is None or indices is None or any(not -len(sizes) <= index < len(sizes) for index in indices):
        return None
    return tuple(sizes[index] for index in indices)


def _slice(op: Operation) -> tuple[Size, ...] | None:
    sizes, starts, ends = op.sizes(0), op.numbers(1), op.numbers(2)
    steps = op.numbers(4) if op.has(4) else [1]
    if sizes is None or not (starts and ends and steps):
        return None
    return sizes[starts[0] : ends[0] : steps[0]]


_MOVERS: dict[str, Callable[[Operation], tuple[Size, ...] | None]] = {
    "Identity": _same,
    "Cast": _same,
    "Unsqueeze": _same,
    "Squeeze": _same,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
}
