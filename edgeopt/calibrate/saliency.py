"""Second-order saliency: what removing a unit costs the layers that read it, once the units that are left make good what they can.

Stands under ``importance``. In come the consumers' weights, the covariance of what they read and the columns of every unit; out come scores. With the inverse
covariance ``C``, removing the columns ``S`` of ``W`` and refitting the rest costs ``tr(W_S C_SS^-1 W_S^T)`` (B. Hassibi and D. G. Stork, "Second order
derivatives for network pruning: Optimal Brain Surgeon", NIPS 1992). Removing one unit after the other with both ``W`` and ``C`` brought up to date in closed form
is E. Frantar and D. Alistarh, "Optimal Brain Compression", NeurIPS 2022, arXiv:2208.11580; whole structures at once as here is E. Kurtic, E. Frantar and
D. Alistarh, "ZipLM: Inference-Aware Structured Pruning of Language Models", NeurIPS 2023, arXiv:2302.04089.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(slots=True)
class Reader:
    """One consumer, changed with every unit that goes."""

    weights: Matrix
    """(outputs, columns), scaled so that the output's variance is 1."""
    inverse: Matrix
    """Of the damped covariance of the columns."""
    units: Sequence[Columns]

    @staticmethod
    def of(rows: NDArray[np.float32], covariance: Matrix, units: Sequence[Columns]) -> Reader:
        """From the weight's rows; damage is counted relative to the output's variance, so that consumers can be added up."""
        weights = rows.astype(np.float64)
        power = float(np.einsum("oi,oi->", weights @ covariance, weights))
        scaled = weights / np.sqrt(power) if power > 0 else weights
        return Reader(scaled, np.asarray(np.linalg.inv(damped(covariance)), np.float64), units)

    def costs(self, alive: Sequence[int]) -> Matrix:
        """What removing each of the units ``alive`` would cost now."""
        columns = [self.units[unit] for unit in alive]
        if all(each.size == 1 for each in columns):
            single = np.concatenate(columns)
            squares: Matrix = np.square(self.weights[:, single]).sum(axis=0) / self.inverse[single, single]
            return squares
        return np.asarray([self._cost(each) for each in columns])

    def remove(self, unit: int) -> None:
        """Take the unit out; the weights left are refitted, the inverse is that of the covariance without it."""
        gone = self.units[unit]
        across = self.inverse[:, gone]
        block = np.linalg.inv(self.inverse[np.ix_(gone, gone)])
        self.weights -= (self.weights[:, gone] @ block) @ across.T
        self.inverse -= (across @ block) @ across.T
        # Exactly zero, not nearly: rounding would grow with every further removal.
        self.weights[:, gone] = 0.0
        self.inverse[gone, :] = 0.0
        self.inverse[:, gone] = 0.0
        self.inverse[gone, gone] = 1.0

    def _cost(self, columns: Columns) -> float:
        weights = self.weights[:, columns]
        return float(
            np.einsum("oi,oi->", np.linalg.solve(self.inverse[np.ix_(columns, columns)], weights.T).T, weights)
        )


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
