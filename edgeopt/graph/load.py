"""The door of the worker: an ONNX file becomes an ``onnx_ir`` model, or an error that says why it cannot.

Stands at the start of ``ingest``. The order matters: sizes before parsing, our own counting and arithmetic before any
library expands or interprets the graph, onnx's checker behind that, shape inference last and in a process of its own.
docs/intake.md lists every check with what it guards against. External weights stay on disk until somebody reads them.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgeopt.errors import EmptyFile, NotAModel, TooLarge, TruncatedModel, UnsafeFile, UnsupportedModel
from edgeopt.graph import infer, limits, operators, weights
from edgeopt.graph.limits import GraphLimits

if TYPE_CHECKING:
    import onnx

_PROTOBUF_BYTES = (2 << 30) - 1
_IR_VERSION_TAG = 0x08
"""First byte of every ModelProto that an exporter writes: field 1, ir_version, as a varint."""


def load(path: Path, *, limits: GraphLimits | None = None) -> ir.Model:
    """The checked model, with types and shapes of inner values where they could be inferred in time.

    Raises the :class:`~edgeopt.errors.InputError` that fits what is wrong with the file.
    """
    given = limits or GraphLimits()
    model = load_checked(path, limits=given)
    infer.infer_shapes(model, timeout_s=given.inference_s)
    return model


def load_checked(path: Path, *, limits: GraphLimits) -> ir.Model:
    """:func:`load` without the shape inference."""
    proto = parse(path, limits=limits)
    _check_parts(proto, path, limits)
    _check_valid(path)
    try:
        model = ir.from_proto(proto)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise UnsupportedModel(
            f"the model cannot be brought into memory: {_first_line(error)}", hint="Export the model again."
        ) from error
    ir.external_data.set_base_dir(model.graph, str(path.parent))
    return model


def parse(path: Path, *, limits: GraphLimits) -> onnx.ModelProto:
    """The file as an unchecked ModelProto, external data left where it is."""
    import onnx
    from google.protobuf.message import DecodeError

    data = _read(path, limits)
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        if data[0] == _IR_VERSION_TAG:
            raise TruncatedModel(
                f"the model stops making sense somewhere in its {len(data):,} bytes",
                hint="Copy or export the file again, whole.",
            ) from error
        raise NotAModel(
            "the file is not an ONNX model", hint="Drop an ONNX model; export one where it is not."
        ) from error
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise NotAModel("the file parses as protobuf but holds no ONNX graph", hint="Drop an ONNX model.")
    return proto


def _read(path: Path, limits: GraphLimits) -> bytes:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFile(f"{path.name!r} is no plain file", hint="Drop a copy of the file itself.")
    if status.st_size == 0:
        raise EmptyFile("the model file is empty", hint="Copy or export the file again.")
    if status.st_size > limits.model_bytes:
        raise TooLarge(
            f"the model file has {status.st_size:,} bytes, more than {limits.model_bytes:,}",
            hint="Raise limits.model_bytes, or export the model in a smaller type.",
        )
    if status.st_size > _PROTOBUF_BYTES:
        raise TooLarge(
            f"the model file has {status.st_size:,} bytes, more than the 2 GiB that protobuf can hold",
            hint="Export the model with its weights as external data.",
        )
    return path.read_bytes()


def _check_parts(proto: onnx.ModelProto, path: Path, given: GraphLimits) -> None:
    """Our own checks, cheapest first; none of them expands anything."""
    limits.check(proto, given)
    operators.check(proto)
    weights.check(proto, path.parent, model_bytes=given.model_bytes)
    own_name = path.name
    for tensor in proto.graph.initializer:
        if any(entry.key == "location" and entry.value == own_name for entry in tensor.external_data):
            raise UnsafeFile(
                f"the tensor {tensor.name!r} names the model file as its data", hint="Save the model again."
            )


def _check_valid(path: Path) -> None:
    """onnx's checker, on the path, so that models over 2 GiB work too."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise UnsupportedModel(
            f"the graph is not valid ONNX: {_first_line(error)}", hint="Export the model again with a current exporter."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
