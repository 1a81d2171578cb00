"""The daemon seen from outside: what the HTTP pages, /metrics and systemd's status line show of it.

Its callables run in the HTTP server's threads, beside the main loop: they read the store (which has its own lock) and
values that the loop replaces whole, and change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from edgeopt.daemon.house import House
from edgeopt.daemon.jobs import Job
from edgeopt.daemon.metrics import Present
from edgeopt.daemon.outcomes import Outcomes
from edgeopt.daemon.pages import Row, View
from edgeopt.errors import EdgeoptError

_SHOWN_JOBS = 200
_LOOP_SILENT_S = 15.0


class Window:
    """``ready`` and ``turned_s`` are set by the loop."""

    def __init__(self, house: House, outcomes: Outcomes) -> None:
        self._house = house
        self._outcomes = outcomes
        self.ready = False
        self.turned_s = house.clock()
        self.backend = ""

    def view(self) -> View:
        return View(
            metrics=self.metrics,
            healthy=self.healthy,
            unready=self.unready,
            jobs=self.jobs,
            models=self._house.models.rows,
            published=self._house.folders.published,
            status_page=self._house.config.http.status_page,
        )

    def healthy(self) -> bool:
        return self._house.clock() - self.turned_s < _LOOP_SILENT_S

    def unready(self) -> str | None:
        if not self.ready:
            return "recovering"
        if self._house.stopping:
            return "stopping"
        return next(iter(list(self._house.trouble.values())), None)

    def metrics(self) -> bytes:
        """The exposition, with the values of this moment."""
        house = self._house
        # a store that cannot be read must not hide the other metrics: the last values stay
        with suppress(EdgeoptError):
            counts = {str(state): number for state, number in house.store.counts().items()}
            counts["held"] += self._outcomes.front.delayed
            house.metrics.present = Present(
                jobs=counts,
                oldest_enqueued_s=house.store.oldest_queued_s(),
                progress={run.job.name: run.ratio for run in list(self._outcomes.floor.running.values())},
                models=house.models.facts(),
                paused=self._outcomes.floor.paused,
                backend=self.backend,
            )
        return house.metrics.text()

    def jobs(self) -> Sequence[Row]:
        """Newest first; running ones with their progress."""
        try:
            return [self._row(job) for job in self._house.store.jobs(limit=_SHOWN_JOBS)]
        except EdgeoptError:
            return []

    def status(self) -> str:
        """One line for ``systemctl status``."""
        running = list(self._outcomes.floor.running.values())
        if running:
            return "; ".join(run.text for run in running)
        if (reason := self.unready()) is not None:
            return f"Waiting: {reason}"
        if self._outcomes.floor.paused:
            return f"Paused: {self._outcomes.floor.paused}"
        return f"Idle, {len(self._house.models.rows())} models published"

    def _row(self, job: Job) -> Row:
        running = self._outcomes.floor.running.get(job.job_id)
        return {
            "id": job.job_id,
            "name": job.name,
            "file": job.source_file,
            "state": job.state,
            "stage": running.stage if running else job.stage,
            "progress": running.ratio if running else None,
            "trial": running.trial if running else None,
            "attempts": job.attempts,
            "version": job.version or None,
            "code": job.code or None,
            "message": job.message or None,
            "hint": job.hint or None,
            "created": job.created_s,
            "updated": job.updated_s,
        }
