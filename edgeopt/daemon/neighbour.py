"""When to leave the device alone: pure decisions on what the loop has just seen.

Asked before a job starts. A job that runs is never stopped for any of this, it only keeps the next one from starting:
stopping would throw the running measurement away, and the limits on memory, threads and niceness hold meanwhile. What
is not known (no thermal sensor) stops nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgeopt.config.schema import Neighbour
from edgeopt.errors import ConfigError

Reason: TypeAlias = Literal["pause_file", "temperature", "load", "window"]
REASONS: tuple[Reason, ...] = ("pause_file", "temperature", "load", "window")

_WINDOW = re.compile(r"\s*([01]?\d|2[0-3]):([0-5]\d)\s*-\s*([01]?\d|2[0-3]):([0-5]\d)\s*")
_COOLED_K = 5.0
"""A device that was too hot has to be this much below the limit, or it would flap around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the device is like right now."""

    minute_of_day: int
    """Local wall clock, 0 to 1439: the only decision that may depend on it."""
    temperature_c: float | None = None
    load: float | None = None
    """The one-minute load average."""
    pause_file_exists: bool = False


def parse_window(text: str) -> tuple[int, int]:
    """``01:00-05:00`` as minutes of the day; raises :class:`~edgeopt.errors.ConfigError`."""
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise ConfigError(f"neighbour.window is {text!r:.40}", hint='Write it as "01:00-05:00".')
    first, first_minutes, last, last_minutes = map(int, match.groups())
    return first * 60 + first_minutes, last * 60 + last_minutes


def in_window(window: tuple[int, int], minute_of_day: int) -> bool:
    """Whether a minute lies in a window; one that ends before it begins goes over midnight, an empty one is all day."""
    first, last = window
    if first == last:
        return True
    if first < last:
        return first <= minute_of_day < last
    return minute_of_day >= first or minute_of_day < last


def pause_reason(settings: Neighbour, seen: Surroundings, *, paused: Reason | None = None) -> Reason | None:
    """Why no job may start now, or None; ``paused`` is the previous answer."""
    if seen.pause_file_exists:
        return "pause_file"
    if settings.max_temperature_c is not None and seen.temperature_c is not None:
        limit_c = settings.max_temperature_c - (_COOLED_K if paused == "temperature" else 0.0)
        if seen.temperature_c > limit_c:
            return "temperature"
    if settings.max_load is not None and seen.load is not None and seen.load > settings.max_load:
        return "load"
    if settings.window is not None and not in_window(parse_window(settings.window), seen.minute_of_day):
        return "window"
    return None
