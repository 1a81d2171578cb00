"""Error compensation: what rounding one weight does to the output, the weights not yet rounded make good.

Stands under ``passes.quantize_weights``. In come a weight's rows, the second moments of its inputs (``gram``) and the grid of levels, out go codes.
This is GPTQ (E. Frantar, S. Ashkboos, T. Hoefler and D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, arXiv:2210.17323): column by column, each column's rounding error is spread over the later columns along the
inverse of ``X^T X``, which minimises the output's squared error for the columns rounded so far. The levels may be any, a palette's as well. Columns
with the largest inputs go first, while there is most left to compensate with.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate.codebook import Codes, Grid, Rows, nearest
from edgeopt.calibrate.gram import Gram

_DAMPING = 0.01
"""Share of the mean diagonal added to the diagonal, as in the paper: few samples leave the matrix singular."""
_LAZY = 128
"""Columns whose effect on the rest is applied at once."""


def compensated(rows: Rows, gram: Gram, grid: Grid) -> Codes:
    """Codes of ``rows`` on ``grid`` under which the layer's output changes least; (rows, columns)."""
    order = np.argsort(-np.diag(gram), kind="stable")
    factor = _factor(gram[np.ix_(order, order)])
    scales = grid.scales()[:, order]
    offsets = np.broadcast_to(grid.zeros() * grid.scales(), rows.shape)[:, order]
    work = rows[:, order].astype(np.float32)
    codes = np.empty(rows.shape, np.uint8)
    for start in range(0, rows.shape[1], _LAZY):
        end = min(start + _LAZY, rows.shape[1])
        errors = np.empty((rows.shape[0], end - start), np.float32)
        for column in range(start, end):
            scale, offset = scales[:, column], offsets[:, column]
            codes[:, column] = nearest(work[:, column] + offset, scale, grid.codebook)
            rounded = grid.codebook[codes[:, column]] * scale - offset
            error = (work[:, column] - rounded) / factor[column, column]
            work[:, column + 1 : end] -= np.outer(error, factor[column, column + 1 : end])
            errors[:, column - start] = error
        work[:, end:] -= errors @ factor[start:end, end:]
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    return codes[:, back]


def output_noise(rows: Rows, decoded: Rows, gram: Gram) -> float:
    """Power of the output's error over the output's own power, on the data that ``gram`` was made of."""
    signal = _power(rows, gram)
    return _power(decoded - rows, gram) / signal if signal > 0 else 0.0


def _power(rows: Rows, gram: Gram) -> float:
    return max(0.0, float(np.einsum("ij,ij->", rows @ gram, rows, dtype=np.float64)))


def _factor(gram: Gram) -> NDArray[np.float32]:
    """Upper Cholesky factor of the damped inverse."""
    matrix = gram.astype(np.float64)
    mean = float(np.trace(matrix)) / len(matrix)
    matrix[np.diag_indices_from(matrix)] += _DAMPING * mean if mean > 0 else 1.0
    inverse = np.linalg.inv(matrix)
    # Rounding leaves the inverse a trace unsymmetric, which the factorisation would not notice.
    upper: NDArray[np.float32] = np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)
    return upper
