"""Signal dispositions and si_codes: include/uapi/asm-generic/siginfo.h of Linux v6.8.

The numbers of signals are Python's `signal.Signals`.
"""

from __future__ import annotations

from enum import IntEnum

NSIG = 64
"""The highest signal number."""


class Disposition(IntEnum):
    """The second argument of rt_sigaction on this machine's wire."""

    DEFAULT = 0
    IGNORE = 1
    CAUGHT = 2


class SegvCode(IntEnum):
    """si_code of a SIGSEGV."""

    MAPERR = 1
    ACCERR = 2
    PKUERR = 4


class IllCode(IntEnum):
    """si_code of a SIGILL."""

    ILLOPN = 2


class BusCode(IntEnum):
    """si_code of a SIGBUS."""

    ADRALN = 1
    ADRERR = 2
    OBJERR = 3


SI_USER = 0
SI_KERNEL = 0x80
