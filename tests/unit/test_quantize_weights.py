"""Packed weights: every kind of reader, what the runtime makes of them, what is left alone."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from special import matrices

from edgeopt.calibrate import packing
from edgeopt.errors import PassFailed
from edgeopt.graph import check, compact, tensors
from edgeopt.passes import QuantizeWeights

UNPACKING = ("Cast", "Gather", "Reshape", "Slice", "Mul", "Add", "Sub", "DequantizeLinear")


def pack(model: ir.Model, *, samples: int = 4, **settings: Any) -> ir.Model:
    evidence = builders.FakeEvidence(model, samples=samples)
    made = QuantizeWeights().apply(model, settings, evidence)
    check.verify(made, like=model)
    return made


def noise(model: ir.Model, made: ir.Model, *, symbols: int = 3) -> float:
    feeds = builders.feeds(model, seed=9, symbols=symbols)
    pairs = zip(builders.run(model, feeds), builders.run(made, feeds, optimized=True), strict=True)
    return max(float(np.square(a - b).sum() / np.square(a).sum()) for a, b in pairs)


def optimized(model: ir.Model, folder: Path) -> onnx.ModelProto:
    """The graph that ONNX Runtime really runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(builders.to_bytes(model), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def operators(proto: onnx.ModelProto) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in proto.graph.node)


def convolutions() -> ir.Model:
    net = builders.Net(seed=1)
    value = net.op("Relu", net.op("Conv", "image", net.weight(32, 16, 3, 3), net.weight(32), pads=[1, 1, 1, 1]))
    value = net.op("Conv", value, net.weight(48, 32, 1, 1))
    value = net.op("ConvTranspose", value, net.weight(48, 16, 2, 2), strides=[2, 2])
    net.op("Conv", value, net.weight(128, 1, 3, 3), group=16, output="out")
    return net.build({"image": ["N", 16, "H", "W"]}, {"out": ["N", 128, "H2", "W2"]})


def recurrent() -> ir.Model:
    return builders.lstm(hidden=24)


def embeddings() -> ir.Model:
    return builders.bert_block(width=64)


MODELS = (convolutions, matrices, recurrent, embeddings)
FORMS = (
    ({"bits": 8}, 1e-3),
    ({"bits": 6, "levels": "palette"}, 5e-3),
    ({"bits": 5, "block": 16}, 3e-2),
    ({"bits": 6, "levels": "affine", "block": 32}, 1e-2),
    ({"bits": 4, "levels": "palette", "table_bits": 6}, 5e-2),
)


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize(("settings", "most"), FORMS, ids=str)
def test_every_kind_of_reader_gets_its_weights_back(build: Any, settings: dict[str, Any], most: float) -> None:
    model = build()
    made = pack(model, small=0.0, **settings)
    assert noise(model, made) <= most
    assert not compact.weights(made.graph), "a float weight is still there"


@pytest.mark.parametrize("build", [convolutions, matrices, recurrent])
@pytest.mark.parametrize("settings", [{"bits": 8}, {"bits": 6, "levels": "palette"}, {"bits": 5, "levels": "affine"}])
def test_runtime_folds_all_that_unpacks(build: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    model = build()
    before = operators(optimized(model, tmp_path))
    after = operators(optimized(pack(model, small=0.0, **settings), tmp_path))
    assert {kind: after[kind] for kind in UNPACKING} == {kind: before[kind] for kind in UNPACKING}


def test_lookup_table_in_eight_bits_stays_packed_in_memory(tmp_path: Path) -> None:
    proto = optimized(pack(embeddings()), tmp_path)
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    lookups = [node for node in proto.graph.node if node.op_type == "Gather" and node.input[0] in types]
    assert onnx.TensorProto.INT8 in {types[node.input[0]] for node in lookups}


def test_table_that_is_also_multiplied_with_is_stored_once() -> None:
    net = builders.Net(seed=3)
    table = net.weight(64, 32)
    found = net.op("Gather", table, "tokens", axis=0)
    net.op("MatMul", found, net.op("Transpose", table, perm=[1, 0]), output="scores")
    model = net.build({"tokens": ["N"]}, {"scores": ["N", 64]}, tokens=onnx.TensorProto.INT64)
    for settings in ({"bits": 8}, {"bits": 6, "levels": "palette"}):
        made = pack(model, small=0.0, **settings)
        assert noise(model, made) < 1e-2
        assert tensors.parameter_bytes(made) < 64 * 32 * 2


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        ({"bits": 8}, 8),
        ({"bits": 6, "levels": "palette"}, 6),
        ({"bits": 5}, 5),
        ({"bits": 3}, 3),
        ({"bits": 2, "levels": "ternary"}, 1.6),
    ],
)
def test_weights_take_the_bytes_that_their_bits_say(settings: dict[str, Any], bits: float) -> None:
    net = builders.Net(seed=4)
    net.op("MatMul", "rows", net.weight(256, 512), output="out")
    model = net.build({"rows": ["N", 256]}, {"out": ["N", 512]})
    made = pack(model, small=0.0, **settings)
    overhead = 512 * 4 + 256 * 8 + 64 * 4
    assert bits / 8 <= tensors.parameter_bytes(made) / (256 * 512) <= bits / 8 + overhead / (256 * 512)


