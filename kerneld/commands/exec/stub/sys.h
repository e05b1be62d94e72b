/* The host's system calls, without a libc: each returns what the host's kernel does, >= 0 or -errno. */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef uint64_t u64;
typedef uint32_t u32;

static inline long sys6(long nr, long a, long b, long c, long d, long e, long f)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}
#define AT_FDCWD -100

#define sys5(nr, a, b, c, d, e) sys6(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define sys4(nr, a, b, c, d) sys5(nr, a, b, c, d, 0)
#define sys3(nr, a, b, c) sys4(nr, a, b, c, 0)
#define sys2(nr, a, b) sys3(nr, a, b, 0)
#define sys1(nr, a) sys2(nr, a, 0)
#define sys0(nr) sys1(nr, 0)

enum {
	NR_read = 0, NR_write = 1, NR_open = 2, NR_close = 3, NR_poll = 7, NR_mmap = 9, NR_mprotect = 10, NR_munmap = 11,
	NR_brk = 12, NR_rt_sigaction = 13, NR_rt_sigprocmask = 14, NR_rt_sigreturn = 15, NR_rt_sigpending = 127, NR_rt_sigtimedwait = 128, NR_rt_sigqueueinfo = 129, NR_rt_tgsigqueueinfo = 297, NR_ioctl = 16, NR_mremap = 25,
	NR_msync = 26, NR_mincore = 27, NR_madvise = 28, NR_shmget = 29, NR_shmat = 30, NR_shmctl = 31, NR_shmdt = 67, NR_dup = 32, NR_pause = 34, NR_dup2 = 33, NR_getpid = 39, NR_socket = 41, NR_connect = 42,
	NR_sendto = 44, NR_sendmsg = 46, NR_recvmsg = 47, NR_clone = 56, NR_fork = 57, NR_vfork = 58, NR_execve = 59,
	NR_exit = 60, NR_wait4 = 61, NR_waitid = 247, NR_kill = 62, NR_fcntl = 72, NR_readlink = 89, NR_getrlimit = 97, NR_getrusage = 98,
	NR_sched_yield = 24, NR_rt_sigsuspend = 130, NR_sigaltstack = 131, NR_personality = 135, NR_mlock = 149, NR_munlock = 150,
	NR_mlockall = 151, NR_munlockall = 152, NR_ptrace = 101, NR_prctl = 157, NR_arch_prctl = 158, NR_sysinfo = 99, NR_setrlimit = 160, NR_gettid = 186,
	NR_futex = 202, NR_remap_file_pages = 216, NR_set_tid_address = 218, NR_mbind = 237, NR_set_mempolicy = 238, NR_get_mempolicy = 239, NR_exit_group = 231, NR_tgkill = 234, NR_tkill = 200, NR_openat = 257,
	NR_readlinkat = 267, NR_set_robust_list = 273, NR_dup3 = 292, NR_prlimit64 = 302, NR_memfd_create = 319, NR_rseq = 334, NR_process_vm_readv = 310,
	NR_process_vm_writev = 311, NR_seccomp = 317, NR_execveat = 322, NR_userfaultfd = 323, NR_mlock2 = 325, NR_pkey_mprotect = 329,
	NR_pkey_alloc = 330, NR_pkey_free = 331, NR_clone3 = 435, NR_close_range = 436, NR_faccessat2 = 439,
	NR_process_madvise = 440, NR_shadowpt_open = 462, NR_shadowpt_close = 463, NR_shadowpt_start = 464,
	NR_shadowpt_stop = 465, NR_shadowpt_page_contents = 466,
};

enum {
	EPERM = 1, ENOENT = 2, ESRCH = 3, EINTR = 4, EIO = 5, E2BIG = 7, ENOEXEC = 8, EBADF = 9, EAGAIN = 11, ENOMEM = 12,
	EACCES = 13, EFAULT = 14, EBUSY = 16, EEXIST = 17, EXDEV = 18, EINVAL = 22, EMFILE = 24, ENOTTY = 25, ENOSPC = 28,
	ENAMETOOLONG = 36, ENOSYS = 38, ELOOP = 40, EOPNOTSUPP = 95, ETIMEDOUT = 110, ESTALE = 116,
};

enum {
	SIGILL = 4, SIGTRAP = 5, SIGBUS = 7, SIGKILL = 9, SIGSEGV = 11, SIGCHLD = 17, SIGSTOP = 19, SIGSYS = 31,
};
