"""Sparse weights on real models: the file computes what zeros in place do, and a model that comes pruned gets smaller than packing alone makes it; needs EDGEOPT_CORPUS."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.graph import check, compact
from edgeopt.passes import FoldBatchNorm, PruneWeights, QuantizeWeights, Tidy

pytestmark = [pytest.mark.corpus, pytest.mark.slow]
CORPUS = Path(os.environ.get("EDGEOPT_CORPUS", "/nonexistent"))


def cleaned(name: str) -> ir.Model:
    model = ir.load(CORPUS / name / "model.onnx")
    for technique in (Tidy(), FoldBatchNorm()):
        model = technique.apply(model, {}, builders.FakeEvidence(model, samples=0))
    return model


def apply(technique: Any, model: ir.Model, **settings: Any) -> ir.Model:
    made: ir.Model = technique.apply(model, settings, builders.FakeEvidence(model, samples=0))
    check.verify(made, like=model)
    return made


def outputs(model: ir.Model, name: str) -> list[np.ndarray]:
    arrays = np.load(CORPUS / name / "eval.npz")
    feeds = {str(value.name): arrays[str(value.name)][:1] for value in model.graph.inputs}
    return builders.run(model, feeds, optimized=True)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "magika_v3_3"])
@pytest.mark.parametrize("settings", [{}, {"pattern": "2:4", "bits": 6}], ids=str)
def test_masked_weights_compute_to_the_bit_what_dense_zeros_do(name: str, settings: dict[str, Any]) -> None:
    model = cleaned(name)
    masked = apply(PruneWeights(), model, method="magnitude", **settings)
    dense = apply(PruneWeights(), model, method="magnitude", form="dense", **settings)
    for ours, theirs in zip(outputs(masked, name), outputs(dense, name), strict=True):
        assert np.array_equal(ours, theirs)
    assert len(builders.to_bytes(masked)) < 0.7 * len(builders.to_bytes(model))


def test_model_that_comes_pruned_gets_smaller_by_its_zeros_than_by_packing_alone() -> None:
    pruned = apply(PruneWeights(), cleaned("efficientnet_lite0"), method="magnitude", ratio=0.75, form="dense")
    assert compact.zeros(pruned.graph) > 0.3
    packed = apply(QuantizeWeights(), pruned, bits=8)
    found = apply(QuantizeWeights(), apply(PruneWeights(), pruned, method="found", bits=8), bits=8)
    assert len(builders.to_bytes(found)) < 0.6 * len(builders.to_bytes(packed))
