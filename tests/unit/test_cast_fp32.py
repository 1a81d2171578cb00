"""Models in float16 become float32 ones that the other passes know, and their callers notice nothing."""

from __future__ import annotations

import dataclasses

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence

from edgeopt.errors import PassFailed
from edgeopt.graph import check, edit, quantizable
from edgeopt.passes import CastFp32, QuantizeStatic, QuantizeWeights, Tidy

HALF = ir.DataType.FLOAT16


def single() -> tuple[ir.Model, ir.Model]:
    """As recipes have it: behind clean-up, which knows the types of all tensors."""
    model = builders.half_precision()
    evidence = FakeEvidence(model)
    return model, CastFp32().apply(Tidy().apply(model, {}, evidence), {}, evidence)


def noise(model: ir.Model, made: ir.Model) -> float:
    feeds = builders.feeds(model, seed=2)
    right, found = (builders.run(each, feeds)[0].astype(float) for each in (model, made))
    return float(np.square(found - right).sum() / np.square(right).sum())


def test_only_inputs_and_outputs_stay_in_half_precision_and_their_types_are_kept() -> None:
    model, made = single()
    check.verify(made, like=model)
    halves = [value for graph in made.graphs() for value in graph.initializers.values() if value.dtype == HALF]
    assert not halves
    casts = [node for node in edit.nodes(made) if node.op_type == "Cast"]
    assert len(casts) == 2, "one behind the image, one in front of the logits; those between the precisions are gone"
    assert made.graph.inputs[0].dtype == made.graph.outputs[0].dtype == HALF
    feeds = builders.feeds(model)
    assert builders.run(made, feeds)[0].dtype == np.float16
    assert noise(model, made) < 1e-5


def test_layers_that_no_pass_knew_are_quantized_behind_it() -> None:
    model, made = single()
    evidence = FakeEvidence(model)
    assert QuantizeStatic().layers(model) == ()
    assert len(QuantizeStatic().layers(made)) == 2
    for made_smaller in (
        QuantizeStatic().apply(made, {"reduced_range": True}, evidence),
        QuantizeWeights().apply(made, {}, evidence),
    ):
        check.verify(made_smaller, like=model)
        assert noise(model, made_smaller) < 1e-2


def test_it_needs_no_clean_up_first() -> None:
    model = builders.half_precision()
    made = CastFp32().apply(model, {}, FakeEvidence(model))
    check.verify(made, like=model)
    assert noise(model, made) < 1e-5
    assert quantizable.layers(made.graph)


def test_a_device_that_computes_in_half_precision_and_a_float32_model_need_none_of_it() -> None:
    signature = builders.signature(builders.half_precision())
    able = dataclasses.replace(builders.TARGET, features=("asimdhp", "fphp"))
    assert CastFp32().refuse(signature, able) == "the device computes in float16"
    assert CastFp32().refuse(signature, builders.TARGET) is None
    model = builders.conv_net()
    with pytest.raises(PassFailed, match="no float16 tensors"):
        CastFp32().apply(model, {}, FakeEvidence(model))
