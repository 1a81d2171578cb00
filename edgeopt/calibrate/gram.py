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
    if layer.node.op_type != "Conv":
        return thinned(data.reshape(-1, data.shape[-1]))
    kernel = _sides(layer)[2:]
    rank = len(kernel)
    strides = _integers(layer.node, "strides", [1] * rank)
    dilations = _integers(layer.node, "dilations", [1] * rank)
    reach = [1 + (size - 1) * step for size, step in zip(kernel, dilations, strict=True)]
    padded = np.pad(data, [(0, 0), (0, 0), *_pads(layer.node, data.shape[2:], strides, reach)])
    axes = tuple(range(2, 2 + rank))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
    taken = (slice(None), slice(None), *(slice(None, None, step) for step in strides))
    windows = windows[taken + tuple(slice(None, None, step) for step in dilations)]
    # (batch, channels, places ..., kernel ...) to (batch, places ..., channels, kernel ...): still a view.
    windows = np.moveaxis(windows, 1, 1 + rank)
    places = np.stack([side.reshape(-1) for side in np.indices(windows.shape[: 1 + rank])], axis=1)
    chosen = thinned(places)
    vectors: NDArray[np.float32] = windows[tuple(chosen.T)].reshape(len(chosen), -1)
    return vectors


def _pads(node: ir.Node, sides: Sequence[int], strides: Sequence[int], reach: Sequence[int]) -> list[tuple[int, int]]:
    """(begin, end) of each side of a convolution's input; ``auto_pad`` follows the sides of the sample at hand."""
    attribute = node.attributes.get("auto_pad")
    mode = attribute.as_string() if attribute is not None else "NOTSET"
    if not mode.startswith("SAME"):
        flat = [0] * (2 * len(sides)) if mode == "VALID" else _integers(node, "pads", [0] * (2 * len(sides)))
        return list(zip(flat[: len(sides)], flat[len(sides) :], strict=True))
    pads = []
    for side, stride, span in zip(sides, strides, reach, strict=True):
        missing = max(0, (-(-side // stride) - 1) * stride + span - side)
        small, large = missing // 2, missing - missing // 2
        pads.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return pads


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
    how = [_integers(layer.node, name, []) for name in ("pads", "strides", "dilations")]
    automatic = layer.node.attributes.get("auto_pad")
    return str(layer.data.name), f"{kernel}{how}{automatic.as_string() if automatic is not None else ''}"


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
    shape = _sides(layer)
    if layer.node.op_type == "Conv":
        grouped = _integers(layer.node, "group", [1]) != [1]
        return 0 if grouped else int(np.prod(shape[1:]))
    return int(np.prod(shape)) // int(shape[layer.weight_axis])


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


def _integers(node: ir.Node, name: str, default: list[int]) -> list[int]:
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    return [attribute.as_int()] if name == "group" else list(attribute.as_ints())
