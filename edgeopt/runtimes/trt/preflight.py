"""What TensorRT will refuse, found in the ONNX file before a minute is spent on it, and what it misreads, put right.

Stands before ``build``. In comes the model's file and the GPUs, out goes the file to parse: the same, or a copy beside it whose open dimensions have names of
their own. TensorRT takes equal names for equal lengths, silently turns float64 inputs into float32, takes an empty file for a model, and names the
tensor but not the file when external data is missing; so these are looked at here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.errors import CompileFailed, InputError
from edgeopt.graph.parse import parse_file

if TYPE_CHECKING:
    import onnx

    from edgeopt.runtimes.trt.order import Range

_INTERFACE = frozenset({"FLOAT", "FLOAT16", "BFLOAT16", "INT32", "INT64", "BOOL", "UINT8", "INT8", "FLOAT8E4M3FN"})
_INTEGER_KERNELS = frozenset(
    {"DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulNBits"}
)
_NEEDS = {"INT4": 8.0, "FLOAT8E4M3FN": 8.9}
"""The least compute capability that has the type, as RTX says."""
_FLOAT_PRODUCTS = frozenset({"Gemm", "MatMul"})
_PRODUCTS = _FLOAT_PRODUCTS | {"Conv", "ConvTranspose"}
_TURING = 7.5
_SUFFIX = ".trt"
_LARGEST_BYTES = (2 << 30) - 1
"""What one protobuf message may hold; larger models keep their weights in a file of their own."""
_OPERATOR_HINT = "Export the model without this operator, or use the target cpu."


def prepare(model: Path, *, capabilities: Sequence[float] = (), profiles: Sequence[Sequence[Range]] = ()) -> Path:
    """The file for TensorRT to parse; ``model`` itself unless its dimensions had to be renamed.

    Raises :class:`~edgeopt.errors.CompileFailed` for what cannot become an engine for ``capabilities``.
    """
    proto = _read(model)
    for check in (_check_external, _check_interface, _check_operators, _check_pairs):
        check(proto, model)
    _check_types(proto, capabilities)
    if not _rename_dimensions(proto, profiles):
        return model
    renamed = model.with_name(f"{model.stem}{_SUFFIX}{model.suffix}")
    renamed.write_bytes(proto.SerializeToString())
    return renamed


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of a model only before it is an engine."""

    outputs: tuple[str, ...]
    """In order: an engine need not keep it."""
    quantized_products: int
    """Convolutions and matrix products whose operands both come out of int8 codes."""


def kept(model: Path) -> Kept:
    """What to remember of ``model``."""
    graph = _read(model).graph
    real = _out_of_int8(graph)
    products = [node for node in _nodes(graph) if node.op_type in _PRODUCTS]
    quantized = sum(set(node.input[:2]) <= real for node in products)
    return Kept(tuple(output.name for output in graph.output), quantized)


def _out_of_int8(graph: onnx.GraphProto) -> set[str]:
    """What DequantizeLinear makes of int8 codes, constant ones or those of an activation: both have a zero point of their type, or are constants."""
    int8 = {tensor.name for tensor in _tensors(graph) if _type_name(tensor.data_type) == "INT8"}
    pairs = [node for node in _nodes(graph) if node.op_type == "DequantizeLinear"]
    return {
        node.output[0] for node in pairs if node.input[0] in int8 or (len(node.input) > 2 and node.input[2] in int8)
    }


def _read(model: Path) -> onnx.ModelProto:
    try:
        proto = parse_file(model, model_bytes=_LARGEST_BYTES)
    except InputError as error:
        raise CompileFailed(f"{model.name}: {error.message}", hint=error.hint) from error
    if not proto.graph.output:
        raise CompileFailed(f"{model.name} has no outputs", hint="Export the model again.")
    return proto


def _check_external(proto: onnx.ModelProto, model: Path) -> None:
    for tensor in _tensors(proto.graph):
        place = {entry.key: entry.value for entry in tensor.external_data}.get("location")
        if place and not (model.parent / place).is_file():
            raise CompileFailed(
                f"the weights of {tensor.name!r:.120} lie in {place!r:.120}, which is not beside {model.name}",
                hint="Put the external-data file beside the model.",
            )


def _check_interface(proto: onnx.ModelProto, _model: Path) -> None:
    weights = {tensor.name for tensor in proto.graph.initializer}
    values = [*(value for value in proto.graph.input if value.name not in weights), *proto.graph.output]
    for value in values:
        kind = _type_name(value.type.tensor_type.elem_type)
        if not value.type.HasField("tensor_type") or kind not in _INTERFACE:
            raise CompileFailed(
                f"{value.name!r:.120} is {kind.lower()}, which TensorRT neither takes nor gives",
                hint="Export the model with float32, float16 or int32 inputs and outputs.",
            )


