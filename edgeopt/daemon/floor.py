"""Where jobs run: one thread and one worker process each, started by the main loop as limits and neighbours allow.

A thread runs the worker (``supervise``) and publishes what it leaves (``publish``), so neither holds the loop up; the
outcome comes back as a letter. Waits after a bad attempt or a device's trouble are kept here, on the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias

from edgeopt import wire
from edgeopt.daemon import marks, smoke, storage, supervise
from edgeopt.daemon.chatter import field_text
from edgeopt.daemon.house import Backoff, House
from edgeopt.daemon.jobs import Job
from edgeopt.daemon.marks import FAILED, UNTRIED, Mark
from edgeopt.daemon.neighbour import Reason
from edgeopt.daemon.publish import Origin, Published, lead, publish
from edgeopt.daemon.retreat import retreat
from edgeopt.daemon.smoke import Prober
from edgeopt.daemon.supervise import Outcome, Wish
from edgeopt.errors import CorruptState, EnvironmentFault, JobCancelled
from edgeopt.layout import CHECKPOINTS_FOLDER, JobFolder, cache_folder
from edgeopt.orders import Event, JobOrder

_NOTE_EVERY_S = 2.0


@dataclass(slots=True, kw_only=True)
class Running:
    """A job whose worker runs; its thread writes the progress, the loop writes the wish."""

    job: Job
    started_s: float
    stage: str = ""
    ratio: float = 0.0
    trial: str = ""
    wish: Wish | None = None
    noted_stage: str = ""
    noted_s: float = 0.0

    @property
    def text(self) -> str:
        """One line for people: ``digits: measure, trial 3/9, 40 %``."""
        parts = [self.stage or "starting", self.trial, f"{self.ratio:.0%}" if self.ratio else ""]
        return f"{self.job.name}: {', '.join(filter(None, parts))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a job's thread ended without an error: the worker's outcome, and the version where there is one."""

    outcome: Outcome
    published: Published | None
    seconds: float
    failed_smoke_test: str = ""
    """Why the published version does not run; ``current`` was never led to it."""


OnEnded: TypeAlias = Callable[[Job, Future[End]], None]


