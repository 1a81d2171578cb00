"""Outlier migration: what is loud in a transformer's activations goes into the weights, before either is quantized.

Runs on the clean float graph, ahead of dynamic or static int8. In comes a float32 model and the evidence, out goes a float32 model that
computes the same: an activation in front of MatMul or Gemm is divided channel by channel, and the rows of its weights are multiplied.
The divisors go into the normalization or layer that makes the activation, at no cost; where other nodes read it too (the skip
connection of a post-norm encoder), one Mul stands between. A few channels with spikes are taken out of the product and computed beside it,
marked so that no later pass quantizes them. ``calibrate.migration`` says which and how far, and cites where the ideas come from.

Settings (all optional):

- ``alpha``    SmoothQuant's exponent for all activations; 0 lets each take the divisors with the least estimated noise
- ``lift``     most channels of one activation that are computed beside; only where outputs are no wider than inputs
- ``min_gain`` activations whose noise would fall by less than this factor are left alone
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.calibrate import migration
from edgeopt.calibrate.channels import observe_channels
from edgeopt.calibrate.migration import Migration
from edgeopt.calibrate.scheme import read_settings
from edgeopt.errors import PassFailed
from edgeopt.graph import edit, quantizable, scaling, tensors
from edgeopt.graph.naming import Names
from edgeopt.graph.quantizable import KEEP_FLOAT, Layer
from edgeopt.protocols import Evidence, Settings
from edgeopt.records import Signature, Target

if TYPE_CHECKING:
    from edgeopt.protocols import Model

_LAYERS = ("MatMul", "Gemm")
_CHANNELS_A_LIFTED = 32
"""One lifted channel for so many: beyond that the float product beside the integer one is no longer small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationScheme:
    """The settings, checked."""

    alpha: float = 0.0
    lift: int = 4
    min_gain: float = 2.0

    def check(self) -> None:
        """Raises :class:`~edgeopt.errors.PassFailed` for what makes no sense."""
        if not 0 <= self.alpha < 1:
            raise PassFailed(f"alpha is {self.alpha:g}", hint="Give 0, or an exponent below 1 such as 0.7.")
        if self.lift < 0 or self.min_gain < 1:
            raise PassFailed(
                f"lift is {self.lift} and min_gain {self.min_gain:g}",
                hint="Give a lift of at least 0 and a min_gain of at least 1.",
            )


