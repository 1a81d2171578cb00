"""Clean-up: the first pass of every recipe. A model comes in as exported and goes out as a graph that can be reasoned about.

Local functions are inlined, the opset is raised to 17 where the converter can, constant subexpressions are computed,
branches with a known condition are taken, padding that a convolution can do itself goes into it, hard-swish spelled out
in four nodes becomes one, gelu gets the order that runtimes fuse, duplicates and dead nodes are dropped, and weights in
Constant nodes become initializers. The
work is done by onnxscript's optimizer, in process, on the same graph objects that every pass uses
(docs/decisions/0002-clean-up-library.md compares it with the others). ONNX Runtime does most of this itself at load, so
the gain is seldom latency: it is start-up time and size, and that quantization and fusion meet the patterns they know.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.errors import PassFailed
from edgeopt.graph import edit, gelu, opset, rearrange, shapes
from edgeopt.protocols import Evidence, Settings
from edgeopt.records import Signature, Target

_OPSET = 17
_HARD_SWISH_OPSET = 14
_ROUNDS = 4
"""Folding uncovers patterns and patterns uncover constants; real models are at rest after two or three rounds."""
_SMALL_ELEMENTS = 4096
"""A ConstantOfShape up to this size is written out: it is the padding or shape arithmetic of an exporter."""
_CHEAP = frozenset(
    {"Add", "Concat", "Div", "Flatten", "Gather", "Mul", "Neg", "Reciprocal", "Reshape", "Slice", "Sqrt", "Squeeze"}
    | {"Sub", "Transpose", "Unsqueeze"}
)
"""Operators that are folded on weights of any size: one sweep over memory, and the result replaces its inputs."""


class Tidy:
    """Inline, raise the opset, fold constants, drop what is dead. Idempotent."""

    name = "tidy"
    lossless = True
    needs_data = False

    def refuse(self, signature: Signature, target: Target) -> str | None:
        """Never: cleaning up is what the published original gets too."""
        del signature, target
        return None

    def apply(self, model: ir.Model, settings: Settings, evidence: Evidence) -> ir.Model:
        """A cleaned-up copy of ``model``. Setting ``opset``: the least version to raise to (0 leaves it alone)."""
        del evidence
        own = edit.copy(model)
        _drop_defaults_from_inputs(own)
        _inline(own)
        own = opset.raised(own, int(settings.get("opset", _OPSET)))
        _optimize(own)
        # branches that were not taken still hold on to the weights they read; a copy knows only what is reachable
        own = edit.copy(own)
        rearrange.fold_rearranged(own)
        edit.prune(own)
        edit.sort_initializers(own)
        edit.restore_interface(own, model)
        edit.strip_marks(own, "pkg.onnxscript")
        return own


def _drop_defaults_from_inputs(model: ir.Model) -> None:
    # before IR version 4 every weight had to be an input too; as inputs they count as unknown and nothing folds
    required = edit.required_inputs(model)
    model.graph.inputs.clear()
    model.graph.inputs.extend(required)
    model.ir_version = max(model.ir_version, 4)


def _inline(model: ir.Model) -> None:
    from onnx_ir.passes import PassError, common

    if not model.functions:
        return
    try:
        common.InlinePass()(model)
    except (PassError, ValueError, RuntimeError) as error:
        raise PassFailed(
            f"the model's local functions cannot be inlined: {str(error)[:200]}",
            hint="Export the model again without custom functions.",
        ) from error


def _optimize(model: ir.Model) -> None:
    from onnx_ir.passes import PassError, common
    from onnxscript.optimizer import optimize_ir
    from onnxscript.rewriter.rules import common as common_rules

    named = shapes.symbols(model)
    try:
        # rewrite rules look at initializers only, so weights in Constant nodes come out first
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        shapes.infer(model)
        optimize_ir(model, num_iterations=_ROUNDS, should_fold=_worth_folding)
        if opset.opset(model) >= _HARD_SWISH_OPSET:
            common_rules.fuse_hardswish_rules().apply_to_model(model)
        gelu.order_gelu(model)
        shapes.forget_invented(model, named)
        shapes.infer(model)
        if shapes.settle_reshapes(model):
            shapes.infer(model)
        shapes.forget_invented(model, named)
        _straighten(model)
        common.DeduplicateHashedInitializersPass(size_limit=1 << 40)(model)
    except (PassError, RuntimeError, ValueError) as error:
        raise PassFailed(
            f"the graph cannot be cleaned up: {str(error.__cause__ or error)[:200]}",
            hint="Run the model through the exporter's own simplifier first.",
        ) from error


def _straighten(model: ir.Model) -> None:
    """A folded Transpose leaves a view of its input, which cannot be hashed and keeps the input alive."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.Tensor) and not tensor.numpy().flags.c_contiguous:
                edit.set_constant(value, tensor.numpy(), dtype=tensor.dtype)


def _worth_folding(node: ir.Node) -> bool | None:
    """Whether to compute a node whose inputs are all constant; None leaves it to the optimizer's own size limits."""
    tensors = [value.const_value for value in node.inputs if value is not None and value.const_value is not None]
    if node.op_type == "ConstantOfShape" and tensors:
        return True if _elements(tensors[0]) <= _SMALL_ELEMENTS else None
    if node.op_type not in _CHEAP or node.domain not in ("", "ai.onnx"):
        return None
    freed = sum(
        v.const_value.nbytes for v in node.inputs if v is not None and v.const_value is not None and len(v.uses()) == 1
    )
    made = node.outputs[0].shape
    if made is None or not made.is_static() or not tensors:
        return None
    size = 1
    for dimension in made.numpy():
        size *= dimension
    return True if size * tensors[0].dtype.itemsize <= freed else None


def _elements(shape: ir.TensorProtocol) -> int:
    size = 1
    for dimension in shape.numpy().reshape(-1):
        size *= int(dimension)
    return size
