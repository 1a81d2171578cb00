"""Which layers of a graph have integer kernels, and which tensors between them can stay in 8 bits.

Stands under the quantization passes; looks, never edits. In comes a graph, out goes a :class:`Placement`: the layers to
quantize and the tensors that get a QuantizeLinear/DequantizeLinear pair. The rules follow what ONNX Runtime's CPU
kernels can run as integers; a pair that it cannot fuse costs two more passes over the tensor and gains nothing, so

- Conv, Gemm and MatMul count where their weight is a float32 constant (ConvTranspose has no integer kernel);
- an activation (ReLU, Clip) behind a layer is absorbed: the tensor after it is quantized, not the one before;
- an operator between layers is *carried* only where it has an integer kernel, all its inputs are 8-bit already and a quantized
  or carried operator reads its output;
- what leaves the graph stays float: a layer whose output is a graph output is left out where its kernel has no float output.

``place`` looks at the main graph: what bodies of If, Loop and Scan hold has no observed ranges. :func:`everywhere` and :func:`lstms`, which
need none, look into the bodies too.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import onnx_ir as ir

from edgeopt.graph import tensors

LAYERS = ("Conv", "Gemm", "MatMul")
MOVING = (
    "MaxPool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Split",
    "Resize",
    "DepthToSpace",
)
"""Operators that move codes without computing: their output keeps their input's scale."""
COMPUTING = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu")
"""Operators with a QLinear kernel and a scale of their own."""
_BIASED = ("Conv", "ConvTranspose", "Gemm")
_VARIADIC = ("Add", "Mul", "Concat")
KEEP_FLOAT = "edgeopt.keep_float"
"""A node with this key in its metadata is no layer: an earlier pass took it out of the integers on purpose."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with an integer kernel. ``output`` is what is quantized: behind an absorbed activation."""

    name: str
    node: ir.Node
    data: ir.Value
    weight: ir.Value
    weight_axis: int
    """The weight's output channels."""
    output: ir.Value

    @property
    def bias(self) -> ir.Value | None:
        return self.node.inputs[2] if self.node.op_type != "MatMul" and len(self.node.inputs) > 2 else None

    @property
    def channel_axis(self) -> int:
        """The axis of ``data`` that the weight's input channels meet."""
        return 1 if self.node.op_type in ("Conv", "ConvTranspose") else -1


@dataclass(slots=True)
class Placement:
    """Where pairs go. ``produced``: every reader gets the 8-bit version; ``consumed``: only quantized readers do."""

    layers: list[Layer] = field(default_factory=list)
    carried: list[ir.Node] = field(default_factory=list)
    produced: list[ir.Value] = field(default_factory=list)
    consumed: list[ir.Value] = field(default_factory=list)
    same_scale: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """A moved tensor and the one whose scale it shares."""

    def tensors(self) -> list[ir.Value]:
        return [*self.produced, *self.consumed]

    def root(self, value: ir.Value) -> ir.Value:
        """The tensor whose range decides for ``value``."""
        while value in self.same_scale:
            value = self.same_scale[value]
        return value


def layer_name(node: ir.Node) -> str:
    """The name under which recipes and reports speak of a node: its own, or its first output's."""
    return node.name or str(node.outputs[0].name)


def layers(graph: ir.Graph, *, operators: Collection[str] = LAYERS) -> list[Layer]:
    """The layers of the main graph with a float32 constant weight, in graph order."""
    nodes = [node for node in graph if node.op_type in operators and node.domain in ("", "ai.onnx")]
    found = (_layer(node) for node in nodes if KEEP_FLOAT not in node.metadata_props)
    return [layer for layer in found if layer is not None]


def everywhere(model: ir.Model, *, operators: Collection[str] = LAYERS) -> list[Layer]:
    """:func:`layers` of the main graph and of the bodies of If, Loop and Scan, which may read a weight or an input from outside."""
    return [layer for graph in model.graphs() for layer in layers(graph, operators=operators)]


