"""What a printed page table says of the state of each page: the flags as a number, or as words, letters, columns.

A program may print the flags as it likes. So the text of each state is learned from one print, beside the table that
the kernel held then: the same state must have the same text, and another state another text. Where the text uses the
names of the flags, or a line names the columns, the names must be at the right states too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from kerneld.commands.grade.cell.reading import ADDRESS, PFN, mask_large, mask_pfn, numbers
from shared.uapi.shadowpt import Spte

Held = tuple[int, int]
"""What the table held of a page: frame number and flags."""
_WORDS = {Spte.VADDR_ALLOCATED: "alloc", Spte.VADDR_ANONYMOUS: "anon", Spte.PTE_MAPPED: "map"}
_TRUE = frozenset({"1", "y", "yes", "true", "t", "x", "on", "set", "✓"})
_FALSE = frozenset({"0", "n", "no", "false", "f", "-", "off", "unset", "✗"})
_NOTHING = re.compile(r"(0[xX])?0+|-+|n/?a|none|null|\(nil\)", re.IGNORECASE)
_CLAIM = {
    flag: re.compile(
        rf"(?P<not>un|not[ _-]*|non[ _-]*|(?<![:=] )(?<![:=])no[ _-]|!)?(?:vaddr|pte|is|spte)?_?(?<![a-z])?{word}[a-z]*"
        r"(?:\s*[:=(\[]\s*(?P<value>[a-z0-9✓✗-]+))?",
        re.IGNORECASE,
    )
    for flag, word in _WORDS.items()
}


@dataclass(slots=True)
class States:
    """How a program prints states."""

    place: tuple[bool, int] | None = None
    """Where the flags are a number; None: they are not printed as a number."""
    texts: dict[int, str] = field(default_factory=dict)
    """The text of each state, if states are not printed as a number."""
    column: int = -1
    """The word of a segment that is the frame number; -1: it has no fixed place."""
    why_not: str = ""
    """What is wrong. Empty: the states can be read."""

    @property
    def is_number(self) -> bool:
        """Whether the flags are printed as a number."""
        return self.place is not None

    def says(self, segment: str | None, pfn: int, state: int) -> bool:
        """Return whether a segment (None: the page is not printed) says this state."""
        if segment is None:
            return state == 0 and (self.is_number or self.texts.get(0, "") == "")
        if self.place is not None:
            return state in _places(segment).get(self.place, ())
        return self.texts.get(state) == _rest(segment, pfn, self.column)


def learn(found: Mapping[int, str], held: Mapping[int, Held], text: str) -> States:
    """Learn how states are printed, from the segments of a print and what the table held. `text` may name columns."""
    if not found:
        return States(why_not="no address of the range is in the text, so no line belongs to a page")
    place = _number_place(found, held)
    if place is not None:
        return States(place=place)
    column = _pfn_column(found, held)
    texts: dict[int, str] = {}
    places: dict[int, int] = {}
    for index, (pfn, state) in sorted(held.items()):
        segment = found.get(index)
        if segment is None and state:
            # That a page is missing is the business of the row of the addresses.
            continue
        rest = "" if segment is None else _rest(segment, pfn, column)
        if texts.setdefault(state, rest) != rest:
            return States(why_not=f"pages {places[state]} and {index} have the same state, {_names(state)}, and their "
                          f"texts differ: {_show(texts[state])} and {_show(rest)}")  # fmt: skip
        places.setdefault(state, index)
    for one, other in ((a, b) for a in texts for b in texts if a < b):
        if texts[one] == texts[other]:
            return States(why_not=f"{_names(one)} and {_names(other)} have the same text: {_show(texts[one])}")
    why_not = _wrong_name(texts) or _wrong_columns(texts, text)
    return States(texts=texts, column=column, why_not=why_not)


def _places(segment: str) -> dict[tuple[bool, int], frozenset[int]]:
    """Return what each number of a segment may mean, by its place: before or after the address, and counted from it.

    Numbers after the address are counted from the end of the segment too: the frame number may be left out.
    """
    before, _, after = segment.partition(ADDRESS)
    parts = {False: [one.values for one in numbers(before)], True: [one.values for one in numbers(after)]}
    places = {(is_after, at): values for is_after, part in parts.items() for at, values in enumerate(part)}
    return places | {(True, at - len(parts[True])): values for at, values in enumerate(parts[True])}


def _number_place(found: Mapping[int, str], held: Mapping[int, Held]) -> tuple[bool, int] | None:
    """Return the place at which each printed page has its flags as a number."""
    common: set[tuple[bool, int]] | None = None
    for index, (_pfn, state) in held.items():
        if index in found:
            places = {place for place, values in _places(found[index]).items() if state in values}
            common = places if common is None else common & places
    return min(common, key=lambda place: (not place[0], place[1])) if common else None


def _rest(segment: str, pfn: int, column: int) -> str:
    """Return what a segment says apart from the address, its index before it, and the frame number."""
    masked = _mask(segment, pfn)
    before, _, after = masked.partition(ADDRESS)
    # In front of the address there is often an index, or the time.
    before = re.sub(r"[0-9A-Fa-fx:.]*[0-9][0-9A-Fa-fx:.]*", "", before)
    words = after.split()
    if 0 <= column < len(words) and (PFN in words[column] or _NOTHING.search(words[column])):
        del words[column]
    return " ".join([*before.split(), *words])


def _mask(segment: str, pfn: int) -> str:
    """Return a segment without its frame number: the right one, or a wrong one, which is another row's business."""
    masked, is_there = mask_pfn(segment, pfn) if pfn else (segment, False)
    return masked if is_there else mask_large(segment)


