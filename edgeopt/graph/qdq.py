"""Writing QuantizeLinear/DequantizeLinear pairs into a graph.

Stands under the quantization passes: they decide on scales, this room knows where the nodes go. Parameters come as numpy
arrays, so that no arithmetic lives here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph import edit, tensors
from edgeopt.graph.naming import Names


class QdqWriter:
    """Adds pairs to one model: constants to its main graph, where bodies see them too, nodes beside their reader."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._names = Names(model)
        self._constants: dict[bytes, ir.Value] = {}

    def constant(self, base: str, data: NDArray[Any]) -> ir.Value:
        """A constant of the graph; equal constants are stored once."""
        key = repr((data.dtype.str, data.shape)).encode() + data.tobytes()
        if key not in self._constants:
            self._constants[key] = edit.add_initializer(self._graph, self._names.fresh(base), data)
        return self._constants[key]

    def pair(
        self, value: ir.Value, scale: NDArray[np.float32], zero_point: NDArray[Any], *, readers: set[ir.Node] | None
    ) -> None:
        """Put a pair behind ``value``; everybody who read it reads the pair, or only ``readers`` where they are given."""
        uses = [use for use in value.uses() if readers is None or use.node in readers]
        parameters = [
            self.constant(f"{value.name}_scale", scale),
            self.constant(f"{value.name}_zero_point", zero_point),
        ]
        quantize = self._node("QuantizeLinear", [value, *parameters], f"{value.name}_quantized")
        quantize.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(zero_point.dtype))
        dequantize = self._node("DequantizeLinear", [quantize.outputs[0], *parameters], f"{value.name}_dequantized")
        dequantize.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        for node in (quantize, dequantize):
            node.outputs[0].shape = value.shape.copy() if value.shape is not None else None
        self._behind(value, quantize, dequantize)
        for use in uses:
            use.node.replace_input_with(use.idx, dequantize.outputs[0])

    def dequantized(
        self, reader: ir.Node, base: str, codes: NDArray[Any], *, scale: NDArray[np.float32], axis: int | None
    ) -> ir.Value:
        """A constant in integers with its DequantizeLinear in front of ``reader``; the zero point is in the middle."""
        middle = np.full(scale.shape, 128 if codes.dtype == np.uint8 else 0, codes.dtype)
        inputs = [self.constant(f"{base}_quantized", codes), self.constant(f"{base}_scale", scale)]
        # An int32 zero point may be left out, and TensorRT does not take one.
        if codes.dtype != np.int32:
            inputs.append(self.constant(f"{base}_zero_point", middle))
        node = self._node("DequantizeLinear", inputs, f"{base}_dequantized")
        if axis is not None:
            node.attributes["axis"] = ir.AttrInt64("axis", axis)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape(codes.shape)
        _graph_of(reader).insert_before(reader, node)
        return node.outputs[0]

    def shield(self, node: ir.Node, channels: int) -> None:
        """Keep a float Conv, ConvTranspose or Gemm between two pairs in float; needs opset 13.

        ONNX Runtime takes such a layer for one whose weights somebody forgot, and quantizes them itself with one scale for the whole
        tensor (its WeightBiasQuantization). It does so only behind a DequantizeLinear with a single scale; this gives the layer one
        of its own with the same scale for each of its ``channels``.
        """
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        if source is None or source.op_type != "DequantizeLinear":
            return
        scale = tensors.array(source.inputs[1])
        if scale is None or scale.size != 1:
            return
        zero_point = tensors.array(source.inputs[2]) if len(source.inputs) > 2 else None
        base = f"{source.outputs[0].name}_float"
        inputs = [source.inputs[0], self.constant(f"{base}_scale", np.full(channels, scale.reshape(()), scale.dtype))]
        if zero_point is not None:
            repeated = np.full(channels, zero_point.reshape(()), zero_point.dtype)
            inputs.append(self.constant(f"{base}_zero_point", repeated))
        dequantize = self._node("DequantizeLinear", inputs, base)
        dequantize.attributes["axis"] = ir.AttrInt64("axis", 1)
        output = dequantize.outputs[0]
        output.type, output.shape = source.outputs[0].type, source.outputs[0].shape
        self._graph.insert_after(source, dequantize)
        node.replace_input_with(0, output)

    def dynamic_quantize(self, value: ir.Value, base: str, *, graph: ir.Graph) -> list[ir.Value]:
        """Codes, scale and zero point of ``value``, computed at run time in ``graph``; opset 11.

        A body that reads a tensor from outside quantizes it itself: ONNX Runtime fuses what lies in one graph, and a branch that
        is not taken costs nothing.
        """
        node = ir.Node("", "DynamicQuantizeLinear", [value], num_outputs=3, name=self._names.fresh(base))
        types = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
        for output, suffix, dtype in zip(node.outputs, ("codes", "scale", "zero_point"), types, strict=True):
            output.name, output.type = self._names.fresh(f"{base}_{suffix}"), ir.TensorType(dtype)
        if value.producer() is None or value.graph is not graph:
            graph.insert_before(graph[0], node)
        else:
            self._behind(value, node)
        return list(node.outputs)

    def dequantize_behind(self, node: ir.Node, base: str, scale: NDArray[np.float32], zero_point: NDArray[Any]) -> None:
        """``node`` now yields codes: everybody who read its output reads their real values."""
        output = node.outputs[0]
        inputs = [self.constant(f"{base}_scale", scale), self.constant(f"{base}_zero_point", zero_point)]
        dequantize = self._node("DequantizeLinear", [output, *inputs], f"{base}_dequantized")
        result = dequantize.outputs[0]
        result.type, result.shape = output.type, output.shape.copy() if output.shape is not None else None
        edit.replace_value(output, result)
        dequantize.replace_input_with(0, output)
        output.type = ir.TensorType(ir.DataType.from_numpy(zero_point.dtype))
        edit.insert_after(node, dequantize)

    def before(self, anchor: ir.Node, operator: str, inputs: list[ir.Value], base: str, **attributes: int) -> ir.Value:
        """The output of a new float operator in front of ``anchor``."""
        node = self._node(operator, inputs, f"{base}_{operator}")
        for name, value in attributes.items():
            node.attributes[name] = ir.AttrInt64(name, value)
        _graph_of(anchor).insert_before(anchor, node)
        return node.outputs[0]

    def append(self, operator: str, inputs: Sequence[ir.Value | None], base: str, *attributes: ir.Attr) -> ir.Value:
        """The float output of a new operator at the end of the main graph."""
        node = self._node(operator, inputs, base)
        for attribute in attributes:
            node.attributes[attribute.name] = attribute
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        self._graph.append(node)
        return node.outputs[0]

    def insert(self, anchor: ir.Node, node: ir.Node) -> None:
        """Put a ready node in front of ``anchor`` and name its outputs."""
        for index, output in enumerate(node.outputs):
            output.name = self._names.fresh(f"{node.name}_{index}")
        _graph_of(anchor).insert_before(anchor, node)

    def _behind(self, value: ir.Value, *nodes: ir.Node) -> None:
        producer = value.producer()
        if producer is not None:
            _graph_of(producer).insert_after(producer, nodes)
        else:
            self._graph.insert_before(self._graph[0], nodes)

    def _node(self, operator: str, inputs: Sequence[ir.Value | None], base: str) -> ir.Node:
        name = self._names.fresh(base)
        node = ir.Node("", operator, inputs, name=name)
        node.outputs[0].name = name
        return node


def _graph_of(node: ir.Node) -> ir.Graph:
    if not isinstance(node.graph, ir.Graph):
        raise ValueError(f"node {node.name!r} is in no graph")  # noqa: TRY004  # a caller's slip, not a type to pass
    return node.graph
