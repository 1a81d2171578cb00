"""``edgeopt serve``: the resident process, from its lock to its last word.

One loop in one thread decides everything; threads of their own take drops, run jobs and answer HTTP, and hand their
results back as letters. The loop never sleeps longer than a second, and only it pets systemd's watchdog. Nothing here
parses a model: the heavy libraries live in the workers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from types import FrameType

from edgeopt import __version__, device
from edgeopt.config.schema import Config
from edgeopt.daemon import logs, storage
from edgeopt.daemon.house import Folders, House
from edgeopt.daemon.jobs import JobStore
from edgeopt.daemon.lock import InstanceLock
from edgeopt.daemon.logs import Log
from edgeopt.daemon.loop import Loop
from edgeopt.daemon.mailbox import Hands, Mailbox
from edgeopt.daemon.metrics import Metrics, label
from edgeopt.daemon.models import Models
from edgeopt.daemon.notify import from_environment

_MOST_JOBS = 16
_INTERRUPTED = 130


def serve(
    config: Config,
    *,
    once: bool = False,
    reload: Callable[[], Config] | None = None,
    worker_command: Sequence[str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Serve until SIGTERM (0) or SIGINT (130); with ``once``, until the inbox is worked off: 1 if anything failed.

    ``reload`` reads the configuration again at SIGHUP. ``worker_command`` stands for ``python -m edgeopt.worker``. Raises
    :class:`~edgeopt.errors.AlreadyRunning` and other :class:`~edgeopt.errors.DaemonError`,
    :class:`~edgeopt.errors.EnvironmentFault` where the folders cannot be used, :class:`~edgeopt.errors.ConfigError`.
    """
    folders = Folders.of(config)
    with ExitStack() as stack:
        with storage.storage_errors("making the daemon's folders"):
            # who may read published/ is publish.mode's to say; what is private has a closed folder around it
            os.umask(0o022)
            folders.create()
        lock = InstanceLock(folders.state, folders.inbox)
        lock.take()
        stack.callback(lock.release)
        mailbox = Mailbox()
        stack.callback(mailbox.close)
        house = _furnish(config, folders, mailbox, clock=clock)
        house.worker_command = worker_command
        house.say_what_has_no_effect()
        stack.callback(house.store.close)
        notifier = from_environment(os.environ)
        stack.callback(notifier.close)
        loop = Loop(house, mailbox, notifier, once=once, reload=reload)
        stack.enter_context(_Signals(loop))
        code = loop.run()
        if house.busy:
            # a thread hangs in a system call of a sick disk; everything is safe to be cut off, waiting is not
            house.log.warning("stopped-in-the-middle", busy=house.busy)
            sys.stderr.flush()
            os._exit(code)
        return _INTERRUPTED if loop.interrupted else code


def _furnish(config: Config, folders: Folders, mailbox: Mailbox, *, clock: Callable[[], float]) -> House:
    target = device.detect(config.target)
    shape = logs.choose(config.log.format, environment=os.environ, descriptor=sys.stderr.fileno())
    build = {"version": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    about = {
        "name": target.name,
        "device": label(target.device),
        "arch": label(target.arch),
        "features": " ".join(target.features),
        "threads": str(target.threads),
    }
    return House(
        config=config,
        folders=folders,
        store=JobStore(folders.database),
        models=Models(folders.published),
        metrics=Metrics(build=build, target=about),
        log=Log(sys.stderr, level=config.log.level, shape=shape),
        clock=clock,
        wall_s=time.time,
        inbox_hands=Hands(mailbox, threads=1, name="inbox"),
        job_hands=Hands(mailbox, threads=_MOST_JOBS, name="job"),
        care_hands=Hands(mailbox, threads=1, name="care"),
        device_memory_bytes=device.memory_bytes(),
    )


class _Signals:
    """SIGTERM, SIGINT and SIGHUP reach the loop while this context lasts; nothing outside of the main thread."""

    _NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self._NUMBERS}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            with suppress(TypeError):
                signal.signal(number, handler)  # type: ignore[arg-type]  # it came from signal.signal

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._loop.signalled(number)
