"""One pass over the calibration samples: what every tensor of a model is like.

Stands between the evidence (which runs the observation copy that ``instrument`` makes) and the passes that need ranges or
channel means. One sample's small reductions are in memory at a time, and what is kept is of fixed size, so memory does not grow with the number of
samples. The result serves every method and every set of settings; the evidence remembers it, so that the recipes of one
job share one pass over the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.calibrate import instrument
from edgeopt.calibrate.ranges import TensorStats, not_finite
from edgeopt.errors import PassFailed
from edgeopt.protocols import Evidence

if TYPE_CHECKING:
    from edgeopt.protocols import Array

_WAITING_EACH = 1 << 14
"""Values of a tensor that go into its histogram together, on average: numpy's fixed cost for each call would dominate otherwise."""
_MOST_WAITING = 1 << 21
"""And those of all tensors, 8 MiB."""


@dataclass(slots=True)
class Observation:
    """What was seen of one tensor."""

    stats: TensorStats = field(default_factory=TensorStats)
    mean_sum: NDArray[np.float64] | float = 0.0

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean of each channel; of one entry where it was not asked for."""
        return np.atleast_1d(np.asarray(self.mean_sum / self.stats.samples, np.float64))


def collect(
    model: ir.Model, names: Sequence[str], evidence: Evidence, *, channels: Mapping[str, int]
) -> dict[str, Observation]:
    """Observe the named float tensors of ``model``'s main graph over all samples.

    ``channels`` says of which tensors the mean is wanted and over which axis it keeps: 1 for feature maps (N, C, ...),
    -1 for matrices (..., C). Raises :class:`~edgeopt.errors.PassFailed` without samples, or where a tensor is not finite.
    """
    if not evidence.sample_count:
        raise PassFailed("there are no calibration samples", hint="Drop calibration samples beside the model.")
    key = f"calibrate.collect:{fingerprint(model)}:{sorted(names)}:{sorted(channels.items())}"
    remembered = evidence.memo.get(key)
    if isinstance(remembered, dict):
        return remembered
    collected = _collect(model, list(names), evidence, channels)
    evidence.memo[key] = collected
    return collected


def fingerprint(model: ir.Model) -> str:
    """A hash of what the model computes, its weights included."""
    digest = hashlib.sha256()
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            digest.update(name.encode())
            if value.const_value is not None:
                digest.update(_bytes_of(value.const_value))
        for node in graph:
            inputs = [value.name if value is not None else "" for value in node.inputs]
            attributes = [_described(attribute) for _, attribute in sorted(node.attributes.items())]
            digest.update(
                repr((node.op_identifier(), inputs, [value.name for value in node.outputs], attributes)).encode()
            )
    return digest.hexdigest()


def _bytes_of(tensor: ir.TensorProtocol) -> bytes | memoryview:
    values = tensor.numpy()
    if values.dtype.kind in "OSU":
        return repr(values.tolist()).encode()
    # As bytes before it becomes a buffer: Python knows no format letter for bfloat16 and the like.
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _described(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
        return hashlib.sha256(_bytes_of(attribute.as_tensor())).hexdigest()
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return attribute.name  # the nodes inside are visited on their own
    return repr((attribute.name, attribute.value))


def _collect(
    model: ir.Model, names: list[str], evidence: Evidence, channels: Mapping[str, int]
) -> dict[str, Observation]:
    shapes = _shapes(model, names, evidence)
    observed, probes = instrument.with_statistics(model, shapes, channels)
    wanted = [name for probe in probes.values() for name in probe.names()]
    observations = {name: Observation() for name in names}
    waiting = _Waiting(observations, {name: channels.get(name) for name, probe in probes.items() if probe.high is None})
    reduced = [(name, probe) for name, probe in probes.items() if probe.high is not None]
    values = [(name, probe.values) for name, probe in probes.items()]
    for arrays in evidence.observe(observed, wanted):
        for name, probe in reduced:
            _add(observations[name], probe, arrays, name)
        for name, found in values:
            waiting.add(name, arrays[found])
        waiting.count_if_full()
    waiting.count()
    for name, observation in observations.items():
        # A reduction to an extreme may skip a NaN; a sum cannot.
        if not np.isfinite(observation.mean_sum).all():
            raise not_finite(name)
    return observations


def _shapes(model: ir.Model, names: list[str], evidence: Evidence) -> dict[str, tuple[int, ...]]:
    observed, shape_names = instrument.with_shapes(model, names)
    for arrays in evidence.observe(observed, list(shape_names.values())):
        return {name: tuple(int(side) for side in arrays[shape]) for name, shape in shape_names.items()}
    raise PassFailed("the calibration data yielded no sample", hint="Check that the calibration file is not empty.")


def _add(observation: Observation, probe: instrument.Probe, arrays: Mapping[str, Array], name: str) -> None:
    low = float(arrays[probe.low].item()) if probe.low is not None else 0.0
    high = float(arrays[str(probe.high)].item())
    observation.stats.add(low, high, name=name)
    if probe.mean is not None:
        observation.mean_sum = observation.mean_sum + np.asarray(arrays[probe.mean], np.float64)


def _add_whole(observation: Observation, arrays: NDArray[np.float32], channel: int | None, name: str) -> None:
    """Take in several samples of a tensor that left the runtime whole, [samples, ...]; ``channel`` is an axis of one sample."""
    rows = arrays.reshape(len(arrays), -1)
    if not rows.size:
        rows = np.zeros((len(arrays), 1), np.float32)  # nothing there, as in a list of boxes without a box
    observation.stats.add_each(rows.min(axis=1), rows.max(axis=1), name=name)
    if channel is not None and arrays.size:
        kept = channel % (arrays.ndim - 1)
        others = tuple(axis + 1 for axis in range(arrays.ndim - 1) if axis != kept)
        means = arrays.mean(axis=others, dtype=np.float64)
        observation.mean_sum = observation.mean_sum + means.sum(axis=0)


class _Waiting:
    """Values of a few samples, to be counted together. Bounded by their number: later samples may be larger than the first.

    ``whole`` are the tensors of which nothing but the values is known, with the axis whose means are wanted.
    """

    def __init__(self, observations: Mapping[str, Observation], whole: Mapping[str, int | None]) -> None:
        self._observations = observations
        self._whole = whole
        self._arrays: dict[str, list[Array]] = {name: [] for name in observations}
        self._most = min(_MOST_WAITING, _WAITING_EACH * len(observations))
        self._size = 0

    def add(self, name: str, values: Array) -> None:
        self._arrays[name].append(values)
        self._size += values.size

    def count_if_full(self) -> None:
        if self._size >= self._most:
            self.count()

    def count(self) -> None:
        for name, arrays in self._arrays.items():
            if name in self._whole:
                self._count_whole(name, arrays)
            elif arrays:
                values = np.concatenate(arrays).astype(np.float32, copy=False)
                self._observations[name].stats.add_values(values, name=name)
            arrays.clear()
        self._size = 0

    def _count_whole(self, name: str, arrays: list[Array]) -> None:
        alike = [arrays] if len({array.shape for array in arrays}) == 1 else [[array] for array in arrays]
        for group in filter(None, alike):
            values = np.stack(group).astype(np.float32, copy=False)
            _add_whole(self._observations[name], values, self._whole[name], name)
            self._observations[name].stats.add_values(values, name=name)
