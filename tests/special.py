"""Models that quantization easily forgets: recurrent cells, control flow, weights with several readers, packed attention.

Beside ``builders``: these hold enough weights to be worth packing, and every weight that is shared shows it. Dense layers whose
rounding errors add up and convolutions that show in an engine's memory are here for the same reason.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from builders import Net, Shape
from onnx import TensorProto, helper

_FLOAT, _INT64, _BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
WIDTH = 64


def lstm_stack(*, seed: int = 20, hidden: int = WIDTH) -> ir.Model:
    """A bidirectional LSTM with peepholes and lengths, a plain one on top of it, and a dense layer."""
    net = Net(seed=seed)
    both = [net.weight(2, 4 * hidden, 32, scale=0.1), net.weight(2, 4 * hidden, hidden, scale=0.1)]
    both += [net.weight(2, 8 * hidden), "lengths", "", "", net.weight(2, 3 * hidden, scale=0.1)]
    settings = {"hidden_size": hidden, "direction": "bidirectional"}
    sequence, _, _ = net.op("LSTM", "frames", *both, outputs=3, **settings)
    joined = net.op("Reshape", net.op("Transpose", sequence, perm=[0, 2, 1, 3]), net.ints(0, 0, 2 * hidden))
    single = [net.weight(1, 4 * hidden, 2 * hidden, scale=0.1), net.weight(1, 4 * hidden, hidden, scale=0.1)]
    _, last, _ = net.op("LSTM", joined, *single, outputs=3, hidden_size=hidden)
    net.op("Tanh", net.op("MatMul", net.op("Squeeze", last, net.ints(0)), net.weight(hidden, 4)), output="scores")
    return net.build({"frames": ["T", "N", 32], "lengths": ["N"]}, {"scores": ["N", 4]}, lengths=TensorProto.INT32)


def gru(*, seed: int = 21, hidden: int = WIDTH) -> ir.Model:
    """A GRU alone: ONNX Runtime has no integer kernel for it."""
    net = Net(seed=seed)
    weights = (net.weight(1, 3 * hidden, 32, scale=0.1), net.weight(1, 3 * hidden, hidden, scale=0.1))
    sequence, _ = net.op("GRU", "frames", *weights, outputs=2, hidden_size=hidden, linear_before_reset=1)
    net.op("Squeeze", sequence, net.ints(1), output="states")
    return net.build({"frames": ["T", "N", 32]}, {"states": ["T", "N", hidden]})


def recurrent_branches(*, seed: int = 22, width: int = WIDTH, with_gru: bool = False) -> ir.Model:
    """An If whose branches hold an LSTM, a Gemm and a MatMul; one weight is read by both branches and the main graph.

    With ``with_gru`` a GRU runs over the rows before they enter.
    """
    net = Net(seed=seed)
    shared, other = net.weight(width, width, scale=0.1), Net(seed=seed + 1, prefix="else_")
    rows = "rows"
    if with_gru:
        gates = [net.weight(1, 3 * width, width, scale=0.1) for _ in range(2)]
        state = net.op("GRU", net.op("Unsqueeze", rows, net.ints(1)), *gates, outputs=2, hidden_size=width)[0]
        rows = net.op("Squeeze", state, net.ints(1, 2))
    entered = net.op("Tanh", net.op("MatMul", rows, shared))
    then = Net(seed=seed + 2, prefix="then_")
    cell = (then.weight(1, 4 * width, width, scale=0.1), then.weight(1, 4 * width, width, scale=0.1))
    sequence = then.op("LSTM", then.op("Unsqueeze", entered, then.ints(1)), *cell, outputs=3, hidden_size=width)[0]
    flat = then.op("Squeeze", sequence, then.ints(1, 2))
    then.op("Add", then.op("MatMul", flat, shared), then.weight(width), output="then_out")
    product = other.op("Gemm", entered, other.weight(width, width, scale=0.1), other.weight(width), transB=1)
    other.op("MatMul", product, shared, output="else_out")
    bodies = {
        f"{name}_branch": body.graph(name, {}, {f"{name}_out": (_FLOAT, ["N", width])})
        for name, body in (("then", then), ("else", other))
    }
    net.op("Relu", net.op("If", "flag", **bodies), output="result")
    return net.build({"rows": ["N", width], "flag": []}, {"result": ["N", width]}, flag=_BOOL)


def nested_loop(*, seed: int = 23, width: int = WIDTH) -> ir.Model:
    """A Loop with an If inside; the layer in the If reads an initializer of the main graph and the loop's state."""
    net = Net(seed=seed)
    outer, trips, go = net.weight(width, width, scale=0.1), net.const(3), net.const(True)
    body, then, other = (Net(seed=seed + n, prefix=f"{p}_") for n, p in enumerate(("body", "then", "else"), 1))
    body.op("Identity", "body_go", output="body_go_out")
    then.op("MatMul", "body_state", outer, output="then_out")
    other.op("MatMul", "body_state", other.weight(width, width, scale=0.1), output="else_out")
    bodies = {
        f"{name}_branch": inner.graph(name, {}, {f"{name}_out": (_FLOAT, ["N", width])})
        for name, inner in (("then", then), ("else", other))
    }
    odd = body.op("Cast", body.op("Mod", "body_i", body.const(2)), to=_BOOL)
    body.op("Tanh", body.op("If", odd, **bodies), output="body_next")
    inputs: dict[str, tuple[int, Shape]] = {"body_i": (_INT64, []), "body_go": (_BOOL, [])}
    inputs["body_state"] = (_FLOAT, ["N", width])
    outputs: dict[str, tuple[int, Shape]] = {"body_go_out": (_BOOL, []), "body_next": (_FLOAT, ["N", width])}
    net.op("Loop", trips, go, "rows", output="result", body=body.graph("body", inputs, outputs))
    return net.build({"rows": ["N", width]}, {"result": ["N", width]})


