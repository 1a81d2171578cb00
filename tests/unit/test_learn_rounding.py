"""Rounding learned by descent: codes that the quantizer behind finds, outputs that are nearer, and layers that make good what others lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import corpus
import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence
from special import correlated

pytest.importorskip("torch", reason="needs torch: pip install 'edgeopt[train]'")

from edgeopt.calibrate import qparams
from edgeopt.calibrate.rounding import Grid
from edgeopt.errors import PassFailed
from edgeopt.graph import edit, quantizable, tensors
from edgeopt.passes import RoundWeights
from edgeopt.training import rounding
from edgeopt.training.learn_rounding import LearnRounding
from edgeopt.training.loop import steady
from edgeopt.training.rounding import Descent, Reading

NARROW: dict[str, Any] = {"reduced_range": True}
ENDLESS = (-np.inf, np.inf)


@pytest.fixture(scope="module")
def learned() -> ir.Model:
    model = correlated()
    return LearnRounding().apply(model, {**NARROW, "steps": 300}, FakeEvidence(model, samples=32))


def to_nearest(model: ir.Model) -> ir.Model:
    made = edit.copy(model)
    for layer in quantizable.layers(made.graph):
        weight = np.asarray(tensors.array(layer.weight))
        found = qparams.weight_qparams(weight, axis=layer.weight_axis, **NARROW)
        edit.set_constant(layer.weight, qparams.dequantize(qparams.quantize(weight, found), found))
    return made


def error(model: ir.Model, made: ir.Model) -> float:
    """Over the output's power, on inputs that nothing was learned from."""
    pairs = [
        (builders.run(made, given)[0], builders.run(model, given)[0])
        for given in (builders.feeds(model, seed=seed) for seed in range(100, 140))
    ]
    return float(sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(b).sum() for _, b in pairs))


def test_quantizer_behind_finds_the_learned_codes_which_are_neighbours_of_the_weights(learned: ir.Model) -> None:
    for old, new in zip(quantizable.layers(correlated().graph), quantizable.layers(learned.graph), strict=True):
        before, after = (np.asarray(tensors.array(layer.weight)) for layer in (old, new))
        found = qparams.weight_qparams(after, axis=new.weight_axis, **NARROW)
        np.testing.assert_allclose(qparams.dequantize(qparams.quantize(after, found), found), after, rtol=1e-6)
        np.testing.assert_allclose(qparams.weight_qparams(before, axis=old.weight_axis, **NARROW).scale, found.scale)
        assert np.all(np.abs(after - before) <= found.scale * 1.001)


def test_outputs_are_nearer_than_by_nearest_rounding_and_by_coordinate_descent(learned: ir.Model) -> None:
    model = correlated()
    others = RoundWeights().apply(model, NARROW, FakeEvidence(model, samples=32))
    assert error(model, learned) < 0.4 * error(model, to_nearest(model))
    assert error(model, learned) < error(model, others)


def test_layers_that_are_skipped_keep_their_weights() -> None:
    model = correlated()
    *others, last = (layer.name for layer in quantizable.layers(model.graph))
    made = LearnRounding().apply(model, {"steps": 5, "skip": f'["{last}"]'}, FakeEvidence(model, samples=8))
    pairs = zip(quantizable.layers(model.graph), quantizable.layers(made.graph), strict=True)
    kept = [np.array_equal(tensors.array(old.weight), tensors.array(new.weight)) for old, new in pairs]
    assert kept == [False] * len(others) + [True]


def test_what_the_activation_cuts_off_need_not_be_right() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(16, 12)).astype(np.float32)
    inputs = (random.normal(size=(400, 3)) @ random.normal(size=(3, 12))).astype(np.float32)
    bias = np.where(np.arange(16) < 8, 0.0, -1e3).astype(np.float32)
    reading = Reading(inputs=inputs, targets=inputs @ rows.T + bias, bias=bias, bounds=(0.0, np.inf))
    scale = np.abs(rows).max(axis=1) / 7
    grid = Grid(scale=scale, largest=7)
    usual = rounding.nearest(rows, grid)
    silent = usual.copy()
    silent[8:] = 0.0
    assert reading.error(silent) == reading.error(usual) > 0
    with steady(1):
        made = rounding.learned(rows, grid, reading, Descent(steps=200, rows=200, rate=0.03, seed=0))
    assert reading.error(made) < 0.8 * reading.error(usual)
    codes = made / scale[:, None]
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)


def test_same_seed_gives_the_same_codes() -> None:
    model = builders.conv_net()
    one, two = (LearnRounding().apply(model, {"steps": 20}, FakeEvidence(model, samples=8)) for _ in range(2))
    assert builders.to_bytes(one) == builders.to_bytes(two)


def test_layers_that_the_time_does_not_last_for_keep_their_weights() -> None:
    model = correlated()
    evidence = FakeEvidence(model, samples=8)
    evidence.deadline_s = 0.0
    made = LearnRounding().apply(model, {"steps": 20}, evidence)
    for old, new in zip(quantizable.layers(model.graph), quantizable.layers(made.graph), strict=True):
        np.testing.assert_array_equal(tensors.array(old.weight), tensors.array(new.weight))


@pytest.mark.parametrize("settings", [{"steps": 0}, {"learning_rate": 0.0}, {"samples": 0}, {"rows": -1}])
def test_settings_that_make_no_sense_are_named(settings: dict[str, Any]) -> None:
    model = correlated()
    with pytest.raises(PassFailed, match="out of its range"):
        LearnRounding().apply(model, settings, FakeEvidence(model))


@pytest.mark.corpus
@pytest.mark.slow
def test_real_classifier_in_seven_bits_is_nearer_than_by_nearest_rounding() -> None:
    model, evidence = corpus.cleaned("digits_mlp")
    rows = _rows(corpus.folder_of("digits_mlp") / "calib.npz", model)
    evidence._samples, evidence.sample_count = rows[:64], min(64, len(rows))
    made = LearnRounding().apply(model, {**NARROW, "steps": 200}, evidence)
    judged = _rows(corpus.folder_of("digits_mlp") / "eval.npz", model)[:64]

    def missed(candidate: ir.Model) -> float:
        pairs = [(builders.run(candidate, each)[-1], builders.run(model, each)[-1]) for each in judged]
        return float(np.mean([np.square(a - b).mean() for a, b in pairs]))

    assert missed(made) < 0.7 * missed(to_nearest(model))


def _rows(file: Path, model: ir.Model) -> list[builders.Arrays]:
    arrays = np.load(file)
    names = [str(value.name) for value in edit.required_inputs(model)]
    return [{name: arrays[name][index : index + 1] for name in names} for index in range(len(arrays[names[0]]))]