def _check_operators(proto: onnx.ModelProto, _model: Path) -> None:
    for node in _nodes(proto.graph):
        if node.op_type in _INTEGER_KERNELS:
            raise _refused(node, "computes in integers; TensorRT takes QuantizeLinear and DequantizeLinear only")
        if node.domain not in ("", "ai.onnx") and not node.domain.startswith(("trt", "TRT")):
            raise _refused(node, f"is of {node.domain}, which TensorRT does not have", hint=_OPERATOR_HINT)


def _check_pairs(proto: onnx.ModelProto, _model: Path) -> None:
    """Symmetric int8, int4 or fp8 codes with scales above zero, and nothing but DequantizeLinear reads constant codes."""
    import onnx

    constants = {tensor.name: tensor for tensor in _tensors(proto.graph)}
    codes = {name for name, tensor in constants.items() if _type_name(tensor.data_type) in ("INT8", "INT4")}
    for node in _nodes(proto.graph):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            if read := [name for name in node.input if name in codes]:
                raise _refused(node, f"reads the 8-bit constant {read[0]!r:.80}, which only DequantizeLinear may")
            continue
        scale = constants.get(node.input[1])
        if scale is not None and not scale.external_data and not (onnx.numpy_helper.to_array(scale) > 0).all():
            raise _refused(node, "has a scale that is not above zero")
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is not None and not zero.external_data and onnx.numpy_helper.to_array(zero).astype(float).any():
            raise _refused(node, "has a zero point that is not zero; TensorRT takes symmetric codes only")
        kind = constants.get(node.input[0]) or zero
        if kind is not None and _type_name(kind.data_type) in ("INT32", "INT16", "UINT16", "UINT4"):
            raise _refused(node, f"has {_type_name(kind.data_type).lower()} codes; TensorRT takes int8, int4 and fp8")


def _check_types(proto: onnx.ModelProto, capabilities: Sequence[float]) -> None:
    lowest = min(capabilities, default=None)
    if lowest is None:
        return
    for tensor in _tensors(proto.graph):
        kind = _type_name(tensor.data_type)
        if lowest < _NEEDS.get(kind, 0.0):
            raise CompileFailed(
                f"{tensor.name!r:.120} is {kind.lower()}, which compute capability {lowest:g} does not have",
                hint=f"Leave out the compute capabilities below {_NEEDS[kind]:g}, or this technique.",
            )
    if lowest <= _TURING:
        _check_turing(proto)


def _check_turing(proto: onnx.ModelProto) -> None:
    floats = {tensor.name for tensor in _tensors(proto.graph) if _type_name(tensor.data_type) == "FLOAT"}
    for node in _nodes(proto.graph):
        if node.op_type in _FLOAT_PRODUCTS and node.input[1] in floats:
            raise _refused(
                node,
                "multiplies matrices in float32, which TensorRT for RTX does not on compute capability 7.5",
                hint="Leave compute capability 7.5 out, or cast the model to float16.",
            )


def _rename_dimensions(proto: onnx.ModelProto, profiles: Sequence[Sequence[Range]]) -> bool:
    """Give each open dimension that shares its name with one of another length a name of its own; True where any did."""
    lengths = {each.input: _spans(each, profiles) for profile in profiles for each in profile}
    seen: dict[str, object] = {}
    taken = {dim.dim_param for value in proto.graph.input for dim in value.type.tensor_type.shape.dim}
    changed = False
    for value in proto.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            length = lengths.get(value.name, {}).get(axis)
            if not dim.dim_param or length is None:
                continue
            if seen.setdefault(dim.dim_param, length) != length:
                dim.dim_param = _fresh(f"{dim.dim_param}_{axis}", taken)
                changed = True
    if changed:
        # what was inferred inside still has the old names
        del proto.graph.value_info[:]
    return changed


def _spans(each: Range, profiles: Sequence[Sequence[Range]]) -> dict[int, object]:
    """The lengths that each axis of an input takes, over all profiles."""
    ranges = [other for profile in profiles for other in profile if other.input == each.input]
    count = len(each.typical)
    return {axis: tuple((r.least[axis], r.typical[axis], r.most[axis]) for r in ranges) for axis in range(count)}


def _fresh(base: str, taken: set[str]) -> str:
    number, name = 0, base
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    return name


def _refused(node: onnx.NodeProto, why: str, *, hint: str = "") -> CompileFailed:
    name = f" at node {node.name!r:.120}" if node.name else ""
    usual = "Quantize the float model with symmetric=True, or use the target cpu."
    return CompileFailed(f"{node.op_type}{name} {why}", hint=hint or usual)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Constants of the graph and of the bodies in it, under the names that nodes read them by."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            if node.op_type == "Constant" and attribute.name == "value":
                attribute.t.name = node.output[0]
                yield attribute.t


def _type_name(number: int) -> str:
    import onnx

    names: Mapping[int, str] = {value: name for name, value in onnx.TensorProto.DataType.items()}
    return names.get(number, "UNDEFINED")
