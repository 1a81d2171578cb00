"""Graphs that training replays in torch, and how a test holds them against ONNX Runtime. Skips where there is no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import builders
import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which the extra train brings")

from edgeopt.training.replay import Replay  # noqa: E402 - behind the check for torch

MODELS: dict[str, Callable[[], ir.Model]] = {
    "conv_net": builders.conv_net,
    "weights in Constant nodes": lambda: builders.conv_net(constants=True),
    "weights as inputs": lambda: builders.weights_as_inputs(builders.conv_net()),
    "relu_chain": builders.relu_chain,
    "depthwise_residual": builders.depthwise_residual,
    "scaled_head": builders.scaled_head,
    "mlp": builders.mlp,
    "bert_block": builders.bert_block,
    "lstm": builders.lstm,
    "branches": builders.branches,
    "loop": builders.loop,
    "shared_initializers": builders.shared_initializers,
    "constants_anywhere": builders.constants_anywhere,
    "old_softmax": builders.old_softmax,
}


def fed(arrays: builders.Arrays) -> dict[str, Any]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def numbers(replay: Replay) -> dict[str, np.ndarray]:
    return {name: weight.detach().numpy() for name, weight in replay.weights.items()}


def assert_replays(model: ir.Model, *, tolerance: float = 1e-5, seeds: tuple[int, ...] = (0, 1)) -> None:
    replay = Replay(model)
    for seed in seeds:
        arrays = builders.feeds(model, seed=seed)
        with torch.no_grad():
            made = replay(fed(arrays))
        assert list(made) == [value.name for value in model.graph.outputs]
        for ours, theirs in zip(made.values(), builders.run(model, arrays), strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=tolerance, atol=tolerance)


def arithmetic(kind: str, data: Any) -> ir.Model:
    net = builders.Net()
    net.op(kind, "rows", net.const(np.asarray(data, np.float32), "constant"), output="out")
    return net.build({"rows": ["N", 4]}, {"out": ["N", 4]})
