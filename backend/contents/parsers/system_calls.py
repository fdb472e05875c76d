"""A filter of the Linux kernel (seccomp) under which a process opens no socket, starts nothing and writes no new file.

It binds native code too, which an audit hook of Python does not see.
"""

import contextlib
import ctypes
import errno
import os
import platform
import struct
import sys
from dataclasses import dataclass

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_LOAD, _EQUALS, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Numbers of x86-64 from here on are those of its 32-bit variant, which would go around the filter.
_X32 = 0x40000000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


@dataclass(frozen=True, slots=True)
class _Machine:
    """Numbers of one architecture: what the kernel calls it, and its system calls."""

    architecture: int
    # In this order: sockets, starting and ending processes, changing names and attributes of files, mounting, tracing
    # and what else reaches beyond this process.
    refused: frozenset[int]
    # open and openat, with the place of the argument that has the flags.
    opens: tuple[tuple[int, int], ...]
    # Raises a signal in a thread: what `abort` needs, and allowed in this process only.
    tgkill: int
    # Reads limits, and raises them: allowed without new ones.
    prlimit: int


_MACHINES = {
    "x86_64": _Machine(
        0xC000003E,
        frozenset({41, 42, 43, 44, 46, 49, 50, 53, 288, 307, 425, 426, 427})
        | frozenset({56, 57, 58, 59, 62, 129, 200, 297, 322, 424, 435})
        | frozenset({76, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 94, 132, 133, 188, 189, 190, 235, 258, 259})
        | frozenset({260, 261, 263, 264, 265, 266, 268, 280, 285, 316, 437})
        | frozenset(
            {101, 154, 155, 160, 161, 165, 166, 169, 175, 246, 248, 250, 272, 298, 304, 308, 310, 311, 313, 321}
        ),
        opens=((2, 1), (257, 2)),
        tgkill=234,
        prlimit=302,
    ),
    "aarch64": _Machine(
        0xC00000B7,
        frozenset({198, 199, 200, 201, 202, 203, 206, 211, 242, 243, 269, 425, 426, 427})
        | frozenset({129, 130, 138, 220, 221, 240, 281, 424, 435})
        | frozenset({5, 6, 7, 33, 34, 35, 36, 37, 38, 45, 47, 52, 53, 54, 55, 88, 276, 437})
        | frozenset({39, 40, 41, 51, 97, 104, 105, 117, 142, 164, 217, 219, 241, 265, 268, 270, 271, 273, 280}),
        opens=((56, 2),),
        tgkill=131,
        prlimit=261,
    ),
}


def refuse_system_calls() -> bool:
    """Install the filter for the rest of this process's life; whether this kernel and machine have it.

    Refused calls fail with `EPERM`.
    """
    machine = _MACHINES.get(platform.machine()) if sys.platform == "linux" else None
    if machine is None or sys.maxsize < 2**32:
        return False
    code = _filter(machine, os.getpid())
    with contextlib.suppress(OSError, AttributeError):
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        buffer = ctypes.create_string_buffer(code)
        program = _Program(len(code) // 8, ctypes.addressof(buffer))
        prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
        if prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
            return bool(prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0) == 0)
    return False


def _filter(machine: _Machine, process: int) -> bytes:
    """The filter in the kernel's own form: instructions of (code, jump if true, jump if false, value)."""
    allow, refuse = _step(_RETURN, 0, 0, _ALLOW), _step(_RETURN, 0, 0, _REFUSE | errno.EPERM)
    steps = [_step(_LOAD, 0, 0, _ARCHITECTURE_AT), _step(_EQUALS, 1, 0, machine.architecture), refuse]
    steps += [_step(_LOAD, 0, 0, _NUMBER_AT), _step(_AT_LEAST, 0, 1, _X32), refuse]
    for number in sorted(machine.refused):
        steps += [_step(_EQUALS, 0, 1, number), refuse]
    for number, argument in machine.opens:
        steps += [_step(_EQUALS, 0, 4, number), _argument(argument), _step(_ANY_BIT, 0, 1, _WRITES), refuse, allow]
    # The third argument is an address, of eight bytes.
    steps += [_step(_EQUALS, 0, 6, machine.prlimit), _argument(2), _step(_EQUALS, 0, 3, 0)]
    steps += [_argument(2, half=1), _step(_EQUALS, 0, 1, 0), allow, refuse]
    steps += [_step(_EQUALS, 0, 4, machine.tgkill), _argument(0), _step(_EQUALS, 0, 1, process), allow, refuse]
    return b"".join([*steps, allow])


def _argument(place: int, half: int = 0) -> bytes:
    return _step(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * place + 4 * half)


def _step(code: int, if_true: int, if_false: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
