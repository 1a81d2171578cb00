"""Weights as few levels times a scale: which levels, which scale for each block, and the nearest level for each weight.

Stands under ``passes.quantize_weights``. In comes a weight as rows (one for each output channel), out comes a :class:`Grid` (a codebook that the
whole tensor shares and one float16 scale for each block of a row) and the codes: ``weight = scale * codebook[code]``. Evenly spaced levels
make it integer quantization, three make it ternary, and a palette's levels are the k-means centres of all the scaled weights.

The scales minimise the squared error: a search over clipping ratios (evenly spaced levels) or alternating least squares
(palettes), which are k-means' own two steps (S. P. Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28(2), 1982)
with the scales as a third.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
"""A weight as (output channels, everything else)."""
Codes = NDArray[np.uint8]

_RATIOS = np.linspace(0.5, 1.0, 21, dtype=np.float32)
"""Clipping ratios that are tried: below a half, clipping cost more than rounding on every weight seen."""
_BINS = 4096
_ROUNDS = 30
_ALTERNATIONS = 4
_SPREAD = 4.0
"""A palette covers this many standard deviations before its levels have moved; the outermost level takes what lies beyond."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What codes of one tensor mean. ``scale``: (rows, blocks); ``codebook``: (levels,), ascending; ``block``: columns that share a scale."""

    codebook: NDArray[np.float32]
    scale: NDArray[np.float16]
    block: int

    @property
    def levels(self) -> int:
        return int(self.codebook.size)

    def scales(self) -> NDArray[np.float32]:
        """One scale for each column: (rows, columns)."""
        return np.repeat(self.scale.astype(np.float32), self.block, axis=1)

    def encode(self, rows: Rows) -> Codes:
        """The code of the nearest level for each weight."""
        return nearest(rows, self.scales(), self.codebook)

    def decode(self, codes: Codes) -> Rows:
        """What the graph computes of the codes."""
        return self.codebook[codes] * self.scales()


def nearest(values: NDArray[np.float32], scale: NDArray[np.float32], codebook: NDArray[np.float32]) -> Codes:
    """The index of the level nearest to ``values / scale``; a scale of zero takes the level nearest to zero."""
    safe = np.where(scale == 0, np.float32(1), scale)
    middles = (codebook[1:] + codebook[:-1]) / 2
    return np.searchsorted(middles, np.where(scale == 0, np.float32(0), values / safe)).astype(np.uint8)


def integer_levels(bits: int) -> NDArray[np.float32]:
    """``-2^(bits-1) .. 2^(bits-1) - 1``: a negative scale turns the longer side to where the larger weights are."""
    half = 1 << (bits - 1)
    return np.arange(-half, half, dtype=np.float32)


def ternary_levels() -> NDArray[np.float32]:
    return np.array([-1, 0, 1], np.float32)


def block_of(columns: int, wanted: int) -> int:
    """Columns that share a scale: the largest divisor of ``columns`` up to ``wanted``, all of them where ``wanted`` is 0 or little fits."""
    if not 0 < wanted < columns:
        return columns
    divisor = next(size for size in range(wanted, 0, -1) if columns % size == 0)
    return divisor if 2 * divisor >= wanted else columns


def fit_levels(rows: Rows, codebook: NDArray[np.float32], *, block: int) -> Grid:
    """The scales under which fixed, evenly spaced levels miss ``rows`` least."""
    blocks = rows.reshape(-1, block)
    # Both signs: the side of the larger weight gets the longer half of the levels.
    peak = np.where(blocks.max(axis=1) > -blocks.min(axis=1), blocks.max(axis=1), blocks.min(axis=1))
    full = peak / codebook[0]
    best, least = full.astype(np.float32), np.full(full.shape, np.inf, np.float32)
    for ratio in _RATIOS:
        scale = full * ratio
        codes = nearest(blocks, scale[:, None], codebook)
        scale = _least_squares(blocks, codebook[codes], scale)
        error = _error(blocks, codebook, scale)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return _stored(codebook, best.reshape(rows.shape[0], -1), block)


def fit_palette(rows: Rows, levels: int, *, block: int, weights: NDArray[np.float32] | None = None) -> Grid:
    """k-means levels of the scaled weights; ``weights`` say how much each column's error matters."""
    blocks = rows.reshape(-1, block)
    importance = None if weights is None else np.broadcast_to(weights, rows.shape).reshape(-1, block)
    scale = np.sqrt(np.square(blocks).mean(axis=1, dtype=np.float64)).astype(np.float32)
    codebook = np.linspace(-_SPREAD, _SPREAD, levels, dtype=np.float32)
    for _ in range(_ALTERNATIONS):
        codebook = _lloyd(blocks, scale, codebook, importance)
        codes = nearest(blocks, scale[:, None], codebook)
        scale = _least_squares(blocks, codebook[codes], scale, importance)
    return _stored(codebook, scale.reshape(rows.shape[0], -1), block)


def _lloyd(
    blocks: Rows, scale: NDArray[np.float32], codebook: NDArray[np.float32], importance: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Lloyd's iteration on a histogram of the scaled weights: its cost does not depend on how many there are."""
    scaled = np.divide(blocks, scale[:, None], out=np.zeros_like(blocks), where=scale[:, None] != 0)
    limit = float(np.abs(scaled).max(initial=0.0)) or 1.0
    # What a weight's error costs grows with the square of its scale.
    cost = np.broadcast_to(np.square(scale)[:, None], blocks.shape)
    cost = cost if importance is None else cost * importance
    mass, edges = np.histogram(scaled, bins=_BINS, range=(-limit, limit), weights=cost)
    moment, _ = np.histogram(scaled, bins=edges, weights=cost * scaled)
    centres = np.where(mass > 0, moment / np.where(mass > 0, mass, 1), (edges[1:] + edges[:-1]) / 2)
    for _ in range(_ROUNDS):
        owner = np.searchsorted((codebook[1:] + codebook[:-1]) / 2, centres)
        total = np.bincount(owner, mass, codebook.size)
        summed = np.bincount(owner, moment, codebook.size)
        moved = np.where(total > 0, summed / np.where(total > 0, total, 1), codebook)
        codebook = np.sort(moved).astype(np.float32)
    return codebook


def _least_squares(
    blocks: Rows, levels: NDArray[np.float32], scale: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """The best scale for each block once its codes are fixed; the old one where all its levels are zero."""
    weighted = levels if importance is None else levels * importance
    power = np.einsum("ij,ij->i", weighted, levels, dtype=np.float64)
    product = np.einsum("ij,ij->i", weighted, blocks, dtype=np.float64)
    found = np.where(power > 0, product / np.where(power > 0, power, 1), scale)
    return found.astype(np.float32)


def _error(blocks: Rows, codebook: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    codes = nearest(blocks, scale[:, None], codebook)
    miss: NDArray[np.float32] = np.square(codebook[codes] * scale[:, None] - blocks).sum(axis=1)
    return miss


def _stored(codebook: NDArray[np.float32], scale: NDArray[np.float32], block: int) -> Grid:
    """The grid as it is written: scales in float16, brought near 1 by a power of two that the codebook takes."""
    peak = float(np.abs(scale).max(initial=0.0))
    factor = np.float32(2.0 ** np.floor(np.log2(peak))) if peak > 0 else np.float32(1)
    return Grid((codebook * factor).astype(np.float32), (scale / factor).astype(np.float16), block)


def with_codebook(grid: Grid, codebook: NDArray[np.float32]) -> Grid:
    """The same scales under other levels."""
    return replace(grid, codebook=codebook)