class Floor:
    """Runs jobs; ``on_ended`` gets each one's end in the loop's thread."""

    def __init__(self, house: House, on_ended: OnEnded) -> None:
        self._house = house
        self._on_ended = on_ended
        self.running: dict[str, Running] = {}
        self.backoff = Backoff()
        self._held: set[str] = set()
        self.paused: Reason | None = None

    # ------------------------------------------------------------ the loop's turn
    def turn(self, now_s: float) -> None:
        """Start what may start now, and let go what was held long enough."""
        self._let_go(now_s)
        while not self.paused and not self._house.stopping and len(self.running) < self._house.config.limits.jobs:
            job = self._house.store.next_queued(but=self.backoff.waiting(now_s) | self.running.keys())
            if job is None:
                break
            self._start(job, now_s)
        self._note_stages(now_s)

    def hold(self, job_id: str, now_s: float) -> float:
        """A held job goes on by itself after the wait that this returns."""
        self._held.add(job_id)
        return self.backoff.fail(job_id, now_s)

    def cancel(self, job_id: str) -> bool:
        """End a running job for good; False where it does not run."""
        if (running := self.running.get(job_id)) is None:
            return False
        running.wish = "cancel"
        return True

    def stop(self) -> None:
        """End every worker; the jobs go back to the queue."""
        for running in self.running.values():
            running.wish = running.wish or "stop"

    # ------------------------------------------------------------ inside
    def _let_go(self, now_s: float) -> None:
        for job_id in [job_id for job_id in self._held if not self.backoff.waits(job_id, now_s)]:
            if self._house.store.get(job_id).state == "held":
                self._house.store.requeue(job_id, count=False)
            self._held.discard(job_id)

    def _start(self, job: Job, now_s: float) -> None:
        self._house.store.start(job.job_id)
        running = self.running[job.job_id] = Running(job=job, started_s=now_s)
        self._house.log.info("job-started", job=job.job_id, model=job.name, attempt=job.attempts + 1)
        self._house.job_hands.do(lambda: self._work(running), lambda future: self._ended(job, future))

    def _ended(self, job: Job, future: Future[End]) -> None:
        finished = True
        try:
            self._on_ended(job, future)
        except EnvironmentFault:
            finished = False  # called again when the disk is well
            raise
        finally:
            if finished:
                self.running.pop(job.job_id, None)

    def _work(self, running: Running) -> End:
        """In the job's thread: the worker from start to end, then the publish."""
        house, job = self._house, running.job
        folder = JobFolder(house.folders.staging / job.job_id)
        order = _read_order(folder)
        clear(folder)
        outcome = supervise.run_worker(
            folder,
            cache_folder(house.folders.state, order.source.sha256),
            order.limits,
            on_event=lambda event: self._heard(running, event),
            should_stop=lambda: running.wish,
            command=house.worker_command,
            clock=house.clock,
        )
        published, failed = None, ""
        if outcome.kind == "finished":
            running.stage = "publish"
            origin = Origin(
                job_id=job.job_id,
                key=job.key,
                highest=house.store.highest_version(job.name),
                created_s=house.wall_s(),
                heals=order.heals,
                untried=True,
            )
            published = publish(
                folder.out, job.name, house.folders.published, settings=house.config.publish, origin=origin
            )
            failed = self._try(running, published, order) if published.fresh else ""
            if not failed:
                lead(published, keep=house.config.publish.keep)
        seconds = house.clock() - running.started_s
        return End(outcome=outcome, published=published, seconds=seconds, failed_smoke_test=failed)

    def _try(self, running: Running, published: Published, order: JobOrder) -> str:
        """Open and run the version where it will be served from, before anybody is led to it."""
        house = self._house
        folder = JobFolder(house.folders.staging / running.job.job_id)
        prober = Prober(work=folder.work, should_stop=lambda: running.wish is not None, clock=house.clock)
        where = (house.folders.published, published.name, published.version)
        try:
            failed = smoke.failure_of(published.folder, folder, order, prober)
        except JobCancelled:
            with storage.storage_errors(f"marking version {published.version} of {published.name}"):
                marks.put(published.folder.parent, published.version, Mark(kind=UNTRIED))
            return ""
        if failed:
            retreat(*where, Mark(kind=FAILED, reason=failed))
        return failed

    def _heard(self, running: Running, event: Event) -> None:
        """An event of the worker, in the job's thread; its fields may hold anything."""
        metrics = self._house.metrics
        match event.kind:
            case "stage":
                running.stage = field_text(event, "stage", limit=40)
            case "stage_done":
                metrics.stage_ended(field_text(event, "stage", limit=40), _number(event, "seconds"))
            case "progress":
                running.ratio = min(1.0, max(0.0, _number(event, "ratio")))
                trial, trials = _number(event, "trial"), _number(event, "trials")
                running.trial = f"trial {trial:.0f}/{trials:.0f}" if trials else ""
            case "candidate":
                metrics.candidate(field_text(event, "outcome", limit=40))
            case "cache":
                metrics.cache_asked(hit=field_text(event, "result", limit=40) == "hit")
            case "note":
                self._house.log.info("worker-note", job=running.job.job_id, text=field_text(event, "text", limit=400))

    def _note_stages(self, now_s: float) -> None:
        """Write the stages down for the command line; not each of them, a commit costs an fsync."""
        for job_id, running in self.running.items():
            if running.stage != running.noted_stage and now_s - running.noted_s >= _NOTE_EVERY_S:
                running.noted_stage, running.noted_s = running.stage, now_s
                self._house.store.note_stage(job_id, running.stage)


def _read_order(folder: JobFolder) -> JobOrder:
    try:
        return wire.loads(JobOrder, folder.order.read_bytes())
    except (FileNotFoundError, ValueError) as fault:
        raise CorruptState(
            f"the staged job {folder.root.name} is gone or damaged", hint="Drop the model again."
        ) from fault
    except OSError as fault:
        raise storage.translate(fault, f"reading the order of {folder.root.name}") from fault


def clear(folder: JobFolder) -> None:
    """Nothing of an earlier attempt may be published; what is worth keeping lies in the cache, or is the checkpoint of a training."""
    with storage.storage_errors(f"preparing {folder.root.name}"):
        storage.remove_tree(folder.out)
        folder.out.mkdir(mode=0o700)
        kept = folder.work / CHECKPOINTS_FOLDER
        # the worker wrote there: only a folder that is one is left alone
        if any(path.is_symlink() or not path.is_dir() for path in (folder.work, kept)):
            storage.remove_tree(folder.work)
            folder.work.mkdir(mode=0o700)
            return
        folder.work.chmod(0o700)
        for other in folder.work.iterdir():
            if other.name != CHECKPOINTS_FOLDER:
                storage.remove_tree(other)


def _number(event: Event, name: str) -> float:
    value = event.fields.get(name)
    return float(value) if isinstance(value, int | float) and -1e12 < value < 1e12 else 0.0
