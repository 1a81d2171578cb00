"""What a model is made of, layer by layer, for people: which operators carry weights, and in which precision.

Serves ``edgeopt inspect``. A weight behind a DequantizeLinear is stored as what goes into that node, and so is an
activation; that is how a quantized model in QDQ form looks, and what its kernels will compute with.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import onnx_ir as ir

from edgeopt.graph.tensors import constant

_SMALLEST_WEIGHT_BYTES = 64
"""Below lie scales, axes and shapes."""
_LONGEST_CHAIN = 8
_PASS_THROUGH = ("Transpose", "Reshape", "Identity", "Cast")


def layers(model: ir.Model) -> list[dict[str, Any]]:
    """Every node with weights of its own: name, operator, weights and their bytes, activation type."""
    return [layer for graph in model.graphs() for node in graph if (layer := _layer(node)) is not None]


def precisions(model: ir.Model) -> dict[str, int]:
    """Bytes of the layers' weights by type; what several layers share counts once."""
    tensors = {id(tensor): tensor for graph in model.graphs() for node in graph for tensor in _weights(node)}
    total: Counter[str] = Counter()
    for tensor in tensors.values():
        total[_dtype(tensor.dtype)] += tensor.nbytes
    return dict(total.most_common())


def external_files(model: ir.Model) -> list[dict[str, Any]]:
    """The external-data files that the initializers lie in, with how many tensors and bytes each holds."""
    tensors: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                tensors[str(value.const_value.location)] += 1
                sizes[str(value.const_value.location)] += value.const_value.nbytes
    return [{"file": name, "tensors": tensors[name], "bytes": sizes[name]} for name in sorted(tensors)]


def _layer(node: ir.Node) -> dict[str, Any] | None:
    weights = _weights(node)
    if not weights:
        return None
    largest = max(weights, key=lambda tensor: tensor.nbytes)
    return {
        "name": node.name or (node.outputs[0].name if node.outputs else "") or "",
        "operator": node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}",
        "weights": _dtype(largest.dtype),
        "weight_shape": list(largest.shape.numpy()),
        "weight_bytes": sum(tensor.nbytes for tensor in weights),
        "activations": _activations(node),
    }


def _weights(node: ir.Node) -> list[ir.TensorProtocol]:
    """The constants that a node computes with; none for nodes that only carry or change the form of one."""
    if node.op_type in ("Constant", "QuantizeLinear", "DequantizeLinear", *_PASS_THROUGH):
        return []
    found = [tensor for value in node.inputs if (tensor := _weight(value)) is not None]
    return found if sum(tensor.nbytes for tensor in found) >= _SMALLEST_WEIGHT_BYTES else []


def _weight(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant that a node reads, looking through dequantization and changes of its form."""
    for _ in range(_LONGEST_CHAIN):
        found = constant(value)
        if found is not None or value is None:
            return found
        node = value.producer()
        if node is None or node.op_type not in ("DequantizeLinear", *_PASS_THROUGH) or not node.inputs:
            return None
        value = node.inputs[0]
    return None


def _activations(node: ir.Node) -> str:
    """Type of the first input that is not constant, as it is before it is dequantized."""
    for value in node.inputs:
        if value is not None and _weight(value) is None:
            producer = value.producer()
            dequantized = producer is not None and producer.op_type == "DequantizeLinear"
            source = producer.inputs[0] if dequantized and producer is not None else value
            dtype = source.dtype if source is not None else None
            return _dtype(dtype) if dtype is not None else "unknown"
    return "unknown"


def _dtype(dtype: ir.DataType) -> str:
    return "string" if dtype is ir.DataType.STRING else dtype.numpy().name
