"""Stripping a graph for objective size: the same outputs and interface, fewer bytes, nothing left that only people read."""

from __future__ import annotations

import builders
import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.graph import bare, check, edit


def build(name: str) -> ir.Model:
    model = getattr(builders, name)()
    assert isinstance(model, ir.Model)
    return model


@pytest.mark.parametrize("name", builders.TRAITS)
def test_stripped_model_computes_the_same_bits_under_the_same_interface(name: str) -> None:
    model = build(name)
    stripped = bare.stripped(model)
    check.verify(stripped, like=model)
    feeds = builders.feeds(model)
    for ours, theirs in zip(builders.run(stripped, feeds), builders.run(model, feeds), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", builders.TRAITS)
def test_stripping_saves_bytes_leaves_its_input_alone_and_is_at_rest_after_once(name: str) -> None:
    model = build(name)
    before = builders.to_bytes(model)
    once = builders.to_bytes(bare.stripped(model))
    assert builders.to_bytes(model) == before
    assert len(once) < len(before)
    assert builders.to_bytes(bare.stripped(bare.stripped(model))) == once


def test_names_shapes_documentation_and_metadata_are_gone() -> None:
    model = build("bert_block")
    model.doc_string = "a story"
    model.metadata_props["author"] = "somebody"
    model.graph[0].doc_string = "what it does"
    model.graph[0].outputs[0].shape = ir.Shape([1, 2, 3])
    stripped = bare.stripped(model)
    assert not stripped.doc_string
    assert not stripped.metadata_props
    assert not any(node.name or node.doc_string for node in edit.nodes(stripped))
    interior = [v for node in stripped.graph for v in node.outputs if not v.is_graph_output()]
    assert all(value.shape is None and len(value.name or "") <= 2 for value in interior)


def test_an_interface_that_already_uses_the_short_names_keeps_them() -> None:
    model = build("mlp")
    model.graph.inputs[0].name, model.graph.outputs[0].name = "b", "a"
    feeds = builders.feeds(model)
    stripped = bare.stripped(model)
    check.verify(stripped, like=model)
    np.testing.assert_array_equal(builders.run(stripped, feeds)[0], builders.run(model, feeds)[0])


def test_default_of_an_input_that_a_caller_may_override_keeps_its_name() -> None:
    model = builders.weights_as_inputs(build("mlp"))
    named = {value.name for value in model.graph.inputs}
    assert {value.name for value in bare.stripped(model).graph.inputs} == named
