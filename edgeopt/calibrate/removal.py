"""How many units go, and which: from scores to a set of removed units for each family.

Stands between ``importance`` and ``reconstruct``; also reads the settings of ``passes.prune_channels``. Counts are rounded so that what is left is a multiple of what
the target's kernels work in (:func:`grain`): blocks are computed whole, filled or not. Ranking is local (every family loses its share) or global: scores are
divided by their family's mean, then ranked among families of the same structure (G. Fang et al., "Isomorphic Pruning for Vision Models", ECCV 2024, arXiv:2407.04616),
or, for comparison, among all of the same kind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeopt.calibrate.importance import CRITERIA, Scores
from edgeopt.errors import PassFailed
from edgeopt.graph.groups import Family
from edgeopt.records import Target

Removed = dict[str, tuple[int, ...]]
"""By the family's name: the units that go, ascending."""

_USUAL, _FINEST = 8, 4
_BLOCKS, _FEWEST_BLOCKS = 8, 4
"""A family has so many blocks at least, or its blocks are halved; with the finest, so many."""

SCOPES = ("local", "global", "kind")
DIRECTIONS = ("low", "high")
INNER = "inner"
"""Families setting: heads, neurons and hidden units, and channels that one layer alone makes. Streams that residual blocks add to are left out."""
KINDS = ("channels", "heads", "neurons", "hidden")


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneScheme:
    """The settings, checked by :meth:`check`."""

    criterion: str = "obs"
    ratio: float = 0.1
    removed: str = "{}"
    scope: str = "local"
    multiple: int = 0
    refit: bool = True
    apart: bool = False
    """The refit leaves the samples alone that distillation behind it judges by."""
    direction: str = "low"
    families: str = "all"
    seed: int = 0
    largest: int = 0
    """The largest multiple that is chosen where ``multiple`` does not say; 0: see :meth:`fitted`."""

    def fitted(self, target: Target) -> PruneScheme:
        """The same with multiples that ``target``'s kernels like."""
        return self if self.largest else replace(self, largest=grain(target))

    def check(self) -> None:
        """Raises :class:`~edgeopt.errors.PassFailed` for a value that means nothing."""
        for name, value, known in (
            ("criterion", self.criterion, CRITERIA),
            ("scope", self.scope, SCOPES),
            ("direction", self.direction, DIRECTIONS),
            ("families", self.families, ("all", INNER, *KINDS)),
        ):
            if value not in known:
                raise PassFailed(f"{name} is {value!r}", hint=f"Use one of {', '.join(known)}.")
        if not 0.0 <= self.ratio < 1.0 or self.multiple < 0 or self.largest < 0:
            raise PassFailed(
                f"ratio {self.ratio:g} or multiple {self.multiple} is out of its range",
                hint="Give a ratio from 0 to below 1, and a multiple of 0 (chosen for each family) or more.",
            )

    def counts(self) -> dict[str, int]:
        """The explicit ``removed`` counts; empty where ``ratio`` decides."""
        try:
            counts = json.loads(self.removed)
        except (ValueError, RecursionError) as error:  # brackets in brackets in brackets
            raise PassFailed(f"removed is {self.removed!r:.80}, not JSON", hint=_HINT) from error
        plain = isinstance(counts, dict) and all(type(count) is int and count >= 0 for count in counts.values())
        if not plain:
            raise PassFailed(f"removed is {self.removed!r:.80}, not counts by family", hint=_HINT)
        return dict(counts)


_HINT = 'Give a JSON object such as {"conv1.weight": 8}.'


def grain(target: Target) -> int:
    """Channels that the widest kernels of ``target`` compute at once.

    TensorRT lays int8 out in blocks of 32 channels (float16: of 8); ONNX Runtime's convolutions in blocks of 16 with AVX-512, which is also what its int8 products with
    VNNI make at once (four inputs a dot product); of 8 with AVX2; and of 4 to 8 on ARM.
    """
    if target.name.startswith("tensorrt"):
        return 32
    return 16 if "avx512f" in target.features else 8


