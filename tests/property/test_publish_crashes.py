"""Publishing with the process dying before every single system call, or every call failing once.

``dying`` replaces the os functions that change files: before the nth call the process is dead, and from then on none of
them does anything. What a restart finds must be whole, and doing the publish again must give exactly one version more.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgeopt.config.schema import Publish
from edgeopt.daemon.publish import Origin, publish, recover
from edgeopt.daemon.shelf import read
from edgeopt.errors import DiskFull, EnvironmentFault, StorageFault
from tests.published import check_whole, out_folder, versions

CHANGING = ("mkdir", "write", "fsync", "rename", "symlink", "unlink", "rmdir", "chmod", "fchmod")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory, where an fsync costs nothing: hundreds of publishes are made here."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder)


class Killed(BaseException):
    """The process is dead."""


@contextmanager
def intercepted(before: Callable[[int, str], None]) -> Iterator[list[str]]:
    """Call ``before(number, name)`` before every file-changing os function; gives the calls that were made."""
    calls: list[str] = []
    real = {name: getattr(os, name) for name in CHANGING}

    def wrap(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            before(len(calls), name)
            return real[name](*arguments, **named)

        return call

    try:
        for name in CHANGING:
            setattr(os, name, wrap(name))
        yield calls
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def dying_at(point: int) -> Callable[[int, str], None]:
    def before(number: int, _name: str) -> None:
        if number >= point:
            raise Killed

    return before


def failing_at(point: int, code: int) -> Callable[[int, str], None]:
    def before(number: int, _name: str) -> None:
        if number == point:
            raise OSError(code, os.strerror(code))

    return before


class Scene:
    """A published folder with some versions, and a job about to publish the next."""

    def __init__(self, root: Path, already: int) -> None:
        self.root = root / "published"
        self.already = already
        self.settings = Publish(keep=2)
        for number in range(already):
            publish(out_folder(root, b"old %d" % number), "digits", self.root, settings=Publish(keep=9))
        self.out = out_folder(root, b"new")

    def publish(self) -> int:
        return publish(self.out, "digits", self.root, settings=self.settings, origin=Origin(job_id="job")).version

    def check(self) -> None:
        """What a reader sees now is whole: every version, and current."""
        home = self.root / "digits"
        if not home.exists():
            return
        for number in versions(home):
            assert check_whole(home / str(number))["version"] == number
        if (home / "current").is_symlink():
            check_whole(home / "current")

    def check_done(self) -> None:
        self.check()
        shelf = read(self.root, "digits")
        assert shelf.current == shelf.highest == self.already + 1
        assert shelf.versions == tuple(range(max(1, self.already), self.already + 2))
        hidden = [entry.name for entry in shelf.folder.iterdir() if entry.name.startswith(".")]
        assert hidden == []


def calls_of(root: Path, already: int) -> int:
    scene = Scene(root, already)
    with intercepted(lambda _number, _name: None) as calls:
        scene.publish()
    scene.check_done()
    return len(calls)


@pytest.mark.parametrize("already", [0, 1, 3])
def test_death_before_any_call_loses_nothing_and_doubles_nothing(tmp_path: Path, already: int) -> None:
    points = calls_of(tmp_path / "dry", already)
    assert points > 15
    for point in range(1, points + 1):
        scene = Scene(tmp_path / str(point), already)
        with intercepted(dying_at(point)), pytest.raises(Killed):
            scene.publish()
        scene.check()
        recover(scene.root)
        scene.check()
        assert scene.publish() == already + 1
        scene.check_done()
        shutil.rmtree(tmp_path / str(point))


def test_death_during_recovery_is_recovered_too(tmp_path: Path) -> None:
    already = 3
    for point in range(2, calls_of(tmp_path / "dry", already), 3):
        step = 0
        while True:
            step += 1
            scene = Scene(tmp_path / f"{point}-{step}", already)
            with intercepted(dying_at(point)), pytest.raises(Killed):
                scene.publish()
            try:
                with intercepted(dying_at(step)):
                    recover(scene.root)
            except Killed:
                scene.check()
                recover(scene.root)
                assert scene.publish() == already + 1
                scene.check_done()
            else:
                break
            shutil.rmtree(tmp_path / f"{point}-{step}")


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, DiskFull), (errno.EIO, StorageFault), (errno.EROFS, StorageFault)]
)
def test_failing_call_is_the_devices_trouble_and_the_publish_can_be_repeated(
    tmp_path: Path, code: int, kind: type[EnvironmentFault]
) -> None:
    already, held = 2, 0
    points = calls_of(tmp_path / "dry", already)
    for point in range(1, points + 1):
        scene = Scene(tmp_path / str(point), already)
        try:
            with intercepted(failing_at(point, code)):
                scene.publish()
        except kind:
            held += 1
        scene.check()
        assert scene.publish() == already + 1
        recover(scene.root)
        scene.check_done()
        shutil.rmtree(tmp_path / str(point))
    # a folder that is there already may refuse to be made again
    assert held >= points - 2
