"""The inbox as it is right now: one bounded listing, which is the truth that file events only hint at.

Stands first in the daemon: ``scan`` goes in with the inbox's path and comes out with a :class:`Listing`, which ``settle``
and ``drops`` read. Nothing is opened and no link is followed, so a FIFO, a link into /proc or a dead device cannot hold
the loop up. Names that are not UTF-8 survive as surrogate escapes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from edgeopt.daemon.names import is_waiting

Kind: TypeAlias = Literal["file", "dir", "symlink", "fifo", "other"]

DROP_DEPTH = 4
"""Levels below the inbox: NAME/ calibration/ CLASS/ picture."""
DROP_ENTRIES = 20_000
"""Entries listed of one folder drop; a fuller one is refused rather than scanned for ever."""
INBOX_ENTRIES = 100_000
"""Entries listed at the inbox's top; those beyond wait until the first ones are gone."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one state of a file from the next without reading it."""

    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int = 0
    """Moves with every write and cannot be set back, unlike ``mtime_ns``."""


@dataclass(frozen=True, slots=True)
class Found:
    """One entry; ``path`` is relative to the inbox."""

    path: str
    kind: Kind
    stamp: Stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Everything in the inbox, sorted by path; iterating gives the :class:`Found`."""

    root: Path
    found: tuple[Found, ...] = ()
    missing: bool = False
    """The inbox could not be listed at all. Nothing may be concluded from the emptiness."""
    fault: str | None = None
    """Why, in the operating system's words."""
    overfull: frozenset[str] = frozenset()
    """Top folders with more than :data:`DROP_ENTRIES` entries or deeper than :data:`DROP_DEPTH`."""

    def __iter__(self) -> Iterator[Found]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)


def scan(inbox: Path) -> Listing:
    """List the inbox; never raises for what the file system says."""
    try:
        top = _entries(inbox, limit=INBOX_ENTRIES)
    except OSError as error:
        return Listing(root=inbox, missing=True, fault=f"{error.strerror or error}")
    found: list[Found] = []
    overfull: set[str] = set()
    for entry in top:
        found.append(entry)
        if entry.kind == "dir" and not is_waiting(entry.path):
            inside, whole = _inside(inbox, entry.path)
            found.extend(inside)
            if not whole:
                overfull.add(entry.path)
    found.sort(key=lambda entry: entry.path)
    return Listing(root=inbox, found=tuple(found), overfull=frozenset(overfull))


def _inside(inbox: Path, folder: str) -> tuple[list[Found], bool]:
    """The entries below one top folder, and whether they are all of them."""
    found: list[Found] = []
    pending = [(folder, 1)]
    while pending:
        path, depth = pending.pop()
        room = DROP_ENTRIES - len(found)
        try:
            entries = _entries(inbox / path, limit=room + 1, prefix=path + "/")
        except OSError:
            continue  # gone, replaced by a file, or not ours to read: the next scan or intake will tell
        if len(entries) > room:
            return found + entries[:room], False
        found.extend(entries)
        folders = [entry.path for entry in entries if entry.kind == "dir"]
        if folders and depth >= DROP_DEPTH:
            return found, False
        pending.extend((below, depth + 1) for below in folders)
    return found, True


def _entries(folder: Path, *, limit: int, prefix: str = "") -> list[Found]:
    found: list[Found] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if len(found) >= limit:
                break
            try:
                found.append(Found(prefix + entry.name, *describe(entry.stat(follow_symlinks=False))))
            except FileNotFoundError:
                continue  # removed between listing and looking
    return found


def describe(status: os.stat_result) -> tuple[Kind, Stamp]:
    """Kind and stamp out of an lstat or fstat."""
    return _kind(status.st_mode), Stamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _kind(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "dir"
    if stat.S_ISLNK(mode):
        return "symlink"
    return "fifo" if stat.S_ISFIFO(mode) else "other"
