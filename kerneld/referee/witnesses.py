"""The witnesses of the known differences: each plays a program, and returns whether the side follows the other rule.

They are sorted by subject. Each docstring describes the program. Addresses are slots (`At`); a page is `P`.
"""

from __future__ import annotations

import errno

from kerneld.referee.numbers import parse_numbers
from kerneld.referee.program import At, Base, Op
from kerneld.referee.witness import Stage
from shared.uapi.fcntl import F_SEAL_FUTURE_WRITE, F_SEAL_WRITE
from shared.uapi.mman import Madv, Map, Mremap, Pr, Prot
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.signals import SegvCode

P = PAGE_SIZE
REGULAR, SEALABLE = 1, 8
_FOR_WRITING = 3
"""The regular file, open for writing alone."""
_READ, _WRITE, _EXEC = Prot.READ.value, Prot.WRITE.value, Prot.EXEC.value
_RW = _READ | _WRITE
_PRIVATE, _SHARED, _FIXED = Map.PRIVATE.value, Map.SHARED.value, Map.FIXED.value
_ANON = _PRIVATE | Map.ANONYMOUS.value
_FREE_GIB = 1 << 37
"""A GiB in which no program has anything."""
_MIDDLE = 1 << 60
"""An address that is neither the user's nor the kernel's."""
_TOP = 0x7FFF_F7E0_0000
"""A boundary of 2 MiB. No mapping of this module lies below it."""
_TOO_LONG = 1 << 45
"""A size in bytes that is larger than the memory of any machine."""


def mmap(
    slot: int, nr_bytes: int, prot: int = _RW, flags: int = _ANON, at: At | int = 0, file: int = -1, offset: int = 0
) -> Op:
    """Return the operation that maps memory and keeps its place in a slot."""
    return Op(0, "mmap", (at, nr_bytes, prot, flags, offset), slot, file)


def call(name: str, *args: At | int, slot: int = -1, file: int = -1) -> Op:
    """Return an operation of the first process."""
    return Op(0, name, args, slot, file)


def store(at: At) -> Op:
    """Return a store of a byte."""
    return Op(0, "store", (at, 1), data=b"\xf5")


def load(at: At) -> Op:
    """Return a load of a byte."""
    return Op(0, "load", (at, 1))


def merges_with_what_never_faulted(stage: Stage) -> bool:
    """A page that never faulted gets the rights of the page above it, which did fault: the VMAs merge."""
    played = stage.play(
        mmap(0, 2 * P),
        call("mprotect", At(0), P, _RW | _EXEC),
        store(At(0, P)),
        call("mprotect", At(0, P), P, _RW | _EXEC),
    )
    return len(played.mappings(played.rets[0], 2)) == 1


def joins_what_never_faulted_and_what_did(stage: Stage) -> bool:
    """A page is mapped between one that never faulted and one that did."""
    played = stage.play(
        mmap(0, P, flags=_ANON | _FIXED, at=At(Base.ZERO, 1 << 28)),
        mmap(1, P, flags=_ANON | _FIXED, at=At(0, 2 * P)),
        store(At(1)),
        mmap(2, P, flags=_ANON | _FIXED, at=At(0, P)),
    )
    return len(played.mappings(played.rets[0], 3)) == 1


def failed_mmap_leaves_a_cut(stage: Stage) -> bool:
    """A mapping that is too large for any machine shall replace the second page: the page stays, split off."""
    played = stage.play(
        mmap(0, 2 * P, flags=_ANON | _FIXED, at=At(Base.ZERO, 1 << 28)),
        mmap(1, _TOO_LONG, flags=_ANON | _FIXED, at=At(0, P)),
    )
    return len(played.mappings(played.rets[0], 2)) == 2


def _survives_a_seal(stage: Stage, seal: int) -> bool:
    """A shared writable mapping of a sealed file shall replace memory: return whether the memory stays."""
    played = stage.play(
        call("add_seals", seal, file=SEALABLE),
        mmap(0, P),
        mmap(1, P, flags=_SHARED | _FIXED, at=At(0), file=SEALABLE),
    )
    return len(played.mappings(played.rets[1], 1)) == 1


def write_seal_refuses_early(stage: Stage) -> bool:
    """A mapping that F_SEAL_WRITE forbids leaves the old mapping."""
    return _survives_a_seal(stage, F_SEAL_WRITE)


def future_write_seal_refuses_early(stage: Stage) -> bool:
    """A mapping that F_SEAL_FUTURE_WRITE forbids leaves the old mapping."""
    return _survives_a_seal(stage, F_SEAL_FUTURE_WRITE)


