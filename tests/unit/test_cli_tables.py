from __future__ import annotations

import io
from typing import Any

import pytest

from edgeopt.cli import tables

QUALITY = {"kind": "accuracy", "metric": "accuracy", "value": 0.98, "drop": 0.002, "ci95": [0.0, 0.006], "samples": 540}
FAST = {
    "speedup": {"value": 1.8, "ci95": [1.7, 1.9]},
    "latency_ms": {"p50": 0.05, "p90": 0.06, "p99": 0.07},
    "bytes": 80_000,
    "bytes_ratio": 3.6,
    "quality": QUALITY,
}


def manifest(*, winner: list[dict[str, Any]], candidates: list[dict[str, Any]]) -> dict[str, Any]:
    baseline = {"latency_ms": {"p50": 0.09, "p90": 0.1, "p99": 0.2}, "bytes": 288_401, "quality": QUALITY}
    return {"recipe": winner, "baseline": baseline, "candidates": candidates}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_winner_is_marked_and_refusals_keep_their_reason() -> None:
    winning = [{"technique": "tidy"}, {"technique": "quantize_static", "method": "mse", "per_channel": True}]
    refused = {"recipe": [{"technique": "cast_fp16", "mode": "full"}], "refused": "no fp16 arithmetic here"}
    rows = tables.candidate_rows(
        manifest(winner=winning, candidates=[{"recipe": []}, refused, {"recipe": winning, "result": FAST}])
    )
    assert [row[0] for row in rows] == [
        "original",
        "cast_fp16",
        "tidy + quantize_static",
    ]
    assert rows[0][-1] == "the original"
    assert rows[1][1:] == ("-", "-", "-", "-", "refused: no fp16 arithmetic here")
    assert rows[2][1:] == (
        "0.050",
        "1.80 [1.70, 1.90]",
        "78.1 KiB",
        "accuracy 0.9800, drop 0.0020 [0.0000, 0.0060]",
        "winner",
    )


def test_only_settings_that_tell_candidates_apart_are_shown() -> None:
    recipes = [
        [{"technique": "tidy"}, {"technique": "quantize_static", "method": method, "per_channel": True}]
        for method in ("mse", "entropy")
    ]
    rows = tables.candidate_rows(manifest(winner=recipes[1], candidates=[{"recipe": each} for each in recipes]))
    assert [row[0] for row in rows[1:]] == [
        "tidy + quantize_static(method=mse)",
        "tidy + quantize_static(method=entropy)",
    ]
    assert [row[-1] for row in rows[1:]] == ["not chosen", "winner"]
    assert tables.label(recipes[0]) == "tidy + quantize_static(method=mse, per_channel=True)"


def test_original_is_the_winner_where_the_recipe_is_empty() -> None:
    rows = tables.candidate_rows(manifest(winner=[], candidates=[{"recipe": [{"technique": "tidy"}], "result": FAST}]))
    assert [row[-1] for row in rows] == ["winner", "not chosen"]


def test_measured_but_refused_candidate_shows_both() -> None:
    slow = {"recipe": [{"technique": "tidy"}], "result": FAST, "refused": "too slow"}
    rows = tables.candidate_rows(manifest(winner=[], candidates=[slow]))
    assert rows[1][2] == "1.80 [1.70, 1.90]"
    assert rows[1][-1] == "refused: too slow"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (288_401, "282 KiB"), (5 << 20, "5.0 MiB"), (3 << 30, "3.0 GiB")],
)
def test_sizes_read_well(count: int, text: str) -> None:
    assert tables.size(count) == text


def test_without_a_terminal_the_table_holds_no_control_codes() -> None:
    out = io.StringIO()
    tables.draw(("name", "outcome"), [("a\x1b[31mred\nnext", "winner")], to=out)
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().count("\n") == 2


def test_on_a_terminal_a_hostile_name_cannot_act() -> None:
    out = Terminal()
    tables.draw(("name", "outcome"), [("[bold]x\x1b]0;title\x07", "refused: y")], to=out)
    assert "[bold]x" in out.getvalue()
    assert "\x07" not in out.getvalue()
    assert "\x1b]0;" not in out.getvalue()


def test_plain_columns_are_aligned() -> None:
    assert tables.plain(("a", "b"), [("long", "1"), ("s", "22")]) == ["a     b", "long  1", "s     22"]
