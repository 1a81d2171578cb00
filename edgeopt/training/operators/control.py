"""If, Loop and Scan: operators that hold graphs.

They are called as ``function(call, run, *inputs)``, where ``run(body, *values)`` executes the graph in the
attribute ``body`` within the same frame and gives its outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from edgeopt.training.operators.call import Call

Run: TypeAlias = Callable[..., list[Tensor]]
Controller: TypeAlias = Callable[..., tuple[Tensor, ...]]


def branch(call: Call, run: Run, condition: Tensor) -> tuple[Tensor, ...]:
    """If: only the branch that is taken is executed."""
    del call
    return tuple(run("then_branch" if bool(condition.item()) else "else_branch"))


def loop(call: Call, run: Run, trips: Tensor | None, go_on: Tensor | None, *carried: Tensor) -> tuple[Tensor, ...]:
    """Loop: carried values after the last round, then what every round gave, stacked."""
    goes, turn = go_on is None or bool(go_on.item()), 0
    state, rounds = list(carried), []
    while goes and (trips is None or turn < int(trips.item())):
        outputs = run("body", torch.tensor(turn), torch.tensor(goes), *state)
        goes, state = bool(outputs[0].item()), outputs[1 : 1 + len(carried)]
        rounds.append(outputs[1 + len(carried) :])
        turn += 1
    if not rounds and call.outputs > len(carried):
        raise call.refusal("that stacks the results of no round at all is not replayed")
    return (*state, *(torch.stack(each) for each in zip(*rounds, strict=True)))


def scan(call: Call, run: Run, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Scan (opset 9 on): states, then the stacked outputs of every step along the scanned axes."""
    if call.opset < 9:
        raise call.refusal("of opset 8 is not replayed")
    count = call.integer("num_scan_inputs")
    state, sequences = list(inputs[:-count]), inputs[-count:]
    axes = call.integers("scan_input_axes", [0] * count)
    backwards = call.integers("scan_input_directions", [0] * count)
    length = sequences[0].shape[axes[0]]
    rounds: list[list[Tensor]] = []
    for step in range(length):
        slices = [
            sequence.select(axis, length - 1 - step if back else step)
            for sequence, axis, back in zip(sequences, axes, backwards, strict=True)
        ]
        outputs = run("body", *state, *slices)
        state = outputs[: len(state)]
        rounds.append(outputs[len(state) :])
    return (*state, *_stacked(call, rounds, call.outputs - len(state)))


def _stacked(call: Call, rounds: list[list[Tensor]], count: int) -> list[Tensor]:
    axes = call.integers("scan_output_axes", [0] * count)
    backwards = call.integers("scan_output_directions", [0] * count)
    stacked = []
    for index, (axis, back) in enumerate(zip(axes, backwards, strict=True)):
        entries = [outputs[index] for outputs in rounds]
        rank = entries[0].dim() + 1
        stacked.append(torch.stack(entries[::-1] if back else entries, axis % rank))
    return stacked
