"""Transformer fusion on an encoder as exporters write it."""

from __future__ import annotations

import dataclasses

import builders
import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.errors import PassFailed
from edgeopt.graph import check, edit
from edgeopt.passes.fuse_transformer import FuseTransformer
from edgeopt.passes.tidy import Tidy


def fuse(model: ir.Model) -> ir.Model:
    evidence = builders.FakeEvidence(model)
    made = FuseTransformer().apply(Tidy().apply(model, {}, evidence), {}, evidence)
    check.verify(made, like=model)
    return made


@pytest.mark.parametrize(("heads", "width", "layers", "opset"), [(4, 32, 1, 17), (2, 32, 2, 13), (8, 64, 1, 14)])
def test_every_layer_becomes_attention_skips_and_a_gelu(heads: int, width: int, layers: int, opset: int) -> None:
    model = builders.bert_block(heads=heads, width=width, layers=layers, opset=opset)
    made = fuse(model)
    assert edit.count(made, "Attention") == layers
    assert edit.count(made, "SkipLayerNormalization") == 2 * layers
    assert edit.count(made, "BiasGelu") == layers
    assert edit.count(made, "Softmax", "Erf", "Transpose", "Reshape") == 0
    attention = next(node for node in made.graph if node.op_type == "Attention")
    assert attention.attributes["num_heads"].as_int() == heads


@pytest.mark.parametrize("masked", ["nothing", "the end", "all but one", "everything"])
def test_masked_tokens_count_as_little_as_before(masked: str) -> None:
    model = builders.bert_block(layers=2)
    feeds = builders.feeds(model, symbols=6)
    mask = np.ones_like(feeds["mask"])
    mask[:, {"nothing": 6, "the end": 3, "all but one": 1, "everything": 0}[masked] :] = 0
    feeds["mask"] = mask
    np.testing.assert_allclose(builders.run(fuse(model), feeds)[0], builders.run(model, feeds)[0], atol=2e-5)


def test_fused_model_takes_any_batch_and_length() -> None:
    model = builders.bert_block()
    made = fuse(model)
    for length in (1, 3, 9):
        feeds = builders.feeds(model, seed=length, symbols=length)
        np.testing.assert_allclose(builders.run(made, feeds)[0], builders.run(model, feeds)[0], atol=2e-5)


def test_model_that_matches_nothing_is_out_with_what_did_match() -> None:
    with pytest.raises(PassFailed, match="no attention or skip connection matched"):
        fuse(builders.mlp())


def test_fused_model_is_not_fused_again() -> None:
    made = fuse(builders.bert_block())
    with pytest.raises(PassFailed, match="nothing"):
        FuseTransformer().apply(made, {}, builders.FakeEvidence(builders.bert_block()))


def test_refusals_say_why() -> None:
    refuse = FuseTransformer().refuse
    bert = builders.signature(builders.bert_block())
    assert refuse(bert, builders.TARGET) is None
    assert "tensorrt" in str(refuse(bert, dataclasses.replace(builders.TARGET, name="tensorrt")))
    assert "Softmax" in str(refuse(builders.signature(builders.conv_net()), builders.TARGET))
    assert "quantized" in str(refuse(dataclasses.replace(bert, quantized=True), builders.TARGET))
