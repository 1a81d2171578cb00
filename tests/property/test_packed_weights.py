"""Arithmetic of packed weights: packing loses nothing, levels are the nearest ones, scales are no worse than the plain ones, moments are exact."""

from __future__ import annotations

from collections.abc import Callable

import builders
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.calibrate import allocation, codebook, compensate, gram, packing
from edgeopt.graph import check, compact, quantizable
from edgeopt.passes import QuantizeWeights

LEVELS = (2, 3, 4, 8, 16, 32, 64, 128, 256)


def rows(seed: int, outputs: int, inputs: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    heavy = random.standard_t(4, (outputs, inputs)) * 10.0 ** random.uniform(-3, 1, (outputs, 1))
    return heavy.astype(np.float32)


def power(error: np.ndarray) -> float:
    return float(np.square(error.astype(np.float64)).sum())


@given(levels=st.sampled_from(LEVELS), count=st.integers(1, 500), seed=st.integers(0, 999))
def test_unpacking_gives_back_every_code(levels: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, levels, count).astype(np.uint8)
    packed = tuple(packing.pack(codes, plane) for plane in packing.planes(levels))
    assert np.array_equal(packing.unpack(packed, levels, count), codes)
    assert sum(part.size for part in packed) == packing.packed_bytes(levels, count)


@given(levels=st.sampled_from(LEVELS))
def test_packed_codes_waste_at_most_a_fiftieth_of_a_bit(levels: int) -> None:
    bits = packing.packed_bytes(levels, 1 << 16) * 8 / (1 << 16)
    assert np.log2(levels) <= bits <= np.log2(levels) + 0.02


@pytest.mark.parametrize("levels", [1, 5, 12, 512])
def test_levels_without_a_packing_are_refused(levels: int) -> None:
    with pytest.raises(ValueError, match="neither"):
        packing.planes(levels)


@given(seed=st.integers(0, 999), levels=st.sampled_from((2, 3, 8, 16)), even=st.booleans(), negative=st.booleans())
def test_code_is_that_of_the_nearest_level(seed: int, levels: int, even: bool, negative: bool) -> None:
    random = np.random.default_rng(seed)
    book = np.arange(levels, dtype=np.float32) - 1 if even else np.sort(random.normal(size=levels)).astype(np.float32)
    values = random.normal(size=(4, 9)).astype(np.float32)
    scale = np.full((4, 1), -0.3 if negative else 0.3, np.float32)
    chosen = book[codebook.nearest(values, scale, book)] * scale
    best = np.abs(values[..., None] - book * scale[..., None]).min(axis=-1)
    assert np.abs(values - chosen) == pytest.approx(best, abs=1e-5)


@given(seed=st.integers(0, 999), bits=st.sampled_from((3, 4, 6, 8)), block=st.sampled_from((8, 16, 48)))
def test_searched_scales_are_no_worse_than_those_that_cover_everything(seed: int, bits: int, block: int) -> None:
    weight = rows(seed, 5, 48)
    grid = codebook.fit_levels(weight, codebook.integer_levels(bits), block=block)
    blocks = weight.reshape(-1, block)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    plain = np.rint(blocks / scale) * scale - blocks
    assert power(grid.decode(grid.encode(weight)) - weight) <= power(plain) * 1.02


@given(seed=st.integers(0, 999), bits=st.sampled_from((2, 3, 4)))
def test_palette_of_normal_weights_is_no_worse_than_even_levels(seed: int, bits: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(3, 400)).astype(np.float32)
    even = codebook.fit_levels(weight, codebook.integer_levels(bits), block=400)
    palette = codebook.fit_palette(weight, 1 << bits, block=400)
    assert palette.levels == 1 << bits
    assert power(palette.decode(palette.encode(weight)) - weight) <= power(even.decode(even.encode(weight)) - weight)


@given(seed=st.integers(0, 999), shift=st.floats(-3, 3))
def test_a_zero_for_each_block_follows_shifted_weights(seed: int, shift: float) -> None:
    weight = np.random.default_rng(seed).normal(shift, 1, (4, 64)).astype(np.float32)
    grid = codebook.fit_affine(weight, 4, block=32)
    step = (weight.reshape(-1, 32).max(axis=1) - weight.reshape(-1, 32).min(axis=1)).max() / 15
    assert np.sqrt(power(grid.decode(grid.encode(weight)) - weight) / weight.size) <= 0.5 * step


@given(seed=st.integers(0, 999), bits=st.sampled_from((2, 3, 4)), tail=st.floats(3, 12))
def test_half_quadratic_splitting_is_never_worse_than_rounding_to_the_nearest_of_the_span(
    seed: int, bits: int, tail: float
) -> None:
    weight = np.random.default_rng(seed).standard_t(tail, (8, 64)).astype(np.float32)
    grid = codebook.fit_affine(weight, bits, block=64)
    found = power(grid.decode(grid.encode(weight)) - weight)
    assert found <= 1.05 * power(nearest_of_the_span(weight, bits) - weight)


def nearest_of_the_span(weight: np.ndarray, bits: int) -> np.ndarray:
    """Plain asymmetric rounding, one scale a row."""
    low, high = weight.min(axis=1, keepdims=True), weight.max(axis=1, keepdims=True)
    scale = (high - low) / (2**bits - 1)
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(weight / scale + zero), 0, 2**bits - 1) - zero) * scale


