"""Half-quadratic splitting: a scale and a zero for each block of weights, without any data.

Stands under ``codebook.fit_affine``. In come blocks of weights that share a scale, out go scale and zero of each: ``weight = (code - zero) * scale``
with codes 0 .. 2^bits - 1. This is HQQ (H. Badri and A. Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", Mobius
Labs, 2023): the zero minimises the p-norm of the error, under which a few outliers may stay wrong, alternating between the errors worth keeping
and the zero that centres the rest. The published method leaves the scale at the block's span; here shorter spans are tried as
well and the least squared error decides, which is worth half a decibel at 4 bits and two at 2 bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_NORM, _BETA, _STIFFENING, _SPLITS = 0.7, 10.0, 1.01, 20
"""The solver's norm, first penalty, its growth and the rounds, as published."""
_SPANS = (1.0, 0.9, 0.8, 0.65, 0.5)
"""Shares of a block's span that its levels cover; the published method knows the first only."""
_FEW_BITS = 3
"""Up to here cutting more than a tenth off the span may pay."""
_TINY = 1e-8
"""Zero has no negative power."""


def fit(blocks: NDArray[np.float32], bits: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scale and zero of each of the ``blocks`` (blocks, columns): of those that the spans lead to, the ones with the least squared error."""
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    last = (1 << bits) - 1
    middle, width = (high + low) / 2, high - low
    best_scale, best_zero = np.ones_like(width), np.zeros_like(width)
    least = np.full(len(blocks), np.inf)
    for span in _SPANS if bits <= _FEW_BITS else _SPANS[:2]:
        scale = (width * np.float32(span / last)).astype(np.float32)
        scale[scale == 0] = 1.0
        start = (np.float32(last / 2) - middle / scale).astype(np.float32)
        # where outliers are everything the p-norm's zero has the larger square
        for zero in (start, _split(blocks, scale, start, last)):
            codes = np.clip(np.rint(blocks / scale + zero), 0, last)
            size = np.square(blocks - scale * (codes - zero)).mean(axis=1)
            better = (size < least)[:, None]
            best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
            least = np.minimum(size, least)
    return best_scale[:, 0], best_zero[:, 0]


def _split(
    blocks: NDArray[np.float32], scale: NDArray[np.float32], zero: NDArray[np.float32], last: int
) -> NDArray[np.float32]:
    """The zero of each block under a fixed scale: the best that the splitting comes across."""
    best, least, beta = zero, np.full(len(blocks), np.inf), _BETA
    for _ in range(_SPLITS):
        codes = np.clip(np.rint(blocks / scale + zero), 0, last)
        error = blocks - scale * (codes - zero)
        size = np.abs(error).mean(axis=1)
        if not (size < least).any():
            break
        best, least = np.where((size < least)[:, None], zero, best), np.minimum(size, least)
        kept = np.abs(error) + np.float32(_TINY)
        kept = np.sign(error) * np.maximum(kept - kept ** (_NORM - 1) / beta, 0)
        zero = (codes - (blocks - kept) / scale).mean(axis=1, keepdims=True, dtype=np.float32)
        beta *= _STIFFENING
    return best
