"""The mean that integer kernels move: seen on the kernels themselves, and taken off by empirical bias correction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence, Net
from fused import operators
from kernels import OnKernels

from edgeopt.calibrate import gram
from edgeopt.calibrate.kernel_error import kernel_errors
from edgeopt.errors import PassFailed
from edgeopt.graph import edit, quantizable, tensors
from edgeopt.graph.gemm import fuse_gemm
from edgeopt.graph.quantizable import Layer
from edgeopt.passes import FoldBatchNorm, QuantizeStatic


def classifier(*, seed: int = 0) -> ir.Model:
    model = builders.conv_net(seed=seed)
    return FoldBatchNorm().apply(model, {}, FakeEvidence(model))


def one_layer(*, seed: int = 1) -> ir.Model:
    net = Net(seed=seed)
    net.op("Tanh", net.op("Gemm", net.op("Relu", "rows"), net.weight(64, 12), net.weight(12)), output="out")
    return net.build({"rows": ["N", 64]}, {"out": ["N", 12]})


def bordered(*, group: int = 1) -> ir.Model:
    """Most windows of a 5x5 kernel on 6x6 pixels reach over the border."""
    net = Net(seed=3)
    positive = net.op("Relu", net.op("Conv", "image", net.weight(8, 4, 1, 1), net.weight(8, shift=1.0)))
    kernel = net.weight(8, 8 // group, 5, 5, scale=0.05)
    last = net.op("Conv", positive, kernel, net.weight(8), group=group, pads=[2, 2, 2, 2])
    net.op("Tanh", last, output="out")
    return net.build({"image": ["N", 4, 6, 6]}, {"out": ["N", 8, 6, 6]})


def layers_of(model: ir.Model) -> list[Layer]:
    fused = edit.copy(model)
    fuse_gemm(fused)
    return quantizable.place(fused.graph).layers


def errors_of(model: ir.Model, evidence: FakeEvidence, **settings: Any) -> dict[str, np.ndarray]:
    layers = layers_of(model)
    return kernel_errors(QuantizeStatic().apply(model, settings, evidence), layers, evidence)


def constant(value: ir.Value | None) -> np.ndarray:
    return np.asarray(tensors.array(value))


def read_by(quantized: ir.Model, layer: Layer, evidence: FakeEvidence) -> list[np.ndarray]:
    """What the quantized layer reads, for each sample."""
    (node,) = (node for node in quantized.graph if quantizable.layer_name(node) == layer.name)
    assert node.inputs[0] is not None
    name = str(node.inputs[0].name)
    return [arrays[name] for arrays in evidence.observe(quantized, [name])]


def rounded(quantized: ir.Model, layer: Layer) -> np.ndarray:
    """The quantized layer's weights in real numbers."""
    (node,) = (node for node in quantized.graph if quantizable.layer_name(node) == layer.name)
    assert node.inputs[1] is not None
    source = node.inputs[1].producer()
    assert source is not None
    codes, scale = constant(source.inputs[0]), constant(source.inputs[1])
    sides = [-1 if axis == layer.weight_axis else 1 for axis in range(codes.ndim)]
    return np.asarray(codes * (scale.reshape(sides) if scale.ndim else scale))


