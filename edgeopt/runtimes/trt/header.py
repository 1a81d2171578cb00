"""The first bytes of an RTX engine: its release and the GPUs it was built for, best effort.

The layout is not documented; it was seen on engines of release 1.7. The library's own check only looks at the first bytes and misses a flipped one, so what
vouches for an engine is the sha256 in the manifest; this only tells a human what lies there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"vtrt"
_LENGTH, _VERSION, _GPUS = 16, 24, 32
_HEAD_BYTES = 40
_MASK = {1: "SM75", 2: "SM80", 4: "SM86", 8: "SM89", 0x10: "SM120", 0x20: "SM121"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    version: str
    gpus: tuple[str, ...]
    bytes: int
    """The engine's length as it says itself."""


def read(engine: Path) -> Header | None:
    """What ``engine`` says of itself; None where it is none of a layout that is known."""
    with engine.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if len(head) < _HEAD_BYTES or not head.startswith(_MAGIC):
        return None
    (length,) = struct.unpack_from("<Q", head, _LENGTH)
    if length != engine.stat().st_size:
        return None
    (mask,) = struct.unpack_from("<I", head, _GPUS)
    version = ".".join(str(part) for part in head[_VERSION : _VERSION + 4])
    return Header(version=version, gpus=tuple(name for bit, name in _MASK.items() if mask & bit), bytes=length)
