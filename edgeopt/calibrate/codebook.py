"""Weights as few levels times a scale: which levels, which scale for each block, and the nearest level for each weight.

Stands under ``passes.quantize_weights``. In comes a weight as rows (one for each output channel), out comes a :class:`Grid` (a codebook that the
whole tensor shares and one float16 scale for each block of a row) and the codes: ``weight = scale * codebook[code]``. Evenly spaced levels
make it integer quantization, three make it ternary, and a palette's levels are the k-means centres of all the scaled weights.

The scales minimise the squared error: a search over clipping ratios (evenly spaced levels) or alternating least squares
(palettes), which are k-means' own two steps (S. P. Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28(2), 1982)
with the scales as a third.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate import half_quadratic

Rows = NDArray[np.float32]
"""A weight as (output channels, everything else)."""
Codes = NDArray[np.uint8]

_RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
"""Clipping ratios that are tried: below a half, clipping cost more than rounding on every weight seen."""
_BINS, _COARSE = 4096, 128
_ROUNDS = 30
_ALTERNATIONS = 4
_CHUNK = 1 << 18
"""Weights handled at once: few enough for the cache, and memory does not grow with the weight."""
_SEEN = 1 << 20
"""Weights that a palette's levels are fitted to; a larger tensor is thinned, since a few hundred levels do not need more."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What codes of one tensor mean. ``scale``: (rows, blocks); ``codebook``: (levels,), ascending; ``block``: columns that share a scale."""

    codebook: NDArray[np.float32]
    scale: NDArray[np.float16]
    block: int
    zero: NDArray[np.float16] | None = None
    """What is taken off the codebook's entry before the scale, in the shape of ``scale``; None where that is nothing."""

    @property
    def levels(self) -> int:
        return int(self.codebook.size)

    @property
    def step(self) -> np.float32:
        """The distance of evenly spaced levels."""
        distance: np.float32 = self.codebook[1] - self.codebook[0]
        return distance

    def scales(self) -> NDArray[np.float32]:
        """One scale for each column: (rows, columns)."""
        return np.repeat(self.scale.astype(np.float32), self.block, axis=1)

    def zeros(self) -> NDArray[np.float32] | np.float32:
        """The zero for each column: (rows, columns), or nothing at all."""
        if self.zero is None:
            return np.float32(0)
        return np.repeat(self.zero.astype(np.float32), self.block, axis=1)

    def encode(self, rows: Rows) -> Codes:
        """The code of the nearest level for each weight."""
        return nearest(rows + self.zeros() * self.scales(), self.scales(), self.codebook)

    def decode(self, codes: Codes) -> Rows:
        """What the graph computes of the codes."""
        return (self.codebook[codes] - self.zeros()) * self.scales()


def nearest(values: NDArray[np.float32], scale: NDArray[np.float32], codebook: NDArray[np.float32]) -> Codes:
    """The index of the level nearest to ``values / scale``; a scale of zero takes the level nearest to zero."""
    scaled = np.divide(values, scale, out=np.zeros(values.shape, np.float32), where=scale != 0)
    steps = np.diff(codebook)
    if (steps == steps[0]).all():
        # Evenly spaced: arithmetic instead of a search, several times faster.
        codes = np.rint((scaled - codebook[0]) / steps[0])
        even: Codes = np.clip(codes, 0, codebook.size - 1).astype(np.uint8)
        return even
    found: Codes = np.searchsorted((codebook[1:] + codebook[:-1]) / 2, scaled).astype(np.uint8)
    return found


def integer_levels(bits: int) -> NDArray[np.float32]:
    """``-2^(bits-1) .. 2^(bits-1) - 1``: a negative scale turns the longer side to where the larger weights are."""
    half = 1 << (bits - 1)
    return np.arange(-half, half, dtype=np.float32)


