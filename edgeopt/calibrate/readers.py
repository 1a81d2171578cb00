"""Whose loss says what a unit is worth: the readers of each family that a criterion understands.

Stands between ``consumers`` and ``importance``. ``variance`` and ``obs`` add up what a unit's readers lose, so they judge a family only where they understand all of
them: an LSTM's own recurrence left out, its units would look cheaper than they are. ``entropy`` and ``apoz`` look at the unit itself, and any reader shows it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.calibrate.consumers import Consumer, consumers, is_read, of_family
from edgeopt.graph import edit
from edgeopt.graph.groups import Family, Slot

SUMMED = ("variance", "obs")
"""Criteria that add up what readers lose."""
SEEN = ("entropy", "apoz")
"""Criteria that look at what readers read."""
WIDEST = 4608
"""Columns of a weight above which its covariance is not inverted."""


def by_family(model: ir.Model, families: Sequence[Family], criterion: str) -> dict[str, list[tuple[Consumer, Slot]]]:
    """By the family's name: who reads it and where; families that the criterion does not judge are missing."""
    known = _known(model, criterion)
    pairs = {family.name: of_family(family, known) for family in families}
    if criterion in SUMMED:
        pairs = {family.name: pairs[family.name] for family in families if not _others(family, known)}
    return {name: each for name, each in pairs.items() if each}


def unjudged(model: ir.Model, family: Family, criterion: str) -> str:
    """Why ``criterion`` has no scores for ``family``, in half a sentence; empty where it has, or where readers are not what it goes by."""
    if criterion not in (*SUMMED, *SEEN):
        return ""
    known = _known(model, criterion)
    others = _others(family, known)
    if not others or (criterion in SEEN and of_family(family, known)):
        return ""
    name = others[0].constant
    kinds = {node.op_type for node in edit.nodes(model) for value in node.inputs if value and value.name == name}
    width = f" of at most {WIDEST} columns" if criterion == "obs" else ""
    return (
        f"{name} ({', '.join(sorted(kinds)) or 'behind other nodes'}) reads it, and {criterion} judges only weights{width} that one Conv, Gemm, MatMul or "
        "ConvTranspose without groups of the main graph has to itself"
    )


def _known(model: ir.Model, criterion: str) -> dict[str, Consumer]:
    widest = WIDEST if criterion == "obs" else np.inf
    return {name: consumer for name, consumer in consumers(model).items() if consumer.width <= widest}


def _others(family: Family, known: dict[str, Consumer]) -> list[Slot]:
    """Where units are read by who is not known."""
    return [slot for slot in family.slots if slot.role == "consumer" and not is_read(slot, known)]
