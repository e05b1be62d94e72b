/* Protection keys. The host's process has all of the processor's keys from its start, and kerneld decides which of them the
 * program has: a mapping of the TLB has the key of its page-table entry, and the processor itself asks PKRU.
 *
 * PKRU is the program's own, but not while its handlers' code begins, nor in the stub: there the host sets it to
 * INIT_PKRU. What the stub reads and writes for a system call is subject to the program's value, as it is in Linux.
 * kerneld has to know that value where a call or a fault depends on it. Sources: Linux v6.8 arch/x86/mm/pkeys.c,
 * arch/x86/kernel/fpu/signal.c; docs/programs.md, "Protection keys". */
#include "native.h"

#define NR_KEYS 16
#define XSTATE_PKRU 9
#define PKEY_DISABLE_ACCESS 1
#define PROT_EXEC 4
#define PROT_GROWS 0x03000000U
#define KEY_0 3U

static void wrpkru(u32 value)
{
	__asm__ volatile(".byte 0x0f, 0x01, 0xef" : : "a"(value), "c"(0), "d"(0) : "memory");
}

static void cpuid(u32 leaf, u32 sub, u32 *out)
{
	__asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(sub));
}

/* Take all of the host's keys, where there are any. They stay closed in PKRU. (`cpuid` is slow on a virtual machine.) */
void keys_start(void)
{
	u32 words[4];
	process.pkru_at = 0;
	for (int key = 1; key < NR_KEYS; key++)
		if (sys2(NR_pkey_alloc, 0, PKEY_DISABLE_ACCESS) != key)
			return;
	cpuid(0xd, XSTATE_PKRU, words);
	process.pkru_at = words[1];
}

static u64 *header_of(const struct ucontext *uc)
{
	return (u64 *)(uc->mc.fpstate + XSAVE_HEADER);
}

/* The PKRU that the interrupted code had. */
u32 pkru_of(const struct ucontext *uc)
{
	if (!process.pkru_at)
		return INIT_PKRU;
	return *header_of(uc) >> XSTATE_PKRU & 1 ? *(const u32 *)(uc->mc.fpstate + process.pkru_at) : 0;
}

void set_pkru(struct ucontext *uc, u32 value)
{
	if (!process.pkru_at)
		return;
	*header_of(uc) |= 1UL << XSTATE_PKRU;
	*(u32 *)(uc->mc.fpstate + process.pkru_at) = value;
}

/* From here to keys_close() the program's memory is read and written with the program's PKRU. The stub's own has key 0. */
void keys_open(struct thread *t)
{
	if (t->pkru != INIT_PKRU)
		wrpkru(t->pkru & ~KEY_0);
}

void keys_close(struct thread *t)
{
	if (t->pkru != INIT_PKRU)
		wrpkru(INIT_PKRU);
}

/* A call goes to kerneld that may read, write or take keys: kerneld is to know PKRU. */
void keys_before_call(struct thread *t)
{
	u64 args[6] = {t->pkru};
	if (t->pkru == t->told_pkru)
		return;
	t->told_pkru = t->pkru;
	ask(t, KD_WRPKRU, args, 0, 0, -1);
}

/* A call that has set PKRU has set kerneld's: the program gets it. */
void keys_after_call(struct thread *t, struct ucontext *uc, long nr, const u64 *args, long ret)
{
	static const u64 none[6] = {0};
	int is_execute_only = (nr == NR_mmap || nr == NR_mprotect || nr == NR_pkey_mprotect) && (args[2] & ~PROT_GROWS) == PROT_EXEC;
	if (!process.pkru_at || (!is_execute_only && (nr != NR_pkey_alloc || ret < 0)))
		return;
	u32 value = ask_ret(t, KD_RDPKRU, none);
	if (value != t->pkru)
		set_pkru(uc, value);
	t->pkru = t->told_pkru = value;
}

/* The arguments of the request by which a thread becomes native. */
void keys_before_native(struct thread *t, u64 *args)
{
	args[0] |= process.pkru_at ? NATIVE_PKEYS : 0;
	args[1] = t->told_pkru = t->pkru;
}

/* kerneld's machine may have no keys (kerneld start --no-pku). */
void keys_after_native(long ret)
{
	if (ret >= 0 && !(ret & NATIVE_PKEYS))
		process.pkru_at = 0;
}
