"""How far integer kernels move the mean of each output channel: the empirical error that bias correction takes off.

Stands beside ``bias``, which works the same out from the rounding of the weights. In come a float model, what static int8 made of it and the evidence, out comes one
number for each output channel of each quantized layer: the mean, over the samples, of what the kernel gives less what the float layer gives *for the same
quantized input* (M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, arXiv:1906.04721, eq. 1 and the appendix
on empirical bias correction). It holds what the arithmetic cannot know: products that saturate in 16 bits, and borders.

The paper corrects layer after layer, since a later layer's shift holds those of the earlier ones. Here every layer is compared with its float self on the input that it
really gets, so no shift is counted twice and one run tells all.

What a fused kernel computes is only seen rounded and cut off, as the next layer reads it. So each layer gets two *twins* that read its input. The first run has one in float: it
tells each channel's mean and spread. The second run has one with the layer's very codes, whose scales are stretched until every channel fills its eight bits around
that mean. Only numbers of channels leave the runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.calibrate import qparams
from edgeopt.calibrate.gram import MOST_SAMPLES
from edgeopt.calibrate.ranges import not_finite
from edgeopt.graph import edit, tensors
from edgeopt.graph.qdq import QdqWriter
from edgeopt.graph.quantizable import Layer, layer_name
from edgeopt.protocols import Evidence

_ROOM = 1.1
"""Over the float twin's spread: the kernel's own may be a little wider."""
_SHARE = 0.1
"""Of the largest output of the layer, added to every channel's spread: a channel that hardly changes errs by more than it varies."""
_AXES_ARE_INPUT = 18


@dataclass(frozen=True, slots=True)
class _Seen:
    """Of each channel of a layer's output before any activation, in float: the mean, and how far from it values may lie."""

    mean: NDArray[np.float64]
    half: NDArray[np.float64]


def kernel_errors(quantized: ir.Model, layers: Sequence[Layer], evidence: Evidence) -> dict[str, NDArray[np.float64]]:
    """By name of the layer what is to be taken off its bias: (outputs,).

    ``layers`` are those of the float model that are integer in ``quantized``, under the same names of nodes. At most ``MOST_SAMPLES`` samples are read, one at a
    time, twice. Needs opset 13. Raises :class:`~edgeopt.errors.PassFailed` where a tensor is not finite.
    """
    seen = _exact(quantized, layers, evidence)
    observed, nodes, writer = _copy(quantized)
    # The first layer's twin last: the runtime then runs it while what it reads is still in the cache.
    twins = {layer.name: writer.kernel(layer, nodes[layer.name], seen[layer.name]) for layer in reversed(layers)}
    found: dict[str, NDArray[np.float64]] = {}
    for layer in layers:
        found[layer.name] = np.zeros_like(seen[layer.name].mean)
    count = 0
    for arrays in islice(evidence.observe(observed, list(twins.values())), MOST_SAMPLES):
        count += 1
        for name, twin in twins.items():
            found[name] += np.asarray(arrays[twin], np.float64)
    for layer in layers:
        own = seen[layer.name]
        mean = found[layer.name] / count
        found[layer.name] = mean * own.half if layer.node.op_type == "Conv" else mean * _unit(own, layer) - own.mean
        if not np.isfinite(found[layer.name]).all():
            raise not_finite(layer.name)
    return found


def _exact(quantized: ir.Model, layers: Sequence[Layer], evidence: Evidence) -> dict[str, _Seen]:
    """What the float layers give for the quantized model's inputs, by name of the layer."""
    observed, nodes, writer = _copy(quantized)
    twins = {layer.name: writer.exact(layer, nodes[layer.name]) for layer in reversed(layers)}
    wanted = [name for names in twins.values() for name in names]
    sums: dict[str, list[NDArray[np.float64]]] = {}
    count = 0
    for arrays in islice(evidence.observe(observed, wanted), MOST_SAMPLES):
        count += 1
        for name, names in twins.items():
            low, high, mean = (np.asarray(arrays[each], np.float64) for each in names)
            before = sums.get(name, [low, high, np.zeros_like(mean)])
            sums[name] = [np.minimum(before[0], low), np.maximum(before[1], high), before[2] + mean]
    return {name: _spread(low, high, total / count, name) for name, (low, high, total) in sums.items()}


def _spread(low: NDArray[np.float64], high: NDArray[np.float64], mean: NDArray[np.float64], name: str) -> _Seen:
    largest = float(max(np.abs(low).max(), np.abs(high).max()))
    half = _ROOM * np.maximum(high - mean, mean - low) + max(_SHARE * largest, qparams.SMALLEST_SCALE)
    if not np.isfinite(half).all():
        raise not_finite(name)
    return _Seen(mean, half)


def _unit(seen: _Seen, layer: Layer) -> NDArray[np.float64]:
    """What the kernel twin's output counts in. A matrix' kernel gives floats, yet an equal node would be taken for the layer and merged with it."""
    return seen.half if layer.node.op_type == "Conv" else np.full(seen.mean.shape, 2.0)


def _copy(quantized: ir.Model) -> tuple[ir.Model, dict[str, ir.Node], _TwinWriter]:
    observed = edit.copy(quantized)
    return observed, {layer_name(node): node for node in observed.graph}, _TwinWriter(observed)


