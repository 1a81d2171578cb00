"""An observation copy of a model: small reductions hang off every tensor that calibration wants to know.

Stands between ``collect`` and the runtime: in comes a model and the names of its tensors, out goes a copy that computes for each of them the exact
extremes, a fixed number of its values and, where asked, its mean for each channel. Only those leave the runtime, so memory does not grow with
the tensors and the cost stays near plain inference.

The shape of the reductions follows the runtime's memory layout. ONNX Runtime keeps feature maps in blocked form between convolutions and
has pooling kernels for it; a ReduceMax would first force every map back to plain form. So of a map that is never negative (behind ReLU,
Clip, Sigmoid) the maximum is a GlobalMaxPool and the mean a GlobalAveragePool, and the minimum is known. Any other map needs a ReduceMin, which only
exists for the plain form, and there plain reductions are the quicker ones. Thinning is a strided MaxPool in either case. A tensor of few values leaves
whole: four more nodes a tensor would cost more than a small model's own inference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph import edit, tensors
from edgeopt.graph.naming import Names

VALUES_PER_SAMPLE = 4096
"""About how many values of a tensor each sample contributes to the histogram methods. A quarter of it made `mse` twice as wrong on a text detector."""

_AXES_ARE_INPUT = 18
_END = 2**62
"""Beyond the end of every tensor; Slice stops at the end by itself."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The names of what was computed of one tensor; an absent minimum means that zero is a lower bound.

    Without a maximum ``values`` is the tensor itself, and everything else has to be computed from it.
    """

    values: str
    high: str | None = None
    low: str | None = None
    mean: str | None = None

    def names(self) -> list[str]:
        return [name for name in (self.values, self.high, self.low, self.mean) if name is not None]


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
    return observed, {name: probes.attach(name, shapes[name], channels.get(name)) for name in probes.last_first(shapes)}


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

    def last_first(self, names: Iterable[str]) -> list[str]:
        """The names in the order in which their probes have to be appended.

        ONNX Runtime executes what the last node without readers needs, then what the last but one needs and so on. With the
        probes of the first tensor at the end, each tensor is read while it is still in the cache and freed after.
        """
        place = {name: number for number, name in enumerate(self._values)}
        return sorted(names, key=place.__getitem__, reverse=True)

    def attach(self, name: str, shape: tuple[int, ...], channel: int | None) -> Probe:
        value = self._values[name]
        if np.prod(shape) <= VALUES_PER_SAMPLE:
            return Probe(values=name if value.producer() is not None else self.emit("Identity", [value]))
        feature_map = len(shape) == 4 and shape[2] * shape[3] > 1
        signed = not _never_negative(value)
        blocked = feature_map and not signed
        pooled = self._node("GlobalMaxPool", [value]) if blocked else value
        return Probe(
            high=self._reduce("ReduceMax", pooled),
            values=self._thinned(value, shape, feature_map=feature_map),
            low=self._reduce("ReduceMin", value) if signed else None,
            mean=None if channel is None else self._mean(value, shape, channel, blocked=blocked),
        )

    def attach_channels(self, name: str, width: int) -> ChannelProbe:
        rows = self._node("Reshape", [self._values[name], self._constant(np.array([-1, width], np.int64))])
        square = self._node("Mul", [rows, rows])
        return ChannelProbe(
            low=self._reduce("ReduceMin", rows, axes=[0]),
            high=self._reduce("ReduceMax", rows, axes=[0]),
            square=self._reduce("ReduceMean", square, axes=[0]),
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

    def _thinned(self, value: ir.Value, shape: tuple[int, ...], *, feature_map: bool) -> str:
        sides = shape
        if feature_map:
            # Four places along each side at least: a coarser grid would see little but the border.
            wanted = int(np.ceil(np.sqrt(np.prod(shape) / (2 * VALUES_PER_SAMPLE))))
            strides = [max(1, min(wanted, side // 4)) for side in shape[2:]]
            if max(strides) > 1:
                value = self._node("MaxPool", [value], kernel_shape=[1, 1], strides=strides)
            sides = (*shape[:2], *(-(-side // stride) for side, stride in zip(shape[2:], strides, strict=True)))
        flat = self._flat(value)
        step = _step(sides)
        if step == 1:
            return str(flat.name)
        bounds = [self._constant(np.array([number], np.int64)) for number in (0, _END, 0, step)]
        return self.emit("Slice", [flat, *bounds])

    def _mean(self, value: ir.Value, shape: tuple[int, ...], channel: int, *, blocked: bool) -> str:
        if channel == 1 and len(shape) > 2:
            if blocked:
                value = self._node("GlobalAveragePool", [value])
            return self._reduce("ReduceMean", value, axes=[0, *range(2, len(shape))])
        rows = self._node("Reshape", [value, self._constant(np.array([-1, shape[-1]], np.int64))])
        return self._reduce("ReduceMean", rows, axes=[0])

    def _flat(self, value: ir.Value) -> ir.Value:
        return self._node("Reshape", [value, self._constant(np.array([-1], np.int64))])

    def _reduce(self, operator: str, value: ir.Value, *, axes: list[int] | None = None) -> str:
        """Over the ``axes``, or all of them. They became an input of the mean and the extremes with opset 18."""
        if axes is None:
            return self.emit(operator, [value], keepdims=0)
        if self._opset >= _AXES_ARE_INPUT:
            return self.emit(operator, [value, self._constant(np.array(axes, np.int64))], keepdims=0)
        return self.emit(operator, [value], axes=axes, keepdims=0)


def _step(shape: Sequence[int]) -> int:
    """Every how many values one is read: the step nearest to what leaves enough that shares no factor with a side.

    Such a step meets every row, column and channel before it meets one again. Rather more values than too few are read; at least half of
    ``VALUES_PER_SAMPLE`` where no smaller step will do.
    """
    size = int(np.prod(shape))
    wanted = max(1, size // VALUES_PER_SAMPLE)
    nearest = (*range(wanted, wanted // 2, -1), *range(wanted + 1, 2 * wanted + 1))
    return next((step for step in nearest if gcd(step, size) == 1), 1)


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
