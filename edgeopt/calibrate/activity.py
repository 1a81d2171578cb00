"""What every channel of an activation does over the calibration samples: its mean, variance, share of zeros and entropy.

Stands under ``importance`` and ``batch_norms``. In come the names of tensors, out goes one :class:`Activity` a tensor. One sample is in memory at a
time, thinned to ``gram.ROWS_PER_SAMPLE`` places of a feature map, and a fixed number of counters a channel is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate import gram
from edgeopt.calibrate.histogram import exponent_of
from edgeopt.calibrate.ranges import not_finite
from edgeopt.protocols import Evidence

if TYPE_CHECKING:
    from edgeopt.protocols import Model

BINS = 256
"""Of each channel; they span both signs up to a power of two above the tensor's largest magnitude."""
MOST_SAMPLES = 256
_HALF = BINS // 2


@dataclass(slots=True)
class Activity:
    """Sums over the rows of one tensor; every array is (channels,) but ``counts``, which is (channels, ``BINS``)."""

    rows: int = 0
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    square: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    idle: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """How often the channel was zero or below."""
    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, BINS)))
    exponent: int = exponent_of(0.0)

    def add(self, rows: NDArray[np.float32]) -> None:
        """Values of shape (rows, channels)."""
        channels = rows.shape[1]
        if not self.rows:
            self.total, self.square, self.idle = (np.zeros(channels) for _ in range(3))
            self.counts = np.zeros((channels, BINS))
        self.rows += len(rows)
        self.total += rows.sum(axis=0, dtype=np.float64)
        self.square += np.square(rows, dtype=np.float64).sum(axis=0)
        self.idle += (rows <= 0).sum(axis=0)
        self._count(rows)

    @property
    def mean(self) -> NDArray[np.float64]:
        return self.total / self.rows

    @property
    def variance(self) -> NDArray[np.float64]:
        return np.maximum(0.0, self.square / self.rows - np.square(self.mean))

    @property
    def zeros(self) -> NDArray[np.float64]:
        """The share of values that are zero or below."""
        return self.idle / self.rows

    @property
    def entropy(self) -> NDArray[np.float64]:
        """In bits, over bins that all channels of the tensor share: a channel that hardly moves says little."""
        shares = self.counts / self.rows
        logs = np.log2(shares, where=shares > 0, out=np.zeros_like(shares))
        entropy: NDArray[np.float64] = -(shares * logs).sum(axis=1)
        return entropy

    def _count(self, rows: NDArray[np.float32]) -> None:
        wanted = exponent_of(float(np.abs(rows).max(initial=0.0)))
        for _ in range(min(max(0, wanted - self.exponent), _HALF.bit_length())):
            pairs = self.counts.reshape(len(self.counts), _HALF, 2).sum(axis=2)
            self.counts = np.zeros_like(self.counts)
            self.counts[:, _HALF // 2 : _HALF // 2 + _HALF] = pairs
        self.exponent = max(self.exponent, wanted)
        places = np.floor(rows * (_HALF / 2.0**self.exponent)).astype(np.int64) + _HALF
        # The limit itself belongs to the last bin; without the clip it would count for the next channel.
        places = np.clip(places, 0, BINS - 1) + BINS * np.arange(rows.shape[1])
        self.counts += np.bincount(places.reshape(-1), minlength=self.counts.size).reshape(self.counts.shape)


def observe(model: Model, wanted: Mapping[str, tuple[str, int]], evidence: Evidence) -> dict[str, Activity]:
    """By the same keys: what the channels of each tensor do; ``wanted`` gives its name and the axis of its channels.

    Raises :class:`~edgeopt.errors.PassFailed` where a tensor is not finite.
    """
    seen = {key: Activity() for key in dict.fromkeys(wanted.values())}
    names = list(dict.fromkeys(name for name, _ in seen))
    for arrays in islice(evidence.observe(model, names), MOST_SAMPLES):
        for (name, axis), activity in seen.items():
            data = np.moveaxis(np.asarray(arrays[name], np.float32), axis, -1)
            rows = gram.thinned(data.reshape(-1, data.shape[-1]))
            if not np.isfinite(rows).all():
                raise not_finite(name)
            activity.add(rows)
    return {key: seen[tensor] for key, tensor in wanted.items()}
