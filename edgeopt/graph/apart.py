"""A model's layers taken apart: side by side with inputs of their own, and the whole model with room for their noise.

Stands under ``stages.sensitivity``. :func:`side_by_side` makes a model in which every layer reads a graph input and ends in a graph output: a
quantizer changes all of them at once, and one run tells the noise that each makes of true inputs. :func:`with_noise` makes the original with
an input added to each layer's output: one opened model tells what any of those noises does to the outputs. So a scan over all layers
opens three models, not one for each layer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgeopt.graph import edit, quantizable, tensors

_GIVEN, _APART, _NOISE = "@given", "@apart", "@noise"
"""What is behind the names of values: no exporter writes an @."""
_FOLLOWED = ("Add", "Relu", "Clip")
"""Operators that a quantizer may absorb into the layer before them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One layer with what may be absorbed into it. Names of values of the main graph."""

    layer: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def pieces(model: ir.Model, layers: Collection[str]) -> list[Piece]:
    """The layers of the main graph that can be taken apart, in graph order; what lies in bodies or reads a default cannot."""
    fed = {str(value.name) for value in edit.required_inputs(model)}
    found = []
    for node in model.graph:
        if quantizable.layer_name(node) not in layers or any(_is_body(each) for each in node.attributes.values()):
            continue
        chain = _chain(node)
        inputs = _inputs(chain)
        if all(value.producer() is not None or str(value.name) in fed for value in inputs):
            outputs = [value for value in chain[-1].outputs if value.uses() or value.is_graph_output()]
            found.append(
                Piece(
                    layer=quantizable.layer_name(node),
                    inputs=tuple(str(value.name) for value in inputs),
                    outputs=tuple(str(value.name) for value in outputs),
                )
            )
    return found


def side_by_side(model: ir.Model, found: Sequence[Piece]) -> ir.Model:
    """The pieces alone; what they read is called :func:`given`, what they yield :func:`apart`."""
    wanted = {piece.layer for piece in found}
    inputs: dict[ir.Value, ir.Value] = {}
    constants: dict[ir.Value, ir.Value] = {}
    nodes: list[ir.Node] = []
    outputs: list[ir.Value] = []
    for node in model.graph:
        if quantizable.layer_name(node) in wanted:
            _add_piece(_chain(node), inputs, constants, nodes, outputs)
    graph = ir.Graph(
        list(inputs.values()),
        outputs,
        nodes=nodes,
        initializers=list(constants.values()),
        opset_imports=dict(model.opset_imports),
        name="apart",
    )
    return ir.Model(graph, ir_version=model.ir_version)


def with_noise(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy with an input :func:`noise` of any shape added to each of the values called ``names``."""
    noisy = edit.copy(model)
    values = {str(value.name): value for node in noisy.graph for value in node.outputs}
    for name in names:
        value = values[name]
        kind, shape, node = value.type, value.shape, value.producer()
        assert node is not None  # noqa: S101  # the outputs of nodes were asked for
        added = ir.Value(name=noise(name), type=ir.TensorType(ir.DataType.FLOAT))
        noisy.graph.inputs.append(added)
        adder = ir.Node("", "Add", [value, added], name=f"{name}@adder")
        total = adder.outputs[0]
        total.name, total.type, total.shape = f"{name}@noisy", kind, shape
        edit.insert_after(node, adder)
        edit.replace_value(value, total)
        adder.replace_input_with(0, value)
    return noisy


def given(name: str) -> str:
    """The input that stands for the value ``name`` where a piece reads it."""
    return f"{name}{_GIVEN}"


def apart(name: str) -> str:
    """The output that stands for the value ``name`` where a piece yields it."""
    return f"{name}{_APART}"


def noise(name: str) -> str:
    """The input that is added to the value ``name``."""
    return f"{name}{_NOISE}"


def _chain(node: ir.Node) -> list[ir.Node]:
    """The layer's node and those behind it that a quantizer may absorb: a constant added, a bound."""
    chain = [node]
    while len(chain[-1].outputs) == 1:
        value = chain[-1].outputs[0]
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            break
        reader: ir.Node = uses[0].node
        others = [each for index, each in enumerate(reader.inputs) if index != uses[0].idx and each is not None]
        plain = reader.op_type in _FOLLOWED and reader.domain in ("", "ai.onnx") and reader.graph is node.graph
        if not plain or any(tensors.constant(each) is None for each in others):
            break
        if reader.op_type == "Add" and len(chain) > 1:
            break  # a bias comes first; another constant is not the layer's
        chain.append(reader)
    return chain


def _inputs(chain: Sequence[ir.Node]) -> list[ir.Value]:
    own = {value for node in chain for value in node.outputs}
    read = [value for node in chain for value in node.inputs if value is not None and value not in own]
    return list(dict.fromkeys(value for value in read if tensors.constant(value) is None))


def _add_piece(
    chain: Sequence[ir.Node],
    inputs: dict[ir.Value, ir.Value],
    constants: dict[ir.Value, ir.Value],
    nodes: list[ir.Node],
    outputs: list[ir.Value],
) -> None:
    """Copies of the chain's nodes, of the constants they read, and the ends: ``inputs`` and ``constants`` are shared by all pieces."""
    own: dict[ir.Value, ir.Value] = {}
    for value in _inputs(chain):
        inputs.setdefault(value, _named(value, given(str(value.name))))
    for node in chain:
        read = [None if value is None else own.get(value) or _source(value, inputs, constants) for value in node.inputs]
        copied = ir.Node(
            node.domain,
            node.op_type,
            read,
            attributes=list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=quantizable.layer_name(node),
        )
        for old, new in zip(node.outputs, copied.outputs, strict=True):
            new.name, new.type, new.shape = old.name, old.type, old.shape
            own[old] = new
        nodes.append(copied)
    for old in chain[-1].outputs:
        if old.uses() or old.is_graph_output():
            # a convolution whose output leaves the graph stays float; one that is read does not
            end = ir.Node("", "Identity", [own[old]], name=apart(str(old.name)))
            end.outputs[0].name, end.outputs[0].type, end.outputs[0].shape = apart(str(old.name)), old.type, old.shape
            nodes.append(end)
            outputs.append(end.outputs[0])


def _source(value: ir.Value, inputs: dict[ir.Value, ir.Value], constants: dict[ir.Value, ir.Value]) -> ir.Value:
    if value in inputs:
        return inputs[value]
    if value not in constants:
        constant = _named(value, str(value.name))
        constant.const_value = tensors.constant(value)
        constants[value] = constant
    return constants[value]


def _named(value: ir.Value, name: str) -> ir.Value:
    # inference may have run out of time; what a layer reads is float32 then
    return ir.Value(name=name, type=value.type or ir.TensorType(ir.DataType.FLOAT), shape=value.shape)


def _is_body(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
