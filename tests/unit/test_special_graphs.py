"""Recurrent cells, control flow, shared weights and packed attention under the quantization passes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest
import special
from builders import FakeEvidence, Net
from fused import noise_ratio, operators

from edgeopt.catalogue import find_pass
from edgeopt.graph import check, edit, gelu, load, rearrange, save
from edgeopt.integrity import model_files
from edgeopt.passes.quantize_dynamic import QuantizeDynamic
from edgeopt.passes.quantize_weights import QuantizeWeights
from edgeopt.stages import baseline


def quantize(model: ir.Model, **settings: Any) -> ir.Model:
    """With weights that no kernel saturates on, on whatever CPU this runs."""
    narrow = {"reduced_range": True, **settings}
    quantized = QuantizeDynamic().apply(model, narrow, FakeEvidence(model, samples=0))
    check.verify(quantized, like=model)
    return quantized


def counts(model: ir.Model) -> Counter[str]:
    """How often each operator occurs, bodies included."""
    return Counter(node.op_type for node in edit.nodes(model))


def matrices(model: ir.Model, dtype: ir.DataType) -> list[str]:
    """Names of the matrices of one type among the constants, bodies included; a row of scales is none."""
    constants = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    return [
        str(tensor.name)
        for tensor in constants
        if tensor is not None and tensor.dtype == dtype and sum(side > 1 for side in tensor.shape.numpy()) > 1
    ]


def test_a_bidirectional_lstm_with_peepholes_and_lengths_runs_in_integers(tmp_path: Path) -> None:
    model = special.lstm_stack()
    quantized = quantize(model)
    assert operators(quantized, tmp_path)["DynamicQuantizeLSTM"] == 2
    assert noise_ratio(model, quantized) < 0.01


@pytest.mark.parametrize("name", ["recurrent_branches", "nested_loop", "scan"])
def test_layers_in_bodies_become_integers_and_none_of_their_float_weights_is_left(name: str) -> None:
    model = getattr(special, name)()
    quantized = quantize(model)
    assert not {"MatMul", "Gemm", "LSTM"} & set(counts(quantized))
    assert not matrices(quantized, ir.DataType.FLOAT)
    assert noise_ratio(model, quantized) < 0.01


@pytest.mark.parametrize("flag", [True, False])
def test_both_branches_of_an_if_compute_what_they_did(flag: bool) -> None:
    model = special.recurrent_branches()
    feeds = {**builders.feeds(model, seed=1), "flag": np.array(flag)}
    right, found = builders.run(model, feeds)[0], builders.run(quantize(model), feeds, optimized=True)[0]
    assert np.square(found - right).sum() < 0.01 * np.square(right).sum()


def test_a_weight_that_bodies_and_the_main_graph_share_is_quantized_once_and_stays_shared() -> None:
    quantized = quantize(special.recurrent_branches())
    # The shared one, the else branch's own, and the LSTM's two.
    assert len(matrices(quantized, ir.DataType.INT8)) == 4
    readers = [node for node in edit.nodes(quantized) if node.op_type == "MatMulInteger"]
    assert Counter(node.inputs[1] for node in readers).most_common(1)[0][1] == 3


def test_a_layer_in_a_loop_is_fused_by_the_runtime(tmp_path: Path) -> None:
    import onnx

    operators(quantize(special.scan()), tmp_path)
    optimized = ir.from_proto(onnx.load(tmp_path / "optimized.onnx"))
    assert counts(optimized)["DynamicQuantizeMatMul"] == 2
    assert counts(optimized)["MatMulInteger"] == 0


@pytest.mark.parametrize("name", ["lstm_stack", "recurrent_branches", "nested_loop", "scan", "tied_embedding"])
def test_layers_lists_exactly_what_apply_changes(name: str) -> None:
    model = getattr(special, name)()
    layers = QuantizeDynamic().layers(model)
    before = {node.name for node in edit.nodes(model) if node.op_type in ("MatMul", "Gemm", "LSTM")}
    assert set(layers) == before
    for layer in layers:
        others = [name for name in layers if name != layer]
        alone = quantize(model, skip=json.dumps(others))
        left = {node.name for node in edit.nodes(alone) if node.op_type in ("MatMul", "Gemm", "LSTM")}
        assert left == set(others)


@pytest.mark.parametrize("mask", ["padding", "bias"])
def test_the_projection_of_a_packed_attention_is_quantized(mask: str, tmp_path: Path) -> None:
    model = special.packed_attention(mask=mask)
    quantized = quantize(model)
    left = operators(quantized, tmp_path)
    assert left["MultiHeadAttention"] == 1
    assert left["Attention"] == 0
    assert left["DynamicQuantizeMatMul"] + left["MatMulIntegerToFloat"] == 2
    assert not matrices(quantized, ir.DataType.FLOAT)
    assert noise_ratio(model, quantized) < 0.01
    assert len(QuantizeDynamic().layers(model)) == 2


def test_a_masked_attention_stays_masked() -> None:
    model = special.packed_attention()
    feeds = builders.feeds(model, seed=2, symbols=5)
    feeds["mask"] = np.array([[1] * 5, [1, 1, 1, 0, 0]] + [[1, 0, 0, 0, 0]] * 3, np.int32)
    right, found = builders.run(model, feeds)[0], builders.run(quantize(model), feeds, optimized=True)[0]
    assert np.square(found - right).sum() < 0.001 * np.square(right).sum()


def test_an_attention_whose_mask_means_something_else_is_left_alone() -> None:
    quantized = quantize(special.packed_attention(mask="lengths"))
    assert counts(quantized)["Attention"] == 1


def test_a_skipped_attention_stays_fused_and_float() -> None:
    model = special.packed_attention()
    name = QuantizeDynamic().layers(model)[0]
    assert counts(quantize(model, skip=json.dumps([name])))["Attention"] == 1


def test_a_tied_embedding_is_looked_up_in_float_and_multiplied_in_integers(tmp_path: Path) -> None:
    model = special.tied_embedding()
    quantized = quantize(model)
    assert operators(quantized, tmp_path)["DynamicQuantizeMatMul"] == 2
    assert len(matrices(quantized, ir.DataType.FLOAT)) == 1
    assert noise_ratio(model, quantized) < 0.01


@pytest.mark.parametrize("name", ["gru", "recurrent_branches", "nested_loop", "scan", "tied_embedding"])
def test_packed_weights_reach_recurrent_cells_bodies_and_tied_tables(name: str) -> None:
    model = getattr(special, name)()
    packed = QuantizeWeights().apply(model, {"bits": 8}, FakeEvidence(model))
    check.verify(packed, like=model)
    assert not matrices(packed, ir.DataType.FLOAT)
    assert len(builders.to_bytes(packed)) < 0.32 * len(builders.to_bytes(model))
    assert noise_ratio(model, packed) < 1e-3


@pytest.mark.parametrize("half_first", [True, False])
def test_gelu_in_either_order_is_one_kernel_behind_clean_up_with_the_same_bits(
    half_first: bool, tmp_path: Path
) -> None:
    net = Net()
    error = net.op("Erf", net.op("Div", "x", net.const(np.float32(np.sqrt(2)))))
    share, half = net.op("Add", error, net.const(np.float32(1))), net.const(np.float32(0.5))
    if half_first:
        net.op("Mul", "x", net.op("Mul", half, share), output="y")
    else:
        net.op("Mul", net.op("Mul", "x", share), half, output="y")
    model = net.build({"x": ["N", 8]}, {"y": ["N", 8]})
    made = find_pass("tidy").apply(model, {}, FakeEvidence(model))
    assert operators(made, tmp_path) == {"Gelu": 1}
    feeds = builders.feeds(model)
    np.testing.assert_array_equal(builders.run(made, feeds)[0], builders.run(model, feeds)[0])


def test_a_half_that_others_read_stays_where_it_is() -> None:
    net = Net()
    error = net.op("Erf", net.op("Div", "x", net.const(np.float32(np.sqrt(2)))))
    halved = net.op("Mul", net.const(np.float32(0.5)), net.op("Add", error, net.const(np.float32(1))))
    net.op("Mul", "x", halved, output="y")
    net.op("Tanh", halved, output="z")
    model = net.build({"x": ["N", 8]}, {"y": ["N", 8], "z": ["N", 8]})
    assert gelu.order_gelu(edit.copy(model)) == 0


def test_external_weights_share_one_mapping_however_often_the_model_is_copied(tmp_path: Path) -> None:
    model = builders.with_external_data(builders.bert_block(), tmp_path)
    mapped = load.load(tmp_path / "model.onnx")
    copies = [edit.copy(mapped) for _ in range(3)]
    large = [name for name, value in mapped.graph.initializers.items() if value.shape and len(value.shape) > 1]
    arrays = [copy.graph.initializers[name].const_value.numpy() for copy in copies for name in large]  # type: ignore[union-attr]  # weights have values
    assert len(arrays) > 10
    mappings = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert len(mappings) == 1
    for array, name in zip(arrays, large * 3, strict=True):
        np.testing.assert_array_equal(array, model.graph.initializers[name].const_value.numpy())  # type: ignore[union-attr]


def cut_and_joined_lstm(*, read_elsewhere: bool = False) -> ir.Model:
    """As PyTorch's exporter writes an LSTM: its gates in another order, put right by slices of the weights."""
    net, hidden = Net(seed=30), 32
    order = ((0, 1), (3, 4), (1, 3))

    def reordered(weight: str) -> str:
        parts = [
            net.op("Slice", weight, net.ints(first * hidden), net.ints(last * hidden), net.ints(0))
            for first, last in order
        ]
        return str(net.op("Unsqueeze", net.op("Concat", *parts, axis=0), net.ints(0)))

    weights = [net.weight(4 * hidden, width, scale=0.1) for width in (16, hidden)]
    _, last, _ = net.op("LSTM", "frames", *map(reordered, weights), outputs=3, hidden_size=hidden)
    net.op("Squeeze", last, net.ints(0), output="state")
    outputs: dict[str, builders.Shape] = {"state": ["N", hidden]}
    if read_elsewhere:
        for number, weight in enumerate(weights):
            net.op("ReduceMax", weight, output=f"largest_{number}", keepdims=0)
            outputs[f"largest_{number}"] = []
    return net.build({"frames": ["T", "N", 16]}, outputs)


