"""Whatever the windows, paddings and slices: torch gives what ONNX Runtime gives, or ONNX Runtime refuses the node too."""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import Net
from hypothesis import assume, given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs torch, which the extra train brings")

from edgeopt.training.replay import Replay  # noqa: E402 - behind the check for torch

SIDES = st.tuples(st.integers(3, 9), st.integers(3, 9))
PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))
PADS = st.lists(st.integers(0, 2), min_size=4, max_size=4)


def assert_equal(model: ir.Model, arrays: dict[str, np.ndarray]) -> None:
    (expected,) = builders.run(model, arrays)
    with torch.no_grad():
        (made,) = Replay(model)({name: torch.from_numpy(array) for name, array in arrays.items()}).values()
    assert tuple(made.shape) == expected.shape
    np.testing.assert_allclose(made.numpy(), expected, rtol=1e-4, atol=1e-4)


def picture(sides: tuple[int, int], channels: int = 2) -> np.ndarray:
    return np.random.default_rng(sum(sides)).standard_normal((1, channels, *sides)).astype(np.float32)


def windowed(kind: str, sides: tuple[int, int], *weights: Any, net: Net, **attributes: Any) -> None:
    net.op(kind, "image", *weights, output="out", **attributes)
    assert_equal(net.build({"image": [1, 2, *sides]}, {"out": [None] * 4}), {"image": picture(sides)})


@given(sides=SIDES, kernel=PAIR, strides=PAIR, dilations=PAIR, pads=PADS)
def test_convolution_with_any_window(sides: Any, kernel: Any, strides: Any, dilations: Any, pads: Any) -> None:
    reach = [(kernel[side] - 1) * dilations[side] + 1 for side in (0, 1)]
    assume(all(sides[side] + pads[side] + pads[side + 2] >= reach[side] for side in (0, 1)))
    net = Net()
    weights = (net.weight(3, 2, *kernel), net.weight(3))
    windowed("Conv", sides, *weights, net=net, strides=strides, dilations=dilations, pads=pads)


@given(sides=SIDES, kernel=PAIR, strides=PAIR, mode=st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
def test_convolution_that_pads_itself(sides: Any, kernel: Any, strides: Any, mode: str) -> None:
    net = Net()
    windowed("Conv", sides, net.weight(3, 2, *kernel), net=net, strides=strides, auto_pad=mode)


@given(sides=SIDES, kernel=PAIR, strides=PAIR, pads=PADS, extra=st.tuples(st.integers(0, 1), st.integers(0, 1)))
def test_transposed_convolution_with_any_window(sides: Any, kernel: Any, strides: Any, pads: Any, extra: Any) -> None:
    assume(all(extra[side] < strides[side] for side in (0, 1)))
    made = [strides[side] * (sides[side] - 1) + kernel[side] + extra[side] for side in (0, 1)]
    assume(all(made[side] > pads[side] + pads[side + 2] for side in (0, 1)))
    net = Net()
    weights = (net.weight(2, 3, *kernel), net.weight(3))
    windowed("ConvTranspose", sides, *weights, net=net, strides=strides, pads=pads, output_padding=extra)


@given(
    sides=SIDES,
    kernel=PAIR,
    strides=PAIR,
    pads=PADS,
    ceil=st.booleans(),
)
def test_pooling_with_any_window(sides: Any, kernel: Any, strides: Any, pads: Any, ceil: bool) -> None:
    assume(all(max(pads[side], pads[side + 2]) < kernel[side] for side in (0, 1)))
    for kind in ("MaxPool", "AveragePool"):
        windowed(kind, sides, net=Net(), kernel_shape=kernel, strides=strides, pads=pads, ceil_mode=int(ceil))


@given(
    start=st.integers(-9, 9) | st.just(2**63 - 1),
    end=st.integers(-9, 9) | st.sampled_from([2**63 - 1, -(2**63)]),
    step=st.sampled_from([-3, -2, -1, 1, 2, 3]),
    axis=st.sampled_from([0, 1, -1]),
)
def test_slice_with_any_bounds(start: int, end: int, step: int, axis: int) -> None:
    net = Net()
    bounds = [net.ints(number) for number in (start, end, axis, step)]
    net.op("Slice", "rows", *bounds, output="out")
    rows = np.arange(35, dtype=np.float32).reshape(5, 7)
    assert_equal(net.build({"rows": [5, 7]}, {"out": [None, None]}), {"rows": rows})


@given(pads=st.lists(st.integers(-1, 3), min_size=4, max_size=4), mode=st.sampled_from(["constant", "edge", "reflect"]))
def test_padding_with_any_ends(pads: list[int], mode: str) -> None:
    assume(mode == "constant" or min(pads) >= 0)
    net = Net()
    net.op("Pad", "rows", net.ints(*pads), output="out", mode=mode)
    rows = np.arange(20, dtype=np.float32).reshape(4, 5)
    assert_equal(net.build({"rows": [4, 5]}, {"out": [None, None]}), {"rows": rows})


@given(
    left=st.sampled_from([(4,), (3, 1), (2, 3, 4), (2, 1, 1), (1,), ()]),
    right=st.sampled_from([(4,), (3, 4), (1, 3, 1), (2, 3, 4), ()]),
    kind=st.sampled_from(["Add", "Sub", "Mul", "Max", "Expand"]),
)
def test_broadcasting_of_any_shapes(left: tuple[int, ...], right: tuple[int, ...], kind: str) -> None:
    random, net = np.random.default_rng(0), Net()
    other = net.ints(*right) if kind == "Expand" else net.const(random.standard_normal(right).astype(np.float32))
    net.op(kind, "rows", other, output="out")
    rank = len(np.broadcast_shapes(left, right))
    rows = random.standard_normal(left).astype(np.float32)
    assert_equal(net.build({"rows": list(left)}, {"out": [None] * rank}), {"rows": rows})
