"""What must hold after every pass; ``pipeline`` calls :func:`verify` behind each of them.

A pass that breaks a graph is out before a runtime sees it, with a reason that names the node, instead of a crash or a
silently different model three stages later.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.errors import PassFailed
from edgeopt.graph import edit
from edgeopt.graph.skeleton import skeleton


def verify(model: ir.Model, *, like: ir.Model | None = None) -> None:
    """Raise :class:`~edgeopt.errors.PassFailed` unless ``model`` is valid ONNX and has the interface of ``like``.

    Checked: names, order, dtypes and dimensions (symbolic names included) of inputs and outputs; one producer a name;
    producers before their readers; an opset import for every domain in use; what onnx's own checker finds.
    """
    if like is not None:
        _same_interface(model, like)
    _opsets_imported(model)
    _single_assignment(model)
    _checker_valid(model)


def interface(model: ir.Model) -> tuple[tuple[str, str, str], ...]:
    """Inputs and outputs as (name, type, dimensions), in order; equal for models that a caller cannot tell apart.

    An input with a default (an initializer that is also an input, as exporters wrote before IR version 4) is a weight,
    not an input: no runtime asks for it.
    """
    return tuple(
        (value.name or "", repr(value.type), "?" if value.shape is None else ",".join(map(_dimension, value.shape)))
        for value in (*edit.required_inputs(model), *model.graph.outputs)
    )


def _dimension(dimension: int | ir.SymbolicDim) -> str:
    return str(dimension) if isinstance(dimension, int) else (dimension.value or "?")


def _same_interface(model: ir.Model, like: ir.Model) -> None:
    ours, theirs = interface(model), interface(like)
    outputs = (len(model.graph.outputs), len(like.graph.outputs))
    if ours != theirs or outputs[0] != outputs[1]:
        changed = [f"{new} was {old}" for new, old in zip(ours, theirs, strict=False) if new != old]
        raise PassFailed(
            f"the interface changed: {len(ours)} inputs and outputs were {len(theirs)}; {'; '.join(changed[:3])}",
            hint="Report the model: a pass must keep names, order, types and dimensions.",
        )


def _opsets_imported(model: ir.Model) -> None:
    imported = {"" if domain == "ai.onnx" else domain for domain in model.graph.opset_imports}
    for graph in model.graphs():
        for node in graph:
            domain = "" if node.domain == "ai.onnx" else node.domain
            if domain not in imported:
                raise PassFailed(
                    f"node {node.name!r} is of domain {domain!r}, which the model does not import",
                    hint="Report the model: a pass forgot an opset import.",
                )


def _single_assignment(model: ir.Model) -> None:
    """One producer a name in each graph; onnx's checker overlooks an output that shadows an initializer."""
    for graph in model.graphs():
        seen = {value.name for value in graph.inputs} | set(graph.initializers)
        for node in graph:
            for value in node.outputs:
                if value.name and value.name in seen:
                    raise PassFailed(
                        f"the value {value.name!r} is produced twice, the second time by {node.op_type} {node.name!r}",
                        hint="Report the model: a pass made a name that was taken.",
                    )
                seen.add(value.name)


def _checker_valid(model: ir.Model) -> None:
    import onnx

    try:
        onnx.checker.check_model(skeleton(model))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:  # RuntimeError: copying an unsorted graph
        raise PassFailed(
            f"the graph is not valid ONNX: {str(error).strip().splitlines()[0][:300]}",
            hint="Report the model: a pass left a broken graph behind.",
        ) from error
