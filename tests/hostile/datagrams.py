"""Hostile datagrams from a seed: requests that nearly make sense, broken ones, and raw bytes.

Knows docs/abi.md's records and which kind of value each argument is; where a value is drawn from makes the difference:
addresses that mmap has answered, sizes near every limit, one another's pids, frames of the open table, tokens. Owns
nothing but what it has learnt from answers.
"""

from __future__ import annotations

import random
import signal
import struct
from collections.abc import Callable
from typing import NamedTuple

from shared import wire
from shared.uapi.mman import Madv, Map
from shared.uapi.signals import Disposition
from shared.uapi.syscalls import ABI_VERSION, Nr

PAGE = 4096
ARENA = 0x10_0000_0000
ARENA_PAGES = 48
U64 = (1 << 64) - 1
MOST_BYTES = 400_000
"""Longer than a datagram may be; a client's own socket sends hardly more."""
EDGES = (
    *(0, 1, 2, 7, 8, 4095, 4096, 4097, 65_535, 65_536, 65_537, (1 << 21) - 1, 1 << 21, (1 << 31) - 1, 1 << 31),
    *((1 << 32) - 1, 1 << 32, (1 << 47) - 2 * PAGE, (1 << 47) - PAGE, (1 << 47) - 1, 1 << 47, 1 << 48, 1 << 52),
    *((1 << 63) - 1, 1 << 63, U64 - PAGE + 1, U64 - 1, U64),
)
PROC_NAMES = (
    *("maps", "smaps", "smaps_rollup", "pagemap", "status", "stat", "statm", "comm", "cmdline", "maps/x", "", "fd"),
    *("task", "mem", "..", "./maps", "exe"),
)
PROC_FILES = (
    *("meminfo", "vmstat", "buddyinfo", "kpagecount", "kpageflags", "kerneld/status", "kerneld/tasks", "kerneld"),
    *("", "/", "../etc/passwd", "self", "\0", "0/maps", "-1/maps", "99999999999999999999/maps", "meminfo/x"),
)
ADVICE = tuple(int(advice) for advice in Madv)
WEIGHTS: dict[Nr, float] = {
    Nr.MMAP: 10,
    Nr.TOUCH: 8,
    Nr.STORE: 6,
    Nr.LOAD: 5,
    Nr.MADVISE: 6,
    Nr.MUNMAP: 5,
    Nr.MPROTECT: 5,
}
WEIGHTS |= {Nr.MREMAP: 5, Nr.BRK: 3, Nr.EXIT: 0.2, Nr.EXIT_GROUP: 0.1, Nr.EXECVE: 0.6, Nr.ATTACH: 0.3, Nr.CLONE: 0.7}
WEIGHTS |= {Nr.SETUID: 0.1, Nr.PROCREAD: 1.5, Nr.RAM: 0.3, Nr.MLOCKALL: 0.3, Nr.PKEY_MPROTECT: 2, Nr.WRPKRU: 0.5}
NUMBERS = tuple(Nr)
NUMBER_WEIGHTS = [WEIGHTS.get(nr, 1.0) for nr in NUMBERS]
SHAPES: dict[Nr, str] = {
    # a address, l length, p protection, f mmap flags, o offset, P pid, m small number, e edge, v advice, x frame
    # number, t token, r mremap flags, b break, V abi version, c access, T tid, E real memory of the opener, k PKRU
    Nr.MMAP: "alpfmo",
    Nr.MPROTECT: "alp",
    Nr.MUNMAP: "al",
    Nr.BRK: "b",
    Nr.RT_SIGACTION: "mm",
    Nr.MREMAP: "allra",
    Nr.MSYNC: "alm",
    Nr.MINCORE: "ale",
    Nr.MADVISE: "alv",
    Nr.EXECVE: "eee",
    Nr.EXIT: "e",
    Nr.EXIT_GROUP: "e",
    Nr.SETUID: "m",
    Nr.MLOCK: "al",
    Nr.MUNLOCK: "al",
    Nr.MLOCKALL: "m",
    Nr.PRLIMIT64: "Pmmm",
    Nr.PROCESS_VM_READV: "PemEmm",
    Nr.PROCESS_VM_WRITEV: "PemEmm",
    Nr.MLOCK2: "alm",
    Nr.PROCESS_MADVISE: "Pemvm",
    Nr.SHADOWPT_OPEN: "Pem",
    Nr.SHADOWPT_PAGE_CONTENTS: "xe",
    Nr.ATTACH: "VTt",
    Nr.LOAD: "al",
    Nr.STORE: "al",
    Nr.TOUCH: "alc",
    Nr.PROCREAD: "om",
    Nr.PROCWRITE: "mm",
    Nr.RAM: "P",
    Nr.PKEY_MPROTECT: "alpm",
    Nr.PKEY_ALLOC: "mm",
    Nr.PKEY_FREE: "m",
    Nr.WRPKRU: "k",
    Nr.USERFAULTFD: "m",
    Nr.IOCTL: "mme",
}


