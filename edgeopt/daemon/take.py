"""One file of a drop: opened once without following anything, and copied with its hash from that one descriptor.

Inside ``intake``. The inbox belongs to whoever drops, who may swap a file for a link, a FIFO or another file between any
two looks. So a path is opened part by part beneath the inbox (no link anywhere in it), judged by ``fstat``, copied from
the same descriptor, and looked at again: a file that changed meanwhile is :class:`NotReady`, never half-read.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgeopt.daemon.drops import Drop, full_path
from edgeopt.daemon.names import escaped
from edgeopt.daemon.scan import Stamp, describe
from edgeopt.daemon.storage import storage_errors, translate
from edgeopt.errors import Disposition, EdgeoptError, JobCancelled, UnsafeFile

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO opened with O_NONBLOCK does not wait for its writer
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CHUNK_BYTES = 1 << 20
_F_SETSIG = 10
_DEVICE_TROUBLE = frozenset({errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENODEV})


class NotReady(EdgeoptError):
    """The drop is not finished, or changed while it was taken: try again in ``retry_s`` seconds."""

    code: ClassVar[str] = "not-ready"
    disposition: ClassVar[Disposition] = Disposition.HOLD

    def __init__(self, message: str, *, hint: str = "", retry_s: float = 2.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_s = retry_s


def _never() -> bool:
    return False


def _for_ever(_path: str) -> float:
    return float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long an unfinished-looking drop gets the benefit of the doubt, and when to give a copy up.

    The default has none, which suits the one-shot: its caller named finished files.
    """

    quiet_for: Callable[[str], float] = _for_ever
    """Seconds since a path of the drop last changed, on the monotonic clock: ``Settler.quiet_for``."""
    settle_s: float = 2.0
    grace_s: float = 30.0
    """A file that does not parse whole is waited for until it was quiet this long."""
    writer_grace_s: float = 600.0
    """The same for a file that somebody still has open for writing, where the file system tells."""
    should_stop: Callable[[], bool] = _never
    """Asked once a chunk; true ends the copy with :class:`~edgeopt.errors.JobCancelled`."""

    def wait_s(self, path: str, *, written: bool = False) -> float:
        """Seconds to wait before ``path`` may be called broken; 0 when its time is over."""
        grace_s = self.writer_grace_s if written else self.grace_s
        return max(0.0, grace_s - self.quiet_for(path))


@dataclass(frozen=True, slots=True)
class Opened:
    """A regular file of a drop, open for reading."""

    path: str
    fd: int
    size_bytes: int
    stamp: Stamp


