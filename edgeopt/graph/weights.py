"""Whether a model's tensors are what they say: bytes against dimensions, external files, finite values.

In: a parsed, unchecked ModelProto and the folder that it came from. Out: nothing, or the error that names the tensor.
The arithmetic is our own, in Python's integers: onnx's checker passes a tensor of 16 declared bytes that holds 4, an
offset behind the end of its file, and a negative one; what reads such a tensor later reads somebody else's memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from math import prod
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.errors import (
    BadWeights,
    MissingExternalData,
    NotAModel,
    TooLarge,
    TruncatedModel,
    UnsafeFile,
    UnsafeReference,
)
from edgeopt.graph import walk

if TYPE_CHECKING:
    import onnx

_EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})
_CHUNK_BYTES = 8 << 20
_SHOWN = 5

_MULTIPLIERS = frozenset(
    {
        *("Conv", "ConvTranspose", "ConvInteger", "FusedConv", "QLinearConv"),
        *("MatMul", "MatMulInteger", "FusedMatMul", "QLinearMatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN"),
        *(
            "BatchNormalization",
            "LayerNormalization",
            "InstanceNormalization",
            "GroupNormalization",
            "RMSNormalization",
        ),
        *("Mul", "Div", "PRelu", "Transpose", "QuantizeLinear", "DequantizeLinear"),
    }
)
"""Operators that multiply by a constant: infinity in it is a broken weight. Elsewhere it is a mask, or no limit."""


def check(model: onnx.ModelProto, path: Path, *, model_bytes: int) -> None:
    """Raise for the first tensor that is malformed, or with all that are not finite.

    ``path`` is the file that the model came from; ``model_bytes`` caps it and its external data together. External files are opened for their checks and closed again.
    """
    total = 0
    inline = model.ByteSize()
    for name, tensor in walk.tensors(model):
        size = _declared_bytes(name, tensor)
        if _is_external(tensor):
            total += size
            _check_external(name, tensor, path, size)
        else:
            _check_inline(name, tensor)
        if total + inline > model_bytes:
            raise TooLarge(
                f"the model and its external weights are larger than {model_bytes:,} bytes",
                hint="Raise limits.model_bytes, or export the model in a smaller type.",
            )
    _check_finite(model, path.parent)


def _declared_bytes(name: str, tensor: onnx.TensorProto) -> int:
    """Bytes that type and dimensions ask for; 0 for strings, which have no fixed size."""
    try:
        kind = ir.DataType(tensor.data_type)
    except ValueError:
        raise NotAModel(
            f"the tensor {name!r} is of the unknown type {tensor.data_type}", hint="Export the model again."
        ) from None
    if kind is ir.DataType.UNDEFINED or min(tensor.dims, default=0) < 0:
        raise NotAModel(
            f"the tensor {name!r} is declared as {kind.name} {list(tensor.dims)}", hint="Export the model again."
        )
    if kind is ir.DataType.STRING:
        return 0
    return int(-(-prod(tensor.dims) * kind.bitwidth // 8))


def _check_inline(name: str, tensor: onnx.TensorProto) -> None:
    """What a tensor holds is exactly what it declares, in one field."""
    elements = prod(tensor.dims)
    kind = ir.DataType(tensor.data_type)
    typed = _typed_entries(tensor)
    if tensor.HasField("raw_data"):
        held, wanted, unit = len(tensor.raw_data), _declared_bytes(name, tensor), "bytes"
        fits = held == wanted and not typed and kind is not ir.DataType.STRING
    else:
        unit = "elements"
        held = sum(typed.values())
        wanted = _entries_wanted(kind, elements)
        fits = held == wanted and len(typed) <= 1
    if not fits:
        raise NotAModel(
            f"the tensor {name!r} is declared as {kind.name} {list(tensor.dims)}, {wanted} {unit}, but holds {held}",
            hint="Export or copy the model again; the file is damaged.",
        )


def _typed_entries(tensor: onnx.TensorProto) -> dict[str, int]:
    fields = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
    return {field: count for field in fields if (count := len(getattr(tensor, field)))}


def _entries_wanted(kind: ir.DataType, elements: int) -> int:
    if kind in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * elements
    # below a byte, several elements share one entry
    return -(-elements * kind.bitwidth // 8) if kind is not ir.DataType.STRING and kind.bitwidth < 8 else elements


# ---------------------------------------------------------------- external data
def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == 1)  # TensorProto.EXTERNAL


def _check_external(name: str, tensor: onnx.TensorProto, path: Path, size: int) -> None:
    location, offset, length = _reference(name, tensor)
    if location == path.name or tensor.data_type == ir.DataType.STRING:
        raise UnsafeReference(
            f"the tensor {name!r} may not take its data from {location!r}", hint="Save the model's external data again."
        )
    if length is not None and length != size:
        raise NotAModel(
            f"the tensor {name!r} takes {size} bytes, but its external data is {length} long",
            hint="Export or copy the model again; the file is damaged.",
        )
    available = _file_bytes(name, path.parent, location)
    if offset + size > available:
        raise TruncatedModel(
            f"the tensor {name!r} ends at byte {offset + size} of {location!r}, which has only {available}",
            hint="Copy the external-data file again, whole.",
        )


def _reference(name: str, tensor: onnx.TensorProto) -> tuple[str, int, int | None]:
    """Location, offset and length out of a tensor's key-value list; nothing but known keys, each once."""
    entries = [(entry.key, entry.value) for entry in tensor.external_data]
    values = dict(entries)
    if len(values) != len(entries) or not set(values) <= _EXTERNAL_KEYS or "location" not in values:
        raise UnsafeReference(
            f"the external data of tensor {name!r} has the keys {[key for key, _ in entries]}",
            hint="Use location, offset, length and checksum, each once.",
        )
    location = values["location"]
    parts = location.split("/")
    plain = location and not set(location) & set("\0\\:*") and not set(parts) & {"", ".", ".."}
    if not plain or PurePosixPath(location).is_absolute():
        raise UnsafeReference(
            f"the external data of tensor {name!r} lies at {location!r}, which is not a plain name beside the model",
            hint="Save the model with its external data in the same folder.",
        )
    numbers = [values.get("offset", "0"), values.get("length", "0")]
    if not all(number.isascii() and number.isdigit() and len(number) < 20 for number in numbers):
        raise UnsafeReference(
            f"the external data of tensor {name!r} has offset {numbers[0]!r} and length {numbers[1]!r}",
            hint="Save the model again; both are counts of bytes.",
        )
    return location, int(numbers[0]), int(numbers[1]) if "length" in values else None


