"""Fresh names: unique in the whole model, and the same ones every time.

ONNX scopes names by graph, but a name in a subgraph shadows the outer one, so the safe rule is one name once in the model.
"""

from __future__ import annotations

import onnx_ir as ir


class Names:
    """The names taken in a model; hands out new ones."""

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str] = set()
        for graph in model.graphs():
            values = [*graph.inputs, *graph.initializers.values()]
            for node in graph:
                values.extend(node.outputs)
                self._taken.add(node.name or "")
            self._taken.update(value.name or "" for value in values)

    def fresh(self, base: str) -> str:
        """``base`` where it is free, else ``base_1``, ``base_2`` and so on."""
        name, number = base, 0
        while not name or name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        return name
