"""How strace writes one value: an address, a size, flags by name, an errno. Pure; the names are `shared.uapi`'s.

Answers to strace(1) and the C types of Linux v6.8 include/linux/syscalls.h.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from enum import IntEnum, IntFlag
from signal import Signals

from shared.uapi.mman import MAP_TYPE, Map
from shared.uapi.signals import SI_KERNEL, SI_USER, BusCode, IllCode, SegvCode

Show = Callable[[int], str]
"""Writes one argument: 64 bits as they stand in the register."""
_MAP_HUGE_SHIFT = 26
_MAP_HUGE_MASK = 0x3F << _MAP_HUGE_SHIFT
"""include/uapi/asm-generic/hugetlb_encode.h: the logarithm of a size, six bits."""
_MAP_NAMES = {Map.BIT32: "32BIT"}
_ERRNO_NAMES = {errno.EOPNOTSUPP: "EOPNOTSUPP", errno.EDEADLK: "EDEADLK", errno.EAGAIN: "EAGAIN"}
"""Numbers with two names, for which Python has the other name."""
_ESCAPES = {ord(char): "\\" + letter for char, letter in zip('"\\\t\n\v\f\r', '"\\tnvfr', strict=True)}
_CODES: dict[int, type[IntEnum]] = {Signals.SIGSEGV: SegvCode, Signals.SIGBUS: BusCode, Signals.SIGILL: IllCode}


def pointer(value: int) -> str:
    """An address."""
    return f"{value:#x}" if value else "NULL"


def number(value: int) -> str:
    """An unsigned long: a size, a count."""
    return str(value)


def signed(value: int) -> str:
    """An int: the lower half of the word."""
    low = value & 0xFFFF_FFFF
    return str(low - (1 << 32) if low >> 31 else low)


def hexadecimal(value: int) -> str:
    """A number in hexadecimal; 0 is `0`."""
    return f"{value:#x}" if value else "0"


def flags(kind: type[IntFlag], prefix: str, *, zero: str = "0") -> Show:
    """Return a function that writes flags, `PROT_READ|PROT_WRITE`. Flags without a name are one number at the end."""

    def show(value: int) -> str:
        if not value:
            return zero
        words = [prefix + (member.name or "") for member in kind if member and value & member]
        unknown = value & ~sum(member for member in kind if member)
        if not words:
            return f"{unknown:#x} /* {prefix}??? */"
        return "|".join([*words, f"{unknown:#x}"] if unknown else words)

    return show


def one_of(kind: type[IntEnum], prefix: str) -> Show:
    """Return a function that writes the name of a number of an enumeration."""

    def show(value: int) -> str:
        try:
            return prefix + kind(value).name
        except ValueError:
            return f"{value:#x} /* {prefix}??? */"

    return show


def map_flags(value: int) -> str:
    """The flags of mmap: first MAP_SHARED or MAP_PRIVATE, then the others, then the size of huge pages."""
    kind = value & MAP_TYPE
    words = [f"MAP_{Map(kind).name}" if kind in (Map.SHARED, Map.PRIVATE, Map.SHARED_VALIDATE) else hexadecimal(kind)]
    others = [member for member in Map if member > MAP_TYPE]
    size = value & _MAP_HUGE_MASK if value & Map.HUGETLB else 0
    words += ["MAP_" + (_MAP_NAMES.get(member) or member.name or "") for member in others if (value - size) & member]
    if size:
        words.append(f"{size >> _MAP_HUGE_SHIFT}<<MAP_HUGE_SHIFT")
    unknown = (value - size) & ~(MAP_TYPE | sum(others))
    return "|".join([*words, f"{unknown:#x}"] if unknown else words)


def signal_name(signo: int) -> str:
    """A signal."""
    try:
        return Signals(signo).name
    except ValueError:
        return str(signo)


def signal_code(signo: int, code: int) -> str:
    """The si_code of a signal."""
    general = {SI_KERNEL: "SI_KERNEL", SI_USER: "SI_USER"}
    if code in general:
        return general[code]
    kind = _CODES.get(signo)
    if kind is None or code not in [member.value for member in kind]:
        return str(code)
    return f"{signal_name(signo)[3:]}_{kind(code).name}"


def errno_name(code: int) -> str:
    """The name of an errno."""
    return _ERRNO_NAMES.get(code) or errno.errorcode.get(code) or f"ERRNO_{code}"


def quoted(text: str) -> str:
    """A string: in quotes, with escapes as in C for characters that are not plain ASCII. Source: strace(1)."""
    data = text.encode("utf-8", "surrogateescape")
    words = []
    for byte, following in zip(data, [*data[1:], 0], strict=True):
        if byte in _ESCAPES:
            words.append(_ESCAPES[byte])
        elif 0x20 <= byte < 0x7F:
            words.append(chr(byte))
        else:
            # A digit after a short escape would be read as a part of the escape.
            words.append(f"\\{byte:03o}" if following in b"0123456789" else f"\\{byte:o}")
    return f'"{"".join(words)}"'


def failure(ret: int) -> str:
    """The result of a call that failed: `-1 ENOMEM (Cannot allocate memory)`."""
    return f"-1 {errno_name(-ret)} ({os.strerror(-ret)})"
