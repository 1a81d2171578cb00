"""Small pieces of graphs whose channels belong together in one way each: what the tests of pruning put graphs together from.

Each block takes a feature map and gives one; :data:`BLOCKS` names them all.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from builders import Net

Map = tuple[str, int]
"""A feature map's name and its channels; places are 6 x 6 all along."""
Block = Callable[[Net, Map], Map]


def conv(net: Net, value: Map, out: int = 6, kernel: int = 1, group: int = 1) -> Map:
    name, channels = value
    pads = [kernel // 2] * 4
    weight = net.weight(out, channels // group, kernel, kernel)
    return str(net.op("Conv", name, weight, net.weight(out), pads=pads, group=group)), out


def plain(net: Net, value: Map) -> Map:
    name, channels = conv(net, value, 8, 3)
    return str(net.op("Relu", net.batch_norm(name, channels))), channels


def residual(net: Net, value: Map) -> Map:
    inner = conv(net, (str(net.op("Sigmoid", conv(net, value, 5)[0])), 5), value[1])
    return str(net.op("Add", inner[0], value[0])), value[1]


def depthwise(net: Net, value: Map) -> Map:
    wide = conv(net, value, 8)
    deep = conv(net, wide, 8, 3, group=8)
    return conv(net, (str(net.op("HardSwish", deep[0])), 8), 4)


def multiplied(net: Net, value: Map) -> Map:
    """A depthwise convolution with two outputs a channel."""
    return conv(net, conv(net, conv(net, value, 4), 8, 3, group=4), 5)


def few_groups(net: Net, value: Map) -> Map:
    return conv(net, conv(net, conv(net, value, 8), 12, 1, group=2), 4)


def many_groups(net: Net, value: Map) -> Map:
    return conv(net, conv(net, conv(net, value, 12), 6, 1, group=6), 4)


def concat(net: Net, value: Map) -> Map:
    left, right = conv(net, value, 4), conv(net, value, 5, 3)
    joined = net.op("Concat", left[0], value[0], right[0], axis=1)
    return conv(net, (str(joined), 9 + value[1]), 6)


def split(net: Net, value: Map) -> Map:
    wide = net.op("Tanh", conv(net, value, 9)[0])
    left, right = net.op("Split", wide, net.ints(4, 5), axis=1, outputs=2)
    return str(net.op("Concat", conv(net, (left, 4), 3)[0], conv(net, (right, 5), 4)[0], axis=1)), 7


def gated(net: Net, value: Map) -> Map:
    """GLU: the halves of one convolution multiplied, so that their channels go in pairs."""
    wide = conv(net, value, 10)[0]
    left, right = net.op("Split", wide, net.ints(5, 5), axis=1, outputs=2)
    return conv(net, (str(net.op("Mul", left, net.op("Sigmoid", right))), 5), 6)


def sliced(net: Net, value: Map) -> Map:
    wide = conv(net, value, 9)[0]
    middle = net.op("Slice", wide, net.ints(2), net.ints(7), net.ints(1))
    return str(net.op("Add", conv(net, (middle, 5), 4)[0], conv(net, (wide, 9), 4)[0])), 4


def excite(net: Net, value: Map) -> Map:
    wide = conv(net, value, 8)
    pooled = net.op("GlobalAveragePool", wide[0])
    inner = net.op("Relu", conv(net, (str(pooled), 8), 4)[0])
    scale = net.op("HardSigmoid", conv(net, (inner, 4), 8)[0])
    return conv(net, (str(net.op("Mul", wide[0], scale)), 8), 5)


def excite_dense(net: Net, value: Map) -> Map:
    """Squeeze-and-excite through Gemm, and back to a map with a Reshape that names the channels."""
    wide = conv(net, value, 8)
    pooled = net.op("Flatten", net.op("GlobalMaxPool", wide[0]))
    inner = net.op("Relu", net.op("Gemm", pooled, net.weight(3, 8), net.weight(3), transB=1))
    scale = net.op("Sigmoid", net.op("Gemm", inner, net.weight(3, 8), net.weight(1, 8)))
    scale = net.op("Reshape", scale, net.ints(-1, 8, 1, 1))
    return conv(net, (str(net.op("Mul", wide[0], scale)), 8), 5)


def transposed(net: Net, value: Map) -> Map:
    wide = conv(net, value, 6)
    up = net.op("ConvTranspose", wide[0], net.weight(6, 7, 2, 2), net.weight(7), strides=[2, 2])
    up = net.op("ConvTranspose", up, net.weight(7, 1, 3, 3), group=7, pads=[1, 1, 1, 1])
    return conv(net, (str(net.op("MaxPool", up, kernel_shape=[2, 2], strides=[2, 2])), 7), 5)


def shuffled(net: Net, value: Map) -> Map:
    wide = conv(net, value, 8)[0]
    pairs = net.op("Transpose", net.op("Reshape", wide, net.ints(0, 2, 4, 6, 6)), perm=[0, 2, 1, 3, 4])
    return conv(net, (str(net.op("Reshape", pairs, net.ints(0, -1, 6, 6))), 8), 5)


def resized(net: Net, value: Map) -> Map:
    wide = conv(net, value, 6)[0]
    scales = net.const(np.array([1, 1, 2, 2], np.float32))
    up = net.op("Resize", wide, "", scales, mode="nearest")
    size = net.op("Slice", net.op("Shape", up), net.ints(0), net.ints(1))
    down = net.op("Resize", up, "", "", net.op("Concat", size, net.ints(6, 6, 6), axis=0), mode="nearest")
    return conv(net, (str(down), 6), 5)


def padded(net: Net, value: Map) -> Map:
    wide = net.op("Pad", conv(net, value, 6)[0], net.ints(0, 0, 1, 1, 0, 0, 1, 1))
    name = net.op("Conv", wide, net.weight(5, 6, 3, 3))
    return str(net.op("Div", net.op("Sub", name, net.weight(5, 1, 1)), net.weight(1, 5, 1, 1, shift=3.0))), 5


def depth_to_space(net: Net, value: Map) -> Map:
    mode = "DCR" if value[1] % 2 else "CRD"
    up = net.op("DepthToSpace", conv(net, value, 12)[0], blocksize=2, mode=mode)
    inner = net.op("Relu", conv(net, (str(up), 3), 4)[0])
    return conv(net, (str(net.op("SpaceToDepth", inner, blocksize=2)), 16), 5)


def folded_weight(net: Net, value: Map) -> Map:
    """A bias that is reshaped in the graph, and a kernel stored the other way round, as PaddlePaddle and Keras export."""
    name = conv(net, value, 6)[0]
    name = net.op("Add", name, net.op("Reshape", net.weight(6), net.ints(1, 6, 1, 1)))
    kernel = net.op("Transpose", net.weight(1, 1, 6, 4), perm=[3, 2, 0, 1])
    return str(net.op("Conv", name, kernel)), 4


def attention(net: Net, value: Map) -> Map:
    """Places as tokens; four heads of three."""
    tokens = net.op("Transpose", net.op("Reshape", value[0], net.ints(0, 0, -1)), perm=[0, 2, 1])

    def project(perm: list[int]) -> str:
        made = net.op("Add", net.op("MatMul", tokens, net.weight(value[1], 12)), net.weight(12))
        return str(net.op("Transpose", net.op("Reshape", made, net.ints(0, 0, 4, 3)), perm=perm))

    scores = net.op("Softmax", net.op("MatMul", project([0, 2, 1, 3]), project([0, 2, 3, 1])), axis=-1)
    mixed = net.op("Transpose", net.op("MatMul", scores, project([0, 2, 1, 3])), perm=[0, 2, 1, 3])
    mixed = net.op("MatMul", net.op("Reshape", mixed, net.ints(0, 0, 12)), net.weight(12, 6))
    return str(net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1]), net.ints(0, 0, 6, 6))), 6


