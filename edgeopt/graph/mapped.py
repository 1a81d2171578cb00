"""External weights on one mapping a file, whatever the number of tensors and of copies of the model.

``load`` puts these in place of onnx_ir's own external tensors, each of which maps the whole file for itself: nine weights of a
model of 2.3 GB take 21 GB of address space, and the worker's is limited. They still count as external everywhere else.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_BYTE_BITS = 8


class MappedTensor(ir.ExternalTensor):
    """An external tensor that reads from a mapping that others read from too."""

    __slots__ = ("_data",)

    def __init__(self, tensor: ir.ExternalTensor, data: NDArray[np.uint8]) -> None:
        """``data``: the bytes of the whole file that ``tensor`` lies in."""
        super().__init__(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
            base_dir=tensor.base_dir,
        )
        self._data = data

    def numpy(self) -> NDArray[Any]:
        """The values, mapped and read-only."""
        return self._bytes().view(self.dtype.numpy().newbyteorder("<")).reshape(self.shape.numpy())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """What numpy asks an array-like for."""
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def tobytes(self) -> bytes:
        """The bytes, read into memory."""
        return self._bytes().tobytes()

    def _bytes(self) -> NDArray[np.uint8]:
        start = self.offset or 0
        return self._data[start : start + self.nbytes]


def share_mappings(model: ir.Model) -> None:
    """Let the external weights of ``model`` read from one mapping for each file; its base folder must be set.

    Types below a byte keep onnx_ir's tensors, which unpack them; ``weights.check`` must have passed the files.
    """
    files: dict[str, NDArray[np.uint8]] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype.bitwidth < _BYTE_BITS or not tensor.size:
                continue
            path = os.path.realpath(tensor.path)
            if path not in files:
                files[path] = np.memmap(path, np.uint8, mode="r")
            value.const_value = MappedTensor(tensor, files[path])