def symmetric_levels(bits: int) -> NDArray[np.float32]:
    """``-(2^(bits-1) - 1) .. 2^(bits-1) - 1``: both sides alike, so that no scale has to be negative."""
    return integer_levels(bits)[1:]


def ternary_levels() -> NDArray[np.float32]:
    return np.array([-1, 0, 1], np.float32)


def block_of(columns: int, wanted: int) -> int:
    """Columns that share a scale: the largest divisor of ``columns`` up to ``wanted``, all of them where ``wanted`` is 0 or little fits."""
    if not 0 < wanted < columns:
        return columns
    divisor = next(size for size in range(wanted, 0, -1) if columns % size == 0)
    return divisor if 2 * divisor >= wanted else columns


def fit_levels(rows: Rows, levels: NDArray[np.float32], *, block: int) -> Grid:
    """The scales under which fixed levels miss ``rows`` least."""
    blocks = rows.reshape(-1, block)
    scale = np.concatenate([_clipped(chunk, levels) for chunk in _chunks(blocks)])
    return _stored(levels, scale.reshape(rows.shape[0], -1), block)


def fit_symmetric(rows: Rows, bits: int, *, block: int) -> Grid:
    """As :func:`fit_levels` on levels around zero, with every scale above zero: TensorRT takes no other.

    The scale of a block of zeros means nothing; it becomes 1.
    """
    grid = fit_levels(rows, symmetric_levels(bits), block=block)
    scale = np.where(grid.scale == 0, np.float16(1), np.abs(grid.scale))
    return Grid(grid.codebook, scale, block)


