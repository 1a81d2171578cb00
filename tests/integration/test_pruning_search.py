"""Pruning as part of an ordinary job: a network with channels to spare gets smaller, is measured, and is published."""

from __future__ import annotations

import json
from pathlib import Path

import jobs
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.oneshot import Request, default_limits, run
from edgeopt.policy import Goal, Policy, Search, Techniques

WIDTH, USED = 96, 24


def _wasteful_model(path: Path) -> None:
    """Three 3x3 convolutions of 96 channels whose last 72 channels are mixtures of the first 24."""
    random = np.random.default_rng(0)

    def spread(weight: np.ndarray) -> np.ndarray:
        """Rows beyond ``USED`` repeat earlier rows."""
        return np.concatenate([weight[:USED]] * (WIDTH // USED))

    shapes = [(WIDTH, 3), (WIDTH, WIDTH), (WIDTH, WIDTH)]
    weights = [spread(random.normal(size=(*shape, 3, 3)) / (3 * np.sqrt(shape[1]))) for shape in shapes]
    head = random.normal(size=(10, WIDTH)) / np.sqrt(WIDTH)
    arrays = {f"conv{number}.weight": weight for number, weight in enumerate(weights)} | {"head.weight": head}
    nodes, value = [], "image"
    for number in range(len(weights)):
        nodes.append(helper.make_node("Conv", [value, f"conv{number}.weight"], [f"c{number}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        value = f"r{number}"
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head.weight"], ["embedding"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "wasteful",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.write_bytes(model.SerializeToString())


@pytest.mark.slow
def test_network_with_channels_to_spare_is_pruned_and_published(tmp_path: Path) -> None:
    _wasteful_model(tmp_path / "model.onnx")
    images = np.random.default_rng(1).normal(size=(48, 3, 32, 32)).astype(np.float32)
    policy = Policy(goal=Goal(objective="size"), search=Search(budget_s=60.0), techniques=Techniques(quantize="off"))
    result = jobs.optimized(tmp_path, {"image": images}, policy, calibrate=32)
    tried = [candidate for candidate in result.manifest["candidates"] if _is_pruned(candidate["recipe"])]
    assert tried, [candidate["recipe"] for candidate in result.manifest["candidates"]]
    families = result.manifest["pruning"]["families"]
    assert [(family["name"], family["units"]) for family in families] == [(f"conv{n}.weight", WIDTH) for n in range(3)]
    for family in families:
        assert [entry["ratio"] for entry in family["damage"]] == [0.1, 0.3, 0.5]
        assert family["damage"][-1]["damage"] < 0.01  # three quarters of the channels repeat others
    page = (result.folder / "report.html").read_text()
    assert "conv1.weight" in page and "What each family of channels can give up" in page
    right = [candidate for candidate in tried if "refused" not in candidate]
    assert right, [candidate["refused"] for candidate in tried]
    assert _is_pruned(result.manifest["recipe"])
    weights = ir.load(result.folder / "model.onnx").graph.initializers.values()
    assert min(value.shape[0] for value in weights if len(value.shape) == 4) < WIDTH


@pytest.mark.slow
def test_pruning_by_weights_alone_is_measured_and_marked_without_samples_and_does_not_win(tmp_path: Path) -> None:
    _wasteful_model(tmp_path / "model.onnx")
    # however little agreement is asked for: made-up inputs say nothing about what is lost
    policy = Policy(
        goal=Goal(objective="size", max_drop=1.0),
        search=Search(budget_s=30.0),
        techniques=Techniques(prune={"criterion": "l1", "refit": False, "ratio": 0.25}, quantize="off"),
    )
    request = Request(model=tmp_path / "model.onnx", policy=policy, limits=default_limits(), out=tmp_path / "out")
    result = run(request, on_event=lambda _event: None)
    pruned = [each for each in result.manifest["candidates"] if "prune_channels" in str(each["recipe"])]
    measured = [each for each in pruned if each.get("result")]
    assert len(measured) == 1, pruned
    assert measured[0]["refused"].startswith("made from weights alone")
    assert measured[0]["result"]["bytes_ratio"] > 1.5
    assert "prune_channels" not in str(result.manifest["recipe"])
    assert "made from weights alone" in (result.folder / "report.html").read_text()


def _is_pruned(recipe: list[dict[str, object]]) -> bool:
    return any(step["technique"] == "prune_channels" and json.loads(str(step["removed"])) for step in recipe)
