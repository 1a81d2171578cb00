"""sd_notify, heard by a socket of our own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeopt.daemon.notify import Notifier, from_environment


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        yield listening


def test_every_word_of_the_protocol(supervisor: socket.socket) -> None:
    notifier = Notifier(supervisor.getsockname(), watchdog_s=2.0, monotonic_ns=lambda: 5_000_000)
    notifier.ready("up\nSTOPPING=1")
    notifier.status("m: measure, trial 3/9")
    notifier.status("m: measure, trial 3/9")
    notifier.watchdog()
    notifier.reloading()
    notifier.stopping()
    heard = [supervisor.recv(4096).decode() for _ in range(5)]
    assert heard == [
        "READY=1\nSTATUS=up\\nSTOPPING=1",
        "STATUS=m: measure, trial 3/9",
        "WATCHDOG=1",
        "RELOADING=1\nMONOTONIC_USEC=5000",
        "STOPPING=1\nSTATUS=Stopping",
    ]
    notifier.close()


def test_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0edgeopt-notify-{os.getpid()}")
        notifier = Notifier(f"@edgeopt-notify-{os.getpid()}")
        notifier.ready("up")
        assert listening.recv(4096).startswith(b"READY=1")
        notifier.close()


def test_outside_of_systemd_nothing_is_sent_and_nothing_fails() -> None:
    notifier = from_environment({})
    notifier.ready("up")
    notifier.watchdog()
    notifier.close()


def test_supervisor_that_is_gone_is_no_reason_to_fail(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    notifier.ready("up")
    notifier.close()


def test_watchdog_of_another_process_is_not_ours() -> None:
    ours = from_environment({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "7"}, pid=7)
    assert ours.watchdog_s == 2.0
    assert from_environment({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "7"}, pid=8).watchdog_s is None
    assert from_environment({"WATCHDOG_USEC": "soon"}).watchdog_s is None
