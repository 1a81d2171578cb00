"""The graph room: copies are safe, constants are found, broken graphs are caught, files are the same every time."""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builders import Net

from edgeopt.errors import PassFailed
from edgeopt.graph import check, edit, naming, opset, save, shapes, tensors


def value(model: ir.Model, name: str) -> ir.Value:
    found = {v.name: v for graph in model.graphs() for node in graph for v in node.outputs}
    found.update({v.name: v for graph in model.graphs() for v in (*graph.inputs, *graph.initializers.values())})
    return found[name]


# ---------------------------------------------------------------- copying
def test_renaming_and_retyping_in_a_copy_leaves_the_original_alone() -> None:
    model = builders.branches()
    before = builders.to_bytes(model)
    own = edit.copy(model)
    for graph in own.graphs():
        for held in (*graph.initializers.values(), *(v for node in graph for v in node.outputs)):
            held.name = f"{held.name}_x"
            held.dtype = ir.DataType.FLOAT16
        for node in graph:
            node.attributes.clear()
    assert builders.to_bytes(model) == before


def test_copy_reads_small_external_constants_and_keeps_big_ones_on_disk(tmp_path: Path) -> None:
    model = builders.with_external_data(builders.mlp(width=64), tmp_path)
    kinds = {v.name: type(v.const_value) for v in edit.copy(model).graph.initializers.values()}
    big = {
        name
        for name, v in model.graph.initializers.items()
        if v.const_value is not None and v.const_value.nbytes > 1024
    }
    assert {name for name, kind in kinds.items() if kind is ir.ExternalTensor} == big
    assert big


def test_replaced_graph_output_keeps_its_name_and_shape() -> None:
    model = edit.copy(builders.mlp())
    last = model.graph.outputs[0].producer()
    assert last is not None
    node = ir.node("Identity", [last.inputs[0]], name="direct")
    edit.insert_after(last, node)
    edit.replace_value(last.outputs[0], node.outputs[0])
    edit.remove(last)
    check.verify(model, like=builders.mlp())


def test_prune_drops_what_nobody_reads() -> None:
    model = edit.copy(builders.mlp())
    edit.add_initializer(model.graph, "orphan", np.zeros(4, np.float32))
    model.graph.append(ir.node("Relu", [model.graph.inputs[0]], name="dead"))
    edit.prune(model)
    assert builders.to_bytes(model) == builders.to_bytes(edit.copy(builders.mlp()))


def test_fresh_names_avoid_those_of_subgraphs() -> None:
    names = naming.Names(builders.branches())
    assert names.fresh("then_out") == "then_out_1"
    assert names.fresh("then_out") == "then_out_2"
    assert names.fresh("new") == "new"


def test_nodes_of_subgraphs_are_counted() -> None:
    assert edit.count(builders.branches(), "MatMul") == 3
    assert edit.count(builders.loop()) == 5 - 1 + 1


# ---------------------------------------------------------------- constants
@pytest.mark.parametrize("constants", [False, True])
def test_weight_is_found_as_initializer_in_constant_node_and_behind_identity(constants: bool) -> None:
    net = Net(constants=constants)
    weight = net.op("Identity", net.op("Identity", net.weight(4, 2)))
    net.op("MatMul", "rows", weight, output="out")
    model = net.build({"rows": ["N", 4]}, {"out": ["N", 2]})
    expected = Net(constants=constants).random.standard_normal((4, 2)).astype(np.float32) * np.float32(0.3)
    found = tensors.array(value(model, weight))
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1.0


def test_what_depends_on_an_input_is_not_constant() -> None:
    model = builders.mlp()
    assert tensors.constant(model.graph.inputs[0]) is None
    assert tensors.array(model.graph.outputs[0]) is None
    assert tensors.constant(None) is None


def test_overridable_initializer_is_not_constant() -> None:
    model = builders.weights_as_inputs(builders.mlp())
    assert all(tensors.constant(v) is None for v in model.graph.initializers.values())


