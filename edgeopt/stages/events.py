"""How stages tell the supervisor where they are: one :class:`~edgeopt.orders.Event` at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgeopt.orders import Event

Emit = Callable[[Event], None]


@contextmanager
def staged(stage: str, emit: Emit, *, inside: str = "") -> Iterator[None]:
    """Say that ``stage`` begins and, when it ends well, how many seconds it took, and that the one it is ``inside`` goes on."""
    started = time.monotonic()
    emit(Event(kind="stage", fields={"stage": stage}))
    yield
    emit(Event(kind="stage_done", fields={"stage": stage, "seconds": time.monotonic() - started}))
    if inside:
        emit(Event(kind="stage", fields={"stage": inside}))


def tell_trial(emit: Emit, label: str, place: tuple[int, int], share: float, words: str = "") -> None:
    """Say how far the trial called ``label`` is: ``share`` (0..1) of it is done, and it is the first of ``place`` out of the second."""
    number, count = place
    text = f"{label}: {words}" if words else label
    fields = {"ratio": (number - 1 + share) / count, "trial": number, "trials": count, "text": text}
    emit(Event(kind="progress", fields=fields))
