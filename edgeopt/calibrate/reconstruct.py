"""Reconstruction: who read a removed channel learns to give the same from the channels that are left, without training.

Stands behind ``importance`` and before ``graph.shrink``. In come a model, its groups, the units that go, and calibration samples; out goes the model in its
old shapes with the units' columns at zero and the other columns of the same weights refitted (see ``regression``). Layers are visited in order: the targets
are what the original gives, the inputs what the model gives whose earlier layers are pruned and refitted already, so a layer also makes good what the ones
before it lost. Every fourth sample is held out, and a layer that does not come out better on those keeps its weights.

Memory: one sample's tensors, plus the targets and sums of a few layers at a time (``gram.MOST_BYTES``). Wider layers than ``WIDEST`` stay plain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.calibrate import gram
from edgeopt.calibrate.batch_norms import re_estimate
from edgeopt.calibrate.consumers import Columns, Consumer, bias_of, consumers, losing, removed_columns
from edgeopt.calibrate.deadline import require_time
from edgeopt.calibrate.means import level
from edgeopt.calibrate.real import has_real_samples
from edgeopt.calibrate.regression import Refit, Sums, best, is_held_out, shares_of
from edgeopt.calibrate.relay import Relay
from edgeopt.errors import PassFailed
from edgeopt.graph import edit, shrink, tensors
from edgeopt.graph.groups import ChannelGroups, Shapes
from edgeopt.protocols import Evidence

if TYPE_CHECKING:
    from edgeopt.protocols import Model

WIDEST = 4608
"""Columns of a weight above which it is not refitted: factoring would take minutes."""
MOST_SAMPLES = 256
"""Samples read at most: their number bounds the targets that are kept."""
_MOST_STEPS = 48
"""Layers in a row beyond this are refitted together: every step costs two runs over the samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How the samples are gone through."""

    shapes: Shapes = field(default_factory=dict)
    """With the tensors' shapes that were observed, each layer is reached from where the last one stood instead of from the inputs."""
    apart: bool = False
    """The held-out samples stay out of the weights for good: distillation judges by them."""


@dataclass(frozen=True, slots=True)
class _Task:
    """One weight to refit, or one block of a grouped convolution's."""

    original: Consumer
    current: Consumer
    block: int
    kept: Columns
    weights: NDArray[np.float64]
    """What plain removal leaves: (kept columns, outputs), the bias as the last row."""
    bias: ir.Value | None

    @property
    def key(self) -> tuple[str, int]:
        return self.original.name, self.block

    @property
    def outputs(self) -> int:
        return self.original.outputs // self.original.blocks

    def cost(self, samples: int) -> int:
        """Bytes of its targets and sums at most."""
        return self.target_bytes(samples) + 16 * self.kept.size * (self.kept.size + self.outputs)

    def target_bytes(self, samples: int) -> int:
        return 4 * samples * gram.ROWS_PER_SAMPLE * self.outputs


class _Targets:
    """What the original's layers give: made in few runs, for as many rounds ahead as fit into memory."""

    def __init__(self, model: Model, rounds: Sequence[Sequence[_Task]], evidence: Evidence) -> None:
        self._model, self._evidence = model, evidence
        self._waiting = list(rounds)
        self._held: dict[tuple[str, int], list[NDArray[np.float32]]] = {}

    def of(self, tasks: Sequence[_Task]) -> list[list[NDArray[np.float32]]]:
        """A (rows, outputs) array for each task and sample, once; rounds are asked for in their order."""
        if any(task.key not in self._held for task in tasks):
            ahead: list[_Task] = []
            taken = 0
            while self._waiting:
                taken += sum(task.target_bytes(_read(self._evidence)) for task in self._waiting[0])
                if ahead and taken > gram.MOST_BYTES:
                    break
                ahead += self._waiting.pop(0)
            arrays = _targets(self._model, ahead, self._evidence)
            self._held = {task.key: each for task, each in zip(ahead, arrays, strict=True)}
        return [self._held.pop(task.key) for task in tasks]


