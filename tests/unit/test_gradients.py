"""Criterion taylor: gradients that are those of the graph, and scores that are what pruning a unit a little does."""

from __future__ import annotations

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence, Net

torch = pytest.importorskip("torch", reason="needs torch: pip install 'edgeopt[train]'")

from edgeopt import catalogue  # noqa: E402 - torch may be missing
from edgeopt.calibrate.importance import Ranking, scores  # noqa: E402
from edgeopt.calibrate.shapes import observed_shapes  # noqa: E402
from edgeopt.errors import PassFailed  # noqa: E402
from edgeopt.graph import edit, groups, tensors  # noqa: E402
from edgeopt.graph.groups import Family  # noqa: E402
from edgeopt.passes import PruneChannels  # noqa: E402
from edgeopt.training.gradients import per_sample  # noqa: E402

TAYLOR = Ranking(criterion="taylor", depths={})


def evidence(model: ir.Model, *, samples: int = 12, seed: int = 0) -> FakeEvidence:
    made = FakeEvidence(model, samples=samples)
    made.gradients, made.seed = catalogue.find_gradients(), seed
    return made


def families(model: ir.Model) -> tuple[Family, ...]:
    return groups.find(model, observed_shapes(model, FakeEvidence(model))).families


def network(ends: int, *, softmax: bool = False) -> ir.Model:
    """Two convolutions with channels between them, pooled into ``ends`` numbers a sample."""
    net = Net(seed=5)
    first = net.op("Relu", net.op("Conv", "image", net.weight(6, 3, 3, 3), net.weight(6), pads=[1, 1, 1, 1]))
    second = net.op("Relu", net.op("Conv", first, net.weight(8, 6, 3, 3), net.weight(8), pads=[1, 1, 1, 1]))
    flat = net.op("Flatten", net.op("GlobalAveragePool", second))
    out = net.op("Gemm", flat, net.weight(8, ends), net.weight(ends), output=None if softmax else "out")
    if softmax:
        net.op("Softmax", out, output="out", axis=-1)
    return net.build({"image": [1, 3, 8, 8]}, {"out": [1, ends]})


def with_unit_scaled(model: ir.Model, family: Family, unit: int, scale: float) -> ir.Model:
    """What reads the unit reads it ``scale`` times as large."""
    made = edit.copy(model)
    for slot in family.slots:
        if slot.role == "consumer":
            value = made.graph.initializers[slot.constant]
            weight = np.moveaxis(np.array(tensors.array(value)), slot.axis, 0)
            weight[list(slot.indices[unit])] *= scale
            edit.set_constant(value, np.ascontiguousarray(np.moveaxis(weight, 0, slot.axis)))
    return made


def outputs(model: ir.Model, given: FakeEvidence) -> np.ndarray:
    return np.concatenate([seen["out"] for seen in given.observe(model, ["out"])]).astype(np.float64)


def test_score_is_the_squared_slope_of_the_output_by_finite_differences() -> None:
    model = network(1)
    given = evidence(model)
    variance = outputs(model, evidence(model, samples=8)).var()
    found = scores(model, families(model), TAYLOR, given)
    assert len(found) == 2
    for family in families(model):
        for unit in range(family.units):
            high, low = (outputs(with_unit_scaled(model, family, unit, scale), given) for scale in (1.01, 0.99))
            expected = np.square((high - low) / 0.02).mean() / variance
            assert found[family.name][unit] == pytest.approx(expected, rel=0.01, abs=1e-6)


@pytest.mark.parametrize("softmax", [False, True])
def test_class_scores_are_ranked_by_the_curvature_of_their_divergence(softmax: bool) -> None:
    model = network(5, softmax=softmax)
    runs = [scores(model, families(model), TAYLOR, evidence(model, samples=8, seed=seed)) for seed in range(40)]
    given = evidence(model, samples=8)
    right = shares(outputs(model, given), softmax=softmax)
    for family in families(model):
        found = np.mean([run[family.name] for run in runs], axis=0)
        expected = []
        for unit in range(family.units):
            got = shares(outputs(with_unit_scaled(model, family, unit, 0.95), given), softmax=softmax)
            expected.append((right * np.log(right / got)).sum(axis=-1).mean() * 2 / 0.05**2)
        np.testing.assert_allclose(found, expected, rtol=0.4, atol=0.02 * max(expected))
        assert np.corrcoef(found, expected)[0, 1] > 0.95


def shares(values: np.ndarray, *, softmax: bool) -> np.ndarray:
    powers = values if softmax else np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def test_same_data_and_seed_give_the_same_gradients_and_another_seed_others() -> None:
    model = network(4)
    names = list(model.graph.initializers)

    def gradients(seed: int) -> list[np.ndarray]:
        return [slope for each in per_sample(model, names, evidence(model, seed=seed)) for slope in each.values()]

    first, again, other = gradients(0), gradients(0), gradients(1)
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(np.array_equal(one, two) for one, two in zip(first, other, strict=True))


def test_heads_and_neurons_of_a_transformer_are_judged() -> None:
    model = builders.bert_block()
    found = scores(model, families(model), TAYLOR, evidence(model))
    assert set(found) == {family.name for family in families(model)}
    for family in families(model):
        assert found[family.name].shape == (family.units,)
        assert np.isfinite(found[family.name]).all() and (found[family.name] > 0).any()


def test_pass_prunes_by_taylor_and_takes_the_unit_that_nothing_depends_on() -> None:
    model = network(4)
    (first, *_) = families(model)
    dead = with_unit_scaled(model, first, 3, 0.0)
    assert scores(dead, families(dead), TAYLOR, evidence(dead))[first.name].argmin() == 3
    made = PruneChannels().apply(dead, {"criterion": "taylor", "ratio": 0.2, "refit": False}, evidence(dead))
    weight = tensors.array(made.graph.initializers[first.name])
    assert weight.shape[0] == 5
    np.testing.assert_array_equal(weight, np.delete(tensors.array(model.graph.initializers[first.name]), 3, axis=0))


def test_without_what_differentiates_the_reason_names_the_extra() -> None:
    model = network(4)
    with pytest.raises(PassFailed, match="torch is not installed") as failure:
        PruneChannels().apply(model, {"criterion": "taylor"}, FakeEvidence(model))
    assert "edgeopt[train]" in failure.value.hint


def test_outputs_without_a_slope_are_a_reason_to_fail() -> None:
    net = Net(seed=1)
    hidden = net.op("Relu", net.op("Gemm", "rows", net.weight(4, 6)))
    net.op("Sign", net.op("Gemm", hidden, net.weight(6, 3)), output="out")
    model = net.build({"rows": ["N", 4]}, {"out": ["N", 3]})
    flat = scores(model, families(model), TAYLOR, evidence(model)) if families(model) else {}
    assert all((each == 0).all() for each in flat.values())
