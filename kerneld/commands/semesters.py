"""The semesters of the assignment: the numbers of the calls of the shadow page table, and the header.

Owns the table of semesters. The preloaded library is compiled with the `define` of a semester.
"""

from __future__ import annotations

from typing import NamedTuple

_CALLS = ("shadowpt_open", "shadowpt_close", "shadowpt_start", "shadowpt_stop", "shadowpt_page_contents")


class Semester(NamedTuple):
    """One --abi."""

    first: int
    """The number of the first call. The numbers of the others follow."""
    calls: tuple[str, ...]
    define: int
    """The value of KERNELD_ABI for the compiler."""
    include: str
    """The directory of linux/shadowpt.h, below shared/include."""

    @property
    def numbers(self) -> range:
        """The numbers of the calls of this semester."""
        return range(self.first, self.first + len(self.calls))

    def name(self, number: int) -> str:
        """Return the name of a call, by a number of this semester."""
        return self.calls[number - self.first]


SEMESTERS = {
    "f24": Semester(462, _CALLS, 24, ""),
    "f23": Semester(451, ("shadowpt_enable", "shadowpt_disable", "shadowpt_page_contents"), 23, "f23"),
    "f25": Semester(467, _CALLS[:4], 25, "f25"),
    "f25-part1": Semester(467, _CALLS[:2], 251, "f25-part1"),
}


def find_call(number: int) -> tuple[str, str] | None:
    """Return the semester of a number and the name of the call; None for a number of no semester."""
    for abi, semester in SEMESTERS.items():
        if number in semester.numbers:
            return abi, semester.name(number)
    return None
