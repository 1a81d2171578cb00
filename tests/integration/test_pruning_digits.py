"""What pruning promises for the demo's CNN, against its labels: a third of the multiply-adds or less at no more than 1 % of its accuracy."""

from __future__ import annotations

import math
from pathlib import Path

import builders
import numpy as np
import onnx_ir as ir
import pytest
from builders import FakeEvidence

import edgeopt
from edgeopt.calibrate.shapes import observed_shapes
from edgeopt.graph import tensors
from edgeopt.passes import FoldBatchNorm, PruneChannels, Tidy

pytestmark = pytest.mark.slow

DEMO = Path(edgeopt.__file__).parent / "demo"


def digits() -> tuple[ir.Model, FakeEvidence]:
    """The shipped model, cleaned up, and its 180 calibration scans."""
    model = ir.load(DEMO / "digits.onnx")
    evidence = FakeEvidence(model, samples=0)
    with np.load(DEMO / "digits.calibration.npz") as arrays:
        evidence._samples = [{"image": image[None]} for image in arrays["image"]]
    evidence.sample_count = len(evidence._samples)
    return FoldBatchNorm().apply(Tidy().apply(model, {}, evidence), {}, evidence), evidence


def multiply_adds(model: ir.Model, evidence: FakeEvidence) -> int:
    """Of the convolutions and dense layers, for one scan."""
    shapes, total = observed_shapes(model, evidence), 0
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm"):
            weight = tensors.array(node.inputs[1])
            assert weight is not None
            places = math.prod(length or 1 for length in shapes[str(node.outputs[0].name)][2:])
            total += weight.size * places
    return total


def accuracy(model: ir.Model) -> float:
    """On the 540 labelled scans that no step has seen."""
    with np.load(DEMO / "digits.eval.npz") as arrays:
        (scores,) = builders.run(model, {"image": arrays["image"]}, optimized=True)
        return float((scores.argmax(axis=1) == arrays["labels"]).mean())


def test_half_of_the_channels_make_a_third_of_the_multiply_adds_at_one_percent_of_accuracy() -> None:
    model, evidence = digits()
    pruned = PruneChannels().apply(model, {"ratio": 0.5, "families": "inner"}, evidence)
    assert multiply_adds(model, evidence) >= 3 * multiply_adds(pruned, evidence)
    before, after = accuracy(model), accuracy(pruned)
    assert before > 0.98
    assert after >= before - 0.01


def test_the_refit_is_what_keeps_the_accuracy() -> None:
    model, evidence = digits()
    cut = PruneChannels().apply(model, {"ratio": 0.5, "families": "inner", "refit": False}, evidence)
    assert accuracy(cut) < accuracy(model) - 0.1