def lstms(model: ir.Model) -> list[ir.Node]:
    """LSTM nodes that the integer kernel can replace, bodies included: constant float32 weights, time first."""
    return [node for graph in model.graphs() for node in graph if _is_integer_lstm(node)]


def place(graph: ir.Graph, *, skip: Collection[str] = ()) -> Placement:
    """Where the pairs go when every layer but those called ``skip`` is quantized."""
    chosen = [layer for layer in layers(graph) if layer.name not in skip and _may_leave(layer)]
    placement = Placement(layers=chosen)
    sources = {
        layer.output for layer in chosen if layer.node.op_type != "MatMul" and not layer.output.is_graph_output()
    }
    carried = _carried(graph, sources, {layer.data for layer in chosen}, skip)
    readers = {layer.node for layer in chosen} | set(carried)
    placement.carried = carried
    for layer in chosen:
        always = layer.node.op_type == "Conv"
        if layer.output in sources and (always or _is_read_by(layer.output, readers)):
            placement.produced.append(layer.output)
    for node in carried:
        for output in node.outputs:
            value = absorbed(output) if node.op_type in COMPUTING else output
            placement.produced.append(value)
            if node.op_type in MOVING and node.inputs[0] is not None:
                placement.same_scale[value] = node.inputs[0]
    known = set(placement.produced)
    for layer in chosen:
        if layer.data not in known:
            known.add(layer.data)
            placement.consumed.append(layer.data)
    return placement


def depthwise(graph: ir.Graph) -> frozenset[str]:
    """Names of the layers that convolve each group's one input channel alone."""
    convolutions = [layer for layer in layers(graph, operators=("Conv",)) if _integer(layer.node, "group") > 1]
    return frozenset(layer.name for layer in convolutions if layer.weight.shape and layer.weight.shape[1] == 1)


def adds_in_32_bits(layer: Layer) -> bool:
    """Whether the layer's integer kernel cannot saturate, whatever the CPU: that of depthwise convolutions with one output for each input.

    With more outputs for each input ONNX Runtime 1.32 runs its matrix kernel, which adds two products in 16 bits where there is no VNNI.
    """
    groups = _integer(layer.node, "group")
    shape = layer.weight.shape
    return layer.node.op_type == "Conv" and groups > 1 and shape is not None and list(shape)[:2] == [groups, 1]


def float_layers(graph: ir.Graph, quantized: Collection[ir.Node]) -> list[tuple[ir.Node, int]]:
    """The Conv, ConvTranspose and Gemm nodes that stay float although their weights are constant, and their input channels."""
    found = []
    for node in graph:
        weight = tensors.constant(node.inputs[1]) if node.op_type in _BIASED and len(node.inputs) > 1 else None
        if weight is None or node in quantized or node.domain not in ("", "ai.onnx") or _integer(node, "transA"):
            continue
        group = node.attributes.get("group")
        groups = group.as_int() if group is not None and node.op_type == "Conv" else 1
        axis = int(node.op_type == "Conv" or _integer(node, "transB"))
        found.append((node, int(weight.shape.numpy()[axis]) * groups))
    return found


