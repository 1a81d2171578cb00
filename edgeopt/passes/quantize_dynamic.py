"""Dynamic 8-bit quantization: integer weights now, activation scales computed at every inference.

Runs after the graph is clean, and after transformer fusion where that pays. Needs no data, but is lossy all the same.
MatMul and Gemm become DynamicQuantizeLinear + MatMulInteger, which ONNX Runtime fuses to DynamicQuantizeMatMul or
MatMulIntegerToFloat; so does the projection that a fused Attention holds (``graph.projections``). LSTM becomes
com.microsoft DynamicQuantizeLSTM. Bodies of If, Loop and Scan are treated like the main graph, where the constants of all lie, so that what
several share is stored once. Convolutions stay float: their dynamic kernel, ConvInteger, is many times slower than float; GRU
has none.

Settings (all optional):

- ``weight``        int8 | uint8
- ``per_channel``   one weight scale for each output channel
- ``reduced_range`` weights only as wide as x86 kernels without VNNI add up exactly, see ``calibrate.saturation``
- ``embeddings``    lookup tables in int8, dequantized behind the lookup: a quarter of their bytes, no speed
- ``unsigned``      JSON list of names of layers whose weights become uint8 of full range: x86 kernels without VNNI add those up exactly, more slowly
- ``skip``          JSON list of names of nodes that stay float
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeopt.calibrate import qparams
from edgeopt.calibrate.qparams import DtypeName, QParams
from edgeopt.calibrate.scheme import read_names, read_settings
from edgeopt.errors import PassFailed
from edgeopt.graph import edit, projections, quantizable, tensors
from edgeopt.graph.qdq import QdqWriter
from edgeopt.graph.quantizable import Layer
from edgeopt.protocols import Evidence, Settings
from edgeopt.records import Signature, Target

if TYPE_CHECKING:
    from edgeopt.protocols import Model

_OLDEST_OPSET = 11
_LAYERS = ("MatMul", "Gemm")
_SMALLEST_TABLE = 1 << 16
"""Elements below which a lookup table is not worth a node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicScheme:
    """The settings, checked."""

    weight: DtypeName = "int8"
    per_channel: bool = True
    reduced_range: bool = False
    embeddings: bool = False
    unsigned: str = "[]"
    skip: str = "[]"


class QuantizeDynamic:
    """Float32 in, integer weights out; the interface stays float."""

    name = "quantize_dynamic"
    lossless = False
    needs_data = False

    def refuse(self, signature: Signature, target: Target) -> str | None:
        """No layer with a dynamic integer kernel, quantized already, or a target that has no such kernels."""
        if signature.quantized:
            return "the model is quantized already"
        if target.name.startswith("tensorrt"):
            return "TensorRT has no DynamicQuantizeLinear"
        if not signature.count("MatMul", "Gemm", "LSTM", "com.microsoft::Attention"):
            if signature.count("GRU"):
                return "ONNX Runtime has no dynamic integer kernel for GRU"
            return "the model has no MatMul, Gemm or LSTM; dynamic integer convolution is slower than float"
        return None

    def apply(self, model: Model, settings: Settings, evidence: Evidence) -> Model:  # noqa: ARG002 - needs no data
        """The quantized model; raises :class:`~edgeopt.errors.PassFailed` where nothing can be quantized."""
        scheme = read_settings(DynamicScheme, settings, technique=self.name)
        opset = model.opset_imports.get("", 0)
        if opset < _OLDEST_OPSET:
            raise PassFailed(
                f"opset {opset} is older than {_OLDEST_OPSET}, the first with DynamicQuantizeLinear",
                hint="Run tidy first, which raises the opset.",
            )
        quantized = edit.copy(model)
        if not _DynamicQuantizer(quantized, scheme).write():
            raise PassFailed(
                "no MatMul, Gemm or LSTM with constant float32 weights is left to quantize",
                hint="Leave this technique out for this model.",
            )
        edit.prune(quantized)
        return quantized

    def layers(self, model: Model) -> tuple[str, ...]:
        """Names of the layers that would be quantized, in graph order: what ``skip`` may list."""
        spelled_out = edit.copy(model)
        projections.spell_out(spelled_out)
        wanted = {layer.node for layer in quantizable.everywhere(spelled_out, operators=_LAYERS)}
        wanted.update(quantizable.lstms(spelled_out))
        names = [quantizable.layer_name(node) for node in edit.nodes(spelled_out) if node in wanted]
        return tuple(dict.fromkeys(names))


