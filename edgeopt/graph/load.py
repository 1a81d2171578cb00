"""The door of the worker: an ONNX file becomes an ``onnx_ir`` model, or an error that says why it cannot.

Stands at the start of ``ingest``. The order matters: sizes before parsing, our own counting and arithmetic before any
library expands or interprets the graph, onnx's checker behind that, shape inference last and in a process of its own.
docs/intake.md lists every check with what it guards against. External weights stay on disk until somebody reads them.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from edgeopt.errors import UnsupportedModel
from edgeopt.graph import infer, operators, weights
from edgeopt.graph.limits import GraphLimits, check_size
from edgeopt.graph.parse import parse_file


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
    weights.check(proto, path, model_bytes=limits.model_bytes)
    _check_valid(path)
    try:
        model = ir.from_proto(proto)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise UnsupportedModel(
            f"the model cannot be brought into memory: {_first_line(error)}", hint="Export the model again."
        ) from error
    ir.external_data.set_base_dir(model.graph, str(path.parent))
    return model


def _check_valid(path: Path) -> None:
    """Run onnx's checker, on the path, so that models over 2 GiB work too."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise UnsupportedModel(
            f"the graph is not valid ONNX: {_first_line(error)}", hint="Export the model again with a current exporter."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
