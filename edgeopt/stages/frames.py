"""The wire between a measuring stage and a runner process: a line of JSON, then the arrays it announces.

Arrays travel in numpy's own .npy form with pickles refused, one after the other, so that nothing is held twice and
nothing is executed. End of stream in the middle of a frame is :class:`EOFError`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_LINE_BYTES = 1 << 20


def write_frame(stream: BinaryIO, header: dict[str, Any], arrays: Sequence[NDArray[Any]] = ()) -> None:
    """Send ``header`` and the arrays, and flush."""
    stream.write(json.dumps({**header, "arrays": len(arrays)}).encode() + b"\n")
    for array in arrays:
        _write_array(stream, np.asarray(array, order="C"))
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """The next header and its arrays; :class:`EOFError` where the other side is gone."""
    line = stream.readline(_LINE_BYTES)
    if not line.endswith(b"\n"):
        raise EOFError("the other side closed the stream")
    header = json.loads(line)
    source = _Pipe(stream)
    arrays = [np.lib.format.read_array(source, allow_pickle=False) for _ in range(header.pop("arrays"))]
    return header, arrays


def _write_array(stream: BinaryIO, array: NDArray[Any]) -> None:
    if array.dtype.hasobject:
        raise ValueError(f"an array of dtype {array.dtype} would need a pickle")
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
    stream.write(array.tobytes())


class _Pipe:
    """Hides that the stream is a real file: numpy would ask a pipe for its position."""

    def __init__(self, stream: BinaryIO) -> None:
        self.read = stream.read
