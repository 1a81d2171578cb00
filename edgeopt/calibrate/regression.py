"""Least squares from sums: a layer's weights refitted to what the layer gave before, no row of data kept.

Stands under ``reconstruct``. In come rows of what a layer reads now and of what it should give, a sample at a time; out go weights. Removing a channel
leaves the others' columns solvable in closed form (Y. He, X. Zhang and J. Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017,
arXiv:1707.06168). The ridge pulls toward the weights that were there, not toward zero: where the data says nothing, what was learned from
more data stays. A constant column fits the bias along, and is not pulled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
"""(inputs, outputs), the bias as the last row where there is one."""

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Pulls that are tried, as shares of the inputs' mean power."""
OUTLYING = 4.0
"""Times the median power of a layer's outputs: from here on a row's errors count relative to its size."""
_HELD_OUT_EVERY = 4
_ROWS_AT_ONCE = 2048
_ROUNDING = 1e-6
"""Share of the targets' power that float32 sums cannot tell from nothing: whoever misses no more has nothing to make good."""


def is_held_out(index: int) -> bool:
    """Whether a calibration sample judges a refit instead of being fitted; distillation judges by the same samples."""
    return index % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1


class Sums:
    """What least squares needs of all rows so far. Rows are multiplied many samples at once: small products waste most of their time."""

    def __init__(self, gram: NDArray[np.float64], cross: NDArray[np.float64], *, constant: bool) -> None:
        self._gram, self._cross = gram, cross
        self.constant = constant
        """The last input is 1 in every row: the bias."""
        self.power = 0.0
        """Of the targets, summed."""
        self.rows = 0
        """How many, whatever they weigh."""
        self._waiting: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        self._waiting_rows = 0

    @staticmethod
    def empty(inputs: int, outputs: int, *, constant: bool) -> Sums:
        """Sums over no rows; ``inputs`` does not count the constant."""
        width = inputs + constant
        return Sums(np.zeros((width, width)), np.zeros((width, outputs)), constant=constant)

    @property
    def gram(self) -> NDArray[np.float64]:
        """Inputs by inputs."""
        self._multiply()
        return self._gram

    @property
    def cross(self) -> NDArray[np.float64]:
        """Inputs by outputs."""
        self._multiply()
        return self._cross

    def add(
        self, inputs: NDArray[np.float32], targets: NDArray[np.float32], shares: NDArray[np.float32] | None = None
    ) -> None:
        """Rows of both; the constant is added here. ``shares``, (rows, 1), is what each row counts (see :func:`shares_of`)."""
        if self.constant:
            inputs = np.concatenate([inputs, np.ones((len(inputs), 1), np.float32)], axis=1)
        if shares is not None:
            roots = np.sqrt(shares)
            inputs, targets = inputs * roots, targets * roots
        self._waiting.append((inputs, targets))
        self._waiting_rows += len(inputs)
        self.power += float(np.square(targets, dtype=np.float64).sum())
        self.rows += len(inputs)
        if self._waiting_rows >= _ROWS_AT_ONCE:
            self._multiply()

    def _multiply(self) -> None:
        if not self._waiting:
            return
        inputs, targets = (np.concatenate(each) for each in zip(*self._waiting, strict=True))
        self._waiting.clear()
        self._waiting_rows = 0
        # Values whose squares overflow make the sums infinite: who uses the sums looks for that.
        with np.errstate(over="ignore", invalid="ignore"):
            self._gram += inputs.T @ inputs
            self._cross += inputs.T @ targets

    def plus(self, other: Sums) -> Sums:
        """Sums over the rows of both."""
        both = Sums(self.gram + other.gram, self.cross + other.cross, constant=self.constant)
        both.power, both.rows = self.power + other.power, self.rows + other.rows
        return both

    def error(self, weights: Weights) -> float:
        """Sum of squares of what ``weights`` miss."""
        explained = np.einsum("io,io->", weights, self.gram @ weights - 2.0 * self.cross)
        return max(0.0, float(self.power + explained))

    def levelled(self, weights: Weights) -> Weights:
        """The same slopes, with the bias that keeps every output's mean; as it is where there is no bias."""
        if not self.constant or not self.rows:
            return weights
        moved = weights.copy()
        moved[-1] = (self.cross[-1] - self.gram[-1, :-1] @ weights[:-1]) / self.gram[-1, -1]
        return moved

    def fitted(self, weights: Weights, ridge: float, *, roughly: bool = False) -> Weights:
        """The least squares, pulled toward ``weights`` by ``ridge`` times the inputs' mean power; ``roughly``: solved in half the time, in float32."""
        inputs = len(self.gram) - self.constant
        power = float(np.trace(self.gram[:inputs, :inputs])) / max(1, inputs)
        matrix = self.gram.copy()
        diagonal = np.arange(inputs)
        matrix[diagonal, diagonal] += ridge * power if power > 0 else 1.0
        missing = self.cross - self.gram @ weights
        # divided by the power, or float32 would have no room for its squares
        scale, kind = (power, np.float32) if roughly and power > 0 else (1.0, np.float64)
        change = np.linalg.solve((matrix / scale).astype(kind), (missing / scale).astype(kind))
        return np.asarray(weights + change, np.float64)


