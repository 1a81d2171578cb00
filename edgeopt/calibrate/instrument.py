"""An observation copy of a model: small reductions hang off every tensor that calibration wants to know.

Stands between ``collect`` and the runtime: in comes a model and the names of its tensors, out goes a copy that computes for each of them the exact
extremes, a fixed number of its values and, where asked, its mean for each channel. Only those leave the runtime, so memory does not grow with
the tensors and the cost stays near plain inference.

The shape of the reductions follows the runtime's memory layout. ONNX Runtime keeps feature maps in blocked form
between convolutions and has pooling kernels for it; a ReduceMax would first force every map back to plain form, which alone costs more than
a depthwise convolution. So the maximum is a GlobalMaxPool, the mean a GlobalAveragePool and thinning a strided MaxPool. A minimum is
not computed where the producer guarantees one (ReLU, Clip, Sigmoid).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph import edit, tensors
from edgeopt.graph.naming import Names

VALUES_PER_SAMPLE = 1024
"""How many values of a tensor each sample contributes to the histogram methods, up to twice as many from feature maps."""

_GOLDEN = (5**0.5 - 1) / 2
"""The fractional parts of its multiples spread evenly over [0, 1): no row, column or channel is preferred."""
_BELOW_ONE = 1.0 - 2.0**-20


@dataclass(frozen=True, slots=True)
class Probe:
    """The names of what was computed of one tensor; an absent minimum means that zero is a lower bound."""

    high: str
    values: str
    low: str | None
    mean: str | None

    def names(self) -> list[str]:
        return [name for name in (self.high, self.values, self.low, self.mean) if name is not None]


@dataclass(frozen=True, slots=True)
class ChannelProbe:
    """The names of what was computed of each channel of one tensor."""

    low: str
    high: str
    square: str

    def names(self) -> list[str]:
        return [self.low, self.high, self.square]


def with_shapes(model: ir.Model, names: list[str]) -> tuple[ir.Model, dict[str, str]]:
    """A copy that also computes the named tensors' shapes: tensor name to the shape's name."""
    observed = edit.copy(model)
    probes = _Probes(observed)
    return observed, {name: probes.emit("Shape", [probes.value(name)]) for name in names}


def with_statistics(
    model: ir.Model, shapes: Mapping[str, tuple[int, ...]], channels: Mapping[str, int]
) -> tuple[ir.Model, dict[str, Probe]]:
    """A copy that computes the statistics of every tensor in ``shapes``.

    ``shapes`` are those of one sample; only the rank must hold for the others. ``channels`` names the tensors whose mean is
    wanted: the axis that is kept, 1 for feature maps and -1 for matrices.
    """
    observed = edit.copy(model)
    probes = _Probes(observed)
    return observed, {name: probes.attach(name, shape, channels.get(name)) for name, shape in shapes.items()}


def with_channel_power(model: ir.Model, widths: Mapping[str, int]) -> tuple[ir.Model, dict[str, ChannelProbe]]:
    """A copy that computes the extremes and the mean square of every channel of the tensors in ``widths``.

    The channels are the last axis, ``widths`` their number.
    """
    observed = edit.copy(model)
    probes = _Probes(observed)
    return observed, {name: probes.attach_channels(name, width) for name, width in widths.items()}


class _Probes:
    """Appends reductions to one graph."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._names = Names(model)
        self._opset = model.opset_imports.get("", 17)
        self._constants: dict[bytes, ir.Value] = {}
        self._values = {value.name: value for value in model.graph.inputs}
        for node in model.graph:
            self._values.update((output.name, output) for output in node.outputs)

    def value(self, name: str) -> ir.Value:
        return self._values[name]

    def attach(self, name: str, shape: tuple[int, ...], channel: int | None) -> Probe:
        value = self._values[name]
        feature_map = len(shape) == 4 and shape[2] * shape[3] > 1
        low = None if _never_negative(value) else self._reduce("ReduceMin", value)
        return Probe(
            high=self._reduce("ReduceMax", self._node("GlobalMaxPool", [value]) if feature_map else value),
            values=self._thinned(value, shape, feature_map=feature_map),
            low=low,
            mean=None if channel is None else self._mean(value, shape, channel),
        )

    def attach_channels(self, name: str, width: int) -> ChannelProbe:
        rows = self._node("Reshape", [self._values[name], self._constant(np.array([-1, width], np.int64))])
        square = self._node("Mul", [rows, rows])
        return ChannelProbe(
            low=self._over_rows("ReduceMin", rows),
            high=self._over_rows("ReduceMax", rows),
            square=self._over_rows("ReduceMean", square),
        )

    def emit(self, operator: str, inputs: list[ir.Value], **attributes: int | list[int]) -> str:
        return str(self._node(operator, inputs, **attributes).name)

    def _node(self, operator: str, inputs: list[ir.Value], **attributes: int | list[int]) -> ir.Value:
        packed = [_attribute(key, value) for key, value in attributes.items()]
        name = self._names.fresh(f"observe_{operator}")
        node = ir.Node("", operator, inputs, packed, name=name)
        output = node.outputs[0]
        output.name = name
        counted = operator in ("Shape", "Size") or attributes.get("to") == int(ir.DataType.INT64)
        output.type = ir.TensorType(ir.DataType.INT64 if counted else ir.DataType.FLOAT)
        self._graph.append(node)
        return output

    def _constant(self, data: NDArray[Any]) -> ir.Value:
        key = data.dtype.str.encode() + data.tobytes()
        if key not in self._constants:
            self._constants[key] = edit.add_initializer(self._graph, self._names.fresh("observe_constant"), data)
        return self._constants[key]

    def _reduce(self, operator: str, value: ir.Value) -> str:
        return self.emit(operator, [value], keepdims=0)

    def _thinned(self, value: ir.Value, shape: tuple[int, ...], *, feature_map: bool) -> str:
        if feature_map:
            # Four places along each side at least: a coarser grid would see little but the border.
            wanted = int(np.ceil(np.sqrt(np.prod(shape) / (2 * VALUES_PER_SAMPLE))))
            strides = [max(1, min(wanted, side // 4)) for side in shape[2:]]
            if max(strides) > 1:
                value = self._node("MaxPool", [value], kernel_shape=[1, 1], strides=strides)
            sides = [-(-side // stride) for side, stride in zip(shape[2:], strides, strict=True)]
            if np.prod([*shape[:2], *sides]) <= 2 * VALUES_PER_SAMPLE and max(strides) > 1:
                return str(value.name)
        flat = self._node("Reshape", [value, self._constant(np.array([-1], np.int64))])
        shares = np.modf(np.arange(VALUES_PER_SAMPLE) * _GOLDEN)[0] * _BELOW_ONE
        # The size is taken at run time: the next sample may be a larger picture or a longer sentence.
        size = self._node("Cast", [self._node("Size", [flat])], to=int(ir.DataType.FLOAT))
        places = self._node("Mul", [self._constant(shares.astype(np.float32)), size])
        return self.emit("Gather", [flat, self._node("Cast", [places], to=int(ir.DataType.INT64))], axis=0)

    def _mean(self, value: ir.Value, shape: tuple[int, ...], channel: int) -> str:
        if channel == 1 and len(shape) > 2:
            return self.emit("GlobalAveragePool", [value])
        rows = self._node("Reshape", [value, self._constant(np.array([-1, shape[-1]], np.int64))])
        return self._over_rows("ReduceMean", rows)

    def _over_rows(self, operator: str, rows: ir.Value) -> str:
        """The axes of a reduction became an input with opset 18."""
        if self._opset >= 18:
            return self.emit(operator, [rows, self._constant(np.array([0], np.int64))], keepdims=0)
        return self.emit(operator, [rows], axes=[0], keepdims=0)


def _attribute(name: str, value: int | list[int]) -> ir.Attr:
    return ir.AttrInt64s(name, value) if isinstance(value, list) else ir.AttrInt64(name, value)


def _never_negative(value: ir.Value) -> bool:
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "Clip" and len(node.inputs) > 1:
        lower = tensors.scalar(node.inputs[1])
        return lower is not None and lower >= 0
    return node.op_type in ("Relu", "Sigmoid", "HardSigmoid")
