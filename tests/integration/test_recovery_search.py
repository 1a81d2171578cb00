"""Distillation as part of an ordinary job: nobody asks for it, and the search tries it where it may pay."""

from __future__ import annotations

from pathlib import Path

import builders
import jobs
import numpy as np
import pytest
from builders import Net

from edgeopt.policy import Goal, Policy, Search, Techniques

pytest.importorskip("torch", reason="needs torch: pip install 'edgeopt[train]'")

WIDTH, USED = 48, 32


def _network(path: Path) -> None:
    """Three layers of 48 neurons, a third of which repeat others; pruning beyond that third is wrong without training."""
    net, random = Net(seed=2), np.random.default_rng(0)

    def weight(rows: int) -> str:
        drawn = random.normal(size=(rows, USED)) * np.sqrt(2.0 / rows)
        return net.const(np.concatenate([drawn, drawn[:, : WIDTH - USED]], axis=1).astype(np.float32))

    value = "rows"
    for rows in (16, WIDTH, WIDTH):
        value = net.op("Relu", net.op("Gemm", value, weight(rows), net.weight(WIDTH)))
    net.op("Gemm", value, net.weight(WIDTH, 8), net.weight(8), output="embedding")
    path.write_bytes(builders.to_bytes(net.build({"rows": [1, 16]}, {"embedding": [1, 8]})))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_search_distils_what_was_pruned_too_far(tmp_path: Path) -> None:
    _network(tmp_path / "model.onnx")
    rows = np.random.default_rng(1).normal(size=(1088, 1, 16)).astype(np.float32)
    policy = Policy(
        goal=Goal(objective="size", max_drop=0.02),
        search=Search(budget_s=80.0),
        techniques=Techniques(quantize="off"),
    )
    result = jobs.optimized(tmp_path, {"rows": rows}, policy, calibrate=1024)
    candidates = result.manifest["candidates"]
    taught = [each for each in candidates if any(step["technique"] == "distill" for step in each["recipe"])]
    assert taught, candidates
    for each in taught:
        steps = next(step["steps"] for step in each["recipe"] if step["technique"] == "distill")
        assert steps in (64, 256, 1024)
        assert "result" in each or each["refused"].startswith(("not timed: ", "not taught: "))
