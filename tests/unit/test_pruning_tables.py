"""The tables of pruning in docs/results.md and the command above each: it prints that very table. Nothing is pruned here."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))  # the benchmarks are scripts, which import what lies beside them

from benchmarks.pruning import published, table  # noqa: E402
from benchmarks.pruning.questions import Question  # noqa: E402

RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def row(question: Question, **numbers: float) -> dict[str, Any]:
    return {"question": asdict(question), "numbers": numbers, "notes": {}, "failure": ""}


@pytest.mark.parametrize("name", sorted(published.TABLES))
def test_command_above_a_table_prints_its_columns_and_rows(name: str) -> None:
    wanted = published.TABLES[name]
    printed = table.pivoted(wanted, [], wanted.samples).splitlines()
    behind = RESULTS.split(f"--as-published {name}\n")[1].splitlines()
    shown = [line for line in behind[: 3 + len(printed)] if line.startswith("|")]
    assert shown[:2] == printed[2:4]
    place = 2 if printed[2].startswith("| removed | multiply-adds |") else 1
    leads = [[line.split(" | ")[at].strip("| †") for at in (0, place)] for line in shown[2:]]
    assert leads == [[line.split(" | ")[at].strip("| ") for at in (0, place)] for line in printed[4:]]


def test_numbers_stand_in_the_column_of_the_way_that_they_came_about() -> None:
    wanted = published.TABLES["digits"]
    removed, refitted = list(wanted.questions(180))[:2]
    assert (removed.method, refitted.method) == ("removed", "refitted")
    rows = [row(removed, divergence=0.5, accuracy=0.75, multiply_adds=0.84), row(refitted, divergence=0.125)]
    line = table.pivoted(wanted, rows, 180).splitlines()[4]
    assert line == "| 10% | 0.84 | obs | 0.500 | 0.1250 |  |  | 0.7500 |  |  |"


def test_table_of_fewer_samples_says_so_and_takes_no_row_of_other_samples() -> None:
    wanted = published.TABLES["efficientnet"]
    (question, *_) = wanted.questions(500)
    printed = table.pivoted(wanted, [row(question, divergence=0.5)], 128)
    assert "128 unlabelled samples, where the published table had 500" in printed
    assert "0.500" not in printed


def test_candidates_of_other_samples_scopes_and_multiples_have_other_files() -> None:
    (question, *_) = published.TABLES["digits"].questions(180)
    others = [{"samples": 90}, {"scope": "global"}, {"largest": 16}, {"steps": 25}, {"ratio": 0.2}]
    assert len({Question(**{**asdict(question), **other}).key for other in ({}, *others)}) == 1 + len(others)
