/*
 * What `kerneld run` preloads into a program: libc's syscall(), for one semester's numbers of the shadow page table.
 *
 *     cc -shared -fPIC -fvisibility=hidden -DKERNELD_ABI=24 preload.c -o preload.so
 *
 * Every other number goes to the real kernel by the same instructions as in libc, registers and stack untouched. The one
 * symbol that a program sees is `syscall`; libkerneld is inside, hidden.
 *
 * A call works from a signal handler, from any thread and in a child after fork: all signals are blocked while it is under
 * way, the lock names the process that holds it, so that a copy which a fork has made counts for nothing in the child, and
 * nothing here allocates. The child of a fork connects for itself, and is not the opener.
 */
#if !defined(__x86_64__) || !defined(__LP64__) || !defined(__linux__)
#error "kerneld run works on Linux for x86-64"
#endif
#define KD_MAX_BATCH 1 /* small frames: handlers run on small stacks */
#include "kerneld.c"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/uio.h>

#if KERNELD_ABI == 24
#define FIRST 462
#define COUNT 5
#elif KERNELD_ABI == 25
#define FIRST 467
#define COUNT 4
#elif KERNELD_ABI == 251 /* the first part of 25 */
#define FIRST 467
#define COUNT 2
#elif KERNELD_ABI == 23
#define FIRST 451
#define COUNT 3
#else
#error "KERNELD_ABI is 23, 24, 25 or 251"
#endif

#define TEXT(value) #value
#define NUMBER(value) TEXT(value)

/* Linux v6.8 arch/x86/entry/entry_64.S: the number in rax, the fourth argument in r10. */
__asm__(".text\n"
	".p2align 4\n"
	".globl syscall\n"
	".type syscall, @function\n"
	"syscall:\n"
	"	.cfi_startproc\n"
	"	endbr64\n"
	"	movq %rdi, %rax\n"
	"	subq $" NUMBER(FIRST) ", %rax\n"
	"	cmpq $" NUMBER(COUNT) ", %rax\n"
	"	jb shadowpt_syscall\n"
	"	movq %rdi, %rax\n"
	"	movq %rsi, %rdi\n"
	"	movq %rdx, %rsi\n"
	"	movq %rcx, %rdx\n"
	"	movq %r8, %r10\n"
	"	movq %r9, %r8\n"
	"	movq 8(%rsp), %r9\n"
	"	syscall\n"
	"	cmpq $-4095, %rax\n"
	"	jae 1f\n"
	"	ret\n"
	"1:	movq %rax, %rdi\n"
	"	jmp syscall_failed\n"
	"	.cfi_endproc\n"
	".size syscall, .-syscall\n");

__attribute__((used)) long syscall_failed(long ret);
__attribute__((used)) long shadowpt_syscall(long nr, long first, long second, long third);

/* All that a call needs. A child of vfork works in the memory of its parent, whose connection it must leave alone: it has
   a side of its own. */
struct side {
	struct kd kd;
	struct stat connection; /* what kd.fd is, as long as it is ours: a program may close it, and open another file */
	uint64_t lock;          /* pid << 32 | tid of the holder; a tid of 0: free */
	int has_bad_address;    /* the call that is under way has met one of the program's */
	char why[512], line[640];
	unsigned char page[PAGE];
};
static struct side own = { .kd = KD_INIT }, guest = { .kd = KD_INIT };
static pid_t memory_pid;   /* whose memory this is */
static int has_spoken;
static int is_explaining;  /* `kerneld run --explain`: why a call fails is said on stderr */

static void note_memory(void)
{
	memory_pid = getpid();
}

__attribute__((constructor)) static void look_at_environment(void)
{
	note_memory();
	pthread_atfork(NULL, NULL, note_memory);
	is_explaining = getenv("KERNELD_EXPLAIN") != NULL;
}

long syscall_failed(long ret)
{
	errno = (int)-ret;
	return -1;
}

