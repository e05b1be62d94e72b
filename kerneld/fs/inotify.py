"""News of files that change behind kerneld's back: the host's inotify, for inodes that are mapped.

Owns one inotify instance. Says which watches have something to tell, never what: two changes of a kind are one event of
the host's, so whoever asked has to look at the file. Knows no file beyond its descriptor. Source: inotify(7).
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
    """The watches of one machine; where the host gives no instance (max_user_instances) nothing is ever told."""

    def __init__(self) -> None:
        self.fd: int = _libc()("inotify_init1")(os.O_NONBLOCK | os.O_CLOEXEC)
        """Readable while there is news; -1 where there is no instance."""

    def add_watch(self, fd: int) -> int:
        """Watch the inode behind a descriptor from now on.

        Returns the number of the watch, or NO_WATCH where the host refuses one: too many, or no right to read.
        """
        if self.fd < 0:
            return NO_WATCH
        watch: int = _libc()("inotify_add_watch")(self.fd, b"/proc/self/fd/%d" % fd, _IN_MODIFY)
        return watch

    def rm_watch(self, watch: int) -> None:
        """Watch no longer; the file may have gone meanwhile."""
        if self.fd >= 0:
            _libc()("inotify_rm_watch")(self.fd, watch)

    def read(self) -> set[int] | None:
        """Return the watches that have news since the last call; None: some was lost, so any may have.

        What comes while it reads is for the next call: whoever writes without end would keep us here.
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
