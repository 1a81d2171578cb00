"""The inbox's side of the main loop: what lies there, what has settled, and who has it in hand.

``scan > settle > group`` run in the loop; taking a drop runs in a thread and comes back as a :class:`Taken`. A drop is
known by its path and a fingerprint of all its files' stamps. While the daemon has that in hand (queued, running, kept
aside after a cancel) it is not taken again; once any of its files changes, it is a new drop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from edgeopt import wire
from edgeopt.daemon import drops, intake, terms
from edgeopt.daemon.drops import Drop
from edgeopt.daemon.house import Backoff, House
from edgeopt.daemon.intake import NotReady, Patience, Staged
from edgeopt.daemon.names import escaped
from edgeopt.daemon.scan import Listing, Stamp, scan
from edgeopt.daemon.settle import Settler, observe_all, ready
from edgeopt.errors import EdgeoptError, InputError, JobCancelled

_GAP_S = 0.2
"""Between two scans, however many events come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DropNote:
    """What a job's row remembers of its drop, for taking it out of the inbox after the outcome."""

    drop: Drop
    stamps: dict[str, Stamp]
    print: str

    def json(self) -> str:
        return wire.dumps(self)

    @staticmethod
    def read(text: str) -> DropNote | None:
        """None for a row without a drop."""
        return wire.loads(DropNote, text) if text else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A drop that was staged, or refused with ``error``; exactly one of the two is set."""

    note: DropNote
    staged: Staged | None = None
    error: InputError | None = None
    identity: intake.Identity | None = None


class Front:
    """Looks after the inbox; ``on_taken`` gets every drop that was staged or refused, in the loop's thread."""

    def __init__(self, house: House, on_taken: Callable[[Taken], None]) -> None:
        self._house = house
        self._on_taken = on_taken
        self._settler: Settler[str] = Settler(house.config.watch.settle_s)
        self._backoff = Backoff()
        self._in_hand: dict[str, set[str]] = {}
        self._shut: set[str] = set()
        self._pending: list[Drop] = []
        self._prints: dict[str, str] = {}
        self._stamps: dict[str, dict[str, Stamp]] = {}
        self._dirty = True
        self._last_scan_s = float("-inf")
        self._look_s = float("-inf")
        self._gap_s = _GAP_S

    # ------------------------------------------------------------ what others tell
    def look(self) -> None:
        """Something may have changed: scan soon."""
        self._dirty = True

    def reconfigured(self) -> None:
        if self._settler.quiet_s != self._house.config.watch.settle_s:
            self._settler = Settler(self._house.config.watch.settle_s)
        self._dirty = True

    def hold(self, note: DropNote) -> None:
        """A job has this drop, as it is now."""
        self._in_hand.setdefault(note.drop.path, set()).add(note.print)

    def release(self, note: DropNote) -> None:
        """The drop is nobody's any more: if it still stands there, it is taken again."""
        self._in_hand.get(note.drop.path, set()).discard(note.print)
        if not self._in_hand.get(note.drop.path):
            self._in_hand.pop(note.drop.path, None)
        self._backoff.clear(note.drop.path)
        self._dirty = True

    def shut(self, path: str) -> None:
        """The drop is being moved or removed: nothing under its path is taken meanwhile."""
        self._shut.add(path)

    def reopen(self, path: str) -> None:
        self._shut.discard(path)
        self._dirty = True

    # ------------------------------------------------------------ the loop's turn
    def turn(self, now_s: float) -> None:
        """Scan where that is due, and take what has settled."""
        if self.next_due_s(now_s) <= 0.0:
            self._scan(now_s)
        for drop in self._new(now_s):
            self._take(drop)

    def next_due_s(self, now_s: float) -> float:
        """Seconds until the next turn has something to do, at most the rescan interval."""
        earliest_s = self._last_scan_s + self._gap_s
        wanted_s = earliest_s if self._dirty else self._look_s
        return max(0.0, max(earliest_s, wanted_s) - now_s)

    @property
    def idle(self) -> bool:
        """Nothing that could become a job before the device is well lies in the inbox, as the last scan saw it."""
        return not self._dirty and all(f"drop:{drop.path}" in self._house.trouble for drop in self._pending)

    @property
    def delayed(self) -> int:
        """Drops that wait for the device to be well."""
        return sum(1 for concern in self._house.trouble if concern.startswith("drop:"))

    def quiet_for(self, path: str) -> float:
        return self._settler.quiet_for(path, self._house.clock())

    # ------------------------------------------------------------ inside
    def _scan(self, now_s: float) -> None:
        house = self._house
        started_s = house.clock()
        self._dirty = False
        listing = scan(house.folders.inbox)
        if listing.missing:
            # an unmounted or deleted inbox says nothing about its drops
            house.trouble["inbox"] = f"the inbox {house.folders.inbox} cannot be listed: {listing.fault}"
            self._pending = []
        else:
            house.trouble.pop("inbox", None)
            house.metrics.scanned(house.wall_s())
            observe_all(self._settler, listing, now_s)
            self._note(listing)
        self._last_scan_s = now_s
        self._look_s = min([now_s + house.config.watch.rescan_s, *(self._due_s(drop, now_s) for drop in self._pending)])
        self._gap_s = max(_GAP_S, 5.0 * (house.clock() - started_s))

    def _due_s(self, drop: Drop, now_s: float) -> float:
        """When a drop that nobody touches any more can be taken."""
        quiet_s = min((self._settler.quiet_for(path, now_s) for path in drop.waits_for), default=0.0)
        return max(now_s + self._settler.quiet_s - quiet_s, self._backoff.until_s(drop.path))

    def _note(self, listing: Listing) -> None:
        """Remember the drops that nobody has in hand."""
        stamps = {entry.path: entry.stamp for entry in listing}
        found = drops.group(listing)
        self._prints = {drop.path: _fingerprint(drop, stamps) for drop in found}
        self._stamps = {drop.path: {path: stamps[path] for path in drop.members if path in stamps} for drop in found}
        self._pending = [
            drop
            for drop in found
            if drop.path not in self._shut and self._prints[drop.path] not in self._in_hand.get(drop.path, ())
        ]
        paths = set(self._prints)
        self._in_hand = {path: prints for path, prints in self._in_hand.items() if path in paths or prints}
        for concern in [concern for concern in self._house.trouble if concern.startswith("drop:")]:
            if concern.removeprefix("drop:") not in paths:
                self._house.trouble.pop(concern)

    def _new(self, now_s: float) -> list[Drop]:
        fit = [drop for drop in self._pending if not self._backoff.waits(drop.path, now_s)]
        chosen = ready(fit, self._settler, now_s)
        return sorted(chosen, key=lambda drop: sum(stamp.size_bytes for stamp in self._stamps[drop.path].values()))

    def _take(self, drop: Drop) -> None:
        note = DropNote(drop=drop, stamps=self._stamps[drop.path], print=self._prints[drop.path])
        self.hold(note)
        self._pending = [other for other in self._pending if other.path != drop.path]
        self._house.inbox_hands.do(lambda: self._stage(note), lambda future: self._took(note, future))

    def _stage(self, note: DropNote) -> Taken:
        house = self._house
        limits = terms.worker_limits(house.config, device_memory_bytes=house.device_memory_bytes)
        patience = Patience(
            quiet_for=self.quiet_for, settle_s=house.config.watch.settle_s, should_stop=lambda: house.stopping
        )
        try:
            staged = intake.stage(
                note.drop,
                staging_root=house.folders.staging,
                policy=terms.policy(house.config),
                limits=limits,
                patience=patience,
            )
        except InputError as error:
            return Taken(note=note, error=error, identity=intake.identify(note.drop))
        whole = DropNote(drop=staged.drop, stamps=staged.stamps, print=note.print)
        return Taken(note=whole, staged=staged)

    def _took(self, note: DropNote, future: Future[Taken]) -> None:
        path, house, now_s = note.drop.path, self._house, self._house.clock()
        # a mistake of ours, which the loop reports: the drop stays in hand, so that it is not met again at once
        try:
            taken = future.result()
        except NotReady as error:
            house.log.debug("drop-not-ready", file=escaped(path), reason=error.message)
            self.release(note)
            self._backoff.postpone(path, now_s + max(_GAP_S, error.retry_s))
        except JobCancelled:
            self.release(note)
        except EdgeoptError as error:
            if f"drop:{path}" not in house.trouble:
                house.log.warning(
                    "drop-held", file=escaped(path), code=error.code, reason=error.message, hint=error.hint
                )
            house.trouble[f"drop:{path}"] = error.message
            # released by hand: release() would forget how often it failed
            self._in_hand.get(path, set()).discard(note.print)
            self._backoff.fail(path, now_s)
            self._dirty = True
        else:
            self._on_taken(taken)
            self._backoff.clear(path)
            house.trouble.pop(f"drop:{path}", None)


def _fingerprint(drop: Drop, stamps: dict[str, Stamp]) -> str:
    lines = [f"{path!a} {stamps.get(path)}" for path in sorted(drop.members)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
