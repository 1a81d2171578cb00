"""Sparse weights: what the file holds is what dense zeros compute, patterns lie along the inputs, what is not suited stays as it is."""

from __future__ import annotations

import collections
import dataclasses
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from special import matrices

from edgeopt.catalogue import find_pass
from edgeopt.errors import PassFailed
from edgeopt.graph import check, compact, quantizable, tensors
from edgeopt.passes import PruneWeights, QuantizeStatic, QuantizeWeights

UNPACKING = ("Cast", "Gather", "Reshape", "Slice", "Mul", "CumSum", "Concat", "Transpose")


def prune(model: ir.Model, *, samples: int = 4, **settings: Any) -> ir.Model:
    evidence = builders.FakeEvidence(model, samples=samples)
    made = PruneWeights().apply(model, {"small": 0.0, **settings}, evidence)
    check.verify(made, like=model)
    return made


def outputs(model: ir.Model, *, symbols: int = 3) -> list[np.ndarray]:
    return builders.run(model, builders.feeds(model, seed=9, symbols=symbols), optimized=True)


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    """Each layer's weight as (outputs, inputs, kernel places)."""
    found = {}
    for layer in quantizable.layers(model.graph):
        data = np.moveaxis(np.asarray(tensors.array(layer.weight)), layer.weight_axis, 0)
        found[str(layer.weight.name)] = data.reshape(*data.shape[:2], -1)
    return found


