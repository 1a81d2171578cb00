"""Single precision: a graph that was exported in float16, computed in float32 again.

Runs right behind clean-up, in front of everything that looks for float32 weights: folding, pruning, quantization. In comes a model with float16 tensors, out goes the same
one in float32, with a Cast behind each float16 input and in front of each float16 output, so that callers notice nothing. ONNX Runtime has next to no float16 kernels for
CPUs without float16 arithmetic: it casts every value there and back itself, so nothing is lost there and integers become possible.

The file is twice the original's: what this pass alone makes is for latency; where bytes count, packed weights or int8 go on from here. No settings.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgeopt.errors import PassFailed
from edgeopt.graph import edit
from edgeopt.graph.naming import Names
from edgeopt.protocols import Evidence, Settings
from edgeopt.records import Signature, Target

_HALF, _SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
_HALF_ARITHMETIC = (frozenset({"asimdhp", "fphp"}), frozenset({"avx512_fp16"}))
_TYPE_ATTRIBUTES = ("to", "dtype")
"""Attributes that name the type of an output: of Cast, of random and of filled tensors."""


class CastFp32:
    """Compute in float32 what was exported in float16."""

    name = "cast_fp32"
    lossless = False
    needs_data = False

    def refuse(self, signature: Signature, target: Target) -> str | None:
        """Where nothing is float16, the device computes in it, or the model in integers."""
        if not signature.half:
            return "the model has no float16 weights"
        if signature.quantized:
            return "the model is quantized already"
        if target.name.startswith("tensorrt") or any(needed <= set(target.features) for needed in _HALF_ARITHMETIC):
            return "the device computes in float16"
        return None

    def apply(self, model: ir.Model, settings: Settings, evidence: Evidence) -> ir.Model:
        """The float32 copy; PassFailed where there is no float16 in the graph."""
        del settings, evidence
        if not any(_is_half(value) for value in _values(model)):
            raise PassFailed("the model has no float16 tensors", hint="Leave this technique out for this model.")
        single = edit.copy(model)
        ends = [value for value in (*single.graph.inputs, *single.graph.outputs) if value.dtype == _HALF]
        for value in _values(single):
            if value.const_value is not None and value.const_value.dtype == _HALF:
                edit.set_constant(value, value.const_value.numpy().astype(np.float32))
            elif value.dtype == _HALF:
                value.type = _widened(value)
        for node in edit.nodes(single):
            _widen_attributes(node)
        _restore_ends(single, ends)
        _drop_idle_casts(single)
        edit.restore_interface(single, model)
        return single


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _is_half(value: ir.Value) -> bool:
    return value.dtype == _HALF or (value.const_value is not None and value.const_value.dtype == _HALF)


def _widened(value: ir.Value) -> ir.TypeProtocol:
    """The value's type in float32: of a tensor, or of a sequence or an optional of them."""
    kind = value.type
    if isinstance(kind, ir.TensorType):
        return ir.TensorType(_SINGLE)
    if isinstance(kind, ir.SequenceType):
        return ir.SequenceType(ir.TensorType(_SINGLE))
    if isinstance(kind, ir.OptionalType):
        return ir.OptionalType(ir.TensorType(_SINGLE))
    raise PassFailed(f"{value.name!r} has the type {kind}", hint="Export the model again in float32.")


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _HALF:
            data = attribute.as_tensor().numpy().astype(np.float32)
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(data))
        elif name in _TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and attribute.as_int() == _HALF:
            node.attributes[name] = ir.AttrInt64(name, int(_SINGLE))


def _restore_ends(model: ir.Model, ends: list[ir.Value]) -> None:
    """The float16 inputs and outputs that callers know, with casts within."""
    names = Names(model)
    for value in ends:
        if value.is_graph_input():
            cast = _cast(value, _SINGLE, names)
            value.replace_all_uses_with(cast.outputs[0])
            cast.replace_input_with(0, value)
            value.type = ir.TensorType(_HALF)
            model.graph.insert_before(model.graph[0], cast)
    for place, value in enumerate(model.graph.outputs):
        if value in ends and not value.is_graph_input():
            cast = _cast(value, _HALF, names)
            model.graph.append(cast)
            name = value.name
            value.name = names.fresh(f"{name}_single")
            cast.outputs[0].name = name
            model.graph.outputs[place] = cast.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType, names: Names) -> ir.Node:
    name = names.fresh(f"{value.name}_cast")
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], name=name)
    node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(dtype)
    node.outputs[0].shape = value.shape.copy() if value.shape is not None else None
    return node


def _drop_idle_casts(model: ir.Model) -> None:
    """Casts from float32 to float32: what stood between the two precisions."""
    for node in edit.nodes(model):
        source = node.inputs[0] if node.op_type == "Cast" and node.domain in ("", "ai.onnx") else None
        if source is None or source.dtype != _SINGLE or node.attributes["to"].as_int() != _SINGLE:
            continue
        if node.outputs[0].is_graph_output() or source.graph is not node.graph:
            continue
        node.outputs[0].replace_all_uses_with(source)
        edit.remove(node)
