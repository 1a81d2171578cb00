"""SIGTERM in the middle of a training waits until the step is done, so that what was learned can be written down first.

Used by ``training.loop``. The supervisor ends a worker with SIGTERM when the daemon stops and leaves it a few seconds; a job that goes on later finds the checkpoint.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Hold SIGTERM back while this lasts, and deliver it to whoever had it before at the end; gives the question whether one came.

    Outside of the main thread, where no handler can be set, nothing is held back.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, _frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
        if came:
            signal.raise_signal(signal.SIGTERM)
