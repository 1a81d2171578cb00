"""Which constants of a replayed graph are weights, gradients that arrive at them, and a write-back that touches nothing else."""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from replays import MODELS, arithmetic, assert_replays, fed, numbers

from edgeopt.errors import PassFailed

torch = pytest.importorskip("torch", reason="needs torch, which the extra train brings")

from edgeopt.training import parameters  # noqa: E402 - behind the check for torch
from edgeopt.training.replay import Replay, write_back  # noqa: E402 - as above


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