class _DynamicQuantizer:
    """One dynamic quantization of one model."""

    def __init__(self, model: ir.Model, scheme: DynamicScheme) -> None:
        self._model = model
        self._writer = QdqWriter(model)
        self._scheme = scheme
        self._skip = read_names(scheme.skip)
        self._unsigned = read_names(scheme.unsigned)
        self._inputs: dict[tuple[ir.Value, object], list[ir.Value]] = {}

    def write(self) -> int:
        """How many layers were quantized."""
        projections.spell_out(self._model, skip=self._skip)
        found = quantizable.everywhere(self._model, operators=_LAYERS)
        layers = [layer for layer in found if layer.name not in self._skip]
        for layer in layers:
            self._write_matmul(layer)
        lstms = [node for node in quantizable.lstms(self._model) if quantizable.layer_name(node) not in self._skip]
        for node in lstms:
            self._write_lstm(node)
        if self._scheme.embeddings:
            for node in [node for node in edit.nodes(self._model) if node.op_type == "Gather"]:
                self._write_table(node)
        return len(layers) + len(lstms)

    def _parameters(
        self, weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]], axis: int, *, name: str
    ) -> QParams:
        is_unsigned = name in self._unsigned
        return qparams.weight_qparams(
            weight,
            dtype="uint8" if is_unsigned else self._scheme.weight,
            axis=axis if self._scheme.per_channel else None,
            reduced_range=self._scheme.reduced_range and not is_unsigned,
        )

    def _write_matmul(self, layer: Layer) -> None:
        weight = np.asarray(tensors.array(layer.weight), np.float32)
        weight = np.ascontiguousarray(np.moveaxis(weight, layer.weight_axis, 1))
        parameters = self._parameters(weight, 1, name=layer.name)
        base = str(layer.weight.name)
        codes = self._writer.constant(f"{base}_quantized", qparams.quantize(weight, parameters))
        zero_point = self._writer.constant(f"{base}_zero_point", parameters.zero_point)
        scale = self._writer.constant(f"{base}_scale", parameters.scale)
        quantized, input_scale, input_zero_point = self._dynamic(layer)
        node, name = layer.node, layer.name
        write = self._writer.before
        product = write(node, "MatMulInteger", [quantized, codes, input_zero_point, zero_point], name)
        product = write(node, "Cast", [product], name, to=int(ir.DataType.FLOAT))
        scales = write(node, "Mul", [input_scale, scale], name)
        result = write(node, "Mul", [product, scales], name)
        if layer.bias is not None:
            result = write(node, "Add", [result, layer.bias], name)
        self._replace(node, [result])

    def _dynamic(self, layer: Layer) -> list[ir.Value]:
        """The layer's input as codes, scale and zero point; layers of one graph that read the same tensor share them."""
        # Not ``layer.data``: that may have been the output of a layer that is written by now.
        data, graph = layer.node.inputs[0], layer.node.graph
        assert data is not None and isinstance(graph, ir.Graph)  # noqa: S101, PT018 - a layer was found in one
        key = (data, graph)
        if key not in self._inputs:
            self._inputs[key] = self._writer.dynamic_quantize(data, f"{data.name}_quantized", graph=graph)
        return self._inputs[key]

    def _write_lstm(self, node: ir.Node) -> None:
        inputs: list[ir.Value | None] = [*node.inputs, *([None] * (8 - len(node.inputs)))]
        scales: list[ir.Value | None] = []
        for index in (1, 2):
            value = node.inputs[index]
            # (directions, 4 * hidden, inputs) in ONNX, (directions, inputs, 4 * hidden) in the integer operator.
            weight = np.asarray(tensors.array(value), np.float32).transpose(0, 2, 1)
            parameters = [self._parameters(matrix, 1, name=quantizable.layer_name(node)) for matrix in weight]
            codes = np.stack(
                [qparams.quantize(matrix, found) for matrix, found in zip(weight, parameters, strict=True)]
            )
            base = str(value.name) if value is not None else "lstm"
            inputs[index] = self._writer.constant(f"{base}_quantized", codes)
            scales.append(self._writer.constant(f"{base}_scale", np.stack([found.scale for found in parameters])))
            zero_points = np.stack([found.zero_point for found in parameters])
            scales.append(self._writer.constant(f"{base}_zero_point", zero_points))
        integer = ir.Node(
            "com.microsoft", "DynamicQuantizeLSTM", [*inputs, *scales],
[attribute for name, attribute in node.attributes.items() if name != "layout"],
            num_outputs=len(node.outputs), name=f"{quantizable.layer_name(node)}_quantized",
        )  # fmt: skip
        self._model.opset_imports.setdefault("com.microsoft", 1)
        self._writer.insert(node, integer)
        self._replace(node, list(integer.outputs))

    def _write_table(self, node: ir.Node) -> None:
        """Behind the lookup instead of before it: the table stays in int8 in memory, and only the rows found are converted."""
        table = tensors.constant(node.inputs[0])
        axis = node.attributes.get("axis")
        rows_first = axis is None or axis.as_int() == 0
        if table is None or table.dtype != ir.DataType.FLOAT or len(table.shape) != 2 or not rows_first:
            return
        if table.size < _SMALLEST_TABLE or quantizable.layer_name(node) in self._skip:
            return
        base = str(node.inputs[0].name)  # type: ignore[union-attr] # a constant was found behind it
        values = np.asarray(table.numpy(), np.float32)
        parameters = qparams.weight_qparams(values, axis=None)
        node.replace_input_with(0, self._writer.constant(f"{base}_quantized", qparams.quantize(values, parameters)))
        self._writer.dequantize_behind(node, base, parameters.scale, parameters.zero_point)

    def _replace(self, node: ir.Node, values: list[ir.Value]) -> None:
        for old, new in zip(node.outputs, values, strict=True):
            new.type, new.shape = old.type, old.shape.copy() if old.shape is not None else None
            edit.replace_value(old, new)
        edit.remove(node)
