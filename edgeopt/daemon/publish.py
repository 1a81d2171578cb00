"""A finished job's ``out/`` becomes a version that readers see whole or not at all.

After ``supervise`` and before the job's outcome is committed. Everything is copied into a temporary folder on the
published file system and hashed on the way, so what is checked is what is published; then fsync of every file and
folder, one rename to the version's number, one rename of ``current``. A crash at any point leaves either nothing but
a temporary folder, or a version that the same job recognises as its own when it comes again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgeopt import fingerprint
from edgeopt.config.schema import Publish
from edgeopt.daemon import shelf as shelves
from edgeopt.daemon import storage
from edgeopt.daemon.shelf import Shelf, pin, recover, rollback, unpin
from edgeopt.errors import BadOutput
from edgeopt.layout import CHECKSUMS_FILE, MANIFEST_FILE
from edgeopt.orders import Healing

__all__ = ["Origin", "Published", "lead", "pin", "publish", "recover", "rollback", "unpin"]

_MOST_FILES = 64
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DEFAULT = Publish()


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Whose outcome it is: what lets a repeated publish recognise itself, and names the version to duplicates."""

    job_id: str = ""
    key: str = ""
    """The job's content key (intake)."""
    highest: int = 0
    """The highest version this name ever had, also where the folder is gone."""
    created_s: float | None = None
    """Wall clock time for the manifest; now, where None."""
    heals: Healing | None = None
    """The stale or damaged version that this one takes the place of."""
    untried: bool = False
    """Leave ``current`` where it is: the caller tries the version first, then calls :func:`lead`."""


_NOBODY = Origin()


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The version that holds the job's outcome; ``fresh`` is False where it was there already."""

    name: str
    version: int
    folder: Path
    fresh: bool
    removed: tuple[int, ...] = ()
    """Old versions that made room."""


def publish(
    out: Path,
    name: str,
    published_root: Path,
    *,
    settings: Publish = _DEFAULT,
    origin: Origin = _NOBODY,
) -> Published:
    """Publish a worker's ``out/`` folder as the next version of ``name``, durable when this returns.

    Raises :class:`~edgeopt.errors.BadOutput` where the folder is not what its manifest says, and
    :class:`~edgeopt.errors.EnvironmentFault` where the disk refuses; then nothing is published and calling again is safe.
    """
    if not shelves.is_name(name):
        raise BadOutput(
            f"{name!r:.80} is no name for a model", hint="Use letters, digits, dots, dashes and underscores."
        )
    with storage.storage_errors(f"publishing {name}"):
        manifest = shelves.read_manifest(out)
        home = published_root / name
        home.mkdir(mode=0o755, parents=True, exist_ok=True)
        storage.fsync_folder(published_root)
        try:
            with shelves.locked(home):
                return _publish_locked(
                    out, manifest, shelves.read(published_root, name), settings=settings, origin=origin
                )
        except BadOutput:
            with suppress(OSError):
                home.rmdir()  # a name without a version is no model; with one, this does nothing
            raise


def _publish_locked(
    out: Path, manifest: dict[str, Any], shelf: Shelf, *, settings: Publish, origin: Origin
) -> Published:
    version = _same_outcome(manifest, shelf, origin)
    fresh = version == 0
    if fresh:
        version = max(shelf.highest, origin.highest) + 1
        stamped = manifest | {"name": shelf.name, "version": version, "created": _rfc3339(origin.created_s)}
        if origin.job_id:
            stamped["job"] = {"id": origin.job_id, "key": origin.key}
        if origin.heals is not None:
            stamped["healed"] = _healed(manifest, shelf, origin.heals)
        _add_version(out, stamped, shelf.folder, version=version, mode=settings.mode)
    removed = [] if origin.untried else _lead_locked(shelf.folder, version, keep=settings.keep)
    return Published(
        name=shelf.name, version=version, folder=shelf.folder / str(version), fresh=fresh, removed=tuple(removed)
    )


def lead(published: Published, *, keep: int) -> list[int]:
    """Let ``current`` point to a version that was tried, unless it is pinned elsewhere; what made room for it.

    Raises :class:`~edgeopt.errors.EnvironmentFault` where the disk refuses; calling again is safe.
    """
    home = published.folder.parent
    with storage.storage_errors(f"publishing {published.name}"), shelves.locked(home):
        return _lead_locked(home, published.version, keep=keep)


