"""What published versions were made of, kept so that they can be made anew: ``state/sources/<content key>/``.

When a job is published its staged ``input/`` and ``order.json`` move here, which costs two renames and no copy. The folder
is named after the job's content key, which is a hash over every file in it, so a source says by itself whether it is
still whole. Only what is served (and newer) keeps its source, within a share of the disk; without one a version still
serves, and is made anew when its model is dropped again.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeopt import wire
from edgeopt.daemon import intake, storage
from edgeopt.daemon.taking import RESERVE_BYTES, RESERVE_TIMES
from edgeopt.errors import CorruptState, DiskFull
from edgeopt.layout import BUNDLE_FORMAT, JobFolder
from edgeopt.orders import Healing, JobOrder
from edgeopt.policy import WorkerLimits

MOST_SHARE = 0.1
"""Of the file system that holds ``state/``."""
_NEW = ".new-"
_KEY_DIGITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Remake:
    """What a job that heals is made of: the source's key, today's limits, the version it takes the place of."""

    key: str
    limits: WorkerLimits
    heals: Healing


def folder_of(root: Path, key: str) -> JobFolder:
    """Where the source with this content key lies, or would."""
    return JobFolder(root / key[:_KEY_DIGITS])


def keep(staged: JobFolder, key: str, root: Path) -> None:
    """Move what a published job was made of here; OSError where the disk refuses, then nothing is kept.

    Asked again, or for a content that is here already, it does nothing.
    """
    target = folder_of(root, key)
    if target.root.exists() or not staged.order.is_file():
        return
    root.mkdir(mode=0o700, exist_ok=True)
    fresh = JobFolder(root / f"{_NEW}{secrets.token_hex(8)}")
    fresh.root.mkdir(mode=0o700)
    staged.input.rename(fresh.input)
    staged.order.rename(fresh.order)
    fresh.root.rename(target.root)
    storage.fsync_folder(root)


def stage(root: Path, staging_root: Path, remake: Remake) -> JobOrder:
    """Copy a source into a new job's folder and write its order; every byte is held against the key.

    Raises FileNotFoundError where the source was not kept, :class:`~edgeopt.errors.CorruptState` where it is not what
    it was, :class:`~edgeopt.errors.EnvironmentFault` where the disk is full or broken. Then nothing is left behind.
    """
    source = folder_of(root, remake.key)
    if not source.order.is_file():
        raise FileNotFoundError(source.root)
    folder = JobFolder(staging_root / secrets.token_hex(8))
    with ExitStack() as undo, storage.storage_errors(f"staging the source {source.root.name}"):
        undo.callback(shutil.rmtree, folder.root, ignore_errors=True)
        folder.create()
        _require_room(folder.root, _bytes_under(source.root))
        order = _read(source, remake.key, _copy_all(source.input, folder.input))
        order = replace(order, job_id=folder.root.name, limits=remake.limits, heals=remake.heals)
        storage.fsync_folder(folder.input)
        storage.write_file(folder.order, wire.dumps(order).encode(), mode=0o600)
        storage.fsync_folder(folder.root)
        storage.fsync_folder(staging_root)
        undo.pop_all()
    return order


def prune(root: Path, wanted: Collection[str], *, share: float = MOST_SHARE) -> list[Path]:
    """Remove sources that nothing served was made of, then the oldest beyond ``share`` of the disk; what was removed."""
    if not root.is_dir():
        return []
    names = {key[:_KEY_DIGITS] for key in wanted}
    room = os.statvfs(root)
    left = share * room.f_blocks * room.f_frsize
    removed = []
    for entry in sorted(root.iterdir(), key=lambda path: path.lstat().st_mtime, reverse=True):
        size = _bytes_under(entry) if entry.name in names else 0
        if entry.name not in names or size > left:
            storage.remove_tree(entry)
            removed.append(entry)
        else:
            left -= size
    return removed


def _read(source: JobFolder, key: str, digests: dict[str, str]) -> JobOrder:
    """The order as it was; its policy goes into the key by its own text, which a newer edgeopt might write otherwise."""
    text = source.order.read_bytes()
    try:
        told: dict[str, Any] = json.loads(text)
        policy = json.dumps(told["policy"], allow_nan=False, separators=(",", ":"))
        order = wire.decode(JobOrder, told)
    except (ValueError, KeyError, TypeError) as fault:
        raise CorruptState(f"the kept source {key[:12]} has no readable order", hint="Drop the model again.") from fault
    # a bundle's key is that of its archive, whose members were held against their own hashes when it was unpacked
    if order.source.format != BUNDLE_FORMAT and intake.content_key(digests, policy) != key:
        raise CorruptState(f"the kept source {key[:12]} is not what it was", hint="Drop the model again.")
    return order


def _copy_all(source: Path, target: Path) -> dict[str, str]:
    """Copy a tree of plain files; SHA-256 by name below it."""
    digests = {}
    for file in sorted(source.rglob("*")):
        name = file.relative_to(source)
        if stat.S_ISDIR(file.lstat().st_mode):
            (target / name).mkdir(mode=0o700)
        else:
            digests[name.as_posix()] = storage.copy_file(file, target / name, mode=0o600)
    return digests


def _require_room(folder: Path, size_bytes: int) -> None:
    need = RESERVE_TIMES * size_bytes + RESERVE_BYTES
    room = os.statvfs(folder)
    if room.f_bavail * room.f_frsize < need:
        raise DiskFull(
            f"{room.f_bavail * room.f_frsize} bytes are free and the job needs {need}", hint="Free some disk space."
        )


def _bytes_under(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
