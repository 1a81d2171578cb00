"""Why a job did not end with a version: from what was raised or said to a code, words, and what becomes of the job.

Stands under ``outcomes``, which acts on it.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from edgeopt.daemon.printable import printable
from edgeopt.daemon.supervise import Outcome
from edgeopt.errors import CorruptState, Disposition, EdgeoptError


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a job did not end with a version."""

    code: str
    message: str
    hint: str
    stage: str
    disposition: Disposition
    tail: str = ""

    @property
    def reason(self) -> tuple[str, str, str, str]:
        return self.code, self.message, self.hint, self.stage


def of_error(error: BaseException) -> Failure:
    """What the daemon's own part of a job raised: starting the worker, or publishing."""
    if not isinstance(error, EdgeoptError):
        where = traceback.extract_tb(error.__traceback__)[-1:]
        message = f"{type(error).__name__}: {error} at {', '.join(f'{frame.name}:{frame.lineno}' for frame in where)}"
        return Failure(
            code="error",
            message=printable(f"a mistake in edgeopt itself: {message}"),
            hint="Report it with this line.",
            stage="publish",
            disposition=Disposition.EXIT,
        )
    disposition = Disposition.EXIT if isinstance(error, CorruptState) else error.disposition
    return Failure(
        code=error.code,
        message=printable(error.message),
        hint=printable(error.hint),
        stage="publish",
        disposition=disposition,
    )


def of_outcome(outcome: Outcome) -> Failure:
    """What a worker that did not finish said last, and what becomes of its job."""
    dispositions = {"cancelled": Disposition.CANCEL, "failed": Disposition.RETRY_ONCE}
    disposition = dispositions.get(outcome.kind, Disposition.RETRY_ONCE)
    if outcome.kind == "failed" and outcome.disposition in (
        Disposition.QUARANTINE.value,
        Disposition.HOLD.value,
        Disposition.CANCEL.value,
    ):
        disposition = Disposition(outcome.disposition)
    return Failure(
        code=outcome.code,
        message=outcome.message,
        hint=outcome.hint,
        stage=outcome.stage,
        disposition=disposition,
        tail=outcome.tail if outcome.kind == "crashed" else "",
    )
