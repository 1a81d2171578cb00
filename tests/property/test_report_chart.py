"""Whatever was measured, the report's picture stays inside its frame."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from edgeopt.stages import report_chart

gains = st.floats(min_value=0.01, max_value=1000.0)
bounds = st.floats(min_value=-1.0, max_value=1e9)


@given(st.lists(st.tuples(gains, bounds), min_size=2, max_size=30), st.floats(min_value=1e-9, max_value=1.0))
def test_every_point_and_tick_lies_inside_the_frame(seen: list[tuple[float, float]], budget: float) -> None:
    candidates = [
        {
            "recipe": [],
            "result": {
                "speedup": {"value": gain, "ci95": [gain * 0.9, gain * 1.1]},
                "quality": {"ci95": [min(bound, 0.0), bound]},
            },
        }
        for gain, bound in seen
    ]
    chart = report_chart.chart({"candidates": candidates, "goal": {"max_drop": budget}}, ["allowed"] * len(seen))
    assert chart is not None
    assert len(chart.points) == len(seen)
    for point in chart.points:
        assert report_chart.LEFT <= point.low <= point.x <= point.high <= report_chart.RIGHT
        assert report_chart.TOP <= point.y <= report_chart.BOTTOM
        assert 0 < point.label_y <= report_chart.BOTTOM
    assert 2 <= len(chart.x_ticks) <= 12
    assert 2 <= len(chart.y_ticks) <= 12
    assert all(report_chart.LEFT <= tick.at <= report_chart.RIGHT and math.isfinite(tick.at) for tick in chart.x_ticks)
