"""Atoms: what must be cut together, as a union-find over the indices of tensor axes.

Stands under ``links``, which walks the graph. Every index on an axis of every tensor carries an atom's number; operators unite atoms. A set of
united atoms is cut as a whole or not at all. Some sets are frozen: a model's output needs them, or an operator that nobody here understands.
Freezing is contagious and carries its reason along, so that the answer to "why is this layer not pruned" is a sentence that names a node.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int64]
Axis: TypeAlias = Ids | None
"""The atom of each index on one axis; None for an axis whose length is not known, which counts as frozen."""
Layout: TypeAlias = tuple[Axis, ...]
"""The axes of one tensor."""


class Atoms:
    """The union-find: numbers from 0, the smaller root wins, so that the result does not hang on the order of unions."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reasons: dict[int, str] = {}

    def fresh(self, length: int) -> Ids:
        """``length`` atoms that nothing ties together yet."""
        start = len(self._parent)
        self._parent.extend(range(start, start + length))
        return np.arange(start, start + length, dtype=np.int64)

    def frozen(self, length: int | None, reason: str) -> Axis:
        """An axis that stays as it is: one frozen atom at every index."""
        if length is None:
            return None
        atom = self.fresh(1)
        self._reasons[int(atom[0])] = reason
        return np.broadcast_to(atom, (length,))

    def root(self, atom: int) -> int:
        """The number that stands for the whole set of ``atom``."""
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom

    def unite(self, one: Iterable[int], other: Iterable[int]) -> None:
        """Tie the atoms at the same places of two axes of equal length."""
        for left, right in zip(one, other, strict=True):
            self._unite(int(left), int(right))

    def tie(self, rows: Ids) -> None:
        """Tie all atoms of each row of a matrix."""
        for row in rows:
            for atom in row[1:]:
                self._unite(int(row[0]), int(atom))

    def freeze(self, axis: Axis, reason: str) -> None:
        """No atom of ``axis`` may go; a reason that is there already stays."""
        for atom in set(axis.tolist() if axis is not None else ()):
            self._reasons.setdefault(self.root(atom), reason)

    def reason(self, atom: int) -> str | None:
        """Why the set of ``atom`` is frozen; None where it is not."""
        return self._reasons.get(self.root(atom))

    def is_live(self, axis: Axis) -> bool:
        """True where at least one index may still go."""
        return axis is not None and any(self.reason(atom) is None for atom in set(axis.tolist()))

    def _unite(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        if low == high:
            return
        self._parent[high] = low
        reason = self._reasons.pop(high, None)
        if reason is not None:
            self._reasons.setdefault(low, reason)
