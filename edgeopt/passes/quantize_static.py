"""Static 8-bit quantization: ranges from calibration data, pairs where the runtime has integer kernels.

Runs after the graph is clean and its batch norms are folded. In comes a float32 model and the evidence, out goes the same
model with QuantizeLinear/DequantizeLinear pairs placed so that ONNX Runtime fuses them to QLinearConv, QGemm, QLinearAdd and so on. Three steps:
``place`` says where, ``collect`` says which values occur there, ``qparams`` makes numbers of both.

Settings (all optional):

- ``method``          min_max | moving_average | percentile | entropy | mse, see ``calibrate.ranges``
- ``activation``      uint8 | int8; ``weight``: int8 | uint8
- ``per_channel``     one weight scale for each output channel
- ``reduced_range``   7-bit weights, for x86 kernels that saturate (no VNNI)
- ``symmetric``       activations with their zero in the middle and float biases: what TensorRT takes
- ``depthwise``       false leaves convolutions of one input channel a group float: TensorRT has no integer kernel for
                      them and pads every group to four channels
- ``bias_correction`` off | analytic | empirical: by what rounding the weights does to the mean output (``calibrate.bias``), or by what the target's
                      kernels were seen to do to it (``calibrate.kernel_error``); true and false stand for analytic and off
- ``skip``            JSON list of names of nodes that stay float
- ``unsigned``        JSON list of names of layers whose weights become uint8 of full range: x86 kernels without VNNI add those up exactly, more slowly
- ``wide``            JSON list of names of layers that read and write 16 bits (uint16 activations, int8 weights): needs opset 21 and a runtime
                      with such kernels; ONNX Runtime's CPU kernels have none and compute these layers in float
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.calibrate import bias as bias_correction
from edgeopt.calibrate import qparams
from edgeopt.calibrate.collect import Observation, collect
from edgeopt.calibrate.kernel_error import kernel_errors
from edgeopt.calibrate.qparams import ActivationName, DtypeName, QParams
from edgeopt.calibrate.ranges import METHODS, Grid, range_of
from edgeopt.calibrate.scheme import read_names, read_settings
from edgeopt.errors import PassFailed
from edgeopt.graph import edit, portable, quantizable, tensors
from edgeopt.graph.gemm import fuse_gemm
from edgeopt.graph.qdq import QdqWriter
from edgeopt.graph.quantizable import Layer, Placement
from edgeopt.protocols import Evidence, Settings
from edgeopt.records import Signature, Target

if TYPE_CHECKING:
    from edgeopt.protocols import Model

_PER_CHANNEL_OPSET = 13
_OLDEST_OPSET = 10
_CORRECTIONS = ("off", "analytic", "empirical")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """The settings, checked."""

    method: str = "min_max"
    activation: DtypeName = "uint8"
    weight: DtypeName = "int8"
    per_channel: bool = True
    reduced_range: bool = False
    symmetric: bool = False
    depthwise: bool = True
    bias_correction: str = "off"
    skip: str = "[]"
    unsigned: str = "[]"
    wide: str = "[]"

    def check(self) -> None:
        """Raises :class:`~edgeopt.errors.PassFailed` for what has no kernels."""
        if self.method not in METHODS:
            raise PassFailed(f"{self.method!r} is no calibration method", hint=f"Use one of {', '.join(METHODS)}.")
        if self.activation == "int8" and (self.weight == "uint8" or read_names(self.unsigned)):
            raise PassFailed("uint8 weights have no integer kernel beside int8 activations", hint="Use int8 weights.")
        if self.bias_correction not in _CORRECTIONS:
            raise PassFailed(
                f"{self.bias_correction!r} is no way to correct biases", hint=f"Use one of {', '.join(_CORRECTIONS)}."
            )
        if self.symmetric and read_names(self.wide):
            raise PassFailed(
                "symmetric activations are for TensorRT, which has no 16-bit ones", hint="Leave wide out, or symmetric."
            )


class QuantizeStatic:
    """Float32 in, 8-bit QDQ out."""

    name = "quantize_static"
    lossless = False
    needs_data = True

    def refuse(self, signature: Signature, target: Target) -> str | None:  # noqa: ARG002 - the protocol's; every target has 8-bit kernels
        """A model without layers to quantize, or one that is quantized already."""
        if signature.quantized:
            return "the model is quantized already"
        if not signature.count(*quantizable.LAYERS):
            return "the model has no Conv, Gemm or MatMul"
        return None

    def apply(self, model: Model, settings: Settings, evidence: Evidence) -> Model:
        """The quantized model; raises :class:`~edgeopt.errors.PassFailed` where nothing can be quantized."""
        scheme = read_settings(Scheme, _spelled_out(settings), technique=self.name)
        scheme.check()
        _check_opset(model, scheme)
        fused = edit.copy(model)
        if read_names(scheme.wide):
            fused = portable.prepared(fused)
        fuse_gemm(fused)
        skip = read_names(scheme.skip)
        if not scheme.depthwise:
            skip |= quantizable.depthwise(fused.graph)
        layers = quantizable.place(fused.graph, skip=skip).layers
        if not layers:
            raise PassFailed(
                f"no Conv, Gemm or MatMul with a constant float32 weight is left to quantize ({len(skip)} skipped)",
                hint="Leave this technique out for this model.",
            )
        observations = observe(fused, evidence)
        quantized = _quantized(fused, scheme, skip, observations)
        if scheme.bias_correction != "empirical":
            return quantized
        return _quantized(fused, scheme, skip, observations, kernel_errors(quantized, layers, evidence))

    def layers(self, model: Model) -> tuple[str, ...]:
        """Names of the layers that would be quantized, in graph order: what ``skip`` may list."""
        fused = edit.copy(model)
        fuse_gemm(fused)
        return tuple(layer.name for layer in quantizable.place(fused.graph).layers)


def observe(model: Model, evidence: Evidence) -> dict[str, Observation]:
    """Everything static quantization may want to know of ``model``, whatever the settings: one pass for all recipes."""
    everything = quantizable.place(model.graph)
    names = dict.fromkeys(str(everything.root(value).name) for value in everything.tensors())
    # Not only the roots: where a layer is skipped, a moved tensor may lose its root and need its own range.
    names.update(dict.fromkeys(str(value.name) for value in everything.tensors()))
    channels = {str(layer.data.name): layer.channel_axis for layer in everything.layers}
    return collect(model, sorted(names), evidence, channels=channels)


def _spelled_out(settings: Settings) -> Settings:
    """Recipes knew two ways to correct biases, true and false, before there was a third."""
    given = settings.get("bias_correction")
    return {**settings, "bias_correction": "analytic" if given else "off"} if isinstance(given, bool) else settings


def _quantized(
    fused: ir.Model,
    scheme: Scheme,
    skip: frozenset[str],
    observations: dict[str, Observation],
    errors: Mapping[str, NDArray[np.float64]] = MappingProxyType({}),
) -> ir.Model:
    """A quantized copy; ``errors`` are the kernels' own by name of the layer, where they were seen."""
    quantized = edit.copy(fused)
    placement = quantizable.place(quantized.graph, skip=skip)
    _Quantizer(quantized, placement, scheme, observations, errors).write()
    edit.prune(quantized)
    return quantized