def packed_attention(net: Net, value: Map) -> Map:
    """Query, key and value out of one MatMul, told apart by Split behind a Reshape to (3, heads, places)."""
    tokens = net.op("Transpose", net.op("Reshape", value[0], net.ints(0, 0, 36)), perm=[0, 2, 1])
    packed = net.op("MatMul", tokens, net.weight(value[1], 24))
    packed = net.op("Transpose", net.op("Reshape", packed, net.ints(0, 36, 3, 4, 2)), perm=[2, 0, 3, 1, 4])
    parts = [net.op("Gather", packed, net.const(np.int64(index)), axis=0) for index in range(3)]
    scores = net.op("MatMul", parts[0], net.op("Transpose", parts[1], perm=[0, 1, 3, 2]))
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), parts[2])
    mixed = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(0, 36, 8))
    mixed = net.layer_norm(net.op("MatMul", mixed, net.weight(8, 6)), 6)
    return str(net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1]), net.ints(0, 0, 6, 6))), 6


def layer_normalized(net: Net, value: Map) -> Map:
    """The operator LayerNormalization over a stream, which needs all of it; the layers in between do not."""
    tokens = net.op("Transpose", net.op("Reshape", conv(net, value, 6)[0], net.ints(0, 6, 36)), perm=[0, 2, 1])
    normal = net.op("LayerNormalization", tokens, net.weight(6, shift=1.0), net.weight(6), axis=-1)
    inner = net.op("Relu", net.op("MatMul", normal, net.weight(6, 9)))
    rows = net.op("Transpose", net.op("MatMul", inner, net.weight(9, 5)), perm=[0, 2, 1])
    return str(net.op("Reshape", rows, net.ints(0, 5, 6, 6))), 5