def refit(
    model: Model,
    groups: ChannelGroups,
    removed: Mapping[str, Collection[int]],
    evidence: Evidence,
    *,
    how: Course | None = None,
) -> tuple[Model, dict[str, Refit]]:
    """The model with the units zeroed and their consumers refitted, and what became of each consumer.

    Names and shapes are those of ``model``: ``shrink`` takes it from here. Raises :class:`~edgeopt.errors.PassFailed` without samples, or
    where a tensor is not finite.
    """
    how = how or Course()
    if not has_real_samples(evidence):
        raise PassFailed(
            "there are no real calibration samples to refit with", hint="Set refit=false, or drop samples."
        )
    current = shrink.zeroed(model, groups, removed)
    tasks = _tasks(model, current, groups, removed)
    steps = list(_steps(_levels(current, losing(groups, removed))))
    relay = Relay(current, how.shapes, evidence, samples=MOST_SAMPLES)
    final = _final(relay, steps)
    rounds = [
        list(gram.rounds(tasks_of, lambda task: task.cost(_read(evidence))))
        for tasks_of in ([task for name in names for task in tasks.get(name, ())] for names in steps)
    ]
    targets = _Targets(model, [group for groups_of in rounds for group in groups_of], evidence)
    found: dict[str, Refit] = {}
    for number, names in enumerate(steps):
        for group in rounds[number]:
            require_time(evidence, "refitting what reads the removed channels")
            for task, sums in zip(group, _observe(relay, group, targets.of(group), final[number]), strict=True):
                result = best(*sums, task.weights, apart=how.apart)
                # of a grouped convolution, the block that gained most stands for all
                if result.gain <= found.get(task.current.name, result).gain:
                    found[task.current.name] = result
                if result.how != "plain":
                    _write(task, result.weights)
        # Before the layers behind are fitted to what these give.
        plain = [name for name in names if name not in found or found[name].how == "plain"]
        re_estimate(model, current, plain, evidence)
        level(model, current, [name for name in plain if name not in found], evidence, apart=how.apart)
    return current, found


def _read(evidence: Evidence) -> int:
    return min(evidence.sample_count, MOST_SAMPLES)


def _final(relay: Relay, steps: Sequence[Sequence[str]]) -> list[int]:
    """For each step the position before which no weight is left to refit."""
    positions = relay.positions([name for names in steps for name in names])
    first = [min(positions[name] for name in names) for names in steps]
    return [min(first[number:]) for number in range(len(first))]


def _levels(model: ir.Model, weights: Collection[str]) -> dict[str, int]:
    """For each of the weights the most layers with one of them on any way from the inputs to it."""
    depth: dict[ir.Value, int] = {}
    found: dict[str, int] = {}
    for node in model.graph:
        level = max((depth.get(value, 0) for value in node.inputs if value is not None), default=0)
        own = [str(value.name) for value in node.inputs if value is not None and value.name in weights]
        found.update((name, max(level, found.get(name, 0))) for name in own)
        depth.update((output, level + bool(own)) for output in node.outputs)
    return found


