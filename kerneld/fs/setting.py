"""A file that tells a setting and takes another value: those of /proc/sys and of /sys.

Owns how text becomes a number. Knows no setting. Answers to Linux v6.8 kernel/sysctl.c: proc_dointvec_minmax(),
proc_doulongvec_minmax(), proc_get_long(), for a table of one value; and fs/kernfs/file.c:kernfs_fop_write_iter().

| write to a file of /proc/sys                          | result                                              |
|-------------------------------------------------------|-----------------------------------------------------|
| no bytes                                              | 0, no effect                                        |
| at another offset than 0                              | all bytes, no effect (kernel.sysctl_writes_strict 1) |
| white space alone; no number; outside its range       | EINVAL                                              |
| a number (decimal, 0x…, 0…), and white space around it | all bytes                                           |
| a number, white space and more                        | the bytes up to there                               |
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Generator
from typing import NamedTuple

from kerneld.errors import SysError
from shared.uapi.page import PAGE_SIZE

Stores = Generator[None, None, int]
"""A write under way: yields where other clients may be served, and returns how many bytes it took."""

_SPACES = b" \t\n\v\f\r\xa0"
"""What the kernel takes for white space: lib/ctype.c."""
_NUMBER = re.compile(rb"0[xX](?P<hex>[0-9a-fA-F]+)|(?P<octal>0[0-7]*)|(?P<decimal>[1-9][0-9]*)")
_ENDS = b" \t\n"
"""What may follow a number."""
_MOST_DIGITS = 21
"""So many characters, the sign and the digits, are never a number."""
INT_MAX, ULONG_MAX = (1 << 31) - 1, (1 << 64) - 1


class Setting(NamedTuple):
    """A file with a value."""

    show: Callable[[], bytes]
    """Returns what a reader gets."""
    store: Callable[[int, bytes], Stores]
    """Takes what is written at an offset. Raises SysError."""
    mode: int = 0o644
    """The rights of its owner, root, and of others. Even root has no more (Linux: sysctl_perm())."""

    def permits(self, wanted: int, *, is_root: bool) -> bool:
        """Return whether one may read it (`wanted` is 4) or write it (2)."""
        return (self.mode >> 6 if is_root else self.mode) & wanted != 0


def number_file(
    get: Callable[[], int], put: Callable[[int], None], low: int = -INT_MAX - 1, high: int = INT_MAX
) -> Setting:
    """Return the file of an int between `low` and `high`. `put` gets the new one, and may raise SysError."""

    def store(offset: int, data: bytes) -> Stores:
        yield from ()
        return store_number(offset, data, low, high, put)

    def show() -> bytes:
        return f"{get()}\n".encode()

    return Setting(show, store)


def long_file(get: Callable[[], int], put: Callable[[int], None]) -> Setting:
    """Return the file of an unsigned long: it has no sign, not even before 0."""
    return number_file(get, put, 0, ULONG_MAX)


def attribute_file(show: Callable[[], bytes], put: Callable[[bytes], None], mode: int = 0o644) -> Setting:
    """Return a file of /sys. `put` gets what is written, one page at the most, without the newline at its end."""

    def store(_offset: int, data: bytes) -> Stores:
        yield from ()
        taken = data[:PAGE_SIZE]
        put(taken.removesuffix(b"\n"))
        return len(taken)

    return Setting(show, store, mode)


def read_only(show: Callable[[], bytes]) -> Setting:
    """Return a file that nobody may write."""

    def store(_offset: int, _data: bytes) -> Stores:
        yield from ()
        raise SysError(errno.EPERM)

    return Setting(show, store, 0o444)


def store_number(offset: int, data: bytes, low: int, high: int, put: Callable[[int], None]) -> int:
    """Take what is written to a file of /proc/sys, as the table above says, and return how many bytes of it.

    Source: Linux v6.8 kernel/sysctl.c:__do_proc_dointvec(), __do_proc_doulongvec_minmax().
    """
    if not data or offset:
        return len(data)
    text = data[: PAGE_SIZE - 1].lstrip(_SPACES)
    value, rest = _get_number(text)
    if not low <= value <= high or (high == ULONG_MAX and text.startswith(b"-")):
        raise SysError(errno.EINVAL)
    put(value)
    return len(data) - len(rest.lstrip(_SPACES))


def _get_number(text: bytes) -> tuple[int, bytes]:
    """Return the number at the beginning of a text, and what is behind it. Raises SysError(EINVAL) without one.

    Source: Linux v6.8 kernel/sysctl.c:proc_get_long(), strtoul_lenient().
    """
    sign = 1 if not text.startswith(b"-") or len(text) == 1 else -1
    found = _NUMBER.match(text, 0 if sign == 1 else 1)
    if found is None or found.end() >= _MOST_DIGITS:
        raise SysError(errno.EINVAL)
    rest = text[found.end() :]
    value = (
        int(found["hex"], 16) if found["hex"] else int(found["octal"] or found["decimal"], 8 if found["octal"] else 10)
    )
    if value > ULONG_MAX or (rest and rest[0] not in _ENDS):
        raise SysError(errno.EINVAL)
    return sign * value, rest
