"""Small codes in bytes: several to a byte, and the table that takes a byte apart again.

Stands under ``passes.quantize_weights``. In come codes ``0 .. levels - 1``, out go *planes*: arrays of bytes whose digits, looked up
and added, are the codes. A lookup is one Gather, which every opset has and ONNX Runtime folds at load; shifting and masking would
need opset 18 and took twice as long to load on MiniLM.

- a power of two is split into planes of 8, 4, 2 and 1 bit: 6 bits are a plane of halves and one of quarters, nothing is wasted;
- three levels go five to a byte, since 3^5 = 243: 1.6 bits a weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BYTE = 256
_WIDTHS = (8, 4, 2, 1)
TERNARY = 3


@dataclass(frozen=True, slots=True)
class Plane:
    """``digits`` digits of base ``radix`` in each byte, the first one the least; a digit counts ``weight`` in the code."""

    radix: int
    digits: int
    weight: int

    def table(self) -> NDArray[np.uint8]:
        """What each byte holds: [256, digits], ready multiplied with the plane's weight; a code is a byte at most."""
        bytes_ = np.arange(_BYTE, dtype=np.int32)[:, None]
        powers = self.radix ** np.arange(self.digits, dtype=np.int32)
        table: NDArray[np.uint8] = (bytes_ // powers % self.radix * self.weight).astype(np.uint8)
        return table


def planes(levels: int) -> tuple[Plane, ...]:
    """How codes below ``levels`` are stored; ValueError where that is neither 3 nor a power of two up to 256."""
    if levels == TERNARY:
        return (Plane(radix=TERNARY, digits=5, weight=1),)
    bits = levels.bit_length() - 1
    if levels != 1 << bits or not 1 <= bits <= 8:
        raise ValueError(f"{levels} levels are neither 3 nor a power of two between 2 and 256")
    found, low = [], 0
    for width in _WIDTHS:
        if bits & width:
            found.append(Plane(radix=1 << width, digits=8 // width, weight=1 << low))
            low += width
    return tuple(found)


def pack(codes: NDArray[np.uint8], plane: Plane) -> NDArray[np.uint8]:
    """The plane's digits of flat ``codes``, padded with zeros to a whole byte."""
    digits = codes.reshape(-1).astype(np.int32) // plane.weight % plane.radix
    padded = np.zeros(-(-digits.size // plane.digits) * plane.digits, np.int32)
    padded[: digits.size] = digits
    powers = plane.radix ** np.arange(plane.digits, dtype=np.int32)
    packed: NDArray[np.uint8] = (padded.reshape(-1, plane.digits) * powers).sum(axis=1).astype(np.uint8)
    return packed


def unpack(packed: tuple[NDArray[np.uint8], ...], levels: int, count: int) -> NDArray[np.int32]:
    """The first ``count`` codes again: what the nodes in the graph compute."""
    digits = [plane.table()[data].reshape(-1)[:count] for plane, data in zip(planes(levels), packed, strict=True)]
    total: NDArray[np.int32] = np.sum(digits, axis=0, dtype=np.int32)
    return total


def packed_bytes(levels: int, count: int) -> int:
    """Bytes that ``count`` codes take."""
    return sum(-(-count // plane.digits) for plane in planes(levels))
