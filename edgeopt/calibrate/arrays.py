"""Arrays in .npy and .npz files, opened without trust and without memory.

What comes in is a staged file of a drop; what goes out are :class:`ArrayFile` records that read a few rows at a time
with plain reads (a memory map would count every page it touched as the worker's). Pickles cannot happen here: numpy's
own loader is not used, headers are parsed by the strict reader below, and only plain numbers are taken.

A stored member of an .npz is used where it lies; a compressed one is unpacked once. The members' checksums are checked
in both cases.
"""

from __future__ import annotations

import ast
import os
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import BadData, DiskFull

MOST_MEMBERS = 10_000
_MAGIC = b"\x93NUMPY"
_HEADER_BYTES = 4096
_HEADER_WORDS = re.compile(r"[\sA-Za-z0-9_'\"{}(),:<>=|.]*")
_DTYPE = re.compile(r"[<>|=]?(b1|i[1248]|u[1248]|f[248])")
_CHUNK_BYTES = 1 << 20
_HINT = "Save the arrays again with numpy.savez, as plain numbers."


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """An array on disk, in C order from ``offset`` on; the first axis counts rows."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize

    def rows(self, start: int, count: int) -> NDArray[Any]:
        """``count`` rows from ``start`` on, fewer at the end; in the machine's own byte order."""
        count = max(0, min(count, self.shape[0] - start))
        flat = np.fromfile(
            self.path, self.dtype, count * prod(self.shape[1:]), offset=self.offset + start * self.row_bytes
        )
        return flat.reshape(count, *self.shape[1:]).astype(self.dtype.newbyteorder("="), copy=False)

    def whole(self) -> NDArray[Any]:
        """All of it, whatever its rank."""
        flat = np.fromfile(self.path, self.dtype, prod(self.shape), offset=self.offset)
        return flat.reshape(self.shape).astype(self.dtype.newbyteorder("="), copy=False)


def open_npy(path: Path, *, unpack_to: Path) -> ArrayFile:
    """The array in a .npy file; ``unpack_to`` is where it is written again if it is in Fortran order."""
    with path.open("rb") as file:
        found = _read_header(file, path.name)
        found.check_size(path.stat().st_size - found.offset, path.name)
    return found.located(path, 0, unpack_to / f"{path.stem}.c-order")