def test_scalar_reads_one_number_only() -> None:
    net = Net()
    one, two = net.const(np.float32([2.5])), net.weight(2)
    net.op("Add", net.op("Mul", "x", one), two, output="y")
    model = net.build({"x": [2]}, {"y": [2]})
    assert tensors.scalar(value(model, one)) == 2.5
    assert tensors.scalar(value(model, two)) is None


def test_parameter_bytes_count_every_constant_once() -> None:
    plain, in_nodes = builders.conv_net(), builders.conv_net(constants=True)
    weights = sum(v.const_value.nbytes for v in plain.graph.initializers.values() if v.const_value is not None)
    assert tensors.parameter_bytes(plain) == tensors.parameter_bytes(in_nodes) == weights


def test_shared_initializer_is_known_to_be_shared() -> None:
    model = builders.shared_initializers()
    conv = next(node for node in model.graph if node.op_type == "Conv")
    assert conv.inputs[1] is not None
    assert tensors.is_shared(conv.inputs[1])
    assert not tensors.is_shared(conv.outputs[0])


# ---------------------------------------------------------------- checking
def test_sound_models_pass_the_check(tmp_path: Path) -> None:
    for model in (builders.conv_net(), builders.branches(), builders.loop(), builders.lstm(), builders.bert_block()):
        check.verify(model, like=model)
    check.verify(builders.with_external_data(builders.branches(), tmp_path))


def test_changed_interface_is_caught_with_what_changed() -> None:
    for change in ("name", "shape", "type"):
        model = edit.copy(builders.mlp())
        if change == "name":
            model.graph.outputs[0].name = "other"
        elif change == "shape":
            model.graph.inputs[0].shape = ir.Shape(["M", 16])
        else:
            model.graph.inputs[0].dtype = ir.DataType.FLOAT16
        with pytest.raises(PassFailed, match="interface"):
            check.verify(model, like=builders.mlp())


def test_weights_that_stop_being_inputs_do_not_change_the_interface() -> None:
    old = builders.weights_as_inputs(builders.mlp())
    assert check.interface(old) == check.interface(builders.mlp())


def test_lost_input_is_caught() -> None:
    model = edit.copy(builders.lstm())
    model.graph.inputs.pop()
    with pytest.raises(PassFailed, match="4 inputs and outputs were 5"):
        check.verify(model, like=builders.lstm())


def test_missing_opset_import_is_caught() -> None:
    model = edit.copy(builders.mlp())
    model.graph.append(ir.node("Gelu", [model.graph.inputs[0]], domain="com.microsoft", name="g"))
    with pytest.raises(PassFailed, match=r"com\.microsoft"):
        check.verify(model)


def test_name_that_is_produced_twice_is_caught() -> None:
    model = edit.copy(builders.mlp())
    first, second = [node for node in model.graph if node.op_type == "MatMul"]
    first.outputs[0].name = second.outputs[0].name
    with pytest.raises(PassFailed, match="twice"):
        check.verify(model)


def test_reader_before_its_producer_is_caught() -> None:
    model = edit.copy(builders.mlp())
    last = model.graph[-1]
    model.graph.remove(last)
    model.graph.insert_before(model.graph[0], last)
    with pytest.raises(PassFailed, match="not valid ONNX"):
        check.verify(model)


# ---------------------------------------------------------------- opset
def test_softmax_of_old_opset_keeps_its_meaning_when_raised() -> None:
    model = builders.old_softmax()
    raised = opset.raised(model, 17)
    assert opset.opset(raised) == 17
    feeds = builders.feeds(model)
    np.testing.assert_array_equal(builders.run(raised, feeds)[0], builders.run(model, feeds)[0])
    check.verify(raised, like=model)


def test_raising_keeps_weights_of_branches_and_external_files(tmp_path: Path) -> None:
    model = builders.with_external_data(builders.branches(opset=11), tmp_path)
    raised = opset.raised(model, 17)
    assert opset.opset(raised) == 17
    for flag in (True, False):
        feeds = {**builders.feeds(model), "flag": np.asarray(flag)}
        expected = builders.run(builders.branches(opset=11), feeds)
        np.testing.assert_allclose(builders.run(raised, feeds)[0], expected[0], rtol=1e-6)
    check.verify(raised, like=model)


