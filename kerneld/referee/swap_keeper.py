"""A process that gives the host a swap file, and removes it when its standard input ends.

The parent holds the other end of that pipe. However the parent ends, its end closes. So the file and the changed
settings are never left behind. Run as a program: `python -m kerneld.referee.swap_keeper FILE BYTES`. It prints a line
with `ready`, or with the reason of a failure.

| what           | during the run | why                                                                              |
|----------------|----------------|----------------------------------------------------------------------------------|
| FILE           | used as swap   | it has the highest priority                                                      |
| zswap          | on             | a page is swapped out when the call returns; a disk would need more time         |
| vm.page-cluster| 0              | a page that is swapped in brings no other pages, as in kerneld                   |

Answers to Linux v6.8 mm/swapfile.c:SYSCALL_DEFINE2(swapon), mm/zswap.c:zswap_store() and
mm/swap_state.c:swapin_nr_pages().
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from kerneld.referee.keeper import keep
from kerneld.referee.swap_lock import own_swap
from shared.uapi.page import PAGE_SIZE

_KNOBS = ((Path("/sys/module/zswap/parameters/enabled"), "Y"), (Path("/proc/sys/vm/page-cluster"), "0"))
_HIGHEST_PRIORITY = 0x8000 | 0x7FFF
"""SWAP_FLAG_PREFER, and a priority: Linux v6.8 include/linux/swap.h."""
_libc = ctypes.CDLL(None, use_errno=True)


class NoSwapError(Exception):
    """The host cannot use the file. The text says why in one line."""


def main() -> None:
    """Give the host the file of the command line as swap, until standard input ends."""
    for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signo, signal.SIG_IGN)
    try:
        with contextlib.ExitStack() as undo:
            if not undo.enter_context(own_swap()):
                raise NoSwapError("another referee runs on this host, and it would meet the swap file")
            for knob, value in _KNOBS:
                undo.enter_context(_turned(knob, value))
            undo.enter_context(_swapped_to(sys.argv[1], int(sys.argv[2])))
            keep()
    except NoSwapError as error:
        print(error, flush=True)


@contextlib.contextmanager
def _turned(knob: Path, value: str) -> Iterator[None]:
    try:
        before = knob.read_text().strip()
        knob.write_text(value)
    except OSError as error:
        raise NoSwapError(f"{knob} cannot be set to {value}: {error.strerror}") from None
    try:
        if knob.read_text().strip() != value:
            raise NoSwapError(f"{knob} is not {value} when that has been written")
        yield
    finally:
        knob.write_text(before)


@contextlib.contextmanager
def _swapped_to(path: str, length: int) -> Iterator[None]:
    try:
        _make_swap_file(path, length)
        _check(_libc.swapon(path.encode(), _HIGHEST_PRIORITY))
    except OSError as error:
        Path(path).unlink(missing_ok=True)
        raise NoSwapError(f"swapon of a file in {os.path.dirname(path)}: {error.strerror}") from None
    try:
        yield
    finally:
        _check(_libc.swapoff(path.encode()))
        Path(path).unlink(missing_ok=True)


def _make_swap_file(path: str, length: int) -> None:
    """Write what mkswap does. Source: Linux v6.8 include/linux/swap.h: union swap_header."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(fd, 0, length)
        version, bad_pages = 1, 0
        os.pwrite(fd, struct.pack("<III", version, length // PAGE_SIZE - 1, bad_pages), 1024)
        os.pwrite(fd, b"SWAPSPACE2", PAGE_SIZE - 10)
        os.fsync(fd)
    finally:
        os.close(fd)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main()
