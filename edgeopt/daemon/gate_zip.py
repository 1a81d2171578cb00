"""A zip archive looked at from outside: its central directory, read with bounds and without unpacking.

Inside ``intake``, for calibration and eval archives (.npz) and for telling what a dropped archive is. Only the standard
library's struct and zlib: ``zipfile`` trusts the archive's own sizes and, in Python up to 3.11.7, overlapping members
(CVE-2024-0450). What passes here is later read again by ``calibrate``, in the worker, which streams the arrays.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgeopt.errors import BadData, ForbiddenFormat, TooLarge

MAX_MEMBERS = 10_000
MAX_NAME_BYTES = 512
MAX_HEADER_BYTES = 16_384
MAX_DIRECTORY_BYTES = 8 << 20

_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_STORED, _DEFLATED = 0, 8
_HEADER = re.compile(
    r"\s*\{\s*'descr'\s*:\s*'([^'\\]{1,16})'\s*,\s*'fortran_order'\s*:\s*(?:True|False)\s*,"
    r"\s*'shape'\s*:\s*\(((?:\d{1,18}L?,\s*)*(?:\d{1,18}L?)?)\)\s*,?\s*\}\s*"
)
_HINT = "Write the file again with numpy.savez, one plain numeric array for each input."


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive, by its central directory; sizes in bytes."""

    name: str
    method: int
    packed_bytes: int
    size_bytes: int
    header_offset: int
    mode: int = 0
    """Kind and permissions as Unix has them, where the archive says."""


def member_names(fd: int, size_bytes: int) -> tuple[str, ...]:
    """The names in the central directory; :class:`~edgeopt.errors.BadData` where there is none that can be read."""
    return tuple(member.name for member in members(fd, size_bytes)[0])


def check_npz(fd: int, size_bytes: int, *, max_bytes: int) -> None:
    """Refuse an .npz that is not a plain archive of numeric arrays of at most ``max_bytes`` together.

    Raises :class:`~edgeopt.errors.BadData`, :class:`~edgeopt.errors.ForbiddenFormat` for object arrays (pickles) and
    :class:`~edgeopt.errors.TooLarge`.
    """
    found, directory_offset = members(fd, size_bytes)
    if not found:
        raise _bad("the archive holds no arrays")
    total = sum(member.size_bytes for member in found)
    if total > max_bytes:
        raise TooLarge(f"the archive unpacks to {total} bytes, more than {max_bytes}", hint="Drop fewer samples.")
    for member, start in placed(fd, size_bytes, found, directory_offset):
        _check_name(member.name)
        _check_array(fd, member, start)


def placed(fd: int, size_bytes: int, found: Sequence[Member], directory_offset: int) -> Iterator[tuple[Member, int]]:
    """Each member with where its packed bytes start, in the order they lie in.

    Raises :class:`~edgeopt.errors.BadData` where two share a name or bytes, or one reaches into the directory.
    """
    names = [member.name for member in found]
    if len(set(names)) < len(names):
        raise _bad("the archive holds a name twice")
    reached = 0
    for member in sorted(found, key=lambda member: member.header_offset):
        start, stop = _extent(fd, member, size_bytes)
        if member.header_offset < reached or stop > directory_offset:
            raise _bad(f"the member {member.name!a:.80} overlaps its neighbours")
        reached = stop
        yield member, start


def members(fd: int, size_bytes: int) -> tuple[list[Member], int]:
    """The members and where the central directory starts; :class:`~edgeopt.errors.BadData` for no proper zip."""
    count, length, offset, limit = _end_record(fd, size_bytes)
    if count > MAX_MEMBERS or length > MAX_DIRECTORY_BYTES:
        raise TooLarge(f"the archive has {count} members, more than {MAX_MEMBERS}", hint="Drop fewer, larger arrays.")
    if offset + length > limit:
        raise _bad("the archive's directory lies outside of it")
    directory = os.pread(fd, length, offset)
    found = list(_directory(directory, count))
    return found, offset


def _end_record(fd: int, size_bytes: int) -> tuple[int, int, int, int]:
    """(members, directory bytes, directory offset, where the end record starts)."""
    tail_offset = max(0, size_bytes - _END.size - 0xFFFF)
    tail = os.pread(fd, size_bytes - tail_offset, tail_offset)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise _bad("the file is no zip archive, or it is cut off")
    record = _END.unpack_from(tail, at)
    count, length, offset = record[4], record[5], record[6]
    position = tail_offset + at
    if (count == 0xFFFF or 0xFFFFFFFF in (length, offset)) and position >= _END64_LOCATOR.size:
        locator = os.pread(fd, _END64_LOCATOR.size, position - _END64_LOCATOR.size)
        magic, _, offset64, _ = _END64_LOCATOR.unpack(locator)
        end64 = os.pread(fd, _END64.size, offset64) if magic == b"PK\x06\x07" and offset64 < position else b""
        if len(end64) < _END64.size or not end64.startswith(b"PK\x06\x06"):
            raise _bad("the archive's 64-bit end record is missing")
        count, length, offset = _END64.unpack(end64)[7:10]
        position = offset64
    return count, length, offset, position


