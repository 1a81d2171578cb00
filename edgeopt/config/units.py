"""Sizes, times, shares and file modes as people write them in YAML: text in, numbers out, and back.

Every parser raises :class:`ValueError` with one clause that says what is wrong with the text; ``fields`` puts the line
and the key in front of it. Decimal arithmetic throughout, so that ``0.1s`` is a tenth of a second and no more, and
every ``show_*`` is read back as the very number it was given.
"""

from __future__ import annotations

import re
from decimal import Decimal

MAX_SECONDS = 10 * 365 * 86_400
"""Ten years: more than anybody waits for, and far from where clocks and timeouts overflow."""
MAX_BYTES = 1 << 60

_SECONDS = {"h": Decimal(3600), "m": Decimal(60), "s": Decimal(1), "ms": Decimal("0.001")}
_DAY = {"d": Decimal(86_400)}
_BYTES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
# bounded repetition: the text may be hostile
_NUMBER = r"\d{1,19}(?:\.\d{1,12})?"
_TIME = re.compile(rf"(?:{_NUMBER}(?:ms|[dhms])){{1,5}}", re.ASCII)
_TIME_PART = re.compile(rf"({_NUMBER})(ms|[dhms])", re.ASCII)
_SIZE = re.compile(rf"({_NUMBER})\s?([A-Za-z]{{0,3}})", re.ASCII)
_PERCENT = re.compile(rf"({_NUMBER})\s?%", re.ASCII)
_MODE = re.compile(r"0?[0-7]{3}", re.ASCII)
_ORDER = ("d", "h", "m", "s", "ms")


def parse_duration(text: str) -> float:
    """Seconds of ``10m``, ``1h30m``, ``2s``, ``500ms`` or ``1.5h``; a bare number is seconds."""
    if re.fullmatch(_NUMBER, text, re.ASCII):
        seconds = Decimal(text)
    else:
        if not _TIME.fullmatch(text):
            raise ValueError("is not a time such as 500ms, 2s, 10m or 1h30m")
        parts = _TIME_PART.findall(text)
        places = [_ORDER.index(unit) for _, unit in parts]
        if places != sorted(set(places)):
            raise ValueError("repeats a unit or has them out of order; write 1h30m, not 30m1h")
        seconds = sum((Decimal(number) * (_SECONDS | _DAY)[unit] for number, unit in parts), Decimal(0))
    if seconds > MAX_SECONDS:
        raise ValueError("is longer than ten years")
    return float(seconds)


def show_duration(seconds: float) -> str:
    """The shortest usual spelling: ``1h30m``, ``2s``, ``500ms``."""
    exact = Decimal(repr(seconds))
    whole_ms, rest = divmod(exact, _SECONDS["ms"])
    if rest or not exact:
        return f"{exact.normalize():f}s"
    pieces = []
    for unit, length in (*_SECONDS.items(),):
        count, whole_ms = divmod(whole_ms, length / _SECONDS["ms"])
        if count:
            pieces.append(f"{count:f}{unit}")
    return "".join(pieces)


def parse_size(text: str) -> int:
    """Bytes of ``512MiB``, ``4GiB``, ``1GB`` or ``1.5TB``; a bare number is bytes."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError("is not a size such as 512MiB or 4GB")
    number, unit = match.groups()
    if unit.upper() in {"K", "M", "G", "T"}:
        raise ValueError(
            f"has the unit {unit}, which may mean 1000s or 1024s; write {unit.upper()}iB or {unit.upper()}B"
        )
    if unit and unit not in _BYTES:
        raise ValueError(f"has the unknown unit {unit}; use one of {', '.join(_BYTES)}")
    size = Decimal(number) * _BYTES[unit or "B"]
    if size != size.to_integral_value():
        raise ValueError("is not a whole number of bytes")
    if size > MAX_BYTES:
        raise ValueError("is more than 1 EiB")
    return int(size)


def show_size(size: int) -> str:
    """The largest unit that divides it: ``4GiB``, ``1GB``, ``1023B``."""
    for unit in ("TiB", "TB", "GiB", "GB", "MiB", "MB", "KiB", "kB"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return f"{size}B"


def parse_percent(text: str) -> float:
    """The ratio of ``75%``, within 0 and 1."""
    match = _PERCENT.fullmatch(text)
    if not match:
        raise ValueError("is not a share such as 75%")
    percent = Decimal(match.group(1))
    if percent > 100:
        raise ValueError("is more than 100%")
    return float(percent / 100)


def show_percent(ratio: float) -> str:
    """``75%`` of 0.75."""
    return f"{(Decimal(repr(ratio)) * 100).normalize():f}%"


def parse_mode(text: str) -> int:
    """Permission bits of ``0644`` or ``644``: always octal, never with setuid, setgid or sticky bits."""
    if not _MODE.fullmatch(text):
        raise ValueError("is not a file mode of three octal digits such as 0644")
    mode = int(text, 8)
    if not mode & 0o400:
        raise ValueError("takes the owner's right to read")
    return mode


def show_mode(mode: int) -> str:
    """``0644`` of 0o644."""
    return f"{mode:04o}"