def test_an_lstm_whose_weights_are_cut_and_joined_is_quantized_behind_clean_up(tmp_path: Path) -> None:
    model = cut_and_joined_lstm()
    clean = find_pass("tidy").apply(model, {}, FakeEvidence(model))
    assert not {"Slice", "Concat"} & set(counts(clean))
    assert len(builders.to_bytes(clean)) < len(builders.to_bytes(model))
    quantized = quantize(clean)
    assert operators(quantized, tmp_path)["DynamicQuantizeLSTM"] == 1
    assert noise_ratio(model, quantized) < 0.01


def test_weights_that_would_be_stored_twice_are_left_cut() -> None:
    model = edit.copy(cut_and_joined_lstm())
    assert rearrange.fold_rearranged(model) == 2
    shared = edit.copy(cut_and_joined_lstm(read_elsewhere=True))
    assert rearrange.fold_rearranged(shared) == 0


def test_an_original_with_weights_in_other_files_becomes_an_artifact_that_needs_none_of_them(tmp_path: Path) -> None:
    model, dropped = builders.mlp(width=64), tmp_path / "dropped"
    dropped.mkdir()
    builders.with_external_data(model, dropped)
    whole = baseline.whole(dropped / "model.onnx", load.load(dropped / "model.onnx"), tmp_path)
    (dropped / "weights.bin").unlink()
    assert sum(file.stat().st_size for file in model_files(whole)) > len(builders.to_bytes(model)) * 0.9
    feeds = builders.feeds(model)
    np.testing.assert_array_equal(builders.run(ir.load(whole), feeds)[0], builders.run(model, feeds)[0])


