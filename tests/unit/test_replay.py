"""Whole graphs in torch: right outputs, values transformed on the way, and refusals that name what is missing."""

from __future__ import annotations

import weakref
from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from replays import MODELS, arithmetic, assert_replays, fed, numbers

from edgeopt.errors import PassFailed
from edgeopt.passes import CastFp16, FuseTransformer, QuantizeStatic, Tidy

torch = pytest.importorskip("torch", reason="needs torch, which the extra train brings")

from edgeopt.training import parameters  # noqa: E402 - behind the check for torch
from edgeopt.training.replay import Replay, write_back  # noqa: E402 - as above


# ---------------------------------------------------------------- outputs
@pytest.mark.parametrize("name", MODELS)
def test_graph_gives_what_onnx_runtime_gives(name: str) -> None:
    assert_replays(MODELS[name](), seeds=(0, 1, 2, 3))


def test_fused_transformer_is_replayed_too() -> None:
    model = builders.bert_block()
    evidence = builders.FakeEvidence(model, samples=0)
    fused = FuseTransformer().apply(Tidy().apply(model, {}, evidence), {}, evidence)
    assert {"Attention", "SkipLayerNormalization"} <= {node.op_type for node in fused.graph}
    assert_replays(fused, tolerance=1e-4)


def test_quantized_graph_is_replayed_within_one_step_of_its_scales() -> None:
    model = Tidy().apply(builders.conv_net(), {}, builders.FakeEvidence(builders.conv_net(), samples=0))
    quantized = QuantizeStatic().apply(model, {}, builders.FakeEvidence(model))
    assert any(node.op_type == "QuantizeLinear" for node in quantized.graph)
    assert_replays(quantized, tolerance=2e-2)


def test_half_precision_is_computed_in_single_and_written_back_in_half() -> None:
    model = builders.mlp()
    half = CastFp16().apply(model, {}, builders.FakeEvidence(model, samples=0))
    assert_replays(half, tolerance=5e-3)
    replay = Replay(half)
    assert all(weight.dtype == torch.float32 for weight in replay.weights.values())
    changed = {name: data * 1.25 for name, data in numbers(replay).items()}
    before, written = (parameters.constants(each) for each in (half, write_back(half, changed)))
    kinds = set()
    for name, data in changed.items():
        old, tensor = parameters.tensor_of(before[name]), parameters.tensor_of(written[name])
        assert old is not None and tensor is not None and tensor.dtype == old.dtype
        kinds.add(tensor.dtype)
        np.testing.assert_allclose(tensor.numpy(), data, rtol=1e-3)
    assert ir.DataType.FLOAT16 in kinds


def stacking_loop() -> ir.Model:
    """A Loop that ends by its own condition and stacks what each round gave."""
    net, body = builders.Net(), builders.Net(prefix="body_")
    body.op("Mul", "state", body.const(np.float32(2.0)), output="next")
    body.op("Less", body.op("ReduceMax", "next", keepdims=0), body.const(np.float32(20.0)), output="go_out")
    body.op("Add", "next", body.op("Cast", "turn", to=TensorProto.FLOAT), output="seen")
    inputs = {"turn": (TensorProto.INT64, []), "go": (TensorProto.BOOL, []), "state": (TensorProto.FLOAT, [3])}
    outputs = {"go_out": (TensorProto.BOOL, []), "next": (TensorProto.FLOAT, [3]), "seen": (TensorProto.FLOAT, [3])}
    start = net.op("Clip", net.op("Abs", "row"), net.const(np.float32(0.5)))
    last, seen = net.op("Loop", "", net.const(np.bool_(True)), start, outputs=2, body=body.graph("b", inputs, outputs))
    net.op("Identity", last, output="last")
    net.op("Identity", seen, output="all")
    return net.build({"row": [3]}, {"last": [3], "all": [None, 3]})


