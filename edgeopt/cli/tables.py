"""Tables of the command line: what a manifest says as rows, and rows as text.

A manifest (schema 1, a dict) comes in; out go rows of plain strings and, from those, a drawn table on a terminal or
aligned columns without any control codes elsewhere. Nothing here decides anything: winner and reasons are the manifest's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TextIO

from edgeopt import wire
from edgeopt.daemon.printable import printable
from edgeopt.records import EngineFacts

CANDIDATE_COLUMNS = ("recipe", "p50 ms", "speedup [95 %]", "size", "quality, drop [95 %]", "outcome")
BUNDLE_COLUMNS = ("rank", "recipe", "size", "quality here, drop [95 %]", "fewer bytes moved")
_NOTHING = "-"


def candidate_rows(manifest: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row for the original, then one for each candidate, in the manifest's order; the winner is marked.

    A recipe's settings are shown where candidates differ in them; the whole of it stands in the manifest.
    """
    winner = label(manifest.get("recipe", []))
    baseline = manifest.get("baseline", {})
    candidates = [each for each in manifest.get("candidates", []) if each.get("recipe")]
    shown = _telling_settings([each["recipe"] for each in candidates])
    rows: list[tuple[str, ...]] = [
        (
            label([]),
            _milliseconds(baseline.get("latency_ms")),
            "1.00" if baseline.get("latency_ms") else "not timed",
            size(baseline.get("bytes")),
            quality(baseline.get("quality")),
            "winner" if winner == label([]) else "the original",
        )
    ]
    for candidate in candidates:
        own = _candidate_row(candidate, baseline, winner=label(candidate["recipe"]) == winner)
        rows.append((label(candidate["recipe"], shown=shown), *own))
    return rows


def bundle_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row for each candidate of a bundle, in the order in which the device will measure them."""
    candidates = document.get("candidates", [])
    recipes = [
        [{"technique": step["technique"], **dict(step["settings"])} for step in each["recipe"]["steps"]]
        for each in candidates
    ]
    shown = _telling_settings(recipes)
    return [
        (
            str(rank),
            label(recipe, shown=shown),
            size(each["bytes"]),
            quality(each["quality"]),
            f"{each['traffic_ratio']:.2f}" if each.get("traffic_ratio") else _NOTHING,
        )
        for rank, (recipe, each) in enumerate(zip(recipes, candidates, strict=True), start=1)
    ]


def _telling_settings(recipes: Sequence[Sequence[Mapping[str, Any]]]) -> set[tuple[str, str]]:
    """(technique, setting) pairs that do not have the same value in all recipes with that technique."""
    steps: dict[str, list[Mapping[str, Any]]] = {}
    for step in (step for recipe in recipes for step in recipe):
        steps.setdefault(str(step["technique"]), []).append(step)
    return {
        (technique, setting)
        for technique, found in steps.items()
        for setting in {key for step in found for key in step}
        if len({repr(step.get(setting)) for step in found}) > 1
    }


def _candidate_row(candidate: Mapping[str, Any], baseline: Mapping[str, Any], *, winner: bool) -> tuple[str, ...]:
    result = candidate.get("result") or {}
    ratio, original_bytes = result.get("bytes_ratio"), baseline.get("bytes")
    own_bytes = result.get("bytes") or (original_bytes / ratio if ratio and original_bytes else None)
    refused = candidate.get("refused")
    outcome = "winner" if winner else f"refused: {refused}" if refused else "not chosen"
    return (
        _milliseconds(result.get("latency_ms")),
        speedup(result.get("speedup")) if not result.get("latency") else "not timed",
        size(own_bytes),
        quality(result.get("quality")),
        outcome,
    )


def label(recipe: Sequence[Mapping[str, Any]], *, shown: Collection[tuple[str, str]] | None = None) -> str:
    """A manifest's recipe as :attr:`edgeopt.records.Recipe.label` shows it; ``original`` where it is empty.

    ``shown`` are the (technique, setting) pairs to show; all of them where it is None.
    """
    steps = []
    for step in recipe:
        technique = str(step["technique"])
        keys = [key for key in sorted(step) if key != "technique" and (shown is None or (technique, key) in shown)]
        settings = ", ".join(f"{key}={step[key]}" for key in keys)
        steps.append(f"{technique}({settings})" if settings else technique)
    return " + ".join(steps) or "original"


def engine_lines(engine: object) -> list[str]:
    """What a manifest's ``artifact.engine`` says of precision, one sentence a line: coverage, then what is wrong with it; empty where it says nothing."""
    try:
        facts = wire.decode(EngineFacts, engine)
    except ValueError:  # none, or of another release
        return []
    return [printable(text) for text in (facts.coverage, facts.undone and f"warning: {facts.undone}") if text]


def speedup(interval: Mapping[str, Any] | None) -> str:
    """``1.85 [1.80, 1.91]``: the ratio with its 95 % interval."""
    if not interval:
        return _NOTHING
    low, high = interval["ci95"]
    return f"{interval['value']:.2f} [{low:.2f}, {high:.2f}]"


def quality(found: Mapping[str, Any] | None) -> str:
    """``accuracy 0.9883, drop 0.0019 [0.0000, 0.0056]``: what was judged by, its value, the drop with its 95 % interval."""
    if not found:
        return _NOTHING
    low, high = found["ci95"]
    seen = f"{found['metric']} {found['value']:.4f}"
    return f"{seen}, drop {found['drop']:.4f} [{low:.4f}, {high:.4f}]" if found["drop"] or high else seen


def size(count: float | None) -> str:
    """Bytes as people read them: ``281 KiB``."""
    if count is None:
        return _NOTHING
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _milliseconds(latency: Mapping[str, Any] | None) -> str:
    return f"{latency['p50']:.3f}" if latency else _NOTHING


def draw(columns: Sequence[str], rows: Sequence[Sequence[str]], *, to: TextIO, title: str = "") -> None:
    """Write the rows as a table to ``to``: drawn on a terminal, aligned plain columns elsewhere."""
    if to.isatty():
        _draw_rich(columns, rows, to=to, title=title)
        return
    if title:
        print(title, file=to)
    for line in plain(columns, rows):
        print(line, file=to)


def plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns, two spaces apart, no control codes."""
    cells = [tuple(columns), *(tuple(printable(cell) for cell in row) for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _draw_rich(columns: Sequence[str], rows: Sequence[Sequence[str]], *, to: TextIO, title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        style = "green" if row[-1] == "winner" else "dim" if row[-1].startswith("refused") else ""
        # Text, not str: a name with square brackets is no markup
        table.add_row(*(Text(printable(cell)) for cell in row), style=style)
    Console(file=to).print(table)
