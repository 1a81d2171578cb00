"""How many units each family gives up, so that a wanted gain costs the least damage: pure arithmetic.

Stands under ``pruning``. In come families with what all their units cost (seconds or bytes, measured) and how the damage grows with each step of units
removed, out go counts. The gain is taken to be in proportion to the units removed. Greedy over the marginal damage for the cost saved, looking
past single steps to the whole run that is cheapest on average, which is optimal for convex curves and close to it for others (ZipLM allots
by measured latency in the same spirit: E. Kurtic, E. Frantar and D. Alistarh, NeurIPS 2023, arXiv:2302.04089).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One family as the allotment sees it."""

    name: str
    units: int
    step: int
    """Counts are multiples of this."""
    cost: float
    """Seconds or bytes of all its units together."""
    damages: tuple[float, ...]
    """Damage once 1, 2, 3 ... steps of units are gone; never falls."""

    def saved(self, steps: int) -> float:
        """The cost that ``steps`` steps give back."""
        return self.cost * steps * self.step / self.units


def allot(families: Sequence[Share], wanted: float) -> dict[str, int]:
    """Units to remove by family, enough to save ``wanted`` or all that may go; families that give none are left out."""
    taken = {family.name: 0 for family in families}
    saved = 0.0
    while saved < wanted:
        runs = [(family, *_cheapest_run(family, taken[family.name])) for family in families]
        runs = [run for run in runs if run[1] > 0]
        if not runs:
            break
        family, steps, _ = min(runs, key=lambda run: (run[2], run[0].name))
        room = _steps_for(family, wanted - saved, steps)
        saved += family.saved(room)
        taken[family.name] += room
    return {family.name: taken[family.name] * family.step for family in families if taken[family.name]}


def damage(families: Sequence[Share], removed: dict[str, int]) -> float:
    """The sum of the families' damages under ``removed``."""
    return sum(
        family.damages[removed[family.name] // family.step - 1] for family in families if removed.get(family.name)
    )


def _cheapest_run(family: Share, taken: int) -> tuple[int, float]:
    """How many further steps have the least average damage for what they save, and that price; (0, inf) where none is left."""
    if family.cost <= 0:
        return 0, float("inf")
    before = family.damages[taken - 1] if taken else 0.0
    best, price = 0, float("inf")
    for steps in range(1, len(family.damages) - taken + 1):
        once = (family.damages[taken + steps - 1] - before) / family.saved(steps)
        if once < price:
            best, price = steps, once
    return best, price


def _steps_for(family: Share, wanted: float, most: int) -> int:
    """The fewest steps, at least one and at most ``most``, that save ``wanted``."""
    once = family.saved(1)
    return max(1, min(most, int(-(-wanted // once))))
