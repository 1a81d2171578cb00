"""What the daemon does first after a start, before it is ready: make folders and database agree again.

The folders are the truth. Half-made versions go, ``current`` is repaired, versions the database does not know are
adopted, what was running is queued again (or, after its third crash, rejected), staged copies without a job are
removed, and drops whose job is over leave the inbox before it is read for the first time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from edgeopt.daemon import intake, marks, shelf, sources, storage, supervise
from edgeopt.daemon.failures import Failure
from edgeopt.daemon.front import DropNote
from edgeopt.daemon.house import House
from edgeopt.daemon.jobs import ACTIVE, CRASH_LIMIT, RUNNING, Job
from edgeopt.daemon.marks import UNTRIED, Mark
from edgeopt.daemon.outcomes import Outcomes
from edgeopt.daemon.printable import printable
from edgeopt.daemon.shelf import Shelf
from edgeopt.errors import BadOutput, Disposition
from edgeopt.layout import REASON_FILE, JobFolder

KEPT_CACHES = 16
_REASON_BYTES = 64 << 10


def recover(house: House, outcomes: Outcomes) -> None:
    """Bring everything into order; may be repeated, and interrupted at any point."""
    if house.store.moved_aside is not None:
        house.log.alert("database-rebuilt", moved_to=str(house.store.moved_aside))
    _shelves(house)
    intake.recover_rejected(house.folders.rejected)
    if not house.store.jobs(limit=1):
        _remember_rejected(house)
    _finish_published(house)
    _end_leftovers(house)
    for job in house.store.recover():
        house.log.warning("job-crash-loop", job=job.job_id, model=job.name, times=CRASH_LIMIT)
        outcomes.reject(job, _crash_loop())
    _jobs(house, outcomes)
    prune_caches(house)


def _shelves(house: House) -> None:
    known = {model.name: model for model in house.store.models()}
    for found in shelf.recover(house.folders.published):
        _adopt(house, found)
        known.pop(found.name, None)
    for gone in known:
        house.store.forget_model(gone)
    house.models.refresh_moved()


def _adopt(house: House, found: Shelf) -> None:
    store = house.store
    missing = set(found.versions) - store.versions(found.name)
    for number in sorted(missing):
        with suppress(BadOutput, OSError):
            owner = shelf.read_manifest(found.folder / str(number)).get("job")
            key = owner.get("key") if isinstance(owner, dict) else None
            store.add_version(found.name, number, key if isinstance(key, str) else "")
    store.forget_versions(found.name, keep=found.versions)
    store.set_current(found.name, found.current, pinned=found.pinned)


def _remember_rejected(house: House) -> None:
    """A new database learns from ``rejected/`` what was refused, for ``explain`` and ``retry``."""
    for folder, reason in reasons(house.folders.rejected):
        name, _, rest = folder.name.rpartition("@")
        house.store.add(
            Job(
                job_id=reason.get("job") or f"old-{folder.name}",
                name=name or folder.name,
                key=f"refused:{folder.name}",
                state="rejected",
                source_sha256=rest.partition("-")[0],
                source_file=reason.get("original_name", ""),
                stage=reason.get("stage", ""),
                code=reason.get("code", ""),
                message=reason.get("message", ""),
                hint=reason.get("hint", ""),
                drop_settled=True,
            )
        )


def reasons(rejected: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Every folder in ``rejected/`` with its reason, texts made printable."""
    with suppress(FileNotFoundError):
        for entry in sorted(os.scandir(rejected), key=lambda entry: entry.name):
            folder = Path(entry.path)
            with suppress(OSError, ValueError):
                with (folder / REASON_FILE).open("rb") as file:
                    reason = json.loads(file.read(_REASON_BYTES))
                if isinstance(reason, dict):
                    yield folder, {str(name): printable(str(value)) for name, value in reason.items()}


def _end_leftovers(house: House) -> None:
    """Workers that outlived their daemon end; staged copies without a job go."""
    active = {job.job_id for job in house.store.jobs(states=ACTIVE)}
    with storage.storage_errors("looking after the staged jobs"):
        for entry in list(house.folders.staging.iterdir()):
            if supervise.end_leftover(JobFolder(entry)):
                house.log.warning("worker-ended", job=entry.name, reason="it outlived its daemon")
            if entry.name not in active:
                _keep_source(house, entry)
                storage.remove_tree(entry)


