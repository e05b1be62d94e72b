"""Which neighbouring pages one mapping of the host can grant together: a pure function."""

from __future__ import annotations

from kerneld.tlb.rights import tlb_word
from shared.uapi.page import PAGE_SIZE


def runs_to_grant(entries: list[int], known: list[int], own: int) -> list[tuple[int, int, int]]:
    """Return which of some neighbouring pages may be granted, as runs: the first page, their number, its TLB word.

    The frames of a run lie one after another, and its pages have equal rights: one mapping of the host does. `entries`
    are those of the pages, `known` what has been granted of them. Page `own` is granted in any case. What has been
    granted is left out: if it has more rights now, the program will ask for them.
    """
    runs: list[tuple[int, int, int]] = []
    first, count, begun, last = 0, 0, 0, 0
    for at, entry in enumerate(entries):
        if not entry or (known[at] and at != own):
            last = 0
        elif last and entry == last + PAGE_SIZE:
            count += 1
            last = entry
        else:
            if count:
                runs.append((first, count, begun))
            begun = tlb_word(entry)
            first, count, last = at, 1 if begun else 0, entry if begun else 0
    if count:
        runs.append((first, count, begun))
    return runs
