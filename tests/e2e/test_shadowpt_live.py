"""The table follows everything that changes a page table, in the inspector's memory, without a call of its own.

Section of docs/abi.md: Shadow page table, what entry i describes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import scripts
from tests.e2e.watch import MAPPED, PAGE, START, Watch
from tests.support import raw
from tests.support.client import Client

NONE, READ, RW = 0, 1, 3
PRIVATE_FIXED, SHARED_FIXED, ANONYMOUS, POPULATE = 0x12, 0x11, 0x20, 0x8000
ANON_FIXED = PRIVATE_FIXED | ANONYMOUS
DONTNEED = 4


@pytest.fixture
def watch(inspector: Client, target: Client) -> Iterator[Watch]:
    """Eight pages at START, followed."""
    watch = Watch(inspector, target).begin()
    assert watch.letters() == "........"
    yield watch
    inspector.p.shadowpt_close()


def map_all(watch: Watch, prot: int = RW, flags: int = ANON_FIXED | POPULATE) -> None:
    watch.target.p.mmap(watch.start, watch.pages * PAGE, prot, flags)


def at(index: int) -> int:
    return START + index * PAGE


def test_mmap_write_read_munmap(watch: Watch) -> None:
    target = watch.target
    target.p.mmap(at(1), 6 * PAGE, RW, ANON_FIXED)
    assert watch.letters() == ".AAAAAA."
    target.p.mem.store(at(2), b"x")
    assert watch.letters() == ".AMAAAA."
    written = watch.pfns()[2]
    target.p.mem.load(at(3), 1)
    target.p.mem.load(at(4), 1)
    assert watch.letters() == ".AMMMAA."
    pfns = watch.pfns()
    # Two pages that were only read share the zero page.
    assert pfns[3] == pfns[4] != written
    target.p.mem.store(at(3), b"x")
    assert watch.pfns()[3] not in (written, pfns[3])
    assert watch.pfns()[4] == pfns[4]
    target.p.munmap(at(3), 2 * PAGE)
    assert watch.letters() == ".AM..AA."
    assert watch.is_true()


def test_a_mapping_that_reaches_over_both_ends(watch: Watch) -> None:
    watch.target.p.mmap(START - 4 * PAGE, 16 * PAGE, RW, ANON_FIXED | POPULATE)
    assert watch.letters() == "MMMMMMMM"
    watch.target.p.munmap(START - 4 * PAGE, 16 * PAGE)
    assert watch.letters() == "........"


def test_what_lies_outside_is_not_shown(watch: Watch) -> None:
    sequence = watch.sequence()
    watch.target.p.mmap(START + 8 * PAGE, PAGE, RW, ANON_FIXED | POPULATE)
    watch.target.p.mmap(START - PAGE, PAGE, RW, ANON_FIXED | POPULATE)
    assert watch.letters() == "........"
    assert watch.sequence() == sequence


def test_mprotect(watch: Watch) -> None:
    map_all(watch)
    pfns = watch.pfns()
    watch.target.p.mprotect(at(2), 2 * PAGE, NONE)
    assert watch.letters() == "MMMMMMMM"
    assert watch.is_true()
    watch.target.p.mprotect(at(2), 2 * PAGE, READ)
    assert watch.pfns() == pfns
    watch.target.p.mmap(at(0), PAGE, NONE, ANON_FIXED)
    assert watch.letters() == "AMMMMMMM"


def test_mremap_moves_the_frames(watch: Watch) -> None:
    watch.target.p.mmap(at(0), 2 * PAGE, RW, ANON_FIXED | POPULATE)
    pfns = watch.pfns()[:2]
    watch.target.p.mremap(at(0), 2 * PAGE, 2 * PAGE, 3, at(5))
    assert watch.letters() == ".....MM."
    assert watch.pfns()[5:7] == pfns
    watch.target.p.mremap(at(5), 2 * PAGE, PAGE)
    assert watch.letters() == ".....M.."
    watch.target.p.mremap(at(5), PAGE, 3 * PAGE)
    assert watch.letters() == ".....MAA"
    assert watch.is_true()


def test_madvise_dontneed(watch: Watch) -> None:
    map_all(watch)
    watch.target.p.madvise(at(3), 2 * PAGE, DONTNEED)
    assert watch.letters() == "MMMAAMMM"
    watch.target.p.mem.touch(at(3), PAGE, 1)
    assert watch.letters() == "MMMMAMMM"
    assert watch.is_true()


def test_mlock(watch: Watch) -> None:
    map_all(watch, flags=ANON_FIXED)
    watch.target.p.mlock(at(4), 2 * PAGE)
    assert watch.letters() == "AAAAMMAA"


def test_copy_on_write_after_fork(watch: Watch) -> None:
    map_all(watch)
    before = watch.pfns()
    child = watch.target.fork()
    assert watch.pfns() == before
    # The child's own copies are not the target's.
    child.p.mem.store(at(0), b"child")
    assert watch.pfns() == before
    watch.target.p.mem.store(at(1), b"parent")
    after = watch.pfns()
    assert [index for index in range(8) if after[index] != before[index]] == [1]
    # The child has its own page 0: the parent is the sole owner of the old one, and keeps it.
    watch.target.p.mem.store(at(0), b"parent")
    assert watch.pfns() == after
    assert child.p.mem.load(at(0), 5) == b"child"
    child.send((scripts.leave, (), {}))
    assert watch.target.run(scripts.wait_for, child.pid) == 0
    watch.target.p.mem.store(at(2), b"alone again")
    assert watch.pfns() == after
    assert watch.is_true()


def test_another_process_reaching_in(watch: Watch, inspector: Client) -> None:
    map_all(watch, flags=ANON_FIXED)
    inspector.p.mmap(START, PAGE, RW, ANON_FIXED | POPULATE)
    inspector.p.process_vm_writev(watch.target.pid, [(at(6), 4)], [(START, 4)])
    assert watch.letters() == "AAAAAAMA"


def test_a_file_mapped_shared(watch: Watch, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"f" * 4 * PAGE)
    target = watch.target
    fd = target.run(scripts.open_file, str(path), os.O_RDWR)
    target.p.mmap(at(0), 6 * PAGE, RW, SHARED_FIXED, fd)
    assert watch.letters() == "aaaaaa.."
    target.p.mem.load(at(1), 1)
    assert watch.letters()[1] == "m"
    assert watch.is_true()
    target.p.mem.store(at(0), b"written")
    frame = watch.pfns()[0]
    assert watch.inspector.p.shadowpt_page_contents(frame).startswith(b"writtenf")
    target.p.munmap(at(0), 6 * PAGE)
    assert watch.letters() == "........"
    assert path.read_bytes().startswith(b"writtenf")


def test_a_file_mapped_privately(watch: Watch, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"f" * 4 * PAGE)
    target = watch.target
    fd = target.run(scripts.open_file, str(path), os.O_RDONLY)
    target.p.mmap(at(0), 4 * PAGE, RW, PRIVATE_FIXED, fd)
    target.p.mem.load(at(2), 1)
    cached = watch.pfns()[2]
    target.p.mem.store(at(2), b"mine")
    # A copy of its own, in a mapping that is a file's still.
    assert watch.pfns()[2] not in (0, cached)
    assert watch.letters()[2] == "m"
    assert watch.is_true()


@pytest.mark.parametrize("flags", [SHARED_FIXED, PRIVATE_FIXED])
def test_a_file_that_is_cut_by_a_stranger(watch: Watch, tmp_path: Path, flags: int) -> None:
    """Nobody makes a call: entries past the file's end go, a process's own copies among them, and then it is SIGBUS."""
    path = tmp_path / "file"
    path.write_bytes(b"f" * 5 * PAGE)
    target = watch.target
    fd = target.run(scripts.open_file, str(path), os.O_RDWR)
    target.p.mmap(at(0), 8 * PAGE, RW, flags, fd)
    for index in range(5):
        target.p.mem.store(at(index), b"x")
    assert watch.letters() == "mmmmmaaa"
    watch.inspector.run(scripts.note_sequence)
    os.truncate(path, PAGE + 10)
    watch.inspector.run(scripts.wait_for_change)
    assert watch.letters() == "mmaaaaaa"
    assert watch.is_true()
    # Of the last page a copy keeps what it had; the file's own page reads as zeros past the end.
    rest = b"f" if flags == PRIVATE_FIXED else b"\0"
    assert target.p.mem.load(at(1), 12) == b"x" + b"f" * 9 + rest * 2
    target.send(("p.mem.load", (at(2), 1), {}))
    assert target.wait() == -signal.SIGBUS


def test_who_truncates_and_then_asks_is_told_the_truth(target: Client) -> None:
    """The change is acted upon before the request that comes after it, however busy the daemon is."""
    fd = target.run(scripts.memfd, b"f" * PAGE, 4)
    target.p.mmap(START, 4 * PAGE, RW, SHARED_FIXED, fd)
    for size in range(3, -1, -1):
        target.p.mem.touch(START, (size + 1) * PAGE, 1)
        target.run(scripts.truncate_file, fd, size * PAGE)
        pages = [entry for _vaddr, entry, _flags in target.run(scripts.own_pages, START, 4)]
        assert [pfn != 0 for pfn in pages] == [index < size for index in range(4)]


def test_shared_memory_without_a_file(watch: Watch) -> None:
    map_all(watch, flags=SHARED_FIXED | ANONYMOUS)
    assert watch.letters() == "aaaaaaaa"
    child = watch.target.fork()
    child.p.mem.store(at(3), b"x")
    assert watch.letters() == "aaaaaaaa"
    watch.target.p.mem.load(at(3), 1)
    assert watch.letters() == "aaamaaaa"
    assert watch.is_true()


def test_brk_and_the_heap(inspector: Client, target: Client) -> None:
    heap = target.p.brk(0)
    watch = Watch(inspector, target, heap, 64).begin()
    assert watch.letters() == "." * 64
    target.p.brk(heap + 3 * PAGE)
    assert watch.letters() == "AAA" + "." * 61
    target.p.mem.store(heap + PAGE, b"x")
    assert watch.letters() == "AMA" + "." * 61
    target.p.brk(heap)
    assert watch.letters() == "." * 64
    pointer = target.p.malloc(5000)
    target.p.mem.store(pointer, b"x" * 5000)
    index = (pointer - heap) // PAGE
    assert watch.letters()[index : index + 2] == "MM"
    assert watch.is_true()
    target.p.free(pointer)
    others = [target.p.malloc(100_000) for _count in range(2)]
    for pointer in others:
        target.p.mem.touch(pointer, 100_000, 1)
    grown = watch.letters()
    assert watch.is_true()
    for pointer in others:
        target.p.free(pointer)
    # The top is trimmed: memory goes back to the kernel.
    assert watch.letters().count(".") > grown.count(".")
    assert watch.is_true()
    inspector.p.shadowpt_close()


def test_a_large_malloc_is_a_mapping_of_its_own(inspector: Client, target: Client) -> None:
    pointer = target.p.malloc(200_000)
    target.p.free(pointer)
    start = pointer & ~0xFFF
    watch = Watch(inspector, target, start, 49).begin()
    assert watch.letters() == "." * 49
    assert target.p.malloc(200_000) == pointer
    assert set(watch.letters()) <= {"A", "M"}
    target.p.mem.touch(pointer, 200_000, 1)
    assert watch.letters() == "M" * 49
    target.p.free(pointer)
    assert watch.letters() == "." * 49
    inspector.p.shadowpt_close()


def test_the_stack_grows_into_the_table(inspector: Client, target: Client) -> None:
    (line,) = [line for line in target.p.read_proc("self/maps").decode().splitlines() if line.endswith("[stack]")]
    bottom = int(line.split("-")[0], 16)
    watch = Watch(inspector, target, bottom - 16 * PAGE, 17).begin()
    assert watch.letters()[:16] == "." * 16
    target.p.mem.store(bottom - 3 * PAGE, b"x")
    assert watch.letters()[:16] == "." * 13 + "MAA"
    target.p.mem.store(bottom - 12 * PAGE, b"x")
    assert watch.letters()[:16] == "...." + "MAAAAAAAA" + "MAA"
    assert watch.is_true()
    inspector.p.shadowpt_close()


def test_execve_replaces_all(watch: Watch) -> None:
    map_all(watch)
    fd = watch.target.run(scripts.open_file, "/bin/true", os.O_RDONLY)
    watch.target.p.execve("/bin/true", ["true"])
    assert watch.letters() == "........"
    assert watch.is_true()
    # The table goes on with the new program.
    map_all(watch)
    assert watch.letters() == "MMMMMMMM"
    assert fd > 0


def test_execve_fills_where_the_program_lies(inspector: Client, target: Client) -> None:
    target.p.execve("/bin/true", ["true"])
    # The place differs from one execve to the next where a kernel randomizes: see where this one is and watch there.
    first = target.p.read_proc("self/maps").decode().splitlines()[0]
    start = int(first.split("-")[0], 16)
    watch = Watch(inspector, target, start, 16).begin()
    assert watch.is_true()
    assert "a" in watch.letters() or "m" in watch.letters()
    target.p.execve("/bin/true", ["true"])
    assert watch.is_true()
    inspector.p.shadowpt_close()


@pytest.mark.parametrize("way", ["exit", "exit_group", "signal", "killed", "closed"])
def test_exit_takes_flags_and_frames_and_leaves_addresses(watch: Watch, way: str) -> None:
    map_all(watch)
    assert watch.letters() == "MMMMMMMM"
    watch.inspector.run(scripts.note_sequence)
    target = watch.target
    if way == "exit":
        target.p.syscall(raw.EXIT, 0)
    elif way == "exit_group":
        target.p.syscall(raw.EXIT_GROUP, 0)
    elif way == "signal":
        target.send(("p.mem.load", (0, 1), {}))
        target.wait()
    elif way == "killed":
        target.kill()
        # The next call to kerneld finds the process gone; until then the table may say what was.
        watch.inspector.p.getpid()
    else:
        target.p.close()
        # No reply says when the daemon has seen the end of the connection: the sequence word does.
        watch.inspector.run(scripts.wait_for_change)
    assert watch.letters() == "........"
    # Nor does a start bring anything back.
    watch.inspector.p.shadowpt_start()
    assert watch.letters() == "........"


def test_stop_freezes_and_start_begins_anew(watch: Watch) -> None:
    map_all(watch, flags=ANON_FIXED)
    watch.inspector.p.shadowpt_stop()
    frozen = watch.rows()
    sequence = watch.sequence()
    watch.target.p.mem.touch(at(0), 8 * PAGE, 1)
    watch.target.p.munmap(at(4), PAGE)
    assert watch.rows() == frozen
    assert watch.sequence() == sequence
    # Stopping what is stopped is no error.
    watch.inspector.p.shadowpt_stop()
    watch.inspector.p.shadowpt_start()
    assert watch.letters() == "MMMM.MMM"
    # Nor is starting what is started.
    watch.inspector.p.shadowpt_start()
    assert watch.letters() == "MMMM.MMM"
    watch.target.p.munmap(at(0), PAGE)
    assert watch.letters() == ".MMM.MMM"


def test_a_stopped_table_stays_when_the_target_exits(watch: Watch) -> None:
    map_all(watch)
    watch.inspector.p.shadowpt_stop()
    watch.target.kill()
    rows = watch.rows()
    assert all(not row.flags & MAPPED or row.pfn for row in rows)
    watch.inspector.p.shadowpt_start()
    assert watch.letters() == "........"


def test_page_contents_are_the_pages(watch: Watch) -> None:
    map_all(watch)
    for index in range(8):
        watch.target.p.mem.store(at(index), bytes([index]) * PAGE)
    for index, pfn in enumerate(watch.pfns()):
        assert watch.inspector.p.shadowpt_page_contents(pfn) == bytes([index]) * PAGE
    watch.target.p.mem.store(at(3) + 7, b"now")
    assert watch.inspector.p.shadowpt_page_contents(watch.pfns()[3])[6:11] == b"\3now\3"


def test_the_sequence_grows_with_each_change(watch: Watch) -> None:
    seen = [watch.sequence()]
    for index in range(8):
        watch.target.p.mmap(at(index), PAGE, RW, ANON_FIXED)
        seen.append(watch.sequence())
    assert all(value % 2 == 0 for value in seen)
    assert seen == sorted(set(seen))


def test_one_watches_oneself(inspector: Client) -> None:
    watch = Watch(inspector, inspector).begin()
    map_all(watch)
    assert watch.letters() == "MMMMMMMM"
    assert watch.is_true()
    inspector.p.shadowpt_close()