def test_an_original_in_one_file_or_with_its_own_data_file_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    ir.save(builders.mlp(), file)
    assert baseline.whole(file, load.load(file), tmp_path) == file
    ir.save(builders.mlp(), file, external_data="model.onnx.data", size_threshold_bytes=0)
    assert baseline.whole(file, load.load(file), tmp_path) == file


def test_a_constant_node_with_external_data_is_saved_with_its_values(tmp_path: Path) -> None:
    model = builders.conv_net(constants=True)
    node = next(
        node
        for node in model.graph
        if node.op_type == "Constant" and node.attributes["value"].as_tensor().nbytes > 1024
    )
    tensor = node.attributes["value"].as_tensor()
    (tmp_path / "weights.bin").write_bytes(tensor.tobytes())
    outside = ir.ExternalTensor(
        "weights.bin", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name="w", base_dir=tmp_path
    )
    own = edit.copy(model)
    moved = next(each for each in own.graph if each.outputs[0].name == node.outputs[0].name)
    moved.attributes["value"] = ir.AttrTensor("value", outside)
    assert save.external_names(own) == {"weights.bin"}
    save.save(own, tmp_path / "out.onnx")
    (tmp_path / "weights.bin").unlink()
    feeds = builders.feeds(model)
    np.testing.assert_array_equal(builders.run(ir.load(tmp_path / "out.onnx"), feeds)[0], builders.run(model, feeds)[0])
