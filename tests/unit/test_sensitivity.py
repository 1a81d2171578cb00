from __future__ import annotations

import json

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.graph import tensors
from edgeopt.passes import QuantizeStatic
from edgeopt.records import Step
from edgeopt.stages import sensitivity

STEP = Step.of("quantize_static", method="min_max")


@given(st.integers(0, 200), st.integers(1, 50))
def test_groups_hold_every_layer_once_and_in_order(count, most) -> None:
    layers = [f"l{number}" for number in range(count)]
    found = sensitivity.together(layers, most)
    assert [name for group in found for name in group] == layers
    assert len(found) <= most
    assert all(found)


@given(st.dictionaries(st.text(min_size=1), st.floats(0, 10), min_size=1, max_size=30))
def test_shares_are_powers_of_two_so_that_clock_noise_changes_little(seconds) -> None:
    for share in sensitivity.shares(seconds).values():
        assert 1 / 64 <= share <= 1
        assert np.log2(share).is_integer()


def test_outlier_among_a_layers_weights_raises_that_layers_damage() -> None:
    quantizer = QuantizeStatic()
    step = Step.of("quantize_static", method="min_max", per_channel=False)
    damages = []
    for factor in (1.0, 8.0):
        model = builders.mlp()
        victim = next(node for node in model.graph if node.op_type in ("Gemm", "MatMul")).inputs[1]
        weight = tensors.array(victim)
        assert victim is not None
        assert weight is not None
        spoiled = weight.copy()
        spoiled[0, 0] = factor * np.abs(weight).max()
        victim.const_value = ir.tensor(spoiled, name=victim.name)
        found = sensitivity.groups(model, step, quantizer, FakeEvidence(model), {})
        assert [group.layers for group in found] == [(name,) for name in quantizer.layers(model)]
        damages.append(found[0].damage)
    assert damages[1] > 5 * damages[0]


def test_kernel_times_reach_their_layers_through_fusion_suffixes() -> None:
    model = builders.conv_net()
    quantizer = QuantizeStatic()
    first, *rest = quantizer.layers(model)
    node = next(node for node in model.graph if first in (node.name, node.outputs[0].name))
    seconds = {f"{node.outputs[0].name}_nchwc": 0.9, **dict.fromkeys(rest, 0.01)}
    found = sensitivity.groups(model, STEP, quantizer, FakeEvidence(model), seconds)
    costs = {group.layers[0]: group.share for group in found}
    assert costs[first] == max(costs.values())


def test_skipped_layers_are_written_into_the_step_and_shown_by_their_number() -> None:
    from edgeopt.records import Recipe

    step = sensitivity.skipping(STEP, ["conv1", "conv2"])
    assert json.loads(str(dict(step.settings)["skip"])) == ["conv1", "conv2"]
    assert "skip=2 layers" in Recipe(steps=(step,)).label


@pytest.mark.parametrize("quantizer", ["QuantizeStatic", "QuantizeDynamic"])
def test_layers_are_what_skip_leaves_out(quantizer) -> None:
    from edgeopt import passes
    from edgeopt.errors import PassFailed

    model = builders.mlp()
    own = getattr(passes, quantizer)()
    names = own.layers(model)
    assert names
    with pytest.raises(PassFailed):
        own.apply(model, {"skip": json.dumps(list(names))}, FakeEvidence(model))
