"""Bytes to a ModelProto, and nothing more: what comes out is unchecked.

``load`` starts here. Sizes are looked at before anything is read, and a file that is not protobuf is told apart from
one that was cut off.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.errors import EmptyFile, NotAModel, TooLarge, TruncatedModel, UnsafeFile

if TYPE_CHECKING:
    import onnx

_PROTOBUF_BYTES = (2 << 30) - 1
_IR_VERSION_TAG = 0x08
"""First byte of every ModelProto that an exporter writes: field 1, ir_version, as a varint."""


def parse_file(path: Path, *, model_bytes: int) -> onnx.ModelProto:
    """The model in a file of up to ``model_bytes``; external data is left where it is."""
    return parse(_read(path, model_bytes))


def parse(data: bytes) -> onnx.ModelProto:
    """The model in ``data``; NotAModel or TruncatedModel where there is none."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

    begins_well = data[:1] == bytes([_IR_VERSION_TAG])
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        if begins_well:
            raise TruncatedModel(
                f"the model stops making sense somewhere in its {len(data):,} bytes",
                hint="Copy or export the file again, whole.",
            ) from error
        raise NotAModel(
            "the file is not an ONNX model", hint="Drop an ONNX model; export one where it is not."
        ) from error
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        if begins_well and not proto.HasField("graph"):
            raise TruncatedModel("the file ends before its graph begins", hint="Copy or export the file again, whole.")
        raise NotAModel("the file holds no ONNX graph", hint="Drop an ONNX model; export one where it is not.")
    return proto


def _read(path: Path, model_bytes: int) -> bytes:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFile(f"{path.name!r} is no plain file", hint="Drop a copy of the file itself.")
    if status.st_size == 0:
        raise EmptyFile("the model file is empty", hint="Copy or export the file again.")
    if status.st_size > model_bytes:
        raise TooLarge(
            f"the model file has {status.st_size:,} bytes, more than {model_bytes:,}",
            hint="Raise limits.model_bytes, or export the model in a smaller type.",
        )
    if status.st_size > _PROTOBUF_BYTES:
        raise TooLarge(
            f"the model file has {status.st_size:,} bytes, more than the 2 GiB that protobuf can hold",
            hint="Export the model with its weights as external data.",
        )
    return path.read_bytes()
