"""Second-order saliency: what removing a unit costs the layers that read it, once the units that are left make good what they can.

Stands under ``importance``. In come the consumers' weights, the covariance of what they read and the columns of every unit; out come scores. With the inverse
covariance ``C``, removing the columns ``S`` of ``W`` and refitting the rest costs ``tr(W_S C_SS^-1 W_S^T)`` (B. Hassibi and D. G. Stork, "Second order
derivatives for network pruning: Optimal Brain Surgeon", NIPS 1992). Removing one unit after the other with both ``W`` and ``C`` brought up to date in closed form
is E. Frantar and D. Alistarh, "Optimal Brain Compression", NeurIPS 2022, arXiv:2208.11580; whole structures at once as here is E. Kurtic, E. Frantar and
D. Alistarh, "ZipLM: Inference-Aware Structured Pruning of Language Models", NeurIPS 2023, arXiv:2302.04089.

The updates are lazy, as in GPTQ (E. Frantar et al., ICLR 2023, arXiv:2210.17323): a removal changes what the costs are made of, the units' own blocks, at once;
the matrices themselves take in a few dozen removals together, as one product, and lose the columns that are gone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate.consumers import Columns

Matrix = NDArray[np.float64]

_DAMPING = 0.01
"""Share of its own variance added to every column's: few samples leave the covariance singular."""
_FLOOR = 1e-6
"""Share of the mean variance added on top, or a column that never changes would have no inverse. Small: such a column costs nothing."""
_APART = 1.0 + 1e-9
"""A later removal never scores below an earlier one: the order of removal is the order of the scores."""
_LEAST = 1e-12
_LAZY = 48
"""Columns that are removed before the matrices are brought up to date."""


class Reader:
    """One consumer, changed with every unit that goes. All units have the same number of columns here."""

    def __init__(self, weights: Matrix, inverse: Matrix, units: Sequence[Columns]) -> None:
        self._weights = weights
        """(outputs, columns), scaled so that the output's variance is 1; as of the last update."""
        self._inverse = inverse
        """Of the damped covariance of the columns; as of the last update."""
        self._columns = np.stack([np.asarray(each, np.intp) for each in units])
        """(units, columns of one); -1 for a unit that is gone from the matrices."""
        self._gone: list[int] = []
        """Units removed since the last update."""
        self._across: Matrix = np.zeros((len(inverse), 0))
        """What the inverse is yet to lose: this times its own transpose; (columns, removed columns)."""
        self._lost: Matrix = np.zeros((len(weights), 0))
        """What the weights are yet to lose: this times the transpose of ``_across``; (outputs, removed columns)."""
        self._begin()

    @staticmethod
    def of(
        rows: NDArray[np.float32], covariance: Matrix, units: Sequence[Columns], power: float | None = None
    ) -> Reader:
        """From the weight's rows; damage is counted relative to the output's variance, so that consumers can be added up.

        ``power`` is that variance where these rows are not all that the layer has.
        """
        weights = rows.astype(np.float64)
        power = output_power(rows, covariance) if power is None else power
        scaled = weights / np.sqrt(power) if power > 0 else weights
        return Reader(scaled, np.asarray(np.linalg.inv(damped(covariance)), np.float64), units)

    def costs(self, alive: Sequence[int]) -> Matrix:
        """What removing each of the units ``alive`` would cost now."""
        blocks, powers = self._blocks[alive], self._powers[alive]
        if blocks.shape[1] == 1:
            single: Matrix = powers[:, 0, 0] / blocks[:, 0, 0]
            return single
        return np.asarray(np.trace(np.linalg.solve(blocks, powers), axis1=1, axis2=2), np.float64)

    def remove(self, unit: int) -> None:
        """Take the unit out; the weights left are refitted, the inverse is that of the covariance without it."""
        own = self._columns[unit]
        across = self._inverse[:, own] - self._across @ self._across[own].T
        lost = self._weights[:, own] - self._lost @ self._across[own].T
        root = _inverse_root(across[own])
        across, lost = across @ root, lost @ root
        shared = self._weights.T @ lost - self._across @ (self._lost.T @ lost)
        by_unit, moved = across[self._columns], shared[self._columns] @ across[self._columns].transpose(0, 2, 1)
        self._blocks -= by_unit @ by_unit.transpose(0, 2, 1)
        self._powers += by_unit @ (lost.T @ lost) @ by_unit.transpose(0, 2, 1) - moved - moved.transpose(0, 2, 1)
        self._across = np.concatenate([self._across, across], axis=1)
        self._lost = np.concatenate([self._lost, lost], axis=1)
        self._gone.append(unit)
        if self._across.shape[1] >= _LAZY:
            self._catch_up()

    def _begin(self) -> None:
        """What the costs are made of, from the matrices as they are."""
        columns = self._columns
        self._blocks: Matrix = self._inverse[columns[:, :, None], columns[:, None, :]]
        read = np.moveaxis(self._weights[:, columns], 0, 1)
        self._powers: Matrix = read.transpose(0, 2, 1) @ read
        self._across = np.zeros((len(self._inverse), 0))
        self._lost = np.zeros((len(self._weights), 0))

    def _catch_up(self) -> None:
        """Bring the matrices up to date and leave out the columns that are gone."""
        left = np.ones(len(self._inverse), np.bool_)
        left[self._columns[self._gone].reshape(-1)] = False
        across = self._across[left]
        self._inverse = self._inverse[np.ix_(left, left)] - across @ across.T
        self._weights = self._weights[:, left] - self._lost @ across.T
        places = np.cumsum(left) - 1
        # units that are gone point at some column or other: nobody asks for them again
        self._columns = np.maximum(places[self._columns], 0)
        self._gone.clear()
        self._begin()


def output_power(rows: NDArray[np.float32], covariance: Matrix) -> float:
    """The variance of what ``rows`` give, summed over them."""
    weights = rows.astype(np.float64)
    return float(np.einsum("oi,oi->", weights @ covariance, weights))


def _inverse_root(block: Matrix) -> Matrix:
    """``R`` with ``R R^T`` the block's inverse; what rounding made of zero counts as very little."""
    values, vectors = np.linalg.eigh(block)
    return np.asarray(vectors / np.sqrt(np.maximum(values, _LEAST * max(values[-1], _LEAST))), np.float64)


def damped(covariance: Matrix) -> Matrix:
    """A covariance that can be inverted; (columns, columns)."""
    own = np.diag(covariance)
    mean = float(own.mean())
    return covariance + np.diag(_DAMPING * own + (_FLOOR * mean if mean > 0 else 1.0))


def greedy(readers: Sequence[Reader], units: int, depth: int) -> Matrix:
    """A score for each unit, lowest first to go: ``depth`` are removed one after the other, the others scored as things stand then.

    ``readers`` are used up. Deeper ranking costs the square of the columns for each unit.
    """
    scores = np.zeros(units)
    alive = list(range(units))
    floor = 0.0
    for _ in range(min(depth, units - 1)):
        costs = _summed(readers, alive)
        position = int(np.argmin(costs))
        floor = max(float(costs[position]), floor * _APART, np.finfo(np.float64).tiny)
        unit = alive.pop(position)
        scores[unit] = floor
        for reader in readers:
            reader.remove(unit)
    scores[alive] = np.maximum(_summed(readers, alive), floor * _APART)
    return scores


def _summed(readers: Sequence[Reader], alive: Sequence[int]) -> Matrix:
    return np.asarray(np.sum([reader.costs(alive) for reader in readers], axis=0), np.float64)
