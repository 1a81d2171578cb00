"""Reconstruction: who read a removed channel makes good for it, and keeps its weights where that does not help."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence, Net
from fused import noise_ratio

from edgeopt.calibrate import gram, importance, reconstruct
from edgeopt.calibrate.consumers import bias_of, consumers, with_biases
from edgeopt.calibrate.regression import Refit
from edgeopt.calibrate.shapes import observed_shapes
from edgeopt.errors import PassFailed
from edgeopt.graph import groups, shrink, tensors
from edgeopt.graph.groups import ChannelGroups

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


@pytest.mark.parametrize("build", [rows_net, map_net, matmul_net])
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


def test_layers_too_wide_to_factor_keep_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruct, "WIDEST", 10)
    made, plain, report = refitted(rows_net())
    assert report == {}
    assert builders.to_bytes(made) == builders.to_bytes(plain)


def test_little_memory_means_more_rounds_and_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _, _ = refitted(map_net())
    monkeypatch.setattr(gram, "MOST_BYTES", 1)
    cut, _, _ = refitted(map_net())
    assert builders.to_bytes(whole) == builders.to_bytes(cut)


def test_targets_are_read_at_the_places_of_the_patches() -> None:
    model = map_net()
    for consumer in list(consumers(model).values()):
        data, output = str(consumer.layer.data.name), str(consumer.layer.node.outputs[0].name)
        for arrays in FakeEvidence(model, samples=2).observe(model, [data, output]):
            rows = gram.patches(arrays[data], consumer.layer)
            bias = tensors.array(bias_of(consumer.layer))
            expected = rows @ consumer.rows().T + bias
            places = gram.thinned(np.moveaxis(arrays[output], 1, -1).reshape(-1, consumer.outputs))
            np.testing.assert_allclose(places, expected, atol=1e-4)


def test_weight_rows_survive_the_way_there_and_back() -> None:
    for model in (rows_net(), map_net(), matmul_net()):
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