def test_compensation_makes_the_outputs_less_wrong() -> None:
    random = np.random.default_rng(0)
    model = matrices()
    mix = random.normal(size=(6, 64))
    evidence = builders.FakeEvidence(model)
    rows = [(random.normal(size=(40, 6)) @ mix).astype(np.float32) for _ in range(6)]
    evidence._samples, evidence.sample_count = [{"rows": each} for each in rows[:5]], 5
    (right,) = builders.run(model, {"rows": rows[5]})
    errors = []
    for compensation in ("none", "gptq"):
        settings = {"bits": 4, "small": 0.0, "compensation": compensation}
        (got,) = builders.run(QuantizeWeights().apply(model, settings, evidence), {"rows": rows[5]})
        errors.append(float(np.square(got - right).sum()))
    assert errors[1] < errors[0] / 2


def test_smallest_weights_stay_in_eight_bits() -> None:
    made = pack(matrices(), bits=4, small=0.3)
    codes = {name.rsplit("_", 1)[-1] for name in made.graph.initializers}
    assert {"codes", "packed"} <= codes
    int8 = [v for v in made.graph.initializers.values() if v.const_value and v.const_value.dtype == ir.DataType.INT8]
    assert [tuple(value.shape.numpy()) for value in int8] == [(64, 80)]


def test_noisy_weight_gets_more_bits_until_it_is_quiet_enough() -> None:
    model = matrices()
    sizes = [
        tensors.parameter_bytes(pack(model, bits=2, levels="palette", small=0.0, noise=most))
        for most in (0.0, 0.05, 3e-3, 1e-6)
    ]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(sizes)
    assert noise(model, pack(model, bits=2, levels="palette", small=0.0, noise=3e-3)) < 2e-2


def test_bits_go_where_the_outputs_need_them() -> None:
    net = builders.Net(seed=6)
    loud = net.op("MatMul", "rows", net.weight(64, 64, scale=1.0))
    quiet = net.op("MatMul", net.op("Tanh", "rows"), net.weight(64, 64, scale=0.01))
    net.op("Add", loud, quiet, output="out")
    model = net.build({"rows": ["N", 64]}, {"out": ["N", 64]})
    even = pack(model, bits=4, levels="palette", small=0.0)
    uneven = pack(model, bits=2, mean_bits=4.0, levels="palette", small=0.0)
    assert tensors.parameter_bytes(uneven) <= tensors.parameter_bytes(even) + 2500
    assert noise(model, uneven) < noise(model, even) / 2


def test_skipped_weights_stay_float_whether_named_by_node_or_weight() -> None:
    model = matrices()
    first, second, third = compact.weights(model.graph)
    names = QuantizeWeights().layers(model)
    made = pack(model, skip=f'["{first.name}", "{names[1]}"]')
    assert [weight.name for weight in compact.weights(made.graph)] == [first.name, second.name]
    assert third.name not in made.graph.initializers


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("bits", [4, 8])
def test_matrices_keep_their_packed_weights_with_the_kernel(bits: int, level: int, tmp_path: Path) -> None:
    model = matrices()
    made = pack(model, bits=bits, form="kernel", accuracy_level=level)
    proto = optimized(made, tmp_path)
    kernels = [node for node in proto.graph.node if node.op_type == "MatMulNBits"]
    assert len(kernels) == 3
    assert {attribute.i for node in kernels for attribute in node.attribute if attribute.name == "bits"} == {bits}
    assert noise(model, made) < (5e-2 if bits == 4 else 1e-3)


