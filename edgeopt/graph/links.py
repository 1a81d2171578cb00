"""The walk: every node of a graph, in order, links the atoms of its inputs with those of its outputs.

Stands between ``atoms`` and ``groups``. In comes a graph and the shapes of its values, out goes a :class:`~edgeopt.graph.links_ledger.Ledger` in which sets of united atoms are what can
be cut. What an operator does is a function in one of the ``links_*`` modules, found in the table here; an operator without one freezes what it touches, and so
do bodies of control flow, operators of other domains, and results that do not have the length that was observed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

import onnx_ir as ir

from edgeopt.graph import links_fused as fused
from edgeopt.graph import links_layers as layers
from edgeopt.graph import links_layout as moving
from edgeopt.graph import links_pointwise as pointwise
from edgeopt.graph import links_reshape as reshaping
from edgeopt.graph import links_sizes as counting
from edgeopt.graph.atoms import Layout
from edgeopt.graph.links_ledger import Ledger, Operation, Shapes, is_constant

Link: TypeAlias = Callable[[Operation], layers.Layouts]

_STANDARD: dict[str, Link] = {
    **dict.fromkeys(pointwise.ELEMENTWISE, pointwise.elementwise),
    **dict.fromkeys(pointwise.UNARY, pointwise.unary),
    **dict.fromkeys(pointwise.POOLING, pointwise.pooling),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), pointwise.softmax),
    **dict.fromkeys(
        ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), pointwise.normalization
    ),
    **dict.fromkeys(("ArgMax", "ArgMin"), pointwise.arg),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), pointwise.quantization),
    **dict.fromkeys(("Resize", "Upsample"), moving.resize),
    "CumSum": pointwise.running,
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "Gemm": layers.gemm,
    "MatMul": layers.matmul,
    "BatchNormalization": layers.batch_normalization,
    "InstanceNormalization": layers.instance_normalization,
    "LSTM": layers.lstm,
    "GRU": layers.gru,
    "RNN": layers.rnn,
    "Reshape": reshaping.reshape,
    "Flatten": reshaping.flatten,
    "Squeeze": reshaping.squeeze,
    "Unsqueeze": reshaping.unsqueeze,
    "Transpose": moving.transpose,
    "Concat": moving.concat,
    "Split": moving.split,
    "Slice": moving.slice_,
    "Pad": moving.pad,
    "Expand": moving.expand,
    "ConstantOfShape": moving.constant_of_shape,
    "Tile": moving.tile,
    "Gather": moving.gather,
    "DepthToSpace": moving.depth_to_space,
    "SpaceToDepth": moving.space_to_depth,
    "Shape": moving.shape,
}
_RUNTIME: dict[str, Link] = {
    "Gelu": pointwise.unary,
    "QuickGelu": pointwise.unary,
    "FastGelu": pointwise.unary,
    "BiasGelu": pointwise.elementwise,
    "SkipLayerNormalization": pointwise.skip_normalization,
    "SkipSimplifiedLayerNormalization": pointwise.skip_normalization,
    "Attention": fused.attention,
    "MultiHeadAttention": fused.multi_head_attention,
}
_REDUCTIONS = frozenset(
    [
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
    ]
)
_ZERO_STAYS_ZERO = frozenset(
    [
        "Identity",
        "Transpose",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Cast",
        "Concat",
        "Split",
        "Slice",
        "Mul",
        "DequantizeLinear",
    ]
)
"""What may stand between a constant and the layer that reads it: zeroing the constant must zero what the layer sees."""

_MAKES_ITS_OWN = ("Expand", "ConstantOfShape")
"""Constants come in, but what comes out cannot be zeroed by zeroing them: it counts as an activation."""


def walk(model: ir.Model, shapes: Shapes) -> Ledger:
    """Link all nodes of ``model``; ``shapes`` are those of its main graph's values."""
    names = Counter(
        str(value.name)
        for graph in model.graphs()
        for value in (*graph.initializers.values(), *(value for node in graph for value in node.outputs))
    )
    ambiguous = frozenset(name for name, times in names.items() if times > 1)
    ledger = Ledger(model.graph, shapes, model.opset_imports.get("", 1), ambiguous)
    _walk(model.graph, ledger)
    return ledger


def _walk(graph: ir.Graph, ledger: Ledger) -> None:
    for node in graph:
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
            _visit(Operation(node, ledger))
    for value in graph.outputs:
        what = "the model" if graph is ledger.graph else f"the body {graph.name!r}"
        ledger.freeze(value, f"it reaches {value.name!r}, which {what} gives out")


def _visit(op: Operation) -> None:
    for attribute in op.node.attributes.values():
        for body in _bodies(attribute):
            _enter(op, body)
    link = _link(op)
    made = link(op) if link is not None else None
    if made is None or not _as_observed(op, made):
        op.forget()
        made = [op.ledger.frozen(value, f"{op.label} makes it") for value in op.node.outputs]
        op.close("is not understood here" if link is None else "is used in a way that is not understood here")
    else:
        op.close("needs all of it")
    for value, layout in zip(op.node.outputs, made, strict=False):
        op.ledger.layouts[value] = layout
    given = [value for value in op.node.inputs if value is not None]
    if given and op.node.op_type not in _MAKES_ITS_OWN and all(value in op.ledger.derived for value in given):
        op.ledger.derived.update(op.node.outputs)


def _enter(op: Operation, body: ir.Graph) -> None:
    """Walk a body of control flow on its own: what it takes from outside stays, its own layers may shrink."""
    own = {value for node in body for value in node.outputs}
    for node in body:
        for value in node.inputs:
            if value is None or value in own or value.graph is body:
                continue
            if not is_constant(value):
                op.ledger.freeze(value, f"the body {body.name!r} of {op.label} reads it")
    _walk(body, op.ledger)


def _link(op: Operation) -> Link | None:
    """The function that knows this node; None where nobody does."""
    node, ledger = op.node, op.ledger
    given = [value for value in node.inputs if value is not None]
    if not given or any(ledger.layout(value) is None for value in given):
        return None
    if any(value in ledger.sizes for value in given) and counting.follow(op):
        return counting.layouts
    if node.domain == "com.microsoft":
        return _RUNTIME.get(node.op_type)
    if node.domain not in ("", "ai.onnx"):
        return None
    if all(value in ledger.derived for value in given) and not _keeps_zero(op):
        return None
    return pointwise.reduce if node.op_type in _REDUCTIONS else _STANDARD.get(node.op_type)


def _keeps_zero(op: Operation) -> bool:
    shifted = op.node.op_type == "DequantizeLinear" and op.has(2) and op.numbers(2) != [0] * len(op.numbers(2) or [1])
    return op.node.op_type in (*_ZERO_STAYS_ZERO, *_MAKES_ITS_OWN) and not shifted


def _bodies(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []


def _as_observed(op: Operation, made: Sequence[Layout | None]) -> bool:
    """Whether what was derived has the shapes that are known; where not, something was misunderstood."""
    for value, layout in zip(op.node.outputs, made, strict=False):
        known = op.ledger.lengths(value)
        if layout is None or known is None:
            continue
        if len(known) != len(layout):
            return False
        pairs = zip(known, layout, strict=True)
        if any(length is not None and axis is not None and len(axis) != length for length, axis in pairs):
            return False
    return True
