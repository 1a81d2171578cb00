"""What cutting does to a graph besides the arithmetic: numbers rewritten, storage kept, mistakes refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence, Net

from edgeopt.calibrate.shapes import observed_shapes
from edgeopt.errors import PassFailed
from edgeopt.graph import check, tensors
from edgeopt.graph.groups import ChannelGroups, find
from edgeopt.graph.shapes import infer
from edgeopt.graph.shrink import shrink, zeroed


def analysed(model: ir.Model) -> ChannelGroups:
    return find(model, observed_shapes(model, FakeEvidence(model, samples=2)))


def cut(model: ir.Model, share: float = 0.5, symbols: int = 2) -> ir.Model:
    """``model`` without ``share`` of every family, held against the silenced one."""
    groups = analysed(model)
    assert groups.families
    removed = {family.name: range(max(1, int(share * family.units))) for family in groups.families}
    smaller = shrink(model, groups, removed)
    check.verify(smaller, like=model)
    feeds = builders.feeds(model, seed=7, symbols=symbols)
    for ours, theirs in zip(
        builders.run(smaller, feeds), builders.run(zeroed(model, groups, removed), feeds), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 if ours.dtype == np.float16 else 1e-5)
    return smaller


def node(model: ir.Model, operator: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == operator)


def chain(net: Net, kind: str, *weights: str, **attributes: Any) -> ir.Model:
    """A convolution to 8 channels, the node in question, and a pooled head."""
    wide = net.op("Conv", "image", net.weight(8, 3, 1, 1))
    pooled = net.op("GlobalAveragePool", net.op(kind, wide, *weights, **attributes))
    channels = 6 if kind in ("Conv", "ConvTranspose") and attributes.get("group", 1) == 2 else 8
    net.op("Conv", pooled, net.weight(5, channels, 1, 1), output="scores")
    return net.build({"image": ["N", 3, 4, 4]}, {"scores": ["N", 5, 1, 1]})


def test_input_is_not_touched_and_both_results_are_the_same_bytes_twice() -> None:
    model = builders.depthwise_residual()
    before, groups = builders.to_bytes(model), analysed(model)
    removed = {"w_3": [3, 1]}
    for make in (shrink, zeroed):
        assert builders.to_bytes(make(model, groups, removed)) == builders.to_bytes(make(model, groups, removed))
    assert builders.to_bytes(model) == before
    assert builders.to_bytes(shrink(model, groups, removed)) == builders.to_bytes(
        shrink(model, groups, {"w_3": (1, 3, 3)})
    )


def test_units_that_are_named_are_the_ones_that_go() -> None:
    model = builders.mlp()
    smaller = shrink(model, analysed(model), {"w_1": [0, 30]})
    (family,) = analysed(model).families
    kept = [unit for unit in range(32) if unit not in (0, 30)]
    assert len(family.slots) == 3
    for slot in family.slots:
        whole = tensors.array(model.graph.initializers[slot.constant])
        part = tensors.array(smaller.graph.initializers[slot.constant])
        assert whole is not None and part is not None
        np.testing.assert_array_equal(part, np.take(whole, kept, axis=slot.axis))


def test_shrunk_model_is_smaller_by_what_was_cut() -> None:
    model = builders.mlp()
    smaller = cut(model)
    assert tensors.parameter_bytes(model) - tensors.parameter_bytes(smaller) == 16 * (16 + 1 + 4) * 4


def test_groups_of_a_depthwise_convolution_are_rewritten() -> None:
    net = Net()
    smaller = cut(chain(net, "Conv", net.weight(8, 1, 3, 3), group=8, pads=[1, 1, 1, 1]))
    assert [n.attributes["group"].as_int() for n in smaller.graph if "group" in n.attributes] == [4]


def test_groups_stay_where_every_group_loses_the_same_places() -> None:
    net = Net()
    smaller = cut(chain(net, "Conv", net.weight(6, 4, 1, 1), group=2))
    grouped = next(n for n in smaller.graph if "group" in n.attributes)
    assert grouped.attributes["group"].as_int() == 2
    assert grouped.inputs[1].shape.numpy() == (4, 2, 1, 1)


@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_transposed_convolution_is_cut_with_any_number_of_groups(group: int) -> None:
    net = Net()
    outputs = {1: 8, 2: 3, 4: 2, 8: 1}[group]
    cut(chain(net, "ConvTranspose", net.weight(8, outputs, 2, 2), net.weight(group * outputs), group=group))


def test_hidden_size_of_a_cell_is_rewritten() -> None:
    net = Net()
    weights = (net.weight(2, 12, 3), net.weight(2, 12, 4), net.weight(2, 24))
    start = net.const(np.zeros((2, 2, 4), np.float32))
    sequence = net.op(
        "GRU", "frames", *weights, "", start, hidden_size=4, direction="bidirectional", linear_before_reset=1
    )
    rows = net.op("Reshape", net.op("Transpose", sequence, perm=[0, 2, 1, 3]), net.ints(0, 0, 8))
    net.op("MatMul", rows, net.weight(8, 2), output="scores")
    smaller = cut(net.build({"frames": ["T", 2, 3]}, {"scores": ["T", 2, 2]}))
    assert node(smaller, "GRU").attributes["hidden_size"].as_int() == 2


def test_peepholes_follow_their_hidden_units() -> None:
    net = Net()
    weights = (net.weight(1, 16, 3), net.weight(1, 16, 4), net.weight(1, 32), "", "", "", net.weight(1, 12))
    _, last = net.op("LSTM", "frames", *weights, hidden_size=4, outputs=2)
    net.op("MatMul", last, net.weight(4, 2), output="scores")
    cut(net.build({"frames": ["T", "N", 3]}, {"scores": [1, "N", 2]}))


@pytest.mark.parametrize("opset", [11, 17, 18])
def test_split_in_equal_parts_gets_the_sizes_that_are_left(opset: int) -> None:
    net = Net(opset=opset)
    wide = net.op("Conv", "image", net.weight(8, 3, 1, 1))
    extra = {"num_outputs": 2} if opset >= 18 else {}
    left, right = net.op("Split", wide, axis=1, outputs=2, **extra)
    left, right = net.op("Conv", left, net.weight(2, 4, 1, 1)), net.op("Relu", right)
    net.op("Concat", left, net.op("Conv", right, net.weight(2, 4, 1, 1)), axis=1, output="out")
    model = net.build({"image": ["N", 3, 4, 4]}, {"out": ["N", 4, 4, 4]})
    groups = analysed(model)
    first, second = (family.name for family in groups.families)
    splitter = node(shrink(model, groups, {first: [0], second: [1, 2]}), "Split")
    sizes = splitter.attributes["split"].as_ints() if opset < 13 else tensors.array(splitter.inputs[1])
    assert list(sizes) == [3, 2]
    cut(model)


def test_slice_may_lose_all_that_lies_before_it() -> None:
    net = Net()
    wide = net.op("Relu", net.op("MatMul", "rows", net.weight(4, 9)))
    middle = net.op("Slice", wide, net.ints(-7), net.ints(7), net.ints(-1))
    both = net.op("MatMul", middle, net.weight(5, 2)), net.op("MatMul", wide, net.weight(9, 2))
    net.op("Sub", *both, output="out")
    model = net.build({"rows": ["N", 4]}, {"out": ["N", 2]})
    groups = analysed(model)
    assert [family.slots[0].indices for family in groups.families] == [
        ((0,), (1,), (7,), (8,)),
        ((2,), (3,), (4,), (5,), (6,)),
    ]
    removed = {groups.families[0].name: [0, 1]}
    feeds = builders.feeds(model)
    ours, theirs = (builders.run(make(model, groups, removed), feeds)[0] for make in (shrink, zeroed))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_no_part_of_a_split_can_lose_all_it_has() -> None:
    """The same convolution reads both parts one after the other, so only the parts tell the units apart."""
    net = Net()
    left, right = net.op("Split", net.op("MatMul", "rows", net.weight(4, 8)), net.ints(2, 6), axis=1, outputs=2)
    joined = net.op("Concat", left, net.op("Sin", right), axis=1)
    net.op("MatMul", joined, net.weight(8, 2), output="out")
    model = net.build({"rows": ["N", 4]}, {"out": ["N", 2]})
    assert [family.units for family in analysed(model).families] == [2, 6]
    cut(model, share=0.9)


def test_other_readers_of_a_shared_shape_keep_theirs() -> None:
    """One constant (0, 8, 16) is the target of two Reshapes, and only one of them sees channels that go."""
    net = Net()
    target = net.ints(0, 8, 16)
    rows = net.op("Reshape", net.op("Conv", "image", net.weight(8, 3, 1, 1)), target)
    other = net.op("Reshape", "given", target)
    net.op("Add", net.op("MatMul", net.weight(8, 8), rows), net.op("Softmax", other, axis=1), output="out")
    model = net.build({"image": ["N", 3, 4, 4], "given": ["N", 8, 4, 4]}, {"out": ["N", 8, 16]})
    groups = analysed(model)
    (family,) = groups.families
    assert family.units == 8
    cut(model)


def test_weights_in_constant_nodes_are_cut_where_they_lie() -> None:
    smaller = cut(builders.conv_net(constants=True))
    assert not [value for value in smaller.graph.initializers if value.startswith("w")]


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_floats_keep_their_type(kind: type) -> None:
    net = Net()
    first, second = (net.const(net.random.standard_normal(shape).astype(kind)) for shape in ((4, 6), (6, 2)))
    net.op("MatMul", net.op("MatMul", "rows", first), second, output="out")
    code = {np.float16: 10, np.float64: 11}[kind]
    smaller = cut(net.build({"rows": ["N", 4]}, {"out": ["N", 2]}, rows=code, out=code))
    assert smaller.graph.initializers[first].dtype == smaller.graph.initializers[second].dtype


def test_external_weights_are_cut_without_touching_their_file(tmp_path: Path) -> None:
    ir.save(builders.mlp(width=64), tmp_path / "model.onnx", external_data="model.onnx.data", size_threshold_bytes=0)
    stored = (tmp_path / "model.onnx.data").read_bytes()
    cut(ir.load(tmp_path / "model.onnx"))
    assert (tmp_path / "model.onnx.data").read_bytes() == stored


@pytest.mark.parametrize("operator", ["Attention", "MultiHeadAttention"])
def test_fused_attention_loses_whole_heads(operator: str) -> None:
    net = Net()
    if operator == "Attention":
        inputs = ("rows", net.weight(8, 36), net.weight(36))
    else:
        inputs = (*(net.op("MatMul", "rows", net.weight(8, 12)) for _ in range(3)), net.weight(36))
    mixed = net.op(operator, *inputs, domain="com.microsoft", num_heads=4)
    net.op("MatMul", mixed, net.weight(12, 5), output="out")
    smaller = cut(net.build({"rows": ["N", "S", 8]}, {"out": ["N", "S", 5]}), symbols=3)
    assert node(smaller, operator).attributes["num_heads"].as_int() == 2


def test_shapes_inside_are_those_of_the_smaller_graph() -> None:
    smaller = cut(builders.depthwise_residual())
    widths = {n.outputs[0].shape[1] for n in smaller.graph if n.op_type == "Clip" and n.outputs[0].shape is not None}
    assert widths == {6}


def test_encoder_with_shapes_from_shape_nodes_runs_at_other_lengths() -> None:
    cut(builders.bert_block(), symbols=5)


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        ({"nobody": [0]}, "there is no family called 'nobody'"),
        ({"w_1": range(32)}, "all units of family 'w_1' cannot be removed: it has 32"),
        ({"w_1": [32]}, "unit 32 of family 'w_1' cannot be removed"),
        ({"w_1": [-1]}, "unit -1 of family 'w_1' cannot be removed"),
    ],
)
def test_units_that_are_not_there_are_refused(removed: dict[str, Any], words: str) -> None:
    model = builders.mlp()
    groups = analysed(model)
    for make in (shrink, zeroed):
        with pytest.raises(PassFailed, match=words) as caught:
            make(model, groups, removed)
        assert caught.value.hint


def computed_target(net: Net, target: str) -> ir.Model:
    """A map of 6 channels, flattened to (N, 6, 16) by a target that is computed at run time."""
    rows = net.op("Reshape", "wide", target)
    net.op("MatMul", net.weight(5, 6), net.op("Relu", rows), output="out")
    return net.build({"image": ["N", 3, 4, 4]}, {"out": ["N", 5, 16]})


def test_number_that_enters_a_computed_shape_through_a_concat_is_replaced_there() -> None:
    net = Net()
    wide = net.op("Conv", "image", net.weight(6, 3, 1, 1), output="wide")
    size = net.op("Unsqueeze", net.op("Gather", net.op("Shape", wide), net.const(np.int64(0))), net.ints(0))
    model = computed_target(net, net.op("Concat", size, net.ints(6, 16), axis=0))
    infer(model)
    smaller = cut(model, symbols=3)
    assert not [n for n in smaller.graph if n.op_type == "Where"]


def test_number_that_cannot_be_followed_is_overwritten() -> None:
    """The Concat's parts have no known lengths, and a Slice stands behind it."""
    net = Net()
    wide = net.op("Conv", "image", net.weight(6, 3, 1, 1), output="wide")
    size = net.op("Slice", net.op("Shape", wide), net.ints(0), net.ints(1))
    whole = net.op("Concat", size, size, net.ints(6, 16), axis=0)
    smaller = cut(computed_target(net, net.op("Slice", whole, net.ints(1), net.ints(4))), symbols=3)
    assert len([n for n in smaller.graph if n.op_type == "Where"]) == 1


def test_split_in_a_body_of_control_flow_gets_its_sizes_too() -> None:
    net, then, other = Net(), Net(prefix="then_"), Net(prefix="else_")
    left, right = then.op("Split", then.op("MatMul", "rows", then.weight(4, 8)), axis=1, outputs=2)
    then.op("MatMul", then.op("Mul", left, right), then.weight(4, 4), output="then_out")
    other.op("Identity", "rows", output="else_out")
    bodies = {
        "then_branch": then.graph("then", {}, {"then_out": (1, ["N", 4])}),
        "else_branch": other.graph("else", {}, {"else_out": (1, ["N", 4])}),
    }
    choice = net.op("Less", net.op("ReduceSum", "rows", keepdims=0), net.const(np.float32(1e6)))
    net.op("If", choice, output="result", **bodies)
    cut(net.build({"rows": ["N", 4]}, {"result": ["N", 4]}))
