"""Where folding must keep its hands off."""

from __future__ import annotations

import builders
import numpy as np
import onnx_ir as ir
from builders import Net

from edgeopt.graph import edit, tensors
from edgeopt.passes.fold_batch_norm import FoldBatchNorm


def fold(model: ir.Model) -> ir.Model:
    return FoldBatchNorm().apply(model, {}, builders.FakeEvidence(model))


def same(ours: ir.Model, theirs: ir.Model) -> None:
    feeds = builders.feeds(theirs, seed=2)
    for a, b in zip(builders.run(ours, feeds), builders.run(theirs, feeds), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_shared_weight_is_folded_into_two_new_ones() -> None:
    model = builders.shared_initializers()
    folded = fold(model)
    assert edit.count(folded) == 4
    assert edit.count(folded, "BatchNormalization") == 0
    weights = {node.inputs[1].name for node in folded.graph if node.op_type == "Conv" and node.inputs[1] is not None}
    assert len(weights) == 2
    same(folded, model)


def test_convolution_that_somebody_else_reads_keeps_its_batch_norm() -> None:
    net = Net()
    conv = net.op("Conv", "x", net.weight(3, 2, 1, 1))
    net.op("Add", net.batch_norm(conv, 3), conv, output="y")
    model = net.build({"x": ["N", 2, 4, 4]}, {"y": ["N", 3, 4, 4]})
    assert edit.count(fold(model), "BatchNormalization") == 1


def test_convolution_that_is_an_output_keeps_its_batch_norm() -> None:
    net = Net()
    net.op("Conv", "x", net.weight(3, 2, 1, 1), output="features")
    net.batch_norm("features", 3, output="y")
    model = net.build({"x": ["N", 2, 4, 4]}, {"features": ["N", 3, 4, 4], "y": ["N", 3, 4, 4]})
    folded = fold(model)
    assert edit.count(folded, "BatchNormalization") == 1
    same(folded, model)


def test_batch_norm_behind_a_product_of_sequences_is_left_alone() -> None:
    net = Net()
    product = net.op("MatMul", "x", net.weight(4, 5))
    net.batch_norm(product, 5, output="y")
    model = net.build({"x": ["N", 5, 4]}, {"y": ["N", 5, 5]})
    folded = fold(model)
    assert edit.count(folded, "BatchNormalization") == 1
    same(folded, model)


def test_batch_norm_in_training_mode_is_left_alone() -> None:
    net = Net()
    conv = net.op("Conv", "x", net.weight(3, 2, 1, 1))
    parameters = (net.weight(3), net.weight(3), net.weight(3), net.const(np.ones(3, np.float32)))
    net.op("BatchNormalization", conv, *parameters, output="y", training_mode=1, outputs=1)
    model = net.build({"x": ["N", 2, 4, 4]}, {"y": ["N", 3, 4, 4]})
    assert edit.count(fold(model), "BatchNormalization") == 1


def test_scale_that_would_make_the_weights_infinite_is_left_alone() -> None:
    net = Net()
    conv = net.op("Conv", "x", net.weight(2, 2, 1, 1, scale=1e30))
    net.op("Mul", conv, net.const(np.full((2, 1, 1), 1e30, np.float32)), output="y")
    model = net.build({"x": ["N", 2, 4, 4]}, {"y": ["N", 2, 4, 4]})
    assert edit.count(fold(model), "Mul") == 1


def test_operand_that_widens_the_output_is_left_alone() -> None:
    net = Net()
    product = net.op("MatMul", "x", net.weight(4, 3))
    net.op("Mul", product, net.weight(1, 1, 3), output="y")
    model = net.build({"x": ["N", 4]}, {"y": [1, "N", 3]})
    folded = fold(model)
    assert edit.count(folded, "Mul") == 1
    same(folded, model)


def test_bias_of_one_sample_each_is_left_alone() -> None:
    net = Net()
    product = net.op("Gemm", "x", net.weight(4, 3), net.weight(2, 1))
    net.op("Mul", product, net.weight(3), output="y")
    model = net.build({"x": [2, 4]}, {"y": [2, 3]})
    folded = fold(model)
    assert edit.count(folded, "Mul") == 1
    same(folded, model)


def test_weights_in_constant_nodes_fold_too() -> None:
    model = builders.conv_net(constants=True)
    folded = fold(model)
    assert edit.count(folded, "BatchNormalization") == 0
    assert tensors.parameter_bytes(folded) < tensors.parameter_bytes(model)
    same(folded, model)


def test_batch_norm_in_a_branch_folds_into_the_branch() -> None:
    model = builders.branches()
    folded = fold(model)
    assert edit.count(folded, "Mul") == 0
    feeds = {**builders.feeds(model), "flag": np.asarray(False)}
    np.testing.assert_allclose(builders.run(folded, feeds)[0], builders.run(model, feeds)[0], atol=1e-5)


def test_model_without_anything_to_fold_is_refused() -> None:
    refuse = FoldBatchNorm().refuse
    assert refuse(builders.signature(builders.conv_net()), builders.TARGET) is None
    assert refuse(builders.signature(builders.lstm()), builders.TARGET) is not None
