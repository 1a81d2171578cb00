"""The rounding of int8 inside a float training, so that the student learns to live with it.

Stands between ``calibrate`` (ranges, scales) and ``training.loop``. In comes the float student and the evidence, out go the two transforms that the
replay applies: to a weight before it is used, to a value after it is made. Weights are symmetric with one scale for each output channel, taken
anew from the weight at every step, since that is what the quantizer behind will take; activations have one range each, fixed from the
calibration samples. Rounding lets gradients through, clipping does not (B. Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018). What comes out of the training are float weights for ``quantize_static``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from edgeopt.calibrate import qparams
from edgeopt.calibrate.collect import collect
from edgeopt.calibrate.ranges import range_of
from edgeopt.errors import PassFailed
from edgeopt.graph import edit, quantizable
from edgeopt.graph.gemm import fuse_gemm

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor

    from edgeopt.protocols import Evidence


@dataclass(slots=True)
class FakeQuantizer:
    """Which weights and values are rounded. Called by the replay with names; what is not listed passes unchanged."""

    axes: dict[str, int] = field(default_factory=dict)
    """Output axis of each weight."""
    scales: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Scale and zero point of each value, in codes of 0..255."""
    reduced_range: bool = False
    """Weights as wide as kernels add up exactly that add two products in 16 bits; see ``calibrate.saturation``."""
    exact: set[str] = field(default_factory=set)
    """Weights whose kernels do not, which keep all 8 bits."""

    def weight(self, name: str, tensor: Tensor) -> Tensor:
        """The weight as the integer kernel will see it."""
        axis = self.axes.get(name)
        if axis is None:
            return tensor
        narrow = self.reduced_range and name not in self.exact
        found = qparams.weight_qparams(tensor.detach().float().numpy(), axis=axis, reduced_range=narrow)
        scale = torch.from_numpy(found.scale)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        rounded: Tensor = torch.fake_quantize_per_channel_affine(
            tensor.float(), scale, zeros, axis, found.qmin, found.qmax
        )
        return rounded

    def value(self, name: str, tensor: Tensor) -> Tensor:
        """The activation as the integer kernel will see it."""
        found = self.scales.get(name)
        if found is None or not tensor.is_floating_point():
            return tensor
        scale, zero_point = found
        rounded: Tensor = torch.fake_quantize_per_tensor_affine(tensor.float(), scale, zero_point, 0, 255)
        return rounded


def prepare(model: ir.Model, evidence: Evidence, *, reduced_range: bool = False) -> FakeQuantizer:
    """The roundings that static int8 would bring into ``model``.

    Raises :class:`~edgeopt.errors.PassFailed` where nothing would be quantized or there are no samples.
    """
    fused = edit.copy(model)
    fuse_gemm(fused)
    placement = quantizable.place(fused.graph)
    if not placement.layers:
        raise PassFailed(
            "no Conv, Gemm or MatMul with a constant float32 weight would be quantized",
            hint="Set fake_quantize to off.",
        )
    readers = {layer.node for layer in placement.layers} | set(placement.carried)
    values = [*placement.produced, *(value for value in placement.consumed if _only_read_by(value, readers))]
    names = sorted({str(placement.root(value).name) for value in values})
    seen = collect(fused, names, evidence, channels={})
    method = "mse" if any(layer.node.op_type == "Conv" for layer in placement.layers) else "min_max"
    found = FakeQuantizer(reduced_range=reduced_range)
    for layer in placement.layers:
        found.axes[str(layer.weight.name)] = layer.weight_axis
        if quantizable.adds_in_32_bits(layer):
            found.exact.add(str(layer.weight.name))
    for value in values:
        covered = range_of(seen[str(placement.root(value).name)].stats, method)
        parameters = qparams.activation_qparams(covered, dtype="uint8")
        found.scales[str(value.name)] = (float(parameters.scale), int(parameters.zero_point))
    return found


def _only_read_by(value: ir.Value, readers: set[ir.Node]) -> bool:
    """A float reader gets the value unrounded, and the replay has one version of it: it stays float for both."""
    return not value.is_graph_output() and all(use.node in readers for use in value.uses())
