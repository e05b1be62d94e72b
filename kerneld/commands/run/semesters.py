"""The semesters: which numbers mean which call of the shadow page table, and where a program's header is.

Owns the one table of them; the library that takes the calls is compiled with a semester's `define`.
"""

from __future__ import annotations

from typing import NamedTuple

_CALLS = ("shadowpt_open", "shadowpt_close", "shadowpt_start", "shadowpt_stop", "shadowpt_page_contents")


class Semester(NamedTuple):
    """One --abi."""

    first: int
    """The number of the first call; the others follow it."""
    calls: tuple[str, ...]
    define: int
    """KERNELD_ABI, when the library is compiled."""
    include: str
    """The directory of its linux/shadowpt.h, below shared/include."""

    @property
    def numbers(self) -> range:
        """The numbers of its calls."""
        return range(self.first, self.first + len(self.calls))

    def name(self, number: int) -> str:
        """Return the name of the call with one of its numbers."""
        return self.calls[number - self.first]


SEMESTERS = {
    "f24": Semester(462, _CALLS, 24, ""),
    "f23": Semester(451, ("shadowpt_enable", "shadowpt_disable", "shadowpt_page_contents"), 23, "f23"),
    "f25": Semester(467, _CALLS[:4], 25, "f25"),
    "f25-part1": Semester(467, _CALLS[:2], 251, "f25-part1"),
}


def find_call(number: int) -> tuple[str, str] | None:
    """Return the semester that a number belongs to, and the name of its call; None for any other number."""
    for abi, semester in SEMESTERS.items():
        if number in semester.numbers:
            return abi, semester.name(number)
    return None
