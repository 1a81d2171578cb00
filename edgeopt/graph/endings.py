"""How a graph ends: the operators that lead to each output, which tell a classifier from an embedding.

Asked by ``stages.forms`` (how candidates are judged) and by ``training.losses`` (what a student is taught): both must see the same
thing in the same model. In comes a graph, out go types of operators; names of models are never looked at.
"""

from __future__ import annotations

import onnx_ir as ir

_PASSED_THROUGH = frozenset(
    {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "DequantizeLinear", "QuantizeLinear"}
)
_CLASSIFIER_ENDS = frozenset({"Gemm", "MatMul", "FusedMatMul"})
_SPATIAL_MEANS = frozenset({"GlobalAveragePool", "ReduceMean"})


def final_operators(model: ir.Model, *, depth: int = 4) -> dict[str, tuple[str, ...]]:
    """For each output the operator types that lead to it, last first; reshapes and additions of constants are skipped."""
    return {str(output.name): tuple(_walk_back(output, depth)) for output in model.graph.outputs}


def like_classifier(end: tuple[str, ...]) -> bool:
    """A linear layer, or a 1x1 convolution averaged over space."""
    return bool(end) and (end[0] in _CLASSIFIER_ENDS or (end[0] in _SPATIAL_MEANS and "Conv" in end[1:3]))


def _walk_back(value: ir.Value | None, depth: int) -> list[str]:
    types: list[str] = []
    while value is not None and len(types) < depth:
        node = value.producer()
        if node is None:
            break
        skipped = node.op_type in _PASSED_THROUGH or (node.op_type == "Add" and _adds_constant(node))
        if not skipped:
            types.append(node.op_type)
        value = next((item for item in node.inputs if item is not None and not _is_constant(item)), None)
    return types


def _adds_constant(node: ir.Node) -> bool:
    return any(item is not None and _is_constant(item) for item in node.inputs)


def _is_constant(value: ir.Value) -> bool:
    node = value.producer()
    return value.is_initializer() or (node is not None and node.op_type == "Constant")
