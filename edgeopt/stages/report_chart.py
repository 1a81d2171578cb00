"""The report's picture: every measured candidate as a point, its gain against its quality drop.

Part of the report page. In: the manifest and the candidates' states. Out: positions in a fixed drawing space that the
template turns into an inline SVG; no colours and no markup here. The drop is drawn at its 95 % bound, since that is
what is held against the budget; what lies far beyond the budget is drawn at the upper edge, so that one broken
candidate does not squeeze the others into a line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

Json: TypeAlias = Mapping[str, Any]

OBJECTIVES = {
    "latency": "times as fast as the original",
    "size": "times smaller than the original",
    "memory": "times less memory than the original",
}

WIDTH, HEIGHT = 640.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 624.0, 32.0, 272.0
_BUDGETS_SHOWN = 2.5
_LABEL_HEIGHT = 14.0
_LABEL_WIDTH = 18.0
_LABEL_ABOVE = 11.0
_TICKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One candidate; ``low`` and ``high`` are the ends of its gain's interval, all in drawing units."""

    number: int
    state: str
    x: float
    y: float
    low: float
    high: float
    label_y: float
    beyond: bool
    """The drop lies above the shown range."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    budget_y: float
    budget: str
    least_x: float | None
    """Where the least gain that wins lies; None where it is outside of the picture."""
    axis: str


@dataclass(frozen=True, slots=True)
class _Scale:
    """A linear map from ``low..high`` to ``start..end``, clamped."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def chart(manifest: Json, states: Sequence[str]) -> Chart | None:
    """The picture of all candidates with a gain and a drop; None where fewer than two have both."""
    goal = manifest.get("goal") or {}
    objective = goal.get("objective") if goal.get("objective") in OBJECTIVES else "latency"
    seen = []
    for number, (candidate, state) in enumerate(zip(manifest.get("candidates", ()), states, strict=True), start=1):
        result = candidate.get("result") or {}
        reached = gain(result, manifest.get("baseline") or {}, str(objective))
        bound = ((result.get("quality") or {}).get("ci95") or (None, None))[1]
        if reached is not None and bound is not None:
            seen.append((number, state, reached, float(bound)))
    if len(seen) < 2:
        return None
    budget = float(goal.get("max_drop") or 0.01)
    x = _gain_scale([reached for _, _, reached, _ in seen])
    y = _Scale(0.0, max(budget, 1e-6) * _BUDGETS_SHOWN, BOTTOM, TOP)
    points = [_point(number, state, (reached, bound), (x, y)) for number, state, reached, bound in seen]
    least = goal.get("min_speedup")
    return Chart(
        points=tuple(_spread(points)),
        x_ticks=tuple(Tick(at=x(value), text=f"{value:g}") for value in _steps(x.low, x.high)),
        y_ticks=tuple(Tick(at=y(value), text=f"{value * 100:.3g} %") for value in _steps(y.low, y.high)),
        budget_y=y(budget),
        budget=f"{budget * 100:.3g} %",
        least_x=x(least) if least and x.low < least < x.high else None,
        axis=OBJECTIVES[str(objective)],
    )


def gain(result: Json, baseline: Json, objective: str) -> tuple[float, float, float] | None:
    """The objective's gain over the original as value, low and high; size and memory have no interval of their own."""
    if objective == "latency":
        speedup = result.get("speedup") or {}
        interval = speedup.get("ci95")
        return (speedup["value"], interval[0], interval[1]) if interval else None
    if objective == "size":
        ratio = result.get("bytes_ratio")
    else:
        before, after = baseline.get("peak_memory_bytes"), result.get("peak_memory_bytes")
        ratio = before / after if before and after else None
    return (ratio, ratio, ratio) if ratio else None


def _gain_scale(gains: Sequence[tuple[float, float, float]]) -> _Scale:
    low, high = min(1.0, *(reached[1] for reached in gains)), max(1.0, *(reached[2] for reached in gains))
    margin = max(0.05, (high - low) * 0.08)
    return _Scale(max(0.0, low - margin), high + margin, LEFT, RIGHT)


def _point(
    number: int, state: str, values: tuple[tuple[float, float, float], float], scales: tuple[_Scale, _Scale]
) -> Point:
    (value, low, high), bound = values
    x, y = scales
    return Point(
        number=number,
        state=state,
        x=x(value),
        y=y(bound),
        low=x(low),
        high=x(high),
        label_y=y(bound),
        beyond=bound > y.high,
        text=f"candidate {number}: {value:.2f} ({low:.2f} to {high:.2f}), drop at most {max(bound, 0.0) * 100:.4f} %",
    )


def _spread(points: Sequence[Point]) -> list[Point]:
    """The same points with their labels moved apart where they would lie on each other."""
    placed: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.y, point.x)):
        label_y = point.y - _LABEL_ABOVE
        while any(
            abs(label_y - other.label_y) < _LABEL_HEIGHT and abs(point.x - other.x) < _LABEL_WIDTH for other in placed
        ):
            label_y -= _LABEL_HEIGHT
        placed.append(replace(point, label_y=max(_LABEL_HEIGHT, label_y)))
    # what comes last is drawn on top
    return sorted(placed, key=lambda point: (point.state == "winner", point.number))


def _steps(low: float, high: float) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from ``low`` to ``high``."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]
