"""How other threads and signals reach the main loop: letters in a queue, and a pipe that ends its sleep.

A letter is a function that the loop calls. Waking is one byte written to a pipe, which is safe in a signal handler,
where taking the lock of an ``Event`` could wait for ever on the thread that the signal interrupted.
"""

from __future__ import annotations

import os
import queue
import select
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias, TypeVar

from edgeopt.errors import EnvironmentFault

Letter: TypeAlias = Callable[[], None]
Result = TypeVar("Result")


class Mailbox:
    """Written to from anywhere, read by the loop alone."""

    def __init__(self) -> None:
        self._letters: queue.SimpleQueue[Letter] = queue.SimpleQueue()
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def post(self, letter: Letter) -> None:
        self._letters.put(letter)
        self.wake()

    def wake(self) -> None:
        """End the loop's sleep now; safe in a signal handler."""
        try:
            os.write(self._write, b"\0")
        except OSError:
            return  # full (it is awake already) or closed (it is over)

    def wait(self, timeout_s: float) -> None:
        """Sleep until woken, at most ``timeout_s``."""
        readable, _, _ = select.select([self._read], [], [], max(0.0, timeout_s))
        if readable:
            os.read(self._read, 4096)

    def letters(self) -> Iterator[Letter]:
        """The letters that lie there now, not those that come meanwhile."""
        for _ in range(self._letters.qsize()):
            yield self._letters.get()

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class Hands:
    """Threads for what would hold the loop up; results come back as letters."""

    def __init__(self, mailbox: Mailbox, *, threads: int, name: str) -> None:
        self._mailbox = mailbox
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)
        self.busy = 0
        """Tasks given whose result the loop has not yet seen."""

    def do(self, work: Callable[[], Result], then: Callable[[Future[Result]], None]) -> None:
        """Run ``work`` in a thread; the loop calls ``then`` with its future, whose ``result()`` may raise."""
        self.busy += 1

        def deliver(future: Future[Result]) -> None:
            self._mailbox.post(lambda: self._hand_over(future, then))

        self._pool.submit(work).add_done_callback(deliver)

    def _hand_over(self, future: Future[Result], then: Callable[[Future[Result]], None]) -> None:
        finished = True
        try:
            then(future)
        except EnvironmentFault:
            finished = False  # the loop reads this letter again
            raise
        finally:
            self.busy -= finished

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
