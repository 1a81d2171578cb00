"""Writing packed weights into a graph, with the nodes that unpack them.

Stands under ``passes.quantize_weights``; arrays come in ready, no arithmetic lives here. Only Cast, Gather, Add, Slice, Reshape and Mul of
constants are written: ONNX Runtime folds them when it loads the model, so that the layer sees the float weight it
always saw and runs at its speed. DequantizeLinear is not folded: ONNX Runtime keeps it in front of the layer and computes it
again at every inference (2.6 times slower on EfficientNet-lite0), unless the session says ``session.disable_quant_qdq``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph import edit
from edgeopt.graph.compact import Weight
from edgeopt.graph.qdq import QdqWriter

_FLOAT = int(ir.DataType.FLOAT)
_INT32 = int(ir.DataType.INT32)


@dataclass(frozen=True, slots=True)
class Packed:
    """Bytes, and for each possible byte the digits it holds: [bytes], [256, digits]."""

    data: NDArray[np.uint8]
    table: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Levels:
    """A packed weight; ``scale`` and ``zero`` broadcast over ``view``."""

    planes: tuple[Packed, ...]
    codebook: NDArray[np.float32]
    scale: NDArray[np.float16]
    zero: NDArray[np.float16] | None
    view: tuple[int, ...]


class Unpacker:
    """Replaces weights of one model's main graph."""

    def __init__(self, model: ir.Model) -> None:
        self._writer = QdqWriter(model)
        self._first = model.graph[0]
        self._tables: dict[bytes, ir.Value] = {}

    def scaled(self, weight: Weight, codes: NDArray[np.int8], scale: NDArray[np.floating]) -> None:
        """``codes`` in the weight's shape times ``scale``, which broadcasts: two nodes."""
        value = self._cast(self._constant(weight, "codes", codes), weight, to=_FLOAT)
        self._replace(weight, self._times(value, weight, scale))

    def looked_up(self, weight: Weight, codes: NDArray[np.int8], scale: NDArray[np.float32]) -> None:
        """A lookup table that stays in int8 in memory: only the rows that are found become float. ``scale``: (rows, 1 ...)."""
        for use in list(weight.value.uses()):
            node = use.node
            output, indices = node.outputs[0], node.inputs[1]
            if indices is None:
                continue
            tables = (self._constant(weight, "codes", codes), self._constant(weight, "scale", scale))
            found, factor = (self._before(node, "Gather", [table, indices], weight) for table in tables)
            real = self._before(node, "Cast", [found], weight, to=_FLOAT)
            result = self._before(node, "Mul", [real, factor], weight)
            result.type, result.shape = output.type, output.shape.copy() if output.shape is not None else None
            edit.replace_value(output, result)
            if node is self._first:
                self._first = found.producer() or node
            edit.remove(node)

    def levels(self, weight: Weight, packed: Levels) -> None:
        """The layer reads ``(codebook[sum of the planes' digits] - zero) * scale``."""
        code = self._codes(weight, packed.planes, weight.size)
        real = self._at_first("Gather", [self._constant(weight, "codebook", packed.codebook), code], weight)
        real = self._reshaped(real, weight, packed.view)
        if packed.zero is not None:
            zero = self._cast(self._constant(weight, "zero", packed.zero), weight, to=_FLOAT)
            real = self._at_first("Sub", [real, zero], weight)
        real = self._times(real, weight, packed.scale)
        self._replace(weight, real if packed.view == weight.shape else self._reshaped(real, weight, weight.shape))

    def _codes(self, weight: Weight, planes: tuple[Packed, ...], count: int) -> ir.Value:
        """The first ``count`` codes: the sum of the planes' digits, flat."""
        code = self._digits(weight, planes[0], count)
        for plane in planes[1:]:
            code = self._at_first("Add", [code, self._digits(weight, plane, count)], weight)
        return code

    def _digits(self, weight: Weight, plane: Packed, count: int) -> ir.Value:
        """The first ``count`` digits of a plane, flat."""
        bytes_ = self._cast(self._constant(weight, "packed", plane.data), weight, to=_INT32)
        found = self._at_first("Gather", [self._table(plane, weight), bytes_], weight)
        flat = self._reshaped(found, weight, (-1,))
        if plane.data.size * plane.table.shape[1] == count:
            return flat
        ends = [self._writer.constant("ends", np.array([end], np.int64)) for end in (0, count)]
        return self._at_first("Slice", [flat, *ends], weight)

    def _table(self, plane: Packed, weight: Weight) -> ir.Value:
        """The plane's table in int32, which is what Add and Gather take; one for all weights."""
        key = plane.table.tobytes()
        if key not in self._tables:
            digits = self._writer.constant("digits_of_bytes", plane.table)
            self._tables[key] = self._cast(digits, weight, to=_INT32)
        return self._tables[key]

    def _times(self, value: ir.Value, weight: Weight, scale: NDArray[np.floating]) -> ir.Value:
        factor = self._constant(weight, "scale", scale)
        if scale.dtype == np.float16:
            factor = self._cast(factor, weight, to=_FLOAT)
        return self._at_first("Mul", [value, factor], weight)

    def _reshaped(self, value: ir.Value, weight: Weight, shape: tuple[int, ...]) -> ir.Value:
        sides = self._writer.constant("sides", np.array(shape, np.int64))
        return self._at_first("Reshape", [value, sides], weight)

    def _cast(self, value: ir.Value, weight: Weight, *, to: int) -> ir.Value:
        return self._at_first("Cast", [value], weight, to=to)

    def _constant(self, weight: Weight, what: str, data: NDArray[np.generic]) -> ir.Value:
        return self._writer.constant(f"{weight.name}_{what}", data)

    def _at_first(self, operator: str, inputs: list[ir.Value], weight: Weight, **attributes: int) -> ir.Value:
        return self._before(self._first, operator, inputs, weight, **attributes)

    def _before(
        self, anchor: ir.Node, operator: str, inputs: list[ir.Value], weight: Weight, **attributes: int
    ) -> ir.Value:
        return self._writer.before(anchor, operator, inputs, weight.name, **attributes)

    @staticmethod
    def _replace(weight: Weight, value: ir.Value) -> None:
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(weight.shape)
        weight.value.replace_all_uses_with(value)