def _directory(data: bytes, count: int) -> Iterator[Member]:
    at = 0
    for _ in range(count):
        if len(data) - at < _CENTRAL.size:
            raise _bad("the archive's directory is cut off")
        record = _CENTRAL.unpack_from(data, at)
        if record[0] != b"PK\x01\x02":
            raise _bad("the archive's directory is damaged")
        flags, method, packed, size = record[3], record[4], record[8], record[9]
        name_length, extra_length, comment_length, offset = record[10], record[11], record[12], record[16]
        name = data[at + _CENTRAL.size : at + _CENTRAL.size + name_length]
        extra_at = at + _CENTRAL.size + name_length
        packed, size, offset = _wide(data[extra_at : extra_at + extra_length], packed=packed, size=size, offset=offset)
        if flags & 1:
            raise _bad(f"the member {name!a:.80} is encrypted")
        yield Member(name.decode("utf-8", "surrogateescape"), method, packed, size, offset, mode=record[15] >> 16)
        at = extra_at + extra_length + comment_length


def _wide(extra: bytes, *, packed: int, size: int, offset: int) -> tuple[int, int, int]:
    """The sizes of a member whose 32-bit fields are full, out of its ZIP64 extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            numbers = iter(
                struct.unpack_from("<Q", extra, at + 4 + 8 * index)[0]
                for index in range(min(length, len(extra) - at - 4) // 8)
            )
            full = 0xFFFFFFFF
            size = next(numbers, size) if size == full else size
            packed = next(numbers, packed) if packed == full else packed
            offset = next(numbers, offset) if offset == full else offset
        at += 4 + length
    return packed, size, offset


def _check_name(name: str) -> None:
    stem = name.removesuffix(".npy")
    parts = stem.split("/")
    odd = any(
        ord(character) < 0x20 or ord(character) == 0x7F or 0xD800 <= ord(character) < 0xE000 for character in name
    )
    if stem == name or not stem or name.startswith("/") or ".." in parts or "\\" in name or odd:
        raise _bad(f"the member {name!a:.80} is no .npy file with a plain name")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise _bad(f"the name of a member is longer than {MAX_NAME_BYTES} bytes")


def _extent(fd: int, member: Member, size_bytes: int) -> tuple[int, int]:
    """Where the member's packed bytes start and stop, by its local header."""
    header = os.pread(fd, _LOCAL.size, member.header_offset) if member.header_offset < size_bytes else b""
    if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
        raise _bad(f"the member {member.name!a:.80} has no header where the directory says")
    record = _LOCAL.unpack(header)
    start = member.header_offset + _LOCAL.size + record[9] + record[10]
    return start, start + member.packed_bytes


def _check_array(fd: int, member: Member, start: int) -> None:
    """Check the .npy header of a member: plain dtype, no pickle, and as many bytes as its shape needs."""
    head = os.pread(fd, min(member.packed_bytes, MAX_HEADER_BYTES), start)
    if member.method == _DEFLATED:
        try:
            head = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head, MAX_HEADER_BYTES)
        except zlib.error:
            raise _bad(f"the member {member.name!a:.80} does not unpack") from None
    elif member.method != _STORED or member.packed_bytes != member.size_bytes:
        raise _bad(f"the member {member.name!a:.80} is packed by method {member.method}, which NumPy does not write")
    if head[:6] != b"\x93NUMPY" or len(head) < 12:
        raise _bad(f"the member {member.name!a:.80} is no NumPy array")
    wide = head[6] > 1
    body = 12 if wide else 10
    length = int.from_bytes(head[8:body], "little")
    match = _HEADER.fullmatch(head[body : body + length].decode("latin-1")) if body + length <= len(head) else None
    if match is None:
        raise _bad(f"the array {member.name!a:.80} has a header that is not that of a plain array")
    item_bytes = _item_bytes(member.name, match[1])
    shape = [int(length.rstrip("L")) for length in re.findall(r"\d+L?", match[2])]
    needed = body + length + item_bytes * math.prod(shape)
    if needed != member.size_bytes:
        raise _bad(f"the array {member.name!a:.80} has {member.size_bytes} bytes and its shape {shape} needs {needed}")


def _item_bytes(name: str, descr: str) -> int:
    if "O" in descr:
        raise ForbiddenFormat(
            f"the array {name!a:.80} holds Python objects, which are stored as a pickle",
            hint="Save it as a numeric array, with allow_pickle=False.",
        )
    match = re.fullmatch(r"[<>|=]([biufcSU])(\d{1,6})", descr)
    if match is None:
        raise _bad(f"the array {name!a:.80} is of dtype {descr!a:.20}, neither numbers nor text")
    return int(match[2]) * (4 if match[1] == "U" else 1)


def _bad(message: str) -> BadData:
    return BadData(message, hint=_HINT)