def _file_bytes(name: str, folder: Path, location: str) -> int:
    """Size of an external-data file, which must be a plain file below ``folder``, reached without links."""
    path = folder
    for part in location.split("/"):
        path = path / part
        try:
            status = path.lstat()
        except OSError as error:
            raise MissingExternalData(
                f"the external-data file {location!r} of tensor {name!r} cannot be found: {error.strerror}",
                hint="Drop the external-data files together with the model.",
            ) from error
        if stat.S_ISLNK(status.st_mode):
            raise UnsafeFile(f"{location!r} is or goes through a symbolic link", hint="Copy the file itself.")
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise UnsafeFile(
            f"the external-data file {location!r} is no plain file of its own ({status.st_nlink} links)",
            hint="Copy the file itself instead of linking to it.",
        )
    return status.st_size


# ---------------------------------------------------------------- values
def _check_finite(model: onnx.ModelProto, folder: Path) -> None:
    broken: list[str] = []
    multiplied: set[str] | None = None
    for name, tensor in walk.tensors(model):
        nans, infinities = _not_finite(tensor, folder)
        if infinities and not nans:
            multiplied = _multiplied_names(model) if multiplied is None else multiplied
            infinities = infinities if name in multiplied else 0
        if nans or infinities:
            broken.append(f"{name!r} holds {nans} NaN and {infinities} infinite of {prod(tensor.dims)} values")
    if broken:
        more = f"; and {len(broken) - _SHOWN} more tensors" if len(broken) > _SHOWN else ""
        raise BadWeights(
            f"weights are not finite: {'; '.join(broken[:_SHOWN])}{more}",
            hint="Export the model from a checkpoint whose weights are finite.",
        )


def _multiplied_names(model: onnx.ModelProto) -> set[str]:
    return {
        name
        for root in walk.roots(model)
        for node in walk.nodes(root)
        if node.op_type in _MULTIPLIERS
        for name in node.input
    }


def _not_finite(tensor: onnx.TensorProto, folder: Path) -> tuple[int, int]:
    """How many values are NaN and how many infinite; read in chunks, so that a large weight does not fill memory."""
    kind = ir.DataType(tensor.data_type)
    if not kind.is_floating_point() or kind.bitwidth < 8:
        return 0, 0
    nans = infinities = 0
    for chunk in _chunks(tensor, kind, folder):
        finite = np.isfinite(chunk)
        if not finite.all():
            missing = int(np.isnan(chunk).sum())
            nans += missing
            infinities += int(chunk.size - finite.sum()) - missing
    return nans, infinities


def _chunks(tensor: onnx.TensorProto, kind: ir.DataType, folder: Path) -> Iterator[NDArray[Any]]:
    dtype = kind.numpy()
    if _is_external(tensor):
        location, offset, _ = _reference(tensor.name, tensor)
        remaining = prod(tensor.dims)
        with open(folder / location, "rb", opener=_without_links) as file:  # Path.open takes none
            file.seek(offset)
            while (
                remaining > 0
                and (chunk := np.fromfile(file, dtype, min(remaining, _CHUNK_BYTES // dtype.itemsize))).size
            ):
                remaining -= chunk.size
                yield chunk
    elif tensor.HasField("raw_data"):
        whole = np.frombuffer(tensor.raw_data, dtype)
        for start in range(0, whole.size, _CHUNK_BYTES):
            yield whole[start : start + _CHUNK_BYTES]
    else:
        import onnx

        yield onnx.numpy_helper.to_array(tensor)


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