def feed_forward(net: Net, value: Map) -> Map:
    """A transformer's two dense layers on a stream that they add to."""
    tokens = net.op("Transpose", net.op("Reshape", value[0], net.ints(0, 0, 36)), perm=[0, 2, 1])
    inner = net.gelu(net.op("Add", net.weight(10), net.op("MatMul", tokens, net.weight(value[1], 10))))
    outer = net.op("Add", net.op("MatMul", inner, net.weight(10, value[1])), net.weight(value[1]))
    rows = net.op("Transpose", net.op("Add", tokens, outer), perm=[0, 2, 1])
    return str(net.op("Reshape", rows, net.ints(0, -1, 6, 6))), value[1]


def averaged(net: Net, value: Map) -> Map:
    """Pooling that keeps the places, the padding counted or not."""
    wide = conv(net, value, 6)[0]
    wide = net.op("AveragePool", wide, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=value[1] % 2)
    return conv(net, (str(net.op("Relu", wide)), 6), 5)


def transposed_groups(net: Net, value: Map) -> Map:
    """A ConvTranspose of two groups, whose weight holds the inputs first."""
    wide = net.op("Relu", conv(net, value, 8)[0])
    up = net.op("ConvTranspose", wide, net.weight(8, 3, 2, 2), net.weight(6), strides=[2, 2], group=2)
    return conv(net, (str(net.op("MaxPool", up, kernel_shape=[2, 2], strides=[2, 2])), 6), 5)


def recurrent(kind: str, gates: int, bidirectional: int) -> Block:
    def block(net: Net, value: Map) -> Map:
        frames = net.op("Transpose", net.op("Reshape", value[0], net.ints(0, 0, 36)), perm=[2, 0, 1])
        hidden, ways = 4, 1 + bidirectional
        weights = (
            net.weight(ways, gates * hidden, value[1]),
            net.weight(ways, gates * hidden, hidden),
            net.weight(ways, 2 * gates * hidden),
        )
        direction = "bidirectional" if bidirectional else "forward"
        outputs = net.op(kind, frames, *weights, outputs=2, hidden_size=hidden, direction=direction)
        rows = net.op("Transpose", outputs[0], perm=[2, 1, 3, 0])  # samples, ways, hidden, frames
        rows = net.op("Reshape", rows, net.ints(0, ways * hidden, 6, 6))
        return conv(net, (str(rows), ways * hidden), 5)

    return block


