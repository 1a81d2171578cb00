"""How much of a model is looked at, counted before any library expands it.

In: a parsed, unchecked ModelProto. Out: nothing, or the reason why it is too much. Expansion is what makes small files
large: 25 functions that each call the one before twice are 1.6 KB and 33 million nodes, and neither onnx's checker nor
its shape inference guards against doubling (they do against cycles). So functions are counted here, each once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeAlias

from edgeopt.errors import NotAModel, TooLarge, UnsupportedModel
from edgeopt.graph import walk

if TYPE_CHECKING:
    import onnx

    from edgeopt.graph.walk import Body

Key: TypeAlias = tuple[str, str, str]
"""Domain, name and overload of a function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphLimits:
    """Caps on what is loaded. The figures leave the largest models of an edge device a factor of ten."""

    model_bytes: int = 4 << 30
    """The model file and its external data, together."""
    nodes: int = 100_000
    """After expansion of functions; ONNX Runtime needs over 25 s to load a chain of twice as many."""
    tensors: int = 200_000
    depth: int = 16
    """Nesting of If, Loop and Scan."""
    inference_s: float = 20.0
    """Time that shape inference may take."""


def check_size(model: onnx.ModelProto, limits: GraphLimits) -> None:
    """Raise :class:`~edgeopt.errors.TooLarge` or :class:`~edgeopt.errors.UnsupportedModel` where a cap is exceeded."""
    _check_depth(model, limits)
    _check_text(model)
    total = expanded_nodes(model)
    if total > limits.nodes:
        raise TooLarge(
            f"the model expands to {_count(total)} nodes, more than {limits.nodes:,}",
            hint="Export the model with loops kept as Loop or Scan instead of unrolled.",
        )
    tensors = sum(1 for _ in walk.tensors(model))
    if tensors > limits.tensors:
        raise TooLarge(
            f"the model holds {tensors:,} tensors, more than {limits.tensors:,}",
            hint="Export the model with its weights in fewer, larger tensors.",
        )
    for sparse in walk.sparse_tensors(model):
        elements = prod(sparse.dims)
        if min(sparse.dims, default=1) < 0 or elements > limits.model_bytes // 4:
            raise TooLarge(
                f"the sparse tensor {sparse.values.name!r} becomes {list(sparse.dims)} when it is made dense",
                hint="Store the weight densely, or raise limits.model_bytes.",
            )


def expanded_nodes(model: onnx.ModelProto) -> int:
    """Nodes of the model once every call of a local function is replaced by its body; exact, however large.

    Raises :class:`~edgeopt.errors.UnsupportedModel` where functions call each other in a circle.
    """
    functions: dict[Key, onnx.FunctionProto] = {
        (function.domain, function.name, function.overload): function for function in model.functions
    }
    sizes: dict[Key, int] = {}
    for key in _callees_first(functions):
        sizes[key] = _size(functions[key], sizes)
    return _size(model.graph, sizes)


def _callees_first(functions: dict[Key, onnx.FunctionProto]) -> Iterator[Key]:
    """Functions in an order in which each comes behind those that it calls; depth first with an explicit stack."""
    calls = {key: sorted(set(_called(function)) & set(functions)) for key, function in functions.items()}
    done: set[Key] = set()
    for start in functions:
        path: dict[Key, Iterator[Key]] = {} if start in done else {start: iter(calls[start])}
        while path:
            key = next(reversed(path))
            callee = next((name for name in path[key] if name not in done), None)
            if callee is None:
                del path[key]
                done.add(key)
                yield key
            elif callee in path:
                raise UnsupportedModel(
                    f"the function {callee[1]!r} of domain {callee[0]!r} calls itself",
                    hint="Export the model without recursive functions; ONNX forbids them.",
                )
            else:
                path[callee] = iter(calls[callee])


def _called(body: Body) -> Iterator[Key]:
    for place in walk.bodies(body):
        for node in place.body.node:
            yield node.domain, node.op_type, node.overload


def _size(body: Body, sizes: dict[Key, int]) -> int:
    return sum(1 + sizes.get(key, 0) for key in _called(body))


def _check_depth(model: onnx.ModelProto, limits: GraphLimits) -> None:
    deepest = max(place.depth for root in walk.roots(model) for place in walk.bodies(root))
    if deepest > limits.depth:
        raise UnsupportedModel(
            f"If, Loop and Scan are nested {deepest} deep, more than {limits.depth}",
            hint="Export the model with flatter control flow.",
        )


def _check_text(model: onnx.ModelProto) -> None:
    strange = next((name for name in walk.identifiers(model) if isinstance(name, bytes)), None)
    if strange is not None:
        raise NotAModel(f"the name {strange[:60]!r} in the graph is not UTF-8", hint="Export or copy the model again.")


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**12 else f"over 10^{len(str(number)) - 1}"
