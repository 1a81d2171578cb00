"""Whether there is time left for what takes long: pruning's and quantization's own arithmetic ends where the search says so.

Stands under everything in this room that may run for minutes; training has a watch of its own, since it ends with the best it has.
"""

from __future__ import annotations

import time

from edgeopt.errors import PassFailed
from edgeopt.protocols import Evidence


def is_over(evidence: Evidence) -> bool:
    """Whether ``evidence.deadline_s`` has passed."""
    return evidence.deadline_s is not None and time.monotonic() > evidence.deadline_s


def require_time(evidence: Evidence, work: str) -> None:
    """Raises :class:`~edgeopt.errors.PassFailed` where the deadline has passed before ``work`` was done."""
    if is_over(evidence):
        raise PassFailed(f"the time for {work} ended before it was done", hint="Raise search.budget.")