class _TwinWriter:
    """Appends twins and their means to a quantized model."""

    def __init__(self, model: ir.Model) -> None:
        self._writer = QdqWriter(model)
        self._opset = model.opset_imports.get("", 17)

    def exact(self, layer: Layer, node: ir.Node) -> tuple[str, str, str]:
        """The float layer behind the quantized layer's input: names of the lowest, the highest and the mean value of each channel."""
        # A matrix' bias is left out on both sides: it would only add its own rounding.
        biased = layer.bias is not None and node.op_type == "Conv"
        constants = [layer.weight, layer.bias] if biased else [layer.weight]
        own = [
            self._writer.constant(f"twin_{layer.name}", np.asarray(tensors.array(each), np.float32))
            for each in constants
        ]
        value = self._writer.append(node.op_type, [node.inputs[0], *own], "twin", *node.attributes.values())
        twin = value.producer()
        if twin is not None and node.op_type != "MatMul":
            # Its input has one scale: behind such a one the runtime would quantize the float twin as well.
            self._writer.shield(twin, _channels(layer, node))
        value = self._flat(value, layer)
        low, high, mean = (self._reduced(how, value, layer) for how in ("ReduceMin", "ReduceMax", "ReduceMean"))
        return low, high, mean

    def kernel(self, layer: Layer, node: ir.Node, seen: _Seen) -> str:
        """The quantized layer in units that fill eight bits, less the exact mean: the name of the mean of each channel."""
        unit = _unit(seen, layer)
        inputs = [node.inputs[0], self._codes(node, layer, unit)]
        if node.op_type == "Conv":
            bias = 0.0 if layer.bias is None else np.asarray(tensors.array(layer.bias), np.float64)
            inputs.append(self._integer_bias(node, bias - seen.mean, unit))
        value = self._writer.append(node.op_type, inputs, "twin", *node.attributes.values())
        value = self._eight_bits(node, value) if node.op_type == "Conv" else self._flat(value, layer)
        return self._reduced("ReduceMean", value, layer)

    def _codes(self, node: ir.Node, layer: Layer, unit: NDArray[np.float64]) -> ir.Value:
        """The layer's own codes in other units."""
        own = _source(node.inputs[1])
        stretched = (np.asarray(tensors.array(own.inputs[1]), np.float64) / unit).astype(np.float32)
        middle = np.full(stretched.shape, np.asarray(tensors.array(own.inputs[2])).reshape(-1)[0])
        constants = [self._writer.constant(f"twin_{layer.name}", data) for data in (stretched, middle)]
        inputs = [own.inputs[0], *constants]
        return self._writer.append("DequantizeLinear", inputs, "twin_weight", ir.AttrInt64("axis", layer.weight_axis))

    def _integer_bias(self, node: ir.Node, bias: NDArray[np.float64], unit: NDArray[np.float64]) -> ir.Value:
        input_scale = float(np.asarray(tensors.array(_source(node.inputs[0]).inputs[1])).reshape(-1)[0])
        weight_scale = np.asarray(tensors.array(_source(node.inputs[1]).inputs[1]), np.float64)
        stretched = np.broadcast_to(weight_scale / unit, unit.shape).astype(np.float32)
        codes, scale = qparams.quantize_bias((bias / unit).astype(np.float32), input_scale, stretched)
        inputs = [self._writer.constant("twin_bias", codes), self._writer.constant("twin_bias", scale)]
        return self._writer.append("DequantizeLinear", inputs, "twin_bias", ir.AttrInt64("axis", 0))

    def _eight_bits(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """A convolution's kernel yields codes: [-1, 1] in the type that it reads."""
        zero = np.asarray(tensors.array(_source(node.inputs[0]).inputs[2])).dtype
        info = np.iinfo(zero)
        scale = self._writer.constant("twin_scale", np.array(2.0 / (info.max - info.min), np.float32))
        middle = self._writer.constant("twin_zero", np.array((info.max + info.min + 1) // 2, zero))
        codes = self._writer.append("QuantizeLinear", [value, scale, middle], "twin_codes")
        codes.type = ir.TensorType(ir.DataType.from_numpy(zero))
        return self._writer.append("DequantizeLinear", [codes, scale, middle], "twin")

    def _flat(self, value: ir.Value, layer: Layer) -> ir.Value:
        """A product's output as rows of channels, whatever its rank; a map stays as it is."""
        if layer.node.op_type == "Conv":
            return value
        width = np.asarray(tensors.array(layer.weight)).shape[layer.weight_axis]
        rows = self._writer.constant("twin_rows", np.array([-1, width], np.int64))
        return self._writer.append("Reshape", [value, rows], "twin_rows")

    def _reduced(self, operator: str, value: ir.Value, layer: Layer) -> str:
        axes = [0, *range(2, np.asarray(tensors.array(layer.weight)).ndim)]
        keep = ir.AttrInt64("keepdims", 0)
        if self._opset >= _AXES_ARE_INPUT:
            inputs = [value, self._writer.constant("twin_axes", np.array(axes, np.int64))]
            return str(self._writer.append(operator, inputs, "twin", keep).name)
        return str(self._writer.append(operator, [value], "twin", ir.AttrInt64s("axes", axes), keep).name)


def _source(value: ir.Value | None) -> ir.Node:
    """The DequantizeLinear in front of a quantized layer."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear":
        raise ValueError(f"{value!r} does not come out of a DequantizeLinear")
    return node


def _channels(layer: Layer, node: ir.Node) -> int:
    """Channels of what the layer reads."""
    shape: tuple[Any, ...] = np.asarray(tensors.array(layer.weight)).shape
    if layer.node.op_type == "Conv":
        group = node.attributes.get("group")
        return int(shape[1]) * (group.as_int() if group is not None else 1)
    return int(shape[1 - layer.weight_axis])
