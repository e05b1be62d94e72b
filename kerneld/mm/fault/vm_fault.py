"""Results of a fault: 0 is a minor fault that was settled. Linux v6.8 include/linux/mm_types.h: vm_fault_reason."""

VM_FAULT_OOM, VM_FAULT_SIGBUS, VM_FAULT_MAJOR, VM_FAULT_SIGSEGV, VM_FAULT_RETRY = 0x1, 0x2, 0x4, 0x40, 0x400
VM_FAULT_ERROR = VM_FAULT_OOM | VM_FAULT_SIGBUS | VM_FAULT_SIGSEGV
