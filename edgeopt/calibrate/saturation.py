"""How wide weights may be where the kernel adds two products in 16 bits.

Stands under ``qparams``. x86 without VNNI multiplies unsigned codes of activations (up to 255) by signed codes of weights and adds the products of
two neighbouring inputs in a saturating int16 (the instruction vpmaddubsw; "Intel 64 and IA-32 Architectures Software Developer's Manual", volume 2). Two
weights of full width and one sign leave it: 255 * (127 + 127) is about twice what 16 bits hold. The usual remedy is to use 7 of the 8 bits everywhere
(``reduce_range`` in onnxruntime.quantization). But only neighbours of the *same sign* add up, so a channel's codes may grow until its worst
pair fills the 16 bits: never narrower than 7 bits, close to 8 where large weights stand beside small ones or ones of the other sign.

Neighbours are inputs in the order in which the kernel walks over them: of a matrix product its rows, of a convolution the input channels of one
tap after the other. That the weight may be walked over as it lies is allowed for as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

WIDEST_PAIR = 126
"""Largest sum of two codes of one sign. 255 * 128 would still fit 16 bits; an even number below it stays within reach of rounding to nearest:
halves that add up to an even number or less round to codes that do."""


def pair_peaks(rows: Floats, taps: int) -> NDArray[np.float64]:
    """The largest sum of neighbours of one sign in each row, as magnitudes; (rows,).

    ``rows`` is (outputs, inputs * taps), a convolution's weight with its taps last; 1 tap for a matrix product.
    """
    peaks = np.zeros(len(rows))
    for _, sums in _pairs(rows, taps):
        peaks = np.maximum(peaks, sums.max(axis=1, initial=0.0))
    return peaks


def anchors(rows: Floats, taps: int) -> NDArray[np.bool_]:
    """The pair of each row that decides its scale: who keeps these codes finds the same scale again; the shape of ``rows``."""
    found, peaks, every = np.zeros(rows.shape, np.bool_), pair_peaks(rows, taps), np.arange(len(rows))
    is_open = np.ones(len(rows), np.bool_)
    for places, sums in _pairs(rows, taps):
        best = sums.argmax(axis=1)
        here = is_open & (sums[every, best] >= peaks)
        for side in places:
            at = side[best]
            inside = here & (at < rows.shape[1])
            found[every[inside], at[inside]] = True
        is_open &= ~here
    return found


def crowded(codes: Floats, taps: int) -> NDArray[np.bool_]:
    """Which codes belong to a pair of one sign beyond :data:`WIDEST_PAIR`; the shape of ``codes``, as for :func:`pair_peaks`."""
    found = np.zeros((codes.shape[0], codes.shape[1] + 1), np.bool_)
    for places, sums in _pairs(codes, taps):
        for side in places:
            found[:, side] |= sums > WIDEST_PAIR
    return found[:, :-1]


def _pairs(rows: Floats, taps: int) -> Iterator[tuple[tuple[NDArray[np.intp], NDArray[np.intp]], NDArray[np.float64]]]:
    """For each order: the columns of both halves, each (pairs,), and what they add up to in either sign, (rows, pairs).

    An odd column at the end stands beside one past the end, which is zero.
    """
    count = rows.shape[1]
    padded = np.pad(rows.astype(np.float64), ((0, 0), (0, 1)))
    for order in _orders(np.arange(count), taps):
        walked = np.append(order, count) if count % 2 else order
        left, right = walked[0::2], walked[1::2]
        first, second = padded[:, left], padded[:, right]
        up = np.maximum(first, 0.0) + np.maximum(second, 0.0)
        down = np.maximum(-first, 0.0) + np.maximum(-second, 0.0)
        yield (left, right), np.maximum(up, down)


def _orders(places: NDArray[np.intp], taps: int) -> Iterator[NDArray[np.intp]]:
    """The orders in which kernels may walk: channels of one tap after the other (channels last), and as the weight lies."""
    yield places.reshape(-1, taps).T.ravel()
    if taps > 1:
        yield places