def candidates(families: Sequence[Family], scheme: PruneScheme) -> list[Family]:
    """The families that may lose units under ``scheme``; :class:`~edgeopt.errors.PassFailed` where ``removed`` names an unknown one or too many."""
    counts = scheme.counts()
    chosen = [family for family in families if scheme.families in ("all", family.kind) or _is_inner(family, scheme)]
    known = {family.name: family for family in chosen}
    for name, count in counts.items():
        if name not in known or count >= known[name].units:
            units = f"which has {known[name].units} units" if name in known else "which is no prunable family here"
            raise PassFailed(f"removed asks for {count} units of {name!r}, {units}", hint="Remove fewer, or none.")
    return [family for family in chosen if family.units > 1 and (not counts or counts.get(family.name))]


def _is_inner(family: Family, scheme: PruneScheme) -> bool:
    makers = sum(slot.role == "producer" for slot in family.slots)
    return scheme.families == INNER and (family.kind != "channels" or makers == 1)


def depths(families: Sequence[Family], scheme: PruneScheme) -> dict[str, int]:
    """How many units of each family may go at most."""
    counts = scheme.counts()
    if counts or scheme.scope == "local":
        return {f.name: counts.get(f.name, f.units - left(f, scheme, f.units * (1.0 - scheme.ratio))) for f in families}
    return {family.name: family.units - block(family, scheme) for family in families}


def choose(families: Sequence[Family], scores: Mapping[str, Scores], scheme: PruneScheme) -> Removed:
    """The units that go; families without scores, and those that lose nothing, are missing."""
    sign = 1.0 if scheme.direction == "low" else -1.0
    judged = {family.name: family for family in families if family.name in scores}
    ordered = {name: np.argsort(sign * scores[name], kind="stable") for name in judged}
    if scheme.scope != "local" and not scheme.counts():
        counts = _global(list(judged.values()), scores, scheme, sign)
    else:
        counts = depths(list(judged.values()), scheme)
    return {name: tuple(sorted(int(u) for u in ordered[name][:count])) for name, count in counts.items() if count}


def left(family: Family, scheme: PruneScheme, wanted: float) -> int:
    """How many units to leave where ``wanted`` would be right: the nearest multiple, one at least."""
    step = block(family, scheme)
    return min(family.units, max(step, round(wanted / step) * step))


def block(family: Family, scheme: PruneScheme) -> int:
    """What counts left are multiples of; 1 where the family has no more than that."""
    if scheme.multiple:
        return scheme.multiple if scheme.multiple < family.units else 1
    if family.kind == "heads":
        return 1
    step = scheme.largest or _USUAL
    while step > _FINEST and family.units < _BLOCKS * step:
        step //= 2
    return step if family.units >= _FEWEST_BLOCKS * step else 1


def _global(families: list[Family], scores: Mapping[str, Scores], scheme: PruneScheme, sign: float) -> dict[str, int]:
    """Counts by family; every pool loses ``ratio`` of its units, whichever of its families they are in."""
    counts: dict[str, int] = {}
    pools: dict[object, list[Family]] = {}
    for family in families:
        pools.setdefault(structure(family) if scheme.scope == "global" else family.kind, []).append(family)
    for pool in pools.values():
        values = np.concatenate([sign * _relative(scores[family.name]) for family in pool])
        owners = np.concatenate([np.full(family.units, number) for number, family in enumerate(pool)])
        taken = owners[np.argsort(values, kind="stable")[: round(scheme.ratio * len(values))]]
        for number, family in enumerate(pool):
            wanted = family.units - int((taken == number).sum())
            counts[family.name] = family.units - left(family, scheme, wanted)
    return counts


def structure(family: Family) -> tuple[object, ...]:
    """What isomorphic families have in common: their kind, and which operators make, read and follow a unit on which axes.

    Lengths do not count: a narrow bottleneck is built like a wide one, but not like a classifier's neck.
    """
    return family.kind, tuple(sorted((slot.role, slot.axis, slot.operator) for slot in family.slots))


def _relative(values: Scores) -> Scores:
    mean = float(np.mean(values))
    return values / mean if mean > 0 else values
