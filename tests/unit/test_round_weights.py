"""Learned rounding: the quantizer behind finds the chosen codes, and the layer's output is nearer."""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence
from fused import noise_ratio
from special import correlated

from edgeopt.calibrate import qparams
from edgeopt.errors import PassFailed
from edgeopt.graph import quantizable, tensors
from edgeopt.passes import QuantizeStatic, RoundWeights


def rounded(model: ir.Model, **settings: Any) -> ir.Model:
    return RoundWeights().apply(model, settings, FakeEvidence(model, samples=32))


@pytest.mark.parametrize("narrow", [False, True])
def test_rounding_again_changes_no_code(narrow: bool) -> None:
    made = rounded(correlated(), reduced_range=narrow)
    for layer in quantizable.layers(made.graph):
        weight = np.asarray(tensors.array(layer.weight))
        found = qparams.weight_qparams(weight, axis=layer.weight_axis, reduced_range=narrow)
        again = qparams.dequantize(qparams.quantize(weight, found), found)
        np.testing.assert_allclose(again, weight, rtol=1e-6)


@pytest.mark.parametrize("narrow", [False, True])
def test_weights_go_up_or_down_but_no_further(narrow: bool) -> None:
    model = correlated()
    made = rounded(model, reduced_range=narrow)
    for old, new in zip(quantizable.layers(model.graph), quantizable.layers(made.graph), strict=True):
        before, after = (np.asarray(tensors.array(layer.weight)) for layer in (old, new))
        scale = qparams.weight_qparams(before, axis=old.weight_axis, reduced_range=narrow).scale
        assert np.all(np.abs(after - before) <= scale * 1.001)


def test_output_is_nearer_than_with_rounding_to_nearest() -> None:
    model = correlated()
    made = rounded(model, reduced_range=True)
    settings = {"reduced_range": True, "bias_correction": True}
    nearest = noise_ratio(model, QuantizeStatic().apply(model, settings, FakeEvidence(model, samples=32)))
    learned = noise_ratio(model, QuantizeStatic().apply(made, settings, FakeEvidence(model, samples=32)))
    assert learned < nearest


def test_depthwise_convolutions_are_left_to_the_quantizer() -> None:
    model = builders.relu_chain()
    made = rounded(model)
    deep = [
        np.asarray(tensors.array(layer.weight))
        for each in (model, made)
        for layer in quantizable.layers(each.graph)
        if "group" in layer.node.attributes
    ]
    np.testing.assert_array_equal(deep[0], deep[2])
    assert noise_ratio(model, made) < 1e-3


def test_skipped_layers_keep_their_weights() -> None:
    model = correlated()
    first, *others = quantizable.layers(model.graph)
    made = rounded(model, skip=f'["{first.name}"]')
    kept = [np.array_equal(*(np.asarray(tensors.array(layer.weight)) for layer in pair))
            for pair in zip(quantizable.layers(model.graph), quantizable.layers(made.graph), strict=True)]  # fmt: skip
    assert kept == [True, *([False] * len(others))]


def test_model_with_nothing_to_round_is_refused() -> None:
    model = builders.loop()
    with pytest.raises(PassFailed, match="constant float32 weight of its own"):
        rounded(model)
