"""A refused drop's way into ``rejected/NAME@SHA12-N/``: as it came, with the reason beside it, whole or not at all.

After the job store has the outcome, or when ``intake`` refused. The folder is built under a temporary name with a plan of
what moves, so that a crash at any point is finished by :func:`recover_rejected`. Nothing is opened to be moved: links and
FIFOs move as themselves. Only across file systems are plain files copied.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeopt.daemon import companions
from edgeopt.daemon.drops import Drop, full_path
from edgeopt.daemon.names import escaped
from edgeopt.daemon.scan import describe
from edgeopt.daemon.storage import fsync_folder, remove_tree, storage_errors, write_file
from edgeopt.layout import REASON_FILE

_PLAN_FILE = ".plan.json"
_UNFINISHED = ".tmp-"
_CHUNK_BYTES = 1 << 20


def move_to_rejected(drop: Drop, rejected_root: Path, *, name: str, sha12: str, reason: Mapping[str, Any]) -> Path:
    """Move what is left of a drop to ``rejected_root/NAME@SHA12-N/``, and give that folder.

    Asked again for a drop that is already there, it gives the folder that holds it. Folders get mode 0700, files 0600.
    Raises :class:`~edgeopt.errors.StorageFault` or :class:`~edgeopt.errors.DiskFull`; then a later call goes on.
    """
    with storage_errors(f"moving {escaped(drop.path)} to the rejected ones"):
        rejected_root.mkdir(mode=0o700, parents=True, exist_ok=True)
        label = f"{name}@{sha12}"
        if (begun := _begun(rejected_root, label, drop)) is not None:
            return _finish(*begun)
        entries = {path: look for path in _leaving(drop) if (look := _look(full_path(drop, path))) is not None}
        taken = _numbers(rejected_root, label)
        if not entries and taken:
            return rejected_root / f"{label}-{max(taken)}"
        building = rejected_root / f"{_UNFINISHED}{label}-{max(taken, default=0) + 1}"
        building.mkdir(mode=0o700)
        fsync_folder(rejected_root)
        plan = {"root": drop.root, "entries": entries, "reason": dict(reason)}
        write_file(building / _PLAN_FILE, json.dumps(plan).encode(), mode=0o600)
        return _finish(building, plan)


def recover_rejected(rejected_root: Path) -> list[Path]:
    """Finish what a crash left half-moved, and give the folders; to be called at start, before the inbox is read."""
    recovered = []
    with storage_errors("recovering the rejected ones"):
        for building in sorted(rejected_root.glob(f"{_UNFINISHED}*@*-*")):
            plan = _read_plan(building / _PLAN_FILE)
            if plan is not None:
                recovered.append(_finish(building, plan))
            elif {entry.name for entry in building.iterdir()} - {_PLAN_FILE}:
                recovered.append(_rename(building))  # everything had moved, or the plan is torn: nothing is thrown away
            else:
                remove_tree(building)  # the plan was never whole, so nothing had moved
    return recovered


def _leaving(drop: Drop) -> list[str]:
    """The drop's entries and the data files its model names, without those that another model in the inbox needs."""
    whole = replace(drop, entries=tuple(dict.fromkeys((*drop.entries, *companions.data_of(drop)))))
    shared = companions.shared_data(whole)
    leaving = [path for path in whole.entries if path not in shared]
    # the model last: while it stands in the inbox as it was, the move is not over
    return sorted(leaving, key=lambda path: path == drop.model)


def _look(path: Path) -> list[int] | None:
    """What a plan remembers of an entry, or None where there is none.

    A folder is known by its inode alone: its times change when half of it was carried away.
    """
    try:
        kind, stamp = describe(os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [stamp.inode] if kind == "dir" else [stamp.inode, stamp.size_bytes, stamp.mtime_ns]


def _begun(root: Path, label: str, drop: Drop) -> tuple[Path, dict[str, Any]] | None:
    """A move of this very drop that an error cut short."""
    for building in root.glob(f"{_UNFINISHED}{label}-*"):
        plan = _read_plan(building / _PLAN_FILE)
        if plan is not None and plan["root"] == drop.root and drop.path in plan["entries"]:
            return building, plan
    return None


def _numbers(root: Path, prefix: str) -> list[int]:
    names = (entry.name.removeprefix(_UNFINISHED) for entry in root.iterdir())
    tails = (name.removeprefix(f"{prefix}-") for name in names if name.startswith(f"{prefix}-"))
    return [int(tail) for tail in tails if tail.isascii() and tail.isdigit()]


def _read_plan(path: Path) -> dict[str, Any] | None:
    try:
        plan = json.loads(path.read_bytes())
        return plan if {"root", "entries", "reason"} <= plan.keys() else None
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def _finish(building: Path, plan: Mapping[str, Any]) -> Path:
    """Move what has not moved yet. A file that was replaced since the plan was made is a new drop and stays."""
    reason = building / REASON_FILE
    reason.unlink(missing_ok=True)
    write_file(reason, json.dumps(plan["reason"], indent=1).encode(), mode=0o600)
    for path, look in plan["entries"].items():
        source = Path(plan["root"]) / path
        if _look(source) == look:
            kept = path if path not in (REASON_FILE, _PLAN_FILE) else f"{path}~"
            target = building / kept
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _move(source, target)
            _make_private(target)
    return _rename(building)


def _rename(building: Path) -> Path:
    (building / _PLAN_FILE).unlink(missing_ok=True)
    fsync_folder(building)
    target = building.with_name(building.name.removeprefix(_UNFINISHED))
    building.rename(target)
    fsync_folder(target.parent)
    return target


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _carry(source, target)
    else:
        fsync_folder(target.parent)


def _carry(source: Path, target: Path) -> None:
    """Move across file systems: what a rename cannot do is made anew, and only then removed.

    A hard link is only unlinked (its content has another name, which may be a secret's), as are sockets and devices.
    """
    kind, _ = describe(status := os.lstat(source))
    if kind == "dir":
        target.mkdir(mode=0o700, exist_ok=True)
        for entry in sorted(source.iterdir()):
            _carry(entry, target / entry.name)
        fsync_folder(target)
        source.rmdir()
        return
    target.unlink(missing_ok=True)
    if kind == "symlink":
        target.symlink_to(source.readlink())
    elif kind == "fifo":
        os.mkfifo(target, 0o600)
    elif kind == "file" and status.st_nlink == 1:
        _copy(source, target, status)
    fsync_folder(target.parent)
    source.unlink()


def _copy(source: Path, target: Path, looked_at: os.stat_result) -> None:
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        now = os.lstat(source)
        if not os.path.samestat(now, os.fstat(reading)) or not os.path.samestat(now, looked_at) or now.st_nlink > 1:
            raise OSError(errno.ESTALE, "the file was replaced while it was moved")
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            while data := os.read(reading, _CHUNK_BYTES):
                view = memoryview(data)
                while view:
                    view = view[os.write(writing, view) :]
            os.fsync(writing)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _make_private(path: Path) -> None:
    """Mode 0700 and 0600 below ``path``; where the files are not ours to change, the folder around them is closed."""
    found = [path]
    if path.is_dir() and not path.is_symlink():
        found += [Path(parent) / name for parent, folders, files in os.walk(path) for name in (*folders, *files)]
    for entry in found:
        with suppress(OSError):
            status = os.lstat(entry)
            if stat.S_ISDIR(status.st_mode):
                entry.chmod(0o700)
            elif stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                entry.chmod(0o600)
