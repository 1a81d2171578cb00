"""Half precision: weights stored as float16, or the whole graph computed in it.

Setting ``mode``:

``weights``  float32 weights are stored as float16 with a Cast in front of their readers. Half the bytes on disk; ONNX
             Runtime folds the Cast at load, so arithmetic and latency are the original's.
``full``     convolutions, matrix products and what lies between them compute in float16; inputs, outputs and operators
             that sum, exponentiate or normalize stay float32 (TensorRT takes Softmax along). Only where the device computes in float16: elsewhere ONNX
             Runtime casts every value there and back, which was 1.3 times slower on EfficientNet.

A weight is cast only if it survives: nothing overflows, and the rounding error's power stays under a millionth of the
weight's own. Operators that meet a number beyond float16 (attention masks of -3.4e38) stay float32, with their readers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.errors import PassFailed
from edgeopt.graph import edit, shapes, tensors
from edgeopt.graph.naming import Names
from edgeopt.protocols import Evidence, Settings
from edgeopt.records import Signature, Target

_LEAST_ELEMENTS = 256
"""Smaller constants save nothing and are often scales or bounds that want their digits."""
_MOST_NOISE = 1e-6
"""Power of the rounding error over the weight's own; float16 gives about 1e-7 where nothing is subnormal."""
_HALF_ARITHMETIC = (frozenset({"asimdhp", "fphp"}), frozenset({"avx512_fp16"}))
_COMPUTES = frozenset(
    {"Add", "AveragePool", "Clip", "Conv", "ConvTranspose", "Div", "Gemm", "HardSigmoid", "HardSwish", "LeakyRelu"}
    | {"MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "PRelu", "Relu", "Sigmoid", "Sub", "Tanh"}
)
"""Computed in float16 by mode ``full``; what is not listed here or below stays float32."""
_MOVES = frozenset(
    {"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "SpaceToDepth"}
    | {"Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""These only move values: they take whichever precision comes in."""


class CastFp16:
    """Store weights, or compute, in float16."""

    name = "cast_fp16"
    lossless = False
    needs_data = False

    def refuse(self, signature: Signature, target: Target) -> str | None:
        """Nothing to win where the weights are integers already."""
        del target
        return "the model is quantized already" if signature.quantized else None

    def apply(self, model: ir.Model, settings: Settings, evidence: Evidence) -> ir.Model:
        """A copy in half precision; PassFailed where the device cannot, or where no weight or operator can."""
        mode = settings.get("mode", "weights")
        own = edit.copy(model)
        if mode == "weights":
            if not _store_weights(own):
                raise PassFailed(
                    f"no float32 weight of {_LEAST_ELEMENTS} elements or more survives float16",
                    hint="Leave cast_fp16 out of the recipe.",
                )
        elif mode == "full":
            _require_half_arithmetic(evidence.target)
            if not _compute_in_half(own, _COMPUTES | _computed_by(evidence.target)):
                raise PassFailed(
                    "no operator of the main graph can compute in float16",
                    hint="Use cast_fp16 with mode=weights.",
                )
        else:
            raise PassFailed(f"cast_fp16 has no mode {mode!r}", hint="Set mode to weights or full.")
        edit.prune(own)
        edit.restore_interface(own, model)
        return own


def computes_in_half(target: Target) -> bool:
    """Whether ``target`` has float16 arithmetic: a GPU, an ARMv8.2 core with asimdhp, an x86 core with avx512_fp16."""
    features = set(target.features)
    return target.name.startswith("tensorrt") or any(needed <= features for needed in _HALF_ARITHMETIC)


def _computed_by(target: Target) -> frozenset[str]:
    """TensorRT fuses attention, Softmax included, and fails where a Cast stands between it and the product."""
    return frozenset({"Softmax"}) if target.name.startswith("tensorrt") else frozenset()


def _require_half_arithmetic(target: Target) -> None:
    if not computes_in_half(target):
        raise PassFailed(
            f"{target.device} does not compute in float16 (features: {', '.join(target.features[:6]) or 'none known'})",
            hint="Use cast_fp16 with mode=weights.",
        )


def survives(weights: NDArray[Any]) -> bool:
    """Whether float16 keeps ``weights``: nothing becomes infinite, and little drowns in rounding."""
    with np.errstate(over="ignore", invalid="ignore"):
        error = weights.astype(np.float16).astype(np.float32) - weights
    if not np.isfinite(error).all():
        return False
    return _power(error) <= _MOST_NOISE * _power(weights)


def _power(data: NDArray[Any]) -> float:
    return float(np.square(data).sum(dtype=np.float64))


def _store_weights(model: ir.Model) -> int:
    """Mode ``weights``; returns how many were cast."""
    names, cast = Names(model), 0
    for graph in model.graphs():
        for name, value in list(graph.initializers.items()):
            tensor = value.const_value
            if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _LEAST_ELEMENTS:
                continue
            if value.is_graph_input() or value.is_graph_output() or not survives(tensor.numpy()):
                continue
            half = edit.add_initializer(graph, names.fresh(f"{name}_fp16"), tensor.numpy().astype(np.float16))
            del graph.initializers[name]
            value.name = names.fresh(f"{name}_removed")
            node = _cast(half, ir.DataType.FLOAT, name, names)
            value.replace_all_uses_with(node.outputs[0])
            _put_first(graph, node)
            cast += 1
    return cast


def _put_first(graph: ir.Graph, node: ir.Node) -> None:
    if len(graph):
        graph.insert_before(graph[0], node)
    else:
        graph.append(node)


def _cast(value: ir.Value, to: ir.DataType, name: str, names: Names) -> ir.Node:
    node = ir.node("Cast", [value], {"to": int(to)}, name=names.fresh(f"cast_{value.name}"))
    node.outputs[0].name = name
    node.outputs[0].type = ir.TensorType(to)
    node.outputs[0].shape = value.shape
    return node


class _Precision:
    """Mode ``full`` while it walks the main graph in order: which values are float16, and the Casts made so far."""

    def __init__(self, model: ir.Model, computes: frozenset[str]) -> None:
        self.graph, self.names = model.graph, Names(model)
        self._takes = computes | _MOVES
        self.half: set[ir.Value] = set()
        self.beyond: set[ir.Value] = set()
        """Values that may hold numbers which float16 lacks."""
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def visit(self, node: ir.Node) -> bool:
        """Settle one node; True where it computes in float16 from now on."""
        floats = [value for value in node.inputs if value is not None and _is_float(value)]
        if node.domain != "" or node.op_type not in self._takes or not any(map(_is_float, node.outputs)):
            return self.stay(node)
        if any(value in self.beyond for value in floats) or not all(self._fits(value) for value in floats):
            self._mark_beyond(node, floats)
            return self.stay(node)
        if node.op_type in _MOVES and not any(value in self.half for value in floats) and not _is_lookup(node):
            return self.stay(node)
        for index, value in enumerate(node.inputs):
            if value is not None and _is_float(value) and value not in self.half:
                node.replace_input_with(index, self._as(value, ir.DataType.FLOAT16))
        for value in node.outputs:
            if _is_float(value):
                self.half.add(value)
        return True

    def stay(self, node: ir.Node) -> bool:
        """Keep one node in float32: what comes in as float16 is cast up. Always False, for ``visit``."""
        for index, value in enumerate(node.inputs):
            if value is not None and value in self.half:
                node.replace_input_with(index, self._as(value, ir.DataType.FLOAT))
        return False

    def close(self) -> None:
        """Set the types, and give graph outputs back as float32."""
        for value in self.half:
            value.type = ir.TensorType(ir.DataType.FLOAT16)
        for value in list(self.graph.outputs):
            if value in self.half:
                self._give_back(value)

    def _fits(self, value: ir.Value) -> bool:
        data = tensors.array(value)
        return data is None or bool((np.abs(data) < np.finfo(np.float16).max).all())

    def _mark_beyond(self, node: ir.Node, floats: list[ir.Value]) -> None:
        # a mask of -3.4e38 that is added to scores ends there: behind it comes a Softmax
        ends = node.op_type == "Add" and any(value in self.half for value in floats)
        if not ends:
            self.beyond.update(node.outputs)

    def _as(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        """``value`` in another precision: a constant is converted, anything else goes through one Cast."""
        key = (value, to)
        if key not in self._casts:
            data = tensors.array(value) if to == ir.DataType.FLOAT16 else None
            name = self.names.fresh(f"{value.name}_{'fp16' if to == ir.DataType.FLOAT16 else 'fp32'}")
            if data is not None:
                self._casts[key] = edit.add_initializer(self.graph, name, data.astype(np.float16))
            else:
                self._casts[key] = self._through_cast(value, to, name)
        return self._casts[key]

    def _through_cast(self, value: ir.Value, to: ir.DataType, name: str) -> ir.Value:
        node, producer = _cast(value, to, name, self.names), value.producer()
        if producer is None:
            _put_first(self.graph, node)
        else:
            edit.insert_after(producer, node)
        return node.outputs[0]

    def _give_back(self, value: ir.Value) -> None:
        producer = value.producer()
        if producer is None:
            return
        name, value.name = str(value.name), self.names.fresh(f"{value.name}_half")
        node = _cast(value, ir.DataType.FLOAT, name, self.names)
        edit.insert_after(producer, node)
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = node.outputs[0]


def _compute_in_half(model: ir.Model, computes: frozenset[str]) -> int:
    """Mode ``full`` on the main graph; bodies of If and Loop stay float32. Returns how many operators compute in it."""
    shapes.infer(model)
    precision = _Precision(model, computes)
    captured = {id(value) for value in _captured(model)}
    count = 0
    for node in list(model.graph):
        if any(id(value) in captured for value in node.outputs):
            precision.stay(node)
        elif precision.visit(node) and node.op_type in computes:
            count += 1
    precision.close()
    return count


def _captured(model: ir.Model) -> list[ir.Value]:
    """Values of the main graph that a subgraph reads; their type is part of what the body was written for."""
    outer = [value for node in model.graph for value in node.outputs]
    return [value for value in outer if any(use.node.graph is not model.graph for use in value.uses())]


def _is_lookup(node: ir.Node) -> bool:
    """A table of embeddings: half the bytes to read, whatever the readers compute in."""
    table = tensors.constant(node.inputs[0]) if node.op_type == "Gather" else None
    return table is not None and table.size >= _LEAST_ELEMENTS


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT
