"""One daemon on one state and one inbox: the lock, its holder's name, and its end."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from edgeopt.daemon.lock import InstanceLock
from edgeopt.errors import AlreadyRunning, StorageFault


class Clock:
    """Each look is half a second later."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.5
        return self.now_s


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("state", "inbox", "other"):
        (tmp_path / name).mkdir()
    return tmp_path / "state", tmp_path / "inbox"


def test_lock_holds_our_process_id_for_the_command_line(folders: tuple[Path, Path]) -> None:
    lock = InstanceLock(*folders)
    lock.take()
    assert (folders[0] / "lock").read_text() == f"{os.getpid()}\n"
    assert list(folders[1].iterdir()) == []
    lock.release()


@pytest.mark.parametrize("shared", ["state", "inbox"])
def test_second_one_is_refused_and_leaves_the_first_alone(
    folders: tuple[Path, Path], tmp_path: Path, shared: str
) -> None:
    first = InstanceLock(*folders)
    first.take()
    other = tmp_path / "other"
    second = InstanceLock(folders[0], other) if shared == "state" else InstanceLock(other, folders[1])
    with pytest.raises(AlreadyRunning, match=f"the {shared}.*is in use by process {os.getpid()}"):
        second.take(clock=Clock())
    assert (folders[0] / "lock").read_text() == f"{os.getpid()}\n"
    first.release()
    second.take(clock=Clock())
    second.release()


def test_look_of_the_command_line_does_not_keep_a_daemon_from_starting(folders: tuple[Path, Path]) -> None:
    (folders[0] / "lock").touch()
    with (folders[0] / "lock").open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        looks = iter([0.0, 0.1])

        def clock() -> float:
            now_s = next(looks, 0.2)
            if now_s == 0.1:
                fcntl.flock(looking, fcntl.LOCK_UN)
            return now_s

        lock = InstanceLock(*folders)
        lock.take(clock=clock)
        lock.release()


def test_state_folder_that_is_none_is_the_devices_trouble(tmp_path: Path) -> None:
    with pytest.raises(StorageFault):
        InstanceLock(tmp_path / "missing", tmp_path).take()
