"""Second moments of what layers read: ``X^T X`` of each layer's inputs, streamed over the calibration samples.

Stands between the evidence and ``compensate``. In come a model and its layers, out comes one symmetric matrix a weight, with as many rows as the weight has
inputs to one output (for a convolution: channels times kernel). One sample's tensors are in memory at a time; layers whose matrices would take
more than ``MOST_BYTES`` together are observed in several rounds over the data, so memory grows with neither samples nor layers. At most
``ROWS_PER_SAMPLE`` places of a feature map are read: neighbouring places say much the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate import windows
from edgeopt.calibrate.collect import fingerprint
from edgeopt.errors import PassFailed
from edgeopt.graph import tensors
from edgeopt.graph.quantizable import Layer
from edgeopt.protocols import Evidence

if TYPE_CHECKING:
    import onnx_ir as ir

Gram = NDArray[np.float32]
"""``X^T X``: (inputs, inputs)."""
Kind = TypeVar("Kind", bound=np.generic)
Item = TypeVar("Item")

MOST_BYTES = 256 << 20
ROWS_PER_SAMPLE = 256
_WIDEST = 6144
"""Inputs of one output above which no matrix is made: factoring it would take minutes."""
MOST_SAMPLES = 64
"""Samples that are read at most: more move the result less than its own noise, and each costs an inference."""
_DAMPING = 0.01
"""Share of the mean diagonal added to the diagonal, as in the GPTQ paper: few samples leave the matrix singular."""
_GOLDEN = 0.6180339887498949


@dataclass(slots=True)
class Moments:
    """A layer's second moments, and what compensation needs of them: worked out once for all recipes."""

    matrix: Gram
    _factored: tuple[NDArray[np.intp], NDArray[np.float32]] | None = None

    def factored(self) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """The inputs by falling power, and the upper Cholesky factor of the damped inverse in that order."""
        if self._factored is None:
            order = np.argsort(-np.diag(self.matrix), kind="stable")
            self._factored = order, factor(self.matrix, order)
        return self._factored


def factor(matrix: Gram, order: NDArray[np.intp]) -> NDArray[np.float32]:
    """The upper Cholesky factor of the damped inverse of ``matrix``, its inputs in ``order``."""
    ordered = matrix[np.ix_(order, order)].astype(np.float64)
    mean = float(np.trace(ordered)) / len(ordered)
    ordered[np.diag_indices_from(ordered)] += _DAMPING * mean if mean > 0 else 1.0
    inverse = np.linalg.inv(ordered)
    # Rounding leaves the inverse a trace unsymmetric, which the factorisation would not notice.
    upper: NDArray[np.float32] = np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)
    return upper


def collect(model: ir.Model, layers: Sequence[Layer], evidence: Evidence) -> dict[str, Moments]:
    """The matrices by name of the weight; grouped convolutions and very wide layers have none.

    A weight that two layers read gets the sum. Raises :class:`~edgeopt.errors.PassFailed` without samples, or where a tensor is not finite.
    """
    if not evidence.sample_count:
        raise PassFailed("there are no calibration samples", hint="Drop calibration samples beside the model.")
    wanted = [layer for layer in layers if 0 < width(layer) <= _WIDEST]
    key = f"calibrate.gram:{fingerprint(model)}:{sorted(layer.name for layer in wanted)}"
    remembered = evidence.memo.get(key)
    if isinstance(remembered, dict):
        return remembered
    moments: dict[str, Moments] = {}
    for group in rounds(wanted, lambda layer: 4 * width(layer) ** 2):
        for name, seen in _observe(model, group, evidence).items():
            moments[name] = Moments(moments[name].matrix + seen.matrix) if name in moments else seen
    if sum(each.matrix.nbytes for each in {id(each): each for each in moments.values()}.values()) <= MOST_BYTES:
        evidence.memo[key] = moments
    return moments


def patches(data: NDArray[np.float32], layer: Layer) -> NDArray[np.float32]:
    """The vectors that meet the weight's rows: (places, inputs), at most ``ROWS_PER_SAMPLE`` of them, spread evenly."""
    if layer.node.op_type == "Conv":
        return windows.convolved(data, layer.node, _sides(layer)[2:], thinned)
    if layer.node.op_type == "ConvTranspose":
        return windows.transposed(data, layer.node, _sides(layer)[2:], thinned)
    return thinned(data.reshape(-1, data.shape[-1]))


def _observe(model: ir.Model, layers: Sequence[Layer], evidence: Evidence) -> dict[str, Moments]:
    names = list(dict.fromkeys(str(layer.data.name) for layer in layers))
    shared: dict[tuple[str, str], Gram] = {}
    for arrays in islice(evidence.observe(model, names), MOST_SAMPLES):
        seen: set[tuple[str, str]] = set()
        for layer in layers:
            key = _kind(layer)
            if key in seen:
                continue
            seen.add(key)
            rows = patches(np.asarray(arrays[key[0]], np.float32), layer)
            moment = rows.T @ rows
            if not np.isfinite(moment).all():
                raise PassFailed(
                    f"tensor {key[0]!r} is not finite in a calibration sample", hint="Check the calibration data."
                )
            shared[key] = shared[key] + moment if key in shared else moment
    # Layers with the same input share one object, and with it the factor.
    moments = {key: Moments(gram) for key, gram in shared.items()}
    found: dict[str, Moments] = {}
    for layer in layers:
        name, own = str(layer.weight.name), moments[_kind(layer)]
        found[name] = Moments(found[name].matrix + own.matrix) if name in found else own
    return found


def _kind(layer: Layer) -> tuple[str, str]:
    """Layers that read the same tensor in the same way share one matrix."""
    if layer.node.op_type != "Conv":
        return str(layer.data.name), "matrix"
    kernel = _sides(layer)[2:]
    how = [windows.integers(layer.node, name, []) for name in ("pads", "strides", "dilations")]
    return str(layer.data.name), f"{kernel}{how}{layer.node.attributes.get_string('auto_pad', '')}"


def rounds(items: Sequence[Item], cost: Callable[[Item], int]) -> Iterator[list[Item]]:
    """``items`` in order, in groups that cost ``MOST_BYTES`` at most together; one that alone costs more is alone."""
    group: list[Item] = []
    taken = 0
    for item in items:
        own = cost(item)
        if group and taken + own > MOST_BYTES:
            yield group
            group, taken = [], 0
        group.append(item)
        taken += own
    if group:
        yield group


def width(layer: Layer) -> int:
    """Inputs of one output; 0 for a grouped convolution, whose outputs read different inputs."""
    node = layer.node
    if node.op_type in ("Conv", "ConvTranspose"):
        if node.attributes.get_int("group", 1) != 1:
            return 0
        if node.op_type == "ConvTranspose" and not windows.is_plain_transposed(node):
            return 0
    return int(np.prod(_sides(layer))) // int(_sides(layer)[layer.weight_axis])


def _sides(layer: Layer) -> tuple[int, ...]:
    tensor = tensors.constant(layer.weight)
    return tuple(int(side) for side in tensor.shape.numpy()) if tensor is not None else ()


def thinned(rows: NDArray[Kind]) -> NDArray[Kind]:
    """At most ``ROWS_PER_SAMPLE`` rows, at the same places every time; a fixed stride would follow a picture's columns."""
    if len(rows) <= ROWS_PER_SAMPLE:
        return rows
    shares = np.modf(np.arange(ROWS_PER_SAMPLE) * _GOLDEN)[0]
    chosen: NDArray[Kind] = rows[np.sort((shares * len(rows)).astype(np.int64))]
    return chosen
