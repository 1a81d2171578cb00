"""The vectors that a layer's weights meet: what they give is what the runtime gives, however the padding is written."""

from __future__ import annotations

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence, Net

from edgeopt.calibrate import gram
from edgeopt.graph import quantizable

PADDINGS = [
    {"auto_pad": "SAME_UPPER"},
    {"auto_pad": "SAME_LOWER"},
    {"auto_pad": "VALID"},
    {"auto_pad": "NOTSET", "pads": [0, 1, 2, 0]},
    {"pads": [1, 2, 1, 0]},
]


def convolution(sides: tuple[int, int], kernel: tuple[int, int], stride: int, **padding: object) -> ir.Model:
    net = Net(seed=1)
    weight = net.weight(5, 3, *kernel)
    net.op("Conv", "image", weight, output="out", strides=[stride, stride], kernel_shape=list(kernel), **padding)
    return net.build({"image": ["N", 3, *sides]}, {"out": ["N", 5, "H", "W"]})


@pytest.mark.parametrize("padding", PADDINGS, ids=lambda padding: "-".join(map(str, padding.values())))
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("sides", "kernel"), [((9, 8), (3, 3)), ((8, 7), (4, 2)), ((5, 6), (1, 5))])
def test_rows_times_weights_are_what_the_runtime_gives(
    sides: tuple[int, int], kernel: tuple[int, int], stride: int, padding: dict[str, object]
) -> None:
    model = convolution(sides, kernel, stride, **padding)
    (layer,) = quantizable.layers(model.graph)
    feeds = builders.feeds(model, symbols=2)
    (right,) = builders.run(model, feeds)
    weight = np.asarray(layer.weight.const_value).reshape(5, -1)
    found = gram.patches(feeds["image"], layer) @ weight.T
    np.testing.assert_allclose(found, np.moveaxis(right, 1, -1).reshape(-1, 5), atol=1e-5)


def test_two_layers_that_pad_the_same_input_in_different_ways_have_moments_of_their_own() -> None:
    net = Net(seed=2)
    sums = [
        net.op("Conv", "image", net.weight(4, 3, 4, 4), auto_pad=mode, strides=[2, 2], kernel_shape=[4, 4])
        for mode in ("SAME_UPPER", "SAME_LOWER")
    ]
    net.op("Add", *sums, output="out")
    model = net.build({"image": ["N", 3, 7, 7]}, {"out": ["N", 4, 4, 4]})
    layers = quantizable.layers(model.graph)
    found = gram.collect(model, layers, FakeEvidence(model))
    upper, lower = (found[str(layer.weight.name)].matrix for layer in layers)
    assert np.abs(upper - lower).max() > 0.01 * np.abs(upper).max()
