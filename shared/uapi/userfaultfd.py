"""userfaultfd(2): flags, ioctls and records. Source: Linux v6.8 include/uapi/linux/userfaultfd.h."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

UFFD_API = 0xAA
UFFD_USER_MODE_ONLY = 1
"""Flag of userfaultfd(2): accesses by the kernel fail instead of waiting."""
USERFAULTFD_IOC_NEW = 0xAA00
"""The ioctl of /dev/userfaultfd; its argument has the flags of userfaultfd(2)."""
UFFD_EVENT_PAGEFAULT = 0x12
UFFD_MSG_BYTES = 32

_READ_WRITE, _READ = 3 << 30, 2 << 30


def _ioctl(direction: int, nr: int, record: Struct) -> int:
    return direction | record.size << 16 | UFFD_API << 8 | nr


API = Struct("<QQQ")
"""uffdio_api: api, features, ioctls."""
REGISTER = Struct("<QQQQ")
"""uffdio_register: start, length, mode, ioctls."""
RANGE = Struct("<QQ")
"""uffdio_range: start, length."""
COPY = Struct("<QQQQq")
"""uffdio_copy: destination, source, length, mode, bytes copied."""
ZEROPAGE = Struct("<QQQq")
"""uffdio_zeropage: start, length, mode, bytes."""
_MESSAGE = Struct("<BBHIQQII")


class Uffdio(IntEnum):
    """The ioctls of a userfaultfd."""

    API = _ioctl(_READ_WRITE, 0x3F, API)
    REGISTER = _ioctl(_READ_WRITE, 0x00, REGISTER)
    UNREGISTER = _ioctl(_READ, 0x01, RANGE)
    WAKE = _ioctl(_READ, 0x02, RANGE)
    COPY = _ioctl(_READ_WRITE, 0x03, COPY)
    ZEROPAGE = _ioctl(_READ_WRITE, 0x04, ZEROPAGE)


class RegisterMode(IntFlag):
    """What a registered range is watched for."""

    MISSING = 1 << 0
    WP = 1 << 1
    MINOR = 1 << 2


class Feature(IntFlag):
    """Features of a userfaultfd that kerneld has."""

    MISSING_SHMEM = 1 << 5
    SIGBUS = 1 << 7
    THREAD_ID = 1 << 8
    EXACT_ADDRESS = 1 << 11


class PagefaultFlag(IntFlag):
    """Why an access waits."""

    WRITE = 1 << 0


DONTWAKE = 1
"""Mode of UFFDIO_COPY and UFFDIO_ZEROPAGE: nobody is woken."""


def pack_pagefault(flags: int, address: int, ptid: int) -> bytes:
    """Return the record (uffd_msg) of a page fault."""
    return _MESSAGE.pack(UFFD_EVENT_PAGEFAULT, 0, 0, 0, flags, address, ptid, 0)
