"""Shapes of intermediate values: infer them, and use them to make Reshape targets constant.

Exporters compute a Reshape's target at run time out of Shape, Gather and Concat, several nodes a Reshape. Where inference
knows that a dimension is a number, or that it is the very dimension the input has in the same place, a constant target
with 0 ("copy this one") says the same. That takes dozens of nodes out of a transformer and uncovers the attention pattern.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph import edit, tensors
from edgeopt.graph.naming import Names


def infer(model: ir.Model) -> None:
    """Fill in the shapes and types of intermediate values as far as onnx's inference knows; never fails on a bad node."""
    from onnx_ir.passes import common

    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def symbols(model: ir.Model) -> frozenset[str]:
    """The names of all symbolic dimensions that the model declares anywhere."""
    shapes = [value.shape for value in _declared(model) if value.shape is not None]
    return frozenset(
        size.value for shape in shapes for size in shape if isinstance(size, ir.SymbolicDim) and size.value
    )


def forget_invented(model: ir.Model, known: frozenset[str]) -> None:
    """Make every symbolic dimension nameless whose name is not in ``known``.

    Inference numbers what it cannot name (``unk__7``); such a name hides that a dimension is the batch after all once
    folding has removed what stood in between, and it would differ from run to run.
    """
    for value in _declared(model):
        if value.shape is not None:
            kept = [size if isinstance(size, int) or size.value in known else None for size in value.shape]
            value.shape = ir.Shape(kept)


def settle_reshapes(model: ir.Model) -> int:
    """Give every Reshape whose target is computed, but known, a constant target; returns how many there were."""
    names, settled = Names(model), 0
    for node in edit.nodes(model):
        if node.op_type != "Reshape" or node.domain not in ("", "ai.onnx") or node.graph is None:
            continue
        target = _known_target(node)
        if target is not None:
            name = names.fresh(f"{node.outputs[0].name}_shape")
            node.attributes.pop("allowzero", None)
            node.replace_input_with(1, edit.add_initializer(node.graph, name, np.asarray(target, dtype=np.int64)))
            settled += 1
    return settled


def read_sizes_from_inputs(model: ir.Model) -> int:
    """Let every Shape that asks for one named dimension ask a graph input for it; returns how many were moved.

    A Shape on an intermediate value is a second reader of it, and a fusion may only swallow a value with one reader.
    """
    homes: dict[str, tuple[ir.Value, int]] = {}
    for value in edit.required_inputs(model):
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value:
                homes.setdefault(size.value, (value, axis))
    moved = 0
    for node in edit.nodes(model):
        wanted = _asked_for(node) if node.op_type == "Shape" and node.domain in ("", "ai.onnx") else None
        if wanted in homes and node.inputs[0] is not homes[wanted][0]:
            value, axis = homes[wanted]
            node.replace_input_with(0, value)
            node.attributes["start"] = ir.AttrInt64("start", axis)
            node.attributes["end"] = ir.AttrInt64("end", axis + 1)
            moved += 1
    return moved


def _asked_for(node: ir.Node) -> str | None:
    """The name of the dimension that a Shape node returns, where it returns exactly one and that has a name."""
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    start = node.attributes["start"].as_int() if "start" in node.attributes else 0
    end = node.attributes["end"].as_int() if "end" in node.attributes else source.shape.rank()
    asked = list(source.shape)[start:end]
    return asked[0].value if len(asked) == 1 and isinstance(asked[0], ir.SymbolicDim) else None


def _known_target(node: ir.Node) -> list[int] | None:
    """The target as numbers, with 0 for a copied dimension and at most one -1; None where that cannot say it."""
    data, made = node.inputs[0], node.outputs[0].shape
    if data is None or data.shape is None or made is None or tensors.constant(node.inputs[1]) is not None:
        return None
    target = [_entry(size, data.shape[axis] if axis < data.shape.rank() else None) for axis, size in enumerate(made)]
    # an empty tensor makes 0 ambiguous, and two unknown dimensions cannot both be left to the runtime
    if any(size == 0 for size in made) or target.count(-1) > 1:
        return None
    return target


def _entry(size: int | ir.SymbolicDim, source: int | ir.SymbolicDim | None) -> int:
    if isinstance(size, int):
        return size
    named = size.value is not None and isinstance(source, ir.SymbolicDim) and source.value == size.value
    return 0 if named else -1


def _declared(model: ir.Model) -> list[ir.Value]:
    inner = [value for node in edit.nodes(model) for value in node.outputs]
    return [*(value for graph in model.graphs() for value in graph.inputs), *inner]
