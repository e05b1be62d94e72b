/* Structures and numbers that the stub shares with kerneld (docs/abi.md), and with Linux. */
#pragma once
#include "sys.h"

/* The records of docs/abi.md. */
struct request { u32 size, nr; u64 args[6]; };
struct reply { u32 size; int32_t signo; int64_t ret; };
struct siginfo_wire { int32_t si_code, fatal; u64 si_addr; u32 si_pkey, pkru; };
struct tlb_record { u32 size, count; u64 generation; };
struct tlb_op { u64 start, length_prot, offset; };

enum {
	KD_ATTACH = 0x1000, KD_PROCREAD = 0x1004, KD_CLONE = 0x1006, KD_NATIVE = 0x1009, KD_FAULT = 0x100a, KD_FILE_SYNC = 0x100b,
	KD_RDPKRU = 0x1007, KD_WRPKRU = 0x1008, KD_CONNECT = 0x100c, KD_CREDS = 0x100d, KD_RING = 0x100e, KD_RING_BELL = 0x100f, KD_MEM_RW = 0x1010, KD_PROCWRITE = 0x1011, CLONE_SHARE = 1, CLONE_CANCEL = 2, CLONE_LEFT = 4,
	FAULT_FOR_KERNEL = 1, FAULT_FUTEX = 2, FAULT_MAY_WAIT = 4, FAULT_WAITS = 1, NATIVE_THREAD = 1, NATIVE_PKEYS = 2, EXEC_COUNTED = 1, EXEC_STRINGS_FD = 2, EXEC_ENTRY = 4, EXEC_AUXV = 8, EXEC_CHECK = 16, EXEC_INTERPRETER_FD = 32,
};

/* Linux's of rseq(2), as it was at first. */
struct rseq { u32 cpu_id_start, cpu_id; u64 section; u32 flags, unused[3]; } __attribute__((aligned(32)));

#define XSAVE_HEADER 512	/* its first word says which registers are not in their initial state */

/* Linux's structures on the stack of a signal's handler. */
struct kernel_sigaction { u64 handler, flags, restorer, mask; };
struct stack { u64 sp; int32_t flags, pad; u64 size; };
struct sigcontext {
	u64 r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags;
	uint16_t cs, gs, fs, ss;
	u64 err, trapno, oldmask, cr2, fpstate, reserved[8];
};
struct ucontext { u64 flags, link; struct stack stack; struct sigcontext mc; u64 sigmask; };
struct siginfo { int32_t signo, err, code, pad; u64 fields[14]; };
#define si_addr_of(info) ((info)->fields[0])
#define si_pkey_of(info) ((info)->fields[2])

#define SS_ONSTACK 1
#define SS_DISABLE 2
#define SS_AUTODISARM (int)(1U << 31)
#define SA_NOCLDSTOP 1UL
#define SA_NOCLDWAIT 2UL
#define SA_SIGINFO 4UL
#define SA_RESTORER 0x04000000UL
#define SA_ONSTACK 0x08000000UL
#define SA_RESTART 0x10000000UL
#define SA_NODEFER 0x40000000UL
#define SA_RESETHAND 0x80000000UL
#define BIT(signo) (1UL << ((signo) - 1))
