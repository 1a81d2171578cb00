"""The lossless passes on real models; needs EDGEOPT_CORPUS."""

from __future__ import annotations

import json
import os
from pathlib import Path

import builders
import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.graph import check, edit
from edgeopt.passes import FoldBatchNorm, FuseTransformer, Tidy

pytestmark = [pytest.mark.corpus, pytest.mark.slow]
FOLDERS = sorted(file.parent for file in Path(os.environ.get("EDGEOPT_CORPUS", "/nonexistent")).glob("*/model.onnx"))


def samples(folder: Path, model: ir.Model) -> list[builders.Arrays]:
    arrays = np.load(folder / "calib.npz")
    stacked = json.loads((folder / "meta.json").read_text())["npz_layout"] == "stacked"
    names = [str(value.name) for value in model.graph.inputs]
    return [
        {name: np.asarray(arrays[name][i]) if stacked else arrays[name][i : i + 1] for name in names} for i in (0, 1)
    ]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_real_model_comes_out_smaller_and_equal(folder: Path) -> None:
    model = ir.load(folder / "model.onnx")
    made = model
    for technique in (Tidy(), FoldBatchNorm()):
        made = technique.apply(made, {}, builders.FakeEvidence(model, samples=0))
        check.verify(made, like=model)
    assert edit.count(made) <= edit.count(model)
    assert made.graph.opset_imports[""] >= 17
    for feeds in samples(folder, model):
        for ours, theirs in zip(builders.run(made, feeds), builders.run(model, feeds), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(1.0, float(np.abs(theirs).max())))


def test_real_encoder_is_fused_whole() -> None:
    folder = next(folder for folder in FOLDERS if "minilm" in folder.name)
    model = ir.load(folder / "model.onnx")
    evidence = builders.FakeEvidence(model, samples=0)
    made = FuseTransformer().apply(Tidy().apply(model, {}, evidence), {}, evidence)
    assert (edit.count(made, "Attention"), edit.count(made, "SkipLayerNormalization")) == (6, 12)
    for feeds in samples(folder, model):
        for ours, theirs in zip(builders.run(made, feeds), builders.run(model, feeds), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
