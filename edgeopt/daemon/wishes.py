"""What other processes ask of the daemon's jobs: ``edgeopt cancel`` and ``edgeopt retry``.

They leave a word in the job's row (``JobStore.ask``); the main loop reads it at every turn and is the only one to act.
"""

from __future__ import annotations

from edgeopt.daemon import recovery
from edgeopt.daemon.front import DropNote
from edgeopt.daemon.house import House
from edgeopt.daemon.jobs import Job
from edgeopt.daemon.outcomes import Outcomes


def grant(house: House, outcomes: Outcomes) -> None:
    """Act on every wish that stands in the store."""
    for job in house.store.requests():
        granted = _cancel(outcomes, job) if job.request == "cancel" else _retry(house, outcomes, job)
        house.store.ask(job.job_id, "")
        if not granted:
            house.log.warning("wish-refused", job=job.job_id, wish=job.request, state=job.state)


def _cancel(outcomes: Outcomes, job: Job) -> bool:
    if outcomes.floor.cancel(job.job_id):
        return True
    if job.state not in ("queued", "held"):
        return False
    outcomes.cancelled(job)
    return True


def _retry(house: House, outcomes: Outcomes, job: Job) -> bool:
    if job.state in ("queued", "held"):
        outcomes.floor.backoff.clear(job.job_id)
        if job.state == "held":
            house.store.requeue(job.job_id, count=False)
        return True
    if job.state in ("failed", "cancelled") and (note := DropNote.read(job.drop_json)) is not None:
        # it still stands in the inbox, and is a new job from there
        outcomes.front.release(note)
        return True
    return job.state == "rejected" and recovery.restore(house, job)
