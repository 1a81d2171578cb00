"""What the daemon's rooms share: configuration, folders, store, models, metrics, log, clocks and hands.

Made once by ``app``. ``config`` is replaced at a reload; everything else stays.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeopt.config import pending
from edgeopt.config.schema import Config
from edgeopt.daemon.jobs import JobStore
from edgeopt.daemon.logs import Log
from edgeopt.daemon.mailbox import Hands
from edgeopt.daemon.metrics import Metrics
from edgeopt.daemon.models import Models

_BACKOFF_FIRST_S = 1.0
_BACKOFF_LAST_S = 30.0
"""Once the device is well again, everything goes on within this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Where everything lies."""

    inbox: Path
    published: Path
    rejected: Path
    state: Path

    @property
    def staging(self) -> Path:
        return self.state / "staging"

    @property
    def cache(self) -> Path:
        return self.state / "cache"

    @property
    def sources(self) -> Path:
        return self.state / "sources"

    @property
    def database(self) -> Path:
        return self.state / "jobs.sqlite"

    @staticmethod
    def of(config: Config) -> Folders:
        return Folders(
            inbox=Path(config.inbox),
            published=Path(config.published),
            rejected=Path(config.rejected),
            state=Path(config.state),
        )

    def create(self) -> None:
        """Make what is missing; ``state`` and ``rejected`` are closed to others, whoever made them."""
        for folder in (self.inbox, self.published, self.rejected, self.state, self.staging, self.cache):
            folder.mkdir(parents=True, exist_ok=True)
        for private in (self.state, self.rejected):
            private.chmod(0o700)


@dataclass(slots=True, kw_only=True)
class House:
    """The shared things; only the loop's thread changes them."""

    config: Config
    folders: Folders
    store: JobStore
    models: Models
    metrics: Metrics
    log: Log
    clock: Callable[[], float]
    wall_s: Callable[[], float]
    inbox_hands: Hands
    """One thread: drops are staged, moved and removed one after the other."""
    job_hands: Hands
    """One thread a running job."""
    care_hands: Hands
    """One thread: what is published is read again, and made anew where it no longer holds."""
    device_memory_bytes: int = 0
    worker_command: Sequence[str] | None = None
    stopping: bool = False
    trouble: dict[str, str] = field(default_factory=dict)
    """Why intake does not work right now, by what it concerns; empty when all is well."""
    failures: int = 0
    """Jobs that failed or were rejected since the start: the exit code of ``--once``."""

    @property
    def busy(self) -> int:
        """Tasks in other threads whose result the loop has not yet seen."""
        return self.inbox_hands.busy + self.job_hands.busy + self.care_hands.busy

    def close_hands(self) -> None:
        """What has not begun never does."""
        for hands in (self.inbox_hands, self.job_hands, self.care_hands):
            hands.close()

    def say_what_has_no_effect(self) -> None:
        """Warn of every key that is set to something this version does not do."""
        for sentence in pending.without_effect(self.config):
            self.log.warning("setting-without-effect", reason=sentence)


@dataclass(slots=True)
class Backoff:
    """Growing waits for things that failed, by their id, on the monotonic clock."""

    jitter: Callable[[], float] = random.random
    _tries: dict[str, int] = field(default_factory=dict)
    _until_s: dict[str, float] = field(default_factory=dict)

    def fail(self, key: str, now_s: float) -> float:
        """Note a failure; returns the seconds to wait."""
        tries = self._tries[key] = self._tries.get(key, 0) + 1
        wait_s = min(_BACKOFF_LAST_S, _BACKOFF_FIRST_S * 2.0 ** min(tries - 1, 16)) * (0.75 + 0.25 * self.jitter())
        self._until_s[key] = now_s + wait_s
        return wait_s

    def postpone(self, key: str, until_s: float) -> None:
        """Wait without counting a failure."""
        self._until_s[key] = until_s

    def until_s(self, key: str) -> float:
        """When the wait is over; long ago where there is none."""
        return self._until_s.get(key, float("-inf"))

    def waits(self, key: str, now_s: float) -> bool:
        return now_s < self._until_s.get(key, now_s)

    def waiting(self, now_s: float) -> set[str]:
        return {key for key, until_s in self._until_s.items() if now_s < until_s}

    def tries(self, key: str) -> int:
        return self._tries.get(key, 0)

    def clear(self, key: str) -> None:
        self._tries.pop(key, None)
        self._until_s.pop(key, None)
