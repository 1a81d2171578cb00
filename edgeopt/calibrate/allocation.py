"""Bits where they matter: how much each group of weights damages the outputs, and which bits for each make the least of a given size.

Stands under ``passes.quantize_weights``. The damage is measured: one group is packed, a few calibration samples are run, and the noise at the worst
output counts (``noises``). Each further bit quarters the noise power, so what was measured at one width says enough of all others, and bits are given out
one after the other to whoever sheds most damage for its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate import noises
from edgeopt.errors import PassFailed
from edgeopt.graph import apart, quantizable
from edgeopt.protocols import Evidence

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeopt.protocols import Array, Model

MOST_GROUPS = 32
_SAMPLES = 4


def groups(names: Sequence[str]) -> list[tuple[str, ...]]:
    """``names`` in order, divided into at most ``MOST_GROUPS`` runs of nearly equal length."""
    count = min(MOST_GROUPS, len(names))
    ends = [round(number * len(names) / count) for number in range(count + 1)] if count else []
    return [tuple(names[start:end]) for start, end in pairwise(ends)]


def damages_at_once(
    model: Model,
    found: Sequence[Sequence[ir.Node]],
    pack: noises.Quantize,
    evidence: Evidence,
    *,
    sizes: Sequence[int],
) -> list[float] | None:
    """As :func:`damages`, with three opened models for all groups; None where the readers of the groups cannot be taken apart.

    ``found``: the nodes that read each group's weights. ``pack`` packs the weights of all groups in a model of these nodes side by side.
    """
    _check(evidence)
    readers = [list(dict.fromkeys(quantizable.layer_name(node) for node in nodes)) for nodes in found]
    names = [name for group in readers for name in group]
    pieces = {piece.layer: piece for piece in apart.pieces(model, set(names))}
    # a cell whose weights are in two groups would be damaged by both at once
    if len(set(names)) < len(names) or not all(name in pieces for name in names):
        return None
    parts = [[pieces[name] for name in group] for group in readers]
    measured = noises.measured(model, parts, pack, evidence, shares=sizes, most=_SAMPLES)
    return [damage.at_outputs for damage in measured]


def damages(
    model: Model,
    found: Sequence[tuple[str, ...]],
    packed: Callable[[tuple[str, ...]], Model],
    evidence: Evidence,
) -> list[float]:
    """Noise-to-signal power at the worst float output when only one group is packed, for each group.

    ``packed`` makes that model. Raises :class:`~edgeopt.errors.PassFailed` without samples.
    """
    _check(evidence)
    names = [str(value.name) for value in model.graph.outputs]
    original = list(islice(evidence.observe(model, names), _SAMPLES))
    return [_damage(original, list(islice(evidence.observe(packed(group), names), _SAMPLES))) for group in found]


def allocate(
    damage: Sequence[float], sizes: Sequence[int], widths: Sequence[int], *, measured_bits: int, mean_bits: float
) -> list[int]:
    """Bits out of ``widths`` (ascending) for each group: the least sum of damages with at most ``mean_bits`` a weight on average."""
    chosen = [0] * len(sizes)
    left = mean_bits * sum(sizes) - widths[0] * sum(sizes)
    while True:
        offers = [
            (_relief(damage[index], widths[step : step + 2], measured_bits) / max(size, 1), -index)
            for index, (size, step) in enumerate(zip(sizes, chosen, strict=True))
            if step + 1 < len(widths) and size * (widths[step + 1] - widths[step]) <= left
        ]
        if not offers:
            return [widths[step] for step in chosen]
        index = -max(offers)[1]
        left -= sizes[index] * (widths[chosen[index] + 1] - widths[chosen[index]])
        chosen[index] += 1


def _check(evidence: Evidence) -> None:
    if not evidence.sample_count:
        raise PassFailed("there are no calibration samples", hint="Drop calibration samples beside the model.")


def _relief(damage: float, step: Sequence[int], measured_bits: int) -> float:
    """Damage that a step from one width to the next takes away, for each bit."""
    before, after = (damage * 4.0 ** (measured_bits - bits) for bits in step)
    return (before - after) / (step[1] - step[0])


def _damage(original: list[dict[str, Array]], made: list[dict[str, Array]]) -> float:
    worst = 0.0
    for name, first in original[0].items():
        if first.dtype.kind != "f":
            continue
        error = sum(_power(ours[name], theirs[name]) for ours, theirs in zip(made, original, strict=True))
        signal = sum(_power(theirs[name], np.zeros_like(theirs[name])) for theirs in original)
        worst = max(worst, error / signal if signal else 0.0)
    return worst


def _power(ours: NDArray[np.generic], theirs: NDArray[np.generic]) -> float:
    return float(np.square(ours.astype(np.float64) - theirs.astype(np.float64)).sum())
