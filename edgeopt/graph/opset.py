"""Raising the opset: later passes rely on what newer versions have (per-channel quantization 13, LayerNormalization 17).

onnx's own C++ converter does the work on a skeleton of the model, subgraphs included (Softmax before 13 flattens its
input; the converter spells that out). Where it cannot convert a node the model stays at its opset: an old graph that
runs is worth more than a new one that does not exist.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.graph import edit
from edgeopt.graph.skeleton import skeleton

_IR_VERSION_OF_17 = 8
"""The IR version that came with opset 17; checkers and runtimes refuse a new opset in an older IR version."""


def opset(model: ir.Model) -> int:
    """The version of the ai.onnx operators that ``model`` imports; 0 where it imports none."""
    imports = model.graph.opset_imports
    return imports.get("", imports.get("ai.onnx", 0))


def raised(model: ir.Model, least: int) -> ir.Model:
    """``model`` at opset ``least`` or above; ``model`` itself where it is there already or cannot be converted.

    Functions must be inlined first: the converter does not look into them.
    """
    import onnx

    if not 0 < opset(model) < least or model.functions:
        return model
    source = edit.copy(model)
    edit.lift_initializers(source)
    try:
        proto = onnx.version_converter.convert_version(skeleton(source), least)
        # the converter passes over an operator that it does not know, though the new version may lack it
        onnx.checker.check_model(proto)
    except (RuntimeError, ValueError, onnx.checker.ValidationError):  # ConvertError is a bare RuntimeError in Python
        return model
    return _dressed(ir.from_proto(proto), source)


def _dressed(converted: ir.Model, source: ir.Model) -> ir.Model:
    """The converted skeleton with the weights, shapes and names of ``source`` back in place."""
    graph = converted.graph
    inputs = {value.name: value for value in graph.inputs}
    for name, weight in source.graph.initializers.items():
        if name in inputs and name not in graph.initializers:
            inputs[name].const_value = weight.const_value
            graph.register_initializer(inputs[name])
    kept = {value.name for value in source.graph.inputs}
    graph.inputs.clear()
    graph.inputs.extend(value for name, value in inputs.items() if name in kept)
    _restore_shapes(converted, source)
    edit.restore_interface(converted, source)
    converted.ir_version = max(source.ir_version, _IR_VERSION_OF_17)
    converted.metadata_props.update(source.metadata_props)
    converted.producer_name, converted.producer_version = source.producer_name, source.producer_version
    converted.domain, converted.model_version = source.domain, source.model_version
    converted.doc_string = source.doc_string
    return converted


def _restore_shapes(converted: ir.Model, source: ir.Model) -> None:
    # the converter declares what it makes in between as scalars, which would poison later shape inference
    known = {value.name: value for graph in source.graphs() for node in graph for value in node.outputs}
    for node in edit.nodes(converted):
        for value in node.outputs:
            before = known.get(value.name)
            value.shape = before.shape.copy() if before is not None and before.shape is not None else None
            if before is not None and before.type is not None:
                value.type = before.type
