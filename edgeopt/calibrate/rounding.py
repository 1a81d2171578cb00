"""Learned rounding: each weight goes up or down so that the layer's output changes least, not the weight.

Stands under ``passes.round_weights``. In come a weight's rows, their scales and the second moments of the layer's inputs (``gram``), out go codes.
Rounding to nearest ignores that errors of weights that are multiplied by correlated inputs add up or cancel. The choice between the two neighbours that
minimises ``(q - w) X^T X (q - w)`` is a quadratic binary problem (M. Nagel, R. A. Amjad, M. van Baalen, C. Louizos and T. Blankevoort, "Up or Down? Adaptive
Rounding for Post-Training Quantization", ICML 2020, arXiv:2004.10568). AdaRound relaxes it and descends the gradient; here it is solved by
coordinate descent (K. Behdin et al., "QuantEase: Optimization-based Quantization for Language Models", arXiv:2309.01885), which needs
no training framework: one weight of every row at a time takes its best neighbour given all others, so no step makes the layer worse.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate.gram import Gram

Floats = NDArray[np.float32]

_DAMPING = 0.01
"""Share of the mean diagonal added to the diagonal: directions that the samples never took must not be free."""
_BLOCK = 64
"""Columns whose effect on the rest is applied at once."""


def learned_codes(rows: Floats, scale: Floats, gram: Gram, *, largest: int, sweeps: int) -> Floats:
    """Codes in [-largest, largest], each one of the two next to ``rows / scale``; (rows, columns).

    ``scale`` (rows,) is what maps the largest magnitude of each row to ``largest``; that weight keeps its code, so that
    whoever computes a scale from the rounded weights finds this one again.
    """
    wanted = rows / scale[:, None]
    codes: Floats = np.clip(np.rint(wanted), -largest, largest)
    low, high = np.maximum(np.floor(wanted), -largest), np.minimum(np.ceil(wanted), largest)
    peaks = (np.arange(len(rows)), np.abs(rows).argmax(axis=1))
    low[peaks] = high[peaks] = codes[peaks]
    moments = damped(gram)
    for _ in range(sweeps):
        if not _sweep(codes, codes - wanted, moments, low, high):
            break
    return codes


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
