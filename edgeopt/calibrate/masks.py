"""Which weights of a sparse layer are left: patterns, and the bytes that say where.

Stands under ``passes.prune_weights``. In comes a mask in storage order, out go bytes and the table that takes a byte apart again, as in ``packing``. One bit
a weight is the least for a mask without order at half sparsity; a pattern needs less: 2:4 leaves one of six arrangements to a group of four, three
groups go to a byte (6^3 = 216), and a weight takes 0.67 bits. Indices, which ONNX's own sparse tensors use, would take 64 bits for each weight that is left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate import packing
from edgeopt.errors import PassFailed

Mask = NDArray[np.bool_]
"""True where a weight is left."""

UNSTRUCTURED = "unstructured"
_BYTE = 256
_LARGEST = 16
"""Of a group: beyond it a pattern says nothing that a share does not."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """``kept`` weights are left of each ``size`` that follow each other along the inputs."""

    kept: int
    size: int

    @property
    def sparsity(self) -> float:
        return 1 - self.kept / self.size

    @property
    def arrangements(self) -> int:
        return comb(self.size, self.kept)

    @property
    def groups_in_byte(self) -> int:
        """Groups whose arrangements one byte can tell together; 0 where there are too many."""
        groups = 0
        while self.arrangements ** (groups + 1) <= _BYTE:
            groups += 1
        return groups

    def layouts(self) -> NDArray[np.uint8]:
        """Every arrangement as zeros and ones: [arrangements, size]."""
        chosen = np.array(list(combinations(range(self.size), self.kept)))
        found = np.zeros((len(chosen), self.size), np.uint8)
        np.put_along_axis(found, chosen, 1, axis=1)
        return found


def read_pattern(text: str) -> Pattern | None:
    """``2:4`` as a pattern, None for ``unstructured``; :class:`~edgeopt.errors.PassFailed` for anything else."""
    if text == UNSTRUCTURED:
        return None
    match = re.fullmatch(r"(\d{1,2}):(\d{1,2})", text, re.ASCII)
    kept, size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < kept < size <= _LARGEST:
        raise PassFailed(
            f"pattern is {text!r:.40}, which does not say how many of how many weights are left",
            hint=f"Use unstructured, or n:m such as 2:4 with n below m and m up to {_LARGEST}.",
        )
    return Pattern(kept, size)


def pack(mask: Mask, pattern: Pattern | None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Bytes of the flat ``mask``, and its zeros and ones for each possible byte: [bytes], [256, digits].

    The digits of the last byte may reach beyond the mask.
    """
    if pattern is None or pattern.groups_in_byte * pattern.size <= packing.planes(2)[0].digits:
        (plane,) = packing.planes(2)
        return packing.pack(mask.astype(np.uint8), plane), plane.table()
    layouts, groups = pattern.layouts(), pattern.groups_in_byte
    powers = 1 << np.arange(pattern.size)
    number = np.zeros(1 << pattern.size, np.int32)
    number[layouts @ powers] = np.arange(len(layouts))
    digits = number[mask.reshape(-1, pattern.size) @ powers]
    padded = np.zeros(-(-digits.size // groups) * groups, np.int32)
    padded[: digits.size] = digits
    places = len(layouts) ** np.arange(groups)
    data = (padded.reshape(-1, groups) * places).sum(axis=1).astype(np.uint8)
    each = np.arange(_BYTE)[:, None] // places % len(layouts)
    return data, layouts[each].reshape(_BYTE, -1)


def unpack(data: NDArray[np.uint8], table: NDArray[np.uint8], count: int) -> Mask:
    """The mask again: what the nodes in the graph compute."""
    found: Mask = table[data].reshape(-1)[:count].astype(np.bool_)
    return found
