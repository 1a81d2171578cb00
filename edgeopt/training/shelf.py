"""Rows of named arrays that may be more than fits in memory: calibration inputs and the teacher's answers.

Stands under ``training.inputs`` and ``training.labels``: the evidence streams samples in order, a training reads them at random. The first
rows stay in memory; what goes beyond is appended to one file and read from there, row by row.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgeopt.protocols import Array

MEMORY_BYTES = 128 << 20
_Place = tuple[str, str, tuple[int, ...], int]
"""Name, dtype, shape and where in the file the bytes begin."""


class Shelf:
    """Append-only; a row read back is equal to what was added. Close it, or leave its ``with`` block, to remove its file."""

    def __init__(self, file: Path | None, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self._file = file
        self._memory_bytes = memory_bytes
        self._rows: list[dict[str, NDArray[Any]] | list[_Place]] = []
        self._stream: BinaryIO | None = None
        self._used_bytes = self._written_bytes = 0
        self._digest = hashlib.sha256()

    def __len__(self) -> int:
        return len(self._rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, row: Mapping[str, Array]) -> None:
        """Put a row behind the others; the arrays are copied. Raises OSError where the disk does."""
        arrays = {name: np.array(array, order="C") for name, array in row.items()}
        for name, array in sorted(arrays.items()):
            self._digest.update(f"{name}:{array.dtype.str}:{array.shape}".encode())
            self._digest.update(array.reshape(-1).view(np.uint8).data)
        self._used_bytes += sum(array.nbytes for array in arrays.values())
        if self._file is None or self._used_bytes <= self._memory_bytes:
            self._rows.append(arrays)
        else:
            self._rows.append([self._write(name, array) for name, array in arrays.items()])

    def __getitem__(self, index: int) -> dict[str, NDArray[Any]]:
        row = self._rows[index]
        if isinstance(row, dict):
            return dict(row)
        return {place[0]: self._read(place) for place in row}

    def digest(self) -> str:
        """A hash of everything that was added, in order."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Remove the file; rows in memory can still be read."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _write(self, name: str, array: NDArray[Any]) -> _Place:
        assert self._file is not None  # noqa: S101  # add() asks first
        if self._stream is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._file.open("w+b", buffering=0)
        place = (name, array.dtype.str, array.shape, self._written_bytes)
        os.pwrite(self._stream.fileno(), array.reshape(-1).view(np.uint8).data, self._written_bytes)
        self._written_bytes += array.nbytes
        return place

    def _read(self, place: _Place) -> NDArray[Any]:
        assert self._stream is not None  # noqa: S101  # a place is only given by _write()
        _, dtype, shape, start = place
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        data = os.pread(self._stream.fileno(), count, start)
        # frombuffer is read-only, and torch warns about that
        return np.frombuffer(data, np.dtype(dtype)).reshape(shape).copy()
