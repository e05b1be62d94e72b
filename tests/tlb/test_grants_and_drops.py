"""The TLB of one address space by itself: which pages a fault grants, and which a change drops."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator

import pytest

from kerneld.hw.paging import PTE_PROTNONE
from kerneld.mm.calls.clear_refs import ClearRefs, clear_refs
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.files.file import File
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import FIRST_PFN, Frames
from kerneld.mm.ksm import merge
from kerneld.mm.ksm.scan import ksm_do_scan
from kerneld.mm.space.ksm import ksm_of
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.pace import run_at_once
from kerneld.mm.space.pkeys import pkey_alloc
from kerneld.tlb import tlb as tlb_module
from kerneld.tlb.record import OPERATION, RECORD
from kerneld.tlb.rights import KEY_SHIFT
from kerneld.tlb.tlb import Tlb
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, TASK_SIZE, Pfn, Vaddr
from tests.support.machine import BASE, PRIVATE, READ, RW, FakeBacking, Machine, checked, load, mmap, page, store

NONE = 0
PROT_BITS = 7


@pytest.fixture
def mm() -> Iterator[MmStruct]:
    for machine in checked(Machine()):
        yield machine.new_mm()


@pytest.fixture
def tlb(mm: MmStruct) -> Tlb:
    """The TLB of a program whose only thread is in a request."""
    tlb = Tlb(mm, lambda _: None)
    tlb.enter(1)
    return tlb


def taken(tlb: Tlb) -> list[tuple[int, int, int]]:
    """Return the operations of the next record: first page from BASE, pages, rights (0: drop)."""
    return [(first, pages, bits & PROT_BITS) for first, pages, bits in operations_of(tlb)]


def keys(tlb: Tlb) -> list[tuple[int, int, int]]:
    """Return the operations of the next record: first page from BASE, pages, protection key."""
    return [(first, pages, bits >> KEY_SHIFT) for first, pages, bits in operations_of(tlb)]


def operations_of(tlb: Tlb) -> list[tuple[int, int, int]]:
    """Return the operations of the next record: first page from BASE, pages, what is beside the length."""
    record = tlb.take()
    size, count, _ = struct.unpack_from("<IIQ", record)
    assert size == len(record) == 16 + 24 * count
    operations = struct.iter_unpack("<QQQ", record[16:])
    return [((start - BASE) // PAGE_SIZE, pages >> 12, pages & 0xFFF) for start, pages, _ in operations]


def test_a_page_that_a_write_has_brought_is_granted_alone(mm: MmStruct, tlb: Tlb) -> None:
    mmap(mm, 4, at=BASE)
    for number in range(3):
        store(mm, page(number), b"x")
    tlb.grant_page(page(1))
    assert taken(tlb) == [(1, 1, RW)]
    tlb.grant(page(2))
    assert [(first, pages) for first, pages, _ in taken(tlb)] in ([(0, 1), (2, 1)], [(0, 3)], [(0, 1), (1, 2)])
    assert tlb.check() == []


def test_what_has_been_granted_is_not_granted_again_but_for_the_page_itself(mm: MmStruct, tlb: Tlb) -> None:
    mmap(mm, 4, at=BASE)
    for number in range(4):
        store(mm, page(number), b"x")
        tlb.grant_page(page(number))
    taken(tlb)
    tlb.grant(page(2))
    assert taken(tlb) == [(2, 1, RW)]


def test_a_copy_on_write_drops_nothing_that_is_granted_anew(mm: MmStruct, tlb: Tlb) -> None:
    mmap(mm, 2, at=BASE)
    load(mm, page(0))
    tlb.grant(page(0))
    assert taken(tlb) == [(0, 1, READ)]
    store(mm, page(0), b"x")
    tlb.grant_page(page(0))
    assert taken(tlb) == [(0, 1, RW)]


def test_a_copy_on_write_without_a_grant_drops_the_page(mm: MmStruct, tlb: Tlb) -> None:
    """Another process has written for this one, say: the frame is another, and the grant is of the old one."""
    mmap(mm, 2, at=BASE)
    load(mm, page(0))
    tlb.grant(page(0))
    taken(tlb)
    store(mm, page(0), b"x")
    assert taken(tlb) == [(0, 1, NONE)]
    assert tlb.check() == []


@pytest.mark.parametrize("few_pages", [0, 64, 512])
def test_pages_are_dropped_as_runs_however_many_there_are(
    mm: MmStruct, tlb: Tlb, few_pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a loop, with numpy, and with both the same is dropped."""
    monkeypatch.setattr(tlb_module, "FEW_PAGES", few_pages)
    chosen = random.Random(5)
    mmap(mm, 100, at=BASE)
    granted = sorted(chosen.sample(range(100), 60))
    for number in granted:
        store(mm, page(number), b"x")
        tlb.grant_page(page(number))
        taken(tlb)
    for first, end in ((90, 91), (10, 12), (20, 60), (0, 100)):
        do_mprotect(mm, page(first), (end - first) * PAGE_SIZE, READ)
        dropped = [number for start, pages, prot in taken(tlb) for number in range(start, start + pages) if not prot]
        expected = [number for number in granted if first <= number < end]
        assert set(expected) <= set(dropped)
        granted = [number for number in granted if number not in expected]
        assert not set(granted) & set(dropped)
        assert tlb.check() == []
    do_munmap(mm, BASE, 100 * PAGE_SIZE)
    assert taken(tlb) == []


