"""The results as Markdown: a table a model, and how the taught students' quality grows with the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_LABELLED = (
    ("divergence", "KL", ".3f"),
    ("drop", "expected drop", ".4f"),
    ("agreement", "agreement", ".3f"),
    ("sure_agreement", "sure agreement", ".3f"),
    ("accuracy", "accuracy", ".4f"),
    ("cosine", "cosine", ".4f"),
    ("nsr", "noise/signal", ".4f"),
    ("multiply_adds", "multiply-adds", ".2f"),
    ("bytes", "bytes", ".2f"),
    ("latency", "latency", ".2f"),
    ("cpu_seconds", "CPU s to make", ".0f"),
)


def markdown(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """All rows of one model, by share, criterion, method and steps; a candidate that could not be made says why."""
    columns = [column for column in _LABELLED if any(row["numbers"].get(column[0]) is not None for row in rows)]
    lines = [
        "| removed | criterion | method | " + " | ".join(title for _, title, _ in columns) + " |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for row in sorted(rows, key=_order):
        asked = row["question"]
        method = asked["method"] + (f", {asked['steps']} steps" if asked["steps"] else "")
        cells = [_cell(row, key, form) for key, _, form in columns]
        if row["failure"]:
            cells = [row["failure"], *[""] * (len(columns) - 1)]
        lines.append(f"| {asked['ratio']:.0%} | {asked['criterion']} | {method} | " + " | ".join(cells) + " |")
    return f"### {name}\n\n" + "\n".join(lines)


def _order(row: dict[str, Any]) -> Any:
    asked = row["question"]
    return (
        asked["ratio"],
        asked["criterion"],
        asked["method"].startswith("distilled"),
        asked["method"] != "removed",
        asked["steps"],
    )


def _cell(row: dict[str, Any], key: str, form: str) -> str:
    value = row["numbers"].get(key)
    return "" if value is None else format(value, form)