def scan(**attributes: Any) -> ir.Model:
    """A running sum along an axis."""
    net, body = builders.Net(), builders.Net(prefix="body_")
    body.op("Add", "total", "entry", output="total_out")
    body.op("Identity", "total_out", output="seen")
    spec = (TensorProto.FLOAT, [2])
    graph = body.graph("b", {"total": spec, "entry": spec}, {"total_out": spec, "seen": spec})
    last, seen = net.op("Scan", "start", "rows", outputs=2, body=graph, num_scan_inputs=1, **attributes)
    net.op("Identity", last, output="last")
    net.op("Identity", seen, output="sums")
    return net.build({"start": [2], "rows": [2, 2]}, {"last": [2], "sums": [2, 2]})


def test_loop_ends_by_its_condition_and_stacks_its_rounds() -> None:
    assert_replays(stacking_loop())


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"scan_input_directions": [1], "scan_output_axes": [1]},
        {"scan_input_axes": [1], "scan_output_directions": [1]},
    ],
)
def test_scan_walks_along_any_axis_both_ways(attributes: dict[str, Any]) -> None:
    assert_replays(scan(**attributes))


def test_one_sample_graph_takes_several_where_only_a_reshape_says_one() -> None:
    net = builders.Net()
    deep = net.op("Conv", "image", net.weight(4, 3, 3, 3))
    net.op("MatMul", net.op("Reshape", deep, net.ints(1, 4, -1)), net.weight(4, 2), output="out")
    model = net.build({"image": [1, 3, 4, 4]}, {"out": [1, 4, 2]})
    images = np.random.default_rng(0).standard_normal((3, 3, 4, 4)).astype(np.float32)
    with torch.no_grad():
        together = Replay(model)({"image": torch.from_numpy(images)})["out"].numpy()
    alone = [builders.run(model, {"image": image[None]})[0] for image in images]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-5, atol=1e-5)


def test_asked_values_come_with_the_outputs() -> None:
    model = builders.branches()
    feeds = fed(builders.feeds(model)) | {"flag": torch.tensor(True)}
    weight = next(name for name in parameters.weights(model) if name.startswith("then_"))
    values = Replay(model)(feeds, also=["then_out", "rows", weight])
    assert list(values) == ["result", "then_out", "rows", weight]
    assert torch.equal(values["rows"], feeds["rows"])
    assert torch.all(values["then_out"] >= 0)


@pytest.mark.parametrize("name", ["nobody", "else_out"])
def test_asking_for_a_value_that_is_not_made_is_refused(name: str) -> None:
    feeds = fed(builders.feeds(builders.branches())) | {"flag": torch.tensor(True)}
    with pytest.raises(PassFailed, match=name):
        Replay(builders.branches())(feeds, also=[name])


def test_values_are_let_go_after_their_last_reader() -> None:
    net = builders.Net()
    value = "rows"
    for _ in range(20):
        value = net.op("Tanh", net.op("MatMul", value, net.weight(8, 8)))
    net.op("Identity", value, output="out")
    replay = Replay(net.build({"rows": ["N", 8]}, {"out": ["N", 8]}))
    seen: list[weakref.ref[Any]] = []
    most = 0

    def watch(_name: str, tensor: Any) -> Any:
        nonlocal most
        copy = tensor.clone()
        seen.append(weakref.ref(copy))
        most = max(most, sum(reference() is not None for reference in seen))
        return copy

    replay.value_transform = watch
    with torch.no_grad():
        replay({"rows": torch.ones(2, 8)})
    assert len(seen) > 40
    assert most <= 4


def test_constant_subgraph_is_computed_once_and_never_transformed() -> None:
    net = builders.Net()
    steps = net.op("Range", *(net.const(np.float32(number)) for number in (0, 4, 1)), output="steps")
    net.op("Add", "rows", net.op("Mul", steps, net.const(np.float32(0.5)), output="half_steps"), output="out")
    replay = Replay(net.build({"rows": ["N", 4]}, {"out": ["N", 4]}))
    seen: list[str] = []
    replay.value_transform = lambda name, tensor: (seen.append(name), tensor)[1]
    made = replay({"rows": torch.zeros(1, 4)})["out"]
    assert made.tolist() == [[0.0, 0.5, 1.0, 1.5]]
    assert seen == ["rows", "out"]


