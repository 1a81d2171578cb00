"""Outlier migration: where the divisors go, what is lifted out, and what int8 gains by it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence, Net
from fused import noise_ratio

from edgeopt.errors import PassFailed
from edgeopt.graph import quantizable, shapes
from edgeopt.graph.quantizable import KEEP_FLOAT
from edgeopt.passes import MigrateOutliers, QuantizeDynamic, QuantizeStatic

WIDTH = 64


def spiky(net: Net, loud: int = 3) -> str:
    """A normalization's scale with some channels 40 times as loud as the rest."""
    scale = np.ones(WIDTH, np.float32)
    scale[:loud] = 40.0
    return net.const(scale)


def encoder(*, shared: bool, outputs: int = 96, producer: str = "LayerNormalization") -> ir.Model:
    """A normalization with loud channels and the product behind it; ``shared``: a skip connection reads it too."""
    net = Net(seed=4)
    if producer == "LayerNormalization":
        normal = net.op("LayerNormalization", "rows", spiky(net), net.weight(WIDTH), axis=-1)
    elif producer == "Mul":
        normal = net.op("Add", net.op("Mul", "rows", spiky(net)), net.weight(WIDTH))
    elif producer == "Relu":
        scaled = net.op("MatMul", "rows", net.const(np.diag([40.0] * 3 + [1.0] * (WIDTH - 3)).astype(np.float32)))
        normal = net.op("Relu", net.op("Add", scaled, net.weight(WIDTH)))
    else:
        gate = net.op("Sigmoid", net.op("MatMul", "rows", net.weight(WIDTH, WIDTH)))
        normal = net.op("Mul", gate, net.op("Mul", "rows", spiky(net)))
    hidden = net.op("Add", net.op("MatMul", normal, net.weight(WIDTH, outputs)), net.weight(outputs))
    back = net.op("MatMul", net.op("Tanh", hidden), net.weight(outputs, WIDTH), output="" if shared else "out")
    if shared:
        net.op("Add", back, net.op("Tanh", normal), output="out")
    return net.build({"rows": ["N", 5, WIDTH]}, {"out": ["N", 5, WIDTH]})


def migrate(model: ir.Model, **settings: Any) -> ir.Model:
    return MigrateOutliers().apply(model, settings, FakeEvidence(model))


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("producer", ["LayerNormalization", "Mul", "Relu", "gated"])
def test_divisors_go_into_what_makes_the_activation(producer: str) -> None:
    model = encoder(shared=False, producer=producer)
    shapes.infer(model)  # as ``load`` does: a gate may be broadcast, so its width must be known
    made = migrate(model, lift=0, min_gain=8.0)
    assert operators(made) == operators(model)
    assert noise_ratio(model, made) < 1e-11


def test_shared_activation_is_divided_for_its_products_only() -> None:
    model = encoder(shared=True)
    made = migrate(model, lift=0)
    assert operators(made) - operators(model) == {"Mul": 1}
    assert noise_ratio(model, made) < 1e-11


def test_divisors_are_powers_of_two_so_every_bit_stays() -> None:
    model = encoder(shared=True)
    made = migrate(model, lift=0)
    feeds = builders.feeds(model, seed=9)
    assert [out.tobytes() for out in builders.run(made, feeds)] == [out.tobytes() for out in builders.run(model, feeds)]


@pytest.mark.parametrize("quantizer", [QuantizeDynamic(), QuantizeStatic()])
def test_int8_loses_several_times_less_behind_migration(quantizer: QuantizeDynamic | QuantizeStatic) -> None:
    model = encoder(shared=True)
    made = migrate(model)
    narrow = {"reduced_range": True}  # so that no kernel saturates, on whatever CPU this runs
    before = noise_ratio(model, quantizer.apply(model, narrow, FakeEvidence(model)))
    after = noise_ratio(model, quantizer.apply(made, narrow, FakeEvidence(made)))
    assert after < before / 3


def test_channel_that_no_divisor_serves_is_computed_beside_in_float() -> None:
    net = Net(seed=5)
    activation = net.op("Mul", "rows", spiky(net, loud=1))
    weight = net.random.standard_normal((WIDTH, WIDTH)).astype(np.float32)
    weight[0] *= 50.0  # a spike on both sides: dividing the activation would drown the other weights
    net.op("Add", net.op("MatMul", activation, net.const(weight)), net.weight(WIDTH), output="out")
    model = net.build({"rows": ["N", 5, WIDTH]}, {"out": ["N", 5, WIDTH]})
    made = migrate(model)
    beside = [node for node in made.graph if KEEP_FLOAT in node.metadata_props]
    assert [node.op_type for node in beside] == ["MatMul"]
    assert noise_ratio(model, made) < 1e-11
    assert beside[0].name not in {layer.name for layer in quantizable.layers(made.graph)}
    quantized = QuantizeDynamic().apply(made, {}, FakeEvidence(made))
    assert operators(quantized)["MatMul"] == 1
    plain = noise_ratio(model, QuantizeDynamic().apply(model, {}, FakeEvidence(model)))
    assert noise_ratio(model, quantized) < plain / 10


def test_wide_outputs_are_never_computed_beside() -> None:
    made = migrate(encoder(shared=True, outputs=2 * WIDTH))
    lifted = [node for node in made.graph if KEEP_FLOAT in node.metadata_props]
    assert all(node.outputs[0].shape is not None and node.outputs[0].shape[-1] == WIDTH for node in lifted)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": 1.0}, "alpha is 1"),
        ({"lift": -1}, "lift is -1"),
        ({"min_gain": 0.5}, "min_gain 0.5"),
        ({"strength": 0.5}, "no setting 'strength'"),
        ({"min_gain": 1e9}, "none of 2 activations has outliers"),
    ],
)
def test_settings_without_sense_are_refused_with_their_value(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(PassFailed, match=words):
        migrate(encoder(shared=True), **settings)


def test_without_samples_there_is_nothing_to_go_by() -> None:
    model = encoder(shared=True)
    with pytest.raises(PassFailed, match="no calibration samples"):
        MigrateOutliers().apply(model, {}, FakeEvidence(model, samples=0))


def test_activation_that_is_not_finite_is_named() -> None:
    model = encoder(shared=True)
    evidence = FakeEvidence(model)
    evidence._samples[1]["rows"][0, 0, 0] = np.nan
    with pytest.raises(PassFailed, match="not finite"):
        MigrateOutliers().apply(model, {}, evidence)