def _pfn_column(found: Mapping[int, str], held: Mapping[int, Held]) -> int:
    """Return the word after the address that is the frame number, if it is always the same one."""
    columns = set()
    for index, (pfn, _state) in held.items():
        if pfn and index in found:
            words = _mask(found[index], pfn).partition(ADDRESS)[2].split()
            columns.add(next((at for at, word in enumerate(words) if PFN in word), -1))
    return columns.pop() if len(columns) == 1 else -1


def _claims(flag: Spte, text: str) -> bool | None:
    """Return what a text says of a flag by its name; None if it has the name in a way that says neither."""
    match = _CLAIM[flag].search(text)
    if match is None:
        return False
    value = (match.group("value") or "").lower()
    if match.group("not"):
        return False
    if value in _TRUE or value in _FALSE:
        return value in _TRUE
    return True


def _wrong_name(texts: Mapping[int, str]) -> str:
    """Return why the names of the flags are at the wrong states. Names that each state has alike say nothing."""
    for flag in Spte:
        claims = {state: _claims(flag, text) for state, text in texts.items()}
        if len(set(claims.values())) < 2:
            continue
        for state, claim in claims.items():
            if claim != bool(state & flag):
                return f"the table held {_names(state)}, and the text says {_show(texts[state])}"
    return ""


def _wrong_columns(texts: Mapping[int, str], text: str) -> str:
    """Return why the columns are not in the order in which a line of the text names them."""
    header = next((line for line in text.split("\n") if _is_header(line)), "")
    rows = {state: words for state, line in texts.items() if (words := line.split())}
    if not header or len(rows) < 3 or len({len(words) for words in rows.values()}) != 1:
        return ""
    places: dict[Spte, int] = {}
    for flag in Spte:
        for at in range(len(next(iter(rows.values())))):
            values = {bool(state & flag): set[str]() for state in rows}
            for state, words in rows.items():
                values[bool(state & flag)].add(words[at].lower())
            if len(values) == 2 and all(len(one) == 1 for one in values.values()) and values[True] != values[False]:
                places[flag] = at
    named = sorted(places, key=lambda flag: header.lower().index(_WORDS[flag]))
    if named != sorted(places, key=places.__getitem__):
        return f"the columns are not in the order of their names: {_show(header)}"
    return ""


def _is_header(line: str) -> bool:
    return all(word in line.lower() for word in _WORDS.values()) and not any(
        max(number.values) > 0xFFFF_FFFF for number in numbers(line)
    )


def _names(state: int) -> str:
    names = [word for flag, word in zip(Spte, ("allocated", "anonymous", "mapped"), strict=True) if state & flag]
    return " ".join(names) or "no flag"


def _show(text: str) -> str:
    shown = text.replace(PFN, "PFN").replace(ADDRESS, "ADDRESS").strip()
    return f"'{shown[:80]}'" if shown else "nothing"
