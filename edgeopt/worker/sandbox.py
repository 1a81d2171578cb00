"""The worker's first act: giving up whatever it does not need, before any byte of a model is read.

In: the folders to read and to write, and the job's limits. Out: a report of what is in force. Models are programs (a
loop without end is 207 bytes, a tensor of terabytes 106), and the libraries that open them have had memory errors; so
the process that opens them can read its interpreter, its job and nothing else, write its own folders, reach no network
and is the first that the kernel kills when memory runs out.

Everything here is inherited by the processes that the worker starts, so a runner is inside as well. The limits need no
privileges and no namespaces, so the worker behaves the same as root, as a service user and in a container.
PR_SET_DUMPABLE stays as it is: the supervisor reads the worker's memory use from /proc.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import site
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeopt.errors import EnvironmentFault
from edgeopt.policy import WorkerLimits
from edgeopt.worker import landlock, privileges, seccomp

_PR_SET_PDEATHSIG = 1
_OPEN_FILES = 512
_RESERVED_BYTES = 4 << 30
"""Address space that is reserved but never filled: thread stacks, malloc arenas, mapped libraries and weights."""
_STACK_BYTES = 512 << 20
"""What RLIMIT_DATA counts although it is hardly touched: stacks of the thread pools."""
_LARGEST_FILE_BYTES = 16 << 30

_SYSTEM_PROGRAMS = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin")
_SYSTEM_FACTS = ("/proc", "/sys", "/etc/ld.so.cache", "/etc/localtime", "/etc/timezone", "/dev/urandom", "/dev/random")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full")


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxReport:
    """What is in force. ``notes`` says in sentences what this kernel or this caller could not give."""

    mode: str
    landlock_abi: int = 0
    files_confined: bool = False
    network_denied: bool = False
    notes: tuple[str, ...] = ()


def apply(
    *, read: Sequence[Path], write: Sequence[Path], limits: WorkerLimits, gpu: Sequence[Path] = ()
) -> SandboxReport:
    """Confine this process and all it starts; once, from the main thread, before anything heavy is imported.

    ``read`` and ``write`` are files or folders (with all below); what may be written may be read. The first of
    ``write`` also gets the private TMPDIR. ``gpu`` are a driver's device files, for a job that runs on it: CUDA reserves far more
    addresses than there is memory, so such a job has no limit of those. Mode ``off`` still sets the limits on resources, ``required`` raises
    :class:`~edgeopt.errors.EnvironmentFault` where the kernel cannot confine files, ``auto`` says so in the notes.
    """
    notes = [*_limit_resources(limits, addresses=not gpu), *_become_expendable(limits.nice), *_die_with_parent()]
    if limits.sandbox == "off":
        return SandboxReport(mode="off", notes=(*notes, "the sandbox is switched off by limits.sandbox"))
    if write:
        _use_private_temporary_folder(write[0])
    version = landlock.abi()
    reason = _confine_files([*_rules(read, write, version), *_doors(gpu)], version)
    if reason and limits.sandbox == "required":
        raise EnvironmentFault(
            f"limits.sandbox is required, but {reason}",
            hint="Use a kernel with Landlock (5.13 or newer, lsm=landlock), or set limits.sandbox to auto.",
        )
    confined = reason is None
    notes += [reason] if reason else []
    filtered, more = _filter_system_calls(files_confined=confined)
    network_denied = filtered or (confined and version >= 4)
    if not network_denied:
        more.append("the network is not denied: this kernel offers neither Landlock ABI 4 nor seccomp")
    return SandboxReport(
        mode=limits.sandbox,
        landlock_abi=version,
        files_confined=confined,
        network_denied=network_denied,
        notes=(*notes, *more),
    )


def interpreter_paths() -> list[Path]:
    """Where this interpreter, its virtual environment and its packages lie; to be read and executed."""
    roots = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, *site.getsitepackages()}
    roots |= set(sysconfig.get_paths().values())
    roots.add(os.path.realpath(sys.executable))
    roots |= {entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")}
    roots.add(str(_package_folder()))
    return sorted({Path(root) for root in roots if root and root != "/"})


def _rules(read: Sequence[Path], write: Sequence[Path], version: int) -> Iterator[tuple[Path, int]]:
    for path in (*map(Path, _SYSTEM_PROGRAMS), *interpreter_paths()):
        yield path, landlock.READ_AND_EXECUTE
    # the import system lists the folder that holds the package: names only, no contents
    yield _package_folder().parent, landlock.LIST
    for path in (*map(Path, _SYSTEM_FACTS), *read):
        yield path, landlock.READ
    for path in map(Path, _DEVICES):
        yield path, landlock.DEVICE
    for path in write:
        yield path, landlock.write_rights(version)


def _doors(gpu: Sequence[Path]) -> Iterator[tuple[Path, int]]:
    for path in gpu:
        yield path, landlock.TALK_TO_DEVICE


def _package_folder() -> Path:
    return Path(__file__).resolve().parent.parent


def _confine_files(rules: Sequence[tuple[Path, int]], version: int) -> str | None:
    """Why files are not confined; None where they are."""
    if version == 0:
        return "this kernel has no Landlock, so files are not confined"
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        return f"{threads} threads run already, and those that run stay outside of the fence"
    try:
        privileges.no_new_privileges()
        landlock.restrict(rules, version=version)
    except OSError as error:
        return f"the kernel refused to confine files: {error}"
    return None


def _filter_system_calls(*, files_confined: bool) -> tuple[bool, list[str]]:
    notes = []
    try:
        privileges.no_new_privileges()
        privileges.drop_capabilities(files_confined=files_confined)
    except OSError as error:
        notes.append(f"the kernel refused to drop privileges: {error}")
    filtered = seccomp.restrict()
    if not filtered:
        notes.append("system calls are not filtered: no seccomp filter could be installed on this machine")
    return filtered, notes


def _limit_resources(limits: WorkerLimits, *, addresses: bool = True) -> list[str]:
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_FSIZE: max(_LARGEST_FILE_BYTES, 4 * limits.model_bytes),
        # a backstop for the supervisor's clock: all cores busy for all of the job's time
        resource.RLIMIT_CPU: int(limits.job_timeout_s * (os.cpu_count() or 1)) + 60,
    }
    if limits.memory_bytes > 0:
        # a little above the supervisor's own cap, which looks at resident memory and gives the better reason
        wanted[resource.RLIMIT_DATA] = limits.memory_bytes + _STACK_BYTES
        if addresses:
            wanted[resource.RLIMIT_AS] = limits.memory_bytes + _RESERVED_BYTES
    notes = []
    for kind, value in wanted.items():
        _, hard = resource.getrlimit(kind)
        ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (ceiling, ceiling))
        except (OSError, ValueError) as error:
            notes.append(f"resource limit {kind} stays as it was: {error}")
    return notes


def _become_expendable(nice: int) -> list[str]:
    notes = []
    try:
        os.nice(max(0, nice - os.getpriority(os.PRIO_PROCESS, 0)))
    except OSError as error:
        notes.append(f"the priority stays as it was: {error}")
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    except OSError as error:
        notes.append(f"oom_score_adj stays as it was: {error}")
    return notes


def _die_with_parent() -> list[str]:
    """SIGKILL when the thread that started us ends. Programs that the worker starts are not covered: they get EOF."""
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        return [f"PR_SET_PDEATHSIG is refused: {os.strerror(ctypes.get_errno())}"]
    if os.getppid() != parent:  # it ended between the two lines, so no signal will come
        os.kill(os.getpid(), signal.SIGKILL)
    return []


def _use_private_temporary_folder(folder: Path) -> None:
    private = folder / "tmp"
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    tempfile.tempdir = None  # computed again from TMPDIR
    for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME"):
        os.environ[name] = str(private)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