@pytest.mark.parametrize("bits", [2, 4])
def test_kernel_takes_the_zeros_that_half_quadratic_splitting_finds(bits: int, tmp_path: Path) -> None:
    model = matrices()
    made = pack(model, samples=0, bits=bits, form="kernel", compensation="hqq", small=0.0)
    unpacked = pack(model, samples=0, bits=bits, compensation="hqq", block=32, small=0.0)
    kernels = [node for node in optimized(made, tmp_path).graph.node if node.op_type == "MatMulNBits"]
    assert len(kernels) == 3
    assert all(node.input[3] for node in kernels)
    assert noise(model, made) == pytest.approx(noise(model, unpacked), rel=0.02)


def test_kernel_leaves_what_it_cannot_take_to_unpacking(tmp_path: Path) -> None:
    model = embeddings()
    made = pack(model, bits=4, form="kernel", block=128)
    found = operators(optimized(made, tmp_path))
    # Only the second dense layer has 128 inputs; the others have 64, which is no whole block.
    assert found["MatMulNBits"] == 1
    assert noise(model, made) < 0.1


@pytest.mark.parametrize("build", [convolutions, matrices, embeddings])
@pytest.mark.parametrize(("bits", "block"), [(8, 0), (4, 0), (4, 16)])
def test_portable_form_needs_nothing_but_the_standard(build: Any, bits: int, block: int) -> None:
    model = build()
    made = pack(model, form="portable", bits=bits, block=block, small=0.0)
    assert noise(model, made) < (0.1 if bits == 4 else 1e-3)
    assert made.opset_imports[""] >= 21
    assert set(made.opset_imports) <= {""}
    pairs = [node for node in made.graph if node.op_type == "DequantizeLinear"]
    assert len(pairs) >= 3
    types = {node.inputs[0].const_value.dtype for node in pairs if node.inputs[0] and node.inputs[0].const_value}
    assert types <= {ir.DataType.INT4 if bits == 4 else ir.DataType.INT8, ir.DataType.INT8}


def test_weights_that_a_caller_may_override_are_left_alone() -> None:
    with pytest.raises(PassFailed, match="no float32 weight"):
        pack(builders.weights_as_inputs(matrices()))


def test_weights_in_constant_nodes_are_packed_too() -> None:
    net = builders.Net(seed=5, constants=True)
    net.op("MatMul", "rows", net.weight(64, 64), output="out")
    model = net.build({"rows": ["N", 64]}, {"out": ["N", 64]})
    made = pack(model, bits=6, small=0.0)
    assert tensors.parameter_bytes(made) < 64 * 64 * 2
    assert noise(model, made) < 1e-2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 7}, "7 bits"),
        ({"bits": 4, "table_bits": 1}, "tables in 1"),
        ({"levels": "log"}, "levels is 'log'"),
        ({"compensation": "obq"}, "compensation is 'obq'"),
        ({"small": 1.5}, "out of its range"),
        ({"bits": 6, "form": "kernel"}, "6-bit integer"),
        ({"bits": 4, "form": "kernel", "levels": "palette"}, "4-bit palette"),
        ({"bits": 8, "form": "kernel", "compensation": "hqq"}, "8-bit integer"),
        ({"bits": 4, "levels": "palette", "compensation": "hqq"}, "half-quadratic"),
        ({"bits": 4, "form": "kernel", "block": 48}, "blocks of 48"),
        ({"bits": 4, "form": "kernel", "accuracy_level": 2}, "accuracy level 2"),
        ({"bits": 6, "form": "portable"}, "6-bit integer"),
        ({"bits": 4, "mean_bits": 3.0}, "mean_bits 3 is below 4"),
        ({"form": "zip"}, "form is 'zip'"),
        ({"depth": 3}, "no setting 'depth'"),
    ],
)
def test_settings_without_a_representation_are_refused_with_a_hint(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PassFailed, match=message) as failure:
        pack(matrices(), **settings)
    assert failure.value.hint


def test_compensation_without_samples_is_refused() -> None:
    model = matrices()
    with pytest.raises(PassFailed, match="no calibration samples"):
        QuantizeWeights().apply(model, {"compensation": "gptq"}, builders.FakeEvidence(model, samples=0))


def test_three_levels_cost_a_fifth_of_a_byte() -> None:
    assert packing.packed_bytes(3, 1000) == 200
