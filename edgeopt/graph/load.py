"""The door of the worker: an ONNX file becomes an ``onnx_ir`` model, or an error that says why it cannot.

Stands at the start of ``ingest``. The order matters: sizes before parsing, our own counting and arithmetic before any
library expands or interprets the graph, onnx's checker behind that, shape inference last and in a process of its own.
docs/intake.md lists every check with what it guards against. External weights stay on disk until somebody reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgeopt.errors import UnsupportedModel
from edgeopt.graph import infer, mapped, operators, walk, weights
from edgeopt.graph.limits import GraphLimits, check_size
from edgeopt.graph.parse import parse_file
from edgeopt.graph.skeleton import skeleton

if TYPE_CHECKING:
    import onnx


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
    proto = parse_file(path, model_bytes=limits.model_bytes)
    check_size(proto, limits)
    operators.check(proto)
    _refuse_sparse(proto)
    weights.check(proto, path, model_bytes=limits.model_bytes)
    shapeless = bool(_shapeless(proto))
    if not shapeless:
        _check_valid(str(path))
    with _translated():
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, str(path.parent))
        mapped.share_mappings(model)
        bare = _with_shapes(model) if shapeless else None
    if bare is not None:
        _check_valid(bare)
    return model


def _refuse_sparse(proto: onnx.ModelProto) -> None:
    """onnx_ir leaves sparse initializers out without a word; the graph would be missing its weights."""
    for sparse in walk.sparse_initializers(proto):
        raise UnsupportedModel(
            f"the weight {sparse.values.name!r} is stored as a sparse initializer",
            hint="Store it dense: export the model again, or make it dense with onnx's helpers.",
        )


def _check_valid(subject: str | onnx.ModelProto) -> None:
    """Run onnx's checker; on a path, so that models over 2 GiB work too, wherever that can be."""
    import onnx

    try:
        onnx.checker.check_model(subject)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise UnsupportedModel(
            f"the graph is not valid ONNX: {_first_line(error)}", hint="Export the model again with a current exporter."
        ) from error


@contextmanager
def _translated() -> Iterator[None]:
    """What onnx_ir raises on graphs that the checker has not seen, or passes."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:  # SerdeError is a RuntimeError
        raise UnsupportedModel(
            f"the graph is not valid ONNX: {_first_line(error.__cause__ or error)}",
            hint="Export the model again with a current exporter.",
        ) from error


def _with_shapes(model: ir.Model) -> onnx.ModelProto:
    """The model's skeleton with some shape on every input and output.

    The checker wants one, although runtimes do not and exporters leave it out; it does not look at what it says.
    """
    bare = skeleton(model)
    for value in _shapeless(bare):
        value.type.tensor_type.shape.SetInParent()
    return bare


def _shapeless(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs and outputs that are tensors of no stated rank."""
    return [
        value
        for value in (*proto.graph.input, *proto.graph.output)
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")
    ]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
