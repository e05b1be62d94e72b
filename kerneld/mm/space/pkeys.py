"""Protection keys: which keys are allocated, which key execute-only memory has, and which accesses PKRU allows.

Owns the rules; the map of keys is the address space's, PKRU the processor's. A key is four bits of a VMA's flags, and
of each present entry in it. Without the processor's keys every VMA has key 0, PKRU is 0, and all calls fail. Answers to
Linux v6.8 arch/x86/mm/pkeys.c, arch/x86/include/asm/pkeys.h and mmu_context.h, and mm/mprotect.c.

| access to memory                                                     | checks PKRU                        |
|----------------------------------------------------------------------|------------------------------------|
| a load, a store                                                      | yes, before a page is faulted in   |
| an instruction fetch                                                 | never                              |
| the kernel for the program: its own iovecs (process_vm_readv)        | yes, as the program's own access   |
| populate: mlock, MAP_POPULATE, MADV_POPULATE_READ and _WRITE         | yes                                |
| the remote side of process_vm_readv, also of itself; procfs          | never: PKRU is another processor's |
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
"""The key argument of mprotect: no key is given."""
_DEFAULT_PKEY = 0
_ALL_RIGHTS = (Pkey.DISABLE_ACCESS | Pkey.DISABLE_WRITE).value
_EXEC = Prot.EXEC.value


def vma_pkey(vma: Vma) -> int:
    """Return a VMA's key. Source: Linux v6.8 arch/x86/include/asm/pkeys.h:vma_pkey()."""
    return (vma.vm_flags & VM_PKEY_MASK) >> VM_PKEY_SHIFT


def vma_access_permitted(pkru: int, vma: Vma, write: bool, execute: bool = False) -> bool:
    """Return whether PKRU lets the running program access data of its own VMA; PKRU never denies a fetch.

    Source: Linux v6.8 arch/x86/include/asm/mmu_context.h:arch_vma_access_permitted().
    """
    # This is pkru_allows(pkru, vma_pkey(vma), write), inlined because each fault asks; a key has two bits in PKRU.
    return execute or not pkru >> (vma.vm_flags >> VM_PKEY_SHIFT - 1 & 0x1E) & (PKRU_AD | PKRU_WD if write else PKRU_AD)


def pkey_alloc(mm: MmStruct, flags: int, rights: int) -> int:
    """Allocate the lowest free key and return it; PKRU gets `rights` (PKEY_DISABLE_ bits) for this key.

    Raises SysError(EINVAL) for any flags or unknown rights, SysError(ENOSPC) if no key is left. Without the
    processor's keys the first call fails with EINVAL and still takes key 0, since PKRU cannot be set and the key
    cannot be given back; the next calls find no key left.
    Source: Linux v6.8 mm/mprotect.c:SYSCALL_DEFINE2(pkey_alloc), arch/x86/kernel/fpu/xstate.c:
    arch_set_user_pkey_access().
    """
    if flags or rights & ~_ALL_RIGHTS:
        raise SysError(errno.EINVAL)
    pkey = _mm_pkey_alloc(mm)
    if pkey is None:
        raise SysError(errno.ENOSPC)
    if not mm.has_pkeys:
        raise SysError(errno.EINVAL)
    _set_user_pkey_access(mm, pkey, rights)
    return pkey


def pkey_free(mm: MmStruct, pkey: int) -> None:
    """Free a key. Memory with this key keeps it, and PKRU does not change.

    Raises SysError(EINVAL) for a key that is not allocated, and for the key of execute-only memory.
    Source: Linux v6.8 mm/mprotect.c:SYSCALL_DEFINE1(pkey_free).
    """
    if not mm_pkey_is_allocated(mm, pkey):
        raise SysError(errno.EINVAL)
    mm.pkey_allocation_map &= ~(1 << pkey)


def mm_pkey_is_allocated(mm: MmStruct, pkey: int) -> bool:
    """Return whether a program may name a key: it is allocated, and is not the key of execute-only memory.

    Source: Linux v6.8 arch/x86/include/asm/pkeys.h:mm_pkey_is_allocated().
    """
    if not 0 <= pkey < _max_pkey(mm) or pkey == mm.execute_only_pkey:
        return False
    return mm.pkey_allocation_map >> pkey & 1 != 0


def _max_pkey(mm: MmStruct) -> int:
    return NR_PKEYS if mm.has_pkeys else 1


def _mm_pkey_alloc(mm: MmStruct) -> int | None:
    """Allocate the lowest free key; None if all are allocated. Source: arch/x86/include/asm/pkeys.h:mm_pkey_alloc()."""
    for pkey in range(_max_pkey(mm)):
        if not mm.pkey_allocation_map >> pkey & 1:
            mm.pkey_allocation_map |= 1 << pkey
            return pkey
    return None


def _set_user_pkey_access(mm: MmStruct, pkey: int, rights: int) -> None:
    bits = PKRU_AD if rights & Pkey.DISABLE_ACCESS else 0
    mm.frames.processor.set_pkru_bits(pkey, bits | (PKRU_WD if rights & Pkey.DISABLE_WRITE else 0))


def execute_only_pkey(mm: MmStruct) -> int:
    """Return the key of execute-only memory, and make PKRU deny access to its data; NO_PKEY if no key is left.

    The first call allocates the key; later calls check PKRU, because the program may have changed it.
    Source: Linux v6.8 arch/x86/mm/pkeys.c:__execute_only_pkey(), arch/x86/include/asm/pkeys.h:execute_only_pkey().
    """
    processor = mm.frames.processor
    if not mm.has_pkeys:
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

    A given key is returned. Memory that becomes execute-only gets the key of execute-only memory (if any is left),
    memory that was execute-only and gets other rights gets key 0, and all other memory keeps its key.
    Source: Linux v6.8 arch/x86/mm/pkeys.c:__arch_override_mprotect_pkey().
    """
    if not mm.has_pkeys:
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
