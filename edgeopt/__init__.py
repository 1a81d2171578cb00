"""edgeopt: turns every model dropped into a folder into the fastest version that this device can run and that is still right.

The public face: :func:`optimize` and :func:`load`. Importing this package imports nothing heavy; the passes are
importable one by one from :mod:`edgeopt.passes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeopt.oneshot import Result, optimize
    from edgeopt.runtime import LoadedModel, load
__version__ = "0.1.0"
"""Stands here, where pyproject.toml reads it, since a sandboxed worker may not look into a checkout's metadata."""

__all__ = ["LoadedModel", "Result", "__version__", "load", "optimize"]

_HOMES = {
    "optimize": "edgeopt.oneshot",
    "Result": "edgeopt.oneshot",
    "load": "edgeopt.runtime",
    "LoadedModel": "edgeopt.runtime",
}


def __getattr__(name: str) -> Any:
    """Import the public face when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
