"""Finished engines by their key, so that the same build is never done twice: after a restart, for another goal, for recipes that give the same file.

``<folder>/<key>/model.engine`` beside ``facts.json``. The folder is the cache of one model, which only jobs of that model can write to. An engine is
taken from here only where the whole key and its sha256 fit: TensorRT's own check misses a flipped byte. One appears in a single rename.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgeopt import wire
from edgeopt.integrity import link_or_copy, sha256_of
from edgeopt.layout import ENGINE_FILE
from edgeopt.records import EngineFacts

_FACTS_FILE = "facts.json"
_KEY_DIGITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What is known of a finished engine."""

    facts: EngineFacts
    version: str
    """Of the library that built it, as it said itself."""
    sha256: str


class Shelf:
    """Engines of one model; without a folder it holds nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def find(self, key: str, engine: Path) -> Finished | None:
        """Put the engine of ``key`` at ``engine``; None where there is none or it is damaged."""
        if self._folder is None:
            return None
        entry = self._folder / key[:_KEY_DIGITS]
        try:
            found = wire.loads(Finished, (entry / _FACTS_FILE).read_bytes())
            if found.facts.key != key or sha256_of(entry / ENGINE_FILE) != found.sha256:
                return None
            engine.unlink(missing_ok=True)
            link_or_copy(entry / ENGINE_FILE, engine)
        except (OSError, ValueError):
            return None
        return found

    def keep(self, found: Finished, engine: Path) -> None:
        """Remember ``engine``. Raises OSError where the disk does."""
        if self._folder is None:
            return
        entry = self._folder / found.facts.key[:_KEY_DIGITS]
        temporary = entry.with_name(f".{entry.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        link_or_copy(engine, temporary / ENGINE_FILE)
        (temporary / _FACTS_FILE).write_text(wire.dumps(found))
        shutil.rmtree(entry, ignore_errors=True)
        temporary.rename(entry)
