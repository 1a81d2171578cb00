"""What every channel of an activation is like: its extremes and its power, over all calibration samples.

Stands beside ``collect``, for the passes that even channels out before quantization. Channels are the last axis, as MatMul and
Gemm see them. Only three numbers a channel leave the runtime for each sample, so memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.calibrate import instrument
from edgeopt.calibrate.collect import fingerprint
from edgeopt.calibrate.ranges import not_finite
from edgeopt.errors import PassFailed
from edgeopt.protocols import Evidence


@dataclass(frozen=True, slots=True)
class Channels:
    """Of each channel: the lowest and highest value seen, and the mean square; shape (channels,)."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    square: NDArray[np.float64]

    @property
    def peak(self) -> NDArray[np.float64]:
        """The largest magnitude of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


def observe_channels(model: ir.Model, widths: Mapping[str, int], evidence: Evidence) -> dict[str, Channels]:
    """Observe the channels of the named float tensors of ``model``'s main graph; ``widths`` are their last axes.

    Raises :class:`~edgeopt.errors.PassFailed` without samples, or where a tensor is not finite.
    """
    if not evidence.sample_count:
        raise PassFailed("there are no calibration samples", hint="Drop calibration samples beside the model.")
    key = f"calibrate.channels:{fingerprint(model)}:{sorted(widths.items())}"
    remembered = evidence.memo.get(key)
    if isinstance(remembered, dict):
        return remembered
    observed, probes = instrument.with_channel_power(model, widths)
    wanted = [name for probe in probes.values() for name in probe.names()]
    found: dict[str, Channels] = {}
    for arrays in evidence.observe(observed, wanted):
        for name, probe in probes.items():
            seen = Channels(*(np.asarray(arrays[part], np.float64) for part in probe.names()))
            found[name] = _joined(found[name], seen) if name in found else seen
    for name, channels in found.items():
        # A reduction to an extreme may skip a NaN; a sum of squares cannot.
        if not np.isfinite(channels.square).all():
            raise not_finite(name)
    means = {name: Channels(c.low, c.high, c.square / evidence.sample_count) for name, c in found.items()}
    evidence.memo[key] = means
    return means


def _joined(one: Channels, other: Channels) -> Channels:
    """Extremes of both; ``square`` is summed here and divided at the end."""
    return Channels(np.minimum(one.low, other.low), np.maximum(one.high, other.high), one.square + other.square)
