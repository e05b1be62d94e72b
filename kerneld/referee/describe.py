"""Programs and divergences in words, for people."""

from __future__ import annotations

import signal
from collections.abc import Callable
from enum import IntFlag

from kerneld.referee.match import Divergence
from kerneld.referee.outcome import Outcome, State
from kerneld.referee.program import FILES, At, Base, Op, Program
from shared.uapi.mman import MAP_TYPE, Madv, Map, Mcl, Mremap, Ms, Pkey, Prot
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE

_SLOT_NAMES = "abcdef"
_FLAGS: dict[tuple[str, int], type[IntFlag]] = {
    ("mmap", 2): Prot, ("mprotect", 2): Prot, ("pkey_mprotect", 2): Prot, ("pkey_alloc", 1): Pkey,
    ("mremap", 3): Mremap, ("msync", 2): Ms, ("mlockall", 0): Mcl,
}  # fmt: skip
_ACCESSES = ("read", "write", "fetch")


def describe_program(program: Program) -> list[str]:
    """Return one line for each operation: its process, the slot of its result, its name and arguments."""
    return [f"{step:3} process {op.who}: {describe_op(op)}" for step, op in enumerate(program)]


def describe_op(op: Op) -> str:
    """Return an operation as a line of a program."""
    args = [_describe_arg(op, position) for position in range(len(op.args))]
    if op.file >= 0:
        args.append(FILES[op.file].name)
    if op.data:
        args.append(op.data.hex())
    result = f"{_SLOT_NAMES[op.slot]} = " if op.slot >= 0 else ""
    repeated = f", {op.times} times, each {_describe_length(op.stride)} further" if op.times > 1 else ""
    return f"{result}{op.name}({', '.join(args)}){repeated}"


def _describe_arg(op: Op, position: int) -> str:
    arg = op.args[position]
    if isinstance(arg, At):
        return _describe_place(arg)
    flags = _FLAGS.get((op.name, position))
    if flags is not None:
        return _describe_flags(flags, arg)
    if op.name == "mmap" and position == 3:
        return _describe_map_flags(arg)
    if op.name == "madvise" and position == 2:
        return Madv(arg).name if arg in list(Madv) else str(arg)
    if op.name == "ftruncate" and position == 1:
        return "and the page that is cut is written"
    if op.name == "touch" and position == 2:
        return _ACCESSES[arg]
    if op.name == "process_madvise" and position == 3:
        return Madv(arg).name if arg in list(Madv) else str(arg)
    if op.name in ("fork",) or (op.name.startswith("process_") and position == 0):
        return f"process {arg}"
    if op.name == "wrpkru":
        return f"{arg:#x}"
    if op.name in ("pkey_mprotect", "pkey_free") and position == len(op.args) - 1:
        return str(arg - (1 << 32) if arg >> 31 == 1 else arg)
    return _describe_length(arg)


def _describe_place(at: At) -> str:
    if at.base == Base.ZERO:
        return f"{at.offset:#x}"
    name = "brk" if at.base == Base.BRK else _SLOT_NAMES[at.base]
    if not at.offset:
        return name
    return f"{name} {'-' if at.offset < 0 else '+'} {_describe_length(abs(at.offset))}"


def _describe_length(length: int) -> str:
    pages, rest = length >> PAGE_SHIFT, length % PAGE_SIZE
    if not 0 < pages <= 1 << 20:
        return hex(length) if length > PAGE_SIZE else str(length)
    return f"{pages}p" + (f"+{rest}" if rest else "")


def _describe_flags(flags: type[IntFlag], value: int) -> str:
    known = [flag for flag in flags if flag.value and value & flag.value]
    rest = value
    for flag in known:
        rest &= ~flag.value
    words = [str(flag.name) for flag in known]
    return "|".join([*words, hex(rest)] if rest else words or ["0"])


def _describe_map_flags(value: int) -> str:
    kind = value & MAP_TYPE
    name = next((flag.name for flag in (Map.SHARED, Map.PRIVATE, Map.SHARED_VALIDATE) if flag.value == kind), None)
    rest = _describe_flags(Map, value & ~MAP_TYPE)
    return f"{name or f'type {kind}'}" + ("" if rest == "0" else f"|{rest}")


def describe_divergence(program: Program, divergence: Divergence) -> list[str]:
    """Return the program up to the divergence, the difference, and both results side by side."""
    lines = describe_program(program[: divergence.step + 1])
    lines += ["", *describe_difference(divergence), ""]
    return lines + _side_by_side(divergence.ours, divergence.hosts)


def describe_difference(divergence: Divergence) -> list[str]:
    """Return what differs, and both values."""
    what, mine, theirs = divergence.difference
    return [f"differs: {what}", f"  kerneld  {mine}", f"  host     {theirs}"]


def _side_by_side(ours: State, hosts: State) -> list[str]:
    rows = [("kerneld", "host"), (describe_outcome(ours.outcome), describe_outcome(hosts.outcome))]
    for who in sorted(ours.views):
        mine, theirs = (_describe_view(state, who) for state in (ours, hosts))
        longest = max(len(mine), len(theirs))
        rows.append((f"process {who}:", f"process {who}:"))
        rows += zip(mine + [""] * (longest - len(mine)), theirs + [""] * (longest - len(theirs)), strict=True)
    width = max(len(mine) for mine, _ in rows)
    return [f"  {mine:<{width}}  {'|' if mine == theirs else '!'} {theirs}".rstrip() for mine, theirs in rows]


def describe_outcome(outcome: Outcome) -> str:
    """Return a result in words."""
    if outcome.signo:
        name = signal.Signals(outcome.signo).name
        key = f" of key {outcome.si_pkey}" if outcome.si_pkey else ""
        return f"{name} code {outcome.si_code}{key} at {outcome.si_addr:#x}, after {outcome.ret}"
    show: Callable[[int], str] = hex if outcome.ret > PAGE_SIZE else str
    faults = f", {outcome.min_flt} minor faults" if outcome.min_flt is not None else ""
    return f"returned {show(outcome.ret)}{faults}"


def _describe_view(state: State, who: int) -> list[str]:
    view = state.views.get(who)
    if view is None:
        return []
    lines = []
    for mapping in view.mappings:
        pages = "".join(_PAGE_LETTERS[view.pages.get(page, 0) >> 56 & 0xE1] for page in _first_pages(mapping[:2]))
        place = f"{mapping.start:x}-{mapping.end:x} {mapping.rights}"
        lines.append(f"{place} {mapping.name.split(' ')[0]} {pages}".rstrip())
    return lines


def _first_pages(bounds: tuple[int, ...]) -> range:
    return range(bounds[0], min(bounds[1], bounds[0] + 16 * PAGE_SIZE), PAGE_SIZE)


class _Letters(dict[int, str]):
    def __missing__(self, key: int) -> str:
        return "?"


_PAGE_LETTERS = _Letters({0: ".", 0x80: "a", 0x81: "A", 0xA0: "f", 0xA1: "F", 0x40: "s"})
"""A page's state in one letter: absent, anonymous or a file's (capital: mapped once), swapped."""
