"""Cross-layer equalization: neighbouring layers share their weights' ranges out among the channels between them.

Runs on the clean float graph with folded batch norms, ahead of static int8. In comes a float32 model, out goes a float32 model that computes
the same. Between two layers, ``W2 f(W1 x)`` equals ``(W2 s) f((W1 / s) x)`` for a positive s for each channel wherever f is positively homogeneous:
nothing at all, ReLU and its leaky kin, pooling. The s that makes a channel's largest weight equal on both sides is ``sqrt(r1 / r2)`` (M. Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, arXiv:1906.04721). It is rounded to a power of two,
which floating point multiplies without rounding. Needs no data. It pays where weights have one scale a tensor; with one scale a channel
the first layer's half is already there.

A Clip above zero (ReLU6) is not homogeneous: its bound would have to be another one for each channel, and ONNX Runtime folds no such bound into an
integer convolution. So pairs around a Clip are left alone unless ``bounds`` asks for it.

Settings (all optional):

- ``bounds`` also equalize through Clip from zero, which becomes ReLU and Min with a bound for each channel
- ``rounds`` how often all pairs are gone through: a layer stands in two of them
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.calibrate.scheme import read_settings
from edgeopt.errors import PassFailed
from edgeopt.graph import edit, quantizable, tensors
from edgeopt.graph.naming import Names
from edgeopt.graph.quantizable import Layer
from edgeopt.protocols import Evidence, Settings
from edgeopt.records import Signature, Target

if TYPE_CHECKING:
    from edgeopt.protocols import Model

_LAYERS = ("Conv", "Gemm")
_HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_FURTHEST = 2.0**12
"""A dead channel has no range; its factor must stay finite."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualizeScheme:
    """The settings, checked."""

    bounds: bool = False
    rounds: int = 8


@dataclass(frozen=True, slots=True)
class Pair:
    """Two layers with nothing between them that a positive factor does not pass through."""

    first: Layer
    second: Layer
    clips: tuple[ir.Node, ...]


@dataclass(slots=True)
class Scaled:
    """The factors of one layer: its outputs were divided, its inputs multiplied; both (channels,)."""

    outputs: Floats
    inputs: Floats
    weight: Floats = field(repr=False)
    """(groups, outputs / groups, inputs / groups, taps)."""


class EqualizeLayers:
    """Float32 in, float32 out: the same function with weights that differ less from channel to channel."""

    name = "equalize_layers"
    lossless = True
    needs_data = False

    def refuse(self, signature: Signature, target: Target) -> str | None:  # noqa: ARG002 - the protocol's; nothing here depends on the device
        """A quantized model, or one without two layers in a row."""
        if signature.quantized:
            return "the model is quantized already"
        if signature.count(*_LAYERS) < 2:
            return "the model has fewer than two Conv and Gemm layers"
        return None

    def apply(self, model: Model, settings: Settings, evidence: Evidence) -> Model:  # noqa: ARG002 - needs no data
        """The equalized model; raises :class:`~edgeopt.errors.PassFailed` where no two layers can be."""
        scheme = read_settings(EqualizeScheme, settings, technique=self.name)
        equalized = edit.copy(model)
        found = list(_pairs(equalized, bounds=scheme.bounds))
        factors = _balanced(found, scheme.rounds)
        if not any(np.any(scaled.outputs != 1.0) for scaled in factors.values()):
            raise PassFailed(
                f"none of {len(found)} pairs of neighbouring layers has channels to equalize",
                hint="Leave this technique out for this model.",
            )
        names = edit.fresh_names(equalized)
        for pair in found:
            for clip in pair.clips:
                _bound_channels(clip, factors[pair.first.node].outputs, names)
        for layer in _layers(found):
            _write(layer, factors[layer.node], names)
        edit.prune(equalized)
        return equalized


def _pairs(model: ir.Model, *, bounds: bool) -> Iterator[Pair]:
    """Neighbours in graph order: what the first makes, nobody but the second reads."""
    layers = {layer.node: layer for layer in quantizable.layers(model.graph, operators=_LAYERS)}
    for first in layers.values():
        value: ir.Value = first.node.outputs[0]
        clips: list[ir.Node] = []
        while not tensors.is_shared(value) and len(value.uses()) == 1:
            node: ir.Node = next(iter(value.uses())).node
            if node in layers and node.inputs[0] is value:
                if _channels_meet(first, layers[node]):
                    yield Pair(first, layers[node], tuple(clips))
                break
            if bounds and _bound_of(node) is not None:
                clips.append(node)
            elif not _passes_factors(node, value):
                break
            value = node.outputs[0]


def _channels_meet(first: Layer, second: Layer) -> bool:
    """True where the second layer's inputs are the first one's outputs, one by one."""
    return _sides(first)[0] * _sides(first)[1] == _sides(second)[0] * _sides(second)[2]


def _passes_factors(node: ir.Node, value: ir.Value) -> bool:
    if node.domain not in ("", "ai.onnx") or node.inputs[0] is not value or any(out.uses() for out in node.outputs[1:]):
        return False
    if node.op_type == "Flatten":
        # only behind global pooling is one feature one channel
        axis = node.attributes.get("axis")
        made_by = value.producer()
        pooled = made_by is not None and made_by.op_type in ("GlobalAveragePool", "GlobalMaxPool")
        return pooled and (axis is None or axis.as_int() == 1)
    return node.op_type in _HOMOGENEOUS and (node.op_type != "PRelu" or tensors.constant(node.inputs[1]) is not None)