class Hostile(NamedTuple):
    """A datagram, how many descriptors go with it, and the requests that it was made of, as far as they are known."""

    data: bytes
    nr_fds: int
    requests: tuple[wire.Request, ...]


class Writer:
    """One source of hostile datagrams."""

    def __init__(self, seed: int, pids: Callable[[], list[int]], entries: int = 0) -> None:
        """`pids` says who is there; `entries` is untouched memory of the real process, for shadowpt_open."""
        self._random = random.Random(seed)
        self._pids = pids
        self._entries = entries
        self._addresses = [ARENA]
        self._tokens = [0]
        self._pfns = [1]
        self._last = b""
        self._kinds: dict[str, Callable[[], int]] = {
            "a": self._address,
            "l": self._length,
            "p": lambda: self._random.choice((0, 1, 3, 3, 3, 3, 5, 7, 2, 4, self._bits(32))),
            "f": self._map_flags,
            "o": lambda: self._random.choice((0, 0, 0, 1, 8, PAGE, self._random.randrange(64) * PAGE, self._edge())),
            "P": self._pid,
            "m": lambda: self._random.choice((0, 1, 1, 2, 3, 4, 7, 9, 11, 16, 1024, PAGE, self._edge())),
            "e": self._edge,
            "v": lambda: self._random.choice((*ADVICE, *ADVICE, self._bits(8), self._edge())),
            "x": lambda: self._random.choice((*self._pfns, self._random.randrange(4096), self._edge())),
            "t": lambda: self._random.choice((0, 0, *self._tokens, self._bits(62))),
            "r": lambda: self._random.choice((0, 1, 1, 3, 3, 7, 5, self._bits(6), self._bits(64))),
            "b": lambda: self._random.choice((0, self._addresses[-1], 0x5555_5555_9000 + self._length(), self._edge())),
            "V": lambda: ABI_VERSION if self._random.random() < 0.9 else self._edge(),
            "c": lambda: self._random.choice((0, 1, 1, 2, 3, self._edge())),
            "T": lambda: self._random.choice((0, 0, 0, self._pid(), self._edge())),
            "k": lambda: self._random.choice((0, 0, 0, 0x5555_5554, 0x5555_5500, self._bits(32), self._edge())),
            "E": lambda: self._random.choice((self._entries, self._edge())),
        }

    # Values

    def _bits(self, count: int) -> int:
        return self._random.getrandbits(count)

    def _edge(self) -> int:
        value = self._random.choice(EDGES)
        return value if self._random.random() < 0.8 else value + self._random.randint(-9, 9) & U64

    def _address(self) -> int:
        chance = self._random.random()
        if chance < 0.6:
            return ARENA + self._random.randrange(ARENA_PAGES) * PAGE
        if chance < 0.85:
            return self._random.choice(self._addresses) + self._random.choice((0, 0, 0, PAGE, 1, 4095)) & U64
        return self._edge() if chance < 0.97 else self._bits(64)

    def _length(self) -> int:
        chance = self._random.random()
        if chance < 0.75:
            return self._random.randint(1, 12) * PAGE
        return self._random.randint(0, 3 * PAGE) if chance < 0.9 else self._edge()

    def _map_flags(self) -> int:
        flags = int(self._random.choice((Map.PRIVATE, Map.PRIVATE, Map.SHARED)))
        if self._random.random() < 0.7:
            flags |= int(Map.ANONYMOUS)
        for flag in (Map.FIXED, Map.FIXED, Map.POPULATE, Map.GROWSDOWN, Map.NORESERVE, Map.LOCKED):
            if self._random.random() < 0.3:
                flags |= int(flag)
        return flags ^ (1 << self._bits(5)) if self._random.random() < 0.08 else flags

    def _pid(self) -> int:
        return self._random.choice((0, 1, *self._pids(), *self._pids(), self._edge()))

    # Requests

    def request(self, nr: int | None = None) -> wire.Request:
        """Return a request of a known number, its arguments of the right kinds or nearly so."""
        if nr is None:
            nr = self._random.choices(NUMBERS, NUMBER_WEIGHTS)[0] if self._random.random() < 0.98 else self._bits(32)
        args = [self._kinds[kind]() for kind in SHAPES[Nr(nr)]] if nr in SHAPES else [self._edge()] * 2
        args += [0] * (6 - len(args))
        if self._random.random() < 0.04:
            args[self._random.randrange(6)] = self._bits(64)
        data = self._inline(nr, args)
        return wire.Request(nr, tuple(args), data)  # type: ignore[arg-type]

    def _inline(self, nr: int, args: list[int]) -> bytes:
        if self._random.random() < 0.05:
            return self._random.randbytes(self._random.choice((0, 1, 15, 16, 24, 63, 4096)))
        match nr:
            case Nr.STORE:
                if args[1] <= wire.MAX_INLINE:
                    return b"\xa5" * args[1]
            case Nr.PROCREAD:
                return self._proc_path().encode()
            case Nr.SHADOWPT_OPEN:
                start = self._address()
                end = start + self._length() & U64
                return struct.pack("<QQQ", start, end, self._kinds["E"]())
            case Nr.PRLIMIT64:
                return struct.pack("<QQ", self._edge(), self._edge()) if args[2] else b""
            case Nr.PROCESS_VM_READV | Nr.PROCESS_VM_WRITEV:
                args[2], args[4] = self._random.randint(0, 3), self._random.randint(0, 3)
                return self._iovecs(args[2] + args[4])
            case Nr.PROCESS_MADVISE:
                args[2] = self._random.randint(0, 3)
                return self._iovecs(args[2])
            case Nr.EXECVE:
                words = [b"a" * self._random.choice((1, 9, 4096)) for _ in range(self._random.randint(0, 4))]
                return b"".join(word + b"\0" for word in words) + b"\0" * self._random.randint(0, 2)
        return b""

    def _iovecs(self, count: int) -> bytes:
        return b"".join(struct.pack("<QQ", self._address(), self._length()) for _ in range(count))

    def _proc_path(self) -> str:
        if self._random.random() < 0.4:
            return self._random.choice(PROC_FILES)
        who = self._random.choice(("self", "thread-self", str(self._pid())))
        return f"{who}/{self._random.choice(PROC_NAMES)}"

    # Datagrams

    def attach(self) -> Hostile:
        """Return what a connection may begin with: nearly always an attach that can be good."""
        if self._random.random() < 0.1:
            return self.datagram()
        tokens = [0] * 3 + self._tokens
        requests = [wire.Request(Nr.ATTACH, (ABI_VERSION, 0, self._random.choice(tokens), 0, 0, 0))]
        if self._random.random() < 0.8:
            # Who catches what a bad address raises lives long enough to do harm.
            caught = int(Disposition.CAUGHT)
            requests += [
                wire.Request(Nr.RT_SIGACTION, (signo, caught, 0, 0, 0, 0)) for signo in (signal.SIGSEGV, signal.SIGBUS)
            ]
        return Hostile(b"".join(wire.pack_request(*request) for request in requests), 0, tuple(requests))

    def datagram(self) -> Hostile:
        """Return the next datagram: mostly a batch of one to six, at times broken, raw or very long."""
        chance = self._random.random()
        if chance < 0.03:
            return Hostile(self._random.randbytes(self._random.choice((0, 1, 55, 56, 57, 112, 300, 5000))), 0, ())
        if chance < 0.003 + 0.03:
            requests = (self.request(Nr.GETPID),) * self._random.choice((2340, 2341))
        else:
            requests = tuple(self.request() for _ in range(self._random.choice((1, 1, 1, 2, 3, 6))))
        data = b"".join(wire.pack_request(*request) for request in requests)
        self._last = data
        nr_fds = min(self._random.choice((0, 0, 1, 1, 2, len(requests))), wire.MAX_FDS)
        if self._random.random() < 0.001:
            nr_fds = wire.MAX_FDS
        if self._random.random() < 0.12:
            return Hostile(self._mutated(data), nr_fds, ())
        return Hostile(data, nr_fds, requests)

    def _mutated(self, data: bytes) -> bytes:
        raw = bytearray(data)
        for _ in range(self._random.randint(1, 4)):
            at = self._random.randrange(len(raw)) if raw else 0
            match self._random.randrange(6):
                case 0 if raw:
                    raw[at] ^= 1 << self._random.randrange(8)
                case 1 if raw:
                    raw[at] = self._random.choice((0, 1, 0x7F, 0x80, 0xFF))
                case 2:
                    del raw[at:]
                case 3:
                    raw[at:at] = self._random.randbytes(self._random.randint(1, 64))
                case 4:
                    raw += self._last[: self._random.randint(0, len(self._last))]
                case 5 if len(raw) >= 4:
                    struct.pack_into("<I", raw, 0, self._random.choice((0, 55, 56, len(raw), len(raw) + 1, 0xFFFFFFFF)))
        return bytes(raw[:MOST_BYTES])

    def learn(self, requests: tuple[wire.Request, ...], replies: list[wire.Reply]) -> None:
        """Note the addresses and tokens that answers gave."""
        for request, reply in zip(requests, replies, strict=False):
            if reply.ret > 0 and request.nr in (Nr.MMAP, Nr.MREMAP, Nr.BRK):
                self._addresses = [*self._addresses[-7:], reply.ret]
            elif reply.ret > 0 and request.nr == Nr.CLONE:
                self._tokens = [*self._tokens[-3:], reply.ret]
            elif request.nr == Nr.PROCREAD and reply.ret >= 8 and request.data.endswith(b"pagemap"):
                pfns = [entry & (1 << 55) - 1 for (entry,) in struct.iter_unpack("<Q", reply.data[: reply.ret & ~7])]
                self._pfns = [1, *[pfn for pfn in pfns if pfn][:4]]