def test_outputs_that_nobody_reads_are_no_reason_to_refuse() -> None:
    net = builders.Net()
    normal, _, _ = net.op("LayerNormalization", "rows", net.weight(4), outputs=3)
    net.op("Identity", normal, output="out")
    assert_replays(net.build({"rows": ["N", 4]}, {"out": ["N", 4]}))


# ---------------------------------------------------------------- transforms
def test_weights_are_transformed_once_a_run_under_their_names() -> None:
    model = builders.shared_initializers()
    replay = Replay(model)
    seen: list[str] = []

    def doubled(name: str, tensor: Any) -> Any:
        seen.append(name)
        return tensor * 2

    replay.weight_transform = doubled
    feeds = fed(builders.feeds(model))
    with torch.no_grad():
        made = replay(feeds)["sum"]
    assert sorted(seen) == sorted(replay.weights)
    twice = write_back(model, {name: data * 2 for name, data in numbers(replay).items()})
    np.testing.assert_allclose(made.numpy(), builders.run(twice, builders.feeds(model))[0], rtol=1e-5, atol=1e-5)


def test_values_are_transformed_after_they_are_made_inputs_included() -> None:
    replay = Replay(arithmetic("Add", [0.5, 0.25, 0.125, 0.75]))
    replay.value_transform = lambda name, tensor: tensor + 1 if name == "rows" else tensor * 10
    made = replay({"rows": torch.zeros(1, 4)})["out"]
    assert made.tolist() == [[15.0, 12.5, 11.25, 17.5]]


# ---------------------------------------------------------------- refusals
def test_unknown_operators_are_named_before_anything_is_computed() -> None:
    net = builders.Net()
    net.op("Det", net.op("GlobalLpPool", "image"), output="out")
    model = net.build({"image": [1, 1, 2, 2]}, {"out": []})
    with pytest.raises(PassFailed, match=r"GlobalLpPool, Det.*'GlobalLpPool_"):
        Replay(model)


def test_broken_branch_does_no_harm_until_it_is_taken() -> None:
    net, good, bad = builders.Net(), builders.Net(prefix="good_"), builders.Net(prefix="bad_")
    good.op("Identity", "rows", output="good_out")
    bad.op("Reshape", bad.const(np.ones(3, np.float32)), bad.ints(2, 2), output="bad_out")
    spec = (TensorProto.FLOAT, [2, 2])
    bodies = {
        "then_branch": good.graph("g", {}, {"good_out": spec}),
        "else_branch": bad.graph("b", {}, {"bad_out": spec}),
    }
    net.op("If", "flag", output="out", **bodies)
    replay = Replay(net.build({"rows": [2, 2], "flag": []}, {"out": [2, 2]}, flag=TensorProto.BOOL))
    rows = torch.ones(2, 2)
    assert torch.equal(replay({"rows": rows, "flag": torch.tensor(True)})["out"], rows)
    with pytest.raises(PassFailed, match=r"Reshape node 'bad_"):
        replay({"rows": rows, "flag": torch.tensor(False)})


def test_missing_input_is_named() -> None:
    with pytest.raises(PassFailed, match="'rows' is missing"):
        Replay(builders.mlp())({})


def test_misfit_is_reported_with_its_node() -> None:
    with pytest.raises(PassFailed, match=r"the MatMul node 'MatMul_.*cannot be replayed"):
        Replay(builders.mlp())({"rows": torch.zeros(2, 15)})


def test_constant_of_a_type_that_torch_lacks_is_refused() -> None:
    net = builders.Net()
    net.op("Equal", "word", net.const(np.asarray(["a"], dtype=object)), output="same")
    model = net.build({"word": [1]}, {"same": [1]}, word=TensorProto.STRING, same=TensorProto.BOOL)
    with pytest.raises(PassFailed, match="STRING"):
        Replay(model)
