"""Learned rounding: each weight goes up or down so that the layer's output changes least, not the weight.

Stands under ``passes.round_weights``. In come a weight's rows, their scales and the second moments of the layer's inputs (``gram``), out go codes.
Rounding to nearest ignores that errors of weights that are multiplied by correlated inputs add up or cancel. The choice between the two neighbours that
minimises ``(q - w) X^T X (q - w)`` is a quadratic binary problem (M. Nagel, R. A. Amjad, M. van Baalen, C. Louizos and T. Blankevoort, "Up or Down? Adaptive
Rounding for Post-Training Quantization", ICML 2020, arXiv:2004.10568). AdaRound relaxes it and descends the gradient; here it is solved by
coordinate descent (K. Behdin et al., "QuantEase: Optimization-based Quantization for Language Models", arXiv:2309.01885), which needs
no training framework: one weight of every row at a time takes its best neighbour given all others, so no step makes the layer worse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate import qparams, saturation
from edgeopt.calibrate.gram import Gram

Floats = NDArray[np.float32]

_DAMPING = 0.01
"""Share of the mean diagonal added to the diagonal: directions that the samples never took must not be free."""
_BLOCK = 64
"""Columns whose effect on the rest is applied at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The codes that a row's weights may take.

    Whoever computes a scale from the rounded weights must find this one again, so the weights that decide it keep their nearest code.
    """

    scale: Floats
    """(rows,)"""
    largest: int
    taps: int = 1
    """Of the kernel whose neighbours may not leave 16 bits together, where ``paired``."""
    paired: bool = False

    def nearest(self, rows: Floats) -> Floats:
        """The nearest code of each weight; (rows, columns)."""
        codes: Floats = np.clip(np.rint(rows / self.scale[:, None]), -self.largest, self.largest)
        return codes

    def anchors(self, rows: Floats) -> NDArray[np.bool_]:
        """The weights that decide the scale of their row; the shape of ``rows``."""
        if self.paired:
            return saturation.anchors(rows, self.taps)
        found = np.zeros(rows.shape, np.bool_)
        found[np.arange(len(rows)), np.abs(rows).argmax(axis=1)] = True
        return found

    def settled(self, codes: Floats, rows: Floats) -> Floats:
        """``codes`` with those back at their nearest that decide the scale or that left 16 bits together with a neighbour."""
        nearest = self.nearest(rows)
        codes = np.where(self.anchors(rows), nearest, codes)
        while self.paired and (crowded := saturation.crowded(codes, self.taps) & (codes != nearest)).any():
            codes = np.where(crowded, nearest, codes)
        return codes


def grid(weight: Floats, axis: int, *, reduced_range: bool) -> Grid:
    """The grid that ``weight_qparams`` gives a weight with one scale for each index of ``axis``."""
    found = qparams.weight_qparams(weight, axis=axis, reduced_range=reduced_range)
    return Grid(
        scale=found.scale, largest=found.qmax, taps=qparams.rows_and_taps(weight, axis)[1], paired=reduced_range
    )


def learned_codes(rows: Floats, grid: Grid, gram: Gram, *, sweeps: int) -> Floats:
    """Codes on ``grid``, each one of the two next to ``rows / scale``; (rows, columns)."""
    wanted = rows / grid.scale[:, None]
    codes = grid.nearest(rows)
    low, high = np.maximum(np.floor(wanted), -grid.largest), np.minimum(np.ceil(wanted), grid.largest)
    kept = grid.anchors(rows)
    low[kept] = high[kept] = codes[kept]
    moments = damped(gram)
    for _ in range(sweeps):
        if not _sweep(codes, codes - wanted, moments, low, high):
            break
    return grid.settled(codes, rows)


def damped(gram: Gram) -> Gram:
    """``gram`` with a little of its mean diagonal on the diagonal; what the descent minimises."""
    moments = gram.astype(np.float32)
    mean = float(np.trace(moments)) / len(moments)
    moments[np.diag_indices_from(moments)] += _DAMPING * mean if mean > 0 else 1.0
    return moments


def _sweep(codes: Floats, error: Floats, moments: Gram, low: Floats, high: Floats) -> int:
    """Visit every column once, changing ``codes`` and ``error`` in place; how many codes changed."""
    slope, diagonal, changed = error @ moments, np.diag(moments), 0
    for start in range(0, codes.shape[1], _BLOCK):
        end = min(start + _BLOCK, codes.shape[1])
        moved = np.zeros((len(codes), end - start), np.float32)
        local = slope[:, start:end].copy()
        for column in range(start, end):
            best = np.rint(codes[:, column] - local[:, column - start] / diagonal[column])
            step = np.clip(best, low[:, column], high[:, column]) - codes[:, column]
            if step.any():
                moved[:, column - start] = step
                codes[:, column] += step
                local[:, column - start :] += np.outer(step, moments[column, column:end])
        slope += moved @ moments[start:end]
        error[:, start:end] += moved
        changed += int(np.count_nonzero(moved))
    return changed