def absorbed(value: ir.Value) -> ir.Value:
    """``value``, or what a sole ReLU or Clip around zero makes of it: the kernel's saturation does the same."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return value
    node: ir.Node = uses[0].node
    if node.graph is not value.graph or node.domain not in ("", "ai.onnx"):
        return value
    if node.op_type == "Relu" or (node.op_type == "Clip" and _clips_around_zero(node)):
        return node.outputs[0]
    return value


def _layer(node: ir.Node) -> Layer | None:
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return None
    data, weight = node.inputs[0], node.inputs[1]
    tensor = tensors.constant(weight)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensors.constant(data) is not None or not tensor.size:
        return None
    rank = len(tensor.shape)
    axis = {"Conv": 0, "Gemm": 0 if _integer(node, "transB") else 1, "MatMul": 1, "ConvTranspose": 1}[node.op_type]
    if node.op_type in ("Gemm", "MatMul") and rank != 2:
        return None
    if node.op_type == "Gemm" and not _plain_gemm(node):
        return None
    biased = node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) > 2 and node.inputs[2] is not None
    if biased and tensors.constant(node.inputs[2]) is None:
        return None
    output = node.outputs[0] if node.op_type == "MatMul" else absorbed(node.outputs[0])
    return Layer(layer_name(node), node, data, weight, axis, output)


def _is_integer_lstm(node: ir.Node) -> bool:
    if node.op_type != "LSTM" or node.domain not in ("", "ai.onnx") or _integer(node, "layout"):
        return False
    weights = [tensors.constant(value) for value in node.inputs[1:3]]
    return len(weights) == 2 and all(weight is not None and weight.dtype == ir.DataType.FLOAT for weight in weights)


def _plain_gemm(node: ir.Node) -> bool:
    """True for ``x @ w + b`` with a constant vector b: what QGemm computes."""
    if _integer(node, "transA") or _number(node, "alpha") != 1.0 or _number(node, "beta") != 1.0:
        return False
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    bias = tensors.constant(node.inputs[2])
    return bias is not None and len(bias.shape) == 1 and bias.shape[0] != 1


def _may_leave(layer: Layer) -> bool:
    """A convolution has no integer kernel with a float output, so one that ends the graph stays float."""
    ends = layer.output.is_graph_output() or layer.node.outputs[0].is_graph_output()
    return layer.node.op_type != "Conv" or not ends


def _carried(
    graph: ir.Graph, sources: set[ir.Value], layer_inputs: set[ir.Value], skip: Collection[str]
) -> list[ir.Node]:
    """Operators that can stay in 8 bits, in graph order: candidates forward, then only those that lead somewhere."""
    available, candidates = set(sources), []
    for node in graph:
        if layer_name(node) in skip or not _has_integer_kernel(node) or not set(_data_inputs(node)) <= available:
            continue
        outputs = [absorbed(value) if node.op_type in COMPUTING else value for value in node.outputs]
        # A pair behind an output that nobody reads would be dropped again, and the kernel with it.
        if all(value.uses() for value in outputs) and not any(v.is_graph_output() for v in (*outputs, *node.outputs)):
            candidates.append((node, outputs))
            available.update(outputs)
    wanted, kept = set(layer_inputs), []
    for node, outputs in reversed(candidates):
        if any(value in wanted for value in outputs):
            kept.append(node)
            wanted.update(_data_inputs(node))
    return kept[::-1]


def _has_integer_kernel(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Resize":
        # Linear and cubic interpolation run in float: the pair would not be fused.
        mode = node.attributes.get("mode")
        return mode is None or mode.as_string() == "nearest"
    if node.op_type == "MaxPool":
        return len(node.outputs) == 1
    return node.op_type in MOVING or node.op_type in COMPUTING


def _data_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs that carry activations: all of a variadic operator, else the first."""
    inputs = node.inputs if node.op_type in _VARIADIC else node.inputs[:1]
    return [value for value in inputs if value is not None]


def _is_read_by(value: ir.Value, readers: set[ir.Node]) -> bool:
    return any(use.node in readers for use in value.uses())


def _clips_around_zero(node: ir.Node) -> bool:
    bounds = [tensors.scalar(value) for value in node.inputs[1:3] if value is not None]
    given = [value for value in node.inputs[1:3] if value is not None]
    if len(bounds) != len(given) or any(bound is None for bound in bounds):
        return False
    low = tensors.scalar(node.inputs[1]) if len(node.inputs) > 1 else None
    high = tensors.scalar(node.inputs[2]) if len(node.inputs) > 2 else None
    return (low is None or low <= 0) and (high is None or high >= 0)


def _integer(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else 0


def _number(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return attribute.as_float() if attribute is not None else 1.0
