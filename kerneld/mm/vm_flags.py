"""VM_* flags of a VMA: Linux v6.8 include/linux/mm.h.

They are plain integers, not an IntFlag: every page fault tests them several times, and the `&` of an IntFlag costs ten
times that of an int. The user-visible PROT_* and MAP_* are IntFlags in `shared.uapi.mman`; `calc_vm_flags` is the
bridge.
"""

from __future__ import annotations

from shared.uapi.mman import Map

VM_NONE = 0
VM_READ = 0x1
VM_WRITE = 0x2
VM_EXEC = 0x4
VM_SHARED = 0x8
VM_MAYREAD = 0x10
VM_MAYWRITE = 0x20
VM_MAYEXEC = 0x40
VM_MAYSHARE = 0x80
VM_GROWSDOWN = 0x100
VM_UFFD_MISSING = 0x200
VM_PFNMAP = 0x400
VM_LOCKED = 0x2000
VM_SEQ_READ = 0x8000
VM_RAND_READ = 0x1_0000
VM_DONTCOPY = 0x2_0000
VM_DONTEXPAND = 0x4_0000
VM_LOCKONFAULT = 0x8_0000
VM_ACCOUNT = 0x10_0000
VM_NORESERVE = 0x20_0000
VM_HUGETLB = 0x40_0000
VM_SYNC = 0x80_0000
VM_WIPEONFORK = 0x200_0000
VM_DONTDUMP = 0x400_0000
VM_SOFTDIRTY = 0x800_0000
VM_HUGEPAGE = 0x2000_0000
VM_NOHUGEPAGE = 0x4000_0000
VM_MERGEABLE = 0x8000_0000
VM_PKEY_SHIFT = 32
VM_PKEY_MASK = 0xF << VM_PKEY_SHIFT
"""The protection key (Linux: VM_PKEY_BIT0 to 3, ARCH_VM_PKEY_FLAGS)."""

VM_ACCESS_FLAGS = VM_READ | VM_WRITE | VM_EXEC
VM_STACK = VM_GROWSDOWN
VM_STACK_FLAGS = VM_STACK | VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | VM_ACCOUNT
VM_DATA_DEFAULT_FLAGS = VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
"""The flags of the heap. Data is not executable without READ_IMPLIES_EXEC, for which the caller of brk gives VM_EXEC
(Linux: VM_DATA_FLAGS_TSK_EXEC)."""
VM_LOCKED_MASK = VM_LOCKED | VM_LOCKONFAULT
VM_UFFD_FLAGS = VM_UFFD_MISSING
"""The flags of a VMA that a userfaultfd watches (Linux: __VM_UFFD_FLAGS)."""

_PROT_BITS = VM_READ | VM_WRITE | VM_EXEC
_MAP_GROWSDOWN, _MAP_LOCKED = Map.GROWSDOWN.value, Map.LOCKED.value
_MAP_SYNC, _MAP_STACK = Map.SYNC.value, Map.STACK.value


def is_shared_maywrite(vm_flags: int) -> bool:
    """Return whether a store to the mapping can reach its file (Linux: is_shared_maywrite())."""
    return vm_flags & (VM_SHARED | VM_MAYWRITE) == VM_SHARED | VM_MAYWRITE


def calc_vm_prot_bits(prot: int, pkey: int) -> int:
    """Return VM_READ, VM_WRITE and VM_EXEC for PROT_* (the values are equal), with the VM_PKEY bits of a key.

    Source: Linux v6.8 include/linux/mman.h:calc_vm_prot_bits(), arch/x86/include/asm/mman.h.
    """
    return prot & _PROT_BITS | pkey << VM_PKEY_SHIFT


def calc_vm_flag_bits(flags: int) -> int:
    """Return the VM_* flags for MAP_GROWSDOWN, MAP_LOCKED and MAP_SYNC. MAP_STACK means VM_NOHUGEPAGE.

    Source: Linux v6.8 include/linux/mman.h:calc_vm_flag_bits().
    """
    bits = 0
    if flags & _MAP_GROWSDOWN:
        bits |= VM_GROWSDOWN
    if flags & _MAP_LOCKED:
        bits |= VM_LOCKED
    if flags & _MAP_SYNC:
        bits |= VM_SYNC
    if flags & _MAP_STACK:
        bits |= VM_NOHUGEPAGE
    return bits