@pytest.mark.parametrize("few_pages", [0, 64])
def test_one_drop_goes_over_pages_without_a_grant(
    mm: MmStruct, tlb: Tlb, few_pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host maps nothing there, and each drop is a call of the host's. A grant that stays ends a drop."""
    monkeypatch.setattr(tlb_module, "FEW_PAGES", few_pages)
    mmap(mm, 10, at=BASE)
    for number in (0, 3, 4, 7, 9):
        store(mm, page(number), b"x")
        tlb.grant_page(page(number))
    taken(tlb)
    do_mprotect(mm, page(4), PAGE_SIZE, READ)
    assert taken(tlb) == [(4, 1, NONE)]
    load(mm, page(4))
    tlb.grant_page(page(4))
    taken(tlb)
    do_mprotect(mm, page(0), 10 * PAGE_SIZE, READ)
    assert taken(tlb) == [(0, 4, NONE), (7, 3, NONE)]
    do_munmap(mm, BASE, 10 * PAGE_SIZE)
    assert taken(tlb) == [(4, 1, NONE)]


@pytest.mark.parametrize("few_pages", [0, 64])
def test_a_page_has_the_key_of_its_entry(
    mm: MmStruct, tlb: Tlb, few_pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another key is another right: what is granted by the old key is dropped."""
    monkeypatch.setattr(tlb_module, "FEW_PAGES", few_pages)
    mmap(mm, 4, at=BASE)
    for number in range(4):
        store(mm, page(number), b"x")
    key = pkey_alloc(mm, 0, 0)
    do_mprotect(mm, page(1), 2 * PAGE_SIZE, RW, key)
    tlb.grant(page(0))
    assert sorted(keys(tlb)) == [(0, 1, 0), (1, 2, key), (3, 1, 0)]
    do_mprotect(mm, page(2), PAGE_SIZE, RW, 0)
    assert taken(tlb) == [(2, 1, NONE)]
    tlb.grant_page(page(2))
    assert keys(tlb) == [(2, 1, 0)]
    assert tlb.check() == []


class Told:
    """A listener that notes the ranges that it is told of: first page from BASE, pages."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def invalidate_range(self, start: Vaddr, end: Vaddr) -> None:
        self.ranges.append(((start - BASE) // PAGE_SIZE, (end - start) // PAGE_SIZE))

    def release(self) -> None: ...

    def exec_mmap(self, new_mm: MmStruct) -> None: ...


def test_what_fills_an_empty_entry_is_told_to_all_but_the_tlb(
    mm: MmStruct, tlb: Tlb, monkeypatch: pytest.MonkeyPatch
) -> None:
    mmap(mm, 4, at=BASE)
    told, told_tlb = Told(), Told()
    mm.notifiers.append(told)
    monkeypatch.setattr(tlb, "invalidate_range", told_tlb.invalidate_range)
    store(mm, page(1), b"x")
    load(mm, page(2))
    assert told.ranges == [(1, 1), (2, 1)]
    assert told_tlb.ranges == []
    store(mm, page(2), b"x")
    assert told_tlb.ranges == [(2, 1)]
    mm.notifiers.remove(told)


def test_a_grant_says_what_it_allows(mm: MmStruct, tlb: Tlb) -> None:
    mmap(mm, 4, at=BASE)
    assert tlb.grant(page(0)) == 0
    load(mm, page(0))
    assert tlb.grant(page(0)) & PROT_BITS == READ
    store(mm, page(0), b"x")
    assert tlb.grant_page(page(0)) & PROT_BITS == RW
    assert tlb.grant_page(page(1)) == 0


class RecordingAgent:
    """Notes the orders that it gets."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.acknowledged = 0

    def order(self, _record: bytes) -> bool:
        self.events.append("drop")
        return True

    def dismiss(self) -> None:
        """The machine of the test ends."""


def test_a_page_is_dropped_before_ksm_compares_it(mm: MmStruct, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program runs meanwhile: so its agent drops the page at once, and the contents cannot change any more."""
    events: list[str] = []
    tlb = Tlb(mm, lambda _: None, RecordingAgent(events))
    view = tlb.enter(1)
    mmap(mm, 2, at=BASE)
    do_madvise(mm, page(0), 2 * PAGE_SIZE, Madv.MERGEABLE)
    for number in range(2):
        store(mm, page(number), b"a")
        tlb.grant_page(page(number))
    view.take()

    def compared(frames: Frames, pfn: Pfn) -> bytes:
        events.append("compare")
        return bytes(frames.ram.page(pfn))

    monkeypatch.setattr(merge, "page_bytes", compared)
    for _ in range(2):
        for _ in ksm_do_scan(ksm_of(mm.frames), mm.frames, 9, lambda _: False):
            pass
    assert events == ["drop", "drop", "compare", "compare"]
    assert not tlb.check()


def map_file(mm: MmStruct) -> None:
    """Map 32 pages of a file at BASE, and let a fault map the first sixteen."""
    mapping = AddressSpace(mm.frames, FakeBacking(b"x" * 32 * PAGE_SIZE))
    mmap(mm, 32, RW, PRIVATE, at=BASE, file=File(mapping, "/f", readable=True, writable=True))
    load(mm, page(3))


def test_what_a_fault_has_mapped_is_granted_without_a_look_at_its_entries(
    mm: MmStruct, tlb: Tlb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tlb_module, "runs_to_grant", lambda *_: pytest.fail("looked"))
    map_file(mm)
    assert tlb.grant(page(3)) & PROT_BITS == READ
    assert taken(tlb) == [(0, 16, READ)]
    assert tlb.check() == []


def test_what_may_not_be_read_is_not_granted(mm: MmStruct, tlb: Tlb) -> None:
    """Entries without a right to read, as a fault by force makes them."""
    tlb.update_mmu_cache_range(BASE, PTE_PROTNONE | FIRST_PFN << PAGE_SHIFT, 16)
    assert tlb.grant(page(3)) == 0
    assert taken(tlb) == []


@pytest.mark.parametrize(
    ("change", "granted"),
    [
        (lambda mm: store(mm, page(5), b"y"), {*range(16)}),
        (lambda mm: do_mprotect(mm, page(5), PAGE_SIZE, NONE), {*range(16)} - {5}),
        (lambda mm: do_munmap(mm, page(5), PAGE_SIZE), {*range(16)} - {5}),
        (lambda mm: mm.notifiers.tlb.take(), {*range(16)}),
    ],
    ids=["copied", "protected", "unmapped", "answered"],
)
def test_what_has_changed_since_is_looked_at(
    mm: MmStruct, tlb: Tlb, change: Callable[[MmStruct], object], granted: set[int]
) -> None:
    map_file(mm)
    change(mm)
    tlb.grant(page(3))
    assert {at for first, pages, _ in taken(tlb) for at in range(first, first + pages)} == granted
    assert tlb.check() == []


@pytest.mark.parametrize("is_quiet", [True, False])
def test_nothing_may_be_written_without_a_fault_once_writes_are_looked_for(
    mm: MmStruct, tlb: Tlb, is_quiet: bool
) -> None:
    """Soft-dirty pages: a grant for reading may stay."""
    tlb.agent = agent = FakeAgent()
    mmap(mm, 4, at=BASE)
    for number in (0, 1):
        store(mm, page(number), b"x")
        tlb.grant_page(page(number))
    load(mm, page(3))
    tlb.grant_page(page(3))
    taken(tlb)
    if not is_quiet:
        tlb.enter(2).take()
    run_at_once(clear_refs(mm, ClearRefs.SOFT_DIRTY))
    drop = OPERATION.pack(BASE, 2 * PAGE_SIZE, 0)
    assert agent.told == ([] if is_quiet else [RECORD.pack(40, 1, 1) + drop])
    assert taken(tlb) == ([(0, 2, 0)] if is_quiet else [])
    assert tlb.check() == []
    store(mm, BASE, b"y")
    tlb.grant_page(BASE)
    assert taken(tlb) == [(0, 1, RW)]


class FakeAgent:
    def __init__(self) -> None:
        self.told: list[bytes | None] = []
        self.acknowledged = 0

    def order(self, record: bytes) -> bool:
        self.told.append(record)
        return True

    def dismiss(self) -> None:
        self.told.append(None)


EVERYTHING = OPERATION.pack(0, TASK_SIZE, 0)


@pytest.mark.parametrize("has_grants", [True, False])
def test_who_asks_for_its_end_drops_everything_with_the_answer(mm: MmStruct, tlb: Tlb, has_grants: bool) -> None:
    tlb.agent = agent = FakeAgent()
    mmap(mm, 2, at=BASE)
    store(mm, BASE, b"x")
    if has_grants:
        tlb.grant_page(BASE)
    [view] = tlb.views
    view.leave()
    tlb.release()
    assert agent.told == [None]
    assert view.take()[RECORD.size :] == (EVERYTHING if has_grants else b"")


@pytest.mark.parametrize("has_left", [False, True])
def test_what_vforks_child_has_left_is_dropped_with_its_parents_answer(mm: MmStruct, tlb: Tlb, has_left: bool) -> None:
    tlb.agent = agent = FakeAgent()
    [parent] = tlb.views
    child = tlb.enter(2)
    mmap(mm, 2, at=BASE)
    store(mm, BASE, b"x")
    tlb.grant_page(BASE)
    child.take()
    if has_left:
        child.left()
    do_munmap(mm, BASE, 2 * PAGE_SIZE)
    drop = OPERATION.pack(BASE, PAGE_SIZE, 0)
    assert [record for record in agent.told if record] == ([] if has_left else [RECORD.pack(40, 1, 1) + drop])
    assert parent.take()[RECORD.size :] == (drop if has_left else b"")


@pytest.mark.parametrize("who", ["the last", "another"])
def test_the_agent_drops_what_a_thread_may_still_use_that_has_not_asked_for_its_end(
    mm: MmStruct, tlb: Tlb, who: str
) -> None:
    tlb.agent = agent = FakeAgent()
    mmap(mm, 2, at=BASE)
    store(mm, BASE, b"x")
    tlb.grant_page(BASE)
    [last] = tlb.views
    other = tlb.enter(1)
    (last if who == "the last" else other).take()
    other.leave()
    last.leave()
    tlb.release()
    order, farewell = agent.told
    assert order is not None
    assert order[RECORD.size :] == EVERYTHING
    assert farewell is None
