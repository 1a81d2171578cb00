"""Small ONNX models for every test: each is built from a seed, runs in milliseconds and shows one trait of real exports.

``conv_net()``, ``bert_block()`` and the others return ``onnx_ir`` models; ``feeds`` makes inputs for any of them, ``run`` executes
one on ONNX Runtime without graph optimizations, and ``FakeEvidence`` is a pass's view of calibration data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph import tensors
from edgeopt.protocols import Gradients
from edgeopt.records import Signature, Target, TensorSpec

Arrays = dict[str, np.ndarray]
Shape = Sequence[int | str | None]
TRAITS = (
    "conv_net",
    "depthwise_residual",
    "scaled_head",
    "mlp",
    "bert_block",
    "lstm",
    "branches",
    "loop",
    "shared_initializers",
    "old_softmax",
    "constants_anywhere",
)
"""Builders whose models take part in what is tested on all."""


class Net:
    """Builds one graph node by node; values are names."""

    def __init__(self, *, opset: int = 17, seed: int = 0, constants: bool = False, prefix: str = "") -> None:
        self.opset, self.constants, self.prefix = opset, constants, prefix
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._number = 0

    def name(self, base: str) -> str:
        self._number += 1
        return f"{self.prefix}{base}_{self._number}"

    def const(self, data: Any, name: str = "w") -> str:
        """A constant: an initializer, or a Constant node where the net keeps its weights in those."""
        array, name = np.asarray(data), self.name(name)
        if self.constants:
            tensor = numpy_helper.from_array(array, name)
            self.nodes.append(helper.make_node("Constant", [], [name], name=self.name("Constant"), value=tensor))
        else:
            self.weights.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int, scale: float = 0.3, shift: float = 0.0) -> str:
        return self.const((self.random.standard_normal(shape) * scale + shift).astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.const(np.asarray(values, dtype=np.int64), "shape")

    def op(
        self, kind: str, *inputs: str, output: str = "", outputs: int = 1, domain: str = "", **attributes: Any
    ) -> Any:
        names = [output or self.name(kind.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=self.name(kind), domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def batch_norm(self, value: str, channels: int, **names: str) -> str:
        parameters = (
            self.weight(channels, shift=1.0),
            self.weight(channels),
            self.weight(channels),
            self.const(self.random.uniform(0.5, 2.0, channels).astype(np.float32)),
        )
        return str(self.op("BatchNormalization", value, *parameters, epsilon=1e-3, **names))

    def layer_norm(self, value: str, width: int) -> str:
        """As exporters wrote it before LayerNormalization became an operator."""
        deviation = self.op("Sub", value, self.op("ReduceMean", value, axes=[-1], keepdims=1))
        square = self.op("Pow", deviation, self.const(np.float32(2.0)))
        variance = self.op("Add", self.op("ReduceMean", square, axes=[-1], keepdims=1), self.const(np.float32(1e-5)))
        normal = self.op("Div", deviation, self.op("Sqrt", variance))
        return str(self.op("Add", self.op("Mul", normal, self.weight(width, shift=1.0)), self.weight(width)))

    def gelu(self, value: str) -> str:
        erf = self.op("Erf", self.op("Div", value, self.const(np.float32(np.sqrt(2.0)))))
        product = self.op("Mul", value, self.op("Add", erf, self.const(np.float32(1.0))))
        return str(self.op("Mul", product, self.const(np.float32(0.5))))

    def graph(self, name: str, inputs: dict[str, tuple[int, Shape]], outputs: dict[str, tuple[int, Shape]]) -> Any:
        def infos(values: dict[str, tuple[int, Shape]]) -> list[Any]:
            return [helper.make_tensor_value_info(key, kind, list(shape)) for key, (kind, shape) in values.items()]

        return helper.make_graph(self.nodes, name, infos(inputs), infos(outputs), self.weights)

    def build(self, inputs: dict[str, Shape], outputs: dict[str, Shape], **types: int) -> ir.Model:
        """The model; everything is float32 unless ``types`` names another type for an input or output."""

        def typed(values: dict[str, Shape]) -> dict[str, tuple[int, Shape]]:
            return {key: (types.get(key, TensorProto.FLOAT), shape) for key, shape in values.items()}

        domains = sorted({node.domain for node in self.nodes} - {""})
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        graph = self.graph("main", typed(inputs), typed(outputs))
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="builders")
        onnx.checker.check_model(proto)
        return ir.from_proto(proto)


# ---------------------------------------------------------------- models
def conv_net(*, opset: int = 17, constants: bool = False, seed: int = 0) -> ir.Model:
    """Conv-BN-Relu, a grouped Conv-BN-Relu, pooling and a Gemm; what a classifier looks like after training export."""
    net = Net(opset=opset, constants=constants, seed=seed)
    first = net.op("Conv", "image", net.weight(8, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2])
    first = net.op("Relu", net.batch_norm(first, 8))
    second = net.op("Conv", first, net.weight(8, 4, 3, 3), net.weight(8), group=2, pads=[1, 1, 1, 1])
    second = net.op("Relu", net.batch_norm(second, 8))
    flat = net.op("Flatten", net.op("GlobalAveragePool", second))
    net.op("Gemm", flat, net.weight(5, 8), net.weight(5), output="logits", transB=1)
    return net.build({"image": ["N", 3, 16, 16]}, {"logits": ["N", 5]})


def relu_chain(*, seed: int = 10) -> ir.Model:
    """Layers in a row with uneven channels: plain, depthwise and grouped convolutions, pooling and a Gemm."""
    net = Net(seed=seed)

    def uneven(*shape: int) -> str:
        spread = np.exp(net.random.uniform(-3, 3, shape[0])).reshape(-1, *[1] * (len(shape) - 1))
        return net.const((net.random.standard_normal(shape) * 0.3 * spread).astype(np.float32))

    first = net.op("Relu", net.op("Conv", "image", uneven(8, 3, 3, 3), net.weight(8), pads=[1, 1, 1, 1]))
    deep = net.op("Conv", first, uneven(8, 1, 3, 3), net.weight(8), group=8, pads=[1, 1, 1, 1])
    deep = net.op("MaxPool", net.op("LeakyRelu", deep, alpha=0.1), kernel_shape=[2, 2], strides=[2, 2])
    paired = net.op("Conv", deep, uneven(8, 4, 1, 1), group=2)
    bounded = net.op("Clip", paired, net.const(np.float32(0.0)), net.const(np.float32(6.0)))
    last = net.op("Relu", net.op("Conv", bounded, net.weight(8, 8, 1, 1), net.weight(8)))
    net.op("Gemm", net.op("Flatten", net.op("GlobalAveragePool", last)), net.weight(5, 8), output="logits", transB=1)
    return net.build({"image": ["N", 3, 8, 8]}, {"logits": ["N", 5]})


def depthwise_residual(*, opset: int = 17, seed: int = 1) -> ir.Model:
    """An inverted bottleneck: expand, depthwise, project, each with batch norm, Clip to 6, and the skip connection."""
    net = Net(opset=opset, seed=seed)
    low, high = net.const(np.float32(0.0)), net.const(np.float32(6.0))
    wide = net.op("Clip", net.batch_norm(net.op("Conv", "image", net.weight(12, 4, 1, 1)), 12), low, high)
    deep = net.op("Conv", wide, net.weight(12, 1, 3, 3), group=12, pads=[1, 1, 1, 1])
    deep = net.op("Clip", net.batch_norm(deep, 12), low, high)
    narrow = net.batch_norm(net.op("Conv", deep, net.weight(4, 12, 1, 1)), 4)
    net.op("Add", narrow, "image", output="features")
    return net.build({"image": ["N", 4, "H", "W"]}, {"features": ["N", 4, "H", "W"]})


def scaled_head(*, seed: int = 2) -> ir.Model:
    """ConvTranspose and MatMul with bias, scale and batch norm as separate nodes, as PaddlePaddle and Keras export them."""
    net = Net(seed=seed)
    up = net.op("ConvTranspose", "image", net.weight(4, 3, 2, 2), strides=[2, 2], group=2)
    up = net.batch_norm(net.op("Add", up, net.weight(1, 6, 1, 1)), 6)
    up = net.op("Sub", net.op("Div", up, net.weight(6, 1, 1, shift=2.0)), net.weight(1, 6, 1, 1))
    pooled = net.op("Reshape", net.op("GlobalAveragePool", up), net.ints(-1, 6))
    hidden = net.op("Mul", net.op("Add", net.op("MatMul", pooled, net.weight(6, 7)), net.weight(7)), net.weight(7))
    net.op("MatMul", hidden, net.weight(7, 3), output="scores")
    return net.build({"image": ["N", 4, 5, 5]}, {"scores": ["N", 3]})


def mlp(*, opset: int = 17, seed: int = 3, width: int = 32) -> ir.Model:
    """Two MatMul-Add layers on rows of features."""
    net = Net(opset=opset, seed=seed)
    hidden = net.op("Relu", net.op("Add", net.op("MatMul", "rows", net.weight(16, width)), net.weight(width)))
    product = net.op("MatMul", hidden, net.weight(width, 4))
    net.op("Softmax", net.op("Add", product, net.weight(4)), output="probabilities", axis=-1)
    return net.build({"rows": ["N", 16]}, {"probabilities": ["N", 4]})


def bert_block(*, opset: int = 17, seed: int = 4, heads: int = 4, width: int = 32, layers: int = 1) -> ir.Model:
    """A BERT encoder the way TorchScript exports it: head shapes from Shape and Gather, a mask of -inf, Erf gelu."""
    net = Net(opset=opset, seed=seed)
    hidden = net.layer_norm(net.op("Gather", net.weight(50, width), "tokens", axis=0), width)
    mask = net.op("Unsqueeze", net.op("Unsqueeze", "mask", net.ints(1)), net.ints(2))
    mask = net.op("Sub", net.const(np.float32(1.0)), net.op("Cast", mask, to=TensorProto.FLOAT))
    mask = net.op("Mul", mask, net.const(np.float32(np.finfo(np.float32).min)))
    for _ in range(layers):
        hidden = net.layer_norm(net.op("Add", _attention(net, hidden, mask, heads, width), hidden), width)
        inner = net.op("Add", net.weight(2 * width), net.op("MatMul", hidden, net.weight(width, 2 * width)))
        outer = net.op("Add", net.weight(width), net.op("MatMul", net.gelu(inner), net.weight(2 * width, width)))
        hidden = net.layer_norm(net.op("Add", outer, hidden), width)
    net.op("Identity", hidden, output="embedding")
    integers = {"tokens": TensorProto.INT64, "mask": TensorProto.INT64}
    return net.build({"tokens": ["B", "S"], "mask": ["B", "S"]}, {"embedding": ["B", "S", width]}, **integers)


def _attention(net: Net, hidden: str, mask: str, heads: int, width: int) -> str:
    def dense(value: str) -> str:
        return str(net.op("Add", net.weight(width), net.op("MatMul", value, net.weight(width, width))))

    def length(value: str, axis: int) -> str:
        picked = net.op("Gather", net.op("Shape", value), net.const(np.int64(axis)), axis=0)
        return str(net.op("Unsqueeze", picked, net.ints(0)))

    def split(value: str, perm: list[int]) -> str:
        sizes = (length(value, 0), length(value, 1), net.ints(heads), net.ints(width // heads))
        return str(net.op("Transpose", net.op("Reshape", value, net.op("Concat", *sizes, axis=0)), perm=perm))

    query, key, value = (dense(hidden) for _ in range(3))
    scores = net.op("MatMul", split(query, [0, 2, 1, 3]), split(key, [0, 2, 3, 1]))
    scores = net.op("Add", net.op("Div", scores, net.const(np.float32(np.sqrt(width // heads)))), mask)
    context = net.op("MatMul", net.op("Softmax", scores, axis=-1), split(value, [0, 2, 1, 3]))
    context = net.op("Transpose", context, perm=[0, 2, 1, 3])
    sizes = (length(context, 0), length(context, 1), net.ints(width))
    return dense(str(net.op("Reshape", context, net.op("Concat", *sizes, axis=0))))


def lstm(*, seed: int = 5, hidden: int = 8) -> ir.Model:
    """A recurrent step with its state as input and output, and a dense layer on what comes out."""
    net = Net(seed=seed)
    weights = (net.weight(1, 4 * hidden, 6), net.weight(1, 4 * hidden, hidden), net.weight(1, 8 * hidden))
    sequence, last, _ = net.op("LSTM", "frames", *weights, "", "state", "cell", outputs=3, hidden_size=hidden)
    net.op("Identity", last, output="state_out")
    flat = net.op("Squeeze", sequence, net.ints(1))
    net.op("Sigmoid", net.op("MatMul", flat, net.weight(hidden, 2)), output="speech")
    inputs: dict[str, Shape] = {"frames": ["T", "N", 6], "state": [1, "N", hidden], "cell": [1, "N", hidden]}
    return net.build(inputs, {"speech": ["T", "N", 2], "state_out": [1, "N", hidden]})


def branches(*, seed: int = 6, opset: int = 17) -> ir.Model:
    """An If on an input whose branches hold weights of their own and use one of the outer graph."""
    net = Net(seed=seed, opset=opset)
    shared = net.weight(4, 4)
    then, other = Net(seed=seed + 1, prefix="then_"), Net(seed=seed + 2, prefix="else_", constants=True)
    then.op("Relu", then.op("Add", then.op("MatMul", "rows", shared), then.weight(4)), output="then_out")
    scaled = other.op("Mul", other.op("MatMul", "rows", other.weight(4, 4)), other.weight(4))
    other.op("Softmax", scaled, output="else_out", axis=-1)
    bodies = {
        "then_branch": then.graph("then", {}, {"then_out": (TensorProto.FLOAT, ["N", 4])}),
        "else_branch": other.graph("else", {}, {"else_out": (TensorProto.FLOAT, ["N", 4])}),
    }
    chosen = net.op("If", "flag", **bodies)
    net.op("MatMul", chosen, shared, output="result")
    return net.build({"rows": ["N", 4], "flag": []}, {"result": ["N", 4]}, flag=TensorProto.BOOL)


def loop(*, seed: int = 7) -> ir.Model:
    """A Loop that applies one layer three times; the body reads a weight from outside and carries one value."""
    net = Net(seed=seed)
    weight, trips, go = net.weight(4, 4), net.const(np.int64(3)), net.const(np.bool_(True))
    body = Net(seed=seed + 1, prefix="body_")
    body.op("Identity", "body_go", output="body_go_out")
    body.op("Tanh", body.op("Add", body.op("MatMul", "body_state", weight), body.weight(4)), output="body_next")
    inputs: dict[str, tuple[int, Shape]] = {"body_i": (TensorProto.INT64, []), "body_go": (TensorProto.BOOL, [])}
    inputs["body_state"] = (TensorProto.FLOAT, ["N", 4])
    outputs: dict[str, tuple[int, Shape]] = {"body_go_out": (TensorProto.BOOL, [])}
    outputs["body_next"] = (TensorProto.FLOAT, ["N", 4])
    net.op("Loop", trips, go, "rows", output="result", body=body.graph("body", inputs, outputs))
    return net.build({"rows": ["N", 4]}, {"result": ["N", 4]})


def shared_initializers(*, seed: int = 8) -> ir.Model:
    """Two convolutions on one weight, each with a batch norm of its own, and a bias that is used twice."""
    net = Net(seed=seed)
    weight, bias = net.weight(4, 4, 1, 1), net.weight(4)
    left = net.batch_norm(net.op("Conv", "image", weight, bias), 4)
    right = net.batch_norm(net.op("Conv", net.op("Relu", "image"), weight, bias), 4)
    net.op("Add", left, right, output="sum")
    return net.build({"image": ["N", 4, 6, 6]}, {"sum": ["N", 4, 6, 6]})


def constants_anywhere(*, seed: int = 12) -> ir.Model:
    """Large constants where layers do not have their weights: alone in a node, on the left of a product, as data of a convolution, in a choice."""
    net = Net(seed=seed)
    table = net.weight(16, 32)
    wide = net.op("MatMul", "rows", table)
    back = net.op("MatMul", net.op("Relu", wide), net.op("Transpose", table, perm=[1, 0]))
    turned = net.op("Transpose", back, perm=[1, 0])
    left = net.op("MatMul", net.weight(24, 16, scale=0.05), turned)
    product = net.op("Gemm", net.weight(16, 24), left, net.op("Exp", net.weight(16, 1)))
    chosen = net.op("Where", net.op("Greater", "rows", net.const(np.float32(0))), net.weight(1, 16), "rows")
    picture = net.op("Conv", net.weight(1, 4, 8, 8), net.weight(16, 4, 8, 8))
    sums = net.op("Add", net.op("Transpose", product, perm=[1, 0]), chosen)
    net.op("Add", sums, net.op("Reshape", picture, net.ints(1, 16)), output="sums")
    return net.build({"rows": ["N", 16]}, {"sums": ["N", 16]})


def old_softmax(*, seed: int = 9) -> ir.Model:
    """Opset 11, whose Softmax flattens everything behind its axis, and Squeeze with axes as an attribute."""
    net = Net(seed=seed, opset=11)
    product = net.op("Softmax", net.op("MatMul", "rows", net.weight(6, 4)), axis=1)
    net.op("Squeeze", net.op("Unsqueeze", product, axes=[0]), output="probabilities", axes=[0])
    return net.build({"rows": [2, 3, 6]}, {"probabilities": [2, 3, 4]})


def half_precision(*, seed: int = 13) -> ir.Model:
    """Exported in float16, inputs and outputs included: a convolution, a choice whose branches hold weights, a product, a cast for a sum in float32."""
    net = Net(seed=seed)

    def half(*shape: int) -> str:
        return net.const((net.random.standard_normal(shape) * 0.3).astype(np.float16))

    hidden = net.op("Relu", net.op("Conv", "image", half(16, 3, 3, 3), half(16), pads=[1, 1, 1, 1]))
    then, other = Net(seed=seed + 1, prefix="then_"), Net(seed=seed + 2, prefix="else_")
    for body in (then, other):
        kernel = body.const((body.random.standard_normal((8, 16, 1, 1)) * 0.3).astype(np.float16))
        body.op("Conv", hidden, kernel, output=f"{body.prefix}out")
    bodies = {
        name: body.graph(body.prefix, {}, {f"{body.prefix}out": (TensorProto.FLOAT16, ["N", 8, "H", "W"])})
        for name, body in (("then_branch", then), ("else_branch", other))
    }
    chosen = net.op("If", "flag", **bodies)
    pooled = net.op("GlobalAveragePool", net.op("Cast", chosen, to=TensorProto.FLOAT))
    flat = net.op("Flatten", net.op("Cast", pooled, to=TensorProto.FLOAT16))
    net.op("Gemm", flat, half(5, 8), half(5), output="logits", transB=1)
    types = {"image": TensorProto.FLOAT16, "logits": TensorProto.FLOAT16, "flag": TensorProto.BOOL}
    return net.build({"image": ["N", 3, 8, 8], "flag": []}, {"logits": ["N", 5]}, **types)


def weights_as_inputs(model: ir.Model) -> ir.Model:
    """``model`` as exporters wrote it before IR version 4: every initializer is listed as an input too."""
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    proto.ir_version = 3
    return ir.from_proto(proto)


def with_external_data(model: ir.Model, folder: Path) -> ir.Model:
    """``model`` saved to ``folder/model.onnx`` with its weights in ``weights.bin`` beside it, and loaded from there."""
    ir.save(model, folder / "model.onnx", external_data="weights.bin", size_threshold_bytes=0)
    return ir.load(folder / "model.onnx")


def nearby(model: ir.Model, *, seed: int = 0, deviation: float = 0.05) -> ir.Model:
    """``model`` with every weight of two and more dimensions a few percent off: a student's teacher, or a teacher's student."""
    random = np.random.default_rng(seed)
    proto = onnx.load_from_string(to_bytes(model))
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and array.ndim > 1:
            moved = array * (1.0 + deviation * random.standard_normal(array.shape))
            tensor.CopyFrom(numpy_helper.from_array(moved.astype(array.dtype), tensor.name))
    return ir.from_proto(proto)


# ---------------------------------------------------------------- running them
def feeds(model: ir.Model, *, seed: int = 0, symbols: int = 2) -> Arrays:
    """Random inputs; symbolic dimensions become ``symbols``, floats are normal, integers lie in 0..1."""
    random = np.random.default_rng(seed)
    arrays: Arrays = {}
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        shape = [size if isinstance(size, int) else symbols for size in value.shape or ()]
        dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        floats = random.standard_normal(shape)
        arrays[str(value.name)] = np.asarray(floats if dtype.kind == "f" else floats > 0).astype(dtype)
    return arrays


def run(model: ir.Model, arrays: Arrays, *, optimized: bool = False) -> list[np.ndarray]:
    """The model's outputs on ONNX Runtime; by default every node is executed as it stands."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, arrays))


