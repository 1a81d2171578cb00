"""Learned rounding: weights move onto the int8 grid in the way that their layer's output notices least.

Runs on the float graph, last before static or dynamic int8 with one scale a channel. In comes a float32 model and the evidence, out goes a
float32 model whose weights are codes times scale already: a quantizer that rounds to nearest finds exactly the codes that were chosen
here. So the choice is made in one place, whatever comes behind. ``calibrate.rounding`` says how, and cites where the idea comes from.

Where a layer has a bias, what the new weights add to the mean of each output is taken off it. Depthwise and grouped
convolutions are left to rounding to nearest: few weights meet each output, so there is little to trade.

Settings (all optional):

- ``reduced_range`` weights that no kernel without VNNI saturates on; must be what the quantizer behind uses
- ``sweeps``        how often every weight is visited at most
- ``skip``          JSON list of names of nodes whose weights stay
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.calibrate import bias as bias_correction
from edgeopt.calibrate import gram, qparams, rounding
from edgeopt.calibrate.collect import collect
from edgeopt.calibrate.scheme import read_names, read_settings
from edgeopt.errors import PassFailed
from edgeopt.graph import edit, quantizable, tensors
from edgeopt.graph.quantizable import Layer
from edgeopt.protocols import Evidence, Settings
from edgeopt.records import Signature, Target

if TYPE_CHECKING:
    from edgeopt.protocols import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundingScheme:
    """The settings, checked."""

    reduced_range: bool = False
    sweeps: int = 3
    skip: str = "[]"


class RoundWeights:
    """Float32 in, float32 on the int8 grid out."""

    name = "round_weights"
    lossless = False
    needs_data = True

    def refuse(self, signature: Signature, target: Target) -> str | None:  # noqa: ARG002 - the protocol's; nothing here depends on the device
        """A quantized model, or one without layers that would be."""
        if signature.quantized:
            return "the model is quantized already"
        if not signature.count(*quantizable.LAYERS):
            return "the model has no Conv, Gemm or MatMul"
        return None

    def apply(self, model: Model, settings: Settings, evidence: Evidence) -> Model:
        """The rounded model; raises :class:`~edgeopt.errors.PassFailed` where no weight can be."""
        scheme = read_settings(RoundingScheme, settings, technique=self.name)
        rounded = edit.copy(model)
        layers = _layers(rounded, read_names(scheme.skip))
        moments = gram.collect(rounded, layers, evidence) if layers else {}
        layers = [layer for layer in layers if str(layer.weight.name) in moments]
        if not layers:
            raise PassFailed(
                "no Conv, Gemm or MatMul that reads all channels has a constant float32 weight of its own",
                hint="Leave this technique out for this model.",
            )
        means = _means(rounded, layers, evidence)
        names = edit.fresh_names(rounded)
        for layer in layers:
            weight = np.asarray(tensors.array(layer.weight), np.float32)
            changed = _rounded(weight, layer.weight_axis, moments[str(layer.weight.name)].matrix, scheme)
            _replace(rounded.graph, layer, 1, names.fresh(f"{layer.weight.name}_rounded"), changed)
            if layer.bias is not None:
                shift = bias_correction.mean_shift(
                    changed - weight, means[str(layer.data.name)], output_axis=layer.weight_axis
                )
                corrected = (np.asarray(tensors.array(layer.bias), np.float64) - shift).astype(np.float32)
                _replace(rounded.graph, layer, 2, names.fresh(f"{layer.bias.name}_rounded"), corrected)
        edit.prune(rounded)
        return rounded


def _layers(model: ir.Model, skip: frozenset[str]) -> list[Layer]:
    """The layers that would be quantized and share their weight with nobody."""
    placed = quantizable.place(model.graph, skip=skip).layers
    return [layer for layer in placed if not tensors.is_shared(layer.weight)]


def _means(model: ir.Model, layers: list[Layer], evidence: Evidence) -> dict[str, NDArray[np.float64]]:
    channels = {str(layer.data.name): layer.channel_axis for layer in layers if layer.bias is not None}
    if not channels:
        return {}
    seen = collect(model, sorted(channels), evidence, channels=channels)
    return {name: observation.mean for name, observation in seen.items()}


def _rounded(weight: NDArray[np.float32], axis: int, moments: gram.Gram, scheme: RoundingScheme) -> NDArray[np.float32]:
    """The weight on the grid that ``weight_qparams`` gives it, one scale for each index of ``axis``."""
    grid = rounding.grid(weight, axis, reduced_range=scheme.reduced_range)
    rows, _ = qparams.rows_and_taps(weight, axis)
    codes = rounding.learned_codes(rows, grid, moments, sweeps=scheme.sweeps)
    values = (codes * grid.scale[:, None]).reshape(np.moveaxis(weight, axis, 0).shape)
    return np.ascontiguousarray(np.moveaxis(values, 0, axis).astype(np.float32))


def _replace(graph: ir.Graph, layer: Layer, index: int, name: str, data: NDArray[np.float32]) -> None:
    layer.node.replace_input_with(index, edit.add_initializer(graph, name, data))
