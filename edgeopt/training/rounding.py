"""AdaRound: up or down for every weight of one layer, learned by gradient descent on what the layer gives.

Stands under the pass ``training.learn_rounding``. In come rows of what the layer reads once everything before it is quantized, rows of what it gave in the original, and
its weights with their scales; out go weights on the grid. Each weight's place between its two codes is a rectified sigmoid, and a penalty whose exponent falls from
20 to 2 drives it to one of them (M. Nagel, R. A. Amjad, M. van Baalen, C. Louizos and T. Blankevoort, "Up or Down? Adaptive Rounding for Post-Training Quantization",
ICML 2020, arXiv:2004.10568). The activation behind the layer is part of what is compared, as in the paper: what a ReLU cuts off need not be right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeopt.calibrate.rounding import Grid

Floats = NDArray[np.float32]

_LOW, _HIGH = -0.1, 1.1
"""The sigmoid is stretched to these and cut at 0 and 1, so that both ends are reached with a slope."""
_STEEP, _SOFT = 20.0, 2.0
"""The penalty's exponent at its begin and end."""
_WARM_UP = 0.2
"""Share of the steps without a penalty."""
_PENALTY = 1.0
"""Of one undecided weight, over the loss that rounding to nearest leaves for each weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """How one layer is learned."""

    steps: int
    rows: int
    """Of a batch."""
    rate: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a layer reads and should give."""

    inputs: Floats
    """(rows, columns), behind the quantized layers before."""
    targets: Floats
    """(rows, outputs), the original's, before the activation."""
    bias: Floats
    """(outputs,)"""
    bounds: tuple[float, float]
    """Of the activation behind; infinite where there is none."""

    def error(self, rows: Floats) -> float:
        """Mean squared error of these weights (outputs, columns) behind the activation."""
        given = np.clip(self.inputs @ rows.T + self.bias, *self.bounds)
        return float(np.square(given - np.clip(self.targets, *self.bounds)).mean())

    def split(self, every: int) -> tuple[Reading, Reading]:
        """The rows to learn from, and every so-manieth one to judge by."""
        judged = np.arange(len(self.inputs)) % every == every - 1
        return self._some(~judged), self._some(judged)

    def _some(self, chosen: NDArray[np.bool_]) -> Reading:
        return Reading(inputs=self.inputs[chosen], targets=self.targets[chosen], bias=self.bias, bounds=self.bounds)


def nearest(rows: Floats, grid: Grid) -> Floats:
    """The weights on the grid, each at its nearest code; (outputs, columns)."""
    return np.asarray(grid.nearest(rows) * grid.scale[:, None], np.float32)


def learned(rows: Floats, grid: Grid, reading: Reading, descent: Descent) -> Floats:
    """The weights on the grid; those that decide its scale keep their nearest codes."""
    scale, largest = grid.scale, grid.largest
    wanted = torch.from_numpy(rows / scale[:, None])
    floor = wanted.floor()
    place = _first_place(wanted - floor).requires_grad_()
    step = torch.from_numpy(scale)[:, None]
    inputs, targets = torch.from_numpy(reading.inputs), torch.tensor(reading.targets).clamp(*reading.bounds)
    bias = torch.tensor(reading.bias)
    usual = max(reading.error(nearest(rows, grid)), float(np.finfo(np.float32).tiny))
    optimizer = torch.optim.Adam([place], lr=descent.rate)
    random = np.random.default_rng(descent.seed)
    for number in range(descent.steps):
        chosen = torch.from_numpy(random.integers(0, len(inputs), min(descent.rows, len(inputs))))
        share = _share(place)
        weights = (floor + share).clamp(-largest, largest) * step
        given = (inputs[chosen] @ weights.T + bias).clamp(*reading.bounds)
        loss = (given - targets[chosen]).square().mean() / usual + _penalty(share, number / descent.steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's is not annotated
        optimizer.step()
    with torch.no_grad():
        codes = (floor + (_share(place) >= 0.5).float()).clamp(-largest, largest).numpy()
    return np.asarray(grid.settled(codes, rows) * scale[:, None], np.float32)


def _first_place(share: Tensor) -> Tensor:
    """What the rectified sigmoid maps to ``share``."""
    inner = ((share - _LOW) / (_HIGH - _LOW)).clamp(1e-4, 1 - 1e-4)
    return torch.log(inner / (1 - inner))


def _share(place: Tensor) -> Tensor:
    """How far each weight is from its lower code to its upper one, 0 to 1."""
    return (torch.sigmoid(place) * (_HIGH - _LOW) + _LOW).clamp(0.0, 1.0)


def _penalty(share: Tensor, progress: float) -> Tensor:
    """Zero where every weight is decided; nothing during the warm-up."""
    if progress < _WARM_UP:
        return torch.zeros(())
    gone = (progress - _WARM_UP) / (1.0 - _WARM_UP)
    exponent = _SOFT + 0.5 * (_STEEP - _SOFT) * (1.0 + np.cos(gone * np.pi))
    return _PENALTY * (1.0 - (2.0 * share - 1.0).abs().pow(exponent)).mean()
