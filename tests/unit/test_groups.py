"""What the dependency analysis says: names, kinds, roles and reasons. That its cuts are right is a property test's business."""

from __future__ import annotations

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence, Net

from edgeopt.calibrate.shapes import observed_shapes
from edgeopt.graph.atoms import Atoms
from edgeopt.graph.groups import ChannelGroups, find
from edgeopt.graph.links_reshape import Segment, segments
from edgeopt.graph.shrink import unshared


def analysed(model: ir.Model) -> ChannelGroups:
    return find(model, observed_shapes(model, FakeEvidence(model, samples=2)))


def reasons(model: ir.Model) -> str:
    return " | ".join(frozen.reason for frozen in analysed(model).frozen)


def dense(net: Net, value: str, inner: int, outer: int) -> str:
    return str(net.op("MatMul", value, net.weight(inner, outer)))


# ---------------------------------------------------------------- what is found
def test_inverted_bottleneck_is_one_family_of_channels_with_a_role_for_each_constant() -> None:
    (family,) = analysed(builders.depthwise_residual()).families
    assert (family.name, family.kind, family.units) == ("w_3", "channels", 12)
    roles = [(slot.constant, slot.axis, slot.role) for slot in family.slots]
    assert roles[0] == ("w_3", 0, "producer")
    assert roles[-1] == ("w_25", 1, "consumer")
    assert {role for _, _, role in roles[1:-1]} == {"follower"}
    assert all(slot.indices == tuple((unit,) for unit in range(12)) for slot in family.slots)


def test_encoder_has_whole_heads_and_neurons_of_its_feed_forward_layers() -> None:
    heads, neurons = analysed(builders.bert_block()).families
    assert (heads.kind, heads.units) == ("heads", 4)
    assert {len(slot.indices[0]) for slot in heads.slots} == {8}
    assert [slot.role for slot in heads.slots].count("producer") == 3
    assert (neurons.kind, neurons.units) == ("neurons", 64)


def test_hidden_units_of_a_cell_own_a_row_of_every_gate() -> None:
    net = Net()
    weights = (net.weight(1, 16, 3), net.weight(1, 16, 4), net.weight(1, 32))
    sequence = net.op("LSTM", "frames", *weights, hidden_size=4)
    net.op("MatMul", net.op("Squeeze", sequence, net.ints(1)), net.weight(4, 2), output="scores")
    (family,) = analysed(net.build({"frames": ["T", "N", 3]}, {"scores": ["T", "N", 2]})).families
    assert (family.kind, family.units) == ("hidden", 4)
    rows = {(slot.constant, slot.axis): slot.indices[1] for slot in family.slots}
    assert rows[weights[0], 1] == (1, 5, 9, 13)
    assert rows[weights[1], 1] == (1, 5, 9, 13)
    assert rows[weights[1], 2] == (1,)
    assert rows[weights[2], 1] == (1, 5, 9, 13, 17, 21, 25, 29)


def test_channel_of_a_flattened_map_is_many_columns_of_the_next_layer() -> None:
    net = Net()
    flat = net.op("Flatten", net.op("Conv", "image", net.weight(5, 2, 3, 3)))
    head = net.weight(20, 3)
    net.op("Gemm", flat, head, output="scores")
    (family,) = analysed(net.build({"image": ["N", 2, 4, 4]}, {"scores": ["N", 3]})).families
    columns = next(slot for slot in family.slots if slot.constant == head)
    assert columns.indices[2] == (8, 9, 10, 11)


def test_parts_of_a_split_are_families_of_their_own_with_names_of_their_own() -> None:
    net = Net()
    left, right = net.op("Split", net.op("Relu", dense(net, "rows", 3, 7)), net.ints(4, 3), axis=1, outputs=2)
    net.op("Add", dense(net, left, 4, 2), dense(net, right, 3, 2), output="scores")
    found = analysed(net.build({"rows": ["N", 3]}, {"scores": ["N", 2]}))
    assert [(family.name, family.units) for family in found.families] == [("w_1", 4), ("w_1[1,4]", 3)]