def test_block_of_zeros_stays_exactly_zero() -> None:
    weight = rows(0, 3, 32)
    weight[1] = 0
    for grid in (
        codebook.fit_levels(weight, codebook.integer_levels(4), block=32),
        codebook.fit_palette(weight, 16, block=32),
        codebook.fit_affine(weight, 4, block=32),
    ):
        assert not grid.decode(grid.encode(weight))[1].any()


@given(columns=st.integers(1, 2000), wanted=st.integers(0, 256))
def test_blocks_come_out_even_and_are_never_much_smaller_than_wanted(columns: int, wanted: int) -> None:
    block = codebook.block_of(columns, wanted)
    assert columns % block == 0
    assert block == columns or wanted / 2 <= block <= wanted


@given(seed=st.integers(0, 999), bits=st.sampled_from((2, 4, 8)))
def test_independent_inputs_leave_nothing_to_compensate(seed: int, bits: int) -> None:
    weight = rows(seed, 6, 40)
    grid = codebook.fit_levels(weight, codebook.integer_levels(bits), block=40)
    diagonal = gram.Moments(np.diag(np.random.default_rng(seed).uniform(0.5, 2, 40)).astype(np.float32))
    assert np.array_equal(compensate.compensated(weight, diagonal, grid), grid.encode(weight))


@given(seed=st.integers(0, 99), bits=st.sampled_from((2, 3, 4)), columns=st.sampled_from((24, 150)))
def test_compensation_lowers_the_error_that_correlated_inputs_see(seed: int, bits: int, columns: int) -> None:
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(600, 8)) @ random.normal(size=(8, columns)) + 0.3 * random.normal(size=(600, columns))
    moments = gram.Moments((inputs.T @ inputs).astype(np.float32))
    weight = random.normal(size=(16, columns)).astype(np.float32)
    grid = codebook.fit_levels(weight, codebook.integer_levels(bits), block=columns)
    plain = compensate.output_noise(weight, grid.decode(grid.encode(weight)), moments)
    better = compensate.output_noise(weight, grid.decode(compensate.compensated(weight, moments, grid)), moments)
    assert better < 0.8 * plain


def test_noise_of_an_output_is_what_the_layer_would_show() -> None:
    random = np.random.default_rng(0)
    inputs, weight = random.normal(size=(50, 12)).astype(np.float32), rows(1, 7, 12)
    changed = weight + random.normal(size=weight.shape).astype(np.float32) * 0.1
    expected = power(inputs @ (changed - weight).T) / power(inputs @ weight.T)
    assert compensate.output_noise(weight, changed, gram.Moments(inputs.T @ inputs)) == pytest.approx(
        expected, rel=1e-3
    )


def test_singular_moments_are_survived() -> None:
    weight = rows(0, 4, 20)
    grid = codebook.fit_levels(weight, codebook.integer_levels(4), block=20)
    for moments in (np.zeros((20, 20), np.float32), np.ones((20, 20), np.float32)):
        assert compensate.compensated(weight, gram.Moments(moments), grid).shape == weight.shape


def linear(inputs: int = 12) -> ir.Model:
    net = builders.Net(seed=1)
    net.op("MatMul", "rows", net.weight(inputs, 5), output="out")
    return net.build({"rows": ["N", "T", inputs]}, {"out": ["N", "T", 5]})