def _keep_source(house: House, entry: Path) -> None:
    """A crash may have come between a job's outcome and the keeping of what it was made of."""
    # without it the model has to be dropped again one day: no reason to keep the daemon from starting
    with suppress(KeyError, OSError):
        job = house.store.get(entry.name)
        if job.state == "published":
            sources.keep(JobFolder(entry), job.key, house.folders.sources)


def _finish_published(house: House) -> None:
    """A job whose version is there, while the crash came before that was noted, is over: its work is not done again."""
    for job in house.store.jobs(states=RUNNING):
        found = shelf.read(house.folders.published, job.name)
        for number in reversed(found.versions):
            with suppress(BadOutput, OSError):
                owner = shelf.read_manifest(found.folder / str(number)).get("job")
                if isinstance(owner, dict) and owner.get("id") == job.job_id:
                    _complete(house, found, number)
                    with storage.storage_errors(f"marking version {number} of {found.name}"):
                        marks.put(found.folder, number, Mark(kind=UNTRIED))
                    house.store.finish(job.job_id, "published", version=number)
                    house.log.info(
                        "job-published", job=job.job_id, model=job.name, version=number, noted="after a crash"
                    )
                    break


def _complete(house: House, found: Shelf, number: int) -> None:
    """The publish may have ended before ``current`` was swapped."""
    if number == found.highest and not found.pinned:
        with storage.storage_errors(f"publishing {found.name}"), shelf.locked(found.folder):
            shelf.point_current(found.folder, number)
        house.models.refresh(found.name)
        house.store.set_current(found.name, number, pinned=0)


def _jobs(house: House, outcomes: Outcomes) -> None:
    """The queued ones have their drop in hand; the finished ones still let it go."""
    for job in house.store.jobs(states=(*ACTIVE, "cancelled")):
        if job.state in ACTIVE and not (house.folders.staging / job.job_id / "order.json").is_file():
            house.store.finish(job.job_id, "failed", reason=("corrupt-state", "its staged copy was lost", "", ""))
            house.store.settle_drop(job.job_id)
            continue
        if (note := DropNote.read(job.drop_json)) is not None:
            outcomes.front.hold(note)
    for job in house.store.unsettled():
        if job.job_id not in outcomes.leaving.ids:
            outcomes.leaving.leave(job)


def prune_caches(house: House) -> None:
    """Keep the candidates of the models that were worked on last."""
    active = {job.source_sha256[:32] for job in house.store.jobs(states=ACTIVE)}
    with storage.storage_errors("looking after the cache"):
        caches = sorted(house.folders.cache.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in [path for path in caches if path.name not in active][KEPT_CACHES:]:
            storage.remove_tree(old)


def _crash_loop() -> Failure:
    return Failure(
        code="worker-crashed",
        message=f"its worker, or the daemon with it, crashed {CRASH_LIMIT} times on this content",
        hint="Look into the log, then use edgeopt retry.",
        stage="",
        disposition=Disposition.QUARANTINE,
    )


def restore(house: House, job: Job) -> bool:
    """Put a rejected drop back into the inbox, whole and under its own name; False where it is not to be found.

    What stands in the inbox under the same name is never replaced.
    """
    found = next(
        (folder for folder, reason in reasons(house.folders.rejected) if reason.get("job") == job.job_id), None
    )
    if found is None:
        return False
    with storage.storage_errors(f"putting {job.name} back into the inbox"):
        entries = [entry for entry in found.iterdir() if entry.name != REASON_FILE]
        if any(os.path.lexists(house.folders.inbox / entry.name) for entry in entries):
            return False
        # the model last: its sidecars are there when it is seen
        for entry in sorted(entries, key=lambda entry: entry.name.endswith(".onnx")):
            storage.move(entry, house.folders.inbox / entry.name)
        storage.remove_tree(found)
    return True
