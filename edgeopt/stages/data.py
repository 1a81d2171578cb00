"""Which samples calibrate and which samples judge.

Calibration and judgement never share a sample where that can be helped: a drop with one set only has it divided. The
eval set's labels are never shown to calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgeopt.protocols import Samples
from edgeopt.records import DataOrigin

if TYPE_CHECKING:
    from edgeopt.protocols import Array, Labels

MOST_CALIBRATION_SAMPLES = 1024
_CALIBRATION_SHARE = 3
"""Of a lone eval set every third sample calibrates, at most this many:"""
_BORROWED_SAMPLES = 64


class Subset:
    """Some samples of a set, in order."""

    def __init__(self, samples: Samples, indices: Sequence[int], origin: str) -> None:
        self._samples = samples
        self._indices = tuple(indices)
        self.labels: Labels | None = None if samples.labels is None else samples.labels[list(self._indices)]
        self.origin: DataOrigin = replace(samples.origin, samples=len(self._indices), origin=origin)

    def __len__(self) -> int:
        return len(self._indices)

    def feeds(self, index: int) -> dict[str, Array]:
        """The inputs of the subset's ``index``-th inference."""
        return self._samples.feeds(self._indices[index])


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """``calibration`` gives ranges, ``eval`` gives the verdict."""

    calibration: Samples
    eval: Samples

    @property
    def synthetic(self) -> bool:
        return self.eval.origin.origin == "synthetic"


def assign(calibration: Samples | None, judging: Samples | None, made_up: Samples, *, ordered: bool) -> Data:
    """Choose the two sets out of what the drop holds; ``made_up`` serves where it holds nothing.

    ``ordered`` says that the model carries states, so that samples in a row belong together.
    """
    if calibration is not None and judging is not None:
        return Data(calibration=calibration, eval=judging)
    if calibration is None and judging is None:
        return Data(calibration=made_up, eval=made_up)
    given, origin = (calibration, "calibration") if calibration is not None else (judging, "eval")
    assert given is not None  # noqa: S101  # one of the two is there
    lent, kept = _divide(len(given), even=origin == "calibration", ordered=ordered)
    if not lent or not kept:
        return Data(calibration=given, eval=given)
    return Data(calibration=Subset(given, lent, f"part of {origin}"), eval=Subset(given, kept, f"part of {origin}"))


def _divide(count: int, *, even: bool, ordered: bool) -> tuple[list[int], list[int]]:
    """(for calibration, for judging): halves of a calibration set, a small share of an eval set."""
    share = count // 2 if even else min(_BORROWED_SAMPLES, count // _CALIBRATION_SHARE)
    if ordered:
        return list(range(share)), list(range(share, count))
    step = 2 if even else _CALIBRATION_SHARE
    lent = list(range(0, count, step))[:share]
    taken = set(lent)
    return lent, [index for index in range(count) if index not in taken]
