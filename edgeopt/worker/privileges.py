"""What root has over others, given up: capabilities, and the gaining of any by exec.

Used by :mod:`edgeopt.worker.sandbox` alone. Landlock confines root as well, but a process with CAP_PERFMON or
CAP_SYS_ADMIN may still read the memory map and the environment of every other one through /proc, Landlock or not;
hence a worker started by root drops them.
"""

from __future__ import annotations

import ctypes
import os

_PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP, _PR_CAPBSET_READ = 38, 24, 23
_CAP_DAC_READ_SEARCH = 2
_VERSION_3 = 0x20080522
_HIGHEST = 63


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """One 32-bit half of the three sets; the kernel takes two of them."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def no_new_privileges() -> None:
    """From here on no program started from this process gains rights by set-uid or file capabilities."""
    libc = _libc()
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise _os_error("PR_SET_NO_NEW_PRIVS")


def drop_capabilities(*, files_confined: bool) -> None:
    """Keep none; where another fence confines files, reading past their mode stays (a root's job may hold others' files)."""
    libc = _libc()
    for capability in range(_HIGHEST + 1):
        if libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) == 1:
            libc.prctl(
                _PR_CAPBSET_DROP, capability, 0, 0, 0
            )  # refused without CAP_SETPCAP: then exec gains none either
    header = _Header(_VERSION_3, 0)
    now = (_Sets * 2)()
    if libc.capget(ctypes.byref(header), now) != 0:
        raise _os_error("capget")
    if not any(half.permitted for half in now):
        return  # nothing to drop, and a service's filter may refuse the call that drops it
    kept = now[0].permitted & (1 << _CAP_DAC_READ_SEARCH) if files_confined else 0
    wanted = (_Sets * 2)(_Sets(kept, kept, 0), _Sets(0, 0, 0))
    if libc.capset(ctypes.byref(header), wanted) != 0:
        raise _os_error("capset")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _os_error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
