"""Scaling the channels of a value inside what produces it, so that the factor costs nothing at run time.

Stands under the passes that move scales between layers. In comes a value and where its factors should go, out goes the list of
constants that would take them, or None where the value cannot be scaled without another operator. Nothing is edited until
``apply_factor`` is called, so a caller may still decide otherwise.

Channels are the last axis. A normalization takes the factor in its scale and bias, a layer in the columns of its weight and its bias,
a product with a constant in that constant; ReLU and its leaky kin pass positive factors on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph import edit, tensors
from edgeopt.graph.naming import Names

_NORMALIZATIONS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}
"""Where scale and bias stand among the inputs; the first output is what they shape."""
_DOMAINS = ("", "ai.onnx", "com.microsoft")
_HOMOGENEOUS = ("Relu", "LeakyRelu")


@dataclass(frozen=True, slots=True)
class Home:
    """A constant that takes the factor along ``axis``."""

    node: ir.Node
    index: int
    axis: int = -1


def homes(value: ir.Value, width: int) -> list[Home] | None:
    """The constants whose scaling by a positive factor for each channel scales ``value`` by it; None where there are none.

    The caller answers for ``value``'s own readers; everything in front of it must have no other reader.
    """
    node = value.producer()
    if node is None or node.domain not in _DOMAINS or value.is_graph_output():
        return None
    if node.op_type in _NORMALIZATIONS and value is node.outputs[0]:
        return _normalization(node, width)
    if node.domain == "com.microsoft":
        return None
    if node.op_type in _HOMOGENEOUS:
        return _before(node.inputs[0], width)
    if node.op_type in ("MatMul", "Gemm"):
        return _layer(node, width)
    if node.op_type in ("Mul", "Add"):
        return _arithmetic(node, width)
    return None


def apply_factor(found: list[Home], factor: NDArray[np.floating], names: Names) -> None:
    """Multiply the constants by ``factor`` (channels,); each gets a copy of its own, since others may read the old one."""
    for home in found:
        old, graph = home.node.inputs[home.index], home.node.graph
        data = tensors.array(old)
        assert old is not None and data is not None and graph is not None  # noqa: S101, PT018  # ``homes`` saw them
        shaped = factor[:, None] if home.axis == 0 and data.ndim > 1 else factor
        scaled = (data.astype(np.float64) * shaped).astype(data.dtype)
        home.node.replace_input_with(home.index, edit.add_initializer(graph, names.fresh(f"{old.name}_scaled"), scaled))


def _before(value: ir.Value | None, width: int) -> list[Home] | None:
    return None if value is None or tensors.is_shared(value) else homes(value, width)


def _normalization(node: ir.Node, width: int) -> list[Home] | None:
    places = [index for index in _NORMALIZATIONS[node.op_type] if len(node.inputs) > index and node.inputs[index]]
    found = [Home(node, index) for index in places]
    if not found or any(not _is_vector(node.inputs[home.index], width) for home in found):
        return None
    return found


def _layer(node: ir.Node, width: int) -> list[Home] | None:
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int()
    weight = tensors.constant(node.inputs[1])
    if weight is None or len(weight.shape) != 2 or weight.shape[0 if transposed else 1] != width:
        return None
    found = [Home(node, 1, 0 if transposed else -1)]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        if not _broadcasts(node.inputs[2], width):
            return None
        found.append(Home(node, 2))
    return found if all(_is_float(node.inputs[home.index]) for home in found) else None


def _arithmetic(node: ir.Node, width: int) -> list[Home] | None:
    constants = [index for index in (0, 1) if tensors.constant(node.inputs[index]) is not None]
    if len(constants) == 1:
        index = constants[0]
        if not _broadcasts(node.inputs[index], width) or not _is_float(node.inputs[index]):
            return None
        if node.op_type == "Mul":
            return [Home(node, index)]
        other = _before(node.inputs[1 - index], width)
        return None if other is None else [*other, Home(node, index)]
    if node.op_type == "Mul" and not constants:
        # one factor of a gated product takes it all, where it is not broadcast along the channels
        for operand in node.inputs:
            if (
                operand is not None
                and operand.shape is not None
                and operand.shape.rank()
                and operand.shape[-1] == width
            ):
                found = _before(operand, width)
                if found is not None:
                    return found
    return None


def _is_float(value: ir.Value | None) -> bool:
    tensor = tensors.constant(value)
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT


def _is_vector(value: ir.Value | None, width: int) -> bool:
    tensor = tensors.constant(value)
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and tuple(tensor.shape) == (width,)


def _broadcasts(value: ir.Value | None, width: int) -> bool:
    """True for a constant of one number, or of one a channel along the last axis alone."""
    tensor = tensors.constant(value)
    if tensor is None:
        return False
    shape = list(tensor.shape)
    return tensor.size == 1 or (bool(shape) and shape[-1] == width == tensor.size)
