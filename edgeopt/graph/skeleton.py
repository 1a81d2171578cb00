"""A model as a small protobuf: big weights become inputs, so that C++ libraries can look at it.

onnx's checker and version converter take one protobuf message, which may not exceed 2 GiB. None of them needs to see
the values of a weight, only its type and shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from edgeopt.graph import edit

if TYPE_CHECKING:
    import onnx


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """``model`` with every initializer over 1 KiB, or with external data, turned into a graph input behind the others.

    Initializers of subgraphs are lifted into the main graph first, since a body cannot have such inputs.
    """
    bare = edit.copy(model)
    edit.lift_initializers(bare)
    for name, value in list(bare.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or (tensor.nbytes <= edit.SMALL_BYTES and not isinstance(tensor, ir.ExternalTensor)):
            continue
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        del bare.graph.initializers[name]
        if not value.is_graph_input():
            bare.graph.inputs.append(value)
    return ir.to_proto(bare)
