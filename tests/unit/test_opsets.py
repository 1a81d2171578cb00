"""Every opset that exporters of the last ten years wrote, 7 to 24: right behind clean-up, refused with a reason without it."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builders import FakeEvidence, Net, Shape
from onnx import helper

from edgeopt.catalogue import find_pass
from edgeopt.errors import PassFailed
from edgeopt.graph import check
from edgeopt.graph.opset import opset as opset_of

OPSETS = range(7, 25)
IR_VERSIONS = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 15: 8, 19: 9, 21: 10, 23: 11, 24: 12}
"""The IR version that came with an opset, where it rose."""
RAISED = 17
RECIPES = {
    "cnn": (("tidy",), ("tidy", "fold_batch_norm", "quantize_static"), ("tidy", "quantize_dynamic")),
    "mlp": (("tidy",), ("tidy", "quantize_static"), ("tidy", "quantize_dynamic"), ("tidy", "quantize_weights")),
}
SETTINGS = {"quantize_weights": {"bits": 4, "levels": "palette"}}
NOISE = 1e-2
LATE = {
    "transformer": (
        ("tidy", "fuse_transformer"),
        ("tidy", "migrate_outliers", "dynamic"),
        ("tidy", "round_weights", "fuse_transformer", "dynamic"),
    ),
    "cnn": (("tidy", "fold_batch_norm", "round_weights", "static"),),
    "mlp": (("tidy", "kernel"), ("tidy", "portable")),
}
"""What is built on the operators of one opset: fusions, repairs, packed kernels and the form for other runtimes."""
FORMS = {
    "kernel": ("quantize_weights", {"form": "kernel", "bits": 8, "accuracy_level": 4}),
    "portable": ("quantize_weights", {"form": "portable", "bits": 8}),
    "migrate_outliers": ("migrate_outliers", {"min_gain": 1.0}),
    "round_weights": ("round_weights", {"reduced_range": True}),
    "dynamic": ("quantize_dynamic", {"reduced_range": True}),
    "static": ("quantize_static", {"reduced_range": True, "bias_correction": "empirical"}),
}


def cnn(opset: int) -> ir.Model:
    net = Net(opset=opset)
    first = net.batch_norm(net.op("Conv", "image", net.weight(8, 3, 3, 3), pads=[1, 1, 1, 1]), 8)
    pooled = net.op("MaxPool", net.op("Relu", first), kernel_shape=[2, 2], strides=[2, 2])
    second = net.op("Conv", pooled, net.weight(8, 8, 3, 3), net.weight(8), pads=[1, 1, 1, 1])
    flat = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", second)))
    net.op("Gemm", flat, net.weight(5, 8), net.weight(5), output="logits", transB=1)
    return build(net, {"image": ["N", 3, 8, 8]}, {"logits": ["N", 5]})


def mlp(opset: int) -> ir.Model:
    net = Net(opset=opset)
    hidden = net.op("Relu", net.op("Add", net.op("MatMul", "rows", net.weight(32, 64)), net.weight(64)))
    scores = net.op("Add", net.op("MatMul", hidden, net.weight(64, 4)), net.weight(4))
    net.op("Softmax", scores, output="probabilities", axis=1)
    return build(net, {"rows": ["N", 32]}, {"probabilities": ["N", 4]})


def transformer(opset: int) -> ir.Model:
    """A block of attention as exporters of that year wrote it: axes of reductions and Unsqueeze as attributes or as inputs, no LayerNormalization."""
    net, width, heads = Net(opset=opset), 32, 4

    def dense(value: str, inputs: int = width, outputs: int = width) -> str:
        return str(net.op("Add", net.op("MatMul", value, net.weight(inputs, outputs)), net.weight(outputs)))

    def mean(value: str) -> str:
        if opset >= 18:
            return str(net.op("ReduceMean", value, net.ints(-1), keepdims=1))
        return str(net.op("ReduceMean", value, axes=[-1], keepdims=1))

    def norm(value: str) -> str:
        deviation = net.op("Sub", value, mean(value))
        variance = net.op("Add", mean(net.op("Mul", deviation, deviation)), net.const(np.float32(1e-5)))
        normal = net.op("Div", deviation, net.op("Sqrt", variance))
        return str(net.op("Add", net.op("Mul", normal, net.weight(width, shift=1.0)), net.weight(width)))

    def split(value: str, perm: list[int]) -> str:
        parts = net.op("Reshape", value, net.ints(0, 0, heads, width // heads))
        return str(net.op("Transpose", parts, perm=perm))

    query, key, value = (dense("rows") for _ in range(3))
    scores = net.op("MatMul", split(query, [0, 2, 1, 3]), split(key, [0, 2, 3, 1]))
    scores = net.op("Softmax", net.op("Mul", scores, net.const(np.float32(0.35))), axis=3)
    context = net.op("Transpose", net.op("MatMul", scores, split(value, [0, 2, 1, 3])), perm=[0, 2, 1, 3])
    hidden = norm(net.op("Add", dense(net.op("Reshape", context, net.ints(0, 0, width))), "rows"))
    inner = dense(net.op("Relu", dense(hidden, width, 2 * width)), 2 * width)
    net.op("Tanh", norm(net.op("Add", inner, hidden)), output="out")
    return build(net, {"rows": ["N", 5, width]}, {"out": ["N", 5, width]})


def build(net: Net, inputs: dict[str, Shape], outputs: dict[str, Shape]) -> ir.Model:
    """As an exporter of that year wrote it: its IR version, and weights that are inputs too before version 4."""
    typed = [{name: (onnx.TensorProto.FLOAT, shape) for name, shape in ends.items()} for ends in (inputs, outputs)]
    graph = net.graph("main", *typed)
    ir_version = IR_VERSIONS[max(known for known in IR_VERSIONS if known <= net.opset)]
    if ir_version < 4:
        graph.input.extend(
            helper.make_tensor_value_info(each.name, each.data_type, list(each.dims)) for each in net.weights
        )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", net.opset)], ir_version=ir_version)
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def apply(model: ir.Model, recipe: tuple[str, ...]) -> ir.Model:
    evidence, made = FakeEvidence(model), model
    for step in recipe:
        technique, settings = FORMS.get(step, (step, SETTINGS.get(step, {})))
        made = find_pass(technique).apply(made, settings, evidence)
        check.verify(made, like=model)
    return made


def noise(model: ir.Model, made: ir.Model) -> float:
    feeds = builders.feeds(model, seed=1, symbols=3)
    right, found = builders.run(model, feeds)[0], builders.run(made, feeds, optimized=True)[0]
    return float(np.square(found - right).sum() / np.square(right).sum())


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("kind", RECIPES)
def test_every_recipe_is_right_at_every_opset(kind: str, opset: int) -> None:
    model = {"cnn": cnn, "mlp": mlp}[kind](opset)
    for recipe in RECIPES[kind]:
        made = apply(model, recipe)
        assert opset_of(made) == max(opset, RAISED)
        assert noise(model, made) < NOISE, recipe


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("kind", LATE)
def test_fusions_repairs_and_packed_forms_are_right_at_every_opset(kind: str, opset: int) -> None:
    model = {"cnn": cnn, "mlp": mlp, "transformer": transformer}[kind](opset)
    for recipe in LATE[kind]:
        assert noise(model, apply(model, recipe)) < NOISE, recipe


@pytest.mark.parametrize("opset", OPSETS)
def test_the_portable_form_has_the_opset_that_it_needs_and_the_others_that_of_clean_up(opset: int) -> None:
    model = mlp(opset)
    assert opset_of(apply(model, ("tidy", "portable"))) >= max(opset, 21)
    assert opset_of(apply(model, ("tidy", "kernel"))) == max(opset, RAISED)


@pytest.mark.parametrize("opset", OPSETS)
def test_quantization_without_clean_up_is_right_or_refused_with_what_to_do(opset: int) -> None:
    model = mlp(opset)
    for technique, oldest in (("quantize_static", 13), ("quantize_dynamic", 11)):
        if opset < oldest:
            with pytest.raises(PassFailed, match=f"opset {opset} ") as failure:
                apply(model, (technique,))
            assert failure.value.hint
        else:
            assert noise(model, apply(model, (technique,))) < NOISE


@pytest.mark.parametrize("opset", [10, 11, 12])
def test_one_scale_for_a_whole_weight_needs_no_newer_opset(opset: int) -> None:
    model = mlp(opset)
    made = find_pass("quantize_static").apply(model, {"per_channel": False}, FakeEvidence(model))
    check.verify(made, like=model)
    assert noise(model, made) < NOISE