def test_layers_of_a_branch_can_shrink_where_nothing_outside_reads_them() -> None:
    net = Net()
    then, other = Net(prefix="then_"), Net(prefix="else_")
    then.op("MatMul", then.op("Relu", dense(then, "rows", 4, 6)), then.weight(6, 4), output="then_out")
    other.op("Identity", "rows", output="else_out")
    bodies = {
        "then_branch": then.graph("then", {}, {"then_out": (1, ["N", 4])}),
        "else_branch": other.graph("else", {}, {"else_out": (1, ["N", 4])}),
    }
    net.op("If", "flag", output="result", **bodies)
    model = net.build({"rows": ["N", 4], "flag": []}, {"result": ["N", 4]}, flag=9)
    assert [(family.name, family.units) for family in analysed(model).families] == [("then_w_1", 6)]


def test_same_name_in_two_branches_cannot_be_spoken_of() -> None:
    net = Net()
    bodies = {}
    for branch in ("then", "else"):
        body = Net(prefix="body_")
        body.op("MatMul", body.op("Relu", dense(body, "rows", 4, 6)), body.weight(6, 4), output=f"{branch}_out")
        bodies[f"{branch}_branch"] = body.graph(branch, {}, {f"{branch}_out": (1, ["N", 4])})
    net.op("If", "flag", output="result", **bodies)
    model = net.build({"rows": ["N", 4], "flag": []}, {"result": ["N", 4]}, flag=9)
    assert not analysed(model).families
    assert "is used in two graphs" in reasons(model)


def test_model_without_shapes_is_still_understood_where_operators_need_none() -> None:
    assert [family.units for family in find(builders.relu_chain(), {}).families] == [4, 4, 8]


def test_same_model_gives_the_same_families_in_the_same_order() -> None:
    assert analysed(builders.bert_block()) == analysed(builders.bert_block())


# ---------------------------------------------------------------- what stays, and why
@pytest.mark.parametrize(
    ("operator", "attributes", "words"),
    [
        ("Softmax", {"axis": -1}, "Softmax 'Softmax_4' mixes all of it"),
        ("ReduceMean", {"axes": [1]}, "ReduceMean 'ReduceMean_4' needs all of it"),
        ("Det", {}, "Det 'Det_4' is not understood here"),
        ("Squeeze", {}, "Squeeze 'Squeeze_4' is used in a way that is not understood here"),
    ],
)
def test_reason_names_the_operator_and_the_node(operator: str, attributes: dict[str, object], words: str) -> None:
    net = Net()
    shape = ["N", 4, 4] if operator == "Det" else ["N", 4]
    net.op(operator, dense(net, "rows", 4, 4), output="out", **attributes)
    out = ["N", 4] if operator in ("Softmax", "Squeeze") else ["N", 1] if operator == "ReduceMean" else ["N"]
    assert words in reasons(net.build({"rows": shape}, {"out": out}))


def test_output_of_the_model_is_never_cut() -> None:
    frozen = analysed(builders.conv_net()).frozen
    assert [entry.reason for entry in frozen] == ["it reaches 'logits', which the model gives out"]


def test_stream_that_starts_at_an_input_stays() -> None:
    assert "it is tied to 'image', which the model is given" in reasons(builders.depthwise_residual())


def test_what_a_body_reads_from_outside_stays() -> None:
    net, body = Net(), Net(prefix="body_")
    wide = net.op("Relu", dense(net, "rows", 4, 6))
    body.op("Identity", "body_go", output="body_go_out")
    body.op("Add", "body_state", body.op("ReduceSum", wide, keepdims=0), output="body_next")
    inputs = {"body_i": (7, []), "body_go": (9, []), "body_state": (1, ["N", 2])}
    outputs = {"body_go_out": (9, []), "body_next": (1, ["N", 2])}
    trips, go = net.const(np.int64(2)), net.const(np.bool_(True))
    net.op("Loop", trips, go, dense(net, wide, 6, 2), output="out", body=body.graph("body", inputs, outputs))
    model = net.build({"rows": ["N", 4]}, {"out": ["N", 2]})
    assert not analysed(model).families
    assert "the body 'body' of Loop 'Loop_11' reads it" in reasons(model)


