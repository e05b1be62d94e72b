"""Random programs: turns a seed into a list of operations. Most operations are valid; many are slightly invalid.

Owns the weights. Sizes, offsets and flags are chosen so that they split, join, cross ends of mappings, wrap, or are
refused. A program must not fill the real machine's memory: a program with very long mappings locks and populates
nothing. A few programs are of another kind: see `wide` and `deep`.
"""

from __future__ import annotations

import random
from typing import ClassVar

from kerneld.referee import keys
from kerneld.referee.deep import DeepGenerator
from kerneld.referee.limits import LIMITED, RELATIVE_LIMITS
from kerneld.referee.program import FILES, HARMLESS, MAX_PROCESSES, NR_SLOTS, U32, U64, At, Base, Op, Program
from kerneld.referee.segments import random_shmat, random_shmctl, random_shmget
from kerneld.referee.userfaultfds import random_copy, random_mode, random_register
from kerneld.referee.wide import WideGenerator
from shared.uapi.fcntl import F_SEAL_FUTURE_WRITE, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE
from shared.uapi.mman import Madv, Map, Mcl, Mremap, Ms, Pr

PAGE = 4096
_ADVICE = [advice.value for advice in Madv if advice not in (Madv.HWPOISON, Madv.SOFT_OFFLINE)]
"""HWPOISON and SOFT_OFFLINE take real memory from the host."""
_REMOTE_ADVICE = (Madv.COLD.value, Madv.PAGEOUT.value, Madv.WILLNEED.value, Madv.COLLAPSE.value)
_BAD_ADVICE = (5, 7, 26, 99, 200, U64)
_WRAPPING = (1 << 47, (1 << 47) - PAGE, 1 << 63, U64 - PAGE + 1, U64 - PAGE, U64)
_VERY_LONG = (1 << 45, 256 << 20, (64 << 20) + PAGE)
_ODD_PLACES = (0, 0x1000, 0xF000, 0x1_0000, 0x4000_0000, 0x7FFF_FFFF_E000, 1 << 47, 1 << 60, U64 - PAGE + 1, U64)
_BYTES = (0, 0, 0, 0, 0, 1, 100, 2048, 4090, 4095)
_PROTS = (3, 3, 3, 3, 1, 1, 0, 7, 5, 2, 4)
_ODD_PROTS = (8, 0x10, 0x0100_0000, 0x0200_0000, 0x0300_0000, 0x0100_0003, 0x100, U64)
_WEIGHTS: dict[str, float] = {
    "mmap": 18, "munmap": 7, "mprotect": 10, "mremap": 9, "brk": 4, "madvise": 10, "mlock": 2, "munlock": 2,
    "mlock2": 2, "mlockall": 0.5, "munlockall": 0.5, "msync": 3, "mincore": 3, "process_vm_readv": 2,
    "process_vm_writev": 2, "process_madvise": 1.5, "prlimit64": 1.5, "ftruncate": 2.5, "add_seals": 1,
    "load": 10, "store": 14, "touch": 8, "fork": 3, "exit": 1, "pkey_mprotect": 4, "pkey_alloc": 1.5, "pkey_free": 0.7,
    "wrpkru": 2, "prctl": 0.7, "remap_file_pages": 5, "mbind": 2, "shmget": 1, "shmat": 2.5, "shmdt": 1,
    "shmctl": 0.7, "uffdio_register": 2, "uffdio_unregister": 0.7, "uffdio_copy": 3, "uffdio_zeropage": 1.5,
}  # fmt: skip
_FILE_WEIGHTS = (2, 3, 1, 1, 1, 1, 1, 1, 2, 1, 1.5, 0.5, 0.5, 0.3, 0.3)
"""The weight of each of FILES."""
_SEALS = (
    F_SEAL_FUTURE_WRITE, F_SEAL_FUTURE_WRITE, F_SEAL_WRITE, F_SEAL_WRITE, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL,
    F_SEAL_SHRINK | F_SEAL_GROW, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE, 0x40, 0,
)  # fmt: skip
"""0x40 is none."""
_LIMIT_PAGES = (0, 0, 1, 3, 8, 20, 60, 200, 2000, 20_000)
_POLICIES = (0, 1, 4, 4)
"""MPOL_DEFAULT, PREFERRED (without nodes: local) and LOCAL."""
_LOCKING = ("mlock", "mlock2", "mlockall")
_UNLOCKED = ("remap_file_pages",)
"""Only programs that lock nothing have it: it unmaps a page and maps it again, and whether this page is locked then
depends on a processor's batch. Source: Linux v6.8 mm/mlock.c:mlock_folio_batch(), __mlock_folio()."""
_WIDE_SHARE, _DEEP_SHARE = 0.08, 0.05


