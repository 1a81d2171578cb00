"""Reconstruction: who read a removed channel makes good for it, and keeps its weights where that does not help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence, Net
from fused import noise_ratio

from edgeopt.calibrate import gram, importance, means, reconstruct
from edgeopt.calibrate.consumers import LAYERS, Consumer, bias_of, consumers, with_biases
from edgeopt.calibrate.regression import Refit
from edgeopt.calibrate.shapes import observed_shapes
from edgeopt.errors import PassFailed
from edgeopt.graph import edit, groups, shrink, tensors
from edgeopt.graph.groups import ChannelGroups
from edgeopt.passes import PruneChannels

Pruned = tuple[ir.Model, ir.Model, dict[str, Refit]]
"""The original with biases, the pruned model without a refit, and what became of each reader."""


def wide(mixed: int, width: int, net: Net) -> str:
    """Weights whose outputs move together: a few directions explain most of what many units do."""
    left, right = net.random.standard_normal((width, mixed)), net.random.standard_normal((mixed, width))
    return net.const((left @ right / mixed + 0.05 * net.random.standard_normal((width, width))).astype(np.float32))


def rows_net(*, biased: bool = True) -> ir.Model:
    net = Net(seed=5)
    first = net.op("Relu", net.op("Gemm", "rows", wide(4, 24, net), net.weight(24)))
    second = net.op("Relu", net.op("Gemm", first, wide(4, 24, net), *([net.weight(24)] if biased else [])))
    net.op("Gemm", second, net.weight(24, 3), *([net.weight(3)] if biased else []), output="out")
    return net.build({"rows": ["N", 24]}, {"out": ["N", 3]})


def map_net() -> ir.Model:
    """3x3 convolutions with stride and padding, one of them dilated."""
    net = Net(seed=6)
    first = net.op("Relu", net.op("Conv", "image", net.weight(16, 3, 3, 3), net.weight(16), pads=[1, 1, 1, 1]))
    second = net.op(
        "Conv", first, net.weight(12, 16, 3, 3), net.weight(12), pads=[2, 2, 2, 2], dilations=[2, 2], strides=[2, 2]
    )
    net.op("Conv", net.op("Relu", second), net.weight(4, 12, 1, 1), net.weight(4), output="out")
    return net.build({"image": ["N", 3, 14, 14]}, {"out": ["N", 4, 7, 7]})


def matmul_net() -> ir.Model:
    net = Net(seed=7)
    hidden = net.op("Relu", net.op("Add", net.op("MatMul", "rows", wide(4, 20, net)), net.weight(20)))
    net.op("Add", net.weight(1, 3), net.op("MatMul", hidden, net.weight(20, 3)), output="out")
    return net.build({"rows": ["N", "T", 20]}, {"out": ["N", "T", 3]})


def upscaling_net() -> ir.Model:
    """Transposed convolutions: kernel by kernel beside each other without a bias, then overlapping ones."""
    net = Net(seed=11)
    first = net.op("Relu", net.op("Conv", "image", net.weight(16, 3, 3, 3), net.weight(16), pads=[1, 1, 1, 1]))
    second = net.op("Relu", net.op("ConvTranspose", first, net.weight(16, 12, 2, 2), strides=[2, 2]))
    net.op(
        "ConvTranspose", second, net.weight(12, 3, 3, 3), net.weight(3), output="out",
        strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1],
    )  # fmt: skip
    return net.build({"image": ["N", 3, 6, 7]}, {"out": ["N", 3, 24, 28]})


def grouped_net() -> ir.Model:
    """A convolution of two groups, all of which lose the same places."""
    net = Net(seed=12)
    first = net.op("Relu", net.op("Conv", "image", net.weight(16, 3, 3, 3), net.weight(16), pads=[1, 1, 1, 1]))
    second = net.op("Relu", net.op("Conv", first, net.weight(24, 8, 3, 3), net.weight(24), group=2))
    net.op("Conv", second, net.weight(4, 24, 1, 1), net.weight(4), output="out")
    return net.build({"image": ["N", 3, 10, 10]}, {"out": ["N", 4, 8, 8]})


def same_padded_net() -> ir.Model:
    """What TensorFlow exports: how much to pad is left to the runtime."""
    net = Net(seed=13)
    first = net.op("Relu", net.op("Conv", "image", net.weight(8, 3, 3, 3), net.weight(8), auto_pad="SAME_LOWER"))
    net.op("Conv", first, net.weight(4, 8, 4, 4), net.weight(4), output="out", auto_pad="SAME_UPPER", strides=[2, 2])
    return net.build({"image": ["N", 3, 9, 10]}, {"out": ["N", 4, 5, 5]})


def every_fourth(found: ChannelGroups) -> dict[str, Sequence[int]]:
    return {family.name: range(0, family.units, 4) for family in found.families}


def refitted(model: ir.Model, *, samples: int = 48) -> Pruned:
    evidence = FakeEvidence(model, samples=samples)
    biased = with_biases(model, consumers(model))
    found = groups.find(biased, observed_shapes(biased, evidence))
    removed = every_fourth(found)
    made, report = reconstruct.refit(biased, found, removed, evidence)
    smaller = shrink.shrink(made, found, removed)
    plain = shrink.shrink(biased, found, removed)
    return smaller, plain, report


@pytest.mark.parametrize("build", [rows_net, map_net, matmul_net, upscaling_net, grouped_net, same_padded_net])
def test_refitted_model_is_nearer_to_the_original_on_samples_it_never_saw(build: Callable[[], ir.Model]) -> None:
    model = build()
    made, plain, report = refitted(model)
    assert noise_ratio(model, made) < 0.7 * noise_ratio(model, plain)
    assert any(each.how == "least squares" for each in report.values())


def test_reader_without_a_bias_gets_one_that_takes_up_the_mean() -> None:
    model = rows_net(biased=False)
    made, plain, _ = refitted(model)
    assert noise_ratio(model, made) < 0.5 * noise_ratio(model, plain)
    last = [node for node in made.graph if node.op_type == "Gemm"][-1]
    assert np.abs(tensors.array(last.inputs[2])).max() > 0


def test_model_whose_removed_units_do_nothing_keeps_its_bytes() -> None:
    net = Net(seed=8)
    first = net.random.standard_normal((8, 6)).astype(np.float32)
    first[:, ::4] = 0.0
    hidden = net.op("Relu", net.op("Gemm", "rows", net.const(first), net.const(np.zeros(6, np.float32))))
    net.op("Gemm", hidden, net.weight(6, 2), net.weight(2), output="out")
    model = net.build({"rows": ["N", 8]}, {"out": ["N", 2]})
    made, plain, report = refitted(model)
    assert {each.how for each in report.values()} == {"plain"}
    assert builders.to_bytes(made) == builders.to_bytes(plain)


def test_few_samples_that_mislead_are_caught_by_the_held_out_ones() -> None:
    made, plain, report = refitted(rows_net(), samples=4)
    assert all(each.gain <= 1.0 for each in report.values())
    assert noise_ratio(rows_net(), made) < 1.5 * noise_ratio(rows_net(), plain)


def test_without_held_out_samples_weights_stay() -> None:
    _, _, report = refitted(rows_net(), samples=3)
    assert {each.how for each in report.values()} == {"plain"}


def test_without_samples_it_fails_with_what_to_do() -> None:
    model = rows_net()
    found = groups.find(model, observed_shapes(model, FakeEvidence(model)))
    with pytest.raises(PassFailed) as failure:
        reconstruct.refit(model, found, every_fourth(found), FakeEvidence(model, samples=0))
    assert "refit=false" in failure.value.hint


def test_ranking_and_refitting_end_with_the_reason_where_their_time_is_over() -> None:
    model = rows_net()
    found = groups.find(model, observed_shapes(model, FakeEvidence(model)))
    late = FakeEvidence(model)
    late.deadline_s = 0.0
    with pytest.raises(PassFailed, match="the time for ranking channels ended"):
        importance.scores(model, found.families, importance.Ranking(criterion="obs", depths={}), late)
    with pytest.raises(PassFailed, match="the time for refitting what reads the removed channels ended"):
        reconstruct.refit(model, found, every_fourth(found), late)


def weights_of(model: ir.Model) -> list[np.ndarray]:
    return [np.asarray(tensors.array(node.inputs[1])) for node in model.graph if node.op_type in LAYERS]


@pytest.mark.parametrize("build", [rows_net, map_net, matmul_net, upscaling_net])
def test_layers_too_wide_to_factor_keep_their_weights_and_the_mean_of_what_they_gave(
    build: Callable[[], ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruct, "WIDEST", 0)
    made, plain, report = refitted(build())
    assert report == {}
    for own, other in zip(weights_of(made), weights_of(plain), strict=True):
        np.testing.assert_array_equal(own, other)
    assert noise_ratio(build(), made) < 0.95 * noise_ratio(build(), plain)


def test_layers_that_share_a_weight_and_transposed_ones_in_groups_keep_their_mean() -> None:
    net = Net(seed=17)
    first = net.op("Relu", net.op("Gemm", "rows", net.weight(6, 96), net.weight(96)))
    weight = net.weight(96, 96)  # a smaller one would be copied for each
    left, right = (net.op("Gemm", first, weight, net.weight(96)) for _ in range(2))
    net.op("Add", left, net.op("Tanh", right), output="out")
    shared = net.build({"rows": ["N", 6]}, {"out": ["N", 96]})
    net = Net(seed=18)
    wide = net.op("Relu", net.op("Conv", "image", net.weight(16, 3, 1, 1), net.weight(16)))
    net.op("ConvTranspose", wide, net.weight(16, 8, 2, 2), output="out", group=2, strides=[2, 2])
    grouped = net.build({"image": ["N", 3, 5, 5]}, {"out": ["N", 16, 10, 10]})
    for model in (shared, grouped):
        evidence = FakeEvidence(model, samples=16)
        settings = {"criterion": "l1", "ratio": 0.25}
        plain = PruneChannels().apply(model, {**settings, "refit": False}, evidence)
        made = PruneChannels().apply(model, settings, evidence)
        for own, other in zip(weights_of(made), weights_of(plain), strict=True):
            np.testing.assert_array_equal(own, other)
        assert noise_ratio(model, made) < 0.9 * noise_ratio(model, plain)


def test_mean_is_kept_only_where_it_moved_and_held_out_samples_say_so() -> None:
    model = rows_net()
    other = edit.copy(model)
    bias = first_of(other).layer.bias
    assert bias is not None
    edit.set_constant(bias, np.asarray(tensors.array(bias)) + np.float32(1.0))
    names = [first_of(model).name]
    assert means.level(model, other, names, FakeEvidence(model, samples=3)) == [], "nothing is held out"
    assert means.level(model, edit.copy(model), names, FakeEvidence(model, samples=8)) == [], "nothing is missing"
    assert len(means.level(model, other, names, FakeEvidence(model, samples=8))) == 1
    np.testing.assert_allclose(*(tensors.array(c.layer.bias) for c in map(first_of, (model, other))), atol=1e-5)


def first_of(model: ir.Model) -> Consumer:
    return next(iter(consumers(model).values()))


def test_little_memory_means_more_rounds_and_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _, _ = refitted(map_net())
    monkeypatch.setattr(gram, "MOST_BYTES", 1)
    cut, _, _ = refitted(map_net())
    assert builders.to_bytes(whole) == builders.to_bytes(cut)


@pytest.mark.parametrize("build", [map_net, upscaling_net, grouped_net, same_padded_net])
def test_targets_are_read_at_the_places_of_the_patches(build: Callable[[], ir.Model]) -> None:
    model = build()
    for consumer in list(consumers(model).values()):
        data, output = str(consumer.layer.data.name), str(consumer.layer.node.outputs[0].name)
        for arrays in FakeEvidence(model, samples=2).observe(model, [data, output]):
            bias = bias_of(consumer.layer)
            offset = 0.0 if bias is None else np.asarray(tensors.array(bias))
            blocks = range(consumer.blocks)
            rows = [
                consumer.patches(arrays[data], block) @ consumer.rows()[consumer.block(block)].T for block in blocks
            ]
            places = gram.thinned(np.moveaxis(arrays[output], 1, -1).reshape(-1, consumer.outputs))
            np.testing.assert_allclose(places, np.concatenate(rows, axis=1) + offset, atol=1e-4)


@pytest.mark.parametrize("how", [
    {"strides": [3], "dilations": [2]},
    {"strides": [2], "pads": [2, 0], "output_padding": [1]},
    {"strides": [5], "output_padding": [2]},
    {"auto_pad": "VALID"},
], ids=str)  # fmt: skip
def test_transposed_convolution_of_any_stride_and_padding_is_read_from_its_output(how: dict[str, Any]) -> None:
    net = Net(seed=14)
    net.op("ConvTranspose", "sound", net.weight(3, 4, 4), net.weight(4), output="out", **how)
    model = net.build({"sound": [2, 3, 7]}, {"out": [2, 4, "L"]})
    (consumer,) = consumers(model).values()
    arrays = builders.feeds(model)
    (made,) = builders.run(model, arrays)
    expected = consumer.patches(arrays["sound"], 0) @ consumer.rows().T + tensors.array(bias_of(consumer.layer))
    np.testing.assert_allclose(np.moveaxis(made, 1, -1).reshape(-1, 4), expected, atol=1e-5)


def test_transposed_convolution_whose_output_shape_is_given_is_left_plain() -> None:
    net = Net(seed=15)
    net.op("ConvTranspose", "sound", net.weight(3, 4, 4), output="out", strides=[2], output_shape=[14])
    assert consumers(net.build({"sound": ["N", 3, 7]}, {"out": ["N", 4, 14]})) == {}


@pytest.mark.parametrize("reader", [
    {"kind": "ConvTranspose", "weight": (8, 5, 2, 2), "strides": [2, 2]},
    {"kind": "ConvTranspose", "weight": (8, 5, 3, 3), "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kind": "Conv", "weight": (6, 4, 3, 3), "group": 2},
], ids=lambda reader: f"{reader['kind']}-{reader['weight'][-1]}")  # fmt: skip
def test_channel_that_others_add_up_to_is_recovered_exactly(reader: dict[str, Any]) -> None:
    """Channels 0 and 4 are mixtures of their neighbours: least squares has an answer without any error."""
    net, how = Net(seed=16), dict(reader)
    rows = net.random.standard_normal((8, 3))
    rows = np.concatenate([rows, net.random.standard_normal((8, 1))], axis=1)  # the bias is mixed alike
    rows[0], rows[4] = rows[1] - 0.5 * rows[2] + rows[3], 0.7 * rows[5] + rows[6] - rows[7]
    kernel, bias = rows[:, :3].reshape(8, 3, 1, 1).astype(np.float32), rows[:, 3].astype(np.float32)
    hidden = net.op("Conv", "image", net.const(kernel), net.const(bias))
    net.op(how.pop("kind"), hidden, net.weight(*how.pop("weight")), output="out", **how)
    model = net.build({"image": ["N", 3, 8, 8]}, {"out": ["N", "C", "H", "W"]})
    made, plain, report = refitted(model)
    assert [each.how for each in report.values()] == ["least squares"]
    assert noise_ratio(model, plain) > 0.05
    assert noise_ratio(model, made) < 1e-5, "what is left is the pull toward the old weights"


def test_weight_rows_survive_the_way_there_and_back() -> None:
    for model in (rows_net(), map_net(), matmul_net(), upscaling_net(), grouped_net()):
        for consumer in consumers(model).values():
            np.testing.assert_array_equal(
                consumer.as_weight(consumer.rows()), np.asarray(tensors.array(consumer.layer.weight))
            )


def test_shared_bias_is_nobodys_to_change() -> None:
    model = builders.shared_initializers()
    assert all(bias_of(consumer.layer) is None for consumer in consumers(model).values())
    net = Net(seed=9)
    bias = net.weight(4)
    hidden = net.op("Gemm", "rows", net.weight(4, 4), bias)
    net.op("Gemm", hidden, net.weight(4, 4), bias, output="out")
    shared = net.build({"rows": ["N", 4]}, {"out": ["N", 4]})
    assert [bias_of(consumer.layer) for consumer in consumers(shared).values()] == [None, None]