def _bound_of(node: ir.Node) -> float | None:
    """The upper bound of a Clip from zero, else None."""
    if node.op_type != "Clip" or node.domain not in ("", "ai.onnx") or len(node.inputs) < 3:
        return None
    return tensors.scalar(node.inputs[2]) if tensors.scalar(node.inputs[1]) == 0.0 else None


def _sides(layer: Layer) -> tuple[int, int, int, int]:
    """(groups, outputs of a group, inputs of a group, taps)."""
    shape = np.asarray(tensors.array(layer.weight)).shape
    if layer.node.op_type == "Gemm":
        return 1, shape[layer.weight_axis], shape[1 - layer.weight_axis], 1
    group = layer.node.attributes.get("group")
    groups = group.as_int() if group is not None else 1
    return groups, shape[0] // groups, shape[1], int(np.prod(shape[2:]))


def _layers(pairs: list[Pair]) -> list[Layer]:
    """Each layer once; by node, for names need not be unique."""
    return list({layer.node: layer for pair in pairs for layer in (pair.first, pair.second)}.values())


def _balanced(pairs: list[Pair], rounds: int) -> dict[ir.Node, Scaled]:
    """The factors of all layers after going through the pairs ``rounds`` times, or until nothing changes."""
    factors = {layer.node: _unscaled(layer) for layer in _layers(pairs)}
    for _ in range(rounds):
        changed = False
        for pair in pairs:
            first, second = factors[pair.first.node], factors[pair.second.node]
            one = np.abs(first.weight).max(axis=(2, 3)).reshape(-1)
            other = np.abs(second.weight).max(axis=(1, 3)).reshape(-1)
            step = _power_of_two(one, other)
            changed = changed or bool(np.any(step != 1.0))
            _divide(first, second, step)
        if not changed:
            break
    return factors


def _unscaled(layer: Layer) -> Scaled:
    sides = groups, outputs, inputs, _ = _sides(layer)
    weight = np.moveaxis(np.asarray(tensors.array(layer.weight), np.float64), layer.weight_axis, 0)
    return Scaled(np.ones(groups * outputs), np.ones(groups * inputs), weight.reshape(sides))


def _power_of_two(one: Floats, other: Floats) -> Floats:
    """``sqrt(one / other)`` to the nearest power of two; 1 where a channel is dead on either side."""
    alive = (one > 0) & (other > 0)
    ratio = np.sqrt(np.where(alive, one, 1.0) / np.where(alive, other, 1.0))
    return np.asarray(np.clip(2.0 ** np.rint(np.log2(ratio)), 1 / _FURTHEST, _FURTHEST))


def _divide(first: Scaled, second: Scaled, step: Floats) -> None:
    first.outputs = first.outputs / step
    first.weight = first.weight / step.reshape(first.weight.shape[0], -1, 1, 1)
    second.inputs = second.inputs * step
    second.weight = second.weight * step.reshape(second.weight.shape[0], 1, -1, 1)


def _write(layer: Layer, scaled: Scaled, names: Names) -> None:
    """The layer's weight and bias under its factors; powers of two, so no bit of the mantissa is lost."""
    graph, old = layer.node.graph, np.asarray(tensors.array(layer.weight))
    assert graph is not None  # noqa: S101  # a layer of the main graph
    moved = np.moveaxis(old, layer.weight_axis, 0).shape
    weight = np.moveaxis(scaled.weight.reshape(moved), 0, layer.weight_axis).astype(old.dtype)
    layer.node.replace_input_with(
        1, edit.add_initializer(graph, names.fresh(f"{layer.weight.name}_equalized"), np.ascontiguousarray(weight))
    )
    bias = layer.bias
    if bias is not None and np.any(scaled.outputs != 1.0):
        shifted = (np.asarray(tensors.array(bias), np.float64) * scaled.outputs).astype(old.dtype)
        layer.node.replace_input_with(2, edit.add_initializer(graph, names.fresh(f"{bias.name}_equalized"), shifted))


def _bound_channels(clip: ir.Node, factors: Floats, names: Names) -> None:
    """Turn a Clip from zero into ReLU and Min, with the bound each channel has under its factor."""
    graph, bound, output = clip.graph, _bound_of(clip), clip.outputs[0]
    assert graph is not None and bound is not None  # noqa: S101, PT018  # ``_pairs`` saw both
    bounds = edit.add_initializer(
        graph, names.fresh(f"{output.name}_bounds"), (bound * factors).astype(np.float32).reshape(-1, 1, 1)
    )
    relu = ir.node("Relu", [clip.inputs[0]], name=names.fresh(f"{output.name}_relu"))
    least = ir.node("Min", [relu.outputs[0], bounds], name=names.fresh(f"{output.name}_min"))
    for node in (relu, least):
        node.outputs[0].name = names.fresh(f"{node.name}_output")
        node.outputs[0].type, node.outputs[0].shape = output.type, output.shape
    edit.insert_after(clip, relu)
    edit.insert_after(relu, least)
    edit.replace_value(output, least.outputs[0])
    edit.remove(clip)
