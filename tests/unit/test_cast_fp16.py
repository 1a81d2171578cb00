"""Half precision: what is cast, what is left alone, and that the result loads and runs."""

from __future__ import annotations

import dataclasses

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import Net
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeopt.errors import PassFailed
from edgeopt.graph import check, edit, tensors
from edgeopt.passes.cast_fp16 import CastFp16, computes_in_half, survives

HALF = dataclasses.replace(builders.TARGET, features=("fphp", "asimdhp", "neon"))


def cast(model: ir.Model, mode: str) -> ir.Model:
    made = CastFp16().apply(model, {"mode": mode}, builders.FakeEvidence(model, target=HALF))
    check.verify(made, like=model)
    return made


def wide(scale: float) -> ir.Model:
    net = Net()
    net.op("MatMul", "rows", net.weight(32, 32, scale=scale), output="out")
    return net.build({"rows": ["N", 32]}, {"out": ["N", 32]})


# ---------------------------------------------------------------- weights
def test_stored_weights_take_half_the_bytes_and_readers_see_float32() -> None:
    model = wide(0.3)
    made = cast(model, "weights")
    assert tensors.parameter_bytes(made) * 2 == tensors.parameter_bytes(model)
    assert [node.op_type for node in made.graph] == ["Cast", "MatMul"]
    product = made.graph[1]
    assert product.inputs[1] is not None
    assert product.inputs[1].dtype == ir.DataType.FLOAT
    assert product.inputs[1].name == next(iter(model.graph.initializers))


@pytest.mark.parametrize("scale", [1e-7, 1e6])
def test_weights_outside_of_half_precision_stay(scale: float) -> None:
    with pytest.raises(PassFailed, match="survives"):
        cast(wide(scale), "weights")


def test_weights_that_a_branch_reads_are_stored_in_half_too() -> None:
    net, then, other = Net(), Net(seed=1, prefix="then_"), Net(seed=2, prefix="else_")
    weight = net.weight(32, 32)
    then.op("MatMul", "rows", weight, output="then_out")
    other.op("Add", "rows", other.weight(32, 32), output="else_out")
    bodies = {
        "then_branch": then.graph("then", {}, {"then_out": (1, [32, 32])}),
        "else_branch": other.graph("else", {}, {"else_out": (1, [32, 32])}),
    }
    net.op("If", "flag", output="out", **bodies)
    model = net.build({"rows": [32, 32], "flag": []}, {"out": [32, 32]}, flag=9)
    made = cast(model, "weights")
    assert edit.count(made, "Cast") == 2
    for flag in (True, False):
        feeds = {**builders.feeds(model), "flag": np.asarray(flag)}
        np.testing.assert_allclose(builders.run(made, feeds)[0], builders.run(model, feeds)[0], atol=5e-2)


@given(
    weights=arrays.arrays(
        np.float32,
        arrays.array_shapes(max_dims=2, max_side=20),
        elements=st.floats(-(2.0**17), 2.0**17, width=32),
    )
)
def test_what_survives_is_finite_and_close(weights: np.ndarray) -> None:
    if survives(weights):
        back = weights.astype(np.float16).astype(np.float64)
        assert np.isfinite(back).all()
        assert np.square(back - weights).sum() <= 1.01e-6 * np.square(weights.astype(np.float64)).sum() + 1e-30
    else:
        with np.errstate(over="ignore"):
            back = weights.astype(np.float16).astype(np.float64)
        error = np.square(back - weights).sum()
        assert not np.isfinite(error) or error > 0.99e-6 * np.square(weights.astype(np.float64)).sum()


# ---------------------------------------------------------------- the whole graph
def test_full_mode_keeps_a_float32_interface_around_a_float16_network() -> None:
    model = builders.conv_net()
    made = cast(model, "full")
    convolutions = [node for node in made.graph if node.op_type == "Conv"]
    assert {value.dtype for node in convolutions for value in node.outputs} == {ir.DataType.FLOAT16}
    assert made.graph.outputs[0].dtype == ir.DataType.FLOAT


def test_sums_and_normalizations_stay_in_float32() -> None:
    made = cast(builders.bert_block(), "full")
    for node in made.graph:
        if node.op_type in ("Softmax", "ReduceMean", "Pow", "Sqrt", "Erf"):
            assert {value.dtype for value in node.outputs} == {ir.DataType.FLOAT}, node.op_type
        if node.op_type == "MatMul":
            assert {value.dtype for value in node.outputs} == {ir.DataType.FLOAT16}


def test_mask_beyond_half_precision_stays_finite() -> None:
    model = builders.bert_block(layers=2)
    feeds = builders.feeds(model, symbols=5)
    feeds["mask"][:] = 0
    made = builders.run(cast(model, "full"), feeds)[0]
    assert np.isfinite(made).all()
    np.testing.assert_allclose(made, builders.run(model, feeds)[0], atol=2e-2)


def test_value_with_two_readers_is_cast_once() -> None:
    net = Net()
    net.op("Add", net.op("MatMul", "x", net.weight(4, 4)), net.op("MatMul", "x", net.weight(4, 4)), output="y")
    model = net.build({"x": ["N", 4]}, {"y": ["N", 4]})
    assert edit.count(cast(model, "full"), "Cast") == 2


def test_output_that_others_read_as_well_comes_out_as_float32() -> None:
    net = Net()
    net.op("Relu", "x", output="hidden")
    net.op("Sigmoid", "hidden", output="y")
    model = net.build({"x": ["N", 4]}, {"hidden": ["N", 4], "y": ["N", 4]})
    feeds = builders.feeds(model)
    for ours, theirs in zip(builders.run(cast(model, "full"), feeds), builders.run(model, feeds), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_device_without_half_arithmetic_is_refused() -> None:
    model = builders.conv_net()
    with pytest.raises(PassFailed, match="does not compute in float16"):
        CastFp16().apply(model, {"mode": "full"}, builders.FakeEvidence(model))


@pytest.mark.parametrize(
    ("name", "features", "expected"),
    [
        ("arm", ("asimdhp", "fphp", "neon"), True),
        ("arm", ("fphp",), False),
        ("cpu", ("avx512_fp16",), True),
        ("cpu", ("avx2", "f16c"), False),
        ("tensorrt", (), True),
    ],
)
def test_half_arithmetic_is_read_off_the_features(name: str, features: tuple[str, ...], expected: bool) -> None:
    assert computes_in_half(dataclasses.replace(builders.TARGET, name=name, features=features)) is expected


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(PassFailed, match="no mode 'quarter'"):
        cast(builders.conv_net(), "quarter")
