"""Static int8: where pairs go, that ONNX Runtime fuses them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builders import FakeEvidence, Net
from fused import noise_ratio, operators

from edgeopt.errors import PassFailed
from edgeopt.graph import check, quantizable, tensors
from edgeopt.passes.fold_batch_norm import FoldBatchNorm
from edgeopt.passes.quantize_static import QuantizeStatic


def quantize(model: ir.Model, **settings: Any) -> ir.Model:
    """With weights that no kernel saturates on, on whatever CPU this runs, unless ``settings`` say otherwise."""
    return QuantizeStatic().apply(model, {"reduced_range": True, **settings}, FakeEvidence(model))


def folded(model: ir.Model) -> ir.Model:
    return FoldBatchNorm().apply(model, {}, FakeEvidence(model))


def chain(operator: str, *more: str, opset: int = 17, outputs: int = 1, **attributes: Any) -> ir.Model:
    """Conv, one operator, Conv, then a pooled float head."""
    net = Net(opset=opset)
    extra = {"ints": net.ints, "scales": lambda: net.const(np.array([1, 1, 2, 2], np.float32))}
    first = net.op("Conv", "image", net.weight(8, 4, 3, 3), net.weight(8), pads=[1, 1, 1, 1])
    inputs = [extra[name.split(":")[0]](*map(int, filter(None, name.split(":")[1:]))) if name else "" for name in more]
    if operator in ("Add", "Mul", "Concat"):
        inputs = [net.op("Conv", "image", net.weight(8, 4, 3, 3), net.weight(8), pads=[1, 1, 1, 1])]
    middle = net.op(operator, first, *inputs, outputs=outputs, **attributes)
    middle = middle if isinstance(middle, str) else net.op("Add", *middle)
    width = {"Concat": 16, "Split": 4, "DepthToSpace": 2, "Slice": 4}.get(operator, 8)
    last = net.op("Conv", middle, net.weight(4, width, 1, 1), net.weight(4))
    net.op("Tanh", last, output="out")
    return net.build({"image": [1, 4, 8, 8]}, {"out": [1, 4, "H", "W"]})


FLOAT_COMPUTE = {"Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Sigmoid", "AveragePool", "GlobalAveragePool"}


def test_a_classifier_runs_in_integers_from_the_first_layer_to_the_last(tmp_path: Path) -> None:
    model = folded(builders.conv_net())
    quantized = quantize(model)
    left = operators(quantized, tmp_path)
    assert left["QLinearConv"] == 2
    assert left["QGemm"] == 1
    assert left["QLinearGlobalAveragePool"] == 1
    assert left["QuantizeLinear"] == 1
    assert not FLOAT_COMPUTE & set(left)
    assert "Relu" not in left
    assert noise_ratio(model, quantized) < 0.01


def test_clip_is_absorbed_and_depthwise_convolutions_are_quantized_by_channel(tmp_path: Path) -> None:
    net = Net(seed=3)
    low, high = net.const(np.float32(0.0)), net.const(np.float32(6.0))
    wide = net.op("Clip", net.op("Conv", "image", net.weight(12, 4, 1, 1), net.weight(12)), low, high)
    deep = net.op("Clip", net.op("Conv", wide, net.weight(12, 1, 3, 3), group=12, pads=[1, 1, 1, 1]), low, high)
    narrow = net.op("Conv", deep, net.weight(4, 12, 1, 1))
    again = net.op("Conv", net.op("Add", narrow, net.op("Conv", wide, net.weight(4, 12, 1, 1))), net.weight(4, 4, 1, 1))
    net.op("Tanh", again, output="features")
    model = net.build({"image": ["N", 4, "H", "W"]}, {"features": ["N", 4, "H", "W"]})
    quantized = quantize(model)
    left = operators(quantized, tmp_path)
    assert left["QLinearConv"] == 5
    assert left["QLinearAdd"] == 1
    assert "Clip" not in left
    scales = [tensors.array(node.inputs[1]) for node in quantized.graph if node.attributes.get("axis") is not None]
    assert {scale.size for scale in scales if scale is not None} == {12, 4}
    assert noise_ratio(model, quantized) < 0.01


@pytest.mark.parametrize(
    ("model", "kernel"),
    [
        (chain("Add"), "QLinearAdd"),
        (chain("Mul"), "QLinearMul"),
        (chain("Concat", axis=1), "QLinearConcat"),
        (chain("Sigmoid"), "QLinearSigmoid"),
        (chain("LeakyRelu", alpha=0.1), "QLinearLeakyRelu"),
        (chain("AveragePool", kernel_shape=[2, 2]), "QLinearAveragePool"),
        (chain("GlobalAveragePool"), "QLinearGlobalAveragePool"),
        (chain("MaxPool", kernel_shape=[2, 2]), "NhwcMaxPool"),
        (chain("Transpose", perm=[0, 1, 3, 2]), "Transpose"),
        (chain("Slice", "ints:0", "ints:4", "ints:1"), "Slice"),
        (chain("Split", "ints:4:4", outputs=2, axis=1), "Split"),
        (chain("Resize", "", "scales", mode="nearest"), "Resize"),
        (chain("DepthToSpace", blocksize=2), "DepthToSpace"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_operator_between_two_layers_stays_in_integers(model: ir.Model, kernel: str, tmp_path: Path) -> None:
    quantized = quantize(model)
    left = operators(quantized, tmp_path)
    assert kernel in left
    assert left["QuantizeLinear"] == 1
    assert left["DequantizeLinear"] == 1
    assert not FLOAT_COMPUTE & set(left)
    assert noise_ratio(model, quantized) < 0.01


@pytest.mark.parametrize(
    "model",
    [chain("HardSwish"), chain("Resize", "", "scales", mode="linear"), chain("Tanh")],
    ids=["HardSwish", "linear", "Tanh"],
)
def test_an_operator_without_an_integer_kernel_stays_float(model: ir.Model, tmp_path: Path) -> None:
    placement = quantizable.place(model.graph)
    assert placement.carried == []
    assert operators(quantize(model), tmp_path)["QLinearConv"] == 2


def test_matrices_with_a_bias_run_as_qgemm(tmp_path: Path) -> None:
    model = builders.mlp()
    left = operators(quantize(model), tmp_path)
    assert left["QGemm"] == 2
    assert left["QuantizeLinear"] == 1
    assert noise_ratio(model, quantize(model)) < 0.01


def test_a_transformers_dense_layers_take_float_sums_and_attention_stays_float(tmp_path: Path) -> None:
    model = builders.bert_block()
    quantized = quantize(model)
    left = operators(quantized, tmp_path)
    assert left["MatMulIntegerToFloat"] == 6
    assert left["MatMul"] + left["FusedMatMul"] == 2, "the products of two activations"
    assert noise_ratio(model, quantized) < 0.01


def test_a_one_dimensional_convolution_without_bias_is_quantized(tmp_path: Path) -> None:
    net = Net()
    net.op("Tanh", net.op("Conv", "signal", net.weight(6, 2, 5)), output="out")
    model = net.build({"signal": ["N", 2, 32]}, {"out": ["N", 6, 28]})
    quantized = quantize(model, bias_correction=True)
    assert operators(quantized, tmp_path)["QLinearConv"] == 1
    assert noise_ratio(model, quantized) < 0.01


def test_what_leaves_the_graph_is_not_rounded() -> None:
    net = Net()
    net.op("Conv", net.op("Conv", "image", net.weight(4, 4, 1, 1)), net.weight(2, 4, 1, 1), output="mask")
    model = net.build({"image": [1, 4, 6, 6]}, {"mask": [1, 2, 6, 6]})
    assert [layer.node.outputs[0].name for layer in quantizable.place(model.graph).layers] != ["mask"]
    assert len(quantizable.place(model.graph).layers) == 1
    logits = quantize(folded(builders.conv_net())).graph.outputs[0]
    producer = logits.producer()
    assert producer is not None
    assert producer.op_type == "Gemm"


def test_one_weight_of_two_layers_is_stored_once_and_the_float_one_is_gone() -> None:
    net = Net(seed=8)
    weight, bias = net.weight(4, 4, 1, 1), net.weight(4)
    left, right = net.op("Conv", "image", weight, bias), net.op("Conv", net.op("Relu", "image"), weight, bias)
    net.op("Tanh", net.op("Add", left, right), output="sum")
    model = net.build({"image": ["N", 4, 6, 6]}, {"sum": ["N", 4, 6, 6]})
    quantized = quantize(model)
    kernels = [
        value for value in quantized.graph.initializers.values() if value.shape is not None and len(value.shape) == 4
    ]
    assert [value.dtype for value in kernels] == [ir.DataType.INT8]
    assert noise_ratio(model, quantized) < 0.01


def test_weights_in_constant_nodes_are_quantized_like_initializers(tmp_path: Path) -> None:
    model = folded(builders.conv_net(constants=True))
    assert operators(quantize(model), tmp_path)["QLinearConv"] == 2


def test_bodies_of_an_if_stay_float_and_what_they_read_from_outside_still_works() -> None:
    model = builders.branches()
    quantized = quantize(model)
    inside = [node.op_type for graph in quantized.graphs() if graph is not quantized.graph for node in graph]
    assert "QuantizeLinear" not in inside
    assert noise_ratio(model, quantized) < 0.02


def test_skipped_layers_stay_float(tmp_path: Path) -> None:
    model = folded(builders.conv_net())
    names = [layer.name for layer in quantizable.layers(model.graph)]
    left = operators(quantize(model, skip=json.dumps(names[:1])), tmp_path)
    assert left["QLinearConv"] == 1
    assert left["Conv"] + left["FusedConv"] == 1
    with pytest.raises(PassFailed, match="is left to quantize"):
        quantize(model, skip=json.dumps(names))


def test_all_recipes_of_a_job_share_one_pass_over_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    model = folded(builders.conv_net())
    evidence = FakeEvidence(model)
    seen: list[int] = []
    observe = evidence.observe

    def counted(*arguments: Any) -> Any:
        seen.append(1)
        return observe(*arguments)

    monkeypatch.setattr(evidence, "observe", counted)
    for method in ("min_max", "entropy", "mse"):
        QuantizeStatic().apply(model, {"method": method, "bias_correction": True}, evidence)
    first = quantizable.layers(model.graph)[0].name
    QuantizeStatic().apply(model, {"skip": json.dumps([first])}, evidence)
    assert len(seen) == 2, "one sample for the shapes, then all of them once"


def test_bias_correction_brings_the_mean_output_back() -> None:
    net = Net(seed=5)
    positive = net.op("Relu", net.op("Conv", "image", net.weight(8, 4, 3, 3), net.weight(8)))
    net.op("Tanh", net.op("Conv", positive, net.weight(6, 8, 3, 3, scale=0.05), net.weight(6)), output="out")
    model = net.build({"image": [1, 4, 24, 24]}, {"out": [1, 6, 20, 20]})

    def shift(**settings: Any) -> float:
        quantized = quantize(model, per_channel=False, reduced_range=True, **settings)
        arrays = [builders.feeds(model, seed=seed) for seed in range(4)]
        means = [
            np.mean([builders.run(candidate, one)[0].mean(axis=(0, 2, 3)) for one in arrays], axis=0)
            for candidate in (model, quantized)
        ]
        return float(np.abs(means[0] - means[1]).mean())

    assert shift(bias_correction=True) < 0.6 * shift(bias_correction=False)


def test_symmetric_activations_have_their_zero_in_the_middle() -> None:
    quantized = quantize(folded(builders.conv_net()), activation="int8", symmetric=True)
    pairs = [node for node in quantized.graph if node.op_type == "QuantizeLinear"]
    assert len(pairs) > 2
    assert all(tensors.scalar(node.inputs[2]) == 0 for node in pairs)


def test_the_symmetric_form_has_no_32_bit_integers_and_is_right() -> None:
    model = folded(builders.conv_net())
    quantized = quantize(model, activation="int8", symmetric=True, bias_correction=True)
    assert all(value.dtype != ir.DataType.INT32 for value in quantized.graph.initializers.values())
    assert noise_ratio(model, quantized) < 0.01


@pytest.mark.parametrize(
    ("per_channel", "narrow", "largest"), [(True, True, 126), (False, True, 63), (True, False, 127)]
)
def test_reduced_range_uses_seven_bits_for_a_tensor_and_as_many_as_fit_for_a_channel(
    per_channel: bool, narrow: bool, largest: int
) -> None:
    quantized = quantize(folded(builders.conv_net()), reduced_range=narrow, per_channel=per_channel)
    codes = [tensors.array(value) for value in quantized.graph.initializers.values() if value.dtype == ir.DataType.INT8]
    found = max(int(np.abs(array.astype(int)).max()) for array in codes if array is not None and array.ndim > 1)
    assert found == largest if not (per_channel and narrow) else 63 < found <= largest


@pytest.mark.parametrize("opset", [11, 12])
def test_per_channel_below_opset_13_is_refused_and_per_tensor_works(opset: int) -> None:
    model = folded(builders.conv_net(opset=opset))
    with pytest.raises(PassFailed, match=f"opset {opset} is older than 13"):
        quantize(model)
    assert noise_ratio(model, quantize(model, per_channel=False)) < 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metod": "mse"}, "no setting 'metod'"),
        ({"method": "median"}, "'median' is no calibration method"),
        ({"activation": "int4"}, "not 8-bit"),
        ({"per_channel": 1}, "not true or false"),
        ({"weight": "uint8", "activation": "int8"}, "no integer kernel beside int8"),
        ({"unsigned": '["conv1"]', "activation": "int8"}, "no integer kernel beside int8"),
        ({"skip": "conv1"}, "not JSON"),
        ({"skip": "[1]"}, "not a list of names"),
    ],
)
def test_wrong_settings_are_refused_with_the_value(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PassFailed, match=message):
        quantize(builders.conv_net(), **settings)


def test_a_model_without_layers_and_a_quantized_one_are_refused() -> None:
    quantizer = QuantizeStatic()
    net = Net()
    net.op("Tanh", "rows", output="out")
    plain = net.build({"rows": ["N", 4]}, {"out": ["N", 4]})
    assert quantizer.refuse(builders.signature(plain), builders.TARGET) == "the model has no Conv, Gemm or MatMul"
    assert quantizer.refuse(builders.signature(builders.conv_net()), builders.TARGET) is None


def test_without_samples_there_is_no_range() -> None:
    model = builders.conv_net()
    with pytest.raises(PassFailed, match="no calibration samples"):
        QuantizeStatic().apply(model, {}, FakeEvidence(model, samples=0))


def test_an_activation_that_is_not_finite_is_named() -> None:
    net = Net()
    hidden = net.op("Log", "rows")
    net.op("Tanh", net.op("MatMul", hidden, net.weight(4, 3)), output="out")
    model = net.build({"rows": ["N", 4]}, {"out": ["N", 3]})
    with pytest.raises(PassFailed, match="is not finite"):
        quantize(model)


@pytest.mark.parametrize("make", [builders.conv_net, builders.mlp, builders.bert_block])
def test_the_same_model_gives_the_same_bytes(make: Callable[[], ir.Model]) -> None:
    model = make()
    assert builders.to_bytes(quantize(model)) == builders.to_bytes(quantize(model))


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_float_layer_between_integer_ones_is_not_quantized_by_the_runtime(operator: str, tmp_path: Path) -> None:
    net = Net(seed=12)
    spread = np.geomspace(1e-3, 1, 8).reshape(-1, 1, 1, 1)
    uneven = net.const((net.random.standard_normal((8, 8, 1, 1)) * spread).astype(np.float32))
    first = net.op("Relu", net.op("Conv", "x", net.weight(8, 3, 3, 3), net.weight(8)))
    middle = net.op("Relu", net.op(operator, first, uneven, net.weight(8)))
    net.op("Tanh", net.op("Conv", middle, net.weight(4, 8, 1, 1), net.weight(4)), output="out")
    model = net.build({"x": ["N", 3, 8, 8]}, {"out": ["N", 4, "H", "W"]})
    (kept,) = [
        node.name for node in model.graph if len(node.inputs) > 1 and node.inputs[1] is model.graph.initializers[uneven]
    ]
    quantized = quantize(model, skip=json.dumps([kept]))
    assert operators(quantized, tmp_path)["QLinearConv"] == 2
    optimized = onnx.load(tmp_path / "optimized.onnx").graph
    (left,) = [node for node in optimized.node if node.op_type in ("Conv", "FusedConv", "ConvTranspose")]
    weights = {tensor.name: tensor.data_type for tensor in optimized.initializer}
    assert weights.get(left.input[1]) == onnx.TensorProto.FLOAT, "the runtime put a pair in front of the weight"
    assert noise_ratio(model, quantized) < 0.01


def test_wide_layers_read_and_write_sixteen_bits_and_lose_less() -> None:
    random = np.random.default_rng(4)
    net = Net(seed=4)
    # weights that int8 holds exactly, so that all the noise is the activations'
    weights = [random.integers(-126, 127, (16, 16)).astype(np.float32) / 512 for _ in range(2)]
    for weight in weights:
        weight[0] = 127 / 512  # each output channel's scale is 1 / 512
    value = "rows"
    for weight in weights:
        value = net.op("Relu", net.op("Gemm", value, net.const(weight)))
    net.op("Gemm", value, net.const(weights[0]), output="out")
    model = net.build({"rows": ["N", 16]}, {"out": ["N", 16]})
    evidence = FakeEvidence(model)
    layers = QuantizeStatic().layers(model)
    noises = []
    for wide in ((), layers):
        made = QuantizeStatic().apply(model, {"wide": json.dumps(list(wide))}, evidence)
        check.verify(made, like=model)
        kinds = {node.outputs[0].dtype for node in made.graph if node.op_type == "QuantizeLinear"}
        assert kinds == {ir.DataType.UINT16 if wide else ir.DataType.UINT8}
        feeds = builders.feeds(model, seed=1)
        right, got = builders.run(model, feeds)[0], builders.run(made, feeds, optimized=True)[0]
        noises.append(float(np.square(got - right).sum() / np.square(right).sum()))
    assert noises[1] < noises[0] / 100


def test_sixteen_bits_are_refused_for_targets_that_want_symmetric_activations() -> None:
    model = builders.mlp()
    with pytest.raises(PassFailed, match="16-bit"):
        QuantizeStatic().apply(model, {"wide": '["a"]', "symmetric": True}, FakeEvidence(model))
