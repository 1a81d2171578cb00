"""The shapes that a model's values have when it runs: what the dependency analysis of pruning goes by.

Stands between the evidence and ``graph.groups``. Inference gives up behind many exporters' Reshapes and knows nothing of what a Loop makes; running the model over a few
samples tells. A length that differs between samples comes out as None: nothing may be built on it.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.calibrate import instrument
from edgeopt.graph.groups import Shapes
from edgeopt.protocols import Evidence

_SAMPLES = 8
"""Lengths either change within a few samples or are the model's own."""


def observed_shapes(model: ir.Model, evidence: Evidence) -> Shapes:
    """Name of each value of ``model``'s main graph to its lengths over the first samples, None where they differ.

    Empty without samples; ``graph.groups.find`` then goes by what the model declares.
    """
    seen: dict[str, list[int | None]] = {}
    if not evidence.sample_count:
        return seen
    observed, names = instrument.with_shapes(model, _tensors(model))
    for number, arrays in enumerate(evidence.observe(observed, list(names.values())), start=1):
        for name, shape in names.items():
            lengths = [int(length) for length in arrays[shape]]
            seen[name] = _agreed(seen[name], lengths) if name in seen else list(lengths)
        if number == _SAMPLES:
            break
    return seen


def _tensors(model: ir.Model) -> list[str]:
    """The graph's inputs and all that its nodes make, sequences and optional values left out."""
    made = [value for node in model.graph if node.op_type != "Constant" for value in node.outputs]
    values = [*model.graph.inputs, *made]
    return [
        value.name for value in values if value.name and not isinstance(value.type, ir.SequenceType | ir.OptionalType)
    ]


def _agreed(one: list[int | None], other: list[int]) -> list[int | None]:
    """What two samples have in common; another rank leaves the longer one's lengths unknown."""
    if len(one) != len(other):
        return [None] * max(len(one), len(other))
    return [left if left == right else None for left, right in zip(one, other, strict=True)]
