"""Hostile text made printable: what comes from a drop or a worker before it reaches a log line, a reason or a page.

Newlines, terminal codes, right-to-left marks, surrogates of undecodable bytes: everything that is not printable is
shown as its escape, so that one line stays one line and cannot dress up as another.
"""

from __future__ import annotations

_REASON_CHARACTERS = 2048


def printable(text: str, *, limit: int = _REASON_CHARACTERS) -> str:
    """``text`` on one line, printable characters only, at most ``limit`` of them."""
    if not text.isprintable():
        text = "".join(character if character.isprintable() else _escape(character) for character in text[:limit])
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