def _lead_locked(home: Path, version: int, *, keep: int) -> list[int]:
    shelf = shelves.read(home.parent, home.name)
    if not shelf.pinned and version in shelf.good:
        shelves.point_current(home, version)
    return shelves.retain(shelves.read(home.parent, home.name), keep=keep)


def _healed(manifest: dict[str, Any], shelf: Shelf, heals: Healing) -> dict[str, Any]:
    """Which version was found stale and why, and whether the work came to the same artifact once more."""
    document: dict[str, Any] = {"version": heals.version, "reasons": list(heals.reasons), "same_artifact": None}
    with suppress(BadOutput, OSError):
        before = shelves.read_manifest(shelf.folder / str(heals.version))
        document["same_artifact"] = before["artifact"].get("sha256") == manifest["artifact"].get("sha256")
    return document


def _same_outcome(manifest: dict[str, Any], shelf: Shelf, origin: Origin) -> int:
    """The newest version, where it is this very outcome (a publish that crashed before it was noted); else 0."""
    if not shelf.versions or shelf.versions[-1] != shelf.highest:
        return 0
    try:
        newest = shelves.read_manifest(shelf.folder / str(shelf.versions[-1]))
    except BadOutput:
        return 0  # damaged since it was published: whatever this is, it is better
    owner = newest.get("job")
    if origin.job_id and isinstance(owner, dict) and owner.get("id") == origin.job_id:
        return shelf.versions[-1]
    same = (
        shelf.versions[-1] not in shelf.bad
        and fingerprint.of_manifest(newest) == fingerprint.of_manifest(manifest)
        and newest["artifact"].get("sha256") == manifest["artifact"].get("sha256")
        and newest["source"].get("sha256") == manifest["source"].get("sha256")
        and newest.get("goal") == manifest.get("goal")
        and newest.get("target") == manifest.get("target")
        and newest.get("recipe") == manifest.get("recipe")
    )
    return shelf.versions[-1] if same else 0


def _add_version(out: Path, manifest: dict[str, Any], home: Path, *, version: int, mode: int) -> None:
    temporary = home / f".tmp-{secrets.token_hex(8)}"
    temporary.mkdir(mode=0o755)
    try:
        sums = {name: _copy(out / name, temporary / name, mode=mode) for name in _files(out)}
        _check_artifact(manifest, sums)
        text = json.dumps(manifest, indent=1, allow_nan=False).encode()
        storage.write_file(temporary / MANIFEST_FILE, text, mode=mode)
        sums[MANIFEST_FILE] = hashlib.sha256(text).hexdigest()
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
        storage.write_file(temporary / CHECKSUMS_FILE, lines.encode(), mode=mode)
        temporary.chmod(0o555)
        storage.fsync_folder(temporary)
        temporary.rename(home / str(version))
    except (OSError, BadOutput, ValueError) as fault:
        storage.remove_tree(temporary)
        if isinstance(fault, ValueError):
            raise BadOutput(f"manifest.json holds a number that is none: {fault}", hint="Retry the job.") from fault
        raise
    storage.fsync_folder(home)


def _check_artifact(manifest: dict[str, Any], sums: dict[str, str]) -> None:
    artifact = manifest["artifact"]
    found = sums.get(str(artifact.get("file")))
    if found is None or found != artifact.get("sha256"):
        said = f"{artifact.get('sha256')}"
        raise BadOutput(f"the artifact's sha256 is {found}; its manifest says {said:.64}", hint="Retry the job.")


def _files(out: Path) -> list[str]:
    """What ``out`` holds beside its manifest; only plain files under plain names are published."""
    names = sorted(entry.name for entry in os.scandir(out))
    if len(names) > _MOST_FILES or not all(map(_PLAIN.fullmatch, names)):
        raise BadOutput(f"the output folder holds {len(names)} files or odd names", hint="Retry the job.")
    return [name for name in names if name not in (MANIFEST_FILE, CHECKSUMS_FILE)]


def _copy(source: Path, target: Path, *, mode: int) -> str:
    """Copy one file, durable, hashed on the way; returns the sha256 in hex."""
    if not stat.S_ISREG(os.lstat(source).st_mode):
        raise BadOutput(f"{source.name} in the output folder is no plain file", hint="Retry the job.")
    return storage.copy_file(source, target, mode=mode)


def _rfc3339(wall_s: float | None) -> str:
    moment = datetime.fromtimestamp(time.time() if wall_s is None else wall_s, tz=UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
