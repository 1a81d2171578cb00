"""Error compensation: what rounding one weight does to the output, the weights not yet rounded make good.

Stands under ``passes.quantize_weights``. In come a weight's rows, the second moments of its inputs (see ``gram``) and the grid of levels, out go codes.
This is GPTQ (E. Frantar, S. Ashkboos, T. Hoefler and D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, arXiv:2210.17323): column by column, each column's rounding error is spread over the later columns along the
inverse of ``X^T X``, which minimises the output's squared error for the columns rounded so far. The levels may be any, a palette's as well. Columns
with the largest inputs go first, while there is most left to compensate with.
"""

from __future__ import annotations

import numpy as np

from edgeopt.calibrate.codebook import Codes, Grid, Rows, nearest
from edgeopt.calibrate.gram import Moments

_LAZY = 128
"""Columns whose effect on the rest is applied at once."""


def compensated(rows: Rows, moments: Moments, grid: Grid) -> Codes:
    """Codes of ``rows`` on ``grid`` under which the layer's output changes least; (rows, columns)."""
    order, factor = moments.factored()
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


def noise(rows: Rows, decoded: Rows, moments: Moments | None) -> float:
    """Power of the output's error over the output's own; of the weight's where its inputs are unknown."""
    if moments is not None:
        return output_noise(rows, decoded, moments)
    power = float(np.square(rows).sum(dtype=np.float64))
    return float(np.square(decoded - rows).sum(dtype=np.float64)) / power if power else 0.0


def output_noise(rows: Rows, decoded: Rows, moments: Moments) -> float:
    """Power of the output's error over the output's own power, on the data that ``moments`` were made of."""
    signal = _power(rows, moments)
    return _power(decoded - rows, moments) / signal if signal > 0 else 0.0


def _power(rows: Rows, moments: Moments) -> float:
    return max(0.0, float(np.einsum("ij,ij->", rows @ moments.matrix, rows, dtype=np.float64)))
