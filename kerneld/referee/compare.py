"""Compares the two sides, and returns the first difference in words.

Owns the rules of equality. Frames are compared by sharing, not by number. Addresses are compared exactly, because both
sides have the same free addresses.
"""

from __future__ import annotations

from kerneld.referee.machine import OF_THE_MACHINE, find_different_counter
from kerneld.referee.numbers import find_different_number, find_different_total
from kerneld.referee.outcome import Mapping, State, View
from kerneld.referee.page_flags import find_different_flags

Difference = tuple[str, str, str]
"""The subject of a difference, kerneld's value, and the host's value."""

_ACCESSED = "Referenced"
_MANY_BYTES = 256
_OF_SHARED_PAGES, _OF_PRIVATE_PAGES = {"Shared_Clean", "Shared_Dirty"}, {"Private_Clean", "Private_Dirty"}
_OF_DIRTY_PAGES = {"Pss_Dirty"} | _OF_SHARED_PAGES | _OF_PRIVATE_PAGES
_ACCESSES = frozenset({"load", "store", "touch"})


def find_difference(
    name: str,
    ours: State,
    hosts: State,
    before: tuple[State, State] | None,
    *,
    locked: bool = False,
    huge: bool = False,
    refaults: bool = False,
    accessed: bool = True,
) -> Difference | None:
    """Return the first difference after the operation `name`, or None. `before` has the states before it, if any.

    `locked`: the program has locked memory, or has put pages into a processor's batches in another way. `huge`: there
    are huge pages. The TLB may keep small parts of a huge page that was not writable, and the processor then faults
    once more at each part. So the host may take more faults. `refaults`: pages have been reclaimed. Whether such a
    page is active when it comes back depends on all pages of the machine (mm/workingset.c:workingset_refault()).
    Without `accessed` the accessed bits are not compared. A locked page that waits in a batch can still become active,
    so the flags that come from accesses are not compared after `locked`.
    """
    for field in ours.outcome._fields:
        mine, theirs = getattr(ours.outcome, field), getattr(hosts.outcome, field)
        if field == "data" and ours.outcome.signo:
            # A reply of kerneld with a signal has no room for the bytes before the signal.
            continue
        if huge and field == "min_flt" and None not in (mine, theirs) and theirs > mine:
            continue
        if mine != theirs and None not in (mine, theirs):
            return field, *_show_both(field, mine, theirs)
    for who in ours.views:
        found = _compare_views(who, ours.views[who], hosts.views[who])
        if found is not None:
            return found
    for who in ours.views:
        found = _compare_numbers(who, ours.views[who], hosts.views[who], accessed)
        if found is not None:
            return found
    counter = find_different_counter(ours.counters, hosts.counters)
    if counter is not None:
        return f"{counter[0]}{OF_THE_MACHINE}", str(counter[1]), str(counter[2])
    if any(view.frames for view in hosts.views.values()):
        found = _compare_sharing(ours, hosts) or _compare_page_flags(ours, hosts)
        if found is None and accessed and not refaults and not locked:
            found = _compare_page_flags(ours, hosts, of_accesses=True)
        if found is None and before is not None and name in _ACCESSES:
            found = _compare_changes((before[0], ours), (before[1], hosts), locked)
        return found
    return None


def _show_both(field: str, ours: int | bytes, hosts: int | bytes) -> tuple[str, str]:
    """Return two values in words; of many bytes those from the first that differs on."""
    if isinstance(ours, bytes) and isinstance(hosts, bytes) and max(len(ours), len(hosts)) > _MANY_BYTES:
        both = range(min(len(ours), len(hosts)))
        at = next((i for i in both if ours[i] != hosts[i]), len(both)) & -8
        mine, theirs = (f"{side[at : at + 8].hex() or 'none'} at byte {at}" for side in (ours, hosts))
        return mine, theirs
    return _show(field, ours), _show(field, hosts)


def _show(field: str, value: int | bytes) -> str:
    if isinstance(value, bytes):
        return value.hex() or "none"
    return hex(value) if field == "si_addr" or value > 0xFFFF else str(value)


def _compare_views(who: int, ours: View, hosts: View) -> Difference | None:
    for mine, theirs in zip(ours.mappings, hosts.mappings, strict=False):
        if _key(mine) != _key(theirs):
            return f"a mapping of process {who}", show_mapping(mine), show_mapping(theirs)
    if len(ours.mappings) != len(hosts.mappings):
        more = ours if len(ours.mappings) > len(hosts.mappings) else hosts
        extra = show_mapping(more.mappings[min(len(ours.mappings), len(hosts.mappings))])
        return f"a mapping of process {who}", extra if more is ours else "none", extra if more is hosts else "none"
    return None if ours.pages == hosts.pages else _compare_pages(who, ours.pages, hosts.pages)


def _compare_pages(who: int, ours: dict[int, int], hosts: dict[int, int]) -> Difference:
    vaddr = min(vaddr for vaddr in ours.keys() | hosts.keys() if ours.get(vaddr) != hosts.get(vaddr))
    mine, theirs = show_page(ours.get(vaddr, 0)), show_page(hosts.get(vaddr, 0))
    return f"the page at {vaddr:#x} of process {who}", mine, theirs


def is_of_accessed_bits(difference: Difference) -> bool:
    """Return whether a difference is only in what comes from the accessed bits of entries."""
    return difference[0].startswith((_ACCESSED, f"rollup {_ACCESSED}"))


