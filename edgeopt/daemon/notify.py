"""What the daemon tells systemd: ready, status, reloading, stopping, and that its loop still turns.

The sd_notify protocol over a datagram socket, without a library. Works the same under ``Type=notify`` and
``Type=notify-reload``; outside of systemd nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from edgeopt.daemon.printable import printable


class Notifier:
    """Sends to ``address`` (None: nowhere); ``watchdog_s`` is the interval in which the loop has to show itself."""

    def __init__(
        self,
        address: str | None,
        *,
        watchdog_s: float | None = None,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.watchdog_s = watchdog_s
        self._monotonic_ns = monotonic_ns
        self._status = ""
        self._socket: socket.socket | None = None
        # a leading @ is systemd's spelling of the abstract namespace
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    def ready(self, status: str) -> None:
        """Recovery is over and intake works; also the end of a reload."""
        self._status = status
        self._send("READY=1", f"STATUS={printable(status, limit=200)}")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``; sent only when it changed."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={printable(text, limit=200)}")

    def reloading(self) -> None:
        self._send("RELOADING=1", f"MONOTONIC_USEC={self._monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1", "STATUS=Stopping")

    def watchdog(self) -> None:
        """Only the main loop may call this: it is the proof that the loop turns."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _send(self, *lines: str) -> None:
        if self._socket is None or self._address is None:
            return
        # a supervisor that does not listen is no reason to stop working
        with suppress(OSError):
            self._socket.sendto("\n".join(lines).encode(), self._address)


def from_environment(environment: Mapping[str, str], *, pid: int | None = None) -> Notifier:
    """The notifier that systemd's environment variables ask for."""
    pid = os.getpid() if pid is None else pid
    watchdog_s = None
    microseconds = environment.get("WATCHDOG_USEC", "")
    if microseconds.isdecimal() and environment.get("WATCHDOG_PID", str(pid)) == str(pid):
        watchdog_s = int(microseconds) / 1e6
    return Notifier(environment.get("NOTIFY_SOCKET") or None, watchdog_s=watchdog_s)
