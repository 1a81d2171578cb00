"""The results as Markdown: every row of a model, or pivoted as docs/results.md has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .published import Column, Published
from .questions import Question

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
        asked = Question(**row["question"])
        method = asked.method + (f", {asked.steps} steps" if asked.steps else "")
        cells = [_cell(row, key, form) for key, _, form in columns]
        if row["failure"]:
            cells = [row["failure"], *[""] * (len(columns) - 1)]
        lines.append(f"| {asked.ratio:.0%} | {asked.chooser} | {method} | " + " | ".join(cells) + " |")
    return f"### {name}\n\n" + "\n".join(lines)


def pivoted(published: Published, rows: Sequence[dict[str, Any]], available: int) -> str:
    """``rows`` as the published table has them: a line a choice of units, a column a number of one way to recover.

    Where a candidate was not made or could not be, its cells stay empty. What is the same for all ways comes from the first one made. ``available``: samples that this corpus has.
    """
    known = {Question(**row["question"]).key: row for row in rows}
    lines: dict[tuple[str, str], dict[tuple[str, int], dict[str, Any]]] = {}
    for question in sorted(published.questions(available), key=lambda question: question.ratio):
        made = lines.setdefault((f"{question.ratio:.0%}", question.chooser), {})
        if question.key in known:
            made[question.method, question.steps] = known[question.key]
    leading, rest = (published.columns[:1], published.columns[1:]) if not published.columns[0].method else ((), None)
    rest = published.columns if rest is None else rest
    titles = ["removed", *(column.title for column in leading), "criterion", *(column.title for column in rest)]
    table = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for (share, chooser), made in lines.items():
        cells = [share, *(_pick(made, each) for each in leading), chooser, *(_pick(made, each) for each in rest)]
        table.append("| " + " | ".join(cells) + " |")
    samples = min(published.samples, available)
    fewer = f", where the published table had {published.samples}" if samples < published.samples else ""
    return f"### {published.model}: {samples} unlabelled samples{fewer}\n\n" + "\n".join(table)


def _pick(made: dict[tuple[str, int], dict[str, Any]], column: Column) -> str:
    if column.method:
        row = made.get((column.method, column.steps))
        return _cell(row, column.number, column.form) if row is not None else ""
    return next((cell for row in made.values() if (cell := _cell(row, column.number, column.form))), "")


def _order(row: dict[str, Any]) -> Any:
    asked = Question(**row["question"])
    return (
        asked.ratio,
        asked.chooser,
        asked.method.startswith("distilled"),
        asked.method != "removed",
        asked.steps,
        asked.key,
    )


def _cell(row: dict[str, Any], key: str, form: str) -> str:
    value = row["numbers"].get(key)
    return "" if value is None else format(value, form)
