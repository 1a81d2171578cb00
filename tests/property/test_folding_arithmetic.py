"""Folding changes no number beyond rounding, whatever the operator, its shapes, its groups and what follows it."""

from __future__ import annotations

from dataclasses import dataclass

import builders
import numpy as np
import onnx_ir as ir
from builders import Net
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.graph import check, edit
from edgeopt.passes.fold_batch_norm import Affine, FoldBatchNorm

AFFINE = ("BatchNormalization", "Mul", "Div", "Add", "Sub", "Sub from")


@dataclass(frozen=True)
class Layer:
    operator: str
    groups: int
    inputs: int
    outputs: int
    """Both for each group."""
    dimensions: int
    bias: bool
    transposed: bool
    chain: tuple[str, ...]
    scalar: bool
    seed: int

    @property
    def channels(self) -> int:
        return self.outputs * (self.groups if self.operator.startswith("Conv") else 1)


layers = st.builds(
    Layer,
    operator=st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul"]),
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 4),
    dimensions=st.integers(1, 3),
    bias=st.booleans(),
    transposed=st.booleans(),
    chain=st.lists(st.sampled_from(AFFINE), min_size=1, max_size=4).map(tuple),
    scalar=st.booleans(),
    seed=st.integers(0, 1000),
)


def linear(net: Net, layer: Layer) -> tuple[str, list[int | str]]:
    """The linear operator of ``layer`` on ``x``; its output and the shape of ``x``."""
    if layer.operator.startswith("Conv"):
        kernel = [2] * layer.dimensions
        wide = [layer.groups * layer.inputs, layer.outputs, *kernel]
        shape = wide if layer.operator == "ConvTranspose" else [layer.channels, layer.inputs, *kernel]
        bias = [net.weight(layer.channels)] if layer.bias else []
        out = net.op(
            layer.operator, "x", net.weight(*shape), *bias, group=layer.groups, pads=[1] * (2 * layer.dimensions)
        )
        return str(out), ["N", layer.groups * layer.inputs, *[4] * layer.dimensions]
    if layer.operator == "MatMul":
        return str(net.op("MatMul", "x", net.weight(layer.inputs, layer.outputs))), ["N", layer.inputs]
    shape = [layer.outputs, layer.inputs] if layer.transposed else [layer.inputs, layer.outputs]
    bias = [net.weight(1, layer.outputs)] if layer.bias else []
    out = net.op("Gemm", "x", net.weight(*shape), *bias, transB=int(layer.transposed), alpha=0.5, beta=2.0)
    return str(out), ["N", layer.inputs]


def affine(net: Net, kind: str, value: str, layer: Layer) -> str:
    if kind == "BatchNormalization":
        return net.batch_norm(value, layer.channels)
    spatial = [1] * layer.dimensions if layer.operator.startswith("Conv") else []
    operand = (
        net.weight(1) if layer.scalar else net.weight(layer.channels, *spatial, shift=2.0 if kind == "Div" else 0.0)
    )
    if kind == "Sub from":
        return str(net.op("Sub", operand, value))
    return str(net.op(kind, value, operand))


def build(layer: Layer) -> ir.Model:
    net = Net(seed=layer.seed)
    value, shape = linear(net, layer)
    for kind in layer.chain:
        value = affine(net, kind, value, layer)
    net.op("Tanh", value, output="y")
    spatial: list[int | str | None] = [None] * layer.dimensions if layer.operator.startswith("Conv") else []
    return net.build({"x": shape}, {"y": ["N", layer.channels, *spatial]})


@given(layer=layers)
def test_everything_behind_a_linear_operator_folds_and_the_numbers_stay(layer: Layer) -> None:
    model = build(layer)
    folded = FoldBatchNorm().apply(model, {}, builders.FakeEvidence(model))
    check.verify(folded, like=model)
    left = [node.op_type for node in folded.graph]
    assert left in ([layer.operator, "Tanh"], [layer.operator, "Add", "Tanh"]) or layer.chain in (
        ("Add",),
        ("Sub",),
        ("Sub from",),
    )
    assert left.count("Add") == 0 or layer.operator == "MatMul"
    feeds = builders.feeds(model, seed=layer.seed)
    np.testing.assert_allclose(builders.run(folded, feeds)[0], builders.run(model, feeds)[0], atol=3e-5)


@given(
    scales=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    shifts=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    values=st.lists(st.floats(-10, 10), min_size=4, max_size=4),
)
def test_composed_steps_do_what_the_steps_do_one_after_the_other(
    scales: list[float], shifts: list[float], values: list[float]
) -> None:
    steps = [Affine(np.full(4, scale), np.full(4, shift)) for scale, shift in zip(scales, shifts, strict=True)]
    total = steps[0].then(steps[1]).then(steps[2])
    expected = np.asarray(values)
    for step in steps:
        expected = step.scale * expected + step.shift
    np.testing.assert_allclose(total.scale * np.asarray(values) + total.shift, expected, rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 50), rows=st.integers(1, 4))
def test_operand_that_varies_along_another_axis_is_left_alone(seed: int, rows: int) -> None:
    net = Net(seed=seed)
    product = net.op("Conv", "x", net.weight(3, 2, 1, 1))
    net.op("Mul", product, net.weight(1, 1, rows + 1, 3), output="y")
    model = net.build({"x": ["N", 2, rows + 1, 3]}, {"y": ["N", 3, rows + 1, 3]})
    folded = FoldBatchNorm().apply(model, {}, builders.FakeEvidence(model))
    assert edit.count(folded, "Mul") == 1
