"""Reading published files again, a little at a time: a bit that rotted is found before somebody serves it.

``healing`` takes one slice after the other out of :func:`round_`, at its own pace, and acts on what a version turned out
to be. What is served comes first. A version that is removed meanwhile is no finding.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeopt.daemon import shelf as shelves
from edgeopt.integrity import listed_sums
from edgeopt.layout import CHECKSUMS_FILE, MANIFEST_FILE

SLICE_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
_OPENING_BYTES = 64 << 10
"""What opening a file counts as: many small ones cost time as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A version that is damaged, or bears the mark of damage and is whole: then ``problem`` is empty, else one sentence."""

    name: str
    version: int
    problem: str


def round_(published: Path, *, slice_bytes: int = SLICE_BYTES) -> Iterator[Finding | None]:
    """Every version of every model, once: the findings, and None whenever about ``slice_bytes`` were read."""
    found = shelves.read_all(published)
    order = [(shelf, shelf.current) for shelf in found if shelf.current]
    order += [(shelf, number) for shelf in found for number in reversed(shelf.versions) if number != shelf.current]
    left = slice_bytes
    for shelf, number in order:
        folder = shelf.folder / str(number)
        steps = _look(folder)
        while True:
            try:
                left -= next(steps)
            except StopIteration as end:
                problem = str(end.value)
                break
            if left <= 0:
                left = slice_bytes
                yield None
        if folder.is_dir() and (problem or number in shelf.bad):
            yield Finding(name=shelf.name, version=number, problem=problem)


def problem_of(folder: Path) -> str:
    """What is wrong with a version's files, read at once; empty where they are whole."""
    steps = _look(folder)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return str(end.value)


def _look(folder: Path) -> Generator[int, None, str]:
    """Yields the bytes read since it last did, returns the problem. The manifest is one of the files that are listed."""
    try:
        sums = listed_sums(folder / CHECKSUMS_FILE)
    except (OSError, ValueError) as fault:
        return _said(fault, CHECKSUMS_FILE)
    if MANIFEST_FILE not in sums:
        return f"{CHECKSUMS_FILE} does not list {MANIFEST_FILE}"
    for name, digest in sums.items():
        try:
            found = yield from _digest(folder / name)
        except OSError as fault:
            return _said(fault, name)
        if found != digest:
            return f"{name} has sha256 {found[:12]}, not {digest[:12]}"
    return ""


def _digest(file: Path) -> Generator[int, None, str]:
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        yield _OPENING_BYTES
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            yield len(chunk)
    return digest.hexdigest()


def _said(fault: Exception, name: str) -> str:
    """The sentence for a file that cannot be read; trouble that is the process', not the file's, is raised again."""
    if isinstance(fault, OSError):
        if fault.errno not in (errno.ENOENT, errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EBADMSG):
            raise fault
        return f"{name} cannot be read: {fault.strerror}"
    return f"{name} cannot be read: {fault}"
