"""The pass prune_channels: smaller constants, the same interface, and settings that mean what they say."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import builders
import onnx_ir as ir
import pytest
from builders import FakeEvidence, Net
from fused import noise_ratio

from edgeopt.errors import PassFailed
from edgeopt.graph import edit, tensors
from edgeopt.passes import FoldBatchNorm, PruneChannels, QuantizeStatic


def pruned(model: ir.Model, *, samples: int = 16, **settings: Any) -> ir.Model:
    return PruneChannels().apply(model, settings, FakeEvidence(model, samples=samples))


def sides(model: ir.Model, operator: str) -> list[tuple[int, ...]]:
    """Of the constant weights, in graph order."""
    weights = [tensors.array(node.inputs[1]) for node in model.graph if node.op_type == operator]
    return [weight.shape for weight in weights if weight is not None]


def test_channels_go_from_every_layer_that_carries_them() -> None:
    made = pruned(builders.depthwise_residual(), ratio=0.5)
    assert sides(made, "Conv") == [(6, 4, 1, 1), (6, 1, 3, 3), (4, 6, 1, 1)]
    depthwise = [node for node in made.graph if node.op_type == "Conv"][1]
    assert depthwise.attributes["group"].as_int() == 6
    assert tensors.parameter_bytes(made) < tensors.parameter_bytes(builders.depthwise_residual())


def test_refit_is_worth_more_than_the_criterion() -> None:
    model = builders.bert_block()
    plain = noise_ratio(model, pruned(model, ratio=0.3, criterion="obs", refit=False))
    control = noise_ratio(model, pruned(model, ratio=0.3, criterion="random"))
    best = noise_ratio(model, pruned(model, ratio=0.3, criterion="obs"))
    assert best < control < plain


def test_families_setting_prunes_heads_or_neurons_alone() -> None:
    model = builders.bert_block(heads=4, width=32)
    heads = sides(pruned(model, ratio=0.25, families="heads"), "MatMul")
    assert (32, 24) in heads and (24, 32) in heads and (32, 64) in heads
    neurons = sides(pruned(model, ratio=0.25, families="neurons"), "MatMul")
    assert (32, 48) in neurons and (48, 32) in neurons and (32, 24) not in neurons


def test_inner_families_leave_the_streams_of_residual_blocks_alone() -> None:
    net = Net(seed=4)
    stream = net.op("Conv", "image", net.weight(8, 3, 1, 1))
    wide = net.op("Relu", net.op("Conv", stream, net.weight(16, 8, 1, 1)))
    stream = net.op("Add", stream, net.op("Conv", wide, net.weight(8, 16, 1, 1)))
    net.op("Conv", stream, net.weight(2, 8, 1, 1), output="out")
    model = net.build({"image": ["N", 3, 6, 6]}, {"out": ["N", 2, 6, 6]})
    assert sides(pruned(model, ratio=0.5, families="inner"), "Conv") == [
        (8, 3, 1, 1),
        (8, 8, 1, 1),
        (8, 8, 1, 1),
        (2, 8, 1, 1),
    ]
    assert sides(pruned(model, ratio=0.5), "Conv")[0] == (4, 3, 1, 1)


def test_removed_counts_are_taken_as_they_are() -> None:
    model = builders.mlp()
    counts = {"w_1": 5}
    assert sides(pruned(model, removed=json.dumps(counts)), "MatMul") == [(16, 27), (27, 4)]


@pytest.mark.parametrize(
    "removed", ["[1]", "nonsense", '{"w_1": "5"}', '{"w_1": -1}', '{"w_1": 32}', '{"no_such": 1}', '{"w_1": true}']
)
def test_removed_counts_that_mean_nothing_are_refused(removed: str) -> None:
    with pytest.raises(PassFailed) as failure:
        pruned(builders.mlp(), removed=removed)
    assert failure.value.hint


def test_without_samples_only_weights_decide_and_nothing_is_refitted() -> None:
    model = builders.mlp()
    with pytest.raises(PassFailed) as failure:
        pruned(model, samples=0)
    assert "refit=false" in failure.value.hint
    with pytest.raises(PassFailed, match="obs needs real calibration samples"):
        pruned(model, samples=0, refit=False)
    assert sides(pruned(model, samples=0, refit=False, criterion="l1", ratio=0.5), "MatMul") == [(16, 16), (16, 4)]


def test_made_up_samples_neither_choose_nor_refit() -> None:
    model = builders.mlp()
    evidence = FakeEvidence(model, samples=16)
    evidence.synthetic = True
    with pytest.raises(PassFailed, match="refit needs real calibration samples"):
        PruneChannels().apply(model, {"criterion": "l1"}, evidence)
    with pytest.raises(PassFailed, match="obs needs real calibration samples"):
        PruneChannels().apply(model, {"refit": False}, evidence)
    made = PruneChannels().apply(model, {"criterion": "l1", "refit": False, "ratio": 0.5}, evidence)
    assert sides(made, "MatMul") == [(16, 16), (16, 4)]


def test_family_that_the_criterion_cannot_judge_stays_and_is_refused_by_name_where_it_was_asked_for() -> None:
    net = Net(seed=6)
    weights = (net.weight(1, 32, 5), net.weight(1, 32, 8), net.weight(1, 64))
    cells = net.op("Squeeze", net.op("LSTM", "frames", *weights, hidden_size=8), net.ints(1))
    net.op("MatMul", cells, net.weight(8, 3), output="out")
    model = net.build({"frames": ["T", 1, 5]}, {"out": ["T", 1, 3]})
    with pytest.raises(PassFailed, match=r"w_2 \(LSTM\) reads it, and obs judges only weights"):
        pruned(model, ratio=0.5)
    with pytest.raises(
        PassFailed, match=r"removed names 'w_1', which obs cannot judge: w_2 \(LSTM\) reads it"
    ) as failure:
        pruned(model, removed='{"w_1": 4}')
    assert "l2" in failure.value.hint
    made = pruned(model, removed='{"w_1": 4}', criterion="l2")
    assert sides(made, "LSTM") == [(1, 16, 5)] and sides(made, "MatMul") == [(4, 3)]


def test_batch_norm_criterion_works_before_folding_and_the_result_folds() -> None:
    model = builders.depthwise_residual()
    made = pruned(model, criterion="batch_norm", ratio=0.25)
    folded = FoldBatchNorm().apply(made, {}, FakeEvidence(model))
    assert edit.count(folded, "BatchNormalization") == 0
    assert noise_ratio(model, folded) < 0.05


def test_pruned_model_quantizes() -> None:
    model = builders.relu_chain()
    made = pruned(model, ratio=0.25)
    evidence = FakeEvidence(model, samples=16)
    quantized = QuantizeStatic().apply(made, {}, evidence)
    assert noise_ratio(model, quantized) < 0.1


def test_most_important_units_hurt_more_than_the_least_important() -> None:
    model = builders.mlp()
    low, high = (
        noise_ratio(model, pruned(model, ratio=0.25, refit=False, direction=direction)) for direction in ("low", "high")
    )
    assert low < high


def test_global_scope_takes_unequal_shares() -> None:
    model = builders.bert_block(layers=2)
    local, everywhere = (pruned(model, ratio=0.3, criterion="variance", scope=s) for s in ("local", "global"))
    assert sides(local, "MatMul") != sides(everywhere, "MatMul")


def test_ratio_that_rounds_to_nothing_is_a_reason_to_fail() -> None:
    with pytest.raises(PassFailed, match="rounds to no unit"):
        pruned(builders.mlp(), ratio=0.01)


def test_taylor_says_what_it_needs() -> None:
    with pytest.raises(PassFailed, match="torch is not installed"):
        pruned(builders.mlp(), criterion="taylor")


def test_quantized_models_and_models_without_layers_are_refused() -> None:
    pass_, target = PruneChannels(), builders.TARGET
    signature = builders.signature(builders.mlp())
    assert pass_.refuse(signature, target) is None
    assert pass_.refuse(dataclasses.replace(signature, quantized=True), target) == "the model is quantized already"
    assert "no layer" in str(pass_.refuse(dataclasses.replace(signature, operators=(("Add", 1),)), target))


def test_rank_found_before_is_used_again() -> None:
    model = builders.mlp()
    evidence = FakeEvidence(model, samples=16)
    deep = PruneChannels().apply(model, {"ratio": 0.5}, evidence)
    after = PruneChannels().apply(model, {"ratio": 0.25}, evidence)
    fresh = PruneChannels().apply(model, {"ratio": 0.25}, FakeEvidence(model, samples=16))
    assert builders.to_bytes(after) == builders.to_bytes(fresh)
    assert sides(deep, "MatMul") == [(16, 16), (16, 4)]
