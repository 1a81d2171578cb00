"""What static int8 writes against what the kernels of this CPU make of it, in the worst case: full activations, large weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from builders import FakeEvidence, Net

from edgeopt import device
from edgeopt.graph import quantizable, tensors
from edgeopt.passes import QuantizeDynamic, QuantizeStatic
from edgeopt.policy import TargetRequest
from edgeopt.stages import planner

SATURATES = not planner.adds_exactly(device.detect(TargetRequest()))
ONLY_WHERE_IT_SATURATES = pytest.mark.skipif(not SATURATES, reason="this CPU adds int8 products exactly")


def convolutions(*, groups: int, per_group: int) -> ir.Model:
    """Two convolutions and a ReLU between; weights that are nearly all large and of one sign."""
    net, channels = Net(seed=3), groups * per_group
    shape = (channels, per_group, 3, 3)
    wide = np.where(net.random.random(shape) < 0.9, 1.0, net.random.uniform(-1, 1, shape)).astype(np.float32)
    first = net.op("Relu", net.op("Conv", "image", net.const(wide), group=groups, pads=[1, 1, 1, 1]))
    closing = net.op("Conv", first, net.const(np.ones((4, channels, 1, 1), np.float32)))
    net.op("Identity", closing, output="y")
    return net.build({"image": [1, channels, 9, 9]}, {"y": [1, 4, 9, 9]})


def error(model: ir.Model, feeds: dict[str, np.ndarray]) -> float:
    """Largest difference between the fused kernels and the same file with nothing fused, over the largest output."""
    data = ir.to_proto(model).SerializeToString()
    found = []
    for level in (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level, options.log_severity_level = level, 3
        found.append(ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feeds)[0])
    return float(np.abs(found[0] - found[1]).max() / np.abs(found[1]).max())


def quantized(model: ir.Model, **settings: Any) -> ir.Model:
    return QuantizeStatic().apply(model, settings, FakeEvidence(model, samples=8))


FULL = {"image": np.full((1, 32, 9, 9), 4.0, np.float32)}


@pytest.mark.parametrize("settings", [{"reduced_range": True}, {"unsigned": '["ALL"]'}, {"weight": "uint8"}])
def test_nothing_saturates_where_weights_are_narrow_enough_or_unsigned(settings: dict[str, Any]) -> None:
    model = convolutions(groups=4, per_group=8)
    names = [layer.name for layer in quantizable.layers(model.graph)]
    settings = {name: str(names).replace("'", '"') if name == "unsigned" else value for name, value in settings.items()}
    assert error(quantized(model, **settings), FULL) < 0.01


@ONLY_WHERE_IT_SATURATES
def test_signed_weights_of_full_range_do_saturate_on_this_cpu() -> None:
    assert error(quantized(convolutions(groups=4, per_group=8)), FULL) > 0.05


def test_depthwise_convolutions_keep_all_eight_bits() -> None:
    model = convolutions(groups=32, per_group=1)
    deep, _ = quantizable.layers(model.graph)
    assert quantizable.adds_in_32_bits(deep)
    assert error(quantized(model, reduced_range=True), FULL) < 0.01
    made = quantized(model, reduced_range=True).graph.initializers.values()
    codes = [np.asarray(tensors.array(value)) for value in made if value.dtype == ir.DataType.INT8]
    assert max(np.abs(each.astype(int)).max() for each in codes if each.shape[1:] == (1, 3, 3)) == 127


@pytest.mark.parametrize("settings", [{"reduced_range": True}, {"weight": "uint8"}])
def test_dynamic_products_do_not_saturate_either(settings: dict[str, Any]) -> None:
    net = Net(seed=5)
    weight = np.where(net.random.random((64, 16)) < 0.9, 1.0, -0.5).astype(np.float32)
    net.op("MatMul", "x", net.const(weight), output="y")
    model = net.build({"x": [4, 64]}, {"y": [4, 16]})
    made = QuantizeDynamic().apply(model, settings, FakeEvidence(model))
    feeds = {"x": np.linspace(-0.01, 1.0, 256, dtype=np.float32).reshape(4, 64)}
    assert error(made, feeds) < 0.01
