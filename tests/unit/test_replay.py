"""Whole graphs in torch: right outputs, the right weights, gradients that arrive, and a write-back that touches nothing else."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edgeopt.errors import PassFailed
from edgeopt.passes import CastFp16, FuseTransformer, QuantizeStatic, Tidy

torch = pytest.importorskip("torch", reason="needs torch, which the extra train brings")

from edgeopt.training import parameters  # noqa: E402 - behind the check for torch
from edgeopt.training.replay import Replay, write_back  # noqa: E402 - as above

MODELS: dict[str, Callable[[], ir.Model]] = {
    "conv_net": builders.conv_net,
    "weights in Constant nodes": lambda: builders.conv_net(constants=True),
    "weights as inputs": lambda: builders.weights_as_inputs(builders.conv_net()),
    "relu_chain": builders.relu_chain,
    "depthwise_residual": builders.depthwise_residual,
    "scaled_head": builders.scaled_head,
    "mlp": builders.mlp,
    "bert_block": builders.bert_block,
    "lstm": builders.lstm,
    "branches": builders.branches,
    "loop": builders.loop,
    "shared_initializers": builders.shared_initializers,
    "old_softmax": builders.old_softmax,
}


def fed(arrays: builders.Arrays) -> dict[str, Any]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def numbers(replay: Replay) -> dict[str, np.ndarray]:
    return {name: weight.detach().numpy() for name, weight in replay.weights.items()}


def assert_replays(model: ir.Model, *, tolerance: float = 1e-5, seeds: tuple[int, ...] = (0, 1)) -> None:
    replay = Replay(model)
    for seed in seeds:
        arrays = builders.feeds(model, seed=seed)
        with torch.no_grad():
            made = replay(fed(arrays))
        assert list(made) == [value.name for value in model.graph.outputs]
        for ours, theirs in zip(made.values(), builders.run(model, arrays), strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=tolerance, atol=tolerance)


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


# ---------------------------------------------------------------- which constants are weights
def test_layers_and_norms_hold_weights_and_running_statistics_are_none() -> None:
    model = builders.conv_net()
    expected = set()
    for node in model.graph:
        positions = {"Conv": (1, 2), "Gemm": (1, 2), "BatchNormalization": (1, 2)}.get(node.op_type, ())
        expected |= {str(node.inputs[index].name) for index in positions if index < len(node.inputs)}
    assert set(Replay(model).weights) == expected


def test_weights_of_branches_and_bodies_are_weights() -> None:
    assert {name.partition("_")[0] for name in parameters.weights(builders.branches())} >= {"then", "else"}
    assert any(name.startswith("body_") for name in parameters.weights(builders.loop()))


def arithmetic(kind: str, data: Any) -> ir.Model:
    net = builders.Net()
    net.op(kind, "rows", net.const(np.asarray(data, np.float32), "constant"), output="out")
    return net.build({"rows": ["N", 4]}, {"out": ["N", 4]})


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (arithmetic("Mul", [0.5]), "a single number is a setting"),
        (arithmetic("Add", [0, 0, -1e30, -1e30]), "a mask"),
        (arithmetic("Add", [0.0, 8.0, 16.0, 24.0]), "a grid"),
        (arithmetic("Max", [0.5, 1.5, 2.5, 3.5]), "a bound"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_are_no_weights(model: ir.Model, why: str) -> None:
    assert dict(Replay(model).weights) == {}, why


@pytest.mark.parametrize("kind", ["Add", "Mul", "Sub", "Div"])
def test_operands_of_arithmetic_are_weights(kind: str) -> None:
    assert len(Replay(arithmetic(kind, [0.5, 1.5, -0.25, 0.75])).weights) == 1


def test_weight_behind_reshape_and_transpose_is_found_and_gets_its_gradient() -> None:
    net = builders.Net()
    turned = net.op("Transpose", net.op("Reshape", net.const(np.ones(12, np.float32), "flat"), net.ints(3, 4)))
    net.op("MatMul", "rows", turned, output="out")
    replay = Replay(net.build({"rows": ["N", 4]}, {"out": ["N", 3]}))
    (weight,) = replay.weights.values()
    replay({"rows": torch.ones(1, 4)})["out"].sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [1.0] * 12


def test_weight_whose_gates_the_graph_reorders_is_found() -> None:
    net = builders.Net()
    stacked, recurrence = net.weight(16, 3), net.weight(1, 16, 4)
    gates = [net.op("Slice", stacked, net.ints(start), net.ints(start + 4), net.ints(0)) for start in (0, 12, 4, 8)]
    weight = net.op("Unsqueeze", net.op("Concat", *gates, axis=0), net.ints(0))
    net.op("Identity", net.op("LSTM", "frames", weight, recurrence, outputs=3, hidden_size=4)[0], output="out")
    model = net.build({"frames": [5, 2, 3]}, {"out": [5, 1, 2, 4]})
    assert set(Replay(model).weights) == {stacked, recurrence}
    assert_replays(model)


def test_constant_that_is_also_read_as_something_else_is_no_weight() -> None:
    net = builders.Net()
    shared = net.weight(4)
    normal = net.op("BatchNormalization", "rows", net.weight(4), shared, shared, net.const(np.ones(4, np.float32)))
    net.op("Identity", normal, output="out")
    assert len(Replay(net.build({"rows": ["N", 4]}, {"out": ["N", 4]})).weights) == 1


def test_single_bias_behind_a_layer_is_a_weight() -> None:
    net = builders.Net()
    net.op("Add", net.op("MatMul", "rows", net.weight(4, 1)), net.weight(1), output="out")
    assert len(Replay(net.build({"rows": ["N", 4]}, {"out": ["N", 1]})).weights) == 2


def same_names() -> ir.Model:
    """Two branches that call their weights alike."""
    net = builders.Net()
    bodies = {}
    for name, scale in (("then_branch", 1.5), ("else_branch", 2.5)):
        body = builders.Net(prefix=f"{name}_")
        body.weights.append(onnx_tensor("weight", np.full((4, 4), scale, np.float32)))
        body.op("MatMul", "rows", "weight", output=f"{name}_out")
        bodies[name] = body.graph(name, {}, {f"{name}_out": (TensorProto.FLOAT, ["N", 4])})
    net.op("If", "flag", output="out", **bodies)
    return net.build({"rows": ["N", 4], "flag": []}, {"out": ["N", 4]}, flag=TensorProto.BOOL)


def onnx_tensor(name: str, data: np.ndarray) -> Any:
    return helper.make_tensor(name, TensorProto.FLOAT, data.shape, data.reshape(-1).tolist())


def test_equal_names_in_two_branches_are_told_apart() -> None:
    model = same_names()
    replay = Replay(model)
    assert list(replay.weights) == ["weight", "weight#2"]
    written = write_back(model, {"weight#2": np.full((4, 4), 7.0, np.float32)})
    held = [weight.detach().numpy()[0, 0] for weight in Replay(written).weights.values()]
    before = [weight.detach().numpy()[0, 0] for weight in replay.weights.values()]
    assert held[1] == 7.0 and held[0] == before[0]


# ---------------------------------------------------------------- gradients
@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_weight_that_took_part(name: str) -> None:
    model = MODELS[name]()
    replay = Replay(model)
    reached: set[str] = set()
    for flag in (False, True):
        replay.zero_grad()
        feeds = fed(builders.feeds(model, seed=3))
        feeds |= {"flag": torch.tensor(flag)} if "flag" in feeds else {}
        outputs = replay(feeds)
        sum((value * value).sum() for value in outputs.values()).backward()
        reached |= {
            name for name, weight in replay.weights.items() if weight.grad is not None and weight.grad.abs().max() > 0
        }
    assert reached == set(replay.weights)


def test_gradients_agree_with_finite_differences() -> None:
    for build in (builders.scaled_head, builders.lstm, builders.loop):
        model = build()
        replay = Replay(model).double()
        feeds = {name: tensor.double() for name, tensor in fed(builders.feeds(model, seed=1)).items()}
        weights = list(replay.weights.values())

        def loss(*_weights: Any, replay: Any = replay, feeds: Any = feeds) -> Any:
            return sum((value * value).sum() for value in replay(feeds).values())

        assert torch.autograd.gradcheck(loss, weights, fast_mode=True)


def test_weights_denied_by_the_caller_stay_as_they_are() -> None:
    model = builders.mlp()
    chosen = next(iter(parameters.weights(model)))
    replay = Replay(model, trainable=lambda name: name == chosen)
    replay(fed(builders.feeds(model)))["probabilities"][:, 0].sum().backward()
    assert [name for name, weight in replay.weights.items() if weight.grad is not None] == [chosen]


def test_rounding_lets_gradients_through_and_clipping_does_not() -> None:
    net = builders.Net()
    pair = (net.const(np.float32(0.1)), net.const(np.int8(0)))
    net.op("DequantizeLinear", net.op("QuantizeLinear", "rows", *pair), *pair, output="out")
    replay = Replay(net.build({"rows": [3]}, {"out": [3]}))
    rows = torch.tensor([0.234, -1.31, 40.0], requires_grad=True)
    made = replay({"rows": rows})["out"]
    made.sum().backward()
    np.testing.assert_allclose(made.detach().numpy(), [0.2, -1.3, 12.7], rtol=1e-6)
    assert rows.grad is not None
    np.testing.assert_allclose(rows.grad.numpy(), [1.0, 1.0, 0.0])


@pytest.mark.parametrize("kind", ["Sqrt", "ReduceL2"])
def test_gradient_of_a_root_is_finite_at_zero(kind: str) -> None:
    net = builders.Net()
    net.op(kind, net.op("Mul", "rows", "rows"), output="out")
    replay = Replay(net.build({"rows": [4]}, {"out": [None]}))
    rows = torch.tensor([0.0, 0.0, 0.0, 0.0], requires_grad=True)
    replay({"rows": rows})["out"].sum().backward()
    assert rows.grad is not None and rows.grad.tolist() == [0.0] * 4


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


# ---------------------------------------------------------------- write-back
@pytest.mark.parametrize("name", MODELS)
def test_unchanged_weights_give_the_same_bytes(name: str) -> None:
    model = MODELS[name]()
    before = builders.to_bytes(model)
    assert builders.to_bytes(write_back(model, numbers(Replay(model)))) == before


@pytest.mark.parametrize("name", ["conv_net", "weights in Constant nodes", "branches"])
def test_only_the_named_constant_changes(name: str) -> None:
    model = MODELS[name]()
    before = builders.to_bytes(model)
    for chosen, data in numbers(Replay(model)).items():
        written = write_back(model, {chosen: data + 1})
        for other, value in parameters.constants(written).items():
            old, new = (parameters.tensor_of(v) for v in (parameters.constants(model)[other], value))
            assert old is not None and new is not None
            assert old.dtype == new.dtype and old.shape == new.shape
            np.testing.assert_array_equal(new.numpy(), data + 1 if other == chosen else old.numpy())
    assert builders.to_bytes(model) == before


def test_floats_of_a_constant_node_are_written_where_they_were() -> None:
    net = builders.Net()
    net.nodes.append(helper.make_node("Constant", [], ["bias"], value_floats=[0.5, 1.5, 2.5, 3.25]))
    net.op("Add", "rows", "bias", output="out")
    model = net.build({"rows": ["N", 4]}, {"out": ["N", 4]})
    written = write_back(model, {"bias": np.asarray([1.0, 2.0, 3.0, 4.0], np.float32)})
    assert builders.run(written, {"rows": np.zeros((1, 4), np.float32)})[0].tolist() == [[1.0, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"nobody": np.zeros(1, np.float32)}, "no constant called 'nobody'"),
        ({"first": np.zeros((2, 2), np.float32)}, "has the shape"),
        ({"first": np.full((16, 32), np.nan, np.float32)}, "not finite"),
        ({"first": np.full((16, 32), 1e39)}, "not finite in float32"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(data: dict[str, np.ndarray], reason: str) -> None:
    model = builders.mlp()
    first = next(iter(parameters.weights(model)))
    named = {first if name == "first" else name: array for name, array in data.items()}
    with pytest.raises(PassFailed, match=reason):
        write_back(model, named)


def test_trained_weights_do_on_onnx_runtime_what_they_did_in_torch() -> None:
    model = builders.conv_net()
    replay = Replay(model)
    feeds = builders.feeds(model, symbols=4)
    wanted = torch.nn.functional.one_hot(torch.arange(4), 5).float()
    optimizer = torch.optim.Adam(replay.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(replay(fed(feeds))["logits"], wanted)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        ours = replay(fed(feeds))["logits"].numpy()
    (theirs,) = builders.run(write_back(model, numbers(replay)), feeds)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_outputs_that_nobody_reads_are_no_reason_to_refuse() -> None:
    net = builders.Net()
    normal, _, _ = net.op("LayerNormalization", "rows", net.weight(4), outputs=3)
    net.op("Identity", normal, output="out")
    assert_replays(net.build({"rows": ["N", 4]}, {"out": ["N", 4]}))
