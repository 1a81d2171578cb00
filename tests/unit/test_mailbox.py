"""Letters, hands and waits: how threads reach the loop, with no clock but our own."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from edgeopt.daemon.house import Backoff
from edgeopt.daemon.mailbox import Hands, Mailbox
from edgeopt.errors import DiskFull


def test_letter_ends_the_loops_sleep_and_is_read_by_the_loop() -> None:
    mailbox = Mailbox()
    read: list[int] = []
    thread = threading.Timer(0.05, mailbox.post, [lambda: read.append(threading.get_ident())])
    thread.start()
    mailbox.wait(10.0)
    for letter in mailbox.letters():
        letter()
    thread.join()
    assert read == [threading.get_ident()]
    mailbox.close()


def test_waking_a_closed_or_full_mailbox_does_nothing() -> None:
    mailbox = Mailbox()
    for _ in range(100_000):
        mailbox.wake()
    mailbox.wait(0.0)
    mailbox.close()
    mailbox.wake()


def test_result_of_a_thread_comes_back_as_a_letter_and_is_read_again_after_trouble() -> None:
    mailbox = Mailbox()
    hands = Hands(mailbox, threads=1, name="test")
    results: list[int] = []
    trouble = [DiskFull("no space")]

    def then(future: Future[int]) -> None:
        if trouble:
            raise trouble.pop()
        results.append(future.result())

    hands.do(lambda: 42, then)
    mailbox.wait(10.0)
    (letter,) = mailbox.letters()
    with pytest.raises(DiskFull):
        letter()
    assert hands.busy == 1
    letter()
    assert (hands.busy, results) == (0, [42])
    hands.close()
    mailbox.close()


def test_waits_grow_up_to_half_a_minute() -> None:
    backoff = Backoff(jitter=lambda: 1.0)
    waits = [backoff.fail("job", now_s=0.0) for _ in range(8)]
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert backoff.waits("job", 29.0)
    assert not backoff.waits("job", 30.0)
    assert backoff.waiting(29.0) == {"job"}
    backoff.clear("job")
    assert backoff.fail("job", now_s=0.0) == 1.0