def scan(*, seed: int = 24, width: int = WIDTH) -> ir.Model:
    """A Scan over time whose body is a recurrent cell written out as two products."""
    net = Net(seed=seed)
    body = Net(seed=seed + 1, prefix="body_")
    weights = [net.weight(width, width, scale=0.1) for _ in range(2)]
    total = body.op("Add", body.op("MatMul", "body_x", weights[0]), body.op("MatMul", "body_state", weights[1]))
    body.op("Tanh", total, output="body_next")
    body.op("Identity", "body_next", output="body_y")
    state: tuple[int, Shape] = (_FLOAT, [2, width])
    graph = body.graph("body", {"body_state": state, "body_x": state}, {"body_next": state, "body_y": state})
    names = ["last", "states"]
    net.op("Scan", "start", "frames", output="scan", body=graph, num_scan_inputs=1)
    net.nodes[-1].output[:] = names
    return net.build({"start": [2, width], "frames": ["T", 2, width]}, {"last": [2, width], "states": ["T", 2, width]})


def tied_embedding(*, seed: int = 25, entries: int = 1024, width: int = WIDTH) -> ir.Model:
    """A small language model: the table that looks words up is, transposed, the last layer."""
    net = Net(seed=seed)
    table = net.weight(entries, width)
    hidden = net.op("Gather", table, "tokens", axis=0)
    hidden = net.op("Tanh", net.op("Add", net.op("MatMul", hidden, net.weight(width, width)), net.weight(width)))
    net.op("MatMul", hidden, net.op("Transpose", table, perm=[1, 0]), output="logits")
    return net.build({"tokens": ["B", "S"]}, {"logits": ["B", "S", entries]}, tokens=_INT64)


