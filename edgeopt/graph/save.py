"""A model to disk: the same bytes for the same model, one file unless protobuf's limit forbids it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from edgeopt.graph import edit, tensors
from edgeopt.layout import ARTIFACT_DATA_FILE

INLINE_BYTES = int(1.8 * (1 << 30))
"""Weights beyond this go to a file beside the model: a protobuf message ends at 2 GiB, and the graph needs room too."""
_EXTERNAL_FROM_BYTES = 1024
"""Smaller constants stay in the model file: shape inference at load reads them."""


def save(model: ir.Model, path: Path, *, inline_bytes: int = INLINE_BYTES) -> tuple[Path, ...]:
    """Write ``model`` to ``path`` and return the files written: the model, and its weights' file where there is one.

    ``model`` is not touched. External weights it was loaded with are copied in, so the result depends on no other file.
    Raises OSError where the disk does.
    """
    own = edit.copy(model)
    _bring_attributes_in(own)
    data = path.parent / ARTIFACT_DATA_FILE
    if tensors.parameter_bytes(model) > inline_bytes:
        ir.save(own, path, external_data=ARTIFACT_DATA_FILE, size_threshold_bytes=_EXTERNAL_FROM_BYTES)
        return (path, data)
    for graph in own.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _in_memory(value.const_value)
    path.write_bytes(ir.to_proto(own).SerializeToString(deterministic=True))
    return (path,)


def external_names(model: ir.Model) -> set[str]:
    """The names of the files beside the model that its weights lie in."""
    held = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    held += [attribute.as_tensor() for node in edit.nodes(model) for attribute in _tensor_attributes(node)]
    return {str(tensor.location) for tensor in held if isinstance(tensor, ir.ExternalTensor)}


def _bring_attributes_in(model: ir.Model) -> None:
    """Read the external tensors of Constant nodes: both ways of writing leave those as references to a file of the past."""
    for node in edit.nodes(model):
        for attribute in _tensor_attributes(node):
            tensor = attribute.as_tensor()
            if isinstance(tensor, ir.ExternalTensor):
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, _in_memory(tensor))


def _tensor_attributes(node: ir.Node) -> list[ir.Attr]:
    kinds = [each for each in node.attributes.values() if each.type == ir.AttributeType.TENSOR]
    return [each for each in kinds if not each.is_ref()]


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    # a LazyTensor serialises as raw bytes, while an ExternalTensor serialises as a reference to its file
    return ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)
