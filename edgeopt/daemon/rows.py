"""What the job store's rows say: a job's state and reason, a published name. Plain data, read by every room of the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["queued", "running", "held", "published", "duplicate", "rejected", "failed", "cancelled"]
Request: TypeAlias = Literal["", "cancel", "retry"]

STATES: tuple[State, ...] = ("queued", "running", "held", "published", "duplicate", "rejected", "failed", "cancelled")
ACTIVE: tuple[State, ...] = ("queued", "running", "held")
QUEUED: tuple[State, ...] = ("queued",)
RUNNING: tuple[State, ...] = ("running",)
CRASH_LIMIT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row. ``drop_json`` and ``source_file`` are ASCII; ``version`` is 0 before one exists."""

    job_id: str
    name: str
    key: str
    state: State = "queued"
    attempts: int = 0
    """Attempts that ended badly: a crash, a time or memory limit, a daemon that died meanwhile."""
    bytes: int = 0
    source_file: str = ""
    source_sha256: str = ""
    stage: str = ""
    code: str = ""
    message: str = ""
    hint: str = ""
    version: int = 0
    drop_json: str = ""
    drop_settled: bool = False
    """The drop has left the inbox (or stays there on purpose)."""
    request: Request = ""
    created_s: float = 0.0
    updated_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """A published name; ``pinned`` is 0 or the version that ``current`` is held at."""

    name: str
    version: int
    highest: int
    pinned: int = 0
