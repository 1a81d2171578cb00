"""Which weights of a graph are worth storing in fewer bits, and what they look like as rows.

Stands under ``passes.quantize_weights``; looks, never edits. A weight is a float32 constant that no caller may override, wherever it lies and whoever
reads it: layers, lookup tables, recurrent cells, in the main graph or in a body of If, Loop or Scan. Its *rows* are its output channels, since those get scales of their own; a lookup table's rows are its
entries. Two readers share one weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph import tensors

Code = TypeVar("Code", np.uint8, np.int8, np.float32)

LEAST_ELEMENTS = 256
"""Smaller constants save next to nothing: the node that unpacks one and its scales take some two hundred bytes."""
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Weight:
    """One constant and who reads it. ``axis``: its output channels; ``reader``: the first node that reads it."""

    name: str
    value: ir.Value
    axis: int
    reader: ir.Node
    shape: tuple[int, ...]

    @property
    def is_table(self) -> bool:
        return self.reader.op_type == "Gather"

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def array(self) -> NDArray[np.float32]:
        return np.asarray(tensors.array(self.value), np.float32)

    def rows(self) -> NDArray[np.float32]:
        """(output channels, everything else); what lies before the axis counts as channels where it is a stack of matrices."""
        return self.to_rows(self.array())

    def to_rows(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.axis == 0 or self._stacked:
            return data.reshape(int(np.prod(self.shape[: self.axis + 1])), -1)
        return np.ascontiguousarray(np.moveaxis(data, self.axis, 0)).reshape(self.shape[self.axis], -1)

    def from_rows(self, rows: NDArray[Code]) -> NDArray[Code]:
        """Back in the weight's own order and shape."""
        if self.axis == 0 or self._stacked:
            return rows.reshape(self.shape)
        moved = (self.shape[self.axis], *(side for index, side in enumerate(self.shape) if index != self.axis))
        return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, self.axis))

    def view(self, block: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape in which a scale broadcasts, and the scale's own: blocks lie within the rows."""
        if self.axis == 0 or self._stacked:
            rows = int(np.prod(self.shape[: self.axis + 1]))
            blocks = self.size // rows // block
            return (rows, blocks, block), (rows, blocks, 1)
        if len(self.shape) == 2:
            inputs, outputs = self.shape
            return (inputs // block, block, outputs), (inputs // block, 1, outputs)
        return self.shape, self.row_sides

    def scale_view(self, scale: NDArray[np.float16], block: int) -> NDArray[np.float16]:
        """(rows, blocks) in the shape of :meth:`view`."""
        _, shape = self.view(block)
        ordered = scale if self.axis == 0 or self._stacked else scale.T
        return np.ascontiguousarray(ordered).reshape(shape)

    @property
    def row_sides(self) -> tuple[int, ...]:
        """The shape in which one number a row broadcasts over the weight itself."""
        if self._stacked:
            return (*self.shape[: self.axis + 1], *[1] * (len(self.shape) - self.axis - 1))
        return tuple(side if index == self.axis else 1 for index, side in enumerate(self.shape))

    @property
    def may_block(self) -> bool:
        """Whether scales within a row can broadcast at all: not across a transposed kernel."""
        return self.axis == 0 or self._stacked or len(self.shape) == 2

    @property
    def _stacked(self) -> bool:
        return self.reader.op_type in ("LSTM", "GRU", "RNN")


def weights(graph: ir.Graph) -> list[Weight]:
    """The weights that ``graph`` and the bodies in it read, in the order of their first readers."""
    found: dict[ir.Value, Weight] = {}
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.inputs:
            if value is None or value in found or not _is_weight(value):
                continue
            tensor = tensors.constant(value)
            shape = tuple(int(side) for side in tensor.shape.numpy()) if tensor is not None else ()
            found[value] = Weight(str(value.name), value, _axis(node, value, len(shape)), node, shape)
    return list(found.values())


def zeros(graph: ir.Graph) -> float:
    """The share of all :func:`weights` that is exactly zero; 0 where there are none."""
    nonzero = total = 0
    for weight in weights(graph):
        nonzero += int(np.count_nonzero(weight.array()))
        total += weight.size
    return 1 - nonzero / total if total else 0.0


def _is_weight(value: ir.Value) -> bool:
    producer = value.producer()
    if value.is_graph_output() or (producer is not None and producer.op_type != "Constant"):
        return False
    tensor = tensors.constant(value)
    return (
        tensor is not None
        and tensor.dtype == ir.DataType.FLOAT
        and tensor.size >= LEAST_ELEMENTS
        and len(tensor.shape) > 1
    )


def _axis(node: ir.Node, value: ir.Value, rank: int) -> int:
    """The axis of the output channels, by the reader's kind."""
    if node.domain not in _STANDARD:
        return rank - 1
    transposed = node.attributes.get("transB")
    known = {
        "ConvTranspose": 1,
        "Gemm": 0 if transposed is not None and transposed.as_int() else 1,
        "MatMul": rank - 1 if node.inputs[-1] is value else 0,
        "LSTM": 1,
        "GRU": 1,
        "RNN": 1,
    }
    return known.get(node.op_type, 0)
