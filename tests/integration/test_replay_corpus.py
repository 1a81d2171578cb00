"""Real models replayed in torch: what ONNX Runtime gives, gradients for every weight, and their bytes back; needs EDGEOPT_CORPUS."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which the extra train brings")

from edgeopt.training.replay import Replay, write_back  # noqa: E402 - behind the check for torch

pytestmark = [pytest.mark.corpus, pytest.mark.slow]
FOLDERS = sorted(file.parent for file in Path(os.environ.get("EDGEOPT_CORPUS", "/nonexistent")).glob("*/model.onnx"))
TOLERANCE = 1e-4
"""Of the largest number of an output."""


def sample(folder: Path, model: ir.Model, index: int) -> builders.Arrays:
    arrays = np.load(folder / "calib.npz")
    stacked = json.loads((folder / "meta.json").read_text())["npz_layout"] == "stacked"
    names = [str(value.name) for value in model.graph.inputs]
    return {name: np.asarray(arrays[name][index]) if stacked else arrays[name][index : index + 1] for name in names}


def fed(arrays: builders.Arrays) -> dict[str, Any]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_real_model_is_replayed_with_gradients_and_written_back_unchanged(folder: Path) -> None:
    model = ir.load(folder / "model.onnx")
    replay = Replay(model)
    feeds = sample(folder, model, 1)
    outputs = replay(fed(feeds))
    for ours, theirs in zip(outputs.values(), builders.run(model, feeds), strict=True):
        limit = TOLERANCE * max(1e-6, float(np.abs(theirs).max()))
        np.testing.assert_allclose(ours.detach().numpy(), theirs, atol=limit, rtol=0)

    sum((value * value).sum() for value in outputs.values() if value.requires_grad).backward()
    gradients = {name: weight.grad for name, weight in replay.weights.items() if weight.grad is not None}
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())
    # a model for two sampling rates keeps each rate's weights in a branch of its own
    share = 0.5 if any(node.op_type == "If" for node in model.graph) else 1.0
    assert len(gradients) >= share * len(replay.weights) > 0

    held = {name: weight.detach().numpy() for name, weight in replay.weights.items()}
    assert builders.to_bytes(write_back(model, held)) == builders.to_bytes(model)
