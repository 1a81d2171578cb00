"""Cross-layer equalization: which neighbours count, that the function stays, and what per-tensor int8 gains."""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence, Net
from fused import noise_ratio

from edgeopt.errors import PassFailed
from edgeopt.graph import quantizable, tensors
from edgeopt.passes import EqualizeLayers, QuantizeStatic


def equalize(model: ir.Model, **settings: Any) -> ir.Model:
    return EqualizeLayers().apply(model, settings, FakeEvidence(model))


def chain(*between: tuple[str, dict[str, Any]], readers: int = 1) -> ir.Model:
    """Two convolutions whose channels differ a thousandfold, and what stands between them."""
    net = Net(seed=2)
    spread = np.geomspace(1e-2, 10, 8).reshape(-1, 1, 1, 1)
    value = net.op("Conv", "image", net.const((net.random.standard_normal((8, 3, 3, 3)) * spread).astype(np.float32)))
    for operator, attributes in between:
        inputs = [net.const(np.full((8, 1, 1), 0.2, np.float32))] if operator == "PRelu" else []
        if operator == "Clip":
            inputs = [net.const(np.float32(0.0)), net.const(np.float32(6.0))]
        value = net.op(operator, value, *inputs, **attributes)
    last = net.op("Conv", value, net.const((net.random.standard_normal((4, 8, 1, 1))).astype(np.float32)))
    for _ in range(readers - 1):
        last = net.op("Add", last, net.op("ReduceMean", value, axes=[1, 2, 3], keepdims=1))
    net.op("Tanh", last, output="out")
    return net.build({"image": ["N", 3, 8, 8]}, {"out": ["N", 4, "H", "W"]})


def spread(model: ir.Model) -> float:
    """The loudest channel of the first layer over its quietest."""
    weight = np.asarray(tensors.array(quantizable.layers(model.graph)[0].weight))
    peaks = np.abs(weight).max(axis=(1, 2, 3))
    return float(peaks.max() / peaks.min())


@pytest.mark.parametrize(
    "between",
    [
        (),
        (("Relu", {}),),
        (("LeakyRelu", {"alpha": 0.1}),),
        (("PRelu", {}),),
        (("Relu", {}), ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]})),
        (("AveragePool", {"kernel_shape": [3, 3]}), ("Relu", {})),
    ],
    ids=lambda between: "+".join(operator for operator, _ in between) or "nothing",
)
def test_channels_are_evened_out_through_what_is_homogeneous(between: Any) -> None:
    model = chain(*between)
    made = equalize(model)
    assert spread(made) < spread(model) / 8
    assert noise_ratio(model, made) < 1e-11


@pytest.mark.parametrize("operator", ["Tanh", "Sigmoid", "Clip", "Erf"])
def test_what_is_not_homogeneous_stops_a_factor(operator: str) -> None:
    with pytest.raises(PassFailed, match="none of 0 pairs"):
        equalize(chain((operator, {})))


def test_clip_becomes_relu_with_a_bound_for_each_channel_where_asked() -> None:
    model = chain(("Clip", {}))
    made = equalize(model, bounds=True)
    assert [node.op_type for node in made.graph] == ["Conv", "Relu", "Min", "Conv", "Tanh"]
    assert spread(made) < spread(model) / 8
    assert noise_ratio(model, made) < 1e-11


def test_activation_with_another_reader_keeps_its_scale() -> None:
    with pytest.raises(PassFailed, match="none of 0 pairs"):
        equalize(chain(("Relu", {}), readers=2))


def test_shared_weights_are_equalized_for_their_own_layer_only() -> None:
    net = Net(seed=6)
    weight = net.const(
        (net.random.standard_normal((4, 4, 1, 1)) * np.geomspace(0.01, 1, 4).reshape(-1, 1, 1, 1)).astype(np.float32)
    )
    first = net.op("Conv", "image", weight)
    second = net.op("Conv", net.op("Relu", first), net.weight(4, 4, 1, 1))
    net.op("Add", second, net.op("Conv", net.op("Tanh", "image"), weight), output="out")
    model = net.build({"image": ["N", 4, 5, 5]}, {"out": ["N", 4, 5, 5]})
    assert noise_ratio(model, equalize(model)) < 1e-11


def test_dead_channels_get_no_factor() -> None:
    net = Net(seed=7)
    weight = net.random.standard_normal((6, 3, 1, 1)).astype(np.float32)
    weight[2], weight[4] = 0.0, 1e-30
    value = net.op("Relu", net.op("Conv", "image", net.const(weight), net.weight(6)))
    net.op("Conv", value, net.weight(2, 6, 1, 1), output="out")
    model = net.build({"image": ["N", 3, 4, 4]}, {"out": ["N", 2, 4, 4]})
    made = equalize(model)
    assert all(np.isfinite(np.asarray(tensors.array(layer.weight))).all() for layer in quantizable.layers(made.graph))
    assert noise_ratio(model, made) < 1e-11


def test_weights_with_one_scale_a_tensor_lose_several_times_less() -> None:
    model = builders.relu_chain()
    made = equalize(model)
    per_tensor = {"per_channel": False}
    before = noise_ratio(model, QuantizeStatic().apply(model, per_tensor, FakeEvidence(model)))
    after = noise_ratio(model, QuantizeStatic().apply(made, per_tensor, FakeEvidence(made)))
    assert after < before / 2