def packed_attention(*, seed: int = 26, heads: int = 4, width: int = WIDTH, mask: str = "padding") -> ir.Model:
    """com.microsoft Attention on packed weights; ``mask`` is padding (rank 2), lengths (rank 1) or bias (rank 4)."""
    net = Net(seed=seed)
    weights = (net.weight(width, 3 * width, scale=0.1), net.weight(3 * width))
    places = {"padding": ("mask",), "lengths": ("mask",), "bias": ("", "", "mask")}[mask]
    attended = net.op("Attention", "rows", *weights, *places, domain="com.microsoft", num_heads=heads)
    net.op("Add", net.op("MatMul", attended, net.weight(width, width, scale=0.1)), "rows", output="out")
    shapes: dict[str, Shape] = {"padding": ["B", "S"], "lengths": ["B"], "bias": ["B", 1, "S", "S"]}
    kind = _FLOAT if mask == "bias" else TensorProto.INT32
    return net.build({"rows": ["B", "S", width], "mask": shapes[mask]}, {"out": ["B", "S", width]}, mask=kind)


def matrices() -> ir.Model:
    """Dense layers read both ways round, every product large enough to be worth packing."""
    net = Net(seed=2)
    value = net.op("Gemm", "rows", net.weight(96, 64), net.weight(96), transB=1)
    value = net.op("Gemm", net.op("Relu", value), net.weight(96, 64), net.weight(64))
    net.op("MatMul", value, net.weight(64, 80), output="out")
    return net.build({"rows": ["N", 64]}, {"out": ["N", 80]})


def correlated(width: int = 48) -> ir.Model:
    """Layers whose inputs move together, as neighbouring features do: their rounding errors add up."""
    net = Net(seed=8)
    mixed = net.op("MatMul", "rows", net.const(net.random.standard_normal((6, width)).astype(np.float32)))
    hidden = net.op("Relu", net.op("Gemm", mixed, net.weight(width, width), net.weight(width)))
    net.op("Gemm", hidden, net.weight(width, 4), net.weight(4), output="out")
    return net.build({"rows": ["N", 6]}, {"out": ["N", 4]})


def wide() -> ir.Model:
    """Convolutions large enough that their weights show in an engine's memory."""
    net = Net(seed=9)
    value = "image"
    for _ in range(3):
        value = net.op(
            "Relu",
            net.op(
                "Conv",
                value,
                net.weight(256, 16 if value == "image" else 256, 3, 3, scale=0.02),
                net.weight(256),
                pads=[1, 1, 1, 1],
            ),
        )
    net.op(
        "Gemm",
        net.op("Flatten", net.op("GlobalAveragePool", value)),
        net.weight(5, 256),
        net.weight(5),
        output="logits",
        transB=1,
    )
    return net.build({"image": ["N", 16, 16, 16]}, {"logits": ["N", 5]})


def over_two_gigabytes(file: Path, *, layers: int = 9, width: int = 8192) -> None:
    """A chain of square layers, a quarter of a GiB each, written to ``file`` with its weights beside it."""
    random = np.random.default_rng(27)
    # Random rows are dear by the billion: every layer has the same ones, in an order of its own.
    rows = (random.standard_normal((width, width), np.float32) / np.float32(np.sqrt(width))).astype(np.float32)
    nodes, weights, value = [], [], "rows"
    with (file.parent / "weights.bin").open("wb") as data:
        for number in range(layers):
            name, product = f"weight_{number}", f"product_{number}"
            tensor = onnx.TensorProto(name=name, data_type=_FLOAT, dims=[width, width])
            tensor.data_location = onnx.TensorProto.EXTERNAL
            places = {"location": "weights.bin", "offset": data.tell(), "length": rows.nbytes}
            tensor.external_data.extend(
                onnx.StringStringEntryProto(key=key, value=str(place)) for key, place in places.items()
            )
            np.roll(rows, number, axis=0).tofile(data)
            weights.append(tensor)
            nodes.append(helper.make_node("MatMul", [value, name], [product], name=f"MatMul_{number}"))
            value = "out" if number == layers - 1 else f"hidden_{number}"
            nodes.append(helper.make_node("Tanh", [product], [value], name=f"Tanh_{number}"))
    ends = [helper.make_tensor_value_info(name, _FLOAT, ["N", width]) for name in ("rows", "out")]
    graph = helper.make_graph(nodes, "main", ends[:1], ends[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file.write_bytes(proto.SerializeToString())
