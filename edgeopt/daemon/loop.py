"""The main loop: one turn after the other, at most a second apart, and nothing in it that could wait.

A turn reads the letters of other threads, lets the inbox's side and the jobs' side do what is due, grants wishes and
does chores. A letter that meets a full or failing disk is read again later. This is the last place that catches what
nobody expected: it is logged as a mistake of ours, and the loop turns on.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable
from functools import partial

from edgeopt.config.schema import Config
from edgeopt.daemon import recovery, wishes
from edgeopt.daemon.chores import Chores
from edgeopt.daemon.healing import Healing
from edgeopt.daemon.house import House
from edgeopt.daemon.mailbox import Letter, Mailbox
from edgeopt.daemon.notify import Notifier
from edgeopt.daemon.outcomes import Outcomes
from edgeopt.daemon.window import Window
from edgeopt.errors import DaemonError, EnvironmentFault

_TICK_S = 1.0
_AGAIN_S = 2.0
_STOP_WITHIN_S = 9.0


class Loop:
    """Runs until it is told to stop or, with ``once``, until the inbox is worked off."""

    def __init__(
        self,
        house: House,
        mailbox: Mailbox,
        notifier: Notifier,
        *,
        once: bool = False,
        reload: Callable[[], Config] | None = None,
    ) -> None:
        self._house = house
        self._mailbox = mailbox
        self._notifier = notifier
        self._once = once
        self._outcomes = Outcomes(house)
        self._healing = Healing(house, self._outcomes)
        self._window = Window(house, self._outcomes)
        self._chores = Chores(house, self._outcomes, self._window, notifier, wake=self._look, reload=reload)
        self._later: list[tuple[float, Letter]] = []
        self._signals: list[int] = []
        self._stop_by_s = float("inf")
        self.interrupted = False

    def signalled(self, number: int) -> None:
        """From a signal handler: remember it and wake up."""
        self._signals.append(number)
        self._mailbox.wake()

    def run(self) -> int:
        """Recover, serve, stop; the exit code."""
        house = self._house
        recovery.recover(house, self._outcomes)
        try:
            self._chores.open(paused=not self._once)
            self._window.ready = True
            self._notifier.ready(self._window.status())
            house.log.info(
                "ready", inbox=str(house.folders.inbox), backend=self._window.backend, models=len(house.models.rows())
            )
            while not self._finished():
                self._turn()
            return self._code()
        finally:
            self._chores.close()
            house.close_hands()

    # ------------------------------------------------------------ one turn
    def _turn(self) -> None:
        now_s = self._house.clock()
        self._window.turned_s = now_s
        self._notifier.watchdog()
        self._obey(now_s)
        due = [letter for at_s, letter in self._later if at_s <= now_s]
        self._later = [(at_s, letter) for at_s, letter in self._later if at_s > now_s]
        well = True
        for letter in (*due, *self._mailbox.letters()):
            well &= self._guarded(letter, again=True)
        for step in self._steps(now_s):
            well &= self._guarded(step, again=False)
        if well and not self._later:
            self._house.trouble.pop("daemon", None)
        self._mailbox.wait(min(_TICK_S, max(0.01, self._outcomes.front.next_due_s(self._house.clock()))))

    def _steps(self, now_s: float) -> list[Letter]:
        if self._house.stopping:
            return []
        outcomes = self._outcomes
        return [
            partial(outcomes.front.turn, now_s),
            partial(outcomes.leaving.turn, now_s),
            partial(wishes.grant, self._house, outcomes),
            partial(outcomes.floor.turn, now_s),
            # who works the inbox off once wants no other work
            *([] if self._once else [partial(self._healing.turn, now_s)]),
            partial(self._chores.turn, now_s),
        ]

    def _guarded(self, letter: Letter, *, again: bool) -> bool:
        """Read a letter; False where it met trouble of the device."""
        house = self._house
        try:
            letter()
        except EnvironmentFault as fault:
            if house.trouble.get("daemon") != fault.message:
                house.log.alert("device-trouble", code=fault.code, reason=fault.message, hint=fault.hint)
            house.trouble["daemon"] = fault.message
            if again:
                self._later.append((house.clock() + _AGAIN_S, letter))
            return False
        except DaemonError:
            raise
        except Exception as mistake:  # noqa: BLE001 - the loop's place: a mistake of ours must not end the daemon
            house.failures += 1
            trace = " | ".join(traceback.format_exception(mistake)[-4:])
            house.log.alert("internal-error", kind=type(mistake).__name__, reason=str(mistake), trace=trace)
        return True

    # ------------------------------------------------------------ from outside
    def _look(self) -> None:
        """From the watcher's thread: something happened in the inbox."""
        self._outcomes.front.look()
        self._mailbox.wake()

    def _obey(self, now_s: float) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGHUP:
                self._guarded(self._chores.reload, again=False)
            elif not self._house.stopping:
                self.interrupted = number == signal.SIGINT
                self._house.stopping = True
                self._stop_by_s = now_s + _STOP_WITHIN_S
                self._notifier.stopping()
                self._house.log.info("stopping", signal=signal.Signals(number).name)
                self._outcomes.floor.stop()

    # ------------------------------------------------------------ the end
    def _finished(self) -> bool:
        busy = self._house.busy
        if self._house.stopping:
            return busy == 0 or self._house.clock() >= self._stop_by_s
        if not self._once or busy or self._later or not self._outcomes.front.idle:
            return False
        counts = self._house.store.counts()
        waiting = self._outcomes.leaving.ids - self._outcomes.leaving.stuck_ids
        return not waiting and not counts["queued"] and not counts["running"]

    def _code(self) -> int:
        if not self._once or self._house.stopping:
            return 0
        unwell = self._house.failures or self._house.trouble or self._house.store.counts()["held"]
        return 1 if unwell else 0
