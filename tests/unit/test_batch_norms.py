"""Batch-norm re-estimation: behind readers that could not be refitted, and nowhere else."""

from __future__ import annotations

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence, Net
from fused import noise_ratio

from edgeopt.calibrate import reconstruct
from edgeopt.calibrate.batch_norms import re_estimate
from edgeopt.graph import edit, tensors
from edgeopt.passes import PruneChannels


def statistics(model: ir.Model) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (np.asarray(tensors.array(node.inputs[3])), np.asarray(tensors.array(node.inputs[4])))
        for node in model.graph
        if node.op_type == "BatchNormalization"
    ]


def weight_names(model: ir.Model) -> list[str]:
    return [str(node.inputs[1].name) for node in model.graph if node.op_type == "Conv" and node.inputs[1] is not None]


def chain(seed: int) -> ir.Model:
    """Convolutions in a row, each with its batch norm."""
    net = Net(seed=seed)
    value, channels = "image", 3
    for _ in range(3):
        made = net.op("Conv", value, net.weight(16, channels, 3, 3), pads=[1, 1, 1, 1])
        value, channels = net.op("Relu", net.batch_norm(made, 16)), 16
    net.op("Conv", value, net.weight(4, 16, 1, 1), net.weight(4), output="out")
    return net.build({"image": ["N", 3, 12, 12]}, {"out": ["N", 4, 12, 12]})


def test_readers_that_are_not_refitted_are_normalised_for_what_they_give_now(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [chain(seed) for seed in range(3)]
    monkeypatch.setattr(reconstruct, "WIDEST", 0)

    def noise() -> list[float]:
        settings = {"criterion": "l1", "ratio": 0.25}
        evidence = [FakeEvidence(model, samples=16) for model in models]
        pairs = zip(models, evidence, strict=True)
        return [noise_ratio(m, PruneChannels().apply(m, settings, e)) for m, e in pairs]

    estimated = noise()
    monkeypatch.setattr(reconstruct, "re_estimate", lambda *_: [])
    assert sum(estimated) < 0.95 * sum(noise())


def test_statistics_move_by_as_much_as_the_samples_moved() -> None:
    model = builders.conv_net()
    scaled = edit.copy(model)
    second = [node for node in scaled.graph if node.op_type == "Conv"][1]
    for position, factor in ((1, 3.0), (2, 3.0)):
        value = second.inputs[position]
        edit.set_constant(value, np.asarray(tensors.array(value)) * np.float32(factor))
    changed = re_estimate(model, scaled, [str(second.inputs[1].name)], FakeEvidence(model, samples=8))
    assert len(changed) == 1
    (_, first_variance), (_, variance) = statistics(scaled)
    (_, first_before), (_, before) = statistics(model)
    np.testing.assert_allclose(variance, 9.0 * (before + 1e-3) - 1e-3, rtol=1e-3)
    np.testing.assert_array_equal(first_variance, first_before)


def test_model_that_did_not_change_keeps_its_statistics() -> None:
    model = builders.conv_net()
    same = edit.copy(model)
    assert len(re_estimate(model, same, weight_names(model), FakeEvidence(model))) == 2
    for (mean, variance), (mean_before, variance_before) in zip(statistics(same), statistics(model), strict=True):
        np.testing.assert_allclose(mean, mean_before, atol=1e-6)
        np.testing.assert_allclose(variance, variance_before, rtol=1e-6)


def test_layers_without_batch_norm_cost_no_run() -> None:
    model = builders.relu_chain()
    assert re_estimate(model, edit.copy(model), weight_names(model), FakeEvidence(model, samples=0)) == []