class _Quantizer:
    """One quantization of one model."""

    def __init__(
        self,
        model: ir.Model,
        placement: Placement,
        scheme: Scheme,
        observations: dict[str, Observation],
        errors: Mapping[str, NDArray[np.float64]],
    ) -> None:
        self._writer = QdqWriter(model)
        self._placement = placement
        self._scheme = scheme
        self._observations = observations
        self._errors = errors
        self._parameters: dict[ir.Value, QParams] = {}
        wide = read_names(scheme.wide)
        ends = [value for layer in placement.layers if layer.name in wide for value in (layer.data, layer.output)]
        self._wide = {placement.root(value) for value in ends}
        self._unsigned = read_names(scheme.unsigned)
        opset = model.opset_imports.get("", 0)
        quantized = {layer.node for layer in placement.layers}
        self._floats = quantizable.float_layers(model.graph, quantized) if opset >= _PER_CHANNEL_OPSET else []

    def write(self) -> None:
        # Layers first: they ask for their input's scale by the value that the pairs are going to replace.
        for layer in self._placement.layers:
            self._write_layer(layer)
        readers = {layer.node for layer in self._placement.layers}
        for value in self._placement.produced:
            self._write_pair(value, None)
        for value in self._placement.consumed:
            self._write_pair(value, readers)
        for node, channels in self._floats:
            self._writer.shield(node, channels)

    def _write_pair(self, value: ir.Value, readers: set[ir.Node] | None) -> None:
        found = self._activation(value)
        self._writer.pair(value, found.scale, found.zero_point, readers=readers)

    def _activation(self, value: ir.Value) -> QParams:
        root = self._placement.root(value)
        if root not in self._parameters:
            dtype: ActivationName = "uint16" if root in self._wide else self._scheme.activation
            grid = Grid(codes=2 ** (8 * np.dtype(dtype).itemsize), symmetric=self._scheme.symmetric)
            covered = range_of(self._observations[str(root.name)].stats, self._scheme.method, grid)
            self._parameters[root] = qparams.activation_qparams(covered, dtype=dtype, symmetric=self._scheme.symmetric)
        return self._parameters[root]

    def _write_layer(self, layer: Layer) -> None:
        input_scale = float(self._activation(layer.data).scale)
        weight = np.asarray(tensors.array(layer.weight), np.float32)
        bias = tensors.array(layer.bias)
        is_unsigned = layer.name in self._unsigned
        parameters = qparams.weight_qparams(
            weight,
            dtype="uint8" if is_unsigned else self._scheme.weight,
            axis=layer.weight_axis if self._scheme.per_channel else None,
            reduced_range=self._scheme.reduced_range and not is_unsigned and not quantizable.adds_in_32_bits(layer),
            smallest=qparams.smallest_weight_scale(bias, input_scale) if bias is not None else 0.0,
        )
        codes = qparams.quantize(weight, parameters)
        if layer.name in self._errors:
            bias = self._corrected(layer, bias, self._errors[layer.name])
        elif self._scheme.bias_correction == "analytic":
            error = qparams.dequantize(codes, parameters) - weight
            mean = self._observations[str(layer.data.name)].mean
            bias = self._corrected(layer, bias, bias_correction.mean_shift(error, mean, output_axis=layer.weight_axis))
        layer.node.replace_input_with(1, self._dequantized(layer, codes, parameters))
        if bias is not None:
            self._write_bias(layer, bias, input_scale, parameters)

    def _dequantized(self, layer: Layer, codes: NDArray[Any], parameters: QParams) -> ir.Value:
        return self._writer.dequantized(
            layer.node, str(layer.weight.name), codes, scale=parameters.scale, axis=parameters.axis
        )

    def _write_bias(self, layer: Layer, bias: NDArray[Any], input_scale: float, parameters: QParams) -> None:
        base = str(layer.bias.name) if layer.bias is not None else f"{layer.name}_bias"
        if self._scheme.symmetric:
            # TensorRT takes no int32 DequantizeLinear; ONNX Runtime rounds a float bias itself.
            value = self._writer.constant(base, np.asarray(bias, np.float32))
        else:
            codes, scale = qparams.quantize_bias(bias, input_scale, parameters.scale)
            axis = None if parameters.axis is None else 0
            value = self._writer.dequantized(layer.node, base, codes, scale=scale, axis=axis)
        if len(layer.node.inputs) < 3:
            layer.node.resize_inputs(3)
        layer.node.replace_input_with(2, value)

    def _corrected(
        self, layer: Layer, bias: NDArray[Any] | None, shift: NDArray[np.float64]
    ) -> NDArray[np.float32] | None:
        """The layer's new bias; a MatMul has none, there the Add behind it takes the correction."""
        if layer.node.op_type != "MatMul":
            return np.asarray((0.0 if bias is None else bias) - shift, np.float32)
        uses = list(layer.output.uses())
        if len(uses) == 1 and uses[0].node.op_type == "Add":
            adder, index = uses[0].node, 1 - uses[0].idx
            added = tensors.array(adder.inputs[index])
            if added is not None and added.shape == shift.shape:
                corrected = (added - shift).astype(np.float32)
                adder.replace_input_with(index, self._writer.constant(f"{layer.name}_corrected", corrected))
        return None


def _check_opset(model: Model, scheme: Scheme) -> None:
    opset = model.opset_imports.get("", 0)
    if opset < _OLDEST_OPSET:
        raise PassFailed(f"opset {opset} has no QuantizeLinear", hint="Export the model again with opset_version=17.")
    if (scheme.per_channel or scheme.bias_correction == "empirical") and opset < _PER_CHANNEL_OPSET:
        raise PassFailed(
            f"opset {opset} is older than {_PER_CHANNEL_OPSET}, the first with per-channel DequantizeLinear",
            hint="Run tidy first, which raises the opset, or export the model again with opset_version=17.",
        )