def may_be_of_writeback(difference: Difference) -> bool:
    """Return whether a difference may come from pages that were written to their file meanwhile.

    They are clean then, and the next store faults. Source: Linux v6.8 mm/page-writeback.c:folio_clear_dirty_for_io().
    """
    name, mine, theirs = difference
    if "kpageflags" in name:
        return set(mine.split()) ^ set(theirs.split()) == {"DIRTY"}
    return name == "min_flt" or _number_in(name) in _OF_DIRTY_PAGES


def may_be_of_migration(difference: Difference) -> bool:
    """Return whether a difference may come from a page that the host has moved to another frame meanwhile.

    It has an entry like swap's and is on no list for a moment, and it is dirty then. Where it was is a free frame, if
    pagemap was read before and kpageflags after it. Its new entry is soft-dirty if the old one was dirty. Hosts make
    room for huge pages so (vm.compaction_proactiveness). In smaps of a newer kernel it is shared for that moment, as
    each page whose entry is not present.
    Source: Linux v6.8 mm/rmap.c:try_to_migrate_one(): dirty is now the page; mm/migrate.c:remove_migration_pte().
    Linux v6.12 fs/proc/task_mmu.c:smaps_account().
    """
    name, mine, theirs = difference
    if _number_in(name) in _OF_SHARED_PAGES:
        return int(mine) < int(theirs)
    if _number_in(name) in _OF_PRIVATE_PAGES:
        return int(mine) > int(theirs)
    words, others = set(mine.split()), set(theirs.split())
    if "kpageflags" in name:
        has_gone = others == {"none"}
        return has_gone or (others - words <= {"DIRTY"} and words - others <= {"LRU"})
    is_moved = "swapped" in others or others - words == {"soft-dirty"}
    return name.startswith("the page at") and "present" in words and is_moved


def _number_in(name: str) -> str:
    """Return the number of smaps, or of smaps_rollup, that the subject of a difference is about."""
    return name.removeprefix("rollup ").split(" ")[0]


def _compare_numbers(who: int, ours: View, hosts: View, accessed: bool) -> Difference | None:
    """Compare the numbers of smaps for each mapping, and the totals."""
    left_out = frozenset() if accessed else frozenset({_ACCESSED, f"rollup {_ACCESSED}"})
    for mine, theirs in zip(ours.mappings, hosts.mappings, strict=True):
        found = find_different_number(mine.numbers, theirs.numbers, left_out)
        if found is not None:
            return f"{found[0]} of the mapping at {mine.start:#x} of process {who}", str(found[1]), str(found[2])
    found = find_different_total(ours.totals, hosts.totals, left_out)
    return (f"{found[0]} of process {who}", str(found[1]), str(found[2])) if found is not None else None


def _key(mapping: Mapping) -> tuple[object, ...]:
    return (*mapping[:5], frozenset(mapping.flags))


def show_mapping(mapping: Mapping) -> str:
    """Return a mapping as a line for people."""
    place = f"{mapping.start:x}-{mapping.end:x} {mapping.rights} {mapping.offset:x}"
    return f"{place} {mapping.name} [{' '.join(mapping.flags)}]"


def show_page(word: int) -> str:
    """Return a page's state bits in words."""
    names = ((63, "present"), (62, "swapped"), (61, "file"), (56, "exclusive"), (55, "soft-dirty"))
    return " ".join(name for bit, name in names if word >> bit & 1) or "absent"


def _sharing(state: State) -> dict[tuple[int, int], tuple[int, int]]:
    """Name each frame by the first page that maps it."""
    first: dict[int, tuple[int, int]] = {}
    return {
        (who, vaddr): first.setdefault(frame, (who, vaddr))
        for who, view in state.views.items()
        for vaddr, frame in sorted(view.frames.items())
    }


def _compare_sharing(ours: State, hosts: State) -> Difference | None:
    mine, theirs = _sharing(ours), _sharing(hosts)
    for page in mine:
        if mine[page] != theirs.get(page):
            what = f"who shares the frame of page {page[1]:#x} of process {page[0]}"
            return what, _show_page_name(mine[page], page), _show_page_name(theirs.get(page), page)
    return None


def _compare_page_flags(ours: State, hosts: State, *, of_accesses: bool = False) -> Difference | None:
    """Compare the flags of the mapped pages' frames, as `find_different_flags` does."""
    for who, mine in ours.views.items():
        theirs = hosts.views[who].page_flags
        found = find_different_flags(mine.page_flags, theirs, of_accesses=of_accesses)
        if found is not None:
            vaddr, *words = found
            which = f"{_ACCESSED} and active in " if of_accesses else ""
            return f"{which}kpageflags of page {vaddr:#x} of process {who}", words[0], words[1]
    return None


def _show_page_name(first: tuple[int, int] | None, page: tuple[int, int]) -> str:
    if first is None or first == page:
        return "nobody before it"
    return f"page {first[1]:#x} of process {first[0]}"


def _compare_changes(ours: tuple[State, State], hosts: tuple[State, State], locked: bool) -> Difference | None:
    """Compare which pages got a new frame by an access.

    After a lock of memory Linux may copy a page that it could have kept. A processor's batch of locked pages counts as
    an owner until it is drained, which may happen at any time (mm/mlock.c:munlock_folio()).
    """
    mine, theirs = _changes(*ours), _changes(*hosts)
    if mine == theirs or (locked and mine < theirs):
        return None
    who, vaddr = min(mine ^ theirs)
    words = ("the same", "another")
    what = f"the frame of page {vaddr:#x} of process {who} after the access"
    return what, words[(who, vaddr) in mine], words[(who, vaddr) in theirs]


def _changes(before: State, after: State) -> set[tuple[int, int]]:
    return {
        (who, vaddr)
        for who, view in after.views.items()
        if who in before.views
        for vaddr, frame in view.frames.items()
        if before.views[who].frames.get(vaddr, frame) != frame
    }