def shares_of(targets: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """What each row of ``targets`` counts, (rows, 1) for each array: 1, or less where its power is beyond ``OUTLYING`` times the median.

    A few tokens of a transformer carry numbers a hundred times as large as the others' (M. Sun et al., "Massive Activations in Large Language Models", COLM 2024, arXiv:2402.17762). The
    layer normalization behind takes their size out again, but a sum of squares sees nothing else, and all other tokens pay for them.
    """
    powers = [np.square(array).sum(axis=1, keepdims=True) for array in targets]
    every = np.concatenate([power.ravel() for power in powers]) if powers else np.zeros(1, np.float32)
    limit = np.float32(OUTLYING * np.median(every))
    if not np.isfinite(limit) or limit <= 0:
        return [np.ones_like(power) for power in powers]
    return [limit / np.maximum(power, limit) for power in powers]


@dataclass(frozen=True, slots=True)
class Refit:
    """The best weights, how they were made, and their error on held-out rows over that of plain removal."""

    weights: Weights
    how: str
    """``plain``, ``mean`` or ``least squares``."""
    gain: float


def best(fit: Sums, held: Sums, weights: Weights, *, apart: bool = False) -> Refit:
    """Whatever errs least on the held-out rows: the weights as they are, with the means kept, or refitted.

    A refit may look good on its own rows and be worse than nothing on others, so it has to show on ``held``; once it did, all rows
    make the final weights, unless the held-out ones stay ``apart`` for a later judge. Without held-out rows the weights stay.
    """
    every = fit.plus(held)
    whole = fit if apart else every
    if not held.rows or not fit.rows or not np.isfinite(every.gram).all() or not np.isfinite(every.cross).all():
        return Refit(weights, "plain", 1.0)
    plain = held.error(weights)
    if plain <= _ROUNDING * held.power:
        return Refit(weights, "plain", 1.0)
    found = Refit(weights, "plain", 1.0)
    level = held.error(fit.levelled(weights)) / plain
    if level < found.gain:
        found = Refit(whole.levelled(weights), "mean", level)
    ridge, error = _best_ridge(lambda ridge: held.error(fit.fitted(weights, ridge, roughly=True)) / plain)
    if error < found.gain:  # which pull is told by trials, what it gives is solved in full
        found = Refit(whole.fitted(weights, ridge), "least squares", error)
    return found if np.isfinite(found.weights).all() else Refit(weights, "plain", 1.0)


def _best_ridge(error_of: Callable[[float], float]) -> tuple[float, float]:
    """The pull with the lowest error, and that error: from the middle one downhill, for each try is a factorisation."""
    errors: dict[int, float] = {}

    def error(place: int) -> float:
        if place not in errors:
            errors[place] = error_of(RIDGES[place]) if 0 <= place < len(RIDGES) else float("inf")
        return errors[place]

    place = len(RIDGES) // 2
    step = -1 if error(place - 1) < error(place) else 1
    while error(place + step) < error(place):
        place += step
    return RIDGES[place], error(place)