def to_bytes(model: ir.Model) -> bytes:
    """The model as one protobuf, external weights included."""
    from edgeopt.graph import edit

    own = edit.copy(model)
    for graph in own.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    return bytes(ir.to_proto(own).SerializeToString(deterministic=True))


def signature(model: ir.Model) -> Signature:
    """The signature that ingest would make of ``model``, as far as passes look at it."""

    def specs(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name=str(value.name),
                dtype=value.dtype.numpy().name if value.dtype is not None else "float32",
                shape=tuple(size if isinstance(size, int) else size.value or "?" for size in value.shape or ()),
            )
            for value in values
            if not value.is_initializer()
        )

    counts: dict[str, int] = {}
    for graph in model.graphs():
        for node in graph:
            kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            counts[kind] = counts.get(kind, 0) + 1
    return Signature(
        format="onnx",
        opset=model.graph.opset_imports.get("", 0),
        inputs=specs(list(model.graph.inputs)),
        outputs=specs(list(model.graph.outputs)),
        operators=tuple(sorted(counts.items())),
        half=any(
            (found := tensors.constant(value)) is not None and found.dtype == ir.DataType.FLOAT16
            for graph in model.graphs()
            for node in graph
            for value in node.inputs
        ),
    )


TARGET = Target(
    name="cpu", device="a test's CPU", arch="x86_64", features=("avx2",), threads=1, memory_bytes=4 << 30, batch=1
)


class FakeEvidence:
    """Calibration data made of ``feeds``; ``observe`` runs the model for real, one sample at a time."""

    synthetic = False
    seed = 0
    folder: Path | None = None
    deadline_s: float | None = None
    progress: Callable[[float, str], None] | None = None
    gradients: Gradients | None = None

    def __init__(
        self, model: ir.Model, *, samples: int = 4, target: Target = TARGET, teacher: ir.Model | None = None
    ) -> None:
        self.signature, self.target, self.sample_count = signature(model), target, samples
        self.teacher = model if teacher is None else teacher
        self._samples = [feeds(model, seed=seed) for seed in range(samples)]
        self.memo: dict[str, object] = {}

    def samples(self) -> Iterator[Arrays]:
        return iter(self._samples)

    def observe(self, model: ir.Model, names: Sequence[str]) -> Iterator[Arrays]:
        return self.run(model, self._samples, names)

    def run(self, model: ir.Model, inputs: Iterable[Arrays], names: Sequence[str]) -> Iterator[Arrays]:
        import onnxruntime

        proto = onnx.load_from_string(to_bytes(model))
        present = {value.name for value in proto.graph.output}
        proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in present)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for sample in inputs:
            yield dict(zip(names, session.run(list(names), sample), strict=True))