@contextmanager
def open_regular(drop: Drop, path: str) -> Iterator[Opened]:
    """Open a plain file of the drop.

    Raises :class:`~edgeopt.errors.UnsafeFile` for a link, a hard link, a FIFO, a device or a folder, FileNotFoundError
    where nothing is there, :class:`~edgeopt.errors.StorageFault` where the device fails.
    """
    shown = escaped(path)
    try:
        descriptor, status = _open(drop, path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _refusal(error, shown) from error
    try:
        kind, stamp = describe(status)
        if kind != "file":
            raise UnsafeFile(
                f"{shown} is a {_words(status.st_mode)}, not a plain file", hint="Drop a copy of the file itself."
            )
        if status.st_nlink > 1 and not drop.trusted:
            raise UnsafeFile(
                f"{shown} is a hard link: the file has {status.st_nlink} names", hint="Drop a copy of the file instead."
            )
        yield Opened(path, descriptor, status.st_size, stamp)
    finally:
        os.close(descriptor)


def _open(drop: Drop, path: str) -> tuple[int, os.stat_result]:
    if drop.trusted:
        descriptor = os.open(full_path(drop, path), _READ)
        return descriptor, os.fstat(descriptor)
    *parents, name = path.split("/")
    folder = _open_inbox(drop.root)
    try:
        for part in parents:
            below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        return _open_named(name, folder, shown=escaped(path))
    finally:
        os.close(folder)


def _open_named(name: str, folder: int, *, shown: str) -> tuple[int, os.stat_result]:
    """Open a name in a folder and look at the name again: descriptor and status belong to the file that bears it.

    The count of links is good only from such a look. That of the descriptor alone falls back to 1 when a hard link to
    somebody's secret is replaced between opening and fstat, and the secret would be copied.
    """
    descriptor = os.open(name, _READ | os.O_NOFOLLOW, dir_fd=folder)
    with ExitStack() as undo:
        undo.callback(os.close, descriptor)
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not os.path.samestat(status, os.fstat(descriptor)):
            raise NotReady(f"{shown} was replaced while it was opened", hint="Wait until it is written.")
        undo.pop_all()
    return descriptor, status


def _open_inbox(root: str) -> int:
    """The inbox itself may be a link, since the operator set it; trouble with it is not the drop's."""
    try:
        return os.open(root, _FOLDER)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise translate(error, "opening the inbox") from error


def _refusal(error: OSError, shown: str) -> EdgeoptError:
    if error.errno in _DEVICE_TROUBLE:
        return translate(error, f"opening {shown}")
    if error.errno == errno.ELOOP:
        return UnsafeFile(f"{shown} is a symbolic link", hint="Drop a copy of the file itself.")
    if error.errno == errno.ENOTDIR:
        return UnsafeFile(f"{shown} lies behind a link or a file", hint="Drop a real folder with copies of the files.")
    if error.errno in (errno.EACCES, errno.EPERM):
        return UnsafeFile(f"{shown} cannot be read by the daemon's user", hint="Make the file readable with chmod a+r.")
    return UnsafeFile(f"{shown} cannot be opened: {error.strerror}", hint="Drop a plain file.")


def _words(mode: int) -> str:
    names = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    return names.get(stat.S_IFMT(mode), "device")


def is_written(opened: Opened) -> bool:
    """Whether somebody has the file open for writing; False where the file system does not tell.

    A read lease is refused while there is a writer. The lease's break signal is set to one that is ignored by default,
    since the usual one (SIGIO) would end the daemon if a writer came just then.
    """
    try:
        fcntl.fcntl(opened.fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(opened.fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(opened.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False


def copy(opened: Opened, target: Path, *, should_stop: Callable[[], bool], part: tuple[int, int] | None = None) -> str:
    """Copy the open file, or the bytes of ``part`` (from, to), to the new file ``target`` (mode 0600, synced) and give its SHA-256.

    Raises :class:`NotReady` where the source changed meanwhile, :class:`~edgeopt.errors.JobCancelled`,
    :class:`~edgeopt.errors.EnvironmentFault` where the disk is full or broken.
    """
    doing = f"copying {escaped(opened.path)}"
    digest = hashlib.sha256()
    position, end = part or (0, opened.size_bytes)
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, max(1, end - position))))
    with storage_errors(doing):
        sink = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            while position < end and (count := os.preadv(opened.fd, [buffer[: end - position]], position)):
                if should_stop():
                    raise JobCancelled(f"{doing} was stopped")
                digest.update(buffer[:count])
                _write_all(sink, buffer[:count])
                position += count
            os.fsync(sink)
        finally:
            os.close(sink)
        status = os.fstat(opened.fd)
    if position != end or describe(status)[1] != opened.stamp:
        raise NotReady(f"{escaped(opened.path)} changed while it was copied", hint="Wait until it is written.")
    return digest.hexdigest()


def _write_all(sink: int, data: memoryview) -> None:
    while data:
        data = data[os.write(sink, data) :]


def digest_of(opened: Opened, *, limit_bytes: int) -> str:
    """SHA-256 of the first ``limit_bytes`` of the open file."""
    digest = hashlib.sha256()
    position = 0
    with storage_errors(f"reading {escaped(opened.path)}"):
        while position < limit_bytes and (
            data := os.pread(opened.fd, min(_CHUNK_BYTES, limit_bytes - position), position)
        ):
            digest.update(data)
            position += len(data)
    return digest.hexdigest()
