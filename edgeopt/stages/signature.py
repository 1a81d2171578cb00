"""What a model is, without the model: inputs, outputs, operators, states, size.

Between ``ingest``, which loads, and ``plan``, which only ever sees this record. An initializer that is also a graph
input is a default value, not an input. Dimensions keep their symbolic names, since equal names promise equal lengths.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from edgeopt.errors import UnsupportedModel
from edgeopt.graph import compact, edit, tensors
from edgeopt.graph.tensors import parameter_bytes
from edgeopt.policy import Dim
from edgeopt.records import Signature, TensorSpec
from edgeopt.stages.states import find_states

UNKNOWN_DIM = "?"

_QUANTIZED_OPERATORS = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"),
        *("com.microsoft::QGemm", "com.microsoft::MatMulNBits", "com.microsoft::MatMulIntegerToFloat"),
        *("com.microsoft::QAttention", "com.microsoft::DynamicQuantizeMatMul", "com.microsoft::DynamicQuantizeLSTM"),
        *("com.microsoft::QMoE", "com.microsoft::MatMulBnb4", "com.microsoft::GatherBlockQuantized"),
    }
)


def signature_of(model: ir.Model, *, format: str = "onnx") -> Signature:  # noqa: A002  # the record's own word
    """The signature of a checked model.

    Raises :class:`~edgeopt.errors.UnsupportedModel` for inputs that no array can be made for: sequences, maps,
    optionals, strings, and tensors of unknown type or rank.
    """
    initializers = model.graph.initializers
    inputs = tuple(_input(value) for value in model.graph.inputs if value.name not in initializers)
    outputs = tuple(_output(value) for value in model.graph.outputs)
    operators = _operators(model)
    return Signature(
        format=format,
        opset=model.opset_imports.get("", 0),
        inputs=inputs,
        outputs=outputs,
        operators=tuple(sorted(operators.items())),
        states=find_states(inputs, outputs),
        parameter_bytes=parameter_bytes(model),
        quantized=any(_is_quantized(name) for name in operators),
        zeros=compact.zeros(model.graph),
        half=any(_is_half(value) for node in edit.nodes(model) for value in node.inputs),
    )


def _operators(model: ir.Model) -> Counter[str]:
    bodies = (*model.graphs(), *model.functions.values())
    return Counter(_operator_name(node) for body in bodies for node in body)


def _operator_name(node: ir.Node) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _is_half(value: ir.Value | None) -> bool:
    found = tensors.constant(value)
    return found is not None and found.dtype == ir.DataType.FLOAT16


def _is_quantized(operator: str) -> bool:
    return operator in _QUANTIZED_OPERATORS or operator.removeprefix("com.microsoft::").startswith("QLinear")


def _input(value: ir.Value) -> TensorSpec:
    name = value.name or ""
    if not isinstance(value.type, ir.TensorType) or value.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        raise UnsupportedModel(
            f"the input {name!r} is {_type_name(value)}, which is neither a tensor of numbers nor of truth values",
            hint="Export the model with plain numeric tensors as inputs.",
        )
    if value.shape is None:
        raise UnsupportedModel(
            f"the input {name!r} does not say how many dimensions it has",
            hint=f"State it in the job file: inputs: {{{name}: {{shape: [...]}}}}.",
        )
    return TensorSpec(name=name, dtype=_dtype_name(value), shape=dimensions(value.shape))


def _output(value: ir.Value) -> TensorSpec:
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        raise UnsupportedModel(
            f"the output {value.name!r} is {_type_name(value)}, not a tensor",
            hint="Export the model with plain tensors as outputs (skl2onnx: options zipmap=False).",
        )
    # nobody feeds an output, so an unknown rank is only unknown
    shape = (UNKNOWN_DIM,) if value.shape is None else dimensions(value.shape)
    return TensorSpec(name=value.name or "", dtype=_dtype_name(value), shape=shape)


def dimensions(shape: ir.Shape) -> tuple[Dim, ...]:
    """Lengths and symbolic names; ``"?"`` where the model gives neither, or a length that cannot be."""
    return tuple(
        (dim if dim > 0 else UNKNOWN_DIM) if isinstance(dim, int) else (dim.value or UNKNOWN_DIM) for dim in shape
    )


def _dtype_name(value: ir.Value) -> str:
    if value.dtype is None or value.dtype is ir.DataType.UNDEFINED:
        return "object"
    return value.dtype.numpy().name


def _type_name(value: ir.Value) -> str:
    if value.type is None:
        return "of no type"
    if isinstance(value.type, ir.TensorType):
        return f"a tensor of {value.type.dtype.name}"
    return f"a {type(value.type).__name__.removesuffix('Type').lower()}"
