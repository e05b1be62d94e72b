"""The witnesses of the known differences of advice that is kept with a mapping."""

from __future__ import annotations

from kerneld.referee.program import At, Base, Op
from kerneld.referee.witness import Stage
from shared.uapi.mman import Madv, Map, Prot
from shared.uapi.page import PAGE_SIZE

_MEMORY_FILE = 0
_KPF_REFERENCED = 1 << 2


def random_access_is_use(stage: Stage) -> bool:
    """A page of a memory file is read through a mapping with MADV_RANDOM, which goes; then it is mapped by another."""
    played = stage.play(
        *(
            Op(0, "mmap", (At(Base.ZERO), PAGE_SIZE, Prot.WRITE.value, Map.SHARED.value, 0), n, _MEMORY_FILE)
            for n in (0, 1)
        ),
        Op(0, "madvise", (At(0), PAGE_SIZE, Madv.RANDOM)),
        Op(0, "load", (At(0), 1)),
        Op(0, "munmap", (At(0), PAGE_SIZE)),
        Op(0, "store", (At(1), 1), data=b"\xf5"),
    )
    return bool(played.view.page_flags[played.rets[1]] & _KPF_REFERENCED)