def write_sealed_is_not_shared(stage: Stage) -> bool:
    """A sealed file is mapped for reading, and shared."""
    played = stage.play(
        call("add_seals", F_SEAL_WRITE, file=SEALABLE), mmap(0, P, prot=_READ, flags=_SHARED, file=SEALABLE)
    )
    return played.rets[-1] < 0


def mremap_moves_several(stage: Stage) -> bool:
    """Two mappings are moved by one call."""
    played = stage.play(
        mmap(0, 2 * P),
        call("mprotect", At(0), P, _READ),
        mmap(1, 2 * P),
        call("mremap", At(0), 2 * P, 2 * P, (Mremap.MAYMOVE | Mremap.FIXED).value, At(1)),
    )
    return played.rets[-1] > 0


def _dontunmap(at: At, nr_bytes: int, to: At) -> Op:
    return call("mremap", at, nr_bytes, nr_bytes, (Mremap.MAYMOVE | Mremap.DONTUNMAP | Mremap.FIXED).value, to)


def dontunmap_cuts_what_is_locked(stage: Stage) -> bool:
    """The first of two locked pages is moved."""
    played = stage.play(mmap(0, 2 * P), mmap(1, P), call("mlock", At(0), 2 * P), _dontunmap(At(0), P, At(1)))
    return len(played.mappings(played.rets[0], 2)) == 2


def dontunmap_merges_not_with_itself(stage: Stage) -> bool:
    """A page that was never touched is moved right behind itself."""
    played = stage.play(mmap(0, 2 * P), call("munmap", At(0, P), P), _dontunmap(At(0), P, At(0, P)))
    return len(played.mappings(played.rets[0], 2)) == 2


def dontunmap_merges_with_no_neighbour(stage: Stage) -> bool:
    """The last of four untouched pages is moved over the second: neither the first nor the third takes it."""
    played = stage.play(mmap(0, 4 * P), _dontunmap(At(0, 3 * P), P, At(0, P)))
    return len(played.mappings(played.rets[0], 4)) == 3


def moves_from_its_start(stage: Stage) -> bool:
    """The first page of two huge pages' size is moved; each place begins one page after the boundary of a table."""
    begun = (
        mmap(0, 2 * PMD_SIZE, flags=_ANON | _FIXED, at=At(Base.ZERO, _FREE_GIB + P)),
        store(At(0)),
    )
    before = stage.play(*begun).view.totals["VmPTE"]
    move = _dontunmap(At(0), 2 * PMD_SIZE, At(Base.ZERO, _FREE_GIB + 8 * PMD_SIZE + P))
    return stage.play(*begun, move).view.totals["VmPTE"] > before


def dontunmap_gives_its_own_offsets(stage: Stage) -> bool:
    """A moved page is moved again with MREMAP_DONTUNMAP: the old page then merges with a mapping behind it."""
    moved = (Mremap.MAYMOVE | Mremap.FIXED).value
    played = stage.play(
        mmap(0, P),
        store(At(0)),
        mmap(1, 2 * P),
        mmap(2, P),
        call("munmap", At(1, P), P),
        call("mremap", At(0), P, P, moved, At(1)),
        _dontunmap(At(1), P, At(2)),
        mmap(3, P, flags=_ANON | _FIXED, at=At(1, P)),
    )
    return len(played.mappings(played.rets[2], 2)) == 1


def dontunmap_counts_twice(stage: Stage) -> bool:
    """A locked page is moved, and VmLck says two."""
    played = stage.play(mmap(0, P), mmap(1, P), call("mlock", At(0), P), _dontunmap(At(0), P, At(1)))
    return played.view.totals["VmLck"] == 2 * P >> 10


def refuses_the_middle_before_access(stage: Stage) -> bool:
    """process_vm_readv to an address that is not canonical is refused before the source page is faulted in."""
    played = stage.play(mmap(0, P), call("process_vm_readv", 0, At(Base.ZERO, _MIDDLE), P, At(0), P, 0))
    return not played.view.pages


