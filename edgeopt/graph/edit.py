"""Changing a graph: take a copy, replace values, add constants, drop what is dead.

``copy`` is how a pass keeps its promise not to touch its input: ``onnx_ir.Model.clone`` shares tensor objects and type
objects between both models, and renaming a value or setting a dtype in one would write through into the other.
"""

from __future__ import annotations

import copy as shallow
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph.naming import Names

SMALL_BYTES = 1024
"""Constants up to this size decide what a node means (shapes, axes, bounds); every library must be able to read them."""


def copy(model: ir.Model) -> ir.Model:
    """A model that can be edited without a trace in ``model``; the weights' bytes are shared, nothing else is.

    Small constants that lay in an external file are read into memory: onnx's inference does not follow references.
    """
    fresh = model.clone(deep_copy=True)
    for graph in fresh.graphs():
        for value in _values(graph):
            value.type = shallow.deepcopy(value.type)
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _rewrap(value.const_value)
        for node in graph:
            _rewrap_attributes(node)
    return fresh


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes, those of subgraphs included; a snapshot, so that the caller may remove what it gets."""
    return iter([node for graph in model.graphs() for node in graph])


def count(model: ir.Model, *operators: str) -> int:
    """How many nodes there are, subgraphs included; with ``operators``, only those of these types."""
    return sum(not operators or node.op_type in operators for node in nodes(model))


def required_inputs(model: ir.Model) -> list[ir.Value]:
    """The graph's inputs that a caller must feed: those without a default value."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Everybody who read ``old`` reads ``new``; a graph output keeps its name, type and shape."""
    if old.is_graph_output():
        name = old.name
        old.name = f"{name}_replaced"
        new.name, new.type, new.shape = name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def remove(node: ir.Node) -> None:
    """Take out a node whose outputs nobody reads any more."""
    if node.graph is not None:
        node.graph.remove(node, safe=True)


def add_initializer(graph: ir.Graph, name: str, data: NDArray[Any]) -> ir.Value:
    """A new constant in ``graph``; ``name`` must be fresh."""
    value = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.from_numpy(data.dtype)),
        shape=ir.Shape(data.shape),
        const_value=ir.tensor(np.ascontiguousarray(data).reshape(data.shape), name=name),
    )
    graph.register_initializer(value)
    return value


def set_constant(value: ir.Value, data: NDArray[Any], *, dtype: ir.DataType | None = None) -> None:
    """Give the initializer, or the output of a Constant node, called ``value`` other contents under its old name.

    ``dtype`` names a type that numpy lacks; without it the array's own counts.
    """
    tensor = ir.Tensor(np.ascontiguousarray(data).reshape(data.shape), dtype=dtype, name=value.name)
    value.shape, value.type = ir.Shape(data.shape), ir.TensorType(tensor.dtype)
    node = value.producer()
    if node is None:
        value.const_value = tensor
    else:
        node.attributes.clear()
        node.attributes["value"] = ir.AttrTensor("value", tensor)


def insert_after(anchor: ir.Node, node: ir.Node) -> None:
    """Put ``node`` right behind ``anchor`` in the same graph."""
    graph = anchor.graph
    if graph is None:
        raise ValueError(f"node {anchor.name!r} is in no graph")
    graph.insert_after(anchor, node)


def prune(model: ir.Model) -> None:
    """Drop nodes, initializers and opset imports that nothing uses; graph inputs stay."""
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
    for body in list(model.graphs())[1:]:
        # onnx_ir looks at the main graph's only
        for name, value in list(body.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del body.initializers[name]
    common.RemoveUnusedOpsetsPass()(model)


def lift_initializers(model: ir.Model) -> None:
    """Move the initializers of subgraphs into the main graph, under fresh names where theirs are taken."""
    from onnx_ir.passes import common

    common.LiftSubgraphInitializersToMainGraphPass()(model)


def sort_initializers(model: ir.Model) -> None:
    """Order every graph's initializers by name: libraries reorder them, and equal models must give equal bytes."""
    for graph in model.graphs():
        for name in sorted(graph.initializers):
            value = graph.initializers.pop(name)
            graph.initializers[name] = value


def restore_interface(model: ir.Model, like: ir.Model) -> None:
    """Give ``model``'s inputs and outputs the types and shapes that ``like`` declares.

    Shape inference refines what the user declared (a nameless dimension becomes 2, or gets an invented name); the
    interface is the user's and stays as written. Names and order are not touched: ``check.verify`` compares those.
    """
    pairs = [*zip(required_inputs(model), required_inputs(like), strict=True)]
    pairs += zip(model.graph.outputs, like.graph.outputs, strict=True)
    for ours, theirs in pairs:
        ours.type = shallow.deepcopy(theirs.type)
        ours.shape = theirs.shape.copy() if theirs.shape is not None else None
        ours.doc_string = theirs.doc_string


def strip_marks(model: ir.Model, prefix: str) -> None:
    """Remove metadata entries that a library left on nodes, values and graphs (keys that start with ``prefix``)."""
    for graph in model.graphs():
        for holder in (graph, *_values(graph), *graph):
            for key in [key for key in holder.metadata_props if key.startswith(prefix)]:
                del holder.metadata_props[key]


def fresh_names(model: ir.Model) -> Names:
    """A source of names that are free in ``model``."""
    return Names(model)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    seen = {id(value): value for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        seen.update((id(value), value) for value in node.outputs)
    return iter(list(seen.values()))


def _rewrap_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
            tensor = _rewrap(attribute.as_tensor())
            node.attributes[name] = ir.Attr(name, attribute.type, tensor, doc_string=attribute.doc_string)


def _rewrap(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Another tensor object on the same bytes: its name can be set without renaming the original's."""
    if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= SMALL_BYTES:
        data = np.array(tensor.numpy())
        return ir.Tensor(data, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)
    if not isinstance(tensor, ir.TensorProtoTensor):
        return shallow.copy(tensor)
    if tensor.dtype == ir.DataType.STRING:
        return ir.StringTensor(tensor.raw.string_data, shape=tensor.shape, name=tensor.name)
    return ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)
