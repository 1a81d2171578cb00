"""Gelu in the order that runtimes know: ``(x * (1 + erf(x / sqrt 2))) * 0.5``.

Stands under clean-up. PyTorch's current exporter writes ``x * ((1 + erf(x / sqrt 2)) * 0.5)``, five sweeps over a transformer's widest tensor, and
ONNX Runtime's fusion does not match that. A half is a power of two, so the result is the same to the last bit.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.graph import tensors

_STANDARD = ("", "ai.onnx")


def order_gelu(model: ir.Model) -> int:
    """Let the half come last wherever it comes first, in place; returns how often it did."""
    ordered = 0
    for graph in model.graphs():
        for node in graph:
            ordered += node.op_type == "Mul" and node.domain in _STANDARD and _order(node)
    return ordered


def _order(last: ir.Node) -> bool:
    """Whether ``last`` multiplied x by the halved share of it, and now does so in the other order."""
    for place in (0, 1):
        x, halved = last.inputs[1 - place], _sole_producer(last.inputs[place], "Mul")
        if halved is None or x is None:
            continue
        for inner in (0, 1):
            half, share = halved.inputs[1 - inner], _sole_producer(halved.inputs[inner], "Add")
            if share is None or tensors.scalar(half) != 0.5 or not _is_share_of(share, x):
                continue
            halved.replace_input_with(1 - inner, x)
            last.replace_input_with(1 - place, half)
            return True
    return False


def _is_share_of(adder: ir.Node, x: ir.Value) -> bool:
    """Whether ``adder`` is ``1 + erf(x / something)``."""
    for place in (0, 1):
        error = _sole_producer(adder.inputs[place], "Erf")
        scaled = _sole_producer(error.inputs[0], "Div", "Mul") if error is not None else None
        if scaled is not None and tensors.scalar(adder.inputs[1 - place]) == 1.0:
            return x in scaled.inputs
    return False


def _sole_producer(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """What made ``value``, where it is one of ``operators`` and nobody else reads it."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.domain not in _STANDARD or node.op_type not in operators:
        return None
    return node if len(value.uses()) == 1 and not value.is_graph_output() else None
