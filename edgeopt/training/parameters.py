"""Which constants of a graph are weights, and how trained ones go back under the names they had.

Stands beside ``training.replay``: in comes a model, out go its weights by name, and at the end a copy of the model with new
numbers in them. Nothing else of the model changes: no export, so operators, names, dynamic axes and metadata stay the user's.

A weight is a float constant that is read as one and as nothing else: as a layer's weight or bias, a normalization's scale or
shift, an embedding, or an operand of plain arithmetic. Running statistics, bounds, masks, grids and single numbers (gelu's
0.5, a hard swish's 6) are settings: training them would break what the graph means or what a runtime fuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.errors import PassFailed
from edgeopt.graph import edit, tensors

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_ROLES: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "Einsum": (0, 1),
    "PRelu": (1,),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "LSTM": (1, 2, 3, 7),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "com.microsoft::Attention": (1, 2),
    "com.microsoft::BiasGelu": (1,),
    "com.microsoft::FastGelu": (1,),
    "com.microsoft::FusedMatMul": (0, 1),
    "com.microsoft::SkipLayerNormalization": (2, 3, 4),
    "com.microsoft::SkipSimplifiedLayerNormalization": (2, 3),
}
"""The inputs at which an operator reads a weight, whatever it holds."""
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Sum"})
_MOVING = frozenset(
    {
        *("Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Cast", "Slice", "Split"),
        *("Expand", "Tile", "QuantizeLinear", "DequantizeLinear"),
    }
)
"""What they read at input 0 is a weight where what they give is read as one."""
_MEASURING = frozenset({"Shape", "Size"})
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_MASK = 1e4
"""A number this large in arithmetic hides something from a softmax; it teaches nothing."""


def constants(model: ir.Model) -> dict[str, ir.Value]:
    """Every initializer and Constant node's output by name, those of subgraphs included, in the graph's order.

    The branches of an If may use one name twice; the second is then called ``name#2``.
    """
    found: dict[str, ir.Value] = {}
    for value in _constants(model):
        name, number = str(value.name), 1
        while name in found:
            number += 1
            name = f"{value.name}#{number}"
        found[name] = value
    return found


def weights(model: ir.Model) -> dict[str, ir.Value]:
    """The constants that training may change."""
    return {name: value for name, value in constants(model).items() if _is_weight(value)}


def write_back(model: ir.Model, weights: Mapping[str, NDArray[Any]]) -> ir.Model:
    """A copy of ``model`` whose constants called as in ``weights`` hold these numbers, in the type and shape they had.

    What is unchanged keeps its very bytes. Raises PassFailed for a name or shape that the model does not have, and for
    numbers that are not finite in the constant's type.
    """
    own = edit.copy(model)
    homes = constants(own)
    if strangers := sorted(set(weights) - set(homes)):
        raise PassFailed(
            f"the model has no constant called {strangers[0]!r}", hint="Write back into the model that was replayed."
        )
    for name, data in weights.items():
        _write(homes[name], name, data)
    return own


def tensor_of(value: ir.Value) -> ir.TensorProtocol | None:
    """What an initializer holds, even one that a caller may override, or a Constant node's output."""
    return value.const_value if value.is_initializer() else tensors.constant(value)


