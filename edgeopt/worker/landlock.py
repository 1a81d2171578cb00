"""The kernel's own fence: Landlock through plain system calls, by the ABI that the running kernel offers.

Used by :mod:`edgeopt.worker.sandbox` alone. Nothing is imported but ctypes, so that the fence is up before numpy or
onnxruntime start their threads: a thread that already runs stays outside of it.

Constants and structures: linux/landlock.h; the system call numbers are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
"""The rights that a rule on a plain file may hold; any other one there is EINVAL."""

READ = _READ_FILE | _READ_DIR
READ_AND_EXECUTE = READ | _EXECUTE
LIST = _READ_DIR
DEVICE = _READ_FILE | _WRITE_FILE
TALK_TO_DEVICE = DEVICE | _IOCTL_DEV
"""A driver's door: everything that it does goes through ioctl."""
_NET_TCP = 0b11
_SCOPES = 0b11


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def abi() -> int:
    """The kernel's Landlock ABI; 0 where it has none or it is switched off."""
    return max(0, int(_libc().syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)))


def handled_rights(version: int) -> int:
    """Every file right that this ABI can take away."""
    rights = (1 << 13) - 1
    for since, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV)):
        if version >= since:
            rights |= right
    return rights


def write_rights(version: int) -> int:
    """Everything inside of a folder except making devices and sockets, running programs and talking to devices."""
    return handled_rights(version) & ~(_MAKE_CHAR | _MAKE_BLOCK | _MAKE_SOCK | _EXECUTE | _IOCTL_DEV)


def restrict(rules: Iterable[tuple[Path, int]], *, version: int) -> None:
    """Take away from this thread, and from all that it starts, every file right that ``rules`` do not give back.

    ABI 4 also takes away TCP (bind and connect), ABI 6 signals to and abstract sockets of processes outside.
    Needs no_new_privs. Paths that do not exist are left out. :class:`OSError` where the kernel refuses.
    """
    handled = handled_rights(version)
    attributes = [handled]
    if version >= 4:
        attributes.append(_NET_TCP)
    if version >= 6:
        attributes.append(_SCOPES)
    packed = struct.pack(f"={len(attributes)}Q", *attributes)
    ruleset = _libc().syscall(_CREATE_RULESET, packed, len(packed), 0)
    if ruleset < 0:
        raise _os_error("landlock_create_ruleset")
    try:
        for path, rights in rules:
            _allow(ruleset, path, rights & handled)
        if _libc().syscall(_RESTRICT_SELF, ruleset, 0) != 0:
            raise _os_error("landlock_restrict_self")
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there, or cannot be reached, needs no rule
    try:
        if not stat.S_ISDIR(os.fstat(parent).st_mode):
            rights &= _FILE_RIGHTS
        rule = _PathBeneath(rights, parent)
        if _libc().syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0) != 0:
            raise _os_error(f"landlock_add_rule for {path}")
    finally:
        os.close(parent)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _os_error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