def test_model_stays_at_its_opset_where_it_is_new_enough_or_cannot_be_converted() -> None:
    model = builders.mlp()
    assert opset.raised(model, 17) is model
    net = Net(opset=11)
    net.op("Upsample", "x", net.const(np.float32([1, 1, 2, 2])), output="y", mode="nearest")
    proto = onnx.helper.make_model(
        net.graph("main", {"x": (1, [1, 1, 2, 2])}, {"y": (1, [1, 1, 4, 4])}),
        opset_imports=[onnx.helper.make_opsetid("", 11)],
        ir_version=8,
    )
    unknown = ir.from_proto(proto)
    assert opset.raised(unknown, 17) is unknown


# ---------------------------------------------------------------- shapes
def test_computed_reshape_targets_become_constant() -> None:
    model = edit.copy(builders.bert_block())
    shapes.infer(model)
    assert shapes.settle_reshapes(model) == 4
    edit.prune(model)
    assert edit.count(model, "Shape") == 0
    feeds = builders.feeds(model, symbols=3)
    np.testing.assert_array_equal(builders.run(model, feeds)[0], builders.run(builders.bert_block(), feeds)[0])


def test_reshape_with_two_unknown_sizes_is_left_alone() -> None:
    net = Net()
    net.op("Reshape", "x", "target", output="y")
    model = net.build({"x": ["A", "B"], "target": [2]}, {"y": ["C", "D"]}, target=onnx.TensorProto.INT64)
    assert shapes.settle_reshapes(edit.copy(model)) == 0


def test_size_of_an_intermediate_is_read_from_the_input_that_has_it() -> None:
    net = Net()
    hidden = net.op("Relu", "x")
    length = net.op("Shape", hidden, start=1, end=2)
    net.op("Expand", net.weight(1), length, output="ones")
    net.op("Identity", hidden, output="y")
    model = edit.copy(net.build({"x": ["A", "B"]}, {"y": ["A", "B"], "ones": ["B"]}))
    shapes.infer(model)
    assert shapes.read_sizes_from_inputs(model) == 1
    shape = next(node for node in model.graph if node.op_type == "Shape")
    assert shape.inputs[0] is model.graph.inputs[0]
    assert builders.run(model, {"x": np.ones((2, 5), np.float32)})[1].shape == (5,)


def test_invented_dimension_names_are_forgotten_and_declared_ones_kept() -> None:
    model = edit.copy(builders.mlp())
    known = shapes.symbols(model)
    model.graph[0].outputs[0].shape = ir.Shape(["N", "unk__7"])
    shapes.forget_invented(model, known)
    assert [getattr(size, "value", size) for size in model.graph[0].outputs[0].shape or ()] == ["N", None]


# ---------------------------------------------------------------- saving
def test_saved_model_is_one_file_with_the_same_bytes_every_time(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    external = builders.with_external_data(builders.conv_net(), tmp_path / "in")
    written = save.save(external, tmp_path / "a.onnx")
    save.save(external, tmp_path / "b.onnx")
    assert written == (tmp_path / "a.onnx",)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    (tmp_path / "in" / "weights.bin").unlink()
    feeds = builders.feeds(builders.conv_net())
    expected = builders.run(builders.conv_net(), feeds)
    np.testing.assert_array_equal(builders.run(ir.load(tmp_path / "a.onnx"), feeds)[0], expected[0])


def test_weights_beyond_the_limit_go_to_a_file_beside_the_model(tmp_path: Path) -> None:
    model = builders.mlp(width=64)
    before = builders.to_bytes(model)
    written = save.save(model, tmp_path / "model.onnx", inline_bytes=1000)
    assert written == (tmp_path / "model.onnx", tmp_path / "model.onnx.data")
    assert written[1].stat().st_size >= 64 * 16 * 4
    assert builders.to_bytes(model) == before
    loaded = ir.load(written[0])
    np.testing.assert_array_equal(
        builders.run(loaded, builders.feeds(model))[0], builders.run(model, builders.feeds(model))[0]
    )
    check.verify(loaded, like=model)
