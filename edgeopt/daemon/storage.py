"""Durable files: what the daemon's rooms use to put bytes on disk so that a power cut cannot take them back.

A rename is only durable after an fsync of the file and of the folder that holds its name, and only in that order
(write, fsync file, rename, fsync folder). What the operating system raises is translated here, at the daemon's door to
the disk: no space is :class:`~edgeopt.errors.DiskFull`, everything else :class:`~edgeopt.errors.StorageFault`; both
hold the job, since neither is the drop's fault.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeopt.errors import DiskFull, EnvironmentFault, StorageFault

_CHUNK_BYTES = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def translate(fault: OSError, doing: str) -> EnvironmentFault:
    """The environment fault that an operating system error means."""
    reason = os.strerror(fault.errno) if fault.errno else str(fault)
    if fault.errno in _FULL:
        return DiskFull(f"no space left while {doing}", hint="Free some disk space; the job goes on by itself.")
    return StorageFault(f"{reason} while {doing}", hint="Check the disk, its mount and its permissions.")


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Translate every OSError inside; ``doing`` is what was going on, such as ``publishing digits``."""
    try:
        yield
    except OSError as fault:
        raise translate(fault, doing) from fault


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """A new file with these bytes, on disk when this returns; its name still needs :func:`fsync_folder`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Swap in a file in one rename: a reader sees the old bytes or the new ones, also after a power cut."""
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.unlink(missing_ok=True)
    write_file(fresh, data, mode=mode)
    fresh.rename(path)
    fsync_folder(path.parent)


def copy_file(source: Path, target: Path, *, mode: int) -> str:
    """Copy one file of our own to a name that is free, on disk when this returns; its sha256 in hex."""
    # nobody swaps the file between two looks; O_NOFOLLOW costs nothing all the same
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as reader:
        digest = hashlib.sha256()
        with target.open("xb", buffering=0) as writer:
            while chunk := reader.read(_CHUNK_BYTES):
                digest.update(chunk)
                rest = memoryview(chunk)
                while rest:
                    rest = rest[writer.write(rest) :]
            os.fchmod(writer.fileno(), mode)
            os.fsync(writer.fileno())
    return digest.hexdigest()


def move(source: Path, target: Path) -> None:
    """Move a file or folder to a name that is free, appearing there whole, also across file systems."""
    try:
        source.rename(target)
    except OSError as fault:
        if fault.errno != errno.EXDEV:
            raise
        fresh = target.with_name(f".{target.name}.part"[-255:])
        remove_tree(fresh)
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, fresh, symlinks=True)
        else:
            shutil.copyfile(source, fresh, follow_symlinks=False)
        fresh.rename(target)
        remove_tree(source)
    fsync_folder(target.parent)


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it, read-only folders too; one that is not there is fine."""
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink(missing_ok=True)
        return
    for parent, _, _ in os.walk(folder):
        if not stat.S_IMODE(os.lstat(parent).st_mode) & stat.S_IWUSR:
            Path(parent).chmod(0o700)
    shutil.rmtree(folder)
