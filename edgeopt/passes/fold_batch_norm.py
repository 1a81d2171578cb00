"""Batch-norm folding: per-channel scales and shifts behind a linear operator go into its weights and bias.

In: Conv, ConvTranspose, Gemm or MatMul with constant weights, followed by BatchNormalization and by Mul, Div, Add or Sub
with per-channel constants, in any number and order. Out: the linear operator alone (MatMul keeps one Add, since it has
no bias). ``s * (W x + b) + t = (s W) x + (s b + t)`` holds for each output channel, so zero padding of the input does not
matter. ONNX Runtime folds the plain Conv cases at load; quantization needs all of them folded before it looks at weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph import edit, tensors
from edgeopt.graph.naming import Names
from edgeopt.protocols import Evidence, Settings
from edgeopt.records import Signature, Target

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_AFFINE = ("BatchNormalization", "Mul", "Div", "Add", "Sub")
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16))

Channels = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Affine:
    """``y = scale * x + shift`` for each output channel; both of shape [channels]."""

    scale: Channels
    shift: Channels

    def then(self, later: Affine) -> Affine:
        """Both as one: ``later`` on the result of this one."""
        return Affine(later.scale * self.scale, later.scale * self.shift + later.shift)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the output channels lie; the same behind every step of a chain."""

    channels: int
    axis: int
    """Counted from the end: -1 for matrix products."""
    rank: int | None
    """None where a product's operands have no declared shape."""


class FoldBatchNorm:
    """Fold BatchNormalization and per-channel scales and shifts into the weights in front of them. Idempotent."""

    name = "fold_batch_norm"
    lossless = True
    needs_data = False

    def refuse(self, signature: Signature, target: Target) -> str | None:
        """Nothing to fold where there is no linear operator or nothing that could scale or shift it."""
        del target
        if not signature.count(*_LINEAR):
            return "the model has no convolution or matrix product to fold into"
        if not signature.count(*_AFFINE):
            return "the model has no batch normalization, scale or shift"
        return None

    def apply(self, model: ir.Model, settings: Settings, evidence: Evidence) -> ir.Model:
        """A copy with everything folded that can be; where nothing can, an equal copy, since clean-up may have been here."""
        del settings, evidence
        own = edit.copy(model)
        names = Names(own)
        for node in edit.nodes(own):
            if node.op_type in _LINEAR and node.domain == "":
                _fold(node, names)
        edit.prune(own)
        return own


def _fold(linear: ir.Node, names: Names) -> None:
    weights = tensors.array(linear.inputs[1])
    if weights is None or weights.dtype not in _FLOATS or linear.graph is None:
        return
    layout = _layout(linear, weights)
    if layout is None:
        return
    chain, affine = _chain(linear, layout)
    # a product with a bias behind it is as folded as it can be
    only_bias = linear.op_type == "MatMul" and [node.op_type for node in chain] in (["Add"], ["Sub"])
    if affine is not None and not only_bias:
        _rewrite(linear, chain, affine, names)


def _layout(linear: ir.Node, weights: NDArray[Any]) -> Layout | None:
    """The layout of what ``linear`` makes; None where its weights are not what they should be."""
    rank, shape = weights.ndim, weights.shape
    if linear.op_type in ("Conv", "ConvTranspose"):
        transposed = linear.op_type == "ConvTranspose"
        channels = shape[1] * _int_attribute(linear, "group", 1) if transposed else shape[0]
        return Layout(int(channels), 1 - rank, rank) if rank >= 3 else None
    if rank != 2:
        return None
    channels = int(shape[0 if _int_attribute(linear, "transB", 0) else 1])
    return Layout(channels, -1, 2 if linear.op_type == "Gemm" else _product_rank(linear))


def _product_rank(product: ir.Node) -> int | None:
    """Rank of a matrix product, as declared for its output or its left operand."""
    for value in (product.outputs[0], product.inputs[0]):
        if value is not None and value.shape is not None:
            return value.shape.rank()
    return None


def _chain(linear: ir.Node, layout: Layout) -> tuple[list[ir.Node], Affine | None]:
    """The affine nodes that follow one another behind ``linear``, and what they do together."""
    chain: list[ir.Node] = []
    total: Affine | None = None
    value = linear.outputs[0]
    while not tensors.is_shared(value) and len(value.uses()) == 1:
        node = next(iter(value.uses())).node
        step = _affine(node, value, layout) if node.graph is linear.graph else None
        if step is None:
            break
        chain.append(node)
        total = step if total is None else total.then(step)
        value = node.outputs[0]
    return chain, total


def _affine(node: ir.Node, value: ir.Value, layout: Layout) -> Affine | None:
    """What ``node`` does to ``value``, channel by channel; None where it does something else as well."""
    if node.domain != "" or node.op_type not in _AFFINE:
        return None
    if node.op_type == "BatchNormalization":
        return _batch_norm(node, value, layout)
    position = 1 - node.inputs.index(value)
    other = _per_channel(node.inputs[position], layout)
    if other is None:
        return None
    one, zero = np.ones(layout.channels), np.zeros(layout.channels)
    steps = {
        "Mul": Affine(other, zero),
        "Add": Affine(one, other),
        "Sub": Affine(one, -other) if position == 1 else Affine(-one, other),
    }
    if node.op_type == "Div" and position == 1 and np.all(other != 0):
        steps["Div"] = Affine(1.0 / other, zero)
    return steps.get(node.op_type)


