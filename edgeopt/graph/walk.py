"""Walking a ModelProto that nobody has checked yet: every graph, node and tensor, without recursion.

``load`` uses these before any library interprets the file. Nesting is an explicit stack, so a deep model costs memory
and never the interpreter's stack. After the checks, work goes on with ``onnx_ir``, which has walkers of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    Body = onnx.GraphProto | onnx.FunctionProto


@dataclass(frozen=True, slots=True)
class Place:
    """A graph or a function's body, and how deep it is nested (0 for the model's own graph)."""

    body: Body
    depth: int


def bodies(root: Body) -> Iterator[Place]:
    """``root`` and every subgraph in its nodes' attributes."""
    waiting = [Place(root, 0)]
    while waiting:
        place = waiting.pop()
        yield place
        for node in place.body.node:
            waiting.extend(Place(graph, place.depth + 1) for graph in subgraphs(node))


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def roots(model: onnx.ModelProto) -> Iterator[Body]:
    """Everything in a model that holds nodes: its graph, its functions, its training graphs."""
    yield model.graph
    yield from model.functions
    for training in model.training_info:
        yield training.initialization
        yield training.algorithm


def nodes(root: Body) -> Iterator[onnx.NodeProto]:
    """Every node of one root, subgraphs included."""
    for place in bodies(root):
        yield from place.body.node


def identifiers(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """Every word of a model that something is looked up by or shown; protobuf hands out bytes where one is not UTF-8."""
    yield from (model.producer_name, model.producer_version, model.domain, model.doc_string, model.graph.name)
    yield from (imported.domain for imported in model.opset_import)
    yield from (word for entry in model.metadata_props for word in (entry.key, entry.value))
    for name, tensor in tensors(model):
        yield name
        yield from (word for entry in tensor.external_data for word in (entry.key, entry.value))
    for function in model.functions:
        yield from (function.domain, function.name, function.overload, *function.input, *function.output)
    for root in roots(model):
        for place in bodies(root):
            if isinstance(place.body, type(model.graph)):
                for value in (*place.body.input, *place.body.output, *place.body.value_info):
                    yield value.name
                    yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
            for node in place.body.node:
                yield from (node.name, node.op_type, node.domain, node.overload, *node.input, *node.output)
                yield from (word for attribute in node.attribute for word in (attribute.name, attribute.ref_attr_name))


def tensors(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Every tensor with the name a reader knows it by: the initializer's, or that of the node that holds it."""
    for root in roots(model):
        for place in bodies(root):
            if isinstance(place.body, type(model.graph)):
                for tensor in place.body.initializer:
                    yield tensor.name, tensor
                yield from _sparse(place.body.sparse_initializer)
            for node in place.body.node:
                yield from _attribute_tensors(node)


def sparse_initializers(model: onnx.ModelProto) -> Iterator[onnx.SparseTensorProto]:
    """Every sparse initializer of any graph."""
    for root in roots(model):
        for place in bodies(root):
            if isinstance(place.body, type(model.graph)):
                yield from place.body.sparse_initializer


def sparse_tensors(model: onnx.ModelProto) -> Iterator[onnx.SparseTensorProto]:
    """Every sparse tensor; a runtime makes it dense."""
    yield from sparse_initializers(model)
    for root in roots(model):
        for place in bodies(root):
            for node in place.body.node:
                for attribute in node.attribute:
                    if attribute.HasField("sparse_tensor"):
                        yield attribute.sparse_tensor
                    yield from attribute.sparse_tensors


def _attribute_tensors(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    name = node.output[0] if node.output else node.name
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield name, attribute.t
        for tensor in attribute.tensors:
            yield name, tensor
        if attribute.HasField("sparse_tensor"):
            yield from _sparse([attribute.sparse_tensor])
        yield from _sparse(attribute.sparse_tensors)


def _sparse(tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[tuple[str, onnx.TensorProto]]:
    for tensor in tensors:
        yield tensor.values.name, tensor.values
        yield f"{tensor.values.name} (indices)", tensor.indices
