"""A graph compiled to a list of steps: which operator, what it reads, what nobody reads any more behind it.

Stands under ``training.replay``, which executes programs. Values are the graph's own :class:`onnx_ir.Value` objects, so a body
of If or Loop reads those of the graphs around it without any renaming. Constant nodes are no steps; they are constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgeopt.errors import PassFailed
from edgeopt.graph import edit, tensors
from edgeopt.training.operators import CONTROLLERS, OPERATORS
from edgeopt.training.operators.call import Call
from edgeopt.training.operators.elementwise import TYPES
from edgeopt.training.parameters import kind

_SHOWN = 3


@dataclass(slots=True)
class Step:
    """One node. ``done``: values of the same graph that nothing behind it reads, so that their memory can go."""

    name: str
    call: Call
    inputs: tuple[ir.Value | None, ...]
    outputs: tuple[ir.Value, ...]
    bodies: Mapping[str, Program]
    rebatch: bool
    """A Reshape to one sample in a model that was exported for one sample: more samples may pass."""
    done: tuple[ir.Value, ...] = ()

    @property
    def reads(self) -> set[ir.Value]:
        """Its inputs, and what its bodies read from outside of themselves."""
        own = {value for value in self.inputs if value is not None}
        return own.union(*(body.reads for body in self.bodies.values()))


@dataclass(slots=True)
class Program:
    """The steps of one graph, in its order."""

    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    steps: list[Step] = field(default_factory=list)

    @property
    def reads(self) -> set[ir.Value]:
        """What it reads and does not make: constants, and values of the graphs around it."""
        made = {*self.inputs, *(value for step in self.steps for value in step.outputs)}
        return set(self.outputs).union(*(step.reads for step in self.steps)) - made

    def release(self) -> None:
        """Set every step's ``done``."""
        mine = {*self.inputs, *(value for step in self.steps for value in step.outputs)}
        needed = set(self.outputs)
        for step in reversed(self.steps):
            last = (step.reads | set(step.outputs)) - needed
            step.done = tuple(value for value in last if value in mine)
            needed |= last
            for body in step.bodies.values():
                body.release()


def compiled(model: ir.Model) -> Program:
    """The main graph's program. Raises PassFailed that names the first operators that are not in the table."""
    unknown = [node for node in edit.nodes(model) if not _is_known(node)]
    if unknown:
        kinds = list(dict.fromkeys(kind(node) for node in unknown))
        more = f" and {len(kinds) - _SHOWN} more" if len(kinds) > _SHOWN else ""
        raise PassFailed(
            f"training does not know the operators {', '.join(kinds[:_SHOWN])}{more}, "
            f"first of all the node {unknown[0].name or unknown[0].outputs[0].name!r}",
            hint="Leave training out for this model.",
        )
    return _program(model.graph, model.graph.opset_imports.get("", 1), single=_is_single(model))


def constant(tensor: ir.TensorProtocol) -> Tensor:
    """A constant as torch's; float16 and bfloat16 as float32. Raises PassFailed for types that torch lacks."""
    if int(tensor.dtype) not in TYPES:
        raise PassFailed(
            f"the constant {tensor.name!r} is of type {tensor.dtype.name}, which training cannot compute with",
            hint="Leave training out for this model.",
        )
    data = np.asarray(tensor.numpy())
    if tensor.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        data = data.astype(np.float32)
    return torch.from_numpy(np.array(data, order="C"))


def _program(graph: ir.Graph, opset: int, *, single: bool) -> Program:
    made = Program(tuple(graph.inputs), tuple(graph.outputs))
    made.steps = [_step(node, opset, single=single) for node in graph if kind(node) != "Constant"]
    return made


def _step(node: ir.Node, opset: int, *, single: bool) -> Step:
    bodies = {
        attribute.name: _program(attribute.as_graph(), opset, single=single)
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
    }
    outputs = tuple(node.outputs)
    read = [index for index, value in enumerate(outputs, 1) if value.uses() or value.is_graph_output()]
    return Step(
        name=str(node.name or node.outputs[0].name),
        call=Call(kind(node), opset, dict(_attributes(node)), outputs=len(outputs), read=max(read, default=0)),
        inputs=tuple(node.inputs),
        outputs=outputs,
        bodies=bodies,
        rebatch=single and _reshapes_one_sample(node),
    )


def _attributes(node: ir.Node) -> Iterator[tuple[str, Any]]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.TENSOR:
            yield attribute.name, constant(attribute.as_tensor())
        elif attribute.type != ir.AttributeType.GRAPH:
            yield attribute.name, attribute.value


def _is_known(node: ir.Node) -> bool:
    name = kind(node)
    if name == "Constant":
        return tensors.constant(node.outputs[0]) is not None
    return name in OPERATORS or name in CONTROLLERS


def _is_single(model: ir.Model) -> bool:
    """Whether every input is declared to be one sample."""
    shapes = [value.shape for value in edit.required_inputs(model)]
    return all(shape is not None and shape.rank() > 0 and shape[0] == 1 for shape in shapes)


def _reshapes_one_sample(node: ir.Node) -> bool:
    target = tensors.array(node.inputs[1]) if kind(node) == "Reshape" else None
    return target is not None and target.size > 1 and int(target.reshape(-1)[0]) == 1