def test_weight_that_is_shifted_behind_its_scale_is_left_alone() -> None:
    """Zeroing such codes would not zero the layer's weight."""
    net = Net(opset=13)

    def stored(inner: int, outer: int, shift: int) -> str:
        codes = net.const(net.random.integers(-9, 9, (inner, outer)).astype(np.int8))
        return str(net.op("DequantizeLinear", codes, net.const(np.float32(0.1)), net.const(np.int8(shift))))

    for shift, count in ((0, 1), (3, 0)):
        net.nodes.clear()
        net.weights.clear()
        hidden = net.op("Relu", net.op("MatMul", "rows", net.weight(4, 6)))
        net.op("MatMul", hidden, stored(6, 2, shift), output="out")
        assert len(analysed(net.build({"rows": ["N", 4]}, {"out": ["N", 2]})).families) == count


def test_bias_that_two_layers_share_by_chance_ties_them_only_until_it_is_copied() -> None:
    net = Net()
    zeros = net.const(np.zeros(6, np.float32))
    hidden = net.op("Relu", net.op("Add", dense(net, "rows", 4, 6), zeros))
    hidden = net.op("Tanh", net.op("Add", dense(net, hidden, 6, 6), zeros))
    net.op("MatMul", hidden, net.weight(6, 2), output="out")
    model = net.build({"rows": ["N", 4]}, {"out": ["N", 2]})
    assert [family.units for family in analysed(model).families] == [6]
    own = unshared(model)
    assert [family.units for family in analysed(own).families] == [6, 6]
    feeds = builders.feeds(model)
    np.testing.assert_array_equal(builders.run(own, feeds)[0], builders.run(model, feeds)[0])


# ---------------------------------------------------------------- shapes and atoms
def test_length_that_differs_between_samples_is_not_known() -> None:
    net = Net()
    net.op("Relu", dense(net, "rows", 3, 4), output="out")
    model = net.build({"rows": ["N", 3]}, {"out": ["N", 4]})
    evidence = FakeEvidence(model, samples=2)
    evidence._samples[1] = {"rows": np.zeros((5, 3), np.float32)}
    assert observed_shapes(model, evidence) == {"rows": [None, 3], "matmul_2": [None, 4], "out": [None, 4]}


def test_without_samples_nothing_was_observed() -> None:
    model = builders.mlp()
    assert observed_shapes(model, FakeEvidence(model, samples=0)) == {}


@pytest.mark.parametrize(
    ("before", "after", "pieces"),
    [
        ([2, 12, 5, 5], [2, 300], [((1, 2, 3), (1,)), ((0,), (0,))]),
        ([None, 7, 12], [None, 7, 4, 3], [((2,), (2, 3)), ((1,), (1,)), ((0,), (0,))]),
        ([None, 6, None], [None, 2, 3, None], [((0, 1, 2), (0, 1, 2, 3))]),
        ([6, None, 4], [2, 3, None, 4], [((2,), (3,)), ((1,), (2,)), ((0,), (0, 1))]),
        ([1, 6], [6], [((1,), (0,)), ((0,), ())]),
    ],
)
def test_shapes_are_cut_into_pieces_of_the_same_elements(before: list, after: list, pieces: list) -> None:
    assert segments(before, after) == [Segment(*piece) for piece in pieces]


def test_freezing_one_atom_freezes_all_that_are_tied_to_it_with_its_first_reason() -> None:
    atoms = Atoms()
    one, other, third = (atoms.fresh(3) for _ in range(3))
    atoms.unite(one, other)
    atoms.freeze(other[:1], "first")
    atoms.unite(other, third)
    atoms.freeze(third, "second")
    assert [atoms.reason(int(atom)) for atom in one] == ["first", "second", "second"]
    assert not atoms.is_live(third)
