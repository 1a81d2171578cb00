"""What operators promise that treat each channel alone, and which axes the others mix.

Called by ``links``. An elementwise operator, an activation or a pooling maps index to index; a softmax, a mean or a normalization needs all of the axes it runs over, and
those freeze. Constants of an elementwise operator follow the axis that they are as long as.
"""

from __future__ import annotations

from edgeopt.graph.atoms import Axis, Layout
from edgeopt.graph.links_layers import Layouts, broadcast
from edgeopt.graph.links_ledger import Operation

ELEMENTWISE = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Max",
        "Min",
        "Sum",
        "Mean",
        "Mod",
        "Where",
        "PRelu",
        "Equal",
        "Greater",
        "Less",
        "GreaterOrEqual",
        "LessOrEqual",
        "And",
        "Or",
        "Xor",
    ]
)
UNARY = frozenset(
    [
        "Abs",
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "BitwiseNot",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "FastGelu",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Log",
        "Mish",
        "Neg",
        "Not",
        "QuickGelu",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Shrink",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Swish",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
    ]
)
POOLING = frozenset(["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "MaxPool", "AveragePool", "LpPool"])


def elementwise(op: Operation) -> Layouts:
    """Any number of inputs under broadcasting."""
    ranks = {position: op.rank(position) for position, value in enumerate(op.node.inputs) if value is not None}
    merged = broadcast(op, ranks, places=range(max(ranks.values())))
    for position, own in ranks.items():
        if op.is_constant(position):
            for axis in range(own):
                op.mark(op.axis(position, axis), "follower")
    return [tuple(merged)]


def unary(op: Operation) -> Layouts:
    """The first input's elements one by one; the others are settings."""
    if len(op.node.inputs) > 1 and op.node.op_type == "FastGelu":
        return elementwise(op)
    return [passed(op, set()) for _ in op.node.outputs]


def passed(op: Operation, mixed: set[int]) -> Layout:
    """The first input's layout, with the axes in ``mixed`` frozen."""
    rank = op.rank(0)
    for axis in mixed:
        op.freeze(op.layout(0)[axis % rank], "mixes all of it")
    return tuple(op.axis(0, axis) for axis in range(rank))


def pooling(op: Operation) -> Layouts:
    """Channels stay what they are; places are pooled."""
    if len(op.node.outputs) > 1 or op.rank(0) < 3:
        return None
    places: dict[int, Axis] = {}
    if op.node.op_type.startswith("Global"):
        places = {axis: op.ledger.atoms.frozen(1, f"{op.label} pools it") for axis in range(2, op.rank(0))}
    return [op.made({0: op.axis(0, 0), 1: op.axis(0, 1), **places}, rank=op.rank(0))]


def softmax(op: Operation) -> Layouts:
    """Softmax and its kin: before opset 13 over everything from ``axis`` on."""
    rank = op.rank(0)
    if not rank:
        return None
    old = op.ledger.opset < 13
    axis = op.integer("axis", 1 if old else -1) % rank
    return [passed(op, set(range(axis, rank)) if old else {axis})]


def normalization(op: Operation) -> Layouts:
    """LayerNormalization and RMSNormalization: everything from ``axis`` on is mixed, the axes before it are not."""
    rank = op.rank(0)
    if not rank:
        return None
    layout = passed(op, set(range(op.integer("axis", -1) % rank, rank)))
    return [layout, *(op.made({}, output=index) for index in range(1, len(op.node.outputs)))]


def skip_normalization(op: Operation) -> Layouts:
    """SkipLayerNormalization: the last axis is mixed; its outputs besides the first are the sum, or statistics."""
    if op.rank(0) < 2:
        return None
    layout = passed(op, {op.rank(0) - 1})
    return [layout, *(op.made({}, output=index) for index in range(1, len(op.node.outputs)))]


def running(op: Operation) -> Layouts:
    """CumSum: one axis is mixed."""
    axes = op.numbers(1)
    return [passed(op, {axes[0]})] if axes and op.rank(0) else None


def reduce(op: Operation) -> Layouts:
    """Reductions: the axes that go are mixed, the others stay."""
    rank = op.rank(0)
    axes = op.integers("axes") or (op.numbers(1) if op.has(1) else None)
    if not axes or not rank:
        return None
    gone = {axis % rank for axis in axes}
    return [_without(op, gone, keep=bool(op.integer("keepdims", 1)))]


def arg(op: Operation) -> Layouts:
    """ArgMax and ArgMin over one axis."""
    if not op.rank(0):
        return None
    return [_without(op, {op.integer("axis", 0) % op.rank(0)}, keep=bool(op.integer("keepdims", 1)))]


def _without(op: Operation, gone: set[int], *, keep: bool) -> Layout:
    layout = []
    for axis in range(op.rank(0)):
        if axis not in gone:
            layout.append(op.axis(0, axis))
        elif keep:
            layout.append(op.ledger.atoms.frozen(1, f"{op.label} reduces it"))
    return tuple(layout)


def quantization(op: Operation) -> Layouts:
    """QuantizeLinear and DequantizeLinear: one scale, or one for each index of ``axis``."""
    layout = passed(op, set())
    if op.rank(1) > 1 or not layout:
        return None  # by block
    axis = op.integer("axis", 1)
    for position in (1, 2):
        if op.has(position) and op.rank(position) == 1 and op.lengths(position) != [1]:
            op.unite(layout[axis % len(layout)], op.axis(position, 0))
            op.mark(op.axis(position, 0), "follower")
    return [layout]
