"""Writing weights in the standard's own form: DequantizeLinear in front of the layer, int8 by channel or int4 by block.

Stands under ``passes.quantize_weights``; codes and scales come in ready. ONNX Runtime and TensorRT both read this, within what TensorRT demands: scales above
zero, zero points of zero, blocks along the last two axes only, and no 8-bit constant that anything but DequantizeLinear reads. ONNX Runtime's CPU kernels do
not fold it at load (see ``unpack``): there it is the slower form, unless the session says ``session.disable_quant_qdq``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.errors import PassFailed
from edgeopt.graph import opset
from edgeopt.graph.compact import Weight
from edgeopt.graph.qdq import QdqWriter
from edgeopt.graph.quantizable import Layer

BITS = (4, 8)
OPSET = 21
"""The first with int4 and with scales by block."""
IR_VERSION = 10


def suits(weight: Weight, layers: Mapping[ir.Node, Layer]) -> bool:
    """Whether all readers are layers and read it as their weight."""
    readers = [use.node for use in weight.value.uses()]
    return all(node in layers and layers[node].weight is weight.value for node in readers)


def block_of(weight: Weight, wanted: int) -> int:
    """Inputs that may share a scale: all of a convolution's, whose channels are not among the last two axes."""
    inputs = weight.size // weight.shape[weight.axis]
    return wanted if wanted and len(weight.shape) == 2 and inputs % wanted == 0 else inputs


class PortableWriter:
    """Puts DequantizeLinear in front of layers of one model's main graph."""

    def __init__(self, model: ir.Model) -> None:
        self._writer = QdqWriter(model)

    def write(self, weight: Weight, codes: NDArray[np.int8], scale: NDArray[np.float32], *, bits: int) -> None:
        """``codes`` in the weight's shape, ``scale``: (outputs, blocks)."""
        import ml_dtypes

        stored = codes.astype(ml_dtypes.int4) if bits == 4 else codes
        blocks = scale.shape[1]
        inputs = weight.size // weight.shape[weight.axis]
        if blocks == 1:
            scale, axis = scale[:, 0], weight.axis
        else:
            axis = 1 - weight.axis
            scale = (scale if weight.axis == 0 else scale.T).reshape(*_blocked(weight, axis, blocks))
        names = [
            self._writer.constant(f"{weight.name}_quantized", stored),
            self._writer.constant(f"{weight.name}_scale", np.ascontiguousarray(scale, np.float32)),
            self._writer.constant(f"{weight.name}_zero_point", np.zeros(scale.shape, stored.dtype)),
        ]
        attributes = {"axis": axis} | ({"block_size": inputs // blocks} if blocks > 1 else {})
        real = self._writer.before(weight.reader, "DequantizeLinear", names, weight.name, **attributes)
        real.type, real.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(weight.shape)
        weight.value.replace_all_uses_with(real)


def _blocked(weight: Weight, axis: int, blocks: int) -> tuple[int, ...]:
    return tuple(blocks if index == axis else side for index, side in enumerate(weight.shape))


def prepared(model: ir.Model) -> ir.Model:
    """``model`` at an opset that has int4 and 16-bit codes; :class:`~edgeopt.errors.PassFailed` where it cannot be raised."""
    newer = opset.raised(model, OPSET)
    if opset.opset(newer) < OPSET:
        raise PassFailed(
            f"opset {opset.opset(model)} has no int4 or uint16 codes and cannot be raised to {OPSET}",
            hint=f"Export the model again with opset_version={OPSET}.",
        )
    newer.ir_version = max(newer.ir_version, IR_VERSION)
    return newer
