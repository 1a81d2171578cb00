"""How a drop leaves the inbox once its job is over: removed where it was published, moved to ``rejected/`` where not.

After the outcome is committed and before the row says that the drop has left, so that a crash in between is finished at
the next start. What cannot leave now (a read-only inbox, a full disk) is tried again; meanwhile it is not taken again.
"""

from __future__ import annotations

import os
from concurrent.futures import Future
from datetime import UTC, datetime

from edgeopt.daemon import intake
from edgeopt.daemon.drops import full_path
from edgeopt.daemon.front import DropNote, Front
from edgeopt.daemon.house import Backoff, House
from edgeopt.daemon.jobs import Job
from edgeopt.daemon.names import escaped
from edgeopt.daemon.scan import describe
from edgeopt.errors import EdgeoptError


class Leaving:
    """Drops on their way out; every method runs in the loop's thread."""

    def __init__(self, house: House, front: Front) -> None:
        self._house = house
        self._front = front
        self._jobs: dict[str, tuple[Job, DropNote, str]] = {}
        self._backoff = Backoff()

    @property
    def ids(self) -> set[str]:
        """The jobs whose drop is still to leave."""
        return set(self._jobs)

    @property
    def stuck_ids(self) -> set[str]:
        """Those among them that were tried in vain."""
        return {job_id for job_id in self._jobs if self._backoff.tries(job_id)}

    def leave(self, job: Job) -> None:
        """Let the drop of a job that is over leave the inbox."""
        note = DropNote.read(job.drop_json)
        if note is None:
            self._house.store.settle_drop(job.job_id)
            return
        self._front.hold(note)
        self._front.shut(note.drop.path)
        at = datetime.fromtimestamp(self._house.wall_s(), tz=UTC).isoformat(timespec="seconds")
        self._jobs[job.job_id] = (job, note, at.replace("+00:00", "Z"))
        self._carry_out(job.job_id)

    def turn(self, now_s: float) -> None:
        """Try again what could not leave."""
        for job_id in self.stuck_ids:
            if not self._backoff.waits(job_id, now_s):
                # not again until this attempt has come back
                self._backoff.postpone(job_id, float("inf"))
                self._carry_out(job_id)

    def _carry_out(self, job_id: str) -> None:
        job, note, at = self._jobs[job_id]
        self._house.inbox_hands.do(
            lambda: _take_out(self._house, job, note, at), lambda future: self._left(job, note, future)
        )

    def _left(self, job: Job, note: DropNote, future: Future[None]) -> None:
        house = self._house
        fault = future.exception()
        if isinstance(fault, EdgeoptError):
            wait_s = self._backoff.fail(job.job_id, house.clock())
            house.trouble[f"leave:{job.job_id}"] = fault.message
            if self._backoff.tries(job.job_id) == 1:
                house.log.warning("drop-stays", job=job.job_id, reason=fault.message, hint=fault.hint, wait_s=wait_s)
            return
        future.result()
        house.store.settle_drop(job.job_id)
        self._jobs.pop(job.job_id, None)
        self._backoff.clear(job.job_id)
        house.trouble.pop(f"leave:{job.job_id}", None)
        self._front.release(note)
        self._front.reopen(note.drop.path)


def _take_out(house: House, job: Job, note: DropNote, at: str) -> None:
    """In the inbox's thread: remove a drop that is done, or move one that is refused."""
    if job.state in ("published", "duplicate"):
        intake.remove_drop(note.drop, note.stamps)
        return
    if not _unchanged(note):
        return  # replaced or taken away meanwhile: what stands there now is another drop
    reason = {
        "code": job.code,
        "message": job.message,
        "hint": job.hint,
        "stage": job.stage,
        "at": at,
        "original_name": escaped(note.drop.path),
        "job": job.job_id,
    }
    intake.move_to_rejected(
        note.drop, house.folders.rejected, name=job.name, sha12=job.source_sha256[:12], reason=reason
    )


def _unchanged(note: DropNote) -> bool:
    """Whether the drop's model (or, in a folder without one, anything of it) still looks as it did."""
    paths = [path for path in (note.drop.model, note.drop.path) if path in note.stamps] or list(note.stamps)[:1]
    for path in paths:
        try:
            if describe(os.lstat(full_path(note.drop, path)))[1] != note.stamps[path]:
                return False
        except OSError:
            return False
    return True
