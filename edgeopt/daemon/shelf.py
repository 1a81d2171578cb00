"""One published name on disk: its versions, where ``current`` points, what is pinned, what may go.

``published/NAME/`` is the truth; the job store only indexes it. A version folder appears by one rename with its
manifest inside and is never changed again; ``current`` is a link that is swapped by one rename, so a reader sees the old
version or the new one. ``.pinned`` holds the number that ``current`` is to stay at. Names that begin with a dot are
ours, half made, and removed at the next start.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.daemon import marks, storage
from edgeopt.daemon.marks import Mark
from edgeopt.errors import BadOutput, UsageError
from edgeopt.layout import CURRENT_LINK, MANIFEST_FILE

MANIFEST_BYTES = 16 << 20
PIN_FILE = ".pinned"
_TEMPORARY = (".tmp-", ".current-", ".gone-")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """What lies under one name. ``current`` and ``pinned`` are 0 where there is none."""

    name: str
    folder: Path
    versions: tuple[int, ...]
    """Version folders with a manifest, ascending."""
    highest: int
    """The highest number taken, by a folder of whatever content."""
    current: int
    pinned: int
    marks: Mapping[int, Mark] = field(default_factory=dict)
    """What was found out about versions since, by number."""

    @property
    def bad(self) -> tuple[int, ...]:
        """Versions that nobody should be led to."""
        return tuple(number for number in self.versions if number in self.marks and self.marks[number].bad)

    @property
    def good(self) -> tuple[int, ...]:
        return tuple(number for number in self.versions if number not in self.bad)


def read(published_root: Path, name: str) -> Shelf:
    """The shelf of ``name``; an empty one where nothing was published yet."""
    home = published_root / name
    try:
        names = os.listdir(home)  # noqa: PTH208 - names only
    except FileNotFoundError:
        names = []
    taken = sorted(int(entry) for entry in names if _VERSION.fullmatch(entry))
    versions = tuple(number for number in taken if (home / str(number) / MANIFEST_FILE).is_file())
    current = _current(home)
    return Shelf(
        name=name,
        folder=home,
        versions=versions,
        highest=taken[-1] if taken else 0,
        current=current if current in versions else 0,
        pinned=_pinned(home),
        marks=marks.read(home, names),
    )


def read_all(published_root: Path) -> list[Shelf]:
    """Every shelf with a version on it, by name."""
    try:
        names = sorted(entry.name for entry in os.scandir(published_root) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
    shelves = (read(published_root, name) for name in names if _NAME.fullmatch(name))
    return [shelf for shelf in shelves if shelf.versions]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in a version's (or a job's out) folder.

    Raises :class:`~edgeopt.errors.BadOutput` where it is missing, no schema 1 manifest, or implausibly large.
    """
    path = folder / MANIFEST_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as fault:
        raise BadOutput("there is no manifest.json", hint="Look into the job's worker.log.") from fault
    with os.fdopen(descriptor, "rb") as file:
        text = file.read(MANIFEST_BYTES + 1)
    try:
        manifest = json.loads(text) if len(text) <= MANIFEST_BYTES else None
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("schema") != 1:
        raise BadOutput("manifest.json is not a manifest of schema 1", hint="Look into the job's worker.log.")
    for part in ("source", "artifact"):
        if not isinstance(manifest.get(part), dict):
            raise BadOutput(f"manifest.json says nothing of {part}", hint="Look into the job's worker.log.")
    return manifest


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """One writer at a time, also across processes; file systems without locks go without."""
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def point_current(home: Path, version: int) -> None:
    """Let ``current`` point to ``version``, durable when this returns."""
    if _current(home) == version:
        return
    fresh = home / f".current-{secrets.token_hex(4)}"
    fresh.symlink_to(str(version))
    fresh.rename(home / CURRENT_LINK)
    storage.fsync_folder(home)


def move_pin(home: Path, version: int) -> None:
    """Write down where ``current`` is to stay."""
    storage.replace_file(home / PIN_FILE, f"{version}\n".encode())


def rollback(published_root: Path, name: str, version: int | None = None) -> int:
    """Let ``current`` point back: to ``version``, or to the one before. Returns the version; a pin moves along.

    Raises :class:`~edgeopt.errors.UsageError` where there is no such version.
    """
    shelf = _existing(published_root, name)
    wanted = (
        version if version is not None else max((number for number in shelf.good if number < shelf.current), default=0)
    )
    what = f"version {version}" if version is not None else f"version before {shelf.current}"
    _refuse(shelf, wanted, what)
    with storage.storage_errors(f"rolling {name} back"), locked(shelf.folder):
        if shelf.pinned:
            move_pin(shelf.folder, wanted)
        point_current(shelf.folder, wanted)
    return wanted


