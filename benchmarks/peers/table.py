"""Last step: measured rows to Markdown and JSON, the winners marked, and one sentence each that says who won.

A row wins only within the budget: the drop's 95 % bound at most ``max_drop``. "as seen" stands where only the drop itself is. Names of tools are ours to print, so nothing is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

from .field import OWN
from .rows import CONTROL, Row, is_right, seems_right

Gain: TypeAlias = Callable[[Row], float]
_FEW_PASSES = 3
"""An interval on fewer is no more than the two values."""
_HEAD = (
    "| tool and recipe | speedup [95 %] (passes) | times smaller | metric | drop (bound) | also | within 1 %? | wall / CPU s to make | note |",
    "|---|---|---|---|---|---|---|---|---|",
)
_FOLDERS = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)+")
"""Where a reason names a file, its folders are those of the machine that measured."""
_ALSO = {"kl": "KL", "accuracy": "top-1", "mask_iou": "mask IoU"}


def markdown(rows: Sequence[Row]) -> str:
    """A model's table, the fastest and the smallest right rows in bold, and the verdicts below it."""
    fastest, smallest = best(rows, speed), best(rows, size)
    lines = [_line(row, is_fastest=row is fastest, is_smallest=row is smallest) for row in rows]
    said = [
        verdict(rows, speed, own="latency", what="Fastest within the budget"),
        verdict(rows, size, own="size", what="Smallest within the budget"),
    ]
    return "\n".join([*_HEAD, *lines, "", *(f"- {sentence}" for sentence in said)])


def as_json(row: Row) -> dict[str, Any]:
    """Everything that is known of a row."""
    fields = asdict(row)
    fields["entry"] = {"tool": row.entry.tool, "recipe": row.entry.recipe, "label": row.entry.label}
    return {**fields, "within_budget": is_right(row)}


# ---------------------------------------------------------------- who won
def speed(row: Row) -> float:
    return row.speedup.value if row.speedup else 0.0


def size(row: Row) -> float:
    return row.bytes_ratio or 0.0


def best(rows: Sequence[Row], gain: Gain, *, right: Callable[[Row], bool] = is_right) -> Row | None:
    """The right row that gains most over the original, if any gains at all; the control row is no contestant."""
    able = [row for row in rows if right(row) and row.entry is not CONTROL and gain(row) > 1.0]
    return max(able, key=gain, default=None)


def verdict(rows: Sequence[Row], gain: Gain, *, own: str, what: str) -> str:
    """Who is first, and by how much: edgeopt's pick for this objective against the best of the tools."""
    if not any(gain(row) for row in rows):
        return f"{what}: nothing is measured yet."
    pick = next((row for row in rows if (row.entry.tool, row.entry.recipe) == (OWN, own)), None)
    lack = _lack(pick, gain)
    mine = pick if not lack else None
    tools = [row for row in rows if row.entry.tool != OWN]
    peer, seen = best(tools, gain), best(tools, gain, right=seems_right)
    first = _first(mine, peer, gain) if mine else f"{_theirs(peer, gain)}; edgeopt's pick for {own} {lack}"
    return f"{what}: {first}.{_aside(mine, seen, gain)}"


def _lack(pick: Row | None, gain: Gain) -> str:
    """Why edgeopt's pick cannot be held against the tools; nothing where it can."""
    if pick is None or pick.record is None:
        return "is missing: it was not produced"
    if pick.failure:
        return f"is missing: {pick.failure}"
    if not is_right(pick):
        return (
            f"does not meet the budget, with a bound of {pick.quality.ci95[1]:.4f}" if pick.quality else "is not judged"
        )
    return "is right, and not measured" if gain(pick) == 0.0 else ""


def _first(mine: Row, peer: Row | None, gain: Gain) -> str:
    if peer is None:
        return f"edgeopt, {gain(mine):.2f} times; no tool gains anything within it"
    if gain(mine) >= gain(peer):
        return f"edgeopt, {gain(mine):.2f} times; the best tool is {_theirs(peer, gain)}{_noise(mine, peer, gain)}"
    return f"a peer wins: {_theirs(peer, gain)}; edgeopt's pick {gain(mine):.2f} times{_noise(mine, peer, gain)}"