class MigrateOutliers:
    """Float32 in, float32 out: the same function with activations that fit into 8 bits."""

    name = "migrate_outliers"
    lossless = True
    needs_data = True

    def refuse(self, signature: Signature, target: Target) -> str | None:  # noqa: ARG002 - the protocol's; nothing here depends on the device
        """A quantized model, or one without matrix products."""
        if signature.quantized:
            return "the model is quantized already"
        if not signature.count(*_LAYERS):
            return "the model has no MatMul or Gemm"
        return None

    def apply(self, model: Model, settings: Settings, evidence: Evidence) -> Model:
        """The migrated model; raises :class:`~edgeopt.errors.PassFailed` where no activation has outliers."""
        scheme = read_settings(MigrationScheme, settings, technique=self.name)
        scheme.check()
        groups = _groups(model)
        if not groups:
            raise PassFailed(
                "no MatMul or Gemm has a constant float32 weight", hint="Leave this technique out for this model."
            )
        widths = {name: int(_weight(layers[0]).shape[0]) for name, layers in groups.items()}
        channels = observe_channels(model, widths, evidence)
        chosen = {}
        for name, layers in groups.items():
            weight = np.concatenate([_weight(layer) for layer in layers], axis=1).astype(np.float64)
            lift = min(scheme.lift, widths[name] // _CHANNELS_A_LIFTED) if weight.shape[1] <= weight.shape[0] else 0
            found = migration.choose(channels[name], weight, most_lifted=lift, alpha=scheme.alpha or None)
            if found.gain >= scheme.min_gain:
                chosen[name] = found
        if not chosen:
            raise PassFailed(
                f"none of {len(groups)} activations has outliers whose migration would cut the noise {scheme.min_gain:g} times",
                hint="Leave this technique out for this model.",
            )
        migrated = edit.copy(model)
        writer = _Writer(migrated)
        for name, layers in _groups(migrated).items():
            if name in chosen:
                writer.migrate(layers, chosen[name])
        edit.prune(migrated)
        return migrated


def _groups(model: ir.Model) -> dict[str, list[Layer]]:
    """Layers by the activation they read, in graph order."""
    groups: dict[str, list[Layer]] = {}
    for layer in quantizable.layers(model.graph, operators=_LAYERS):
        groups.setdefault(str(layer.data.name), []).append(layer)
    return groups


def _weight(layer: Layer) -> NDArray[np.float32]:
    """The layer's weight as (inputs, outputs)."""
    return np.moveaxis(np.asarray(tensors.array(layer.weight), np.float32), layer.weight_axis, 1)


class _Writer:
    """Migrations written into one model."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._names: Names = edit.fresh_names(model)

    def migrate(self, layers: list[Layer], found: Migration) -> None:
        """Divide what ``layers`` read, multiply their weights, and put the lifted channels beside them."""
        # Not ``layer.data``: an earlier migration may have put its lifted share between the two.
        data = layers[0].node.inputs[0]
        assert data is not None  # noqa: S101  # every layer reads something
        if found.lifted.size:
            lifted = self._picked(data, found.lifted)
            for layer in layers:
                self._add_beside(layer, lifted, _weight(layer)[found.lifted])
        divided = self._divided(data, layers, found)
        rows = found.divisor.copy()
        rows[found.lifted] = 0.0
        for layer in layers:
            scaled = (_weight(layer) * rows[:, None]).astype(np.float32)
            weight = np.ascontiguousarray(np.moveaxis(scaled, 1, layer.weight_axis))
            layer.node.replace_input_with(1, self._constant(f"{layer.weight.name}_migrated", weight))
            layer.node.replace_input_with(0, divided)

    def _divided(self, data: ir.Value, layers: list[Layer], found: Migration) -> ir.Value:
        """The activation over the divisors, the lifted channels zero: in what makes it, or behind a Mul."""
        factor = 1.0 / found.divisor
        factor[found.lifted] = 0.0
        readers = {layer.node for layer in layers}
        if not found.lifted.size and all(use.node in readers and use.idx == 0 for use in data.uses()):
            homes = scaling.homes(data, len(factor))
            if homes is not None:
                scaling.apply_factor(homes, factor, self._names)
                return data
        return self._behind(
            data, "Mul", [data, self._constant(f"{data.name}_factor", factor.astype(np.float32))], data.shape
        )

    def _picked(self, data: ir.Value, lifted: NDArray[np.int64]) -> ir.Value:
        """The lifted channels of the activation, alone."""
        shape = None if data.shape is None else ir.Shape([*list(data.shape)[:-1], len(lifted)])
        return self._behind(data, "Gather", [data, self._constant(f"{data.name}_lifted", lifted)], shape, axis=-1)

    def _add_beside(self, layer: Layer, lifted: ir.Value, rows: NDArray[np.float32]) -> None:
        """Add the lifted channels' share of the product behind the layer, and behind its bias where that is an Add.

        The integer kernel takes the bias in, but only as the operator right behind it.
        """
        last, uses = layer.node.outputs[0], list(layer.node.outputs[0].uses())
        if layer.node.op_type == "MatMul" and len(uses) == 1 and not last.is_graph_output():
            last = _biased(uses[0].node, uses[0].idx) or last
        anchor = last.producer()
        assert anchor is not None  # noqa: S101  # a layer or the Add behind it
        share = ir.node(
            "MatMul", [lifted, self._constant(f"{layer.weight.name}_lifted", rows)], name=self._fresh(layer, "lifted")
        )
        total = ir.node("Add", [last, share.outputs[0]], name=self._fresh(layer, "whole"))
        share.metadata_props[KEEP_FLOAT] = "outliers"
        for node in (share, total):
            node.outputs[0].name = self._fresh(layer, "value")
            node.outputs[0].type, node.outputs[0].shape = last.type, last.shape
        edit.insert_after(anchor, share)
        edit.insert_after(share, total)
        edit.replace_value(last, total.outputs[0])
        total.replace_input_with(0, last)

    def _behind(
        self, data: ir.Value, operator: str, inputs: list[ir.Value], shape: ir.Shape | None, **attributes: int
    ) -> ir.Value:
        """The output of a new node right behind ``data``."""
        name = self._names.fresh(f"{data.name}_{operator.lower()}")
        node = ir.node(operator, inputs, attributes, name=name)
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, data.type, shape
        producer = data.producer()
        if producer is not None:
            edit.insert_after(producer, node)
        else:
            self._graph.insert_before(self._graph[0], node)
        return node.outputs[0]

    def _fresh(self, layer: Layer, what: str) -> str:
        return self._names.fresh(f"{layer.name}_{what}")

    def _constant(self, base: str, data: NDArray[np.float32] | NDArray[np.int64]) -> ir.Value:
        return edit.add_initializer(self._graph, self._names.fresh(base), data)


def _biased(adder: ir.Node, index: int) -> ir.Value | None:
    """What ``adder`` makes of its input ``index`` where it adds a constant; else None."""
    is_bias = adder.op_type == "Add" and tensors.constant(adder.inputs[1 - index]) is not None
    return adder.outputs[0] if is_bias else None
