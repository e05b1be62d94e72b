"""Settings as files: what text is a number, who may write, and what each setting changes."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kerneld.errors import SysError
from kerneld.fs.setting import ULONG_MAX, store_number
from kerneld.hw.paging import PF_WRITE
from kerneld.mm.reclaim.page_alloc import init_per_zone_wmark_min
from kerneld.mm.space import pace
from kerneld.mm.space.overcommit import vm_commit_limit
from kerneld.mm.vm_flags import VM_SOFTDIRTY
from kerneld.task.task import Cred
from shared.uapi.mman import Map
from tests.fs.world import World
from tests.support.machine import access, errno_of

USER = Cred(1000, 1000, superuser=False)
NAMES = (
    "admin_reserve_kbytes", "drop_caches", "max_map_count", "min_free_kbytes", "mmap_min_addr", "overcommit_kbytes",
    "overcommit_memory", "overcommit_ratio", "swappiness", "user_reserve_kbytes", "watermark_scale_factor",
)  # fmt: skip
IPC = ("shm_next_id", "shmall", "shmmax", "shmmni")


def write(world: World, path: str, data: bytes | str, offset: int = 0, cred: Cred | None = None) -> int:
    """Return how many bytes were taken, or -errno."""
    writer = world.me if cred is None else world.add(12, cred)
    pieces = world.procfs.write_in_pieces(
        writer.threads[0], path, offset, data.encode() if isinstance(data, str) else data
    )
    try:
        while True:
            next(pieces)
    except StopIteration as end:
        taken: int = end.value
        return taken
    except SysError as error:
        return -error.errno


def test_every_file_is_one_of_the_hosts_with_its_rights(world: World) -> None:
    """The next id can be asked for by who may restore checkpoints: Linux v6.8 ipc/ipc_sysctl.c:ipc_permissions()."""
    for path in [f"vm/{name}" for name in NAMES] + [f"kernel/{name}" for name in IPC]:
        file = Path("/proc/sys", path)
        if file.exists() or path != "kernel/shm_next_id":
            assert write(world, f"sys/{path}", b"") == 0
            assert (file.stat().st_mode & 0o400 != 0) == (path != "vm/drop_caches") == _is_readable(world, path)


def _is_readable(world: World, path: str) -> bool:
    try:
        return world.text(f"sys/{path}") != ""
    except SysError:
        return False


# What Linux 6.18 does with each, at kernel.shmmni in an IPC namespace of its own (tests/native/test_settings.py).
INTS = [
    (b"5", 1, 5), (b"5\n", 2, 5), (b" \t5 \n\n", 6, 5), (b"0x10\n", 5, 16), (b"0X1f", 4, 31), (b"010\n", 4, 8),
    (b"+5", -22, None), (b"-1", -22, None), (b"-0", 2, 0), (b"--1", -22, None), (b"-", -22, None), (b"- 1", -22, None),
    (b"", 0, None), (b"\n", -22, None), (b"  ", -22, None), (b"x", -22, None), (b"5x", -22, None), (b"08", -22, None),
    (b"0x", -22, None), (b"0xg", -22, None), (b"5,6", -22, None), (b"5 6", 2, 5), (b"5\n6\n", 2, 5),
    (b"5\0", -22, None), (b"5 \0", 2, 5), (b"32768", 5, 32768), (b"32769", -22, None), (b"4294967296", -22, None),
    (b"5\r", -22, None), (b"5 \r\v\f\n", 6, 5), (b"\xa05", 2, 5), (b"00000000000000000005", 20, 5),
    (b"000000000000000000005", -22, None),
    (b"99999999999999999999", -22, None), (b"\xb25", -22, None), (b"5" + b" " * 5000, 5001, 5),
]  # fmt: skip


LONGS = [
    (b"18446744073709551615\n", 21, ULONG_MAX), (b"18446744073709551616\n", -22, None), (b"-1", -22, None),
    (b"-0", -22, None), (b"0xffffffffffffffff", 18, ULONG_MAX), (b"7 8", 2, 7),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "taken", "value", "high"), [(*case, 32768) for case in INTS] + [(*case, ULONG_MAX) for case in LONGS]
)
def test_the_text_of_a_number(text: bytes, taken: int, value: int | None, high: int) -> None:
    found: list[int] = []
    if taken < 0:
        assert errno_of(lambda: store_number(0, text, 0, high, found.append)) == -taken
    else:
        assert store_number(0, text, 0, high, found.append) == taken
    assert found == ([] if value is None else [value])


def test_a_write_behind_the_beginning_has_no_effect(world: World) -> None:
    assert write(world, "sys/vm/swappiness", b"6\n", offset=2) == 2
    assert world.text("sys/vm/swappiness") == "60\n"


def test_who_may_write(world: World) -> None:
    assert write(world, "sys/vm/swappiness", b"6", cred=USER) == -errno.EPERM
    assert write(world, "sys/vm/swappiness", b"", cred=USER) == -errno.EACCES
    assert write(world, "sys/kernel/randomize_va_space", b"") == -errno.EACCES
    assert write(world, "meminfo", b"1") == -errno.EACCES
    assert write(world, "sys/vm/nothing", b"1") == -errno.ENOENT
    assert errno_of(lambda: world.text("sys/vm/swappiness/x")) == errno.ENOTDIR
    assert errno_of(lambda: world.text("sys/vm/drop_caches")) == errno.EACCES


def test_a_ratio_and_an_amount_exclude_each_other(world: World) -> None:
    assert write(world, "sys/vm/overcommit_kbytes", "4096") == 4
    assert (world.text("sys/vm/overcommit_ratio"), vm_commit_limit(world.frames, world.sysctl)) == ("0\n", 1024)
    assert write(world, "sys/vm/overcommit_ratio", "100") == 3
    assert world.text("sys/vm/overcommit_kbytes") == "0\n"
    assert vm_commit_limit(world.frames, world.sysctl) == world.frames.total_pages
    assert write(world, "sys/vm/overcommit_ratio", "-1") == 2
    assert vm_commit_limit(world.frames, world.sysctl) == ((1 << 64) - world.frames.total_pages) // 100


def test_the_minimum_moves_all_watermarks(world: World) -> None:
    init_per_zone_wmark_min(world.frames, world.sysctl)
    least = world.sysctl.min_free_kbytes
    assert world.frames.watermark_min == least // 4
    assert write(world, "sys/vm/min_free_kbytes", str(4 * least)) > 0
    assert world.frames.watermark_min == least
    assert world.frames.watermark_high == least + 2 * (least // 4)
    assert write(world, "sys/vm/watermark_scale_factor", "3000") == 4
    assert world.frames.watermark_low == least + world.frames.total_pages * 3 // 10
    assert write(world, "sys/vm/watermark_scale_factor", "0") == -errno.EINVAL


def test_clean_pages_that_nothing_maps_are_dropped(world: World, fd: int) -> None:
    """Two pages are read; one is mapped, and stays. Bit 1 alone is not for pages."""
    mm = world.me.live_mm
    at = world.machine.map_fd(mm, fd)
    access(mm, at)
    vma = mm.vmas.lookup(at)
    assert vma is not None
    assert vma.file is not None
    file = vma.file
    file.mapping.ensure_page(1)
    assert write(world, "sys/vm/drop_caches", "2\n") == 2
    assert len(file.mapping.pages) == 2
    assert write(world, "sys/vm/drop_caches", "1\n") == 2
    assert list(file.mapping.pages) == [0]
    assert write(world, "sys/vm/drop_caches", "5\n") == -errno.EINVAL


def test_huge_pages_by_a_word(world: World) -> None:
    path = "sys/kernel/mm/transparent_hugepage/enabled"
    assert world.text(path) == "always [madvise] never\n"
    assert write(world, path, "never\n") == 6
    assert write(world, path, "always", offset=3) == 6
    assert world.text(path) == "[always] madvise never\n"
    assert write(world, path, "alway") == write(world, path, "always\n\n") == -errno.EINVAL
    assert world.text("sys/kernel/mm/transparent_hugepage/hpage_pmd_size") == "2097152\n"


def test_who_may_spare_a_process(world: World) -> None:
    """Only a privileged one goes below its last value. Source: Linux v6.8 fs/proc/base.c:__set_oom_adj()."""
    other = world.add(13, USER)
    assert write(world, "13/oom_score_adj", "300\n", cred=USER) == 4
    assert write(world, "13/oom_score_adj", "-1", cred=USER) == -errno.EACCES
    assert write(world, "13/oom_score_adj", "-1000") == 5
    assert (world.text("13/oom_score_adj"), world.text("13/oom_score")) == ("-1000\n", "0\n")
    assert write(world, "13/oom_score_adj", "-1000", cred=USER) == 5
    assert write(world, "13/oom_score_adj", "-1001") == write(world, "13/oom_score_adj", "1e3") == -errno.EINVAL
    assert write(world, "13/oom_score_adj", "3", cred=Cred(1001, 1001, superuser=False)) == -errno.EPERM
    other.live_mm.dumpable = False
    assert write(world, "13/oom_score_adj", "3", cred=USER) == -errno.EPERM
    assert write(world, "13/oom_score_adj", "0x10") == 4
    assert world.text("13/oom_score") == "676\n", "32 of 2,048 pages are 15 thousandths: two thirds of 1,015"
    assert write(world, "13/clear_refs/x", "1") == write(world, "99/clear_refs", "1") == -errno.ENOENT


def test_who_clears_soft_dirty_bits_holds_mmap_lock(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux holds it for writing: the other threads of the process wait. For the other kinds they do not."""
    other = world.add(13, USER)
    mm, locks = other.live_mm, world.mmap_locks
    [own], [theirs] = world.me.threads, other.threads
    for flags in (Map.PRIVATE, Map.SHARED):
        access(mm, world.map_anonymous(1, other, flags=flags), PF_WRITE)
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0)
    with locks.write(theirs, mm):
        waiting = world.procfs.write_in_pieces(own, "13/clear_refs", 0, b"4")
        next(waiting)
        next(waiting)
        assert all(vma.vm_flags & VM_SOFTDIRTY for vma in mm.vmas)
    assert [dict(locks.holders) for _ in waiting] == [{mm: own}] * 2
    assert not locks.holders
    assert not any(vma.vm_flags & VM_SOFTDIRTY for vma in mm.vmas)