def pin(published_root: Path, name: str, version: int | None = None) -> int:
    """Hold ``current`` at ``version`` (or where it is), whatever is published later. Returns the version.

    Raises :class:`~edgeopt.errors.UsageError` where there is no such version.
    """
    shelf = _existing(published_root, name)
    wanted = shelf.current if version is None else version
    _refuse(shelf, wanted, f"version {wanted}")
    with storage.storage_errors(f"pinning {name}"), locked(shelf.folder):
        move_pin(shelf.folder, wanted)
        point_current(shelf.folder, wanted)
    return wanted


def unpin(published_root: Path, name: str) -> int:
    """Let ``current`` go to the newest version, and follow again. Returns the version."""
    shelf = _existing(published_root, name)
    newest = (shelf.good or shelf.versions)[-1]
    with storage.storage_errors(f"unpinning {name}"), locked(shelf.folder):
        (shelf.folder / PIN_FILE).unlink(missing_ok=True)
        point_current(shelf.folder, newest)
    return newest


def surplus(shelf: Shelf, *, keep: int) -> list[int]:
    """The oldest versions beyond ``keep``, never the current or pinned one.

    A marked one takes no good one's place, and stays for a look as long as older good ones do.
    """
    kept = (shelf.good or shelf.versions)[-max(1, keep) :]
    safe = (
        {shelf.current, shelf.pinned, *kept, *(number for number in shelf.bad if number > kept[0])} if kept else set()
    )
    return [number for number in shelf.versions if number not in safe]


def retain(shelf: Shelf, *, keep: int) -> list[int]:
    """Remove the :func:`surplus`; returns what was removed."""
    removed = surplus(shelf, keep=keep)
    for number in removed:
        gone = shelf.folder / f".gone-{number}-{secrets.token_hex(4)}"
        # out of the readers' sight in one step; what follows may be interrupted
        (shelf.folder / str(number)).rename(gone)
        marks.take_off(shelf.folder, number)
        storage.remove_tree(gone)
    return removed


def recover(published_root: Path) -> list[Shelf]:
    """After a crash: remove what is half made, repair ``current`` where it leads nowhere; returns every shelf."""
    with storage.storage_errors("looking after the published folder"):
        published_root.mkdir(parents=True, exist_ok=True)
        for home in sorted(published_root.iterdir()):
            if not home.is_symlink() and home.is_dir() and _NAME.fullmatch(home.name):
                _recover_one(published_root, home)
        return read_all(published_root)


def _recover_one(published_root: Path, home: Path) -> None:
    with locked(home):
        for entry in list(home.iterdir()):
            if entry.name.startswith(_TEMPORARY):
                storage.remove_tree(entry)
        shelf = read(published_root, home.name)
        if shelf.good and not shelf.current:
            point_current(home, shelf.pinned if shelf.pinned in shelf.good else shelf.good[-1])
        if not any(home.iterdir()):
            home.rmdir()  # a name whose first publish never came to an end


def is_name(name: str) -> bool:
    """Whether ``name`` may be a folder under published/."""
    return _NAME.fullmatch(name) is not None


def _existing(published_root: Path, name: str) -> Shelf:
    if not is_name(name) or not (shelf := read(published_root, name)).versions:
        raise UsageError(f"nothing is published as {name!r:.80}", hint="List the models with edgeopt status.")
    return shelf


def _refuse(shelf: Shelf, wanted: int, what: str) -> None:
    if wanted not in shelf.versions:
        raise UsageError(f"{shelf.name} has no {what}; it has {_listed(shelf)}", hint="Name one of these versions.")
    if wanted in shelf.bad:
        reason = shelf.marks[wanted].reason or "marked as bad"
        raise UsageError(f"version {wanted} of {shelf.name} cannot serve: {reason}", hint="Name another version.")


def _listed(shelf: Shelf) -> str:
    return ", ".join(map(str, shelf.versions))


def _current(home: Path) -> int:
    try:
        target = os.readlink(home / CURRENT_LINK)  # noqa: PTH115 - the text of the link
    except OSError:
        return 0
    return int(target) if _VERSION.fullmatch(target) else 0


def _pinned(home: Path) -> int:
    try:
        text = (home / PIN_FILE).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return 0
    return int(text) if _VERSION.fullmatch(text) else 0
