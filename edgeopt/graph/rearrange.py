"""Weights that are cut and joined before anybody reads them: computed once, where that costs no bytes.

Stands under clean-up. PyTorch exports an LSTM's weights in its own order of gates, with four Slices and a Concat behind them. The optimizer folds
node by node and sees each Slice as a copy; taken together they are the weight itself in another order. Only then is it a constant that
quantization can find.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph import edit, tensors

_MOVERS = frozenset({"Concat", "Slice", "Unsqueeze", "Squeeze", "Transpose", "Reshape", "Identity", "Flatten"})


@dataclass(slots=True)
class _Island:
    """Nodes that move constants and are joined by what they read, in graph order."""

    nodes: list[ir.Node] = field(default_factory=list)
    sources: set[ir.Value] = field(default_factory=set)


def fold_rearranged(model: ir.Model) -> int:
    """Replace every group of such nodes whose results are no larger than what it frees, in place; returns how many."""
    names, folded = edit.fresh_names(model), 0
    for graph in list(model.graphs()):
        for island in _islands(graph):
            results = _results(island, model.opset_imports)
            if results is None or sum(data.nbytes for data in results.values()) > _freed_bytes(island):
                continue
            for value, data in results.items():
                constant = edit.add_initializer(model.graph, names.fresh(f"{value.name}_folded"), data)
                value.replace_all_uses_with(constant)
            folded += 1
    return folded


def _islands(graph: ir.Graph) -> list[_Island]:
    """The groups of one graph. Small constants (axes, ends of slices) are shared by many and join nothing."""
    of_value: dict[ir.Value, _Island] = {}
    islands: list[_Island] = []
    for node in graph:
        if not _moves_constants(node, of_value):
            continue
        own = _Island([node])
        for value in node.inputs:
            tensor = tensors.constant(value)
            if value is None or (tensor is not None and tensor.nbytes <= edit.SMALL_BYTES):
                continue
            met = of_value.get(value)
            if tensor is not None:
                own.sources.add(value)
            if met is not None and met is not own:
                own = _joined(met, own, of_value, islands)
        islands.append(own)
        of_value.update(dict.fromkeys((*own.sources, node.outputs[0]), own))
    return islands


def _joined(met: _Island, own: _Island, of_value: dict[ir.Value, _Island], islands: list[_Island]) -> _Island:
    joined = _Island([*met.nodes, *own.nodes], met.sources | own.sources)
    of_value.update((value, joined) for value, island in list(of_value.items()) if island is met)
    if met in islands:
        islands.remove(met)
    return joined


def _moves_constants(node: ir.Node, of_value: dict[ir.Value, _Island]) -> bool:
    if node.op_type not in _MOVERS or node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
        return False
    given = [value for value in node.inputs if value is not None]
    return bool(given) and all(_is_moved(value, of_value) or tensors.constant(value) is not None for value in given)


def _is_moved(value: ir.Value, of_value: dict[ir.Value, _Island]) -> bool:
    """Whether ``value`` is the result of a node of an island."""
    island = of_value.get(value)
    return island is not None and value not in island.sources


def _results(island: _Island, opsets: dict[str, int]) -> dict[ir.Value, NDArray[Any]] | None:
    """What others read of the island; None where it holds other types than float32, or is an output of the model."""
    inside, found = set(island.nodes), {}
    sources = [tensors.constant(value) for value in island.sources]
    if not sources or any(tensor is None or tensor.dtype != ir.DataType.FLOAT for tensor in sources):
        return None
    known: dict[ir.Value, NDArray[Any]] = {}
    for node in island.nodes:
        output = node.outputs[0]
        if output.is_graph_output():
            return None
        known[output] = _computed(node, known, opsets)
        if any(use.node not in inside for use in output.uses()):
            found[output] = known[output]
    return found


def _computed(node: ir.Node, known: dict[ir.Value, NDArray[Any]], opsets: dict[str, int]) -> NDArray[Any]:
    from onnx.reference import ReferenceEvaluator

    feeds = {
        str(value.name): known[value] if value in known else tensors.array(value)
        for value in node.inputs
        if value is not None
    }
    results = ReferenceEvaluator(ir.to_proto(node), opsets=dict(opsets)).run(None, feeds)
    return np.asarray(next(iter(results)))


def _freed_bytes(island: _Island) -> int:
    """Bytes of the constants that nobody else reads."""
    inside = set(island.nodes)
    alone = [value for value in island.sources if all(use.node in inside for use in value.uses())]
    return sum(tensor.nbytes for value in alone if (tensor := tensors.constant(value)) is not None)