def shaped_at_run_time(net: Net, value: Map) -> Map:
    """The flattening of TorchScript: the batch from Shape and Gather, the channels as a number."""
    wide = conv(net, value, 6)[0]
    size = net.op("Unsqueeze", net.op("Gather", net.op("Shape", wide), net.const(np.int64(0))), net.ints(0))
    rows = net.op("Reshape", wide, net.op("Concat", size, net.ints(6), net.ints(36), axis=0))
    rows = net.op("MatMul", net.weight(5, 6), rows)
    return str(net.op("Reshape", rows, net.ints(0, 5, 6, 6))), 5


def spatial_attention(net: Net, value: Map) -> Map:
    """The mean over the channels needs them all; its one channel stretches over the others."""
    wide = conv(net, value, 6)[0]
    mean = net.op("ReduceMean", wide, axes=[1], keepdims=1)
    gate = net.op("Sigmoid", conv(net, (str(mean), 1), 1, 3)[0])
    return conv(net, (str(net.op("Mul", conv(net, value, 5)[0], gate)), 5), 4)


def channel_softmax(net: Net, value: Map) -> Map:
    return conv(net, (str(net.op("Softmax", conv(net, value, 6)[0], axis=1)), 6), 5)


def normalized_groups(net: Net, value: Map) -> Map:
    """Group normalization as exporters write it: a Reshape to groups, InstanceNormalization, and back."""
    rows = net.op("Reshape", conv(net, value, 6)[0], net.ints(0, 2, -1))
    rows = net.op("InstanceNormalization", rows, net.weight(2), net.weight(2))
    return conv(net, (str(net.op("Reshape", rows, net.ints(0, 6, 6, 6))), 6), 5)


def instance(net: Net, value: Map) -> Map:
    name = net.op("InstanceNormalization", conv(net, value, 6)[0], net.weight(6), net.weight(6))
    return conv(net, (str(net.op("PRelu", name, net.weight(6, 1, 1))), 6), 5)


def not_understood(net: Net, value: Map) -> Map:
    return conv(net, (str(net.op("LRN", conv(net, value, 6)[0], size=3)), 6), 5)


def counted(net: Net, value: Map) -> Map:
    """Divides by the number of channels, which it asks for at run time."""
    wide = conv(net, value, 6)[0]
    count = net.op("Cast", net.op("Gather", net.op("Shape", wide), net.const(np.int64(1))), to=1)
    return conv(net, (str(net.op("Div", wide, count)), 6), 5)


def copied_shape(net: Net, value: Map) -> Map:
    """Flattened and put back into the shape that a Shape node remembers, and stretched to it."""
    wide = conv(net, value, 6)[0]
    shape = net.op("Shape", wide)
    rows = net.op("Tanh", net.op("Reshape", wide, net.ints(0, 6, 36)))
    wide = net.op("Reshape", rows, shape)
    places = net.op("Expand", net.op("ReduceMax", wide, axes=[2, 3], keepdims=1), shape)
    return conv(net, (str(net.op("Sub", wide, places)), 6), 5)


def picked(net: Net, value: Map) -> Map:
    """Channels in another order: looked up, and every second one."""
    wide = conv(net, value, 6)[0]
    other = net.op("Gather", wide, net.ints(5, 3, 1), axis=1)
    second = net.op("Slice", conv(net, value, 6)[0], net.ints(0), net.ints(6), net.ints(1), net.ints(2))
    return str(net.op("Add", other, second)), 3


def padded_channels(net: Net, value: Map) -> Map:
    wide = net.op("Pad", conv(net, value, 4)[0], net.ints(0, 1, 0, 0, 0, 1, 0, 0))
    return conv(net, (str(wide), 6), 5)


