"""Repair before quantization, on random numbers: the function stays, and the estimate never gets worse."""

from __future__ import annotations

import builders
import numpy as np
import onnx_ir as ir
from builders import FakeEvidence, Net
from fused import noise_ratio
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.calibrate import migration, saturation
from edgeopt.calibrate.channels import Channels, observe_channels
from edgeopt.calibrate.rounding import damped, grid, learned_codes
from edgeopt.errors import PassFailed
from edgeopt.passes import EqualizeLayers, MigrateOutliers

SEEDS = st.integers(0, 10_000)


def channels(random: np.random.Generator, count: int) -> Channels:
    """Heavy-tailed channels, some of them silent."""
    rows = random.standard_normal((20, count)) * np.exp(random.normal(0, 2, count)) + random.normal(0, 1, count)
    rows[:, random.random(count) < 0.1] = 0.0
    return Channels(rows.min(axis=0), rows.max(axis=0), np.square(rows).mean(axis=0))


@given(SEEDS, st.integers(1, 40), st.integers(1, 12), st.integers(0, 4))
def test_migration_is_finite_exact_and_no_noisier_than_leaving_it(
    seed: int, inputs: int, outputs: int, lift: int
) -> None:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((inputs, outputs)) * np.exp(random.normal(0, 1, (inputs, 1)))
    found = migration.choose(channels(random, inputs), weight, most_lifted=lift)
    assert found.after <= found.before
    assert found.gain >= 1
    assert len(found.lifted) <= min(lift, inputs - 1)
    assert np.all(np.frexp(found.divisor)[0] == 0.5), "not a power of two"
    assert np.all(found.lifted[:-1] < found.lifted[1:])


@given(SEEDS, st.integers(1, 30), st.integers(1, 80), st.booleans(), st.integers(1, 3))
def test_learned_codes_are_neighbours_and_never_worse_than_nearest(
    seed: int, outputs: int, inputs: int, narrow: bool, sweeps: int
) -> None:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((outputs, inputs)).astype(np.float32)
    data = random.standard_normal((50, 3)) @ random.standard_normal((3, inputs)) + 0.1 * random.standard_normal(
        (50, inputs)
    )
    found = grid(rows, 0, reduced_range=narrow)
    gram = (data.T @ data).astype(np.float32)
    codes = learned_codes(rows, found, gram, sweeps=sweeps)
    wanted = rows / found.scale[:, None]
    assert np.all(codes == np.rint(codes))
    assert np.abs(codes).max() <= found.largest
    assert np.all(np.abs(codes - wanted) < 1 + 1e-3)
    kept = found.anchors(rows)
    assert np.all(codes[kept] == found.nearest(rows)[kept])
    if narrow:
        assert not saturation.crowded(codes, 1).any()
        return  # codes that left 16 bits together went back to nearest, whatever that cost
    moments = damped(gram).astype(np.float64)
    cost = [np.einsum("ij,jk,ik->i", error, moments, error) for error in (codes - wanted, np.rint(wanted) - wanted)]
    assert np.all(cost[0] <= cost[1] * (1 + 1e-3) + 1e-6)


@st.composite
def chains(draw: st.DrawFn) -> ir.Model:
    """Convolutions in a row, of random kinds and scales, with what may stand between them."""
    net = Net(seed=draw(SEEDS))
    value = "image"
    for _ in range(draw(st.integers(2, 5))):
        groups = draw(st.sampled_from([1, 2, 4]))
        weight = net.random.standard_normal((4, 4 // groups, 3, 3)) * np.exp(net.random.normal(0, 2, (4, 1, 1, 1)))
        bias = [net.weight(4)] if draw(st.booleans()) else []
        value = net.op("Conv", value, net.const(weight.astype(np.float32)), *bias, group=groups, pads=[1, 1, 1, 1])
        kind = draw(st.sampled_from(["", "Relu", "LeakyRelu", "Clip", "MaxPool", "Tanh"]))
        if kind == "Clip":
            value = net.op(kind, value, net.const(np.float32(0.0)), net.const(np.float32(6.0)))
        elif kind == "MaxPool":
            value = net.op(kind, value, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        elif kind:
            value = net.op(kind, value)
    net.op("Conv", value, net.weight(4, 4, 1, 1), output="out")
    return net.build({"image": [1, 4, 6, 6]}, {"out": [1, 4, 6, 6]})


@given(chains(), st.booleans())
@settings(max_examples=30)
def test_equalized_chain_computes_the_same(model: ir.Model, bounds: bool) -> None:
    try:
        made = EqualizeLayers().apply(model, {"bounds": bounds}, FakeEvidence(model))
    except PassFailed:
        return
    assert noise_ratio(model, made) < 1e-10


@st.composite
def products(draw: st.DrawFn) -> ir.Model:
    """Matrix products in a row, read once or twice, with normalizations and activations between them."""
    net, width = Net(seed=draw(SEEDS)), draw(st.sampled_from([8, 64]))
    value = "rows"
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["norm", "scale", "relu", "gelu", "none"]))
        loud = net.const(np.exp(net.random.normal(0, 2, width)).astype(np.float32))
        if kind == "norm":
            value = net.op("LayerNormalization", value, loud, net.weight(width), axis=-1)
        elif kind == "scale":
            value = net.op("Mul", value, loud)
        elif kind == "relu":
            value = net.op("Relu", net.op("Add", net.op("MatMul", value, net.weight(width, width)), loud))
        elif kind == "gelu":
            value = net.gelu(value)
        product = net.op("Add", net.op("MatMul", value, net.weight(width, width)), net.weight(width))
        value = net.op("Add", product, value) if draw(st.booleans()) else product
    net.op("Tanh", value, output="out")
    return net.build({"rows": [2, 3, width]}, {"out": [2, 3, width]})


@given(products(), st.sampled_from([0.0, 0.5]), st.integers(0, 4))
@settings(max_examples=30)
def test_migrated_products_compute_the_same(model: ir.Model, alpha: float, lift: int) -> None:
    try:
        made = MigrateOutliers().apply(model, {"alpha": alpha, "lift": lift, "min_gain": 1.0}, FakeEvidence(model))
    except PassFailed:
        return
    assert noise_ratio(model, made) < 1e-9


@given(SEEDS, st.integers(1, 6))
@settings(max_examples=10)
def test_observed_channels_are_those_of_all_samples_together(seed: int, samples: int) -> None:
    model = builders.mlp(seed=seed)
    evidence = FakeEvidence(model, samples=samples)
    value = next(node.outputs[0] for node in model.graph if node.op_type in ("Relu", "Gemm", "MatMul", "Add"))
    width = int(next(iter(evidence.observe(model, [str(value.name)])))[str(value.name)].shape[-1])
    seen = observe_channels(model, {str(value.name): width}, evidence)[str(value.name)]
    rows = np.concatenate(
        [each[str(value.name)].reshape(-1, width) for each in evidence.observe(model, [str(value.name)])]
    )
    np.testing.assert_allclose(seen.low, rows.min(axis=0), rtol=1e-6)
    np.testing.assert_allclose(seen.high, rows.max(axis=0), rtol=1e-6)
    np.testing.assert_allclose(seen.square, np.square(rows.astype(np.float64)).mean(axis=0), rtol=1e-4)
