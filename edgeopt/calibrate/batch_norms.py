"""Batch-norm re-estimation: a layer that lost inputs is normalised for what it gives now.

Stands beside ``regression``, for the readers that could not be refitted (grouped, very wide, or no better on held-out samples). In come the original and the
pruned model in the same shapes; out go running means and variances of the pruned one. Re-estimating them usually means to take the statistics of the samples, which also
adapts the network to whatever the samples are, where nothing was pruned as well (Y. Li et al., "Revisiting Batch Normalization For Practical
Domain Adaptation", arXiv:1603.04779), and matching variances blows up what is only noise by now. Here the two numbers that a batch norm has for a channel are
those under which its output misses the original's least.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.calibrate import gram
from edgeopt.graph import edit, tensors
from edgeopt.protocols import Evidence

if TYPE_CHECKING:
    from edgeopt.protocols import Model

_MOST_SAMPLES = 64
_LEAST_SLOPE, _LARGEST_SLOPE = 0.25, 4.0
"""A channel that has nothing to do with what it was is neither silenced nor blown up."""
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def re_estimate(original: Model, pruned: Model, weights: Collection[str], evidence: Evidence) -> list[str]:
    """Change the running mean and variance of ``pruned``'s batch norms behind the layers with these weights; the inputs' names."""
    found = [(node.inputs[0], node) for node in pruned.graph if _follows(node, weights)]
    nodes = {str(value.name): node for value, node in found if value is not None}
    if not nodes:
        return []
    before = [dict(rows) for rows in _rows(original, list(nodes), evidence)]
    now = list(_rows(pruned, list(nodes), evidence))
    for name, node in nodes.items():
        targets = np.concatenate([rows[name] for rows in before]).astype(np.float64)
        inputs = np.concatenate([rows[name] for rows in now]).astype(np.float64)
        slope, offset = _line(inputs, targets)
        _change(node, slope, offset)
    return list(nodes)


def _rows(model: Model, names: list[str], evidence: Evidence) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Each sample's values as (places, channels), thinned."""
    for arrays in islice(evidence.observe(model, names), _MOST_SAMPLES):
        maps = {name: np.moveaxis(np.asarray(arrays[name], np.float32), 1, -1) for name in names}
        yield {name: gram.thinned(each.reshape(-1, each.shape[-1])) for name, each in maps.items()}


def _line(inputs: NDArray[np.float64], targets: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slope and offset of each channel's least squares; (channels,) both."""
    centred = inputs - inputs.mean(axis=0)
    power = np.square(centred).sum(axis=0)
    slope = np.divide((centred * targets).sum(axis=0), power, out=np.ones_like(power), where=power > 0)
    slope = np.clip(slope, _LEAST_SLOPE, _LARGEST_SLOPE)
    return slope, targets.mean(axis=0) - slope * inputs.mean(axis=0)


def _change(node: ir.Node, slope: NDArray[np.float64], offset: NDArray[np.float64]) -> None:
    """Statistics under which ``x`` is normalised as ``slope * x + offset`` was under the old ones."""
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    mean, variance = (np.asarray(tensors.array(node.inputs[index]), np.float64) for index in (3, 4))
    _set(node.inputs[3], (mean - offset) / slope)
    _set(node.inputs[4], np.maximum(0.0, (variance + epsilon) / np.square(slope) - epsilon))


def _follows(node: ir.Node, weights: Collection[str]) -> bool:
    """A batch norm with statistics of its own, right behind a layer with one of ``weights``."""
    if node.op_type != "BatchNormalization" or node.inputs[0] is None:
        return False
    layer = node.inputs[0].producer()
    if layer is None or layer.op_type not in _LAYERS:
        return False
    own = all(
        value is not None and tensors.constant(value) and not tensors.is_shared(value) for value in node.inputs[3:5]
    )
    return own and any(value is not None and value.name in weights for value in layer.inputs[1:2])


def _set(value: ir.Value | None, data: NDArray[np.float64]) -> None:
    if value is not None:
        edit.set_constant(value, data.astype(np.asarray(tensors.array(value)).dtype))
