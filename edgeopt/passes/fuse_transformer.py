"""Transformer fusion: attention, skip connections and activations as the single operators that ONNX Runtime has kernels for.

In: an encoder as exporters write it, attention spelled out in a dozen nodes. Out: com.microsoft Attention or
MultiHeadAttention, SkipLayerNormalization and BiasGelu, with the numbers of heads and sizes read off the graph. The rules
are onnxscript's, which work on the graph in memory and see through what today's exporters write; onnxruntime's own
script optimizer finds no attention there (docs/decisions/0003-transformer-fusion.md). ONNX Runtime fuses some of this
itself at load, never attention.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.errors import PassFailed
from edgeopt.graph import edit, opset, shapes, tensors
from edgeopt.protocols import Evidence, Settings
from edgeopt.records import Signature, Target

_OPSET = 18
"""The rules know ReduceMean with its axes as an input, which came with 18."""
_DOMAIN = "com.microsoft"
_KERNELS = frozenset(
    {"Attention", "BiasGelu", "FastGelu", "FusedMatMul", "Gelu", "GroupQueryAttention", "MultiHeadAttention"}
    | {"QuickGelu", "RotaryEmbedding", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
)
"""Contributed operators with a CPU kernel; the rules can make others (GroupNorm), which would not load."""
_WORTH = _KERNELS - {"FusedMatMul", "Gelu", "QuickGelu", "FastGelu", "BiasGelu"}
"""What ONNX Runtime does not make by itself at load: without one of these the pass has changed nothing."""


class FuseTransformer:
    """Fuse attention and what surrounds it into ONNX Runtime's transformer operators. Idempotent by refusing twice."""

    name = "fuse_transformer"
    lossless = True
    needs_data = False

    def refuse(self, signature: Signature, target: Target) -> str | None:
        """Only for ONNX Runtime on a CPU, and only where there is attention that is not fused yet."""
        if target.name not in ("cpu", "arm"):
            return f"the fused operators are ONNX Runtime's, and the target is {target.name}"
        if signature.quantized:
            return "the model is quantized, and the fused operators are float"
        if not signature.count("Softmax", "Attention"):
            return "the model has no attention: there is no Softmax in it"
        if signature.count("MatMul", "Gemm") < 2:
            return "the model has no attention: it multiplies no matrices"
        return None

    def apply(self, model: ir.Model, settings: Settings, evidence: Evidence) -> ir.Model:
        """A copy with everything fused that matches; PassFailed where nothing does."""
        del settings, evidence
        before = _contributed(model)
        own = opset.raised(edit.copy(model), _OPSET)
        _constants_second(own)
        own = _fuse(own)
        fresh = {kind: n - before.get(kind, 0) for kind, n in _contributed(own).items() if n > before.get(kind, 0)}
        if unknown := sorted(set(fresh) - _KERNELS):
            raise PassFailed(
                f"the fusion made {', '.join(unknown)}, for which ONNX Runtime has no CPU kernel",
                hint="Leave fuse_transformer out of the recipe.",
            )
        if not set(fresh) & _WORTH:
            raise PassFailed(
                f"no attention or skip connection matched (matched: {', '.join(sorted(fresh)) or 'nothing'})",
                hint="Leave fuse_transformer out of the recipe.",
            )
        own.graph.opset_imports.setdefault(_DOMAIN, 1)
        edit.restore_interface(own, model)
        edit.strip_marks(own, "pkg.onnxscript")
        edit.sort_initializers(own)
        return own


def _contributed(model: ir.Model) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in edit.nodes(model):
        if node.domain not in ("", "ai.onnx", "ai.onnx.ml"):
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def _constants_second(model: ir.Model) -> None:
    """Write ``bias + product`` as ``product + bias``: the rules for biases know that order only."""
    for node in edit.nodes(model):
        if node.op_type not in ("Add", "Mul") or node.domain not in ("", "ai.onnx"):
            continue
        first, second = node.inputs
        if tensors.constant(first) is not None and tensors.constant(second) is None:
            node.replace_input_with(0, second)
            node.replace_input_with(1, first)


def _fuse(model: ir.Model) -> ir.Model:
    from onnx_ir.passes import PassError
    from onnxscript.optimizer import optimize_ir
    from onnxscript.rewriter.ort_fusions import attention, mha_bias, optimize_for_ort
    from onnxscript.rewriter.rules.fusion import _layer_norm

    known = shapes.symbols(model)
    try:
        shapes.infer(model)
        _layer_norm.fuse_layer_normalization(model)
        optimize_for_ort(model)
        # widening a padding mask reads the query's length off the query itself, which kept its bias from being fused
        if shapes.read_sizes_from_inputs(model):
            mha_bias.fuse_mha_bias(model)
            attention.fuse_attention(model)
            optimize_ir(model)
        shapes.forget_invented(model, known)
    except (PassError, RuntimeError, ValueError, AttributeError, TypeError) as error:
        # the rules look deep into attributes and shapes of what they match, and trip over what they do not expect
        raise PassFailed(
            f"the fusion rules cannot read this graph: {str(error.__cause__ or error)[:200]}",
            hint="Leave fuse_transformer out of the recipe.",
        ) from error
    own = edit.copy(model)
    edit.prune(own)
    return own
