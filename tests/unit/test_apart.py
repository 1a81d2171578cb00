from __future__ import annotations

import builders
import numpy as np
import pytest
from builders import FakeEvidence

from edgeopt.calibrate import noises
from edgeopt.graph import apart
from edgeopt.passes import QuantizeDynamic, QuantizeStatic
from edgeopt.records import Step
from edgeopt.stages import sensitivity

MODELS = {"convolutions": builders.conv_net, "matrices": builders.mlp}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_layers_side_by_side_yield_what_they_yield_in_the_model(build) -> None:
    model = build()
    found = apart.pieces(model, set(QuantizeStatic().layers(model)))
    assert [piece.layer for piece in found] == list(QuantizeStatic().layers(model))
    alone = apart.side_by_side(model, found)
    evidence = FakeEvidence(model)
    inputs = {name for piece in found for name in piece.inputs} - {str(value.name) for value in model.graph.inputs}
    ends = [name for piece in found for name in piece.outputs]
    for feeds, seen in zip(evidence.samples(), evidence.observe(model, sorted({*inputs, *ends})), strict=True):
        given = {apart.given(name): {**feeds, **seen}[name] for piece in found for name in piece.inputs}
        for name, value in next(iter(evidence.run(alone, [given], [apart.apart(end) for end in ends]))).items():
            np.testing.assert_allclose(value, seen[name.removesuffix("@apart")], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_noise_of_a_layer_reaches_the_output_and_silence_changes_nothing(build) -> None:
    model = build()
    evidence = FakeEvidence(model, samples=1)
    ends = [name for piece in apart.pieces(model, set(QuantizeStatic().layers(model))) for name in piece.outputs]
    noisy = apart.with_noise(model, ends)
    names = [str(value.name) for value in model.graph.outputs]
    assert [str(value.name) for value in noisy.graph.outputs] == names
    feeds = next(iter(evidence.samples()))
    silent = {**feeds, **{apart.noise(end): np.zeros((), np.float32) for end in ends}}
    last = next(iter(evidence.observe(model, ends[-1:])))[ends[-1]]
    added = np.random.default_rng(0).normal(size=last.shape).astype(np.float32)
    loud = {**silent, apart.noise(ends[-1]): added}
    right = next(iter(evidence.observe(model, names)))
    same, other = evidence.run(noisy, [silent, loud], names)
    for name in names:
        np.testing.assert_allclose(same[name], right[name], rtol=1e-6)
    assert any(not np.allclose(other[name], right[name]) for name in names)


@pytest.mark.parametrize(
    ("build", "step"),
    [
        (builders.mlp, Step.of("quantize_static", method="min_max")),
        (builders.mlp, Step.of("quantize_dynamic", per_channel=True)),
        (builders.conv_net, Step.of("quantize_static", method="min_max")),
    ],
    ids=["matrices, static", "matrices, dynamic", "convolutions, static"],
)
def test_damage_measured_in_one_go_is_that_of_a_model_with_this_layer_alone_in_integers(build, step) -> None:
    model = build()
    evidence = FakeEvidence(model, samples=1)
    quantizer = QuantizeStatic() if step.technique == "quantize_static" else QuantizeDynamic()
    layers = quantizer.layers(model)
    for group in sensitivity.groups(model, step, quantizer, evidence, {}):
        rest = [name for name in layers if name not in group.layers]
        changed = quantizer.apply(model, dict(sensitivity.skipping(step, rest).settings), evidence)
        alone = noises.between(model, changed, evidence).at_outputs
        assert group.damage == pytest.approx(alone, rel=0.35)
        assert 0 < group.noise < 1


def test_scan_ends_after_the_first_sample_when_its_time_is_up() -> None:
    model = builders.mlp()
    evidence = FakeEvidence(model, samples=4)
    evidence.deadline_s = 0.0
    runs: list[str] = []
    run = evidence.run

    def counted(observed, inputs, names):
        for outputs in run(observed, inputs, names):
            runs.append(names[0])
            yield outputs

    evidence.run = counted
    quantizer = QuantizeStatic()
    found = sensitivity.groups(model, Step.of("quantize_static"), quantizer, evidence, {})
    assert all(group.damage > 0 for group in found)
    output = str(model.graph.outputs[0].name)
    assert runs.count(output) == 1 + len(found)


def test_layers_in_the_body_of_an_if_are_still_measured_one_by_one() -> None:
    model = builders.branches()
    quantizer = QuantizeDynamic()
    layers = quantizer.layers(model)
    inside = set(layers) - {piece.layer for piece in apart.pieces(model, set(layers))}
    assert inside
    found = sensitivity.groups(model, Step.of("quantize_dynamic"), quantizer, FakeEvidence(model), {})
    assert {name for group in found for name in group.layers} == set(layers)
    assert any(group.damage > 0 and set(group.layers) <= inside for group in found)