def similarity(net: Net, value: Map) -> Map:
    """A product of two activations over the channels themselves: no weight's column to take away."""
    left = net.op("Reshape", conv(net, value, 5)[0], net.ints(0, 5, 36))
    right = net.op("Transpose", net.op("Reshape", conv(net, value, 4)[0], net.ints(0, 4, 36)), perm=[0, 2, 1])
    both = net.op("Softmax", net.op("MatMul", left, right), axis=-1)
    mixed = net.op("MatMul", both, net.op("Reshape", conv(net, value, 4)[0], net.ints(0, 4, 36)))
    return conv(net, (str(net.op("Reshape", mixed, net.ints(0, 5, 6, 6))), 5), 4)


def tied_layers(net: Net, value: Map) -> Map:
    """One weight read by two layers, one behind the other: its rows are its columns."""
    wide, weight, bias = conv(net, value, 6)[0], net.weight(6, 6, 1, 1), net.weight(6)
    wide = net.op("Relu", net.op("Conv", wide, weight, bias))
    return conv(net, (str(net.op("Relu", net.op("Conv", wide, weight, bias))), 6), 5)


def captured(net: Net, value: Map) -> Map:
    """A branch reads the channels from outside; in the other, layers of its own can shrink."""
    wide = conv(net, value, 6)[0]
    positive = net.op("Greater", net.op("ReduceSum", wide, keepdims=0), net.const(np.float32(0)))
    then, other = Net(prefix=f"{wide}_then_"), Net(prefix=f"{wide}_else_")
    then.op("Relu", wide, output=f"{wide}_then_out")
    inner = other.op("Tanh", conv(other, (wide, 6), 5)[0])
    other.op("Conv", inner, other.weight(6, 5, 1, 1), output=f"{wide}_else_out")
    bodies = {
        "then_branch": then.graph("then", {}, {f"{wide}_then_out": (1, ["N", 6, 6, 6])}),
        "else_branch": other.graph("else", {}, {f"{wide}_else_out": (1, ["N", 6, 6, 6])}),
    }
    return str(net.op("If", positive, **bodies)), 6


def looked_up(net: Net, value: Map) -> Map:
    """The most active channel of each place picks a row of a table."""
    rows = net.op("ArgMax", conv(net, value, 6)[0], axis=1, keepdims=0)
    rows = net.op("Transpose", net.op("Gather", net.weight(6, 8), rows, axis=0), perm=[0, 3, 1, 2])
    return conv(net, (str(net.op("Relu", rows)), 8), 5)


def few_channels(net: Net, value: Map) -> Map:
    """One channel cut out of many, and added to all of them."""
    wide = conv(net, value, 6)[0]
    first = net.op("Slice", wide, net.ints(0), net.ints(1), net.ints(1))
    return conv(net, (str(net.op("Add", wide, first)), 6), 5)


def joined_frames(net: Net, value: Map) -> Map:
    """Neighbouring places side by side as one longer row, and back."""
    rows = net.op("Transpose", conv(net, value, 5)[0], perm=[0, 2, 3, 1])
    rows = net.op("Reshape", rows, net.ints(-1, 18, 10))
    rows = net.op("Relu", net.op("MatMul", rows, net.weight(10, 12)))
    rows = net.op("Reshape", rows, net.ints(-1, 36, 6))
    return str(net.op("Reshape", net.op("Transpose", rows, perm=[0, 2, 1]), net.ints(0, 6, 6, 6))), 6


def folded_heads(net: Net, value: Map) -> Map:
    """Heads folded into the batch, as torch.nn.MultiheadAttention does, with targets computed from the batch at run time."""
    tokens = net.op("Transpose", net.op("Reshape", value[0], net.ints(0, 0, 36)), perm=[2, 0, 1])
    batch = net.op("Gather", net.op("Shape", tokens), net.const(np.int64(1)))
    folded = net.op("Unsqueeze", net.op("Mul", batch, net.const(np.int64(4))), net.ints(0))
    target = net.op("Concat", net.ints(36), folded, net.ints(2), axis=0)

    def project() -> str:
        made = net.op("Reshape", net.op("MatMul", tokens, net.weight(value[1], 8)), target)
        return str(net.op("Transpose", made, perm=[1, 0, 2]))

    scores = net.op("MatMul", project(), net.op("Transpose", project(), perm=[0, 2, 1]))
    mixed = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), project()), perm=[1, 0, 2])
    back = net.op("Concat", net.ints(36), net.op("Unsqueeze", batch, net.ints(0)), net.ints(8), axis=0)
    mixed = net.op("MatMul", net.op("Reshape", mixed, back), net.weight(8, 5))
    return str(net.op("Reshape", net.op("Transpose", mixed, perm=[1, 2, 0]), net.ints(0, 5, 6, 6))), 5


