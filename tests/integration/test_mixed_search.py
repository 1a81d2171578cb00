"""Mixed precision as part of an ordinary job: one layer that int8 cannot hold stays in float, the others do not."""

from __future__ import annotations

import json
from pathlib import Path

import jobs
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.policy import Goal, Policy, Search, Techniques

WIDTH, LAYERS, SPOILED = 64, 6, 3
OUTLIER = 300.0


def _model(path: Path) -> None:
    """Six matrices; what the fourth reads has one column 300 times as large as the others, and nearly no weight on it."""
    random = np.random.default_rng(0)
    nodes, arrays, value = [], {}, "rows"
    for number in range(LAYERS):
        weight = random.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)
        if number == SPOILED:
            weight[0] /= OUTLIER
        arrays[f"w{number}"] = weight
        nodes.append(helper.make_node("MatMul", [value, f"w{number}"], [f"m{number}"], name=f"layer{number}"))
        value = f"m{number}"
        if number == SPOILED - 1:
            arrays["gain"] = np.where(np.arange(WIDTH) == 0, OUTLIER, 1.0)
            nodes.append(helper.make_node("Mul", [value, "gain"], ["spread"]))
            value = "spread"
        elif number < LAYERS - 1:
            nodes.append(helper.make_node("Tanh", [value], [f"t{number}"]))
            value = f"t{number}"
    nodes.append(helper.make_node("Identity", [value], ["embedding"]))
    graph = helper.make_graph(
        nodes,
        "one bad layer",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [1, 16, WIDTH])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 16, WIDTH])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.write_bytes(model.SerializeToString())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_layer_that_int8_cannot_hold_stays_in_float_and_the_rungs_between_are_measured(tmp_path: Path) -> None:
    _model(tmp_path / "model.onnx")
    rows = np.random.default_rng(1).normal(size=(48, 16, WIDTH)).astype(np.float32)
    policy = Policy(
        goal=Goal(objective="size", max_drop=0.02),
        search=Search(budget_s=200.0),
        techniques=Techniques(quantize=("quantize_static",), prune="off", distill="off"),
    )
    result = jobs.optimized(tmp_path, {"rows": rows}, policy, calibrate=32)
    tried = [candidate for candidate in result.manifest["candidates"] if candidate["recipe"]]
    mixed = [each for each in tried if json.loads(str(each["recipe"][-1].get("skip", "[]")))]
    assert mixed, [(each["recipe"], each.get("refused")) for each in tried]
    # right it must be; whether it is fast enough beside whatever else runs here is the machine's affair
    right = [each for each in mixed if "speedup" in str(each.get("refused", "speedup"))]
    kept = [json.loads(each["recipe"][-1]["skip"]) for each in right]
    assert kept, [each["refused"] for each in mixed]
    assert all(f"layer{SPOILED}" in layers for layers in kept)
    assert min(map(len, kept)) < LAYERS - 1
    between = [each for each in tried if "wide" in each["recipe"][-1] or "quantize_weights" in str(each["recipe"])]
    assert any("with these layers in float" in str(each.get("refused")) or "result" in each for each in between)
    unwanted = [each for each in tried if "quantize_weights" in str(each["recipe"])]
    assert all("refused" in each for each in unwanted), "the operator allows static quantization only"
