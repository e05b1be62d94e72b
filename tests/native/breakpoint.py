"""A breakpoint in a child of this process: it is let go there, stopped as by SIGSTOP. No debugger holds it any more."""

from __future__ import annotations

import ctypes
import os
import signal

PTRACE_PEEKTEXT, PTRACE_POKETEXT, PTRACE_CONT, PTRACE_GETREGS, PTRACE_SETREGS = 1, 4, 7, 12, 13
PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207
_INT3 = 0xCC
_RDI, _RIP, _NR_REGISTERS = 14, 16, 27
"""Places in struct user_regs_struct. Source: Linux v6.8 arch/x86/include/asm/user_64.h."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def _ptrace(request: int, pid: int, address: int | None = None, data: int | None = None) -> int:
    ctypes.set_errno(0)
    ret = int(_libc.ptrace(request, pid, address, data))
    if ret == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return ret


class Breakpoint:
    """A child that will trap in front of the instruction at `address`. Raises OSError where this may not be."""

    def __init__(self, pid: int, address: int) -> None:
        self._pid = pid
        self._address = address
        _ptrace(PTRACE_SEIZE, pid)
        _ptrace(PTRACE_INTERRUPT, pid)
        os.waitpid(pid, 0)
        self._word = _ptrace(PTRACE_PEEKTEXT, pid, address) % (1 << 64)
        _ptrace(PTRACE_POKETEXT, pid, address, self._word & ~0xFF | _INT3)
        _ptrace(PTRACE_CONT, pid)

    def stop_there(self) -> int:
        """Wait until the child is there, leave it stopped, and return the first argument of the call that it makes."""
        while (stopped_by := self._next_signal()) != signal.SIGTRAP:
            _ptrace(PTRACE_CONT, self._pid, None, stopped_by)
        registers = (ctypes.c_uint64 * _NR_REGISTERS)()
        _ptrace(PTRACE_GETREGS, self._pid, None, ctypes.addressof(registers))
        registers[_RIP] -= 1
        assert registers[_RIP] == self._address
        _ptrace(PTRACE_SETREGS, self._pid, None, ctypes.addressof(registers))
        _ptrace(PTRACE_POKETEXT, self._pid, self._address, self._word)
        _ptrace(PTRACE_DETACH, self._pid, None, signal.SIGSTOP)
        assert os.waitid(os.P_PID, self._pid, os.WSTOPPED) is not None
        return registers[_RDI]

    def _next_signal(self) -> int:
        _, status = os.waitpid(self._pid, 0)
        assert os.WIFSTOPPED(status), status
        return os.WSTOPSIG(status)