def _batch_norm(node: ir.Node, value: ir.Value, layout: Layout) -> Affine | None:
    trains = _int_attribute(node, "training_mode", 0) or any(out.uses() for out in node.outputs[1:])
    # batch normalization works on axis 1: of a matrix product that is the last axis only where the product is 2-D
    misplaced = layout.axis == -1 and layout.rank != 2
    if trains or misplaced or node.inputs[0] is not value:
        return None
    parameters = [tensors.array(parameter) for parameter in node.inputs[1:5]]
    if any(parameter is None or parameter.shape != (layout.channels,) for parameter in parameters):
        return None
    gamma, beta, mean, variance = (np.asarray(parameter, dtype=np.float64) for parameter in parameters)
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    scale = gamma / np.sqrt(variance + epsilon)
    return Affine(scale, beta - mean * scale)


def _per_channel(other: ir.Value | None, layout: Layout) -> Channels | None:
    """A constant operand as one number a channel; None where it varies along another axis or widens the output."""
    data = tensors.array(other)
    if data is None or data.dtype not in _FLOATS:
        return None
    if data.ndim > (layout.rank or 1):
        return None
    position = data.ndim + layout.axis
    beside = [size for index, size in enumerate(data.shape) if index != position]
    along = data.shape[position] if position >= 0 else 1
    if any(size != 1 for size in beside) or along not in (1, layout.channels):
        return None
    return np.broadcast_to(data.reshape(-1).astype(np.float64), (layout.channels,))


def _rewrite(linear: ir.Node, chain: list[ir.Node], affine: Affine, names: Names) -> None:
    """Put ``affine`` into ``linear`` and take ``chain`` out, unless a number would not fit."""
    source, graph = linear.inputs[1], linear.graph
    old, bias = tensors.array(source), _new_bias(linear, affine)
    if source is None or old is None or bias is None or graph is None:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        weights, shift = _scaled(linear, old, affine.scale).astype(old.dtype), bias.astype(old.dtype)
    # an infinite scale (a dead channel's zero variance) or a float16 overflow would turn the layer into NaN
    if not (np.isfinite(weights).all() and np.isfinite(shift).all()):
        return
    if not np.array_equal(weights, old):
        linear.replace_input_with(1, edit.add_initializer(graph, names.fresh(f"{source.name}_folded"), weights))
    if linear.op_type == "MatMul":
        replacement = _add_shift(linear, shift, names)
    else:
        _set_bias(linear, edit.add_initializer(graph, names.fresh(f"{source.name}_folded_bias"), shift))
        replacement = linear.outputs[0]
    edit.replace_value(chain[-1].outputs[0], replacement)
    for node in reversed(chain):
        edit.remove(node)


def _scaled(linear: ir.Node, weights: NDArray[Any], scale: Channels) -> NDArray[Any]:
    wide = weights.astype(np.float64)
    if linear.op_type == "Conv":
        return np.asarray(wide * scale.reshape(-1, *[1] * (wide.ndim - 1)))
    if linear.op_type == "ConvTranspose":  # [in, out / group, *kernel]; the inputs of a group are consecutive
        group = _int_attribute(linear, "group", 1)
        grouped = wide.reshape(group, wide.shape[0] // group, *wide.shape[1:])
        scales = scale.reshape(group, 1, wide.shape[1], *[1] * (wide.ndim - 2))
        return np.asarray((grouped * scales).reshape(wide.shape))
    return np.asarray(wide * scale[:, None] if _int_attribute(linear, "transB", 0) else wide * scale)


def _new_bias(linear: ir.Node, affine: Affine) -> NDArray[Any] | None:
    """The bias after folding, or None where the present one is not constant."""
    present = linear.inputs[2] if len(linear.inputs) > 2 else None
    if present is None or linear.op_type == "MatMul":
        return affine.shift
    bias = tensors.array(present)
    if bias is None or (linear.op_type == "Gemm" and bias.ndim == 2 and bias.shape[0] != 1):
        return None
    beta = linear.attributes["beta"].as_float() if "beta" in linear.attributes else 1.0
    return np.asarray((beta * bias.astype(np.float64)) * affine.scale + affine.shift).reshape(-1)


def _set_bias(linear: ir.Node, bias: ir.Value) -> None:
    linear.attributes.pop("beta", None)
    if len(linear.inputs) < 3:
        linear.resize_inputs(3)
    linear.replace_input_with(2, bias)


def _add_shift(matmul: ir.Node, shift: NDArray[Any], names: Names) -> ir.Value:
    """The value behind ``matmul`` with ``shift`` added; the product itself where there is nothing to add."""
    product, graph = matmul.outputs[0], matmul.graph
    if not shift.any() or graph is None:
        return product
    bias = edit.add_initializer(graph, names.fresh(f"{product.name}_shift"), shift)
    node = ir.node("Add", [product, bias], name=names.fresh(f"{matmul.name or 'MatMul'}_shift"))
    node.outputs[0].name = names.fresh(f"{product.name}_shifted")
    node.outputs[0].type, node.outputs[0].shape = product.type, product.shape
    edit.insert_after(matmul, node)
    return node.outputs[0]


def _int_attribute(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default
