"""New lengths for nodes that name them as numbers: targets of Reshape, sizes of Split, bounds of Slice, groups, hidden sizes.

Stands under ``shrink``. A number that is a constant is replaced by a constant of the node's own, since others may read the old one. One that exporters compute at run time (a
Concat of what Shape says and of constants) is replaced where it enters; what cannot be followed is overwritten behind its last step by a Where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.errors import PassFailed
from edgeopt.graph import edit, tensors
from edgeopt.graph.groups import Rewrite
from edgeopt.graph.naming import Names

_SPLIT_HAS_INPUT = 13
_ONE_BY_ONE = ("Cast", "Identity", "Unsqueeze", "Squeeze")


@dataclass(frozen=True, slots=True)
class Place:
    """One number of an integer input of a node, which holds ``length`` of them."""

    position: int
    entry: int
    length: int


def rewrite(node: ir.Node, change: Rewrite, left: list[int], *, names: Names, opset: int) -> None:
    """Write ``left``, the new lengths of the parts that ``change`` counts, into ``node``.

    ``opset`` is the model's: a body of control flow does not know it. Raises :class:`~edgeopt.errors.PassFailed` where a computed
    shape leaves no way to say it.
    """
    match change.what:
        case "group" | "hidden_size" | "num_heads":
            node.attributes[change.what] = ir.AttrInt64(change.what, left[0])
        case "target":
            _set_number(node, Place(change.position, change.entry, change.length), left[0], names)
        case "inferred":
            _set_number(node, Place(change.position, change.entry, change.length), -1, names)
        case "slice":
            _set_number(node, Place(1, change.entry, change.length), left[0], names)
            _set_number(node, Place(2, change.entry, change.length), left[0] + left[1], names)
        case "split":
            _set_split(node, left, names, by_attribute=opset < _SPLIT_HAS_INPUT)


def _set_split(node: ir.Node, left: list[int], names: Names, *, by_attribute: bool) -> None:
    node.attributes.pop("num_outputs", None)
    if by_attribute:
        node.attributes["split"] = ir.AttrInt64s("split", left)
        return
    sizes = _constant(node, "split", np.asarray(left, dtype=np.int64), names)
    if len(node.inputs) > 1:
        node.replace_input_with(1, sizes)
    else:
        node.resize_inputs(2)
        node.replace_input_with(1, sizes)


def _set_number(node: ir.Node, place: Place, number: int, names: Names) -> None:
    """Replace one number of an integer input: of a constant, of the constant part of a Concat, or else at run time."""
    value = node.inputs[place.position]
    data = tensors.array(value)
    if data is not None:
        changed = np.array(data)
        changed.reshape(-1)[place.entry] = number
        node.replace_input_with(place.position, _constant(node, "size", changed, names))
        return
    maker = value.producer() if value is not None else None
    part = _part(maker, place) if maker is not None else None
    if maker is None or part is None:
        _overwrite(node, place, number, names)
        return
    # a copy of its own, so that other readers keep what they had
    own = _duplicate(maker, names)
    node.replace_input_with(place.position, own.outputs[0])
    _set_number(own, part, number, names)


def _part(maker: ir.Node, place: Place) -> Place | None:
    """Where among the inputs of ``maker`` the number lies; None where ``maker`` does more than put numbers together."""
    if maker.op_type in _ONE_BY_ONE:
        # a scalar before an Unsqueeze can be replaced, but not overwritten in part
        return Place(0, place.entry, place.length) if _ends_in_constant(maker) else None
    if maker.op_type != "Concat":
        return None
    entry = place.entry
    for position, value in enumerate(maker.inputs):
        count = _count(value)
        if count is None:
            return None
        if entry < count:
            return Place(position, entry, count)
        entry -= count
    return None


def _ends_in_constant(node: ir.Node | None) -> bool:
    while node is not None and node.op_type in _ONE_BY_ONE:
        if tensors.constant(node.inputs[0]) is not None:
            return True
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and node.op_type == "Concat"


def _count(value: ir.Value | None) -> int | None:
    data = tensors.array(value)
    if data is not None:
        return int(data.size)
    shape = value.shape if value is not None else None
    return int(np.prod(shape.numpy())) if shape is not None and shape.is_static() else None


def _overwrite(node: ir.Node, place: Place, number: int, names: Names) -> None:
    """Put ``number`` over what was computed, wherever that came from."""
    graph, value = node.graph, node.inputs[place.position]
    if graph is None or value is None or value.dtype == ir.DataType.INT32:
        raise PassFailed(
            f"the shape that {node.op_type} {node.name or node.outputs[0].name!r} is given cannot be rewritten",
            hint="Run the pass tidy first, which makes such shapes constant.",
        )
    if place.length == 1:
        node.replace_input_with(place.position, _constant(node, "size", np.array([number]), names))
        return
    chosen = _constant(node, "place", np.arange(place.length) == place.entry, names)
    numbers = _constant(node, "size", np.full(place.length, number, dtype=np.int64), names)
    where = ir.Node("", "Where", [chosen, numbers, value], name=names.fresh(f"{node.outputs[0].name}_resize"))
    where.outputs[0].name = names.fresh(f"{node.outputs[0].name}_target")
    where.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    graph.insert_before(node, where)
    node.replace_input_with(place.position, where.outputs[0])


def _duplicate(node: ir.Node, names: Names) -> ir.Node:
    """The same node once more, right behind it."""
    attributes = list(node.attributes.values())
    own = ir.Node(node.domain, node.op_type, node.inputs, attributes, name=names.fresh(node.name or node.op_type))
    own.outputs[0].name = names.fresh(f"{node.outputs[0].name}_cut")
    own.outputs[0].type = node.outputs[0].type
    edit.insert_after(node, own)
    return own


def _constant(node: ir.Node, base: str, data: NDArray[Any], names: Names) -> ir.Value:
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise PassFailed(f"node {node.name!r} is in no graph", hint="Analyse the model that is to be cut.")
    return edit.add_initializer(graph, names.fresh(f"{node.outputs[0].name}_{base}"), data)
