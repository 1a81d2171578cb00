"""Runs that go on where the last one stopped give what runs from the start give."""

from __future__ import annotations

from collections.abc import Iterator

import builders
import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.calibrate import relay
from edgeopt.calibrate.relay import Relay
from edgeopt.calibrate.shapes import observed_shapes
from edgeopt.graph import edit, quantizable, tensors


class Counting(builders.FakeEvidence):
    """Evidence that counts the nodes that were run."""

    nodes = 0

    def run(self, model: ir.Model, inputs, names) -> Iterator[builders.Arrays]:
        self.nodes += edit.count(model)
        yield from super().run(model, inputs, names)


def halved_one_after_the_other(model: ir.Model, evidence: builders.FakeEvidence, shapes) -> list[np.ndarray]:
    """What every layer reads once the weights of all layers before it are halved."""
    own = edit.copy(model)
    given = Relay(own, shapes, evidence, samples=100)
    layers = quantizable.layers(own.graph)
    positions = given.positions([str(layer.weight.name) for layer in layers])
    seen = []
    for layer in layers:
        data = str(layer.data.name)
        arrays = list(given.observe([data], final=positions[str(layer.weight.name)]))
        assert len(arrays) == evidence.sample_count
        seen.append(np.concatenate([each[data].ravel() for each in arrays]))
        edit.set_constant(layer.weight, np.asarray(tensors.array(layer.weight)) * np.float32(0.5))
    return seen


@pytest.mark.parametrize("build", [builders.conv_net, builders.bert_block])
def test_going_on_from_a_cut_gives_what_running_everything_gives(build) -> None:
    model = build()
    evidence = Counting(model, samples=3)
    plain = halved_one_after_the_other(model, evidence, {})
    ran, evidence.nodes = evidence.nodes, 0
    relayed = halved_one_after_the_other(model, evidence, observed_shapes(model, builders.FakeEvidence(model)))
    assert evidence.nodes < ran
    assert len(plain) == len(relayed) > 1
    for one, two in zip(plain, relayed, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)


def test_values_that_are_too_large_to_keep_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = builders.conv_net()
    shapes = observed_shapes(model, builders.FakeEvidence(model))
    evidence = Counting(model, samples=3)
    plain = halved_one_after_the_other(model, evidence, {})
    monkeypatch.setattr(relay, "MOST_BYTES", 1)
    ran, evidence.nodes = evidence.nodes, 0
    again = halved_one_after_the_other(model, evidence, shapes)
    assert evidence.nodes == ran
    for one, two in zip(plain, again, strict=True):
        np.testing.assert_array_equal(two, one)


def test_run_that_was_not_read_to_its_end_changes_nothing_for_the_next() -> None:
    model = builders.conv_net()
    evidence = builders.FakeEvidence(model, samples=3)
    given = Relay(model, observed_shapes(model, evidence), evidence, samples=100)
    (first, *_, last) = quantizable.layers(model.graph)
    at = given.positions([str(last.weight.name)])[str(last.weight.name)]
    next(given.observe([str(last.data.name)], final=at))
    assert len(list(given.observe([str(first.data.name)], final=0))) == 3