def fit_palette(rows: Rows, levels: int, *, block: int, weights: NDArray[np.float32] | None = None) -> Grid:
    """k-means levels of the scaled weights; ``weights`` say how much the error of each column matters."""
    blocks = rows.reshape(-1, block)
    importance = None if weights is None else np.broadcast_to(weights, rows.shape).reshape(-1, block)
    step = max(1, blocks.size // _SEEN)
    seen, seen_importance = blocks[::step], None if importance is None else importance[::step]
    scale = _deviation(seen)
    for _ in range(_ALTERNATIONS):
        codebook = _lloyd(seen, scale, levels, seen_importance)
        scale = _refined(seen, scale, codebook, seen_importance)
    scale = _deviation(blocks)
    for _ in range(_ALTERNATIONS // 2):
        scale = _refined(blocks, scale, codebook, importance)
    return _stored(codebook, scale.reshape(rows.shape[0], -1), block)


def fit_affine(rows: Rows, bits: int, *, block: int) -> Grid:
    """Evenly spaced levels with a zero of their own for each block, by half-quadratic splitting.

    See ``calibrate.half_quadratic``. Needs no data.
    """
    blocks = rows.reshape(-1, block)
    fitted = [half_quadratic.fit(chunk, bits) for chunk in _chunks(blocks)]
    shape = (rows.shape[0], -1)
    scale, zero = (np.concatenate(parts).reshape(shape) for parts in zip(*fitted, strict=True))
    grid = _stored(np.arange(1 << bits, dtype=np.float32), scale, block)
    # The codebook took a power of two; the zero is counted in the codebook's units.
    return Grid(grid.codebook, grid.scale, block, (zero * grid.codebook[1]).astype(np.float16))


def _clipped(blocks: Rows, levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """For each block the scale, out of those that clip a little, with the least squared error."""
    # Both signs: the side of the larger weight gets the longer half of the levels.
    high, low = blocks.max(axis=1), blocks.min(axis=1)
    full = np.where(high > -low, high, low) / levels[0]
    best: NDArray[np.float32] = full.astype(np.float32)
    most = np.full(full.shape, -1.0)
    # The first ratio is that under which the shorter side covers the peak as well.
    for ratio in (-float(levels[0] / levels[-1]), *_RATIOS):
        taken = levels[nearest(blocks, (full * np.float32(ratio))[:, None], levels)]
        power = np.einsum("ij,ij->i", taken, taken, dtype=np.float64)
        product = np.einsum("ij,ij->i", taken, blocks, dtype=np.float64)
        # With the codes fixed the best scale is product / power, and it explains product^2 / power of the block.
        explained = np.divide(product**2, power, out=np.zeros_like(power), where=power > 0)
        scale = np.divide(product, power, out=full.astype(np.float64), where=power > 0)
        best[explained > most] = scale[explained > most]
        most = np.maximum(explained, most)
    return best


def _deviation(blocks: Rows) -> NDArray[np.float32]:
    deviation: NDArray[np.float32] = np.sqrt(np.square(blocks).mean(axis=1, dtype=np.float64)).astype(np.float32)
    return deviation


def _refined(
    blocks: Rows, scale: NDArray[np.float32], codebook: NDArray[np.float32], importance: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """The best scale for each block under the codes that the old one gives."""
    step = max(1, _CHUNK // blocks.shape[1])
    parts = []
    for start in range(0, len(blocks), step):
        part = slice(start, start + step)
        levels = codebook[nearest(blocks[part], scale[part, None], codebook)]
        parts.append(
            _least_squares(blocks[part], levels, scale[part], None if importance is None else importance[part])
        )
    return np.concatenate(parts)


def _chunks(blocks: Rows) -> Iterator[Rows]:
    step = max(1, _CHUNK // blocks.shape[1])
    return (blocks[start : start + step] for start in range(0, len(blocks), step))


def _lloyd(
    blocks: Rows, scale: NDArray[np.float32], levels: int, importance: NDArray[np.float32] | None
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
    codebook = _companded(mass, edges, levels)
    for _ in range(_ROUNDS):
        owner = np.searchsorted((codebook[1:] + codebook[:-1]) / 2, centres)
        total = np.bincount(owner, mass, codebook.size)
        summed = np.bincount(owner, moment, codebook.size)
        moved = np.where(total > 0, summed / np.where(total > 0, total, 1), codebook)
        codebook = np.sort(moved).astype(np.float32)
    return codebook


def _companded(mass: NDArray[np.float64], edges: NDArray[np.float64], levels: int) -> NDArray[np.float32]:
    """Levels as dense as the cube root of the weights' density, which is optimal for many of them: where Lloyd starts.

    P. F. Panter and W. Dite, "Quantization distortion in pulse-count modulation with nonuniform spacing of levels", Proceedings of the IRE
    39(1), 1951. From evenly spaced levels thirty rounds end in a worse place than even levels with the right scale.
    """
    coarse = np.cbrt(mass.reshape(_COARSE, -1).sum(axis=1))
    below = np.concatenate([[0.0], np.cumsum(coarse)])
    wanted = (np.arange(levels) + 0.5) / levels * below[-1]
    places: NDArray[np.float32] = np.interp(wanted, below, edges[:: _BINS // _COARSE]).astype(np.float32)
    return places


def _least_squares(
    blocks: Rows, levels: NDArray[np.float32], scale: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """The best scale for each block once its codes are fixed; the old one where all its levels are zero."""
    weighted = levels if importance is None else levels * importance
    power = np.einsum("ij,ij->i", weighted, levels, dtype=np.float64)
    product = np.einsum("ij,ij->i", weighted, blocks, dtype=np.float64)
    found = np.where(power > 0, product / np.where(power > 0, power, 1), scale)
    return found.astype(np.float32)


def _stored(codebook: NDArray[np.float32], scale: NDArray[np.float32], block: int) -> Grid:
    """The grid as it is written: scales in float16, brought near 1 by a power of two that the codebook takes."""
    peak = float(np.abs(scale).max(initial=0.0))
    factor = np.float32(2.0 ** np.floor(np.log2(peak))) if peak > 0 else np.float32(1)
    return Grid((codebook * factor).astype(np.float32), (scale / factor).astype(np.float16), block)
