"""Numbers, names and settings of a manifest as the words that a report shows.

Stands under ``report_page``: pure functions from a value to its text. Milliseconds, bytes and ratios come in, short texts with their units go out;
what is not there is shown as not measured.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Json: TypeAlias = Mapping[str, Any]

NOT_MEASURED = "-"
_MIB = 1 << 20
_WHOLE = 100.0
_NEGLIGIBLE = 1e-5
_SMALLER = 1.05


def flatten(value: Json, prefix: str = "") -> list[tuple[str, str]]:
    """Nested objects as dotted names with their values as text; lists of scalars are joined."""
    lines: list[tuple[str, str]] = []
    for name, item in value.items():
        if isinstance(item, Mapping):
            lines += flatten(item, f"{prefix}{name}.")
        elif isinstance(item, list | tuple):
            lines.append((f"{prefix}{name}", ", ".join(str(part) for part in item) or "none"))
        else:
            lines.append((f"{prefix}{name}", "none" if item is None else str(item)))
    return lines


def step_label(step: Any) -> str:
    """``quantize_static(method=mse, per_channel=True)``."""
    if not isinstance(step, Mapping):
        return str(step)
    settings = ", ".join(f"{name}={value}" for name, value in step.items() if name != "technique")
    technique = str(step.get("technique", "unnamed"))
    return f"{technique}({settings})" if settings else technique


def percent(ratio: float | None) -> str:
    """A ratio as a percentage with two digits that count, one decimal from 10 % on."""
    if ratio is None:
        return NOT_MEASURED
    if 0.0 < abs(ratio) < _NEGLIGIBLE:
        return f"<{_NEGLIGIBLE * _WHOLE:g} %" if ratio > 0 else "0 %"
    return f"{ratio * _WHOLE:.2g} %" if abs(ratio) < 0.1 else f"{ratio * _WHOLE:.1f} %"


def visible(value: Any) -> Any:
    """Control, format and lone surrogate characters of a text as their escapes; markup and anything else unchanged."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "".join(
        f"\\u{ord(character):04x}" if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} else character
        for character in value
    )


def dig(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def milliseconds(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.3g} ms" if value < _WHOLE else f"{value:.0f} ms"


def size_of(value: float | None) -> str:
    if value is None:
        return NOT_MEASURED
    return f"{value / _MIB:.1f} MiB" if value >= _MIB else f"{value / 1024:.1f} KiB"


def number(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.4g}"


def smaller(bytes_ratio: float | None, speedup: Sequence[float] | None, *, sparse: bool = False) -> str:
    """How much smaller; a candidate that is smaller and not proven faster says that this is all.

    ``sparse``: single weights are zero, which a dense runtime multiplies like any other.
    """
    if not bytes_ratio:
        return NOT_MEASURED
    faster = speedup is not None and speedup[0] > 1.0
    if sparse and not faster:
        return f"{bytes_ratio:.2f}x smaller; no speed: zeros are multiplied too"
    only_bytes = bytes_ratio > _SMALLER and speedup is not None and not faster
    return f"{bytes_ratio:.2f}x smaller{'; saves bytes, no speed' if only_bytes else ''}"
