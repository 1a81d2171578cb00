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
