"""Clean-up on what exporters leave behind."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builders import Net
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph import check, edit, tensors
from edgeopt.passes.tidy import Tidy


def tidy(model: ir.Model, **settings: int) -> ir.Model:
    made = Tidy().apply(model, settings, builders.FakeEvidence(model))
    check.verify(made, like=model)
    return made


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in edit.nodes(model)]


def same(ours: ir.Model, theirs: ir.Model) -> None:
    feeds = builders.feeds(theirs, seed=4)
    for a, b in zip(builders.run(ours, feeds), builders.run(theirs, feeds), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_weights_in_constant_nodes_become_initializers() -> None:
    model = builders.conv_net(constants=True)
    made = tidy(model)
    assert "Constant" not in operators(made)
    assert operators(made) == operators(tidy(builders.conv_net()))


def test_exporter_padding_goes_into_the_convolution() -> None:
    net = Net()
    zero = numpy_helper.from_array(np.zeros(1, np.int64))
    pads = net.op("Concat", net.ints(0, 0, 1, 1), net.op("ConstantOfShape", net.ints(4), value=zero), axis=0)
    moved = net.op("Add", pads, net.ints(0, 0, 0, 0, 0, 0, 1, 1))
    net.op("Conv", net.op("Pad", "image", moved), net.weight(4, 3, 3, 3), output="features")
    model = net.build({"image": ["N", 3, 8, 8]}, {"features": ["N", 4, 8, 8]})
    made = tidy(model)
    assert operators(made) == ["Conv"]
    same(made, model)


def test_arithmetic_on_big_weights_is_done_once_and_for_all() -> None:
    net = Net()
    weight = net.op("Div", net.op("Mul", net.weight(200, 100), net.weight(100)), net.const(np.float32(3.0)))
    net.op("MatMul", "rows", weight, output="out")
    model = net.build({"rows": ["N", 200]}, {"out": ["N", 100]})
    made = tidy(model)
    assert operators(made) == ["MatMul"]
    assert tensors.parameter_bytes(made) <= tensors.parameter_bytes(model)
    same(made, model)


def test_folding_never_makes_big_weights_bigger() -> None:
    net = Net()
    stored = net.const(net.random.standard_normal((300, 100)).astype(np.float16))
    net.op("MatMul", "rows", net.op("Cast", stored, to=TensorProto.FLOAT), output="out")
    model = net.build({"rows": ["N", 300]}, {"out": ["N", 100]})
    assert operators(tidy(model)) == ["Cast", "MatMul"]


def test_quantized_weights_stay_quantized() -> None:
    net = Net(opset=17)
    stored = net.const(net.random.integers(-100, 100, (20, 10)).astype(np.int8))
    scale, zero = net.const(np.float32(0.05)), net.const(np.int8(0))
    net.op("MatMul", "rows", net.op("DequantizeLinear", stored, scale, zero), output="out")
    model = net.build({"rows": ["N", 20]}, {"out": ["N", 10]})
    assert operators(tidy(model)) == ["DequantizeLinear", "MatMul"]


def test_branch_with_a_known_condition_is_taken_and_the_other_is_forgotten() -> None:
    model = edit.copy(builders.branches())
    chosen = next(node for node in model.graph if node.op_type == "If")
    chosen.replace_input_with(0, edit.add_initializer(model.graph, "always", np.asarray(True)))
    model.graph.inputs.pop()
    made = tidy(model)
    assert "If" not in operators(made)
    assert "Softmax" not in operators(made)
    assert tensors.parameter_bytes(made) == 4 * (4 * 4 + 4)
    same(made, model)


def test_branch_on_an_input_stays_with_both_its_sides() -> None:
    model = builders.branches()
    made = tidy(model)
    for flag in (True, False):
        feeds = {**builders.feeds(model), "flag": np.asarray(flag)}
        np.testing.assert_allclose(builders.run(made, feeds)[0], builders.run(model, feeds)[0], atol=1e-6)


def test_local_functions_are_inlined() -> None:
    body = [helper.make_node("Mul", ["a", "a"], ["s"]), helper.make_node("Add", ["s", "a"], ["b"])]
    function = helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    net = Net()
    net.op("Twice", net.op("Twice", "x", domain="local"), domain="local", output="y")
    graph = net.graph("main", {"x": (TensorProto.FLOAT, [3])}, {"y": (TensorProto.FLOAT, [3])})
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    onnx.checker.check_model(proto)
    model = ir.from_proto(proto)
    made = tidy(model)
    assert operators(made) == ["Mul", "Add", "Mul", "Add"]
    assert not made.functions
    same(made, model)


def test_weights_that_are_listed_as_inputs_are_folded_all_the_same() -> None:
    model = builders.weights_as_inputs(builders.conv_net())
    made = tidy(model)
    assert [value.name for value in made.graph.inputs] == ["image"]
    assert "BatchNormalization" not in operators(made)


def test_same_weight_under_two_names_is_kept_once() -> None:
    net = Net()
    data = net.random.standard_normal((64, 64)).astype(np.float32)
    net.op("MatMul", net.op("Relu", net.op("MatMul", "rows", net.const(data))), net.const(data.copy()), output="out")
    model = net.build({"rows": ["N", 64]}, {"out": ["N", 64]})
    made = tidy(model)
    assert tensors.parameter_bytes(made) == data.nbytes
    same(made, model)


def test_declared_interface_stays_as_vague_as_it_was() -> None:
    net = Net()
    net.op("Relu", "x", output="y")
    model = net.build({"x": ["N", 4]}, {"y": [None, None]})
    made = tidy(model)
    assert [getattr(size, "value", size) for size in made.graph.outputs[0].shape or ()] == [None, None]


def test_input_that_goes_straight_to_an_output_survives() -> None:
    net = Net()
    net.op("Identity", "x", output="same")
    net.op("Identity", net.weight(3), output="constant")
    model = net.build({"x": ["N", 4]}, {"same": ["N", 4], "constant": [3]})
    same(tidy(model), model)


@pytest.mark.parametrize(("opset", "expected"), [(11, 17), (13, 17), (17, 17), (18, 18)])
def test_opset_is_raised_to_17_and_never_lowered(opset: int, expected: int) -> None:
    made = tidy(builders.conv_net(opset=opset))
    assert made.graph.opset_imports[""] == expected


def test_opset_setting_of_zero_leaves_it_alone() -> None:
    assert tidy(builders.old_softmax(), opset=0).graph.opset_imports[""] == 11


def test_metadata_of_the_model_survives_and_the_library_leaves_no_marks() -> None:
    model = edit.copy(builders.old_softmax())
    model.metadata_props["author"] = "somebody"
    made = tidy(model)
    assert made.metadata_props["author"] == "somebody"
    assert made.producer_name == "builders"
    assert b"pkg.onnxscript" not in builders.to_bytes(made)


def test_hard_swish_spelled_out_becomes_one_operator() -> None:
    net = Net(opset=12)
    conv = net.op("Conv", "x", net.weight(4, 4, 1, 1))
    shifted = net.op("Add", conv, net.const(np.float32(3.0)))
    clipped = net.op("Clip", shifted, net.const(np.float32(0.0)), net.const(np.float32(6.0)))
    net.op("Div", net.op("Mul", conv, clipped), net.const(np.float32(6.0)), output="y")
    model = net.build({"x": ["N", 4, 3, 3]}, {"y": ["N", 4, 3, 3]})
    made = tidy(model)
    assert operators(made) == ["Conv", "HardSwish"]
    same(made, model)


def test_operators_of_opset_11_mean_the_same_at_17() -> None:
    net = Net(opset=11)
    scales, none = net.const(np.float32([1, 1, 2, 2])), net.const(np.zeros(0, np.float32))
    value = net.op("Resize", net.op("Dropout", "x"), none, scales, mode="linear")
    value = net.op("Pad", value, net.ints(0, 0, 1, 1, 0, 0, 1, 1))
    value = net.op("ReduceSum", value, axes=[1], keepdims=0)
    net.op("LogSoftmax", value, output="y", axis=1)
    model = net.build({"x": ["N", 2, 3, 3]}, {"y": ["N", 8, 8]})
    made = tidy(model)
    assert made.graph.opset_imports[""] == 17
    same(made, model)


def test_operators_of_opset_9_mean_the_same_at_17() -> None:
    net = Net(opset=9)
    value = net.op("Slice", "x", axes=[1], starts=[0], ends=[2])
    value = net.op("Upsample", value, net.const(np.float32([1, 1, 2, 2])), mode="nearest")
    net.op("Clip", value, output="y", min=0.0, max=1.0)
    model = net.build({"x": ["N", 3, 2, 2]}, {"y": ["N", 2, 4, 4]})
    made = tidy(model)
    assert made.graph.opset_imports[""] == 17
    assert operators(made) == ["Slice", "Resize", "Clip"]
    same(made, model)


def test_operators_of_a_runtime_and_sequences_survive_raising() -> None:
    net = Net(opset=13)
    value = net.op("Gelu", net.op("Squeeze", "x", net.ints(0)), domain="com.microsoft")
    pieces = net.op("SplitToSequence", value, axis=0, keepdims=0)
    net.op("SequenceAt", pieces, net.const(np.int64(1)), output="y")
    model = net.build({"x": [1, 3, 4]}, {"y": [4]})
    made = tidy(model)
    assert made.graph.opset_imports == {"": 17, "com.microsoft": 1}
    same(made, model)
