"""Protection keys in random programs: the arguments of their calls. Knows neither kernel."""

from __future__ import annotations

import random

from kerneld.referee.program import U32, U64


def random_key(rng: random.Random) -> int:
    """Return a protection key: mostly one of the first keys, which are allocated first, or an invalid one."""
    if rng.random() < 0.05:
        return rng.choice((15, 16, U32 - 1, 1 << 31))
    return rng.choice((0, 1, 1, 1, 2, 2, 3, 4, U32))


def random_pkey_alloc(rng: random.Random) -> tuple[int, int]:
    """Return the flags and the rights of a new key."""
    flags = rng.choice((1, U64)) if rng.random() < 0.04 else 0
    rights = rng.choice((4, 1 << 32)) if rng.random() < 0.04 else rng.choice((0, 0, 1, 2, 3))
    return flags, rights


def random_pkru(rng: random.Random) -> int:
    """Return a value of PKRU that nearly always opens two or three keys, fully or partly."""
    rights = [rng.choice((0, 0, 1, 2, 3)) for _ in range(4)]
    value = sum(right << 2 * key for key, right in enumerate(rights, 1)) | 0x5555_5400
    return rng.choice((0, value, value, value, 0x5555_5554, U32))