def repeated_heads(net: Net, value: Map) -> Map:
    """Four heads of queries on two of keys and values each, which Expand repeats."""
    tokens = net.op("Transpose", net.op("Reshape", value[0], net.ints(0, 0, 36)), perm=[0, 2, 1])

    def project(heads: int) -> str:
        made = net.op("Reshape", net.op("MatMul", tokens, net.weight(value[1], 2 * heads)), net.ints(0, 36, heads, 2))
        return str(net.op("Transpose", made, perm=[0, 2, 1, 3]))

    def repeat(heads: str) -> str:
        wide = net.op("Expand", net.op("Unsqueeze", heads, net.ints(2)), net.ints(1, 4, 2, 36, 2))
        return str(net.op("Reshape", wide, net.ints(-1, 8, 36, 2)))

    keys = net.op("Transpose", repeat(project(4)), perm=[0, 1, 3, 2])
    mixed = net.op("MatMul", net.op("Softmax", net.op("MatMul", project(8), keys), axis=-1), repeat(project(4)))
    mixed = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(0, 36, 16))
    mixed = net.op("Transpose", net.op("MatMul", mixed, net.weight(16, 5)), perm=[0, 2, 1])
    return str(net.op("Reshape", mixed, net.ints(0, 5, 6, 6))), 5


def zero_states(net: Net, value: Map) -> Map:
    """A cell whose first states are zeros of a shape that is put together at run time."""
    frames = net.op("Transpose", net.op("Reshape", value[0], net.ints(0, 0, 36)), perm=[2, 0, 1])
    batch = net.op("Slice", net.op("Shape", frames), net.ints(1), net.ints(2))
    states = [
        net.op("ConstantOfShape", net.op("Concat", net.ints(1), batch, net.ints(4), axis=0)),
        net.op(
            "Expand",
            net.const(np.zeros((1, 1, 1), np.float32)),
            net.op("Concat", net.ints(1), batch, net.ints(4), axis=0),
        ),
    ]
    weights = (net.weight(1, 16, value[1]), net.weight(1, 16, 4), net.weight(1, 32), "")
    rows = net.op("LSTM", frames, *weights, *states, hidden_size=4)
    rows = net.op("Transpose", net.op("Squeeze", rows, net.ints(1)), perm=[1, 2, 0])
    return conv(net, (str(net.op("Reshape", rows, net.ints(0, 4, 6, 6))), 4), 5)


BLOCKS: dict[str, Block] = {
    block.__name__: block
    for block in (
        plain, residual, depthwise, multiplied, few_groups, many_groups, concat, split, gated, sliced, excite, excite_dense, transposed, shuffled,
        resized, padded, depth_to_space, folded_weight, attention, packed_attention, shaped_at_run_time,
        spatial_attention, channel_softmax, normalized_groups, instance, not_understood, counted, copied_shape, picked, padded_channels,
        similarity, tied_layers, captured, looked_up, few_channels, joined_frames, folded_heads, repeated_heads, zero_states,
        layer_normalized, feed_forward, averaged, transposed_groups,
    )
}  # fmt: skip
BLOCKS["lstm"] = recurrent("LSTM", 4, 0)
BLOCKS["lstm_both_ways"] = recurrent("LSTM", 4, 1)
BLOCKS["gru"] = recurrent("GRU", 3, 0)
BLOCKS["gru_both_ways"] = recurrent("GRU", 3, 1)
BLOCKS["rnn"] = recurrent("RNN", 1, 0)
BLOCKS["rnn_both_ways"] = recurrent("RNN", 1, 1)
