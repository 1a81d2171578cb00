"""A really booted systemd to install the service on: PID 1 of a container, over a root that stays as it was.

``tools/make_systemd_root.sh`` makes the root once. Every boot lays an overlay in memory over it, so that nothing of a
run survives it, and :func:`boot` leaves no process, mount, cgroup or folder behind. Commands enter the machine's
namespaces from outside (``nsenter``), since there is no network in it but its own loopback.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Seen = TypeVar("Seen")

NEEDED = ("systemd-nspawn", "nsenter")
POLL_S = 0.1

LANDLOCK = "landlock_create_ruleset landlock_add_rule landlock_restrict_self"
"""nspawn 252 hides these from its machines (a device's own systemd does not), and the worker's sandbox is made of them."""


class MachineError(AssertionError):
    """A command in the machine failed, or something did not come about in time; the message holds the facts."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A booted machine; ``leader`` is its PID 1 as seen from outside."""

    leader: int

    def run(self, *command: str, timeout_s: float = 60.0) -> str:
        """What ``command`` prints in the machine; :class:`MachineError` with all of it where it exits other than 0."""
        done = self.attempt(*command, timeout_s=timeout_s)
        if done.returncode != 0:
            raise MachineError(f"{' '.join(command)} exited {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def attempt(self, *command: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """The same without a demand on the exit code."""
        enter = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "--"]
        return subprocess.run(
            [*enter, *command], capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
        )

    def unit(self, name: str) -> dict[str, str]:
        """Every property of a unit, as ``systemctl show`` tells them."""
        lines = self.run("systemctl", "show", name).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def wait_for(self, what: str, look: Callable[[], Seen | None], *, timeout_s: float) -> tuple[Seen, float]:
        """The first true thing that ``look`` sees, and after how many seconds."""
        start_s = time.monotonic()
        while (passed_s := time.monotonic() - start_s) < timeout_s:
            if seen := look():
                return seen, passed_s
            time.sleep(POLL_S)
        raise MachineError(
            f"{what} did not come about within {timeout_s:g} s; the journal ends with:\n{self.journal()}"
        )

    def journal(self, lines: int = 60) -> str:
        """The end of the journal of the whole machine."""
        return self.attempt("journalctl", "--no-pager", "-o", "short-monotonic", "-n", str(lines)).stdout


def missing() -> str | None:
    """Why no machine can be booted here; None where one can."""
    root = os.environ.get("EDGEOPT_SYSTEMD_ROOT")
    if not root:
        return "EDGEOPT_SYSTEMD_ROOT is not set (tools/make_systemd_root.sh makes such a root)"
    if os.geteuid() != 0:
        return "booting a machine needs root"
    if not Path(root, "opt/wheels").is_dir():
        return f"{root} was not made by tools/make_systemd_root.sh"
    absent = [program for program in NEEDED if shutil.which(program) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


@contextlib.contextmanager
def boot(root: Path, *, binds: Mapping[str, Path], log: Path) -> Iterator[Machine]:
    """A running machine with ``binds`` (path inside -> folder outside) mounted read-only; powered off at the end."""
    name = f"edgeopt-{os.getpid()}"
    with Path(f"{root}.lock").open("w") as lock, log.open("w") as output:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [
                "systemd-nspawn", "-D", str(root), "--volatile=overlay", "--boot", "--register=no", "--keep-unit",
                "--private-network", f"--machine={name}", f"--system-call-filter={LANDLOCK}",
                *(f"--bind-ro={outside}:{inside}" for inside, outside in binds.items()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # the machine sees cgroup v2 alone, which is what current systemd wants
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        )  # fmt: skip
        try:
            yield _booted(process, log)
        finally:
            _power_off(process)
            _sweep(name)


def _booted(process: subprocess.Popen[bytes], log: Path) -> Machine:
    deadline_s = time.monotonic() + 60.0
    while time.monotonic() < deadline_s and process.poll() is None:
        for leader in _children(process.pid):
            machine = Machine(leader)
            if machine.attempt("systemctl", "is-system-running").stdout.strip() in {"running", "degraded"}:
                return machine
        time.sleep(POLL_S)
    raise MachineError(f"the machine did not boot (exit code {process.poll()}): {log.read_text(errors='replace')}")


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _power_off(process: subprocess.Popen[bytes]) -> None:
    for leader in _children(process.pid):
        with contextlib.suppress(subprocess.TimeoutExpired):
            Machine(leader).attempt("systemctl", "poweroff", "--no-block", timeout_s=10.0)
    try:
        process.wait(timeout=45.0)
    except subprocess.TimeoutExpired:
        for pid in (*_children(process.pid), process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def _sweep(name: str) -> None:
    """Remove the empty folders that nspawn leaves: its propagation mount point and its cgroups."""
    shutil.rmtree(f"/run/systemd/nspawn/propagate/{name}", ignore_errors=True)
    for hierarchy in ("", "systemd", "unified"):
        for part in ("payload", "supervisor"):
            top = Path("/sys/fs/cgroup", hierarchy, part)
            for folder in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            with contextlib.suppress(OSError):
                top.rmdir()
