"""Products by a constant matrix that hide in other operators, spelled out so that they can be quantized like any MatMul.

Stands under dynamic quantization. In comes a model that a pass owns, and it is changed in place:

- com.microsoft Attention multiplies by its packed query, key and value weights itself, in float. The product comes out as MatMul, Add and
  Split in front of MultiHeadAttention, which does the rest. ONNX Runtime's own quantizer writes QAttention instead; that takes no
  attention bias, which is how today's exporters write a mask.
- A tied embedding is read once as a table and once transposed as the last layer. Clean-up leaves the Transpose, since two float
  copies would cost bytes; an integer copy costs a quarter.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph import edit, tensors
from edgeopt.graph.naming import Names
from edgeopt.graph.quantizable import layer_name

_DOMAIN = "com.microsoft"
_SPLIT_INPUT_OPSET = 13
"""From here on Split takes the sizes as an input."""
_KEPT = ("num_heads", "scale", "mask_filter_value", "unidirectional")
_PACKED = (*_KEPT, "qkv_hidden_sizes")
_MASK, _BIAS = 3, 5
"""Places of Attention's inputs."""


def spell_out(model: ir.Model, *, skip: Collection[str] = ()) -> None:
    """Write the hidden products of ``model`` as MatMul, but for the nodes called ``skip``; a MatMul keeps the node's name."""
    names = edit.fresh_names(model)
    for node in edit.nodes(model):
        if layer_name(node) in skip:
            continue
        if node.op_type == "Attention" and node.domain == _DOMAIN:
            weight = _packed_weight(node)
            if weight is not None and _can_be_opened(node):
                _open(model, node, weight, names)
        elif node.op_type == "MatMul" and node.domain in ("", "ai.onnx"):
            _untie(model, node, names)


def _packed_weight(node: ir.Node) -> NDArray[np.float32] | None:
    """Query, key and value weights side by side, (inputs, outputs): a constant, or the Concat of three that fusion leaves."""
    value = node.inputs[1]
    weight = _float_matrix(value)
    if weight is not None or value is None:
        return weight
    producer = value.producer()
    if producer is None or producer.op_type != "Concat" or producer.domain not in ("", "ai.onnx"):
        return None
    parts = [part for part in map(_float_matrix, producer.inputs) if part is not None]
    axis = producer.attributes["axis"].as_int()
    sides = {part.shape[0] for part in parts}
    return np.concatenate(parts, axis=1) if axis in (1, -1) and len(sides) == 1 and len(parts) > 1 else None


def _can_be_opened(node: ir.Node) -> bool:
    """No past, no attributes but those that MultiHeadAttention has too, and a mask that it reads in the same way."""
    inputs = dict(enumerate(node.inputs))
    if any(inputs.get(place) is not None for place in (4, 6)) or any(name not in _PACKED for name in node.attributes):
        return False
    mask = inputs.get(_MASK)
    # Rank 1 means something else to each of the two.
    readable = mask is None or (mask.shape is not None and mask.shape.rank() == 2)
    return readable and not any(output.uses() or output.is_graph_output() for output in node.outputs[1:])


def _open(model: ir.Model, node: ir.Node, weight: NDArray[np.float32], names: Names) -> None:
    base, data, graph = layer_name(node), node.inputs[0], model.graph
    matrix = edit.add_initializer(graph, names.fresh(f"{base}_weight"), weight)
    product = ir.node("MatMul", [data, matrix], name=base)
    written, packed = [product], product.outputs[0]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        written.append(ir.node("Add", [packed, node.inputs[2]], name=names.fresh(f"{base}_bias")))
        packed = written[-1].outputs[0]
    split = _split(model, packed, _sizes(node, weight.shape[1]), names=names)
    split.name = names.fresh(f"{base}_split")
    places = {3: None, 4: _input(node, _MASK), 5: _input(node, _BIAS)}
    attention = ir.Node(
        _DOMAIN, "MultiHeadAttention", [*split.outputs, *places.values()],
        [node.attributes[name] for name in _KEPT if name in node.attributes], name=names.fresh(f"{base}_heads"),
    )  # fmt: skip
    for made in (*written, split, attention):
        for output in made.outputs:
            output.name, output.type = names.fresh(f"{base}_value"), ir.TensorType(ir.DataType.FLOAT)
        if node.graph is not None:
            node.graph.insert_before(node, made)
    old, new = node.outputs[0], attention.outputs[0]
    new.shape = old.shape.copy() if old.shape is not None else None
    edit.replace_value(old, new)
    edit.remove(node)


def _split(model: ir.Model, value: ir.Value, sizes: list[int], *, names: Names) -> ir.Node:
    axis = ir.AttrInt64("axis", -1)
    if model.graph.opset_imports.get("", 0) < _SPLIT_INPUT_OPSET:
        return ir.Node("", "Split", [value], [axis, ir.AttrInt64s("split", sizes)], num_outputs=3)
    constant = edit.add_initializer(model.graph, names.fresh("split_sizes"), np.array(sizes, np.int64))
    return ir.Node("", "Split", [value, constant], [axis], num_outputs=3)


def _sizes(node: ir.Node, width: int) -> list[int]:
    given = node.attributes.get("qkv_hidden_sizes")
    return list(given.as_ints()) if given is not None else [width // 3] * 3


def _input(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if len(node.inputs) > place else None


def _untie(model: ir.Model, node: ir.Node, names: Names) -> None:
    """Give a MatMul by a transposed constant a constant of its own."""
    value = node.inputs[1]
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "Transpose" or producer.domain not in ("", "ai.onnx"):
        return
    weight = _float_matrix(producer.inputs[0])
    if weight is not None:
        own = edit.add_initializer(model.graph, names.fresh(f"{producer.inputs[0].name}_transposed"), weight.T)  # type: ignore[union-attr]  # a constant was found behind it
        node.replace_input_with(1, own)


def _float_matrix(value: ir.Value | None) -> NDArray[np.float32] | None:
    tensor = tensors.constant(value)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
        return None
    return np.asarray(tensor.numpy(), np.float32)