def aligns_whole_huge_pages_alone(stage: Stage) -> bool:
    """Three MiB are not aligned to two."""
    return stage.play(mmap(0, PMD_SIZE + PMD_SIZE // 2)).rets[0] % PMD_SIZE != 0


def aligns_nothing_with_a_hint(stage: Stage) -> bool:
    """If the address of a hint is occupied, the kernel searches another address, and does not align it."""
    return stage.play(mmap(0, P), mmap(1, 2 * PMD_SIZE, at=At(0))).rets[1] % PMD_SIZE != 0


def advises_own_memory_anything(stage: Stage) -> bool:
    """process_madvise of the caller's own memory takes MADV_DONTNEED."""
    played = stage.play(mmap(0, P), call("process_madvise", 0, At(0), P, Madv.DONTNEED.value, 0))
    return played.rets[-1] == P


def pages_out_nothing_by_its_accessed_bit(stage: Stage) -> bool:
    """A page that is written after MADV_FREE cannot be paged out at once: it stays, accessed."""
    played = stage.play(
        mmap(0, P),
        store(At(0)),
        call("madvise", At(0), P, Madv.FREE.value),
        store(At(0)),
        call("madvise", At(0), P, Madv.PAGEOUT.value),
    )
    return parse_numbers(played.view.mappings[0].numbers)["Referenced"] > 0


def frees_tables_of_what_is_not_needed(stage: Stage) -> bool:
    """MADV_DONTNEED of memory with its own page table: the table is freed. That of a huge page always is."""
    played = stage.play(
        mmap(0, 3 * PMD_SIZE),
        call("madvise", At(0), 3 * PMD_SIZE, Madv.NOHUGEPAGE.value),
        store(At(0, PMD_SIZE)),
        call("madvise", At(0), 3 * PMD_SIZE, Madv.DONTNEED.value),
    )
    return played.view.totals["VmPTE"] < played[-2].views[0].totals["VmPTE"]


def maps_no_last_page_alone(stage: Stage) -> bool:
    """A read past a file's end does not map the last page of the file by fault-around."""
    played = stage.play(mmap(0, 16 * P, _READ, _SHARED, file=REGULAR, offset=5 * P), load(At(0, 2 * P)))
    return not played.view.pages


def reads_ahead_what_is_executable(stage: Stage) -> bool:
    """A fault of an executable mapping brings none of the pages before it."""
    played = stage.play(
        mmap(0, 12 * P, _READ | _EXEC, _PRIVATE, file=REGULAR),
        call("ftruncate", 12 * P, file=REGULAR),
        load(At(0, 10 * P)),
        call("mincore", At(0), 12 * P),
    )
    return not played[-1].outcome.data[7] & 1


def _is_dirty_after(stage: Stage, page: int, size: int) -> bool:
    """Set the size of a regular file, and return whether a page is then dirty: MADV_PAGEOUT would drop a clean page."""
    played = stage.play(
        mmap(0, 7 * P, _RW, _SHARED, file=REGULAR),
        call("ftruncate", size, file=REGULAR),
        load(At(0, page * P)),
        call("madvise", At(0, page * P), P, Madv.PAGEOUT.value),
        call("mincore", At(0), 7 * P),
    )
    return bool(played[-1].outcome.data[page] & 1)


def zeroes_the_page_that_is_cut(stage: Stage) -> bool:
    """A file is cut in the middle of a page."""
    return _is_dirty_after(stage, 3, 3 * P + 100)


def zeroes_the_page_that_is_filled_up(stage: Stage) -> bool:
    """A file that ends in the middle of a page is made longer."""
    return _is_dirty_after(stage, 6, 12 * P)


def mprotect_keeps_the_account(stage: Stage) -> bool:
    """Memory that was never written is made read-only."""
    played = stage.play(mmap(0, P), call("mprotect", At(0), P, _READ))
    return "ac" in played.view.mappings[-1].flags


def map_stack_means_nothing(stage: Stage) -> bool:
    """VmFlags of a MAP_STACK mapping do not have nh."""
    played = stage.play(mmap(0, P, flags=_ANON | Map.STACK.value))
    return "nh" not in played.view.mappings[-1].flags


def aligns_no_anonymous_memory(stage: Stage) -> bool:
    """Four MiB are not aligned to two."""
    return stage.play(mmap(0, 2 * PMD_SIZE)).rets[0] % PMD_SIZE != 0


def aligns_files_upwards(stage: Stage) -> bool:
    """The free range ends at a boundary of 2 MiB, and a file's mapping of 2 MiB is placed there."""
    played = stage.play(
        mmap(0, P),
        mmap(1, 2 * PMD_SIZE, flags=_ANON | _FIXED, at=At(Base.ZERO, _TOP - 2 * PMD_SIZE)),
        mmap(2, 2 * PMD_SIZE, _READ, file=REGULAR, flags=_PRIVATE),
    )
    return played.rets[1] - played.rets[2] == 3 * PMD_SIZE


def names_what_touches_the_heap(stage: Stage) -> bool:
    """A page directly above an empty heap is called [heap]."""
    played = stage.play(mmap(0, P, flags=_ANON | _FIXED, at=At(Base.BRK, 0)))
    return played.view.mappings[0].name == "[heap]"


def knows_no_map_above4g(stage: Stage) -> bool:
    """MAP_SHARED_VALIDATE accepts only known flags."""
    played = stage.play(
        mmap(0, P, _READ, Map.SHARED_VALIDATE.value | Map.ABOVE4G.value, file=REGULAR),
    )
    return played.rets[0] == -errno.EOPNOTSUPP


def has_five_levels(stage: Stage) -> bool:
    """An address that does not exist on four levels is an unmapped address on five levels."""
    return stage.play(load(At(Base.ZERO, 1 << 48)))[0].outcome.si_code == SegvCode.MAPERR


def populates_nothing_behind_a_hole(stage: Stage) -> bool:
    """Populate three pages, of which the middle one is not mapped."""
    played = stage.play(
        mmap(0, 3 * P), call("munmap", At(0, P), P), call("madvise", At(0), 3 * P, Madv.POPULATE_READ.value)
    )
    return len(played.view.pages) == 1


def takes_a_key_before_a_place(stage: Stage) -> bool:
    """Execute-only memory at an occupied address is refused. The next pkey_alloc then returns the second key."""
    flags = _ANON | Map.FIXED_NOREPLACE.value
    played = stage.play(mmap(0, P), mmap(1, P, _EXEC, flags, At(0)), call("pkey_alloc", 0, 0))
    return played.rets[-1] == 2


def has_no_key_to_give(stage: Stage) -> bool:
    """A processor without keys has none left the first time."""
    return stage.play(call("pkey_alloc", 0, 0)).rets[0] == -errno.ENOSPC


def aligns_no_file(stage: Stage) -> bool:
    """Four MiB of a file are not aligned to two."""
    return stage.play(mmap(0, 2 * PMD_SIZE, _READ, _PRIVATE, file=REGULAR)).rets[0] % PMD_SIZE != 0


def merges_no_new_mapping(stage: Stage) -> bool:
    """A file's first page is mapped in front of its second."""
    played = stage.play(
        mmap(0, P, _READ, _PRIVATE | _FIXED, at=At(Base.ZERO, 1 << 28), file=REGULAR, offset=P),
        mmap(1, P, _READ, _PRIVATE | _FIXED, at=At(0, -P), file=REGULAR),
    )
    return len(played.mappings(played.rets[1], 2)) == 2


def knows_no_map_sync(stage: Stage) -> bool:
    """MAP_SYNC is checked before the right to read, which this open file does not have."""
    played = stage.play(mmap(0, P, _READ, Map.SHARED_VALIDATE.value | Map.SYNC.value, file=_FOR_WRITING))
    return played.rets[0] == -errno.EOPNOTSUPP


def takes_map_sync(stage: Stage) -> bool:
    """With MAP_PRIVATE the kernel does not check the flags, so the file system has to."""
    return stage.play(mmap(0, P, _READ, _PRIVATE | Map.SYNC.value, file=REGULAR)).rets[0] > 0


def collapses_nothing(stage: Stage) -> bool:
    """2 MiB shall become a huge page."""
    at = At(Base.ZERO, _FREE_GIB)
    played = stage.play(
        mmap(0, PMD_SIZE, flags=_ANON | _FIXED, at=at),
        store(At(0)),
        call("madvise", At(0), PMD_SIZE, Madv.COLLAPSE.value),
    )
    return played.rets[-1] < 0


def has_no_ksm(stage: Stage) -> bool:
    """Equal pages may be merged: the advice is not known."""
    return stage.play(mmap(0, P), call("madvise", At(0), P, Madv.MERGEABLE.value)).rets[-1] < 0


def has_no_soft_dirty_pages(stage: Stage) -> bool:
    """A new page is written."""
    return "sd" not in stage.play(mmap(0, P), store(At(0))).view.mappings[0].flags


def knows_no_memory_merge(stage: Stage) -> bool:
    """Whether all memory is mergeable cannot be asked."""
    return stage.play(call("prctl", Pr.GET_MEMORY_MERGE.value, 0, 0, 0, 0)).rets[-1] < 0


def maps_as_mergeable(stage: Stage) -> bool:
    """In a mergeable address space two pages are mapped, one after the other: they are one mapping."""
    at, flags = At(Base.ZERO, _FREE_GIB), _ANON | _FIXED
    played = stage.play(
        call("prctl", Pr.SET_MEMORY_MERGE.value, 1, 0, 0, 0),
        mmap(0, P, flags=flags, at=at),
        mmap(1, P, flags=flags, at=At(0, P)),
    )
    return played.rets[0] == 0 and len(played.mappings(played.rets[1], 2)) == 1
