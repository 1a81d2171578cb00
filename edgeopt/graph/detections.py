"""Where a detector's raw output keeps coordinates and scores, recognised from what it holds.

Asked by ``stages`` (how candidates are judged) and by ``training.losses`` (what a student is taught): both must see the same thing in the same output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

COORDINATES = 4
_LEAST_BOXES = 32
_FEWEST_COLUMNS = 5
_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class DetectionLayout:
    """Of an output [1, boxes, columns], or its transpose: four coordinates, then scores."""

    transposed: bool

    def parts(self, output: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(boxes [n, 4], scores [n, columns - 4])."""
        rows = np.asarray(output, dtype=np.float64)[0]
        rows = rows.T if self.transposed else rows
        return rows[:, :COORDINATES], rows[:, COORDINATES:]


def detection_layout(output: NDArray[Any]) -> DetectionLayout | None:
    """Recognise [1, boxes, 4 + scores] and [1, 4 + scores, boxes]: scores within 0..1, coordinates beyond it."""
    if output.ndim != 3 or output.shape[0] != 1:
        return None
    for transposed in (False, True):
        boxes, columns = (output.shape[2], output.shape[1]) if transposed else (output.shape[1], output.shape[2])
        if boxes < _LEAST_BOXES or columns < _FEWEST_COLUMNS or boxes < columns:
            continue
        layout = DetectionLayout(transposed)
        coordinates, scores = layout.parts(output)
        if scores.min() >= 0.0 and scores.max() <= 1.0 and np.abs(coordinates).max() > 1.0:
            return layout
    return None


def shared_layout(seen: Sequence[NDArray[Any]]) -> DetectionLayout | None:
    """The layout of all of ``seen`` (one or more outputs), or None where one of them is no detector's."""
    return detection_layout(seen[0]) if all(detection_layout(array) for array in seen) else None


def box_shares(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much each box counts, [boxes] that sum to 1, out of scores [boxes, classes]: by its best one, so that thousands of empty boxes neither hide nor make an error."""
    best = scores.max(axis=1)
    shares: NDArray[np.float64] = best / max(float(best.sum()), _TINY)
    return shares
