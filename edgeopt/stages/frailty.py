"""How much each family of channels can give up, for people: what the search for pruning measured, as rows of the manifest and the report.

Stands beside ``pruning``, whose shares come in. What a removal does to its readers is told at a tenth, three tenths and half of the family's units, by the second-order criterion: the share of their outputs'
variance that no refit brings back, summed over the readers. It is local damage: what it means for the model's answers is what candidates are measured for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt.stages import report_words as words
from edgeopt.stages.allotment import Share

RATIOS = (0.1, 0.3, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frail:
    """A row of the report's table; ``damages`` are texts for a tenth, three tenths and half of the family's units."""

    name: str
    units: int
    cost: str
    damages: tuple[str, ...]


def rows(shares: Iterable[Share], whole: float) -> list[dict[str, Any]]:
    """One row a family: ``name``, ``units``, ``cost_ratio`` (of ``whole``, which all layers cost; a layer counts for the family it reads and for the one it makes), ``damage``.

    ``damage`` is a list of ``{ratio, removed, damage}``: counts go in blocks, so ``removed`` is the nearest one that does; where the ranking did not go so far the entry is missing.
    """
    return [
        {
            "name": share.name,
            "units": share.units,
            "cost_ratio": _rounded(share.cost / whole) if whole > 0 else 0.0,
            "damage": [entry for ratio in RATIOS if (entry := _damage(share, ratio)) is not None],
        }
        for share in shares
    ]


def table(manifest: Mapping[str, Any]) -> list[Frail]:
    """The report's rows, out of those of the manifest; none where pruning was not searched for."""
    return [
        Frail(
            name=str(row["name"]),
            units=int(row["units"]),
            cost=words.percent(row["cost_ratio"]),
            damages=tuple(_told(row["damage"], ratio) for ratio in RATIOS),
        )
        for row in words.dig(manifest, "pruning", "families") or ()
    ]


def _told(entries: Sequence[Mapping[str, Any]], ratio: float) -> str:
    entry = next((entry for entry in entries if entry["ratio"] == ratio), None)
    return words.NOT_MEASURED if entry is None else f"{words.percent(entry['damage'])} ({entry['removed']} gone)"


def _damage(share: Share, ratio: float) -> dict[str, Any] | None:
    steps = max(1, round(ratio * share.units / share.step))
    if steps > len(share.damages):
        return None
    return {"ratio": ratio, "removed": steps * share.step, "damage": _rounded(share.damages[steps - 1])}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
