"""Writing com.microsoft MatMulNBits: ONNX Runtime's own kernel on packed weights.

Stands under ``passes.quantize_weights``; codes and scales come in ready. Unlike ``unpack`` the weights stay packed in memory, and at accuracy level 4
the kernel multiplies in int8: fewer bytes to move, which pays for few rows and costs for many. The kernel reads
``(code - zero) * scale`` with one scale for each block of inputs to an output, least code first in each byte; the zero is 2^(bits-1), or a
float32 of the block's own. With zeros of their own the weights are multiplied in float, whatever the accuracy level.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph import edit, quantizable
from edgeopt.graph.compact import Weight
from edgeopt.graph.qdq import QdqWriter
from edgeopt.graph.quantizable import Layer

BITS = (2, 4, 8)
ZERO_BITS = (2, 4)
"""The kernel takes zero points in float for these only."""
BLOCKS = (16, 32, 64, 128, 256)
ACCURACY_LEVELS = (0, 4)
_DOMAIN = "com.microsoft"


def suits(weight: Weight, layers: Mapping[ir.Node, Layer], block: int) -> bool:
    """Whether every reader is one of ``layers`` that the kernel can replace, and its blocks come out even."""
    readers = [use.node for use in weight.value.uses()]
    if not all(node.op_type in ("MatMul", "Gemm") and node in layers for node in readers):
        return False
    return all(layers[node].weight is weight.value for node in readers) and _inputs(weight) % block == 0


class KernelWriter:
    """Replaces layers of one model's main graph."""

    def __init__(self, model: ir.Model, *, accuracy_level: int) -> None:
        self._model = model
        self._writer = QdqWriter(model)
        self._accuracy_level = accuracy_level

    def write(
        self,
        weight: Weight,
        codes: NDArray[np.uint8],
        scale: NDArray[np.float32],
        *,
        bits: int,
        zero: NDArray[np.float32] | None = None,
    ) -> None:
        """Every reader of ``weight`` becomes the kernel. ``codes``: (outputs, inputs), ``scale`` and ``zero``: (outputs, blocks)."""
        outputs, inputs = codes.shape
        attributes = {
            "K": inputs,
            "N": outputs,
            "bits": bits,
            "block_size": inputs // scale.shape[1],
            "accuracy_level": self._accuracy_level,
        }
        packed = _packed(codes, bits).reshape(outputs, scale.shape[1], -1)
        constants = [
            self._writer.constant(f"{weight.name}_packed", packed),
            self._writer.constant(f"{weight.name}_scale", scale),
        ]
        if zero is not None:
            constants.append(self._writer.constant(f"{weight.name}_zero", zero))
        self._model.graph.opset_imports.setdefault(_DOMAIN, 1)
        for use in list(weight.value.uses()):
            self._replace(use.node, constants, attributes)

    def _replace(self, node: ir.Node, constants: list[ir.Value], attributes: dict[str, int]) -> None:
        name, output = quantizable.layer_name(node), node.outputs[0]
        packed = [ir.AttrInt64(key, value) for key, value in attributes.items()]
        kernel = ir.Node(_DOMAIN, "MatMulNBits", [node.inputs[0], *constants], packed, name=f"{name}_packed")
        self._writer.insert(node, kernel)
        result = kernel.outputs[0]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            result = self._writer.before(node, "Add", [result, bias], name)
        result.type, result.shape = output.type, output.shape.copy() if output.shape is not None else None
        edit.replace_value(output, result)
        edit.remove(node)


def _inputs(weight: Weight) -> int:
    return weight.size // weight.shape[weight.axis]


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes that follow each other in one byte, the first in its low bits."""
    digits = codes.reshape(-1, 8 // bits).astype(np.uint16)
    packed: NDArray[np.uint8] = (digits << (bits * np.arange(8 // bits))).sum(axis=1).astype(np.uint8)
    return packed