def _constants(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from (value for value in graph.initializers.values() if value.const_value is not None)
        for node in graph:
            if (
                node.op_type == "Constant"
                and kind(node) == "Constant"
                and tensors.constant(node.outputs[0]) is not None
            ):
                yield node.outputs[0]


def kind(node: ir.Node) -> str:
    """``domain::type``, or the bare type for ai.onnx: what the operators' table and a signature call it."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


# ---------------------------------------------------------------- what a weight is
def _is_weight(value: ir.Value) -> bool:
    tensor = tensor_of(value)
    if tensor is None or tensor.dtype not in _FLOATS or tensor.size == 0 or len(tensor.shape) == 0:
        return False
    verdicts = set(_verdicts(value, tensor, set()))
    return True in verdicts and False not in verdicts


def _verdicts(value: ir.Value, tensor: ir.TensorProtocol, seen: set[ir.Value]) -> Iterator[bool | None]:
    """For every place that reads ``value``: whether it reads a weight there; None where it only looks at its shape."""
    if value in seen:
        return
    seen.add(value)
    if value.is_graph_output():
        yield False
    for node, index in value.uses():
        name = kind(node)
        if name in _MOVING and index == 0:
            for output in node.outputs:
                yield from _verdicts(output, tensor, seen)
        elif name == "Concat" and all(_is_moved_constant(other) for other in node.inputs):
            yield from _verdicts(node.outputs[0], tensor, seen)
        elif name in _MEASURING:
            yield None
        else:
            yield _reads_weight(node, index, name, tensor)


def _reads_weight(node: ir.Node, index: int, name: str, tensor: ir.TensorProtocol) -> bool:
    if name in _ROLES:
        return index in _ROLES[name]
    if name == "Gather":
        return index == 0 and len(tensor.shape) >= 2
    if name == "Concat":  # a class token goes in front of the patches; zeros are padding
        return len(tensor.shape) >= 3 and bool(np.any(tensor.numpy()))
    return name in _ARITHMETIC and _is_operand(node, index, tensor)


def _is_operand(node: ir.Node, index: int, tensor: ir.TensorProtocol) -> bool:
    """Whether arithmetic with this constant is a bias, a scale or a learned position, by what it holds."""
    if tensor.size == 1:
        other = node.inputs[1 - index] if len(node.inputs) == 2 else None
        producer = other.producer() if other is not None else None
        return node.op_type == "Add" and producer is not None and producer.op_type in _LAYERS
    data = np.abs(np.asarray(tensor.numpy(), np.float64))
    whole = bool((data == np.floor(data)).all())
    return bool(data.max() < _MASK) and not (whole and data.max() > 1)  # whole numbers are a grid or strides


def _is_moved_constant(value: ir.Value | None) -> bool:
    """Whether ``value`` is a constant, or the parts of constants put together: exporters reorder gates in the graph."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if value is None or tensors.constant(value) is not None:
            continue
        node = value.producer()
        if node is None or kind(node) not in _MOVING | {"Concat"}:
            return False
        waiting += node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return True


# ---------------------------------------------------------------- writing
def _write(home: ir.Value, name: str, data: NDArray[Any]) -> None:
    tensor = tensor_of(home)
    if tensor is None:
        raise PassFailed(f"{name!r} is no constant", hint="Write back into the model that was replayed.")
    old = np.asarray(tensor.numpy())
    if old.shape != data.shape:
        raise PassFailed(
            f"{name!r} has the shape {list(old.shape)}, the new numbers have {list(data.shape)}",
            hint="Write back into the model that was replayed.",
        )
    with np.errstate(over="ignore"):
        new = np.ascontiguousarray(data.astype(old.dtype)).reshape(old.shape)
    if np.array_equal(new, old) or new.tobytes() == old.tobytes():
        return
    if not np.isfinite(new.astype(np.float64)).all():
        raise PassFailed(
            f"the new numbers of {name!r} are not finite in {old.dtype}", hint="Train with a smaller learning rate."
        )
    _replace(home, ir.Tensor(new, dtype=tensor.dtype, name=tensor.name))


def _replace(home: ir.Value, tensor: ir.Tensor[Any]) -> None:
    if home.is_initializer():
        home.const_value = tensor
        return
    node = home.producer()
    if node is None:
        raise ValueError(f"{home.name!r} is neither an initializer nor a Constant node's output")
    (attribute,) = node.attributes.values()
    content: Any = tensor if attribute.type == ir.AttributeType.TENSOR else tensor.numpy().tolist()
    node.attributes[attribute.name] = ir.Attr(attribute.name, attribute.type, content, doc_string=attribute.doc_string)
