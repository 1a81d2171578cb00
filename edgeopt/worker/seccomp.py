"""A small system call filter: what Landlock cannot take away.

Landlock denies TCP from ABI 4 on, but neither UDP nor raw sockets; and io_uring would open sockets past any filter on
``socket``. The filter answers EPERM, so that a library that only tries goes on. Sockets of the Unix family stay: the
C library asks them for names and gets a refusal from the file fence.

Numbers: the kernel's unistd tables of x86-64 and of the generic table (arm64, riscv64); other machines go without.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _DENY = 0x7FFF0000, 0x00050000 | errno.EPERM
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_AF_UNIX = 1
_X32_BIT = 0x40000000

_DENIED = {
    "ptrace": (101, 117),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "setns": (308, 268),
    "perf_event_open": (298, 241),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
}
"""The call's number on x86-64, and in the generic table."""
_SOCKET = (41, 198)
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1), "riscv64": (0xC00000F3, 1)}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def restrict() -> bool:
    """Install the filter for this thread and all that it starts; needs no_new_privs. False where it cannot be."""
    machine = _MACHINES.get(os.uname().machine)
    if machine is None:
        return False
    code = _assemble(*machine)
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def _assemble(arch: int, column: int) -> bytes:
    """Straight-line code: each denied number is one comparison that skips the next instruction, a refusal."""
    deny = _instruction(_RETURN, _DENY)
    code = [
        _instruction(_LOAD, _ARCH_AT),
        _instruction(_JUMP_EQUAL, arch, 1, 0),
        deny,  # a foreign calling convention, such as 32-bit calls, has other numbers
        _instruction(_LOAD, _NUMBER_AT),
    ]
    if column == 0:
        code += [_instruction(_JUMP_GREATER_EQUAL, _X32_BIT, 0, 1), deny]
    for numbers in _DENIED.values():
        code += [_instruction(_JUMP_EQUAL, numbers[column], 0, 1), deny]
    code += [
        _instruction(_JUMP_EQUAL, _SOCKET[column], 0, 3),
        _instruction(_LOAD, _FIRST_ARGUMENT_AT),
        _instruction(_JUMP_EQUAL, _AF_UNIX, 1, 0),
        deny,
        _instruction(_RETURN, _ALLOW),
    ]
    return b"".join(code)


def _instruction(operation: int, constant: int, when_true: int = 0, when_false: int = 0) -> bytes:
    return struct.pack("=HBBI", operation, when_true, when_false, constant)
