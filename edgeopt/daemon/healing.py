"""Published versions that no longer hold are made anew, one at a time, while the last good one serves.

Turned by the main loop, after everything that a drop needs. Three things are looked after: conditions, which are held
against today's at the start and daily; published files, which are read again a little every second; and versions that
nobody has tried yet. What is stale or damaged becomes a job out of the kept source (``sources``), only while no other job
waits, so that a runtime upgrade with five hundred models never stands between a drop and its worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from edgeopt import fingerprint, wire
from edgeopt.daemon import marks, retreat, scrub, shelf, smoke, sources, storage, terms
from edgeopt.daemon.house import House
from edgeopt.daemon.jobs import ACTIVE, Job
from edgeopt.daemon.marks import DAMAGED, FAILED, UNTRIED, Mark
from edgeopt.daemon.models import Model
from edgeopt.daemon.outcomes import Outcomes
from edgeopt.daemon.scrub import Finding
from edgeopt.daemon.smoke import Prober
from edgeopt.daemon.sources import Remake
from edgeopt.errors import CorruptState, EdgeoptError, EnvironmentFault
from edgeopt.layout import JobFolder
from edgeopt.orders import Healing as Heals
from edgeopt.orders import JobOrder

DAY_S = 86400.0
"""Between two comparisons, and between the starts of two rounds of reading."""
_SLICE_EVERY_S = 1.0
_LOOK_EVERY_S = 2.0
_PRUNE_EVERY_S = 300.0
_AGAIN_S = 60.0
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """A version to be made anew, and why."""

    name: str
    version: int
    reasons: tuple[str, ...]


def need_of(model: Model) -> Need | None:
    """What a model needs. A pinned one is held where it is on purpose, so it is only reported."""
    newest = model.shelf.versions[-1]
    if model.shelf.pinned:
        return None
    mark = model.shelf.marks.get(newest)
    if mark is not None and mark.kind == DAMAGED:
        return Need(name=model.shelf.name, version=newest, reasons=(DAMAGED,))
    reasons = tuple(reason for reason in model.facts.stale if reason in fingerprint.REASONS)
    return Need(name=model.shelf.name, version=model.shelf.current, reasons=reasons) if reasons else None


class Healing:
    """Every method runs in the loop's thread; files are read and copied in the house's ``care_hands``."""

    def __init__(self, house: House, outcomes: Outcomes) -> None:
        self._house = house
        self._outcomes = outcomes
        self._due_s: dict[str, float] = {}
        self._busy = False
        self._round: Iterator[Finding | None] | None = None
        self._tried: set[Need] = set()
        """Not again before the next comparison: what could not be made, or was made and is stale all the same."""

    def turn(self, now_s: float) -> None:
        """Do what is due, one thing at a time."""
        if self._due("compare", DAY_S, now_s):
            self._compare()
        if self._due("sources", _PRUNE_EVERY_S, now_s):
            self._prune()
        if self._round is None and self._due("round", DAY_S, now_s):
            self._round = scrub.round_(self._house.folders.published)
        if self._busy or self._outcomes.floor.paused:
            return
        if self._due("look", _LOOK_EVERY_S, now_s) and (self._try_untried() or self._make_anew()):
            return
        if self._round is not None and self._due("slice", _SLICE_EVERY_S, now_s):
            self._do(partial(next, self._round, self), self._read_on)

    # ------------------------------------------------------------ conditions
    def _compare(self) -> None:
        house = self._house
        self._tried.clear()
        house.models.compare()
        for model in house.models.unwell():
            if model.facts.stale:
                changed = fingerprint.changes(model.then, fingerprint.here(model.then.runtime))
                house.log.warning(
                    "version-stale",
                    model=model.shelf.name,
                    version=model.shelf.current,
                    reasons=",".join(model.facts.stale),
                    changed="; ".join(change.text for change in changed),
                    pinned=model.shelf.pinned,
                )

    def _make_anew(self) -> bool:
        """Stage the next source where nothing else waits."""
        house = self._house
        needs = (need for model in house.models.unwell() if (need := need_of(model)) is not None)
        need = next((need for need in needs if need not in self._tried), None)
        if need is None or any(house.store.counts()[state] for state in ACTIVE):
            return False
        self._tried.add(need)
        key = house.store.served_keys().get((need.name, need.version), "")
        limits = terms.worker_limits(house.config, device_memory_bytes=house.device_memory_bytes)
        remake = Remake(key=key, limits=limits, heals=Heals(version=need.version, reasons=need.reasons))
        folders = house.folders
        self._do(
            partial(sources.stage, folders.sources, folders.staging, remake), partial(self._staged, need, remake.key)
        )
        return True

    def _staged(self, need: Need, key: str, future: Future[JobOrder]) -> None:
        house = self._house
        fault = future.exception()
        if isinstance(fault, FileNotFoundError):
            house.log.warning(
                "no-source-to-heal-from", model=need.name, version=need.version, hint="Drop the model again."
            )
            return
        if isinstance(fault, CorruptState):
            house.log.alert("source-damaged", model=need.name, reason=fault.message, hint=fault.hint)
            with suppress(OSError):
                storage.remove_tree(sources.folder_of(house.folders.sources, key).root)
            return
        if isinstance(fault, EnvironmentFault):
            self._tried.discard(need)
            self._due_s["look"] = house.clock() + _AGAIN_S
            house.log.warning("healing-held", model=need.name, reason=fault.message, hint=fault.hint)
            return
        order = future.result()
        house.store.add(
            Job(
                job_id=order.job_id,
                name=need.name,
                key=key,
                bytes=order.source.bytes,
                source_file=order.source.file,
                source_sha256=order.source.sha256,
                drop_settled=True,
            )
        )
        house.log.info(
            "job-queued", job=order.job_id, model=need.name, heals=need.version, reasons=",".join(need.reasons)
        )

    def _prune(self) -> None:
        house = self._house
        wanted = {*house.store.served_keys().values(), *(job.key for job in house.store.jobs(states=ACTIVE))}
        with storage.storage_errors("looking after the kept sources"):
            sources.prune(house.folders.sources, wanted)

    # ------------------------------------------------------------ files
    def _read_on(self, future: Future[Finding | Healing | None]) -> None:
        """A slice was read; ``self`` stands for the end of the round."""
        house, fault = self._house, future.exception()
        if isinstance(fault, OSError | EdgeoptError):
            self._round = None
            house.log.warning("reading-again-failed", reason=str(fault))
            return
        found = future.result()
        if found is self:
            self._round = None
        elif isinstance(found, Finding):
            where = (house.folders.published, found.name, found.version)
            if found.problem:
                mark = Mark(kind=DAMAGED, reason=found.problem)
                self._do(partial(retreat.retreat, *where, mark), partial(self._retreated, found.name, found.version))
            else:
                self._do(partial(retreat.found_whole, *where), partial(self._mended, found.name))

    def _retreated(self, name: str, version: int, future: Future[int]) -> None:
        house, current = self._house, future.result()
        found = house.models.refresh(name)
        if found.current:
            house.store.set_current(name, found.current, pinned=found.pinned)
        mark = found.marks.get(version)
        house.log.alert(
            "version-bad",
            model=name,
            version=version,
            reason=mark.reason if mark else "",
            current=current,
            hint="The version before serves." if current != version else "Drop the model again.",
        )

    def _mended(self, name: str, future: Future[bool]) -> None:
        if future.result():
            self._house.models.refresh(name)
            self._house.log.info("version-whole-again", model=name)

    # ------------------------------------------------------------ versions that nobody tried
    def _try_untried(self) -> bool:
        house = self._house
        untried = (
            model.shelf
            for model in house.models.unwell()
            if (mark := model.shelf.marks.get(model.shelf.current)) is not None and mark.kind == UNTRIED
        )
        if (found := next(untried, None)) is None:
            return False
        key = house.store.served_keys().get((found.name, found.current), "")
        prober = Prober(work=house.folders.staging, should_stop=lambda: house.stopping)
        self._do(
            partial(_try, found.folder, found.current, sources.folder_of(house.folders.sources, key), prober),
            partial(self._was_tried, found.name, found.current),
        )
        return True

    def _was_tried(self, name: str, version: int, future: Future[str]) -> None:
        house, fault = self._house, future.exception()
        if isinstance(fault, EdgeoptError):
            return  # the daemon is stopping, or the disk is sick: later
        problem = future.result()
        if problem:
            step = partial(retreat.retreat, house.folders.published, name, version, Mark(kind=FAILED, reason=problem))
            self._do(step, partial(self._retreated, name, version))
        else:
            house.models.refresh(name)

    # ------------------------------------------------------------ inside
    def _do(self, work: Callable[[], Result], then: Callable[[Future[Result]], None]) -> None:
        """One task at a time; the next may be given out of ``then``."""
        self._busy = True

        def done(future: Future[Result]) -> None:
            self._busy = False
            then(future)

        self._house.care_hands.do(work, done)

    def _due(self, what: str, every_s: float, now_s: float) -> bool:
        if now_s < self._due_s.get(what, now_s):
            return False
        self._due_s[what] = now_s + every_s
        return True


def _try(home: Path, version: int, source: JobFolder, prober: Prober) -> str:
    """Try a version out; where it passes, or nothing is known of what it was made of, its mark goes."""
    problem = ""
    if source.order.is_file():
        try:
            order = wire.loads(JobOrder, source.order.read_bytes())
            problem = smoke.failure_of(home / str(version), source, order, prober)
        except ValueError:
            problem = ""  # an order of another edgeopt
    if not problem:
        with storage.storage_errors(f"taking the mark off version {version}"), shelf.locked(home):
            marks.take_off(home, version)
    return problem