def open_npz(path: Path, *, unpack_to: Path, most_bytes: int) -> dict[str, ArrayFile]:
    """The arrays of an .npz by name, in the file's order.

    ``most_bytes`` caps what the members hold together. Raises :class:`~edgeopt.errors.BadData` with what is wrong, and
    :class:`~edgeopt.errors.DiskFull` where compressed members do not fit into ``unpack_to``'s disk.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(members, archive.start_dir, path.name, most_bytes)
            unpack_to.mkdir(parents=True, exist_ok=True)
            _check_space(members, unpack_to)
            return {
                member.filename.removesuffix(".npy"): _open_member(archive, member, path, unpack_to / f"{index}.npy")
                for index, member in enumerate(members)
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error) as error:
        raise BadData(f"{path.name} is damaged or not an .npz file: {error}", hint=_HINT) from error


def _check_members(members: list[zipfile.ZipInfo], end: int, file: str, most_bytes: int) -> None:
    names = [member.filename for member in members]
    if not members or len(members) > MOST_MEMBERS or len(set(names)) != len(names):
        raise BadData(f"{file} holds {len(names)} arrays under {len(set(names))} names", hint=_HINT)
    strange = [name for name in names if not name.endswith(".npy") or "\0" in name or ".." in name.split("/")]
    if strange:
        raise BadData(f"{file} holds {strange[0]!r}, which is not a .npy array", hint=_HINT)
    total = sum(member.file_size for member in members)
    if total > most_bytes:
        raise BadData(f"{file} unpacks to {total:,} bytes, more than {most_bytes:,}", hint="Use fewer samples.")
    ordered = sorted(members, key=lambda member: member.header_offset)
    ends = [*(member.header_offset for member in ordered[1:]), end]
    for member, limit in zip(ordered, ends, strict=True):
        if member.header_offset + 30 + member.compress_size > limit:
            raise BadData(f"{file} holds members that overlap, {member.filename!r} among them", hint=_HINT)
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
            raise BadData(f"{member.filename!r} in {file} is encrypted or oddly compressed", hint=_HINT)


def _check_space(members: list[zipfile.ZipInfo], folder: Path) -> None:
    wanted = sum(member.file_size for member in members if member.compress_type != zipfile.ZIP_STORED)
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if wanted > free:
        raise DiskFull(
            f"the samples unpack to {wanted:,} bytes, but only {free:,} are free", hint="Make room on the state disk."
        )


def _open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, unpacked: Path) -> ArrayFile:
    with archive.open(member) as stream:
        header = _read_header(stream, member.filename)
    header.check_size(member.file_size - header.offset, member.filename)
    stored = member.compress_type == zipfile.ZIP_STORED
    if stored:
        _check_sum(archive, member)
        return header.located(path, _data_offset(path, member), unpacked)
    _unpack(archive, member, unpacked)
    return header.located(unpacked, 0, unpacked.with_suffix(".c-order"))


def _check_sum(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    with archive.open(member) as stream:
        while stream.read(_CHUNK_BYTES):  # the end of the stream raises where the checksum differs
            pass


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    with archive.open(member) as stream, target.open("wb") as file:
        while chunk := stream.read(_CHUNK_BYTES):
            file.write(chunk)
        if file.tell() != member.file_size:
            raise zipfile.BadZipFile(f"{member.filename!r} is shorter than it says")


def _data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: behind its local header, whose extra field differs from the directory's."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        local = file.read(30)
    name_bytes, extra_bytes = struct.unpack("<HH", local[26:30])
    return int(member.header_offset + 30 + name_bytes + extra_bytes)


# ---------------------------------------------------------------- the .npy format
@dataclass(frozen=True, slots=True)
class _Header:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    def check_size(self, available: int, name: str) -> None:
        wanted = prod(self.shape) * self.dtype.itemsize
        if wanted != available:
            raise BadData(
                f"the array {name!r} says {self.dtype} {list(self.shape)}, {wanted:,} bytes, but holds {available:,}",
                hint=_HINT,
            )

    def located(self, path: Path, start: int, c_order: Path) -> ArrayFile:
        """The array in ``path``; where its axes run the other way it is written once more, to ``c_order``."""
        offset = start + self.offset
        if not self.fortran or len(self.shape) < 2 or prod(self.shape) == 0:
            return ArrayFile(path, self.dtype, self.shape, offset)
        mapped = np.memmap(path, self.dtype, "r", offset, self.shape, order="F")
        c_order.parent.mkdir(parents=True, exist_ok=True)
        with c_order.open("wb") as file:
            for row in mapped:
                file.write(np.ascontiguousarray(row).tobytes())
        return ArrayFile(c_order, self.dtype, self.shape, 0)


def _read_header(stream: IO[bytes], name: str) -> _Header:
    """Format 1, 2 or 3 with a dictionary of three literals; numpy.lib.format documents it."""
    start = stream.read(8)
    size_bytes = {1: 2, 2: 4, 3: 4}.get(start[6] if len(start) == 8 else 0)
    if start[:6] != _MAGIC or size_bytes is None:
        raise BadData(f"{name!r} is not a .npy array", hint=_HINT)
    length = int.from_bytes(stream.read(size_bytes), "little")
    text = stream.read(min(length, _HEADER_BYTES)).decode("latin-1")
    if len(text) != length or not _HEADER_WORDS.fullmatch(text):
        raise BadData(f"the header of the array {name!r} is damaged or longer than {_HEADER_BYTES} bytes", hint=_HINT)
    try:
        fields = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise BadData(f"the header of the array {name!r} cannot be read", hint=_HINT) from error
    return _checked(fields, name, 8 + size_bytes + length)


def _checked(fields: Any, name: str, offset: int) -> _Header:
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise BadData(f"the header of the array {name!r} lacks its three fields", hint=_HINT)
    descr, fortran, shape = fields["descr"], fields["fortran_order"], fields["shape"]
    if not isinstance(descr, str) or not _DTYPE.fullmatch(descr):
        raise BadData(
            f"the array {name!r} is of type {descr!r:.60}, not of plain numbers (objects are never loaded)", hint=_HINT
        )
    plain = isinstance(shape, tuple) and all(type(length) is int and 0 <= length < 1 << 48 for length in shape)
    if type(fortran) is not bool or not plain or len(shape) > 16:
        raise BadData(f"the array {name!r} has the shape {shape!r:.60}", hint=_HINT)
    return _Header(np.dtype(descr), shape, fortran, offset)