@given(samples=st.integers(1, 6), symbols=st.integers(1, 5))
def test_streamed_moments_are_those_of_all_samples_at_once(samples: int, symbols: int) -> None:
    model = linear()
    evidence = builders.FakeEvidence(model, samples=samples)
    evidence._samples = [builders.feeds(model, seed=seed, symbols=symbols) for seed in range(samples)]
    stacked = np.concatenate([each["rows"].reshape(-1, 12) for each in evidence.samples()])
    (moments,) = gram.collect(model, quantizable.layers(model.graph), evidence).values()
    assert moments.matrix == pytest.approx(stacked.T @ stacked, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((1, 1), {}),
        ((3, 3), {"pads": [1, 1, 1, 1]}),
        ((3, 2), {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
        ((2, 3), {"dilations": [2, 1], "strides": [1, 2]}),
    ],
)
def test_patches_times_weight_are_the_convolution(kernel: tuple[int, int], attributes: dict[str, list[int]]) -> None:
    net = builders.Net(seed=2)
    net.op("Conv", "image", net.weight(4, 3, *kernel), output="out", **attributes)
    model = net.build({"image": ["N", 3, 9, 8]}, {"out": ["N", 4, "H", "W"]})
    (layer,) = quantizable.layers(model.graph)
    feeds = builders.feeds(model, seed=3)
    (expected,) = builders.run(model, feeds)
    weight = np.asarray(layer.weight.const_value.numpy()).reshape(4, -1)
    made = gram.patches(feeds["image"], layer) @ weight.T
    assert made == pytest.approx(np.moveaxis(expected, 1, -1).reshape(-1, 4), abs=1e-4)


def test_large_feature_map_is_read_at_a_bounded_number_of_places() -> None:
    net = builders.Net(seed=2)
    net.op("Conv", "image", net.weight(4, 3, 1, 1), output="out")
    model = net.build({"image": [1, 3, 64, 64]}, {"out": [1, 4, 64, 64]})
    (layer,) = quantizable.layers(model.graph)
    assert gram.patches(np.ones((1, 3, 64, 64), np.float32), layer).shape == (gram.ROWS_PER_SAMPLE, 3)


def test_moments_beyond_the_limit_take_several_rounds_and_come_out_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = builders.bert_block()
    layers = quantizable.layers(model.graph)
    at_once = gram.collect(model, layers, builders.FakeEvidence(model))
    monkeypatch.setattr(gram, "MOST_BYTES", 5000)
    evidence = builders.FakeEvidence(model)
    in_rounds = gram.collect(model, layers, evidence)
    assert not evidence.memo, "what is beyond the limit must not be remembered"
    assert list(at_once) == list(in_rounds)
    for name, moments in at_once.items():
        assert in_rounds[name].matrix == pytest.approx(moments.matrix, rel=1e-5)


@given(
    damage=st.lists(st.floats(0, 10), min_size=1, max_size=8),
    seed=st.integers(0, 99),
    mean=st.sampled_from((2.0, 3.0, 4.25, 6.0, 8.0)),
)
def test_allocated_bits_keep_the_budget_and_waste_no_step_that_fits(
    damage: list[float], seed: int, mean: float
) -> None:
    widths = (2, 3, 4, 5, 6, 8)
    sizes = np.random.default_rng(seed).integers(1, 1000, len(damage)).tolist()
    bits = allocation.allocate(damage, sizes, widths, measured_bits=4, mean_bits=mean)
    left = mean * sum(sizes) - sum(width * size for width, size in zip(bits, sizes, strict=True))
    assert left >= 0
    for width, size in zip(bits, sizes, strict=True):
        assert width == widths[-1] or size * (widths[widths.index(width) + 1] - width) > left


@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_more_damage_never_means_fewer_bits_at_the_same_size(sizes: list[int], seed: int) -> None:
    damage = np.sort(np.random.default_rng(seed).uniform(0.1, 10, len(sizes)) ** 3)
    bits = allocation.allocate(damage.tolist(), [7] * len(sizes), (2, 3, 4, 5, 6, 8), measured_bits=4, mean_bits=4.5)
    assert bits == sorted(bits)


def test_damage_is_that_of_the_packed_group_alone() -> None:
    model = builders.bert_block(width=64)
    evidence = builders.FakeEvidence(model)
    names = [weight.name for weight in compact.weights(model.graph)]
    changed = []

    def packed(group: tuple[str, ...]) -> ir.Model:
        changed.append(group)
        return builders.bert_block(width=64, seed=5) if group == (names[1],) else model

    found = allocation.damages(model, [(names[0],), (names[1],)], packed, evidence)
    assert changed == [(names[0],), (names[1],)]
    assert found[0] == 0.0
    assert found[1] > 0.1


@given(count=st.integers(0, 200))
def test_groups_hold_every_name_once_and_in_order(count: int) -> None:
    names = [str(number) for number in range(count)]
    found = allocation.groups(names)
    assert [name for group in found for name in group] == names
    assert len(found) == min(count, allocation.MOST_GROUPS)


def _wide_net() -> ir.Model:
    net = builders.Net(seed=3)
    value = net.op("Relu", net.op("Conv", "image", net.weight(64, 16, 3, 3), net.weight(64), pads=[1, 1, 1, 1]))
    value = net.op("Flatten", net.op("GlobalAveragePool", net.op("Conv", value, net.weight(128, 64, 1, 1))))
    net.op("Gemm", value, net.weight(128, 64), output="out")
    return net.build({"image": [1, 16, 6, 6]}, {"out": [1, 64]})


@pytest.mark.parametrize(
    "build",
    [_wide_net, lambda: builders.bert_block(width=64), lambda: builders.lstm(hidden=32)],
    ids=["layers", "transformer", "cell with two weights"],
)
def test_damages_measured_in_one_go_are_those_of_one_model_for_each_group(
    build: Callable[[], ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    found = []
    for at_once in (True, False):
        if not at_once:
            monkeypatch.setattr(allocation, "damages_at_once", lambda *_, **__: None)
        evidence = builders.FakeEvidence(model, samples=1)
        settings = {"bits": 2, "mean_bits": 5.0, "levels": "palette", "small": 0.0}
        made = QuantizeWeights().apply(model, settings, evidence)
        check.verify(made, like=model)
        (damage,) = [value for key, value in evidence.memo.items() if "damages" in key]
        found.append(damage)
    assert found[0] == pytest.approx(found[1], rel=0.05, abs=1e-9)
    assert max(found[0]) > 0
