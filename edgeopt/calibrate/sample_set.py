"""Samples in the form that everything behind ``ingest`` uses: one inference at a time, never all of them.

A set is a column for each input. Columns read (stored arrays, pictures) or compute (made-up values) what one inference
needs when it is asked for, so memory does not grow with the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeopt.calibrate.arrays import ArrayFile
from edgeopt.records import DataOrigin


class Column(Protocol):
    """The values of one input."""

    def read(self, index: int) -> NDArray[Any]:
        """What inference ``index`` is fed, in the model's type."""


@dataclass(frozen=True, slots=True)
class StoredColumn:
    """Rows of one array: ``rows`` of them are an inference, or each one without its axis where ``stacked``."""

    array: ArrayFile
    dtype: np.dtype[Any]
    rows: int = 1
    stacked: bool = False

    def read(self, index: int) -> NDArray[Any]:
        rows = self.array.rows(index * self.rows, self.rows)
        return np.asarray(rows[0] if self.stacked else rows, dtype=self.dtype)


@dataclass(frozen=True, slots=True)
class FilesColumn:
    """One array for each inference."""

    arrays: tuple[ArrayFile, ...]
    dtype: np.dtype[Any]

    def read(self, index: int) -> NDArray[Any]:
        return self.arrays[index].whole().astype(self.dtype, copy=False)


@dataclass(frozen=True, slots=True)
class FixedColumn:
    """The same value for every inference: a first state of zeros."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, index: int) -> NDArray[Any]:
        del index
        return np.zeros(self.shape, self.dtype)


class SampleSet:
    """Real or made-up inputs; implements :class:`~edgeopt.protocols.Samples`."""

    def __init__(
        self,
        columns: Mapping[str, Column],
        *,
        origin: DataOrigin,
        labels: NDArray[np.int64] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._columns = dict(columns)
        self.origin = origin
        self.labels = labels
        """One class index for each inference."""
        self.notes = notes
        """What the operator should know: labels that are of no use here, states that are assumed."""

    def __len__(self) -> int:
        return self.origin.samples

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        return (self.feeds(index) for index in range(len(self)))

    def feeds(self, index: int) -> dict[str, NDArray[Any]]:
        """The inputs of inference ``index``; :class:`IndexError` outside of the set."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return {name: column.read(index) for name, column in self._columns.items()}
