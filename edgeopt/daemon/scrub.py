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
from edgeopt.errors import BadOutput
from edgeopt.integrity import listed_sums
from edgeopt.layout import CHECKSUMS_FILE

SLICE_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A version that was read to its end; ``problem`` is one sentence, empty where it is whole."""

    name: str
    version: int
    problem: str


def round_(published: Path, *, slice_bytes: int = SLICE_BYTES) -> Iterator[Finding | None]:
    """Every version of every model, once: a finding at the end of each, None after every ``slice_bytes``."""
    found = shelves.read_all(published)
    order = [(shelf, shelf.current) for shelf in found if shelf.current]
    order += [(shelf, number) for shelf in found for number in reversed(shelf.versions) if number != shelf.current]
    for shelf, number in order:
        folder = shelf.folder / str(number)
        problem = yield from _look(folder, slice_bytes)
        if folder.is_dir():
            yield Finding(name=shelf.name, version=number, problem=problem)


def problem_of(folder: Path) -> str:
    """What is wrong with a version's files, read at once; empty where they are whole."""
    steps = _look(folder, SLICE_BYTES)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return str(end.value)


def _look(folder: Path, slice_bytes: int) -> Generator[None, None, str]:
    """Yields None after each slice, returns the problem."""
    try:
        sums = listed_sums(folder / CHECKSUMS_FILE)
        manifest = shelves.read_manifest(folder)
    except (OSError, ValueError, BadOutput) as fault:
        return _said(fault, CHECKSUMS_FILE)
    artifact = manifest["artifact"]
    if sums.get(str(artifact.get("file"))) != artifact.get("sha256"):
        return f"{CHECKSUMS_FILE} and the manifest disagree on the artifact"
    for name, digest in sums.items():
        try:
            found = yield from _digest(folder / name, slice_bytes)
        except OSError as fault:
            return _said(fault, name)
        if found != digest:
            return f"{name} has sha256 {found[:12]}, not {digest[:12]}"
    return ""


def _digest(file: Path, slice_bytes: int) -> Generator[None, None, str]:
    digest, left = hashlib.sha256(), slice_bytes
    with file.open("rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            left -= len(chunk)
            if left <= 0:
                left = slice_bytes
                yield None
    return digest.hexdigest()


def _said(fault: Exception, name: str) -> str:
    """The sentence for a file that cannot be read; trouble that is the process', not the file's, is raised again."""
    if isinstance(fault, OSError):
        if fault.errno not in (errno.ENOENT, errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EBADMSG):
            raise fault
        return f"{name} cannot be read: {fault.strerror}"
    return f"{name} cannot be read: {fault}"
