"""What the building process is asked and what it answers, as JSON lines on its standard streams.

First an :class:`Order` goes in. Then :class:`Progress` lines come out and one :class:`Answer` ends it; a closed input means: give up. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

OPTIONS = {"strongly_typed": True, "sparse_weights": True, "profiling_verbosity": "detailed"}
"""How ``child`` builds every engine: part of what an engine depends on, so whoever changes that changes this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The shapes that one open input may take: an optimization profile has one of these for each."""

    input: str
    least: tuple[int, ...]
    typical: tuple[int, ...]
    most: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One build. ``gpus`` are such as ``SM86``; empty means the GPU that is there."""

    module: str
    model: str
    engine: str
    gpus: tuple[str, ...] = ()
    profiles: tuple[tuple[Range, ...], ...] = ()
    workspace_bytes: int = 0
    """0 leaves it to the library."""


def partial_of(engine: Path) -> Path:
    """Where ``engine`` lies while it is written: what has its own name is whole."""
    return engine.with_name(f"{engine.name}.part")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far one phase of the build is, and which ``share`` (0 to 1) of the whole; see ``phases``."""

    phase: str
    done: int
    steps: int
    share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ParseFault:
    """One complaint of the parser; empty where it does not say."""

    code: str
    node: str
    operator: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How it ended: ``stage`` is ``built``, or where it stopped: ``import``, ``parse``, ``profile``, ``cancelled`` or ``build``."""

    stage: str
    version: str = ""
    faults: tuple[ParseFault, ...] = ()
    log: tuple[str, ...] = ()
    """Errors that the library logged, in order."""
    tables: tuple[str, ...] = ()
    """The layers as the library logged them, one text for each time that it did; see ``coverage``."""
    memory: tuple[tuple[str, int], ...] = ()
    """What it logged of memory: ``weights``, ``activation``, ``scratch`` to bytes."""
