"""Where the tests of the daemon as a process run: a folder in memory, a daemon in it, a disk that is soon full."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.daemon import Daemon


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder, in memory where possible: the daemon's many fsyncs are what these tests would wait for."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="edgeopt-", dir=memory if os.access(memory, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def daemon(in_memory: Path) -> Iterator[Daemon]:
    with Daemon(in_memory) as made:
        yield made


@pytest.fixture
def small_disk(in_memory: Path) -> Iterator[Path]:
    """An own file system of 96 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = in_memory / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "none", str(disk)], check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