@pytest.mark.parametrize("settings", [{}, {"per_channel": False}, {"symmetric": True}, {"activation": "int8"}])
def test_where_nothing_saturates_a_matrix_errs_by_the_rounding_of_its_weights(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model = one_layer()
    evidence = OnKernels(model, tmp_path)
    narrow = {**settings, "reduced_range": True}
    ((_, found),) = errors_of(model, evidence, **narrow).items()
    (layer,) = layers_of(model)
    quantized = QuantizeStatic().apply(model, narrow, evidence)
    rows = np.concatenate(read_by(quantized, layer, evidence))
    right = (rows @ (rounded(quantized, layer) - constant(layer.weight))).mean(0)
    np.testing.assert_allclose(found, right, atol=1e-5)
    assert np.abs(right).max() > 1e-3


def test_a_matrix_errs_by_what_its_kernel_gives_saturated_or_not(tmp_path: Path) -> None:
    """Large positive inputs and weights of full range: without VNNI, x86 kernels lose some of these sums."""
    net = Net(seed=2)
    weight = net.const(np.abs(net.random.standard_normal((64, 12))).astype(np.float32))
    net.op("Tanh", net.op("Gemm", net.op("Relu", "rows"), weight, net.weight(12), output="sums"), output="out")
    model = net.build({"rows": ["N", 64]}, {"out": ["N", 12]})
    evidence = OnKernels(model, tmp_path)
    ((_, found),) = errors_of(model, evidence).items()
    (layer,) = layers_of(model)
    quantized = QuantizeStatic().apply(model, {}, evidence)
    rows = np.concatenate(read_by(quantized, layer, evidence))
    given = np.concatenate([arrays["sums"] for arrays in evidence.observe(quantized, ["sums"])])
    right = (given - rows @ constant(layer.weight) - constant(layer.bias)).mean(0)
    np.testing.assert_allclose(found, right, atol=2e-3)


@pytest.mark.parametrize("settings", [{}, {"per_channel": False}, {"activation": "int8"}])
def test_a_convolution_errs_by_the_rounding_of_its_weights_borders_included(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model = bordered()
    evidence = OnKernels(model, tmp_path)
    narrow = {**settings, "reduced_range": True}
    found = errors_of(model, evidence, **narrow)
    quantized = QuantizeStatic().apply(model, narrow, evidence)
    for layer in layers_of(model):
        rows = np.concatenate([gram.patches(each, layer) for each in read_by(quantized, layer, evidence)])
        error = rounded(quantized, layer) - constant(layer.weight)
        right = (rows @ error.reshape(len(error), -1).T).mean(0)
        sums = rows @ constant(layer.weight).reshape(len(error), -1).T
        code = 2 * np.ptp(sums, axis=0).max() / 255
        # a mean of hundreds of values, each rounded to a code
        np.testing.assert_allclose(found[layer.name], right, atol=0.1 * code)


@pytest.mark.parametrize("group", [1, 8])
def test_empirical_correction_brings_means_back_that_borders_hide_from_the_analytic_one(
    group: int, tmp_path: Path
) -> None:
    model = bordered(group=group)
    evidence = OnKernels(model, tmp_path)
    name = str(model.graph.outputs[0].producer().inputs[0].name)  # type: ignore[union-attr]

    def shift(how: str) -> float:
        made = QuantizeStatic().apply(model, {"reduced_range": True, "bias_correction": how}, evidence)
        means = []
        for each in (model, made):
            maps = [arrays[name] for arrays in FakeEvidence.observe(evidence, each, [name])]
            means.append(np.concatenate(maps).mean(axis=(0, 2, 3)))
        return float(np.abs(means[0] - means[1]).mean())

    assert shift("empirical") < 0.5 * shift("analytic")
    assert shift("empirical") < 0.5 * shift("off")


def test_twins_run_on_the_layers_own_kernels_and_leave_those_alone(tmp_path: Path) -> None:
    model = classifier()
    evidence = OnKernels(model, tmp_path)
    plain = operators(QuantizeStatic().apply(model, {}, evidence), tmp_path)
    errors_of(model, evidence)
    with_twins = operators(evidence.seen[-1], tmp_path)
    assert plain["QLinearConv"] == 2
    exact = operators(evidence.seen[-2], tmp_path)
    assert exact["QLinearConv"] == 2
    assert exact["Conv"] + exact["FusedConv"] == 2
    assert exact["Gemm"] == exact["QGemm"] == 1
    assert with_twins["QLinearConv"] == 4
    assert with_twins["QGemm"] == 2
    assert not with_twins["Conv"] + with_twins["FusedConv"] + with_twins["Gemm"]


def test_products_of_any_rank_are_seen_on_their_kernels_too(tmp_path: Path) -> None:
    model = builders.bert_block()
    evidence = OnKernels(model, tmp_path)
    found = errors_of(model, evidence, reduced_range=True)
    assert len(found) == 6
    assert operators(evidence.seen[-1], tmp_path)["MatMulIntegerToFloat"] == 12
    assert all(np.isfinite(each).all() and each.any() for each in found.values())


def test_only_quantized_layers_are_corrected_and_the_same_bytes_come_out_twice(tmp_path: Path) -> None:
    model = classifier()
    evidence = OnKernels(model, tmp_path)
    first = layers_of(model)[0]
    settings = {"skip": json.dumps([first.name]), "bias_correction": "empirical"}
    made = QuantizeStatic().apply(model, settings, evidence)
    (kept,) = (node for node in made.graph if quantizable.layer_name(node) == first.name)
    np.testing.assert_array_equal(constant(kept.inputs[2]), constant(first.bias))
    again = QuantizeStatic().apply(classifier(), settings, OnKernels(model, tmp_path))
    assert builders.to_bytes(again) == builders.to_bytes(made)


def test_true_and_false_of_older_recipes_mean_what_they_meant() -> None:
    model = classifier()
    for old, new in ((True, "analytic"), (False, "off")):
        both = [QuantizeStatic().apply(model, {"bias_correction": each}, FakeEvidence(model)) for each in (old, new)]
        assert builders.to_bytes(both[0]) == builders.to_bytes(both[1])


def test_other_ways_and_opsets_without_scales_of_channels_are_refused() -> None:
    model = classifier()
    with pytest.raises(PassFailed, match="'guess' is no way to correct biases"):
        QuantizeStatic().apply(model, {"bias_correction": "guess"}, FakeEvidence(model))
    old = FoldBatchNorm().apply(builders.conv_net(opset=12), {}, FakeEvidence(model))
    with pytest.raises(PassFailed, match="opset 12 is older than 13"):
        QuantizeStatic().apply(old, {"bias_correction": "empirical", "per_channel": False}, FakeEvidence(old))