def operators(model: ir.Model, folder: Path) -> collections.Counter[str]:
    """What ONNX Runtime really runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(builders.to_bytes(model), options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def convolutions() -> ir.Model:
    net = builders.Net(seed=1)
    value = net.op("Relu", net.op("Conv", "image", net.weight(32, 16, 3, 3), net.weight(32), pads=[1, 1, 1, 1]))
    value = net.op("Relu", net.op("Conv", value, net.weight(48, 32, 1, 1)))
    value = net.op("Conv", value, net.weight(96, 16, 3, 3), group=3, pads=[1, 1, 1, 1])
    net.op("Conv", value, net.weight(20, 96, 1, 1), output="out")
    return net.build({"image": ["N", 16, "H", "W"]}, {"out": ["N", 20, "H2", "W2"]})


def embeddings() -> ir.Model:
    return builders.bert_block(width=64)


MODELS = (convolutions, matrices, embeddings)
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"pattern": "1:4", "bits": 3},
    {"pattern": "4:8", "bits": 8},
    {"ratio": 0.3, "scope": "global", "method": "magnitude", "bits": 2},
)


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_masked_weights_compute_to_the_bit_what_dense_zeros_do(build: Any, settings: dict[str, Any]) -> None:
    model = build()
    masked, dense = prune(model, **settings), prune(model, **settings, form="dense")
    for ours, theirs in zip(outputs(masked), outputs(dense), strict=True):
        assert np.array_equal(ours, theirs)
    assert tensors.parameter_bytes(masked) < 0.9 * tensors.parameter_bytes(model)
    assert tensors.parameter_bytes(dense) == tensors.parameter_bytes(model)


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("settings", [{}, {"pattern": "2:4", "bits": 5}], ids=str)
def test_runtime_folds_all_that_unpacks(build: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    model = build()
    before, after = operators(model, tmp_path), operators(prune(model, **settings), tmp_path)
    assert {kind: after[kind] for kind in UNPACKING} == {kind: before[kind] for kind in UNPACKING}


@pytest.mark.parametrize("build", [convolutions, matrices])
@pytest.mark.parametrize("method", ["sparsegpt", "magnitude"])
def test_two_of_four_neighbouring_input_channels_are_left(build: Any, method: str) -> None:
    made = weights(prune(build(), pattern="2:4", method=method, form="dense"))
    grouped = quantizable.layers(build().graph)
    plain = {str(layer.weight.name) for layer in grouped if "group" not in layer.node.attributes}
    assert plain
    for name in plain:
        data = made[name]
        groups = data.reshape(data.shape[0], -1, 4, data.shape[2])
        assert ((groups != 0).sum(axis=2) <= 2).all(), name


def test_weights_of_grouped_convolutions_and_tables_stay_as_they_are() -> None:
    model = convolutions()
    made = prune(model, form="dense")
    (grouped,) = (layer for layer in quantizable.layers(model.graph) if "group" in layer.node.attributes)
    name = str(grouped.weight.name)
    assert np.array_equal(weights(model)[name], weights(made)[name])
    bert = embeddings()
    table = next(node for node in bert.graph if node.op_type == "Gather").inputs[0]
    assert table is not None
    kept = prune(bert, form="dense").graph.initializers[str(table.name)]
    assert np.array_equal(tensors.array(kept), tensors.array(table))


def test_weights_that_somebody_else_reads_as_well_stay_dense() -> None:
    net = builders.Net(seed=3)
    shared, own = net.weight(64, 64), net.weight(64, 64)
    value = net.op("MatMul", net.op("MatMul", "rows", own), shared)
    net.op("Add", value, net.op("ReduceSum", shared, net.ints(0), keepdims=0), output="out")
    model = net.build({"rows": ["N", 64]}, {"out": ["N", 64]})
    made = prune(model, form="dense")
    assert np.array_equal(
        tensors.array(made.graph.initializers[shared]), tensors.array(model.graph.initializers[shared])
    )
    assert (tensors.array(made.graph.initializers[own]) == 0).mean() == 0.5


def test_reconstruction_makes_the_outputs_less_wrong_than_removal() -> None:
    random = np.random.default_rng(0)
    model = matrices()
    mix = random.normal(size=(6, 64))
    evidence = builders.FakeEvidence(model)
    rows = [(random.normal(size=(40, 6)) @ mix).astype(np.float32) for _ in range(6)]
    evidence._samples, evidence.sample_count = [{"rows": each} for each in rows[:5]], 5
    (right,) = builders.run(model, {"rows": rows[5]})
    errors = []
    for method in ("magnitude", "sparsegpt"):
        made = PruneWeights().apply(model, {"method": method, "small": 0.0}, evidence)
        errors.append(float(np.square(builders.run(made, {"rows": rows[5]})[0] - right).sum()))
    assert errors[1] < errors[0] / 4


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        ({}, 17),
        ({"pattern": "2:4"}, 16.67),
        ({"bits": 4}, 3),
        ({"pattern": "2:4", "bits": 4}, 2.67),
        ({"pattern": "1:4", "bits": 8}, 2.5),
        ({"ratio": 0.75, "bits": 6}, 2.5),
    ],
    ids=str,
)
def test_sparse_weights_take_the_bits_that_mask_and_values_need(settings: dict[str, Any], bits: float) -> None:
    net = builders.Net(seed=4)
    net.op("MatMul", "rows", net.weight(128, 256), output="out")
    model = net.build({"rows": ["N", 128]}, {"out": ["N", 256]})
    made = prune(model, **settings)
    tables = 256 * (16 + 8) + 256 * 2 + 256 * 4
    assert bits / 8 - 1e-3 <= tensors.parameter_bytes(made) / (128 * 256) <= bits / 8 + tables / (128 * 256)


def test_rest_of_the_model_is_packed_by_the_pass_behind() -> None:
    model = embeddings()
    sparse = prune(model, bits=6)
    evidence = builders.FakeEvidence(model)
    both = QuantizeWeights().apply(sparse, {"bits": 8, "small": 0.0}, evidence)
    check.verify(both, like=model)
    assert tensors.parameter_bytes(both) < tensors.parameter_bytes(sparse)
    noise = [np.square(a - b).sum() / np.square(b).sum() for a, b in zip(outputs(both), outputs(sparse), strict=True)]
    assert max(noise) < 1e-3


def test_zeros_in_place_stay_zeros_in_int8() -> None:
    model = matrices()
    sparse = prune(model, form="dense")
    quantized = QuantizeStatic().apply(sparse, {"per_channel": True}, builders.FakeEvidence(model))
    codes = [
        tensors.array(value)
        for name, value in quantized.graph.initializers.items()
        if name.endswith("_quantized") and value.dtype == ir.DataType.INT8
    ]
    assert codes
    assert all((array == 0).mean() >= 0.49 for array in codes)


def test_zeros_that_are_there_are_stored_as_a_mask() -> None:
    model = convolutions()
    dense = prune(model, pattern="2:4", form="dense")
    for settings in ({}, {"pattern": "2:4"}):
        made = prune(dense, method="found", **settings)
        assert all(np.array_equal(a, b) for a, b in zip(outputs(made), outputs(dense), strict=True))
        assert tensors.parameter_bytes(made) < tensors.parameter_bytes(dense)
    with pytest.raises(PassFailed, match="no layer became sparse"):
        prune(model, method="found")


def test_what_is_left_beside_zeros_that_are_there_is_rounded_with_care() -> None:
    model = matrices()
    dense = prune(model, form="dense", ratio=0.4, samples=64)
    (right,) = builders.run(dense, builders.feeds(model, seed=9))
    errors = []
    for samples in (0, 64):
        made = prune(dense, method="found", bits=3, samples=samples)
        errors.append(float(np.square(builders.run(made, builders.feeds(model, seed=9))[0] - right).sum()))
    assert errors[1] < errors[0]


def test_layer_that_would_be_too_noisy_stays_dense() -> None:
    model = matrices()
    random = np.random.default_rng(5)
    name, value = next(iter(model.graph.initializers.items()))
    sparse = np.where(random.random(value.shape.numpy()) < 0.6, 0, tensors.array(value)).astype(np.float32)
    value.const_value = ir.tensor(sparse, name=name)
    made = weights(prune(model, noise=1e-6, form="dense"))
    assert [each for each, data in made.items() if (data == 0).any()] == [name]


def test_smallest_layers_and_skipped_ones_stay_dense() -> None:
    model = matrices()
    first, second, third = weights(model)
    made = weights(prune(model, skip=f'["{second}"]', small=0.46, form="dense"))
    assert [(made[name] == 0).mean() for name in (first, second, third)] == [0.5, 0, 0]
    assert len(PruneWeights().layers(model)) == 3


def test_pattern_that_does_not_come_out_even_leaves_the_layer_dense() -> None:
    net = builders.Net(seed=6)
    value = net.op("Conv", "image", net.weight(64, 6, 3, 3), pads=[1, 1, 1, 1])
    net.op("Conv", value, net.weight(32, 64, 1, 1), output="out")
    model = net.build({"image": ["N", 6, "H", "W"]}, {"out": ["N", 32, "H2", "W2"]})
    stem, rest = weights(prune(model, pattern="2:4", form="dense")).values()
    assert (stem != 0).all()
    assert (rest == 0).mean() == 0.5


def test_wide_layers_have_no_moments_and_stay_dense_unless_magnitude_decides() -> None:
    net = builders.Net(seed=7)
    net.op("MatMul", "rows", net.weight(6200, 2), output="out")
    model = net.build({"rows": ["N", 6200]}, {"out": ["N", 2]})
    with pytest.raises(PassFailed, match="no layer became sparse") as refused:
        prune(model)
    assert refused.value.hint
    assert tensors.parameter_bytes(prune(model, method="magnitude")) < 0.6 * tensors.parameter_bytes(model)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"pattern": "4:2"}, "pattern"),
        ({"pattern": "2:4", "scope": "global"}, "global"),
        ({"method": "luck"}, "method"),
        ({"ratio": 1.0}, "ratio"),
        ({"bits": 7}, "7 bits"),
        ({"form": "csr"}, "form"),
        ({"noise": -1.0}, "noise"),
        ({"skip": "conv"}, "skip"),
        ({"share": 0.5}, "share"),
    ],
    ids=str,
)
def test_settings_without_a_meaning_are_refused_with_a_hint(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(PassFailed, match=says) as refused:
        prune(matrices(), **settings)
    assert refused.value.hint


def test_without_samples_only_magnitude_is_possible() -> None:
    with pytest.raises(PassFailed, match="no calibration samples"):
        prune(matrices(), samples=0)
    prune(matrices(), samples=0, method="magnitude", noise=0.5)


def test_tensorrt_and_old_opsets_get_zeros_in_place_only() -> None:
    evidence = builders.FakeEvidence(matrices(), target=dataclasses.replace(builders.TARGET, name="tensorrt"))
    with pytest.raises(PassFailed, match="TensorRT") as refused:
        PruneWeights().apply(matrices(), {"small": 0.0}, evidence)
    assert "form=dense" in refused.value.hint
    PruneWeights().apply(matrices(), {"small": 0.0, "form": "dense"}, evidence)
    old = builders.mlp(opset=10, width=128)
    with pytest.raises(PassFailed, match="opset 10") as refused:
        prune(old)
    assert refused.value.hint
    prune(old, form="dense")


@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch: pip install 'edgeopt[train]'")
def test_distillation_behind_keeps_the_zeros_and_they_are_stored_as_a_mask_in_the_end() -> None:
    model = matrices()
    evidence = builders.FakeEvidence(model, samples=16, teacher=model)
    wish = {"pattern": "2:4", "method": "magnitude", "form": "dense", "small": 0.0}
    dense = PruneWeights().apply(model, wish, evidence)
    taught = find_pass("distill").apply(dense, {"steps": 60, "batch": 4, "learning_rate": 3e-3}, evidence)
    made = PruneWeights().apply(taught, {"pattern": "2:4", "method": "found"}, evidence)
    check.verify(made, like=model)
    assert compact.zeros(taught.graph) == compact.zeros(dense.graph) == 0.5
    assert tensors.parameter_bytes(made) < 0.6 * tensors.parameter_bytes(model)
    (right,), (plain,), (better,) = (outputs(each) for each in (model, dense, made))
    assert np.square(better - right).sum() < np.square(plain - right).sum()
