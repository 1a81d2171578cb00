"""How far the outliers of an activation are moved into the weights behind it, and which channels are better kept apart.

Stands under ``passes.migrate_outliers``. In come the channels of one activation and the weights that multiply it; out goes
a :class:`Migration`: a divisor for each channel, and the few channels whose product is computed beside, in float.

A product ``x W`` is unchanged by ``(x / s) (s W)``. Dividing loud channels narrows the one range that an 8-bit activation has, but widens
the weights (G. Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML
2023, arXiv:2211.10438). Where one channel carries a spike, so does its row of weights, and no divisor serves both: such a channel is left out of the
integer product (T. Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", NeurIPS 2022, arXiv:2208.07339).

Instead of one exponent for the whole model, each activation takes the divisors with the least estimated noise: rounding an activation with
step d adds noise of power d^2 / 12 to each of its values, rounding a weight likewise, and both are known before anything is quantized.
Divisors are powers of two, which floating point multiplies without rounding: the migrated model computes the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate.channels import Channels

Floats = NDArray[np.float64]
_ACTIVATION_STEPS, _WEIGHT_STEPS = 255, 127
_EXPONENTS = tuple(np.arange(0.4, 1.0, 0.1))
"""SmoothQuant's alpha; 1 would move all of the difficulty into the weights."""
_LIMITS = tuple(2.0 ** -np.arange(0.5, 5.0, 0.5))
"""Shares of the largest peak that quieter channels are left alone below."""
_LIFTED = (0, 1, 2, 4, 8, 16)
_QUIET = 1e-6
"""Channels below this share of the loudest one are as good as silent; their divisor must stay finite."""
_FURTHEST = 2.0**12


@dataclass(frozen=True, slots=True)
class Migration:
    """``divisor`` holds a power of two for each channel; ``lifted`` the channels that are kept out, ascending."""

    divisor: Floats
    lifted: NDArray[np.int64]
    before: float
    after: float
    """Estimated noise over signal of the product, unchanged and migrated."""

    @property
    def gain(self) -> float:
        """How many times less noise; 1 where there is none."""
        return self.before / self.after if self.after > 0 else 1.0


def choose(channels: Channels, weight: Floats, *, most_lifted: int = 0, alpha: float | None = None) -> Migration:
    """The migration with the least estimated noise; ``weight`` is (channels, outputs) of all readers side by side.

    At most ``most_lifted`` channels are kept out. ``alpha`` fixes SmoothQuant's exponent instead of trying several.
    """
    order = np.argsort(-channels.peak, kind="stable")
    one = np.ones(len(channels.peak))
    before = noise(channels, weight, one, order[:0])
    best = Migration(one, np.empty(0, np.int64), before, before)
    for count in _LIFTED:
        if count > min(most_lifted, len(order) - 1):
            break
        for divisor in _divisors(channels, weight, order[:count], alpha):
            after = noise(channels, weight, divisor, order[:count])
            if after < best.after:
                best = Migration(divisor, np.sort(order[:count]).astype(np.int64), before, after)
    return best


def noise(channels: Channels, weight: Floats, divisor: Floats, lifted: NDArray[np.integer]) -> float:
    """Estimated power of the rounding noise of ``(x / divisor) (divisor W)`` over the power of ``x W``.

    Channels are taken as uncorrelated, activations as unsigned 8 bits over the range seen, weights as 8 bits for each output.
    """
    kept = np.ones(len(divisor), bool)
    kept[lifted] = False
    scaled, divided = weight[kept] * divisor[kept, None], divisor[kept]
    high = max(0.0, float((channels.high[kept] / divided).max()))
    low = min(0.0, float((channels.low[kept] / divided).min()))
    activation_step, weight_steps = (high - low) / _ACTIVATION_STEPS, np.abs(scaled).max(axis=0) / _WEIGHT_STEPS
    from_activation = activation_step**2 / 12 * np.square(scaled).sum()
    from_weight = np.square(weight_steps).sum() / 12 * (channels.square[kept] / divided**2).sum()
    signal = (channels.square[:, None] * np.square(weight)).sum()
    return float((from_activation + from_weight) / max(float(signal), 1e-300))


def _divisors(channels: Channels, weight: Floats, lifted: NDArray[np.integer], alpha: float | None) -> Iterator[Floats]:
    """Candidates: SmoothQuant's for several exponents, and those that touch nothing but the loud channels."""
    peak = np.maximum(channels.peak, max(float(channels.peak.max()) * _QUIET, 1e-30))
    rows = np.abs(weight).max(axis=1)
    rows = np.maximum(rows, max(float(rows.max()) * _QUIET, 1e-30))
    for exponent in _EXPONENTS if alpha is None else (alpha,):
        yield _powers_of_two(peak**exponent / rows ** (1 - exponent))
    if alpha is None:
        loudest = float(np.delete(peak, lifted).max())
        yield np.ones(len(peak))
        for limit in _LIMITS:
            yield _powers_of_two(np.maximum(1.0, peak / (loudest * limit)))


def _powers_of_two(divisor: Floats) -> Floats:
    """The nearest powers of two around 1: a factor that all channels share changes nothing but the weights' magnitude."""
    logarithms = np.log2(divisor)
    steps = np.rint(logarithms - logarithms.mean())
    return np.asarray(np.clip(2.0**steps, 1 / _FURTHEST, _FURTHEST))