def generate(seed: int | str, nr_ops: int) -> Program:
    """Return the program of a seed: the same in every run and on every machine."""
    rng = random.Random(seed)
    kind = random.Random(f"{seed} wide").random()
    if kind < _WIDE_SHARE:
        return WideGenerator(rng).program(nr_ops)
    if kind < _WIDE_SHARE + _DEEP_SHARE:
        return DeepGenerator(rng).program(nr_ops)
    return Generator(rng).program(nr_ops)


class Generator:
    """The program of one state of `rng`."""

    weights: ClassVar[dict[str, float]] = _WEIGHTS
    advice: ClassVar[list[int]] = _ADVICE

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._lengths = [0] * NR_SLOTS
        self._processes = [0]
        self._forks = 0
        self._long = rng.random() < 0.1
        self._locks = not self._long and rng.random() < 0.8
        self._files = rng.choices(range(len(FILES)), _FILE_WEIGHTS, k=2)

    def program(self, nr_ops: int) -> Program:
        """Return a program of `nr_ops` calls."""
        others = _UNLOCKED if self._locks else _LOCKING
        names = [name for name in self.weights if name not in others]
        weights = [self.weights[name] for name in names]
        ops = [self._mmap(), self._mmap()]
        while len(ops) < nr_ops:
            name = self._rng.choices(names, weights)[0]
            ops.append(getattr(self, f"_{name}")())
        return tuple(ops)

    def _chance(self, probability: float) -> bool:
        return self._rng.random() < probability

    def _who(self) -> int:
        return self._rng.choice(self._processes)

    def _length(self, nominal_pages: int = 8) -> int:
        """Return a length in bytes."""
        rng = self._rng
        if self._chance(0.03):
            return 0
        if self._chance(0.03):
            return rng.choice(_WRAPPING)
        if self._long and self._chance(0.2):
            return rng.choice(_VERY_LONG)
        pages = rng.choice((1, 1, 2, 3, 4, rng.randint(1, 2 * nominal_pages), nominal_pages))
        return pages * PAGE - (rng.choice((1, 100, PAGE - 1)) if self._chance(0.12) else 0)

    def _place(self, *, aligned: bool = True) -> tuple[At, int]:
        """Return an address and the number of pages of its slot from there on."""
        rng = self._rng
        if self._chance(0.04):
            return At(Base.ZERO, rng.choice(_ODD_PLACES)), 4
        if self._chance(0.06):
            return At(Base.BRK, rng.randint(-1, 8) * PAGE), 4
        slot = rng.randrange(NR_SLOTS)
        pages = self._lengths[slot] // PAGE
        if self._chance(0.12):
            page = rng.choice((-2, -1, pages, pages + 1, pages - 1))
        else:
            page = rng.randrange(max(pages, 1)) if self._chance(0.6) else 0
        offset = page * PAGE
        if not aligned or self._chance(0.02):
            offset += rng.choice(_BYTES)
        return At(slot, offset), max(pages - page, 1)

    def _range(self, *, aligned: bool = True) -> tuple[At, int]:
        place, behind = self._place(aligned=aligned)
        if self._chance(0.3):
            return place, behind * PAGE
        return place, self._length(behind)

    def _mmap(self) -> Op:
        rng = self._rng
        length = self._length(8)
        flags = rng.choices((2, 1, 3, 0, 4), (12, 6, 1, 0.2, 0.1))[0]
        file = -1
        if self._chance(0.6):
            flags |= Map.ANONYMOUS.value
        else:
            file = rng.choice(self._files) if self._chance(0.97) else -1
        place = At(Base.ZERO, 0)
        if self._chance(0.5):
            place, behind = self._place()
            length = behind * PAGE if self._chance(0.2) else length
            flags |= rng.choices((Map.FIXED.value, Map.FIXED_NOREPLACE.value, 0, 0x10_0010), (10, 3, 3, 1))[0]
        flags |= self._odd_map_flags()
        if flags & Map.HUGETLB.value or (file >= 0 and FILES[file].inode == "huge"):
            # Without a reservation Linux would make the mapping, and kerneld has no huge pages for it.
            flags &= ~Map.NORESERVE.value
        slot = rng.randrange(NR_SLOTS)
        offset = rng.choice((0, 0, 0, 1, 2, 5, 6, 7)) * PAGE if file >= 0 else rng.choice((0, 0, PAGE))
        if self._chance(0.03):
            offset = rng.choice((1, 100, U64 - PAGE + 1, U64 - 4 * PAGE + 1, 1 << 63, (1 << 63) - PAGE))
        if length < 1 << 40:
            self._lengths[slot] = length
        prot = rng.choice(_ODD_PROTS) if self._chance(0.02) else rng.choice(_PROTS)
        return Op(self._who(), "mmap", (place, length, prot, flags, offset), slot=slot, file=file)

    def _odd_map_flags(self) -> int:
        rng = self._rng
        flags = 0
        if not self._long:
            flags |= Map.POPULATE.value if self._chance(0.12) else 0
        if self._locks:
            flags |= Map.LOCKED.value if self._chance(0.04) else 0
        for flag, probability in (
            (Map.NORESERVE, 0.08), (Map.GROWSDOWN, 0.06), (Map.STACK, 0.04), (Map.BIT32, 0.03), (Map.NONBLOCK, 0.02),
            (Map.DENYWRITE, 0.02), (Map.EXECUTABLE, 0.02), (Map.UNINITIALIZED, 0.02), (Map.SYNC, 0.02),
            (Map.HUGETLB, 0.01),
        ):  # fmt: skip
            if self._chance(probability):
                flags |= flag.value
        if self._chance(0.02):
            flags |= rng.choice((0x80, 1 << 21, 1 << 30, 1 << 31, 1 << 40))
        return flags

    def _munmap(self) -> Op:
        return Op(self._who(), "munmap", self._range())

    def _mprotect(self) -> Op:
        prot = self._rng.choice(_ODD_PROTS) if self._chance(0.06) else self._rng.choice(_PROTS)
        return Op(self._who(), "mprotect", (*self._range(), prot))

    def _pkey_mprotect(self) -> Op:
        prot = self._rng.choice(_ODD_PROTS) if self._chance(0.03) else self._rng.choice(_PROTS)
        return Op(self._who(), "pkey_mprotect", (*self._range(), prot, keys.random_key(self._rng)))

    def _pkey_alloc(self) -> Op:
        return Op(self._who(), "pkey_alloc", keys.random_pkey_alloc(self._rng))

    def _pkey_free(self) -> Op:
        return Op(self._who(), "pkey_free", (keys.random_key(self._rng),))

    def _wrpkru(self) -> Op:
        return Op(self._who(), "wrpkru", (keys.random_pkru(self._rng),))

    def _mremap(self) -> Op:
        rng = self._rng
        place, old = self._range()
        new = old if self._chance(0.2) else self._length(8)
        flags = rng.choice((0, 1, 1, 3, 3, 5, 7))
        if self._chance(0.04):
            flags = rng.choice((2, 4, 6, 8, 9, U64))
        if flags & Mremap.DONTUNMAP.value and self._chance(0.9):
            new = old
        target = self._place()[0]
        slot = rng.randrange(NR_SLOTS) if self._chance(0.8) else -1
        if slot >= 0 and new < 1 << 40:
            self._lengths[slot] = new
        return Op(self._who(), "mremap", (place, old, new, flags, target), slot=slot)

    def _brk(self) -> Op:
        rng = self._rng
        offset = rng.randint(0, 12) * PAGE + rng.choice((0, 0, 1, 100))
        if self._chance(0.1):
            offset = rng.choice((-1, -PAGE, -(1 << 40), 1 << 45, 1 << 62))
        return Op(self._who(), "brk", (At(Base.BRK, offset),))

    def _madvise(self) -> Op:
        rng = self._rng
        advice = rng.choice(_BAD_ADVICE) if self._chance(0.04) else rng.choice(self.advice)
        place, length = self._range()
        if self._long and advice in (Madv.POPULATE_READ, Madv.POPULATE_WRITE):
            length = min(length, 16 * PAGE)
        return Op(self._who(), "madvise", (place, length, advice))

    def _prctl(self) -> Op:
        """Make all memory mergeable, mostly, or none, or ask; one argument may be one too many."""
        rng = self._rng
        option, merge_any = rng.choice(
            ((Pr.SET_MEMORY_MERGE, 1),) * 3 + ((Pr.SET_MEMORY_MERGE, 0), (Pr.GET_MEMORY_MERGE, 0))
        )
        unused = [1 if self._chance(0.05) else 0 for _ in range(3)]
        return Op(self._who(), "prctl", (option.value, rng.choice((merge_any, merge_any, merge_any << 32)), *unused))

    def _remap_file_pages(self) -> Op:
        """Mostly of a whole page of a mapping, to a page of its file; one argument may be wrong."""
        rng = self._rng
        prot = rng.choice((1, 3)) if self._chance(0.04) else 0
        pgoff = rng.choice((1 << 52, U64)) if self._chance(0.04) else rng.randrange(8)
        flags = rng.choice((0, 0, 0, Map.NONBLOCK.value, Map.POPULATE.value, U64))
        return Op(self._who(), "remap_file_pages", (*self._range(), prot, pgoff, flags))

    def _shmget(self) -> Op:
        return Op(self._who(), "shmget", random_shmget(self._rng, self._length()))

    def _shmat(self) -> Op:
        slot = self._rng.randrange(NR_SLOTS)
        place, _ = self._place(aligned=False)
        self._lengths[slot] = 8 * PAGE
        return Op(self._who(), "shmat", random_shmat(self._rng, place), slot=slot)

    def _shmdt(self) -> Op:
        return Op(self._who(), "shmdt", (self._place()[0],))

    def _shmctl(self) -> Op:
        return Op(self._who(), "shmctl", random_shmctl(self._rng))

    def _uffdio_register(self) -> Op:
        return Op(self._who(), "uffdio_register", random_register(self._rng, *self._range()))

    def _uffdio_unregister(self) -> Op:
        return Op(self._who(), "uffdio_unregister", self._range())

    def _uffdio_copy(self) -> Op:
        source = self._place(aligned=False)[0]
        return Op(self._who(), "uffdio_copy", random_copy(self._rng, *self._range(), source))

    def _uffdio_zeropage(self) -> Op:
        return Op(self._who(), "uffdio_zeropage", (*self._range(), random_mode(self._rng)))

    def _mbind(self) -> Op:
        """Give a range the policy of its task, or the local node's, mostly; without a mask of nodes.

        Never move pages: kerneld moves none.
        """
        rng = self._rng
        mode = rng.choice(_POLICIES) if self._chance(0.9) else rng.choice((2, 3, 5, 99, 1 << 14, 1 << 15 | 4))
        flags = rng.choice((0, 0, 0, 1, 1, 8, U32))
        return Op(self._who(), "mbind", (*self._range(), mode, 0, rng.choice((0, 0, 0, 1, 64)), flags))

    def _mlock(self) -> Op:
        return Op(self._who(), "mlock", self._range(aligned=False))

    def _munlock(self) -> Op:
        return Op(self._who(), "munlock", self._range(aligned=False))

    def _mlock2(self) -> Op:
        flags = self._rng.choice((0, 1, 1, 1, 2, U64))
        return Op(self._who(), "mlock2", (*self._range(aligned=False), flags))

    def _mlockall(self) -> Op:
        flags = self._rng.choice((Mcl.CURRENT, Mcl.FUTURE, 3, 5, 6, 7, 0, 4, 8))
        return Op(self._who(), "mlockall", (int(flags),))

    def _munlockall(self) -> Op:
        return Op(self._who(), "munlockall")

    def _msync(self) -> Op:
        flags = self._rng.choice((Ms.SYNC, Ms.ASYNC, Ms.INVALIDATE, 6, 3, 5, 7, 0, 8))
        return Op(self._who(), "msync", (*self._range(), int(flags)))

    def _mincore(self) -> Op:
        place, length = self._range()
        if 1 << 27 < length < 1 << 46:
            length = 16 * PAGE
        return Op(self._who(), "mincore", (place, length))

    def _process_vm(self, name: str) -> Op:
        rng = self._rng
        peer = rng.choice(self._processes)
        lengths = [rng.choice((0, 8, 100, PAGE, 3 * PAGE, 5000)) for _ in range(2)]
        local, remote = self._place(aligned=False)[0], self._place(aligned=False)[0]
        flags = 1 if self._chance(0.03) else 0
        return Op(self._who(), name, (peer, local, lengths[0], remote, lengths[1], flags))

    def _process_vm_readv(self) -> Op:
        return self._process_vm("process_vm_readv")

    def _process_vm_writev(self) -> Op:
        return self._process_vm("process_vm_writev")

    def _process_madvise(self) -> Op:
        rng = self._rng
        peer = rng.choice(self._processes) if self._chance(0.95) else MAX_PROCESSES
        advice = rng.choice(_REMOTE_ADVICE) if self._chance(0.7) else rng.choice((*_ADVICE, *_BAD_ADVICE))
        place, length = self._range()
        if self._long and advice in (Madv.POPULATE_READ, Madv.POPULATE_WRITE):
            length = min(length, 16 * PAGE)
        flags = rng.choice((1, U64)) if self._chance(0.04) else 0
        return Op(self._who(), "process_madvise", (peer, place, length, advice, flags))

    def _add_seals(self) -> Op:
        rng = self._rng
        return Op(self._who(), "add_seals", (rng.choice(_SEALS),), file=rng.choice(self._files))

    def _prlimit64(self) -> Op:
        """Mostly set a limit of address space or data to some pages more than at the start; else an absolute limit."""
        rng = self._rng
        peer = self._who() if self._chance(0.97) else MAX_PROCESSES
        resource = rng.choice(LIMITED)
        soft = rng.choice(_LIMIT_PAGES) * PAGE + rng.choice((0, 0, 0, 100))
        if self._chance(0.2):
            soft = U64
        beside = int(resource in RELATIVE_LIMITS and self._chance(0.9))
        hard = rng.choices((U64, soft, max(soft - 1, 0)), (20, 1, 1))[0]
        return Op(self._who(), "prlimit64", (peer, resource, beside, soft, hard))

    def _ftruncate(self) -> Op:
        rng = self._rng
        length = rng.choice((0, 1, 2, 3, 5, 6, 6, 7, 9, 12)) * PAGE + rng.choice((0, 0, 0, 1, 100, 4095))
        if self._chance(0.05):
            length = rng.choice((U64, 1 << 63))
        return Op(self._who(), "ftruncate", (length,), file=rng.choice(self._files))

    def _access(self) -> tuple[At, int]:
        place, _ = self._place(aligned=False)
        return place, self._rng.choice((1, 4, 8, 8, 10, 100, 5000))

    def _load(self) -> Op:
        return Op(self._who(), "load", self._access())

    def _store(self) -> Op:
        data = bytes(self._rng.choices(HARMLESS, k=self._rng.choice((1, 3, 7))))
        return Op(self._who(), "store", self._access(), data=data)

    def _touch(self) -> Op:
        rng = self._rng
        place, behind = self._place()
        pages = min(rng.choice((1, 2, behind, behind + 1)), 40)
        return Op(self._who(), "touch", (place, pages * PAGE, rng.choice((0, 0, 1, 1, 1, 2))))

    def _fork(self) -> Op:
        if self._forks + 1 >= MAX_PROCESSES:
            return self._touch()
        who = self._who()
        self._forks += 1
        self._processes.append(self._forks)
        return Op(who, "fork", (self._forks,))

    def _exit(self) -> Op:
        if len(self._processes) == 1:
            return self._store()
        who = self._who()
        self._processes.remove(who)
        return Op(who, "exit")
