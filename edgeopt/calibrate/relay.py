"""Runs over the samples that go on where the last one stopped: for a model that is changed from front to back.

Stands under ``reconstruct``. Refitting visits layer after layer, and each visit reads what the layer gets from a model that is final up to there. Instead of running
all of it again, the values that cross a cut in front of the first layer that is not final are kept for every sample, and the next run starts from them. What is kept
stays below ``MOST_BYTES``; where it would not, or where lengths differ from sample to sample, or with control flow, runs start from the model's inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeopt.graph import edit
from edgeopt.graph.groups import Shapes
from edgeopt.protocols import Evidence

if TYPE_CHECKING:
    from edgeopt.protocols import Array, Model

MOST_BYTES = 128 << 20
"""Of kept values, twice for the moment in which the next ones are made."""
_ITEM_BYTES = 4


class Relay:
    """One model, run over at most ``samples`` of the evidence's samples again and again while its weights change."""

    def __init__(self, model: Model, shapes: Shapes, evidence: Evidence, *, samples: int) -> None:
        self._model, self._evidence = model, evidence
        self._samples = min(samples, evidence.sample_count)
        self._nodes = list(model.graph)
        self._crossing_bytes = _crossing_bytes(model, self._nodes, shapes)
        self._cut: tuple[str, ...] = ()
        self._at = 0
        self._rows: list[dict[str, Array]] = []

    def observe(self, names: Sequence[str], *, final: int) -> Iterator[dict[str, Array]]:
        """The named tensors of each sample, in order. Nodes before the position ``final`` will not change any more.

        Read to its end, it leaves the values from which the next run starts.
        """
        cut, at = self._next_cut(final)
        wanted = list(dict.fromkeys([*names, *cut]))
        rows: list[dict[str, Array]] = []
        for arrays in self._run(wanted):
            if cut:
                rows.append({name: np.array(arrays[name]) for name in cut})
            yield {name: arrays[name] for name in names}
        if cut:
            self._cut, self._at, self._rows = cut, at, rows

    def positions(self, weights: Iterable[str]) -> dict[str, int]:
        """For each named constant the position of the first node that reads it."""
        wanted, found = frozenset(weights), dict[str, int]()
        for position, node in enumerate(self._nodes):
            for value in node.inputs:
                if value is not None and value.name in wanted:
                    found.setdefault(str(value.name), position)
        return found

    def _run(self, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        if not self._cut:
            yield from islice(self._evidence.observe(self._model, names), self._samples)
            return
        made = [name for name in names if name not in self._cut]
        if not made:
            yield from self._rows
            return
        rest = _from_cut(self._model, self._rows[0], made)
        read = [str(value.name) for value in rest.graph.inputs]
        feeds = ({name: row[name] for name in read} for row in self._rows)
        for row, seen in zip(self._rows, self._evidence.run(rest, feeds, made), strict=True):
            yield row | seen

    def _next_cut(self, final: int) -> tuple[tuple[str, ...], int]:
        """What crosses the latest place, at ``final`` at most, where that is little enough; nothing where there is no later one."""
        for at in range(final, self._at, -1):
            if 0 < self._crossing_bytes[at] * self._samples <= MOST_BYTES:
                return self._crossing(at), at
        return (), self._at

    def _crossing(self, at: int) -> tuple[str, ...]:
        """Values made before the node at position ``at`` and read there or later, the graph's inputs included."""
        made = _made(self._model, self._nodes)
        read = (value for node in self._nodes[at:] for value in node.inputs if value is not None)
        return tuple(dict.fromkeys(str(value.name) for value in read if made.get(value, at) < at))


def _made(model: Model, nodes: Sequence[ir.Node]) -> dict[ir.Value, int]:
    """The position of the node that makes each value; -1 for what the caller feeds. Constants are not made."""
    found = dict.fromkeys(edit.required_inputs(model), -1)
    found.update((value, at) for at, node in enumerate(nodes) if node.op_type != "Constant" for value in node.outputs)
    return found


def _crossing_bytes(model: Model, nodes: Sequence[ir.Node], shapes: Shapes) -> list[float]:
    """For each position the bytes that one sample's values have there; infinite where a length is not always the same."""
    made = _made(model, nodes)
    last = {value: at for at, node in enumerate(nodes) for value in node.inputs if value in made}
    found = np.zeros(len(nodes) + 1)
    for value, end in last.items():
        sides = shapes.get(str(value.name), (None,))
        whole = [side for side in sides if side is not None]
        found[made[value] + 1 : end + 1] += prod(whole) * _ITEM_BYTES if len(whole) == len(sides) else np.inf
    if any(graph is not model.graph for graph in model.graphs()):
        found[:] = np.inf  # bodies read what lies outside without naming it among their node's inputs
    return found.tolist()


def _from_cut(model: Model, row: dict[str, Array], names: Sequence[str]) -> ir.Model:
    """A copy that gives ``names`` from the values in ``row``."""
    own = edit.copy(model)
    made = {str(value.name): value for node in own.graph for value in node.outputs}
    given = {str(value.name): value for value in own.graph.inputs}
    inputs = [given[name] for name in row if name in given]
    for name, array in row.items():
        if name in given:
            continue
        kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        start = ir.Value(name=name, type=kind, shape=ir.Shape(array.shape))
        made[name].name = f"{name}_before_the_cut"
        made[name].replace_all_uses_with(start, replace_graph_outputs=True)
        inputs.append(start)
    own.graph.outputs.clear()
    own.graph.outputs.extend(made[name] for name in names)
    own.graph.inputs.clear()
    own.graph.inputs.extend(inputs)
    edit.prune(own)
    return own
