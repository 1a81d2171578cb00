"""Distillation as part of an ordinary job: nobody asks for it, and the search tries it where it may pay; asked for, it wins where nothing else makes good for what went."""

from __future__ import annotations

from pathlib import Path

import builders
import jobs
import numpy as np
import onnx_ir as ir
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


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_student_that_only_its_lesson_makes_right_wins_the_job_and_is_published(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).normal(size=(1536, 1, 16)).astype(np.float32)
    cut = {"ratio": 0.4, "criterion": "l2", "refit": False}
    found = {}
    for name, distill in (("untaught", "off"), ("taught", {"steps": 400, "learning_rate": 0.003})):
        folder = tmp_path / name
        folder.mkdir()
        _network(folder / "model.onnx")
        policy = Policy(
            goal=Goal(objective="size", max_drop=0.12),
            search=Search(budget_s=120.0, trials=3),
            techniques=Techniques(quantize="off", prune=cut, distill=distill),
        )
        found[name] = jobs.optimized(folder, {"rows": rows}, policy, calibrate=1024)
    untaught, taught = found["untaught"].manifest, found["taught"].manifest
    (refused,) = [
        each for each in untaught["candidates"] if _has(each["recipe"], "prune_channels") and "result" in each
    ]
    assert "more than max_drop 0.12" in refused["refused"]
    assert refused["result"]["quality"]["drop"] > 0.2
    assert not _has(untaught["recipe"], "prune_channels")

    assert _has(taught["recipe"], "prune_channels") and _has(taught["recipe"], "distill")
    assert taught["result"]["quality"]["ci95"][1] <= 0.12
    assert taught["result"]["bytes_ratio"] > untaught["result"]["bytes_ratio"]
    weights = ir.load(found["taught"].folder / "model.onnx").graph.initializers.values()
    assert max(max(value.shape) for value in weights) < WIDTH


def _has(recipe: list[dict[str, object]], technique: str) -> bool:
    return any(step["technique"] == technique for step in recipe)
