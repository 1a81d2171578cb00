"""MatMul and Add on matrices as one Gemm, the form whose integer kernel takes the bias and an 8-bit output.

Stands under static quantization. ONNX Runtime makes the same fusion at load, but before it looks for QuantizeLinear pairs:
a MatMul that was quantized alone then becomes a float Gemm with pairs around it, twice as slow as before.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph import edit, tensors
from edgeopt.graph.qdq import QdqWriter

_SAME_RANK = ("Cast", "Relu", "Clip", "LeakyRelu", "Elu", "Tanh", "Sigmoid", "Softmax", "Identity", "Gelu", "Gemm")


def fuse_gemm(model: ir.Model) -> int:
    """Turn every ``Add(MatMul(x, w), b)`` with a matrix x and constant w and b into a Gemm, in place; says how many."""
    matrices = {value for value in model.graph.inputs if _is_matrix(value)}
    writer, fused = QdqWriter(model), 0
    for node in list(model.graph):
        if node.domain not in ("", "ai.onnx") or not node.inputs:
            continue
        if node.op_type == "MatMul" and node.inputs[0] in matrices and (adder := _bias_adder(node)) is not None:
            matrices.add(_replace(writer, node, *adder))
            fused += 1
        elif node.op_type in _SAME_RANK and node.inputs[0] in matrices:
            matrices.add(node.outputs[0])
        matrices.update(value for value in node.outputs if _is_matrix(value))
    return fused


def _is_matrix(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.rank() == 2


def _bias_adder(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The Add behind ``node`` that is nothing but its bias, and the bias."""
    weight, uses = tensors.constant(node.inputs[1]), list(node.outputs[0].uses())
    if weight is None or weight.dtype != ir.DataType.FLOAT or len(weight.shape) != 2 or len(uses) != 1:
        return None
    adder: ir.Node = uses[0].node
    if adder.op_type != "Add" or adder.graph is not node.graph or node.outputs[0].is_graph_output():
        return None
    bias = adder.inputs[1 - uses[0].idx]
    tensor = tensors.constant(bias)
    # One output only: a bias of one element could as well be a scalar that is meant to broadcast.
    if bias is None or tensor is None or tensor.size != weight.shape[1] or tensor.size == 1:
        return None
    return (adder, bias) if tuple(tensor.shape) in ((tensor.size,), (1, tensor.size)) else None


def _replace(writer: QdqWriter, node: ir.Node, adder: ir.Node, bias: ir.Value) -> ir.Value:
    old = adder.outputs[0]
    values = np.asarray(tensors.array(bias))
    if values.ndim != 1:
        bias = writer.constant(f"{bias.name}_row", values.reshape(-1))
    gemm = ir.Node("", "Gemm", [*node.inputs, bias], name=node.name)
    new = gemm.outputs[0]
    new.name, new.type, new.shape = f"{old.name}_gemm", old.type, old.shape
    edit.insert_after(adder, gemm)
    edit.replace_value(old, new)
    edit.remove(adder)
    edit.remove(node)
    return new
