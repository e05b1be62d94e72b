"""Runs one operation on one side: resolves its addresses from the side's earlier results, then makes the call.

Knows both sides only by their common interface, `Side`. An operation on the memory of the host's runner itself is
skipped on both sides; every other operation runs.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Generator, Iterable
from typing import Any, Generic, Protocol, TypeVar

from kerneld.referee import userfaultfds
from kerneld.referee.five_levels import is_out_of_reach
from kerneld.referee.layout import Layout
from kerneld.referee.limits import LIMITED, RELATIVE_LIMITS
from kerneld.referee.machine import IN_MEMORY, NOT_EXACT, PROMISED, Counters
from kerneld.referee.mode import Mode
from kerneld.referee.outcome import Outcome, StateOf
from kerneld.referee.overlap import HasMappings, length_without_overlap
from kerneld.referee.program import FILES, U32, U64, At, Base, Op, Program, default_slots
from kerneld.referee.segments import Segments
from kerneld.referee.userfaultfds import Userfaultfds
from shared.uapi.mman import Madv, Map
from shared.uapi.page import PMD_SIZE, TASK_SIZE, page_align
from shared.uapi.syscalls import Access, Nr

_FIXED, _NOREPLACE = Map.FIXED.value, Map.FIXED_NOREPLACE.value
_STACK_ROOM = (0x7FFF_F800_0000, 1 << 47)
"""The stack and the range into which it may grow, above the mmap area."""
_WHOLE_SHARE = 8
PASSED_OVER = Outcome(0, data=b"passed over")
_OF_A_RANGE = frozenset(
    {
        "munmap", "mprotect", "remap_file_pages", "mbind", "pkey_mprotect", "madvise", "mlock", "munlock", "mlock2",
        "mincore", "msync", "uffdio_register", "uffdio_unregister", "uffdio_zeropage",
    }
)  # fmt: skip
"""Calls whose first two arguments are an address and a length."""
_TOGETHER = frozenset(
    {"mmap", "munmap", "mprotect", "madvise", "mremap", "mlock", "mlock2", "munlock", "msync", "store", "touch"}
)
"""Operations that make one call each, without bytes in the answer."""


V = TypeVar("V", bound=HasMappings)
V_co = TypeVar("V_co", bound=HasMappings, covariant=True)


class Side(Protocol[V_co]):
    """One of the two kernels, while a program runs. `view` is the memory of a process, as the side shows it."""

    def fork(self, who: int, child: int) -> Outcome: ...
    def exit(self, who: int) -> Outcome: ...
    def truncate(self, file: int, length: int, *, writes_cut: bool = False) -> Outcome: ...
    def add_seals(self, file: int, seals: int) -> Outcome: ...
    def prlimit(self, who: int, peer: int, resource: int, limits: bytes) -> Outcome: ...
    def used_at_start(self, resource: int) -> int: ...
    def process_madvise(self, who: int, peer: int, iovec: bytes, advice: int, flags: int) -> Outcome: ...
    def clear_refs(self, who: int, peer: int, text: bytes) -> Outcome: ...
    def call(self, who: int, nr: int, args: tuple[int, ...], file: int = -1, data: bytes = b"") -> Outcome: ...
    def load(self, who: int, vaddr: int, length: int) -> Outcome: ...
    def store(self, who: int, vaddr: int, length: int, data: bytes) -> Outcome: ...
    def touch(self, who: int, vaddr: int, length: int, access: int) -> Outcome: ...
    def wrpkru(self, who: int, value: int) -> Outcome: ...
    def view(self, who: int, *, whole: bool = True) -> V_co: ...
    def pid(self, who: int) -> int: ...
    def together(self, who: int, calls: Iterable[Callable[[], Outcome]]) -> list[Outcome]: ...
    def counters(self) -> Counters: ...
    def userfaultfd(self, who: int, flags: int) -> Outcome: ...
    def ioctl(self, who: int, fd: int, command: int, record: bytes) -> Outcome: ...


class WholeSide(Side[V_co], Protocol[V_co]):
    """A side on which programs begin and end."""

    def prepare_files(self, numbers: set[int]) -> None: ...
    def start(self) -> None: ...
    def end(self) -> None: ...


def play(
    side: WholeSide[V],
    layout: Layout,
    program: Program,
    mode: Mode = Mode.PLAIN,
    *,
    pages_out: bool = True,
    counts: bool = False,
    everything: bool = True,
) -> Generator[StateOf[V]]:
    """Yield the state after each operation of a program. The program ends when the iterator is closed.

    With `counts` a state has the changes of the whole machine's counters. Without `everything` most states have only a
    part of the memory: see `is_whole`.
    """
    side.prepare_files({op.file for op in program if op.file >= 0})
    side.start()
    execution = Execution(side, layout, mode, pages_out=pages_out, counts=counts)
    try:
        has_memory_files = any(FILES[op.file].inode in IN_MEMORY for op in program if op.file >= 0)
        for step, op in enumerate(program):
            state = execution.run(op, whole=everything or is_whole(program, step))
            if has_memory_files:
                state.counters.pop(PROMISED, None)
            yield state
    finally:
        execution.remove_segments()
        side.end()


def is_whole(program: Program, step: int) -> bool:
    """Return whether a state has all of the memory even if not every state has: each eighth, and the last.

    With hundreds of mappings a whole view takes a tenth of a second. The others have the mappings without flags and
    numbers, the state of the pages without their frames, and the totals that smaps is not needed for.
    """
    return step % _WHOLE_SHARE == _WHOLE_SHARE - 1 or step == len(program) - 1


class Execution(Generic[V]):
    """A running program on one side."""

    def __init__(
        self,
        side: Side[V],
        layout: Layout,
        mode: Mode = Mode.PLAIN,
        *,
        pages_out: bool = True,
        counts: bool = False,
    ) -> None:
        """Without `pages_out` MADV_PAGEOUT is skipped. `counts`: see `play`."""
        self._counts = counts
        self._side = side
        self._mode = mode
        self._pages_out = pages_out
        self._forbidden = (*layout.taken, _STACK_ROOM)
        self._task_size = layout.task_size
        self._brk = layout.brk
        self._slots = default_slots()
        self._segments = Segments()
        self._userfaultfds = Userfaultfds(side)
        self._views: dict[int, V] = {}
        self.alive = [0]

    def run(self, op: Op, *, whole: bool = True) -> StateOf[V]:
        """Run one operation and return its outcome and the state after it, with all of the memory or a part."""
        counts = self._counts and op.name not in NOT_EXACT
        before = self._side.counters() if counts else None
        outcome = self._run(op) if op.times == 1 else self._run_each(op)
        counters = self._side.counters().since(before) if before is not None else {}
        if op.slot >= 0 and outcome.ret > 0:
            self._slots[op.slot] = outcome.ret
        self._views = {who: self._side.view(who, whole=whole) for who in self.alive}
        return StateOf(outcome, self._views, counters)

    def _run_each(self, op: Op) -> Outcome:
        """Run an operation as often as it says."""
        calls = [functools.partial(self._run, op.nth(number)) for number in range(op.times)]
        is_simple = op.name in _TOGETHER and op.who in self.alive
        return Outcome.of_all(self._side.together(op.who, calls) if is_simple else [call() for call in calls])

    def _run(self, op: Op) -> Outcome:
        if op.who not in self.alive:
            return PASSED_OVER
        args = tuple(self._resolve(arg) if isinstance(arg, At) else arg & U64 for arg in op.args)
        if self._hits_runner(op, args) or self._is_left_out(op, args):
            return PASSED_OVER
        if self._task_size > TASK_SIZE and self._is_out_of_reach(op.name, args):
            return PASSED_OVER
        special = _SPECIAL.get(op.name)
        if special is not None:
            return special(self, op, args)
        return self._side.call(op.who, Nr[op.name.upper()], args)

    def _resolve(self, at: At) -> int:
        bases = {Base.ZERO: 0, Base.BRK: self._brk}
        base = self._slots[at.base] if at.base >= 0 else bases[Base(at.base)]
        return base + at.offset & U64

    def _hits_runner(self, op: Op, args: tuple[int, ...]) -> bool:
        """Return whether a call would change the memory of the host's runner.

        A call that fails before that does not.
        """
        name = op.name
        ranges: list[tuple[int, int]] = []
        if name == "pkey_free" and not args[0] & U32:
            # Key 0 protects the runner's memory. If it were freed, its next owner could deny it by PKRU.
            return True
        if name in _OF_A_RANGE:
            ranges = [args[:2]]  # type: ignore[list-item]
        elif name == "mremap":
            # A length that wraps becomes 0. A call with length 0 still affects the mapping at the address.
            old, new = (page_align(length) % (1 << 64) for length in args[1:3])
            ranges = [(args[0], max(old, new, 1)), (args[4], max(new, 1))]
        elif name == "mmap" and args[3] & (_FIXED | _NOREPLACE) == _FIXED:
            ranges = [args[:2]]  # type: ignore[list-item]
            if op.file >= 0 and FILES[op.file].inode == "huge":
                # MADV_COLLAPSE affects whole huge pages.
                ranges.append((args[0], args[1] + PMD_SIZE - 1 & -PMD_SIZE))
        elif name in ("load", "store", "touch"):
            # A processor makes no access that wraps around.
            ranges = [args[:2]]  # type: ignore[list-item]
            if args[0] + args[1] > U64:
                return True
        elif name == "shmat":
            ranges = [self._segments.place(*args[:2])] if args[1] else []
        elif name == "uffdio_copy":
            ranges = [args[:2], (args[2], args[1])]  # type: ignore[list-item]
        elif name == "process_madvise":
            ranges = [args[1:3]]  # type: ignore[list-item]
        elif name.startswith("process_vm"):
            ranges = [args[1:3], args[3:5]]  # type: ignore[list-item]
        fails_past_end = name in ("munmap", "mmap")
        for start, length in ranges:
            end = start + length + 4095
            if end > U64 or (fails_past_end and start + length > self._task_size):
                continue
            if any(start < high and low < end for low, high in self._forbidden):
                return True
        return False

    def _is_left_out(self, op: Op, args: tuple[int, ...]) -> bool:
        """Return whether an operation needs something that kerneld does not have, or not in this mode."""
        if op.name not in ("madvise", "process_madvise"):
            return False
        if Madv.PAGEOUT in op.args and not self._pages_out:
            return True
        if Madv.COLLAPSE not in op.args or self._mode is not Mode.HUGE:
            return False
        # Shared memory and files have no huge pages in kerneld.
        who, start, length = (op.who, *args[:2]) if op.name == "madvise" else args[:3]
        view = self._views.get(who)
        mappings = view.mappings if view is not None else ()
        return any(
            mapping.start < start + length and start < mapping.end and mapping.name not in ("", "[heap]")
            for mapping in mappings
        )

    def _is_out_of_reach(self, name: str, args: tuple[int, ...]) -> bool:
        return is_out_of_reach(name, self._segments.place(*args[:2]) if name == "shmat" else args)

    def _shm(self, op: Op, args: tuple[int, ...]) -> Outcome:
        return getattr(self._segments, op.name)(functools.partial(self._side.call, op.who), *args)  # type: ignore[no-any-return]

    def _uffdio(self, op: Op, args: tuple[int, ...]) -> Outcome:
        return getattr(self._userfaultfds, op.name)(op.who, *args)  # type: ignore[no-any-return]

    def remove_segments(self) -> None:
        """Remove the segments of System V shared memory that the program has left."""
        self._segments.remove_all(functools.partial(self._side.call, self.alive[0]))

    def _mmap(self, op: Op, args: tuple[int, ...]) -> Outcome:
        file = -1 if args[3] & Map.ANONYMOUS.value else op.file
        return self._side.call(op.who, Nr.MMAP, (*args[:4], U64, args[4]), file)

    def _process_vm(self, op: Op, args: tuple[int, ...]) -> Outcome:
        peer, local, local_len, remote, remote_len, flags = args
        most = length_without_overlap(self._views, (op.who, local), (peer, remote), min(local_len, remote_len))
        local_len, remote_len = min(local_len, most), min(remote_len, most)
        iovecs = struct.pack("<4Q", local, local_len, remote, remote_len)
        return self._side.call(op.who, Nr[op.name.upper()], (self._side.pid(peer), 0, 1, 0, 1, flags), data=iovecs)

    def _process_madvise(self, op: Op, args: tuple[int, ...]) -> Outcome:
        peer, start, length, advice, flags = args
        return self._side.process_madvise(op.who, peer, struct.pack("<2Q", start, length), advice, flags)

    def _clear_refs(self, op: Op, args: tuple[int, ...]) -> Outcome:
        return self._side.clear_refs(op.who, args[0], op.data) if args[0] in self.alive else PASSED_OVER

    def _prlimit64(self, op: Op, args: tuple[int, ...]) -> Outcome:
        """Set a limit. It is relative to the memory at the start of the program, in which the sides may differ.

        A program that is being shrunk may ask for what no other one does.
        """
        peer, resource, beside, soft, hard = args
        if resource not in (RELATIVE_LIMITS if beside else LIMITED):
            return PASSED_OVER
        if beside:
            used = self._side.used_at_start(resource)
            soft, hard = (min(limit + used, U64) for limit in (soft, hard))
        return self._side.prlimit(op.who, peer, resource, struct.pack("<2Q", soft, hard))

    def _fork(self, op: Op, args: tuple[int, ...]) -> Outcome:
        child = args[0]
        if child in self.alive:
            return PASSED_OVER
        outcome = self._side.fork(op.who, child)
        if outcome.ret == 0:
            self.alive.append(child)
        return outcome

    def _exit(self, op: Op, _args: tuple[int, ...]) -> Outcome:
        if len(self.alive) == 1:
            return PASSED_OVER
        self.alive.remove(op.who)
        self._userfaultfds.forget(op.who)
        return self._side.exit(op.who)

    def _ftruncate(self, op: Op, args: tuple[int, ...]) -> Outcome:
        return self._side.truncate(op.file, args[0] - (args[0] >> 63 << 64), writes_cut=len(args) > 1)

    def _add_seals(self, op: Op, args: tuple[int, ...]) -> Outcome:
        return self._side.add_seals(op.file, args[0])

    def _load(self, op: Op, args: tuple[int, ...]) -> Outcome:
        return self._side.load(op.who, args[0], args[1])

    def _store(self, op: Op, args: tuple[int, ...]) -> Outcome:
        return self._side.store(op.who, args[0], args[1], op.data)

    def _touch(self, op: Op, args: tuple[int, ...]) -> Outcome:
        # An instruction of two bytes at an even address lies in one page.
        start = args[0] & ~1 if args[2] == Access.FETCH else args[0]
        return self._side.touch(op.who, start, args[1], args[2])

    def _wrpkru(self, op: Op, args: tuple[int, ...]) -> Outcome:
        # Key 0 protects the runner's memory, so it stays open.
        return self._side.wrpkru(op.who, args[0] & U32 & ~3)


_SPECIAL: dict[str, Callable[[Execution[Any], Op, tuple[int, ...]], Outcome]] = {
    "mmap": Execution._mmap,
    "shmget": Execution._shm,
    "shmat": Execution._shm,
    "shmctl": Execution._shm,
    **dict.fromkeys(userfaultfds.CALLS, Execution._uffdio),
    "process_vm_readv": Execution._process_vm,
    "process_vm_writev": Execution._process_vm,
    "process_madvise": Execution._process_madvise,
    "clear_refs": Execution._clear_refs,
    "prlimit64": Execution._prlimit64,
    "fork": Execution._fork,
    "exit": Execution._exit,
    "ftruncate": Execution._ftruncate,
    "add_seals": Execution._add_seals,
    "load": Execution._load,
    "store": Execution._store,
    "touch": Execution._touch,
    "wrpkru": Execution._wrpkru,
}
