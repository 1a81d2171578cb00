"""Progress of one job on stderr: the worker's events come in, a bar (on a terminal) or plain lines go out.

:class:`Tracker` keeps what the events said and is the same for both; the two displays only differ in how they show it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from edgeopt.daemon.printable import printable
from edgeopt.orders import Event

Clock = Callable[[], float]
Observe = Callable[[Event], None]

# an estimate out of the first percents is a guess: the baseline's measurement is not like the rest
_ESTIMATE_FROM_RATIO = 0.1


@dataclass(slots=True)
class Tracker:
    """What is known of a running job."""

    started_s: float
    stage: str = "starting"
    ratio: float = 0.0
    trial: int = 0
    trials: int = 0
    text: str = ""
    best: str = ""
    best_speedup: float = 1.0

    def observe(self, event: Event) -> str | None:
        """Take an event in; returns the line that a plain display prints for it, if any."""
        fields = event.fields
        match event.kind:
            case "stage":
                self.stage = str(fields.get("stage", self.stage))
                return f"stage {self.stage}"
            case "progress":
                return self._observe_progress(event)
            case "candidate":
                return self._observe_candidate(event)
            case "note":
                return f"note: {fields.get('text', '')}"
        return None

    def _observe_progress(self, event: Event) -> str | None:
        fields = event.fields
        before = self.trial
        self.ratio = min(1.0, max(self.ratio, float(fields.get("ratio", 0.0))))
        self.trial, self.trials = int(fields.get("trial") or self.trial), int(fields.get("trials") or self.trials)
        self.text = str(fields.get("text", ""))
        return f"trial {self.trial}/{self.trials} {self.text}".rstrip() if self.trial != before else None

    def _observe_candidate(self, event: Event) -> str:
        trial = event.fields.get("trial") or {}
        name = recipe_label(trial.get("recipe") or {})
        measurement = trial.get("measurement")
        if measurement is None or event.fields.get("outcome") != "measured":
            return f"candidate {name}: {event.fields.get('outcome', 'refused')}: {trial.get('refused') or 'no reason given'}"
        ratio, quality = measurement["speedup"], measurement["quality"]
        if ratio["value"] > self.best_speedup and not trial.get("refused"):
            # the last step is what tells candidates apart; the whole label would push the bar off the line
            self.best = name.rpartition(" + ")[2].partition("(")[0]
            self.best_speedup = float(ratio["value"])
        gained = f"{ratio['value']:.2f} times as fast [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        if not measurement.get("measured", True):
            gained = f"built, not timed; one inference moves {ratio['value']:.2f} times fewer bytes"
        return f"candidate {name}: {gained}, {quality['metric']} drop {quality['drop']:.4f}"

    def left_s(self, now_s: float) -> float | None:
        """Seconds left by the ratio so far; None while that would be a guess."""
        if self.ratio < _ESTIMATE_FROM_RATIO:
            return None
        return (now_s - self.started_s) / self.ratio * (1.0 - self.ratio)

    def summary(self) -> str:
        """``measure, trial 3/9, best 1.20 times (tidy)``."""
        parts = [self.stage]
        if self.trials:
            parts.append(f"trial {self.trial}/{self.trials}")
        if self.best:
            parts.append(f"best {self.best_speedup:.2f} times ({self.best})")
        return ", ".join(parts)


def recipe_label(recipe: dict[str, object]) -> str:
    """The label of a recipe in wire form; ``original`` for the empty one."""
    from edgeopt import wire
    from edgeopt.records import Recipe

    try:
        return wire.decode(Recipe, recipe).label
    except ValueError:
        return "a recipe of another version"


def clock_text(seconds: float | None) -> str:
    """``1:05``; ``-:--`` where nothing is known."""
    if seconds is None:
        return "-:--"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@contextmanager
def shown(to: TextIO, *, name: str, clock: Clock = time.monotonic) -> Iterator[Observe]:
    """Show a job's events on ``to`` while the block runs; hand every event to the yielded function."""
    tracker = Tracker(started_s=clock())
    if not to.isatty():

        def observe_plainly(event: Event) -> None:
            if line := tracker.observe(event):
                print(f"[{clock_text(clock() - tracker.started_s)}] {printable(line)}", file=to, flush=True)

        yield observe_plainly
        return

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.fields[summary]}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left {task.fields[left]}", markup=False),
    )
    with Progress(*columns, console=Console(file=to), transient=True) as bar:
        task = bar.add_task(name, total=1.0, summary=printable(name), left=clock_text(None))

        def observe_drawn(event: Event) -> None:
            line = tracker.observe(event)
            if line and event.kind in ("candidate", "note"):
                bar.console.print(printable(line), markup=False, highlight=False)
            left = clock_text(tracker.left_s(clock()))
            bar.update(task, completed=tracker.ratio, summary=printable(tracker.summary()), left=left)

        yield observe_drawn
