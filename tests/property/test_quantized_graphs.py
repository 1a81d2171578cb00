"""Random small graphs: whatever the wiring, the quantized model is valid, keeps its interface and computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import builders
import numpy as np
import onnx
import onnx_ir as ir
from builders import FakeEvidence, Net
from fused import noise_ratio
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.graph import quantizable
from edgeopt.passes.quantize_static import QuantizeStatic


def _conv(net: Net, left: str) -> Any:
    return net.op("Conv", left, net.weight(4, 4, 3, 3), net.weight(4), pads=[1, 1, 1, 1])


def _small_and_large(net: Net, left: str) -> Any:
    small = net.op("MaxPool", left, kernel_shape=[2, 2], strides=[2, 2])
    return net.op("Resize", small, "", "", net.ints(1, 4, 8, 8), mode="nearest")


def _swapped(net: Net, left: str, *, second: int) -> Any:
    parts = net.op("Split", left, net.ints(2, 2), outputs=2, axis=1)
    return net.op("Concat", parts[1], parts[second], axis=1)


def _bounded(net: Net, left: str, *, low: float) -> Any:
    return net.op("Clip", left, net.const(np.float32(low)), net.const(np.float32(6.0)))


ONE: dict[str, Callable[[Net, str], Any]] = {
    "conv": _conv,
    "depthwise": lambda net, left: net.op("Conv", left, net.weight(4, 1, 3, 3), pads=[1, 1, 1, 1], group=4),
    "relu": lambda net, left: net.op("Relu", left),
    "clip from zero": lambda net, left: _bounded(net, left, low=0.0),
    "clip from -1": lambda net, left: _bounded(net, left, low=-1.0),
    "max": lambda net, left: net.op("MaxPool", left, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "average": lambda net, left: net.op("AveragePool", left, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "sigmoid": lambda net, left: net.op("Sigmoid", left),
    "tanh": lambda net, left: net.op("Tanh", left),
    "leaky": lambda net, left: net.op("LeakyRelu", left, alpha=0.1),
    "resize": _small_and_large,
    "transpose": lambda net, left: net.op("Transpose", left, perm=[0, 1, 3, 2]),
    "swapped": lambda net, left: _swapped(net, left, second=0),
    "half unread": lambda net, left: _swapped(net, left, second=1),
    "constant factor": lambda net, left: net.op("Mul", left, net.weight(4, 1, 1)),
}
TWO: dict[str, Callable[[Net, str, str], Any]] = {
    "add": lambda net, left, right: net.op("Add", left, right),
    "mul": lambda net, left, right: net.op("Mul", left, right),
    "concat": lambda net, left, right: net.op(
        "Conv", net.op("Concat", left, right, axis=1), net.weight(4, 8, 1, 1), net.weight(4)
    ),
}


@st.composite
def graphs(draw: st.DrawFn) -> ir.Model:
    """A DAG over feature maps of 4 channels and 8 x 8 pixels; some of its values are graph outputs."""
    net = Net(seed=draw(st.integers(0, 1000)))
    values = ["image"]
    for _ in range(draw(st.integers(2, 9))):
        left, right = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        kind = draw(st.sampled_from([*ONE, *TWO]))
        values.append(str(ONE[kind](net, left) if kind in ONE else TWO[kind](net, left, right)))
    last = net.op("Conv", values[-1], net.weight(4, 4, 1, 1), net.weight(4))
    outputs = {last, *draw(st.lists(st.sampled_from(values[1:]), max_size=2))}
    return net.build({"image": [1, 4, 8, 8]}, {name: [1, 4, 8, 8] for name in sorted(outputs)})


@given(graphs(), st.sampled_from(["min_max", "mse"]), st.booleans())
@settings(max_examples=30)
def test_any_wiring_stays_valid_and_right(model: ir.Model, method: str, corrected: bool) -> None:
    layers = quantizable.place(model.graph).layers
    settings = {"method": method, "bias_correction": corrected}
    quantized = QuantizeStatic().apply(model, settings, FakeEvidence(model)) if layers else model
    onnx.checker.check_model(onnx.load_from_string(builders.to_bytes(quantized)), full_check=True)
    assert [value.name for value in quantized.graph.outputs] == [value.name for value in model.graph.outputs]
    assert noise_ratio(model, quantized) < 0.05
