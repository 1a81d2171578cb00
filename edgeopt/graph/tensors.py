"""What is constant in a graph: initializers, Constant nodes, and either behind Identity.

Passes ask here instead of looking at initializers, since exporters disagree on where weights live: PaddlePaddle keeps
all of them in Constant nodes, PyTorch in initializers. A constant that a caller may override (an initializer that is
also a graph input) is not constant.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_IDENTITY_LIMIT = 64
"""Longest chain of Identity nodes that is followed; longer ones are not seen in the wild and a cycle must end."""


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor that ``value`` always holds, or None where it depends on the input (or is missing)."""
    for _ in range(_IDENTITY_LIMIT):
        if value is None or value.is_graph_input():
            return None
        if value.is_initializer():
            return value.const_value
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Constant":
            return _constant_node(node)
        if node.op_type != "Identity":
            return None
        value = node.inputs[0]
    return None


def array(value: ir.Value | None) -> NDArray[Any] | None:
    """The constant behind ``value`` as a read-only array, or None where it is not constant.

    External weights are memory-mapped, not read. Types that numpy lacks (bfloat16, int4 ...) come as ml_dtypes' own.
    """
    tensor = constant(value)
    if tensor is None:
        return None
    data = np.asarray(tensor.numpy()).view()
    data.flags.writeable = False
    return data


def scalar(value: ir.Value | None) -> float | None:
    """The number behind a constant of exactly one element, or None."""
    data = array(value)
    if data is None or data.size != 1 or data.dtype.kind not in "fiub":
        return None
    return float(data.reshape(-1)[0])


def is_shared(value: ir.Value) -> bool:
    """True where more than one place reads ``value`` (a second node, a second input, or the graph's outputs)."""
    return len(value.uses()) + value.is_graph_output() > 1


def parameter_bytes(model: ir.Model) -> int:
    """Bytes of all constants, subgraphs and Constant nodes included; a shared initializer counts once."""
    total = 0
    for graph in model.graphs():
        total += sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None)
        for node in graph:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                tensor = _constant_node(node)
                total += tensor.nbytes if tensor is not None else 0
    return total


def _constant_node(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a Constant node; None for sparse constants and for attributes bound to a function's argument."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            return attribute.as_tensor()
        if name in ("value_float", "value_floats"):
            return ir.tensor(np.asarray(attribute.value, dtype=np.float32))
        if name in ("value_int", "value_ints"):
            return ir.tensor(np.asarray(attribute.value, dtype=np.int64))
    return None
