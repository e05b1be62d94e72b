"""Protection keys: which are taken, whose memory is only executable, and what PKRU lets a program do.

Owns the rules; the map of keys is the address space's, PKRU the processor's. A key is four bits of a VMA's flags, and
of each present entry in it. Without the processor's keys every VMA has key 0, PKRU is 0, and all calls fail. Answers to
Linux v6.8 arch/x86/mm/pkeys.c, arch/x86/include/asm/pkeys.h and mmu_context.h, and mm/mprotect.c.

| who accesses memory                                                  | asks PKRU                          |
|----------------------------------------------------------------------|------------------------------------|
| a load, a store                                                      | yes, before a page is faulted in   |
| an instruction fetch                                                 | never                              |
| the kernel for the program: iovecs of its own (process_vm_readv)     | yes, as the program's own access   |
| populate: mlock, MAP_POPULATE, MADV_POPULATE_READ and _WRITE         | yes                                |
| the other side of process_vm_readv, one's own too; procfs            | never: it is another's processor   |
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.hw.processor import NR_PKEYS, PKRU_AD, PKRU_WD, pkru_allows
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_ACCESS_FLAGS, VM_EXEC, VM_PKEY_MASK, VM_PKEY_SHIFT
from shared.uapi.mman import Pkey, Prot

NO_PKEY = -1
"""For pkey_mprotect: none is given, and it is mprotect."""
_DEFAULT_PKEY = 0
_ALL_RIGHTS = (Pkey.DISABLE_ACCESS | Pkey.DISABLE_WRITE).value
_EXEC = Prot.EXEC.value


def vma_pkey(vma: Vma) -> int:
    """Return a VMA's key. Source: Linux v6.8 arch/x86/include/asm/pkeys.h:vma_pkey()."""
    return (vma.vm_flags & VM_PKEY_MASK) >> VM_PKEY_SHIFT


def vma_access_permitted(pkru: int, vma: Vma, write: bool, execute: bool = False) -> bool:
    """Tell whether PKRU lets whoever runs access data of a VMA of its own; a fetch it cannot deny.

    Source: Linux v6.8 arch/x86/include/asm/mmu_context.h:arch_vma_access_permitted().
    """
    # Written out, as each fault asks: pkru_allows(pkru, vma_pkey(vma), write), a key having two bits.
    return execute or not pkru >> (vma.vm_flags >> VM_PKEY_SHIFT - 1 & 0x1E) & (PKRU_AD | PKRU_WD if write else PKRU_AD)


def pkey_alloc(mm: MmStruct, flags: int, rights: int) -> int:
    """Take the lowest free key and return it; PKRU says from now on what `rights`, PKEY_DISABLE_ bits, say of it.

    Raises SysError(EINVAL) for flags, which there are none of, or unknown rights, SysError(ENOSPC) where no key is
    left. Without the processor's keys the first call is EINVAL and takes key 0, as PKRU cannot be set and the key not
    be given back; those behind it find none left.
    Source: Linux v6.8 mm/mprotect.c:SYSCALL_DEFINE2(pkey_alloc), arch/x86/kernel/fpu/xstate.c:
    arch_set_user_pkey_access().
    """
    if flags or rights & ~_ALL_RIGHTS:
        raise SysError(errno.EINVAL)
    pkey = _mm_pkey_alloc(mm)
    if pkey is None:
        raise SysError(errno.ENOSPC)
    if not mm.frames.processor.ospke:
        raise SysError(errno.EINVAL)
    _set_user_pkey_access(mm, pkey, rights)
    return pkey


def pkey_free(mm: MmStruct, pkey: int) -> None:
    """Give a key back. Memory that has it keeps it, and PKRU stays as it is.

    Raises SysError(EINVAL) for a key that is not taken, or is the one of executable memory.
    Source: Linux v6.8 mm/mprotect.c:SYSCALL_DEFINE1(pkey_free).
    """
    if not mm_pkey_is_allocated(mm, pkey):
        raise SysError(errno.EINVAL)
    mm.pkey_allocation_map &= ~(1 << pkey)


def mm_pkey_is_allocated(mm: MmStruct, pkey: int) -> bool:
    """Tell whether a program may name a key: it is taken, and not that of memory which is only executable.

    Source: Linux v6.8 arch/x86/include/asm/pkeys.h:mm_pkey_is_allocated().
    """
    if not 0 <= pkey < _max_pkey(mm) or pkey == mm.execute_only_pkey:
        return False
    return mm.pkey_allocation_map >> pkey & 1 != 0


def _max_pkey(mm: MmStruct) -> int:
    return NR_PKEYS if mm.frames.processor.ospke else 1


def _mm_pkey_alloc(mm: MmStruct) -> int | None:
    """Take the lowest free key; None where all are taken. Source: arch/x86/include/asm/pkeys.h:mm_pkey_alloc()."""
    for pkey in range(_max_pkey(mm)):
        if not mm.pkey_allocation_map >> pkey & 1:
            mm.pkey_allocation_map |= 1 << pkey
            return pkey
    return None


def _set_user_pkey_access(mm: MmStruct, pkey: int, rights: int) -> None:
    bits = PKRU_AD if rights & Pkey.DISABLE_ACCESS else 0
    mm.frames.processor.set_pkru_bits(pkey, bits | (PKRU_WD if rights & Pkey.DISABLE_WRITE else 0))


def execute_only_pkey(mm: MmStruct) -> int:
    """Return the key of memory that is only executable, with PKRU denying its data; NO_PKEY where none is left.

    The first time it is taken like any other; after that PKRU is looked at, as the program may have set it.
    Source: Linux v6.8 arch/x86/mm/pkeys.c:__execute_only_pkey(), arch/x86/include/asm/pkeys.h:execute_only_pkey().
    """
    processor = mm.frames.processor
    if not processor.ospke:
        return _DEFAULT_PKEY
    if mm.execute_only_pkey == NO_PKEY:
        pkey = _mm_pkey_alloc(mm)
        if pkey is None:
            return NO_PKEY
        mm.execute_only_pkey = pkey
    elif not pkru_allows(processor.pkru, mm.execute_only_pkey, False):
        return mm.execute_only_pkey
    _set_user_pkey_access(mm, mm.execute_only_pkey, Pkey.DISABLE_ACCESS.value)
    return mm.execute_only_pkey


def override_mprotect_pkey(mm: MmStruct, vma: Vma, prot: int, pkey: int) -> int:
    """Return the key that a part of a VMA gets by mprotect, or by pkey_mprotect with a key.

    A key that is given is taken as it is. Memory that becomes only executable gets the key of such, one that was and
    becomes something else loses it, and all other keeps its own.
    Source: Linux v6.8 arch/x86/mm/pkeys.c:__arch_override_mprotect_pkey().
    """
    if not mm.frames.processor.ospke:
        return _DEFAULT_PKEY
    if pkey != NO_PKEY:
        return pkey
    if prot == _EXEC:
        pkey = execute_only_pkey(mm)
        if pkey > 0:
            return pkey
    elif vma.vm_flags & VM_ACCESS_FLAGS == VM_EXEC and vma_pkey(vma) == mm.execute_only_pkey:
        return _DEFAULT_PKEY
    return vma_pkey(vma)
