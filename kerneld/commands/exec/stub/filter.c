/* Which system calls come to the stub: all that the program makes itself, but for those that take no pointer and need
 * nothing of ours. A seccomp filter by instruction pointer; fork, clone and execve hand it on. */
#include "native.h"

struct sock_filter { uint16_t code; unsigned char jt, jf; u32 k; };
struct sock_fprog { uint16_t length; struct sock_filter *filter; };

#define LOAD 0x20
#define JEQ 0x15
#define JGE 0x35
#define RET 0x06
#define ALLOW 0x7fff0000
#define TRAP 0x00030000
#define ENOSYS_RET (0x00050000 | ENOSYS)
#define PR_SET_NO_NEW_PRIVS 38
#define PR_SET_SECCOMP 22
#define AUDIT_ARCH_X86_64 0xc000003eU
#define AREA_HIGH (AREAS_START >> 32)
#define STUB_HIGH (STUB_START >> 32)

/* Calls without pointers. Those that could reach hidden descriptors (close, dup2, fcntl …) are not among them. */
static const u32 free_calls[] = {
	8 /* lseek */, 24 /* sched_yield */, 39 /* getpid */, 41 /* socket */, 48 /* shutdown */, 50 /* listen */,
	73, 74, 75 /* flock fsync fdatasync */, 81 /* fchdir */, 91 /* fchmod */, 93 /* fchown */, 95 /* umask */,
	102, 104, 107, 108, 109, 110, 111, 112, 121, 124 /* ids, groups, sessions */, 140, 141 /* priorities */,
	145, 146, 147, 186 /* gettid */, 283 /* timerfd_create */, 290, 291 /* eventfd2, epoll_create1 */,
};

/* Whether a call is made by the host without the stub. */
int is_free_call(long nr)
{
	for (u64 i = 0; i < sizeof free_calls / sizeof *free_calls; i++)
		if (free_calls[i] == nr)
			return 1;
	return 0;
}

void install_filter(void)
{
	struct sock_filter filter[64] = {
		{LOAD, 0, 0, 4},			/* arch */
		{JEQ, 1, 0, AUDIT_ARCH_X86_64},
		{RET, 0, 0, ENOSYS_RET},
		{LOAD, 0, 0, 12},			/* instruction pointer, upper half */
		{JEQ, 1, 0, STUB_HIGH},
		{JEQ, 0, 1, AREA_HIGH},
		{RET, 0, 0, ALLOW},
		{LOAD, 0, 0, 0},			/* number */
	};
	int count = 8, calls = sizeof free_calls / sizeof *free_calls;
	for (int i = 0; i < calls; i++)
		filter[count++] = (struct sock_filter){JEQ, calls - i, 0, free_calls[i]};
	filter[count++] = (struct sock_filter){RET, 0, 0, TRAP};
	filter[count++] = (struct sock_filter){RET, 0, 0, ALLOW};
	struct sock_fprog program = {count, filter};
	sys5(NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (sys3(NR_prctl, PR_SET_SECCOMP, 2, &program) < 0)
		die("this host has no seccomp filters");
}