def _steps(levels: Mapping[str, int]) -> Iterator[list[str]]:
    """Weights that are refitted together, in order: none behind another, unless there would be too many steps."""
    stride = -(-len(set(levels.values())) // _MOST_STEPS) if levels else 1
    for start in range(0, max(levels.values(), default=-1) + 1, stride):
        names = [name for name, level in levels.items() if start <= level < start + stride]
        if names:
            yield names


def _tasks(
    model: ir.Model, current: ir.Model, groups: ChannelGroups, removed: Mapping[str, Collection[int]]
) -> dict[str, list[_Task]]:
    """By the weight's name, one a block; in ``current``'s shapes, which are the original's."""
    before, now = consumers(model), consumers(current)
    tasks: dict[str, list[_Task]] = {}
    for name, columns in removed_columns(groups, removed, before).items():
        consumer = now[name]
        kept = np.setdiff1d(np.arange(consumer.width, dtype=np.intp), columns)
        if not 0 < kept.size <= WIDEST:
            continue
        bias = bias_of(consumer.layer)
        weights = consumer.rows()[:, kept].T.astype(np.float64)
        if bias is not None:
            offset = np.asarray(tensors.array(bias), np.float64).reshape(1, -1)
            weights = np.concatenate([weights, offset])
        tasks[name] = [
            _Task(before[name], consumer, number, kept, weights[:, consumer.block(number)], bias)
            for number in range(consumer.blocks)
        ]
    return tasks


def _observe(
    relay: Relay, tasks: Sequence[_Task], targets: Sequence[Sequence[NDArray[np.float32]]], final: int
) -> list[tuple[Sums, Sums]]:
    """Sums over the samples to fit on and those held out, of every task."""
    sums = [
        tuple(Sums.empty(task.kept.size, task.outputs, constant=task.bias is not None) for _ in range(2))
        for task in tasks
    ]
    names = list(dict.fromkeys(str(task.current.layer.data.name) for task in tasks))
    shares = [shares_of(each) for each in targets]
    for index, arrays in enumerate(relay.observe(names, final=final)):
        held = is_held_out(index)
        for number, task in enumerate(tasks):
            rows = _patches(arrays[str(task.current.layer.data.name)], task)[:, task.kept]
            sums[number][held].add(rows, targets[number][index], shares[number][index])
    return [(fit, held) for fit, held in sums]


def _targets(model: Model, tasks: Sequence[_Task], evidence: Evidence) -> list[list[NDArray[np.float32]]]:
    """A (rows, outputs) array for each task and sample.

    The original runs to its end before the pruned model starts: the two would observe through the same file.
    """
    found: list[list[NDArray[np.float32]]] = [[] for _ in tasks]
    offsets = [_offset(task.original) for task in tasks]
    outputs = [str(task.original.layer.node.outputs[0].name) for task in tasks]
    for arrays in islice(evidence.observe(model, list(dict.fromkeys(outputs))), MOST_SAMPLES):
        for number, task in enumerate(tasks):
            data = np.moveaxis(np.asarray(arrays[outputs[number]], np.float32), task.original.layer.channel_axis, -1)
            # The same places as those of `gram.patches`: both number them batch first, then along the map.
            rows = gram.thinned(data.reshape(-1, data.shape[-1])) + offsets[number]
            found[number].append(rows[:, task.original.block(task.block)])
    return found


def _patches(data: NDArray[np.generic], task: _Task) -> NDArray[np.float32]:
    rows = task.current.patches(np.asarray(data, np.float32), task.block)
    if not np.isfinite(rows).all():
        raise PassFailed(
            f"tensor {task.current.layer.data.name!r} is not finite in a calibration sample",
            hint="Check the calibration data.",
        )
    return rows


def _offset(consumer: Consumer) -> NDArray[np.float32]:
    """What is still added to the layer's output: the bias behind a MatMul."""
    bias = bias_of(consumer.layer) if consumer.layer.node.op_type == "MatMul" else None
    return np.zeros(1, np.float32) if bias is None else np.asarray(tensors.array(bias), np.float32).reshape(-1)


def _write(task: _Task, weights: NDArray[np.float64]) -> None:
    """Put a block's new weights in the place of its old ones; the columns that go stay zero."""
    own = task.current.block(task.block)
    rows = np.array(task.current.rows())
    rows[own] = 0.0
    rows[own, task.kept] = weights[: task.kept.size].T
    edit.set_constant(task.current.layer.weight, task.current.as_weight(rows))
    if task.bias is not None:
        old = np.asarray(tensors.array(task.bias))
        new = np.array(old, np.float32).reshape(-1)
        new[own] = weights[-1]
        edit.set_constant(task.bias, new.reshape(old.shape))
