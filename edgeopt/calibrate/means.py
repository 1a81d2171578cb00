"""Mean-only bias correction: a reader that keeps its weights at least gives on average what it gave.

Stands beside ``batch_norms``, for the readers that are not refitted and have no batch norm behind them: weights that several layers share, very wide ones, and
transposed convolutions in groups. What a removed channel was on average goes into the reader's bias (M. Nagel et al., "Data-Free Quantization Through Weight Equalization
and Bias Correction", ICCV 2019, arXiv:1906.04721, there for rounded weights). The shift is measured at the layer's output, not worked out from the columns that went: so it
also takes up what the layers in front changed. Like a refit it has to show on the held-out samples.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.calibrate.consumers import LAYERS, bias_of
from edgeopt.calibrate.regression import is_held_out
from edgeopt.graph import edit, quantizable, tensors
from edgeopt.graph.quantizable import Layer
from edgeopt.protocols import Evidence

if TYPE_CHECKING:
    from edgeopt.protocols import Model

_MOST_SAMPLES = 64
Means = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Output:
    """A layer's output, and the bias that moves it."""

    name: str
    channel_axis: int
    bias: ir.Value


def level(
    original: Model, pruned: Model, weights: Collection[str], evidence: Evidence, *, apart: bool = False
) -> list[str]:
    """Change the biases of ``pruned``'s layers with these weights so that their outputs' means are the original's; the outputs' names.

    Layers with a batch norm behind them are left to ``batch_norms``. With ``apart`` the held-out samples stay out of the biases.
    """
    layers = [each for each in quantizable.layers(pruned.graph, operators=LAYERS) if str(each.weight.name) in weights]
    outputs = [output for output in map(_output, layers) if output is not None]
    if not outputs:
        return []
    before = list(_means(original, outputs, evidence))
    with np.errstate(invalid="ignore"):  # what is not finite is nowhere below anything
        missing = [
            {name: own - now[name] for name, own in means.items()}
            for means, now in zip(before, _means(pruned, outputs, evidence), strict=True)
        ]
    fit = [each for index, each in enumerate(missing) if not is_held_out(index)]
    held = [each for index, each in enumerate(missing) if is_held_out(index)]
    changed = []
    for output in outputs if fit and held else ():
        left = _over(held, output)
        if np.square(left - _over(fit, output)).sum() < np.square(left).sum():
            old = np.asarray(tensors.array(output.bias))
            shift = _over(fit if apart else missing, output)
            edit.set_constant(output.bias, (old + shift.reshape(old.shape)).astype(old.dtype))
            changed.append(output.name)
    return changed


def _output(layer: Layer) -> _Output | None:
    bias, made = bias_of(layer), layer.node.outputs[0]
    is_normalised = any(use.node.op_type == "BatchNormalization" for use in made.uses())
    return None if bias is None or is_normalised else _Output(str(made.name), layer.channel_axis, bias)


def _means(model: Model, outputs: Collection[_Output], evidence: Evidence) -> Iterator[dict[str, Means]]:
    """For each sample and output the mean of every channel."""
    names = list(dict.fromkeys(output.name for output in outputs))
    for arrays in islice(evidence.observe(model, names), _MOST_SAMPLES):
        maps = {each.name: np.moveaxis(np.asarray(arrays[each.name]), each.channel_axis, -1) for each in outputs}
        yield {name: each.reshape(-1, each.shape[-1]).mean(axis=0, dtype=np.float64) for name, each in maps.items()}


def _over(samples: Collection[dict[str, Means]], output: _Output) -> Means:
    return np.asarray(np.mean([each[output.name] for each in samples], axis=0), np.float64)
