"""What the main loop does beside drops and jobs: the watcher, the HTTP server, pauses, reloads, status and textfile.

Opened after recovery, turned by the loop, closed at its end. Nothing in here may keep jobs from running: a port in use
or a status file that cannot be written is said, and tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgeopt import device
from edgeopt.config.schema import Config
from edgeopt.daemon import neighbour, recovery
from edgeopt.daemon.house import Backoff, Folders, House
from edgeopt.daemon.http import HttpServer
from edgeopt.daemon.neighbour import Surroundings
from edgeopt.daemon.notify import Notifier
from edgeopt.daemon.outcomes import Outcomes
from edgeopt.daemon.watch import Watcher
from edgeopt.daemon.window import Window
from edgeopt.errors import ConfigError, EnvironmentFault, PortInUse

_OFTEN_S = 2.0
_SELDOM_S = 15.0
_HTTP = "http"


class Chores:
    """``wake`` is called from the watcher's thread."""

    def __init__(  # noqa: PLR0913 - the rooms that it looks after
        self,
        house: House,
        outcomes: Outcomes,
        window: Window,
        notifier: Notifier,
        *,
        wake: Callable[[], None],
        reload: Callable[[], Config] | None,
    ) -> None:
        self._house = house
        self._outcomes = outcomes
        self._window = window
        self._notifier = notifier
        self._wake = wake
        self._reload = reload
        self._watcher: Watcher | None = None
        self._http: HttpServer | None = None
        self._backoff = Backoff()
        self._due_s: dict[str, float] = {}
        self._overflows = 0
        self._may_pause = True

    def open(self, *, paused: bool) -> None:
        """Start the watcher and the HTTP server; with ``paused`` False no neighbour keeps jobs from starting.

        Raises :class:`~edgeopt.errors.ConfigError` where the HTTP settings cannot work.
        """
        self._may_pause = paused
        self._open_watcher()
        self._open_http()
        self._look_around()

    def close(self) -> None:
        if self._http is not None:
            self._http.stop()
        if self._watcher is not None:
            self._watcher.stop()

    def turn(self, now_s: float) -> None:
        """Do what is due."""
        self._notifier.status(self._window.status())
        self._count_overflows()
        if self._http is None and not self._backoff.waits(_HTTP, now_s):
            self._open_http()
        if self._due("around", _OFTEN_S, now_s):
            self._look_around()
        if self._due("models", _OFTEN_S, now_s):
            for shelf in self._house.models.refresh_moved():
                self._note_shelf(shelf.name, shelf.current, shelf.pinned)
        if self._due("textfile", _SELDOM_S, now_s):
            self._write_textfile()
        if self._due("caches", 20 * _SELDOM_S, now_s):
            recovery.prune_caches(self._house)

    def reload(self) -> None:
        """Read the configuration again (SIGHUP); a wrong one leaves everything as it is."""
        house = self._house
        self._notifier.reloading()
        try:
            if self._reload is not None:
                self._apply(self._reload())
        except ConfigError as error:
            house.metrics.reloaded(successful=False)
            mistakes = "; ".join(error.mistakes)
            house.log.alert("reload-failed", reason=error.message, mistakes=mistakes, hint=error.hint)
        else:
            house.metrics.reloaded(successful=True)
            house.log.info("reloaded")
        self._outcomes.front.look()
        self._notifier.ready(self._window.status())

    # ------------------------------------------------------------ inside
    def _apply(self, fresh: Config) -> None:
        house, old = self._house, self._house.config
        if Folders.of(fresh) != house.folders:
            house.log.warning("reload-needs-restart", reason="inbox, published, rejected and state stay as they are")
            fresh = replace(fresh, inbox=old.inbox, published=old.published, rejected=old.rejected, state=old.state)
        house.config = fresh
        house.log.level = fresh.log.level
        house.say_what_has_no_effect()
        self._outcomes.front.reconfigured()
        if fresh.watch.backend != old.watch.backend:
            if self._watcher is not None:
                self._watcher.stop()
            self._open_watcher()
        if fresh.http != old.http:
            if self._http is not None:
                self._http.stop()
            self._http = None
            self._backoff.clear(_HTTP)
            self._open_http()

    def _open_watcher(self) -> None:
        house = self._house
        self._watcher = Watcher(house.folders.inbox, backend=house.config.watch.backend, wake=self._wake)
        self._watcher.start()
        self._window.backend = self._watcher.backend
        self._overflows = 0
        if self._watcher.fallback_reason is not None:
            house.log.warning("inbox-polled", reason=self._watcher.fallback_reason)

    def _count_overflows(self) -> None:
        if self._watcher is None:
            return
        self._window.backend = self._watcher.backend
        if (seen := self._watcher.overflows) > self._overflows:
            self._house.metrics.overflowed(seen - self._overflows)
            self._house.log.warning("watch-overflow", hint="Raise fs.inotify.max_queued_events.")
            self._overflows = seen

    def _open_http(self) -> None:
        house = self._house
        server = HttpServer(house.config.http, self._window.view())
        try:
            server.start()
        except PortInUse as fault:
            wait_s = self._backoff.fail(_HTTP, house.clock())
            if self._backoff.tries(_HTTP) == 1:
                house.log.warning("http-unavailable", reason=fault.message, hint=fault.hint, wait_s=round(wait_s, 1))
            return
        self._http = server
        self._backoff.clear(_HTTP)
        house.log.info("http-listening", address=server.address)

    def _look_around(self) -> None:
        """Whether a neighbour wants the device for itself."""
        house, floor = self._house, self._outcomes.floor
        settings = house.config.neighbour
        if not self._may_pause:
            return
        local = time.localtime(house.wall_s())
        seen = Surroundings(
            minute_of_day=local.tm_hour * 60 + local.tm_min,
            temperature_c=device.temperature_c() if settings.max_temperature_c is not None else None,
            load=device.load_1min() if settings.max_load is not None else None,
            pause_file_exists=settings.pause_file is not None and Path(settings.pause_file).exists(),
        )
        before, floor.paused = floor.paused, neighbour.pause_reason(settings, seen, paused=floor.paused)
        if floor.paused != before:
            house.log.info("paused" if floor.paused else "resumed", reason=floor.paused or before)

    def _note_shelf(self, name: str, current: int, pinned: int) -> None:
        if current:
            self._house.store.set_current(name, current, pinned=pinned)
        else:
            self._house.store.forget_model(name)
        self._house.log.info("current-moved", model=name, version=current, pinned=pinned)

    def _write_textfile(self) -> None:
        if self._house.config.http.textfile is None:
            return
        try:
            self._window.metrics()
            self._house.metrics.write_textfile(Path(self._house.config.http.textfile))
        except EnvironmentFault as fault:
            self._house.log.warning("textfile-failed", reason=fault.message, hint=fault.hint)

    def _due(self, what: str, every_s: float, now_s: float) -> bool:
        if now_s < self._due_s.get(what, now_s):
            return False
        self._due_s[what] = now_s + every_s
        return True