static void say(const char *what, const char *path, const char *hint)
{
	char line[256];
	ssize_t sent;

	if (has_spoken)
		return;
	has_spoken = 1;
	line[0] = '\0';
	strcat(line, "kerneld: ");
	strcat(line, what);
	strcat(line, path);
	strcat(line, hint);
	strcat(line, "\n");
	sent = write(2, line, strlen(line));
	(void)sent;
}

/* ---- The lock ---- */

static void take_lock(struct side *side, uint64_t pid)
{
	uint64_t tid = (uint64_t)syscall(SYS_gettid), held, mine = pid << 32 | tid;

	for (;;) {
		held = __atomic_load_n(&side->lock, __ATOMIC_RELAXED);
		/* Another process's lock is what the parent held at the fork. */
		if (held >> 32 != pid || (uint32_t)held == 0) {
			if (__atomic_compare_exchange_n(&side->lock, &held, mine, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
				return;
		} else {
			/* The low half comes first in memory. */
			syscall(SYS_futex, &side->lock, FUTEX_WAIT_PRIVATE, (uint32_t)held, NULL, NULL, 0);
		}
	}
}

static void drop_lock(struct side *side, uint64_t pid)
{
	__atomic_store_n(&side->lock, pid << 32, __ATOMIC_RELEASE);
	syscall(SYS_futex, &side->lock, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* ---- The program's memory, by addresses that may be wrong ---- */

static int copy(struct side *side, void *to, const void *from, size_t bytes, int is_out)
{
	struct iovec local = { is_out ? (void *)(uintptr_t)from : to, bytes };
	struct iovec remote = { is_out ? to : (void *)(uintptr_t)from, bytes };
	ssize_t done = is_out ? process_vm_writev(getpid(), &local, 1, &remote, 1, 0) :
				process_vm_readv(getpid(), &local, 1, &remote, 1, 0);

	if (done == (ssize_t)bytes)
		return 0;
	if (done >= 0 || errno == EFAULT) {
		side->has_bad_address = 1;
		return fail(EFAULT);
	}
	/* A sandbox forbids the call: then a wrong address is what it is in any other function. */
	memcpy(to, from, bytes);
	return 0;
}

/* ---- The connection ---- */

static int is_ours(const struct side *side)
{
	const struct stat *then = &side->connection;
	struct stat now;

	return side->kd.fd >= 0 && fstat(side->kd.fd, &now) == 0 && now.st_ino == then->st_ino && now.st_dev == then->st_dev;
}

/* Leave alone what another process has opened, in its own table of descriptors, while it used this memory. */
static void forget_other_guest(struct side *side)
{
	if (side != &guest || side->kd.pid == getpid())
		return;
	side->kd.fd = -1;
	kd_forget(&side->kd);
}

static int connect_here(struct side *side)
{
	struct kd *kd = &side->kd;

	forget_other_guest(side);
	if (kd->fd >= 0 && !is_ours(side)) {
		/* Closed behind our back: the kernel has closed the table, and the number may be anyone's. */
		kd->fd = -1;
		kd_disconnect(kd);
	}
	if (kd->fd >= 0 && kd->pid != getpid())
		kd_forget(kd);
	if (kd->fd >= 0)
		return 0;
	if (kd_attach(kd, NULL, 0, 0, KD_ATTACH_HOST) == 0)
		return fstat(kd->fd, &side->connection);
	if (errno == EACCES || errno == EPERM) {
		say("not permitted to use the kerneld at ", kd->path, "");
		return fail(EPERM);
	}
	if (errno == ENOENT || errno == ENOTDIR || errno == ECONNREFUSED)
		say("no kerneld at ", kd->path, ": start one with 'kerneld start'");
	else
		say("cannot attach to the kerneld at ", kd->path, "");
	return fail(ENOSYS);
}

/* ---- The calls ---- */

#if KERNELD_ABI != 251
static int open_table(struct side *side, pid_t target, void *user)
{
	struct range range;
	struct user_shadow_pt *dest = copy(side, &range, user, sizeof(range), 0) == 0 ? (void *)&range : NULL;
	enum kd_layout layout = KERNELD_ABI == 23 ? KD_LAYOUT_F23 : KD_LAYOUT_F24;

	if (kd_shadowpt_open(&side->kd, target, dest, layout, KD_OPEN_HOST) < 0)
		return -1;
	if (copy(side, user, &range, sizeof(range), 1) == 0 && (KERNELD_ABI != 23 || kd_shadowpt_start(&side->kd) == 0))
		return 0;
	int error = errno;
	kd_shadowpt_close(&side->kd);
	return fail(error);
}

#endif

static int page_contents(struct side *side, unsigned long pfn, void *user)
{
	if (kd_shadowpt_page_contents(&side->kd, pfn, side->page) < 0)
		return -1;
	return copy(side, user, side->page, sizeof(side->page), 1);
}

static int run_call(struct side *side, long nr, long first, long second, long third)
{
#if KERNELD_ABI == 23
	static const char calls[] = { 'o', 'c', 'p' };
#else
	static const char calls[] = { 'o', 'c', 's', 't', 'p' };
#endif
	switch (calls[nr - FIRST]) {
	case 'o':
#if KERNELD_ABI == 251
		return kd_faults_open(&side->kd, (pid_t)first, (void *)second, (size_t)third, KD_OPEN_HOST);
#else
		(void)third;
		return open_table(side, (pid_t)first, (void *)second);
#endif
	case 'c':
		return kd_shadowpt_close(&side->kd);
	case 's':
		return kd_shadowpt_start(&side->kd);
	case 't':
		return kd_shadowpt_stop(&side->kd);
	default:
		return page_contents(side, (unsigned long)first, (void *)second);
	}
}

/* ---- Why: one line a call, for who asked ---- */

static const char *call_name(long nr)
{
#if KERNELD_ABI == 23
	static const char *const names[] = { "shadowpt_enable", "shadowpt_disable", "shadowpt_page_contents" };
#else
	static const char *const names[] = { "shadowpt_open", "shadowpt_close", "shadowpt_start", "shadowpt_stop",
					     "shadowpt_page_contents" };
#endif
	return names[nr - FIRST];
}

static const char *errno_name(int error)
{
	switch (error) {
	case EPERM:
		return "EPERM: ";
	case EFAULT:
		return "EFAULT: ";
	case EBUSY:
		return "EBUSY: ";
	case EINVAL:
		return "EINVAL: ";
	case ENOMEM:
		return "ENOMEM: ";
	default:
		return "";
	}
}

/* Say what kerneld has to say of the call that has just ended with `error` (0: it has not failed). */
static void explain(struct side *side, long nr, int error)
{
	char *why = side->why, *line = side->line;
	ssize_t length;

	if (error == EFAULT && side->has_bad_address) {
		strcpy(why, "the address that the program gives cannot be read, or not be written");
	} else {
		length = kd_procread(&side->kd, "kerneld/explanation", 0, why, sizeof(side->why) - 1);
		if (length <= 0)
			return;
		why[length] = '\0';
	}
	strcpy(line, "kerneld: ");
	strcat(line, call_name(nr));
	strcat(line, ": ");
	strcat(line, errno_name(error));
	strcat(line, why);
	strcat(line, "\n");
	length = write(2, line, strlen(line));
	(void)length;
}

long shadowpt_syscall(long nr, long first, long second, long third)
{
	int before = errno, ret, error;
	uint64_t pid = (uint64_t)getpid();
	struct side *side = (pid_t)pid == memory_pid ? &own : &guest;
	sigset_t all, mask;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &mask);
	take_lock(side, pid);
	side->has_bad_address = 0;
	ret = connect_here(side) < 0 ? -1 : run_call(side, nr, first, second, third);
	error = ret < 0 ? errno : before;
	if (is_explaining && is_ours(side) && (ret < 0 || nr == FIRST))
		explain(side, nr, ret < 0 ? error : 0);
	if (ret < 0 && (error == ECONNRESET || error == EPROTO)) {
		say("the kerneld at ", side->kd.path, " went away, and the table with it");
		error = EIO;
	}
	drop_lock(side, pid);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	errno = error;
	return ret;
}
