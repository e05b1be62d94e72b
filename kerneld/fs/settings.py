"""The settings of the machine that are files: those of /proc/sys/vm, /proc/sys/kernel and /sys/kernel/mm.

Owns the table: path to file. A path under /sys/kernel/mm stands here without the first slash; nothing of /proc has such
a name. To add a setting is to add a row. Knows no request. Answers to Linux v6.8 kernel/sysctl.c:vm_table,
ipc/ipc_sysctl.c:ipc_sysctls, mm/huge_memory.c:hugepage_attr, and to the functions that each row names.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Protocol

from kerneld.errors import SysError
from kerneld.fs.setting import (
    INT_MAX,
    Setting,
    Stores,
    attribute_file,
    long_file,
    number_file,
    read_only,
    store_number,
)
from kerneld.mm.files.drop_caches import drop_pagecache
from kerneld.mm.frames.frames import Frames
from kerneld.mm.ksm.sysfs import KSM_FILES, WRITABLE_KSM_FILES, show_ksm, store_ksm
from kerneld.mm.limits import Sysctl, TransparentHugepage
from kerneld.mm.reclaim.page_alloc import setup_per_zone_wmarks
from kerneld.task.shm import IPC_MNI, ShmSegments
from shared.uapi.page import PAGE_SIZE, PMD_SIZE

_MOST_SCALE_FACTOR, _MOST_SWAPPINESS, _MOST_POLICY = 3000, 200, 2
_DROP_PAGECACHE, _MOST_DROP = 1, 4


class SettingsView(Protocol):
    """The parts of the kernel that have settings."""

    @property
    def frames(self) -> Frames: ...
    @property
    def sysctl(self) -> Sysctl: ...
    @property
    def shm(self) -> ShmSegments: ...


def all_settings(kernel: SettingsView) -> dict[str, Setting]:
    """Return the table of one machine."""
    return {
        **{f"sys/vm/{name}": setting for name, setting in _vm_table(kernel.frames, kernel.sysctl).items()},
        **{f"sys/kernel/{name}": setting for name, setting in _ipc_table(kernel.shm).items()},
        "sys/kernel/randomize_va_space": read_only(lambda: b"0\n"),
        **{f"sys/kernel/mm/transparent_hugepage/{name}": each for name, each in _huge_table(kernel.sysctl).items()},
        **{f"sys/kernel/mm/ksm/{name}": _ksm_file(kernel.frames, name) for name in KSM_FILES},
    }


def _int(owner: object, name: str, low: int, high: int, then: Callable[[], None] = lambda: None) -> Setting:
    """Return the file of an attribute that is an int; `then` runs after a change."""

    def put(value: int) -> None:
        setattr(owner, name, value)
        then()

    return number_file(lambda: getattr(owner, name), put, low, high)


def _long(owner: object, name: str, then: Callable[[], None] = lambda: None) -> Setting:
    """Return the file of an attribute that is an unsigned long."""

    def put(value: int) -> None:
        setattr(owner, name, value)
        then()

    return long_file(lambda: getattr(owner, name), put)


def _vm_table(frames: Frames, sysctl: Sysctl) -> dict[str, Setting]:
    """The files of /proc/sys/vm. Of overcommit_ratio and overcommit_kbytes one is 0: that which was not set last.

    Source: Linux v6.8 mm/util.c:overcommit_ratio_handler(), overcommit_kbytes_handler(); mm/page_alloc.c:
    min_free_kbytes_sysctl_handler(), watermark_scale_factor_sysctl_handler().
    """
    watermarks = partial(setup_per_zone_wmarks, frames, sysctl)
    return {
        "admin_reserve_kbytes": _long(sysctl, "admin_reserve_kbytes"),
        "drop_caches": Setting(bytes, partial(_drop_caches, frames), 0o200),
        "max_map_count": _int(sysctl, "max_map_count", 0, INT_MAX),
        "min_free_kbytes": _int(sysctl, "min_free_kbytes", 0, INT_MAX, watermarks),
        "mmap_min_addr": _long(sysctl, "mmap_min_addr"),
        "overcommit_kbytes": _long(sysctl, "overcommit_kbytes", partial(setattr, sysctl, "overcommit_ratio", 0)),
        "overcommit_memory": _int(sysctl, "overcommit_memory", 0, _MOST_POLICY),
        "overcommit_ratio": _int(
            sysctl, "overcommit_ratio", -INT_MAX - 1, INT_MAX, partial(setattr, sysctl, "overcommit_kbytes", 0)
        ),
        "swappiness": _int(sysctl, "swappiness", 0, _MOST_SWAPPINESS),
        "unprivileged_userfaultfd": _int(sysctl, "unprivileged_userfaultfd", 0, 1),
        "user_reserve_kbytes": _long(sysctl, "user_reserve_kbytes"),
        "watermark_scale_factor": _int(sysctl, "watermark_scale_factor", 1, _MOST_SCALE_FACTOR, watermarks),
    }


def _drop_caches(frames: Frames, offset: int, data: bytes) -> Stores:
    """Bit 0: the page cache. Bit 1 is for caches of the kernel's objects, which are not here; bit 2 for the log.

    Source: Linux v6.8 fs/drop_caches.c:drop_caches_sysctl_handler().
    """
    wanted = 0

    def put(value: int) -> None:
        nonlocal wanted
        wanted = value

    taken = store_number(offset, data, 1, _MOST_DROP, put)
    if wanted & _DROP_PAGECACHE:
        yield from drop_pagecache(frames)
    return taken


def _ipc_table(shm: ShmSegments) -> dict[str, Setting]:
    """The files of /proc/sys/kernel that are about System V shared memory. Source: Linux v6.8 ipc/ipc_sysctl.c."""
    return {
        "shmall": _long(shm, "ctlall"),
        "shmmax": _long(shm, "ctlmax"),
        "shmmni": _int(shm, "ctlmni", 0, IPC_MNI),
        "shm_next_id": _int(shm, "next_id", 0, INT_MAX),
    }


def _huge_table(sysctl: Sysctl) -> dict[str, Setting]:
    """The files of /sys/kernel/mm/transparent_hugepage. Source: Linux v6.8 mm/huge_memory.c:enabled_store()."""

    def show() -> bytes:
        words = (f"[{each}]" if each is sysctl.transparent_hugepage else str(each) for each in TransparentHugepage)
        return " ".join(words).encode() + b"\n"

    def put(word: bytes) -> None:
        found = next((each for each in TransparentHugepage if each.encode() == word), None)
        if found is None:
            raise SysError(errno.EINVAL)
        sysctl.transparent_hugepage = found

    return {"enabled": attribute_file(show, put), "hpage_pmd_size": read_only(f"{PMD_SIZE}\n".encode)}


def _ksm_file(frames: Frames, name: str) -> Setting:
    """A file of /sys/kernel/mm/ksm. A write of 2 to `run` is done in pieces."""

    def store(_offset: int, data: bytes) -> Stores:
        taken = data[:PAGE_SIZE]
        yield from store_ksm(frames, name, taken.decode("latin-1"))
        return len(taken)

    return Setting(partial(show_ksm, frames, name), store, 0o644 if name in WRITABLE_KSM_FILES else 0o444)
