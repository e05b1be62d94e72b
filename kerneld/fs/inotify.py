"""Reports changes of mapped files by other programs, with the host's inotify.

Owns one inotify instance. It reports which watches have an event, but not which change: the host merges equal events,
so the caller has to check the file. Knows a file only by its descriptor. Source: inotify(7).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from functools import cache
from typing import Any

NO_WATCH = -1
_IN_MODIFY, _IN_Q_OVERFLOW = 0x2, 0x4000
"""Linux v6.8 include/uapi/linux/inotify.h; a truncation is a modification."""
_EVENT = struct.Struct("=iIII")
_COUNT = struct.Struct("=i")


@cache
def _libc() -> Callable[[str], Any]:
    return ctypes.CDLL(None, use_errno=True).__getattr__


class Inotify:
    """The watches of one machine. If the host refuses an instance (max_user_instances), nothing is ever reported."""

    def __init__(self) -> None:
        self.fd: int = _libc()("inotify_init1")(os.O_NONBLOCK | os.O_CLOEXEC)
        """Readable while there are events; -1 without an instance."""

    def add_watch(self, fd: int) -> int:
        """Start watching the inode of a descriptor.

        Returns the number of the watch, or NO_WATCH if the host refuses it: too many watches, or no right to read.
        """
        if self.fd < 0:
            return NO_WATCH
        watch: int = _libc()("inotify_add_watch")(self.fd, b"/proc/self/fd/%d" % fd, _IN_MODIFY)
        return watch

    def rm_watch(self, watch: int) -> None:
        """Stop watching. The file may have been deleted meanwhile."""
        if self.fd >= 0:
            _libc()("inotify_rm_watch")(self.fd, watch)

    def read(self) -> set[int] | None:
        """Return the watches with events since the last call. None: events were lost, so any watch may have one.

        Events that come during the read are for the next call: a program that writes without end must not keep us here.
        """
        watches: set[int] = set()
        is_lost = False
        left = self._unread_bytes()
        while left > 0:
            data = os.read(self.fd, left)
            left -= len(data)
            offset = 0
            while offset < len(data):
                watch, mask, _, name_bytes = _EVENT.unpack_from(data, offset)
                offset += _EVENT.size + name_bytes
                is_lost |= mask & _IN_Q_OVERFLOW != 0
                if mask & _IN_MODIFY:
                    watches.add(watch)
        return None if is_lost else watches

    def _unread_bytes(self) -> int:
        if self.fd < 0:
            return 0
        (count,) = _COUNT.unpack(fcntl.ioctl(self.fd, termios.FIONREAD, bytes(_COUNT.size)))
        return int(count)

    def close(self) -> None:
        """End the instance and every watch of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