def _theirs(peer: Row | None, gain: Gain) -> str:
    return f"{peer.entry.label}, {gain(peer):.2f} times" if peer else "no tool gains anything"


def _aside(mine: Row | None, peer: Row | None, gain: Gain) -> str:
    """A tool that is ahead if the drop that was seen is believed: the bound is edgeopt's own rule, not the tool's."""
    if peer is None or is_right(peer) or (mine is not None and gain(mine) >= gain(peer)):
        return ""
    seen = peer.quality.drop if peer.quality else 0.0
    return f" By the drop seen ({seen:.4f}) and not its bound, {peer.entry.label} would be first with {gain(peer):.2f}."


def _noise(mine: Row, peer: Row, gain: Gain) -> str:
    """Said where the two speeds are not told apart by their intervals, or those rest on next to nothing."""
    if gain is not speed or mine.speedup is None or peer.speedup is None:
        return ""
    said = []
    if mine.speedup.low <= peer.speedup.high and peer.speedup.low <= mine.speedup.high:
        said.append("their intervals overlap")
    if (fewest := min(len(mine.passes), len(peer.passes))) < _FEW_PASSES:
        said.append(f"measured in {fewest} {'pass' if fewest == 1 else 'passes'} only")
    return f" ({', '.join(said)})" if said else ""


# ---------------------------------------------------------------- one line
def _line(row: Row, *, is_fastest: bool, is_smallest: bool) -> str:
    cells = [
        row.entry.label,
        _marked(_speedup(row), is_marked=is_fastest),
        _marked(f"{row.bytes_ratio:.2f}" if row.bytes_ratio else "-", is_marked=is_smallest),
        *_quality(row),
        _cost(row),
        _note(row, is_fastest=is_fastest, is_smallest=is_smallest),
    ]
    return f"| {' | '.join(cells)} |"


def _marked(text: str, *, is_marked: bool) -> str:
    return f"**{text}**" if is_marked else text


def _speedup(row: Row) -> str:
    if row.speedup is None:
        return "-"
    interval = f" [{row.speedup.low:.2f}, {row.speedup.high:.2f}]" if len(row.passes) > 1 else ""
    return f"{row.speedup.value:.2f}{interval} ({len(row.passes)})"


def _quality(row: Row) -> tuple[str, str, str, str]:
    found = row.quality
    if found is None:
        return "-", "-", "-", "no"
    return (
        f"{found.metric} {found.value:.4f}",
        f"{found.drop:.4f} ({found.ci95[1]:.4f})",
        ", ".join(_also(row)) or "-",
        "yes" if is_right(row) else "as seen" if seems_right(row) else "no",
    )


def _also(row: Row) -> list[str]:
    """Reported, never decisive."""
    assert row.quality is not None  # the caller looked
    shown = []
    if row.confident_agreement is not None:
        shown.append(f"agrees {row.confident_agreement:.3f} where p > 0.5")
    for name, value in row.quality.details:
        short = _ALSO.get(name.partition("[")[0])
        if short:
            shown.append(f"{short} {value:.4f}" if short == "KL" else f"{short} {value:.3f}")
        elif name.startswith("cosine") and row.confident_agreement is None:
            shown.append(f"{name} {value:.4f}")
    return shown


def _cost(row: Row) -> str:
    if row.record is None or row.entry is CONTROL:
        return "-"
    return f"{row.record.wall_s:.0f} / {row.record.cpu_s:.0f}"


def _note(row: Row, *, is_fastest: bool, is_smallest: bool) -> str:
    notes = [row.failure] if row.failure else []
    notes += ["fastest"] if is_fastest else []
    notes += ["smallest"] if is_smallest else []
    notes += [row.recipe] if row.recipe else []
    notes += row.record.notes if row.record else ()
    if row.record is not None and not row.is_current:
        notes.append("made by an earlier state of its sources")
    return _FOLDERS.sub("", "; ".join(notes)).replace("|", "/") or " "
