"""What becomes of a drop and its job: the one place where outcomes are decided, committed, counted and said.

In: what ``front`` took and how ``floor``'s jobs ended. The order is always the same: commit the outcome to the store,
then let the drop leave the inbox (removed, or moved to ``rejected/``), then note that it has left. A crash between any two
is finished at the next start.
"""

from __future__ import annotations

import secrets
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace

from edgeopt.daemon import failures, intake, sources, storage
from edgeopt.daemon.failures import Failure
from edgeopt.daemon.floor import End, Floor
from edgeopt.daemon.front import DropNote, Front, Taken
from edgeopt.daemon.house import House
from edgeopt.daemon.jobs import CRASH_LIMIT, Job
from edgeopt.daemon.leaving import Leaving
from edgeopt.daemon.names import escaped
from edgeopt.daemon.printable import printable
from edgeopt.daemon.publish import Published
from edgeopt.errors import BadOutput, Disposition, EdgeoptError, EnvironmentFault
from edgeopt.layout import JobFolder

_RETRY_LIMIT = 2
"""Attempts of a job that met a limit."""


class Outcomes:
    """Decides; every method runs in the loop's thread and may be called again after an EnvironmentFault."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.front = Front(house, self.taken)
        self.floor = Floor(house, self.ended)
        self._twins: dict[str, list[DropNote]] = {}
        """Drops with the content of an unfinished job, by its id; looked at again when it is over."""
        self.leaving = Leaving(house, self.front)

    # ------------------------------------------------------------ from the inbox
    def taken(self, taken: Taken) -> None:
        """A drop was staged or refused: a new job, a duplicate, or a rejection."""
        if taken.error is not None:
            self._refused(taken, taken.error)
        elif taken.staged is not None:
            self._staged(taken.note, taken.staged)

    def _refused(self, taken: Taken, error: EdgeoptError) -> None:
        assert taken.identity is not None  # noqa: S101 - goes with the error
        job = Job(
            job_id=secrets.token_hex(8),
            name=taken.identity.name,
            key=f"refused:{taken.note.print}",
            state="rejected",
            source_file=escaped(taken.note.drop.path),
            source_sha256=taken.identity.sha256,
            stage="intake",
            code=error.code,
            message=printable(error.message),
            hint=printable(error.hint),
            drop_json=taken.note.json(),
        )
        self._house.store.add(job)
        self._say_rejected(job)
        self.leaving.leave(job)

    def _staged(self, note: DropNote, staged: intake.Staged) -> None:
        order, store = staged.order, self._house.store
        job = Job(
            job_id=order.job_id,
            name=order.name,
            key=staged.key,
            bytes=order.source.bytes,
            source_file=order.source.file,
            source_sha256=order.source.sha256,
            drop_json=note.json(),
        )
        if (active := store.find_active(staged.key)) is not None:
            self._twins.setdefault(active.job_id, []).append(note)
            self._remove_staging(order.job_id)
            return
        for name, version in store.find_by_key(staged.key):
            if self._house.models.is_current_enough(name, version):
                self._duplicate(replace(job, state="duplicate", version=version), name)
                return
        store.add(job)
        self._house.log.info("job-queued", job=job.job_id, model=job.name, file=job.source_file, bytes=job.bytes)

    def _duplicate(self, job: Job, name: str) -> None:
        job = replace(job, message=f"the same content is published as {name} version {job.version}")
        self._house.store.add(job)
        self._remove_staging(job.job_id)
        self._house.metrics.job_ended("duplicate", "")
        self._house.log.info("job-duplicate", job=job.job_id, model=job.name, same_as=name, version=job.version)
        self.leaving.leave(job)

    # ------------------------------------------------------------ from the floor
    def ended(self, job: Job, future: Future[End]) -> None:
        """A job's thread is through."""
        if (fault := future.exception()) is not None:
            self._failed(job, failures.of_error(fault), seconds=None)
            return
        end = future.result()
        if end.published is not None and end.failed_smoke_test:
            self._failed_smoke_test(job, end.published, end)
        elif end.published is not None:
            self._published(job, end.published, end)
        elif end.outcome.kind == "stopped":
            self._house.store.requeue(job.job_id, count=False)
            self._house.log.info("job-stopped", job=job.job_id, model=job.name)
        elif end.outcome.kind == "crashed":
            self._crashed(job, end)
        else:
            self._failed(job, failures.of_outcome(end.outcome), seconds=end.seconds)

    def _published(self, job: Job, published: Published, end: End) -> None:
        house = self._house
        house.store.finish(job.job_id, "published", version=published.version, reason=("", end.outcome.message, "", ""))
        shelf = house.models.refresh(job.name)
        house.store.set_current(job.name, shelf.current, pinned=shelf.pinned)
        house.store.forget_versions(job.name, keep=shelf.versions)
        # what is made anew one day is made of this; without it the model has to be dropped again
        with suppress(OSError):
            sources.keep(JobFolder(house.folders.staging / job.job_id), job.key, house.folders.sources)
        house.metrics.job_ended("published", "", seconds=end.seconds, at_s=house.wall_s())
        house.log.info(
            "job-published",
            job=job.job_id,
            model=job.name,
            version=published.version,
            current=shelf.current,
            seconds=round(end.seconds, 1),
            reason=end.outcome.message,
        )
        self._over(job)

    def _failed_smoke_test(self, job: Job, published: Published, end: End) -> None:
        """What was published does not run where it lies: nobody was led to it, and it stays for a look."""
        shelf = self._house.models.refresh(job.name)
        if shelf.current:
            self._house.store.set_current(job.name, shelf.current, pinned=shelf.pinned)
        failure = Failure(
            code=BadOutput.code,
            message=printable(f"version {published.version} was published and {end.failed_smoke_test}"),
            hint="Look at the version's report and its mark, then use edgeopt retry.",
            stage="publish",
            disposition=Disposition.QUARANTINE,
        )
        self.reject(job, failure, seconds=end.seconds)

    def _crashed(self, job: Job, end: End) -> None:
        """Tried anew up to three times, counted by content: a model that crashes its worker shall not do so for ever."""
        failure = failures.of_outcome(end.outcome)
        if self._house.store.crashed(job.job_id) >= CRASH_LIMIT:
            self.reject(job, failure, seconds=end.seconds)
        else:
            self._wait(job, failure)

    def _failed(self, job: Job, failure: Failure, *, seconds: float | None) -> None:
        match failure.disposition:
            case Disposition.QUARANTINE:
                self.reject(job, failure, seconds=seconds)
            case Disposition.HOLD:
                self._hold(job, failure)
            case Disposition.CANCEL:
                self.cancelled(job)
            case Disposition.EXIT:
                self._lost(job, failure)
            case _ if job.attempts + 1 >= _RETRY_LIMIT:
                self.reject(job, failure, seconds=seconds)
            case _:
                self._house.store.requeue(job.job_id, count=True)
                self._wait(job, failure)

    def reject(self, job: Job, failure: Failure, *, seconds: float | None = None) -> None:
        """The drop goes to ``rejected/`` with the reason."""
        message = f"{failure.message}; it last said: {failure.tail}" if failure.tail else failure.message
        reason = (failure.code, printable(message), failure.hint, failure.stage)
        self._house.store.finish(job.job_id, "rejected", reason=reason)
        self._say_rejected(self._house.store.get(job.job_id), seconds=seconds)
        self._over(job)

    def _wait(self, job: Job, failure: Failure) -> None:
        """The job is queued again, for later."""
        wait_s = self.floor.backoff.fail(job.job_id, self._house.clock())
        self._house.log.warning(
            "job-retried",
            job=job.job_id,
            model=job.name,
            code=failure.code,
            reason=failure.message,
            wait_s=round(wait_s, 1),
        )

    def _hold(self, job: Job, failure: Failure) -> None:
        house = self._house
        house.store.hold(job.job_id, code=failure.code, message=failure.message, hint=failure.hint)
        wait_s = self.floor.hold(job.job_id, house.clock())
        house.log.warning(
            "job-held",
            job=job.job_id,
            model=job.name,
            code=failure.code,
            reason=failure.message,
            hint=failure.hint,
            wait_s=round(wait_s, 1),
        )

    def cancelled(self, job: Job) -> None:
        """Nothing is quarantined: the drop stays where it is and is not taken again until it changes or is retried."""
        self._house.store.finish(job.job_id, "cancelled", reason=("cancelled", "somebody asked for it", "", ""))
        self._house.store.settle_drop(job.job_id)
        self._house.metrics.job_ended("cancelled", "cancelled")
        self._house.log.info("job-cancelled", job=job.job_id, model=job.name)
        self._tidy(job)

    def _lost(self, job: Job, failure: Failure) -> None:
        """The daemon's own part of a job is gone; its drop, if it still stands there, is taken anew."""
        self._house.store.finish(job.job_id, "failed", reason=failure.reason)
        self._house.store.settle_drop(job.job_id)
        self._house.metrics.job_ended("failed", failure.code)
        self._house.log.alert("job-failed", job=job.job_id, model=job.name, code=failure.code, reason=failure.message)
        self._house.failures += 1
        if (note := DropNote.read(job.drop_json)) is not None:
            self.front.release(note)
        self._tidy(job)

    # ------------------------------------------------------------ inside
    def _over(self, job: Job) -> None:
        """The outcome is committed: the drop may leave, and so may what was staged."""
        self.leaving.leave(self._house.store.get(job.job_id))
        self._tidy(job)

    def _tidy(self, job: Job) -> None:
        self._remove_staging(job.job_id)
        self.floor.backoff.clear(job.job_id)
        for note in self._twins.pop(job.job_id, []):
            self.front.release(note)
        # only tidiness: the outcome stands, and the next job prunes as well
        with suppress(EnvironmentFault):
            self._house.store.prune()

    def _remove_staging(self, job_id: str) -> None:
        # what stays is removed at the next start
        with suppress(OSError):
            storage.remove_tree(self._house.folders.staging / job_id)

    def _say_rejected(self, job: Job, *, seconds: float | None = None) -> None:
        house = self._house
        house.failures += 1
        house.metrics.job_ended("rejected", job.code, seconds=seconds)
        house.log.warning(
            "job-rejected",
            job=job.job_id,
            model=job.name,
            file=job.source_file,
            code=job.code,
            reason=job.message,
            hint=job.hint,
            stage=job.stage,
        )
