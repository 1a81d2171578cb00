"""When a file is finished: it has looked the same for a while.

Between ``scan`` and ``intake``: stamps go in, the paths that held still for ``quiet_s`` come out. Pure, on whatever
monotonic clock the caller keeps; the wall clock and the files' own times decide nothing, so a device that boots in 1970
settles as any other. Holding still is necessary, not sufficient: ``intake`` also wants the file to parse whole.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Generic, TypeVar

from edgeopt.daemon.scan import Stamp

if TYPE_CHECKING:
    from edgeopt.daemon.drops import Drop
    from edgeopt.daemon.scan import Listing

Name = TypeVar("Name", bound=Hashable)

__all__ = ["Settler", "Stamp", "observe_all", "ready"]


class Settler(Generic[Name]):
    """Remembers since when each path has looked as it looks now."""

    def __init__(self, quiet_s: float) -> None:
        self.quiet_s = quiet_s
        self._since: dict[Name, tuple[Stamp, float]] = {}

    def observe(self, path: Name, stamp: Stamp, now_s: float) -> None:
        """Note how ``path`` looks; any difference starts its quiet time anew."""
        known = self._since.get(path)
        if known is None or known[0] != stamp:
            self._since[path] = (stamp, now_s)

    def settled(self, now_s: float) -> list[Name]:
        """Every path that has been quiet for ``quiet_s``, in the order of first sight; asked again it answers again."""
        return [path for path, (_, since_s) in self._since.items() if now_s - since_s >= self.quiet_s]

    def quiet_for(self, path: Name, now_s: float) -> float:
        """Seconds since ``path`` last changed; 0 for one never seen."""
        known = self._since.get(path)
        return 0.0 if known is None else now_s - known[1]

    def forget(self, path: Name) -> None:
        """Drop what is known of ``path``; a later sight of it starts anew. Unknown paths are fine."""
        self._since.pop(path, None)

    def keep_only(self, paths: Iterable[Name]) -> None:
        """Forget every path that is not among ``paths``."""
        wanted = set(paths)
        self._since = {path: known for path, known in self._since.items() if path in wanted}

    def next_due_s(self, now_s: float) -> float | None:
        """Seconds until the next path settles if nothing changes; None where none is pending."""
        left = (self.quiet_s - (now_s - since_s) for _, since_s in self._since.values())
        return min((seconds for seconds in left if seconds > 0), default=None)


def observe_all(settler: Settler[str], listing: Listing, now_s: float) -> None:
    """Note a whole listing and forget what it no longer holds; a listing that failed says nothing at all."""
    if listing.missing:
        return
    settler.keep_only(entry.path for entry in listing)
    for entry in listing:
        settler.observe(entry.path, entry.stamp, now_s)


def ready(drops: Iterable[Drop], settler: Settler[str], now_s: float) -> list[Drop]:
    """The drops all of whose files have settled: one growing sidecar keeps its whole drop waiting."""
    settled = set(settler.settled(now_s))
    return [drop for drop in drops if settled.issuperset(drop.waits_for)]
